"""The exact rank-sum test of many knock-downs against one control, beside illico and pdex.

    python benchmarks/rank_sums.py [--peer illico] [--targets 500] [--rounds 5] [--record]
    python benchmarks/rank_sums.py --peer pdex --rounds 3

Log-normalised counts, 500 knock-downs x 100 cells x 3,700 genes (17 % of values not zero) against
5,000 control cells, in memory; CPU seconds on one thread, compiled code warm. Both sides make the
p-values of all genes and knock-downs. Also prints how far the p-values lie from those of
``scipy.stats.mannwhitneyu`` in float64 for some knock-downs.
"""

import contextlib
import io
import logging
import warnings

import anndata
import numpy as np
import pandas as pd
import rounds
from scipy import sparse, stats
from synthetic import log1p_cp10k

from knockscreen.score.rank_sums import rank_sum_test, sort_controls

CELLS, CONTROLS, GENES = 100, 5_000, 3_700
CONTROL = "non-targeting"


class Screen:
    """Control cells first, then the knock-downs' cells."""

    def __init__(self, targets: int) -> None:
        values = log1p_cp10k(CONTROLS + targets * CELLS, GENES, molecules=1_050)
        self.controls, self.cells = values[:CONTROLS], values[CONTROLS:]
        self.targets = targets
        self.group = np.repeat(np.arange(targets), CELLS)
        names = [CONTROL] * CONTROLS + [f"T{k:04d}" for k in self.group]
        index = [f"c{i}" for i in range(len(names))]
        self.adata = anndata.AnnData(values, pd.DataFrame({"group": names}, index=index))

    def ours(self) -> np.ndarray:
        controls = sort_controls(self.controls)
        return rank_sum_test(self.cells, self.group, self.targets, controls).p_value

    def illico(self) -> np.ndarray:
        from illico.asymptotic_wilcoxon import asymptotic_wilcoxon

        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            found = asymptotic_wilcoxon(
                self.adata, is_log1p=True, group_keys="group", reference=CONTROL, n_threads=1
            )
        found = found.drop(index=CONTROL, level="pert").sort_index(level=0, sort_remaining=False)
        return found["p_value"].to_numpy().reshape(self.targets, GENES)

    def pdex(self) -> np.ndarray:
        from pdex import pdex

        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = pdex(
                self.adata, "group", mode="ref", reference=CONTROL, threads=1, is_log1p=True
            )
        return found["p_value"].to_numpy().reshape(self.targets, GENES)

    def exact(self, k: int) -> np.ndarray:
        """Return scipy's p-values of one knock-down, in float64."""
        sides = (self.cells[self.group == k], self.controls)
        dense = [side.toarray().astype(np.float64) for side in sides]
        return np.asarray(stats.mannwhitneyu(*dense, axis=0, method="asymptotic").pvalue)


def distance(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.max(np.abs(found - exact) / exact))


def main() -> None:
    parser = rounds.parser(__doc__)
    parser.add_argument("--peer", choices=("illico", "pdex"), default="illico")
    parser.add_argument("--targets", type=int, default=500)
    options = parser.parse_args()
    logging.disable()
    if options.peer == "illico":
        import loguru

        loguru.logger.remove()
    screen = Screen(options.targets)
    stored = sparse.vstack([screen.controls, screen.cells])
    density = stored.nnz / np.prod(stored.shape)
    print(f"{options.targets} knock-downs, {GENES} genes, {density:.1%} of values are not zero")
    theirs = getattr(screen, options.peer)
    both = screen.ours(), theirs()
    for k in (0, options.targets // 2, options.targets - 1):
        exact = screen.exact(k)
        ours, other = (distance(p[k], exact) for p in both)
        print(
            f"knock-down {k}: largest relative distance of p from scipy, float64: ours {ours:.1e}, "
            f"{options.peer} {other:.1e}; smallest p {exact.min():.1e}"
        )
    result = rounds.compare(screen.ours, theirs, rounds=options.rounds, warm=False)
    stage = f"rank-sum test, {options.targets} knock-downs x {CELLS} cells x {GENES:,} genes"
    bar = {"illico": 2.0, "pdex": 15.0}[options.peer]
    rounds.report(stage, options.peer, result, bar=bar, record=options.record)


if __name__ == "__main__":
    main()
