"""Draws that stop once the program scores are known, against all draws.

    python benchmarks/tolerance.py results/demo [--targets 24] [--record]

Half of the knock-downs are measured ones, half never knocked down, both taken evenly; the programs
are those of config/config.yaml. For each `screen.tolerance`: the draws made per knock-down and
context, how many knock-downs stop before the last block, the standard errors that were reached,
and how far the scores are from those of all draws (root mean square, and the largest, over
knock-downs, contexts and programs). One row counts draws and one times generation, both for the
tolerance of 0.01 and the same knock-downs.
"""

import numpy as np
import torch
from rounds import Comparison, compare, parser, report
from sampling import ROOT, load

from knockscreen.config import read_config
from knockscreen.sampling import Screen, control_statistics, shard_statistics
from knockscreen.score.programs import load_programs
from knockscreen.stopping import Until, scoring_weights

TIMED = 0.01
"""The tolerance of the rows that are kept."""


def main() -> None:
    shared = parser(__doc__)
    shared.add_argument("run", nargs="?", default="results/demo")
    shared.add_argument("--targets", type=int, default=24)
    given = shared.parse_args()
    torch.set_num_threads(1)
    sampler = load(given.run)
    draws_all = sampler.settings.draws
    v = sampler.model.vocabulary
    programs = load_programs(
        read_config(str(ROOT / "config/config.yaml")).programs, f"{given.run}/store"
    )
    seen = [name for name in v.target_ids[1 : v.n_real] if sampler.is_seen(name)]
    unseen = [name for name in sampler.effects.featured() if not sampler.is_seen(name)]
    half = given.targets // 2
    targets = [
        *seen[:: max(1, len(seen) // half)][:half],
        *sorted(unseen)[:: max(1, len(unseen) // half)][:half],
    ]
    screen = Screen(sampler, list(sampler.model.library_size_log), by_block=True)
    control = control_statistics(screen)["draw_log1p"]

    def made(names: list[str], tolerance: float | None):
        until = tolerance and Until(tolerance, programs.gene_ids, programs.weights)
        return shard_statistics(screen, names, control, until or None)

    def scores(tolerance: float | None):
        """Draws (K,), scores (K, C, P) and their standard errors."""
        rows = []
        for name, one in zip(targets, made(targets, tolerance), strict=True):
            own = programs.gene_ids.index(name) if name in programs.gene_ids else -1
            weights = scoring_weights(programs.weights, own).T
            blocks = one["block_delta"][~np.isnan(one["block_delta"]).any((1, 2))] @ weights
            error = blocks.std(0, ddof=1) / np.sqrt(len(blocks))
            rows.append((one["n_draws"], one["delta_mean"] @ weights, error))
        return [np.array(column) for column in zip(*rows, strict=True)]

    _, whole, error = scores(None)
    of = f"{len(targets)} knock-downs, {len(screen.contexts)} contexts"
    quantiles = np.nanquantile(error, [0.5, 0.9, 1.0])
    of += f", {len(programs.names)} programs"
    print(f"{of}; {draws_all} draws in {sampler.settings.blocks} blocks")
    print("errors of scores with all draws, median, 90 %, largest:", *quantiles.round(5))
    spread = np.nanstd(whole, axis=0).mean()
    print(f"sd of scores over knock-downs: {spread:.4f}")
    for tolerance in (0.0003, 0.001, 0.003, 0.01, 0.03):
        draws, found, error = scores(tolerance)
        off = np.abs(found - whole)
        print(
            f"tolerance {tolerance:g}: {draws.mean():.1f} draws of {draws_all} "
            f"({draws.mean() / draws_all:.0%}), {(draws < draws_all).mean():.0%} stop "
            f"early; largest error {np.nanmax(error):.5f}; from all draws RMS "
            f"{np.sqrt(np.nanmean(off**2)):.5f}, largest {np.nanmax(off):.5f}",
            flush=True,
        )
        if tolerance == TIMED:
            counted = Comparison([float(draws.mean())], [float(draws_all)])
    stage = f"draws that stop at a tolerance of {TIMED:g} (demo)"
    report(f"{stage}, draws", "all draws", counted, unit="draws", bar=1, record=given.record)
    timed = compare(
        lambda: list(made(targets, TIMED)), lambda: list(made(targets, None)), rounds=given.rounds
    )
    timed = Comparison(*([s / len(targets) for s in side] for side in (timed.ours, timed.theirs)))
    unit = "CPU s per knock-down"
    report(f"{stage}, time", "all draws", timed, unit=unit, bar=1, record=given.record)


if __name__ == "__main__":
    main()
