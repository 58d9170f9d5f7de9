"""Cells needed for one standard error of an effect: paired expectations against independent counts.

    python benchmarks/common_noise.py results/demo [--draws 32] [--record]

Every measured knock-down of a run is generated in every context. An effect of a gene is the mean
log1p CP10k of a knock-down minus that of control. Simulated cells as others make them are
independent and hold sampled counts: the variance of a difference is the sum of both variances over
cells. Ours share their noise with control's, cell by cell, and are expectations over the counts:
the variance of the paired difference. The ratio says how many times fewer cells give the same
simulation error; it is the median over genes and contexts, for each knock-down, and printed beside
it for the 20 genes that change most in each context. Strong and weak are the quarters of the
knock-downs that change the mean counts most and least (sum of the absolute changes over the sum of
the control's). This is the simulation's error and not the model's: with a linear part of the
effects (effect.model: low_rank) a knock-down moves all cells of a context nearly alike.
"""

import numpy as np
import torch
from rounds import Comparison, parser, report
from sampling import load

from knockscreen.sampling import Screen, control_statistics, shard_statistics


def main() -> None:
    shared = parser(__doc__)
    shared.add_argument("run", nargs="?", default="results/demo")
    shared.add_argument("--draws", type=int, default=32)
    given = shared.parse_args()
    torch.set_num_threads(1)
    sampler = load(given.run).changed(draws=given.draws)
    v = sampler.model.vocabulary
    targets = [name for name in v.target_ids[1 : v.n_real] if sampler.is_seen(name)]
    screen = Screen(sampler, list(sampler.model.library_size_log))
    control = control_statistics(screen)
    ratio, changed, size = [], [], []
    for down in shard_statistics(screen, targets, control["draw_log1p"]):
        independent = down["var_log1p"] + control["var_log1p"]  # (C, G)
        fewer = independent / np.maximum(down["delta_var"], 1e-12)
        most = np.argsort(-np.abs(down["delta_mean"]), axis=1)[:, :20]
        ratio.append(float(np.median(fewer)))
        changed.append(float(np.median(np.take_along_axis(fewer, most, axis=1))))
        change = np.abs(down["mean_count"] - control["mean_count"]).sum()
        size.append(change / control["mean_count"].sum())
    order = np.argsort(size)
    quarter = len(order) // 4
    print(f"{len(targets)} knock-downs, {len(screen.contexts)} contexts, {given.draws} draws")
    for kind, mine, bar in (("strong", order[-quarter:], 8), ("weak", order[:quarter], 30)):
        fewer = [ratio[k] for k in mine]
        low, high = size[mine[0]], size[mine[-1]]
        of_changed = np.median([changed[k] for k in mine])
        print(
            f"{kind}: relative change of the counts {low:.3f} to {high:.3f}; of their most changed "
            f"genes {of_changed:.0f} times fewer cells"
        )
        report(
            f"cells per standard error of an effect, {kind} knock-downs (demo)",
            "independent cells with sampled counts", Comparison([1.0] * len(fewer), fewer),
            unit="variance", bar=bar, record=given.record,
        )  # fmt: skip


if __name__ == "__main__":
    main()
