"""Sampling on a trained model: a multistep solver against the reference's way.

    python benchmarks/sampling.py results/demo [--rounds 5] [--record]

The reference's way: guidance of weight 1 as null + 1 (conditional - null) on a batch of twice the
same cells, so that four passes of the network give one useful velocity, under adaptive dopri5 at
rtol 1e-3 and atol 1e-6, 64 cells at a time. Ours: one pass, and AB2 on a cosine grid or RK4 with
the fewest evaluations whose errors are no larger than those of Euler with 50 steps, of a cell's
expected log1p CP10k and of the effects (RMSE), against dopri5 at rtol 1e-6 from the same noise.
Cost is counted in passes of a row through the network per cell, and timed in CPU seconds of one
thread, of the latents alone; what decoding and statistics add is printed.
"""

import copy
import time
from functools import partial
from pathlib import Path

import torch
from rounds import Comparison, compare, parser, report

from knockscreen import flow
from knockscreen.cli_screen import make_sampler
from knockscreen.config import read_config
from knockscreen.models.velocity import Condition, join
from knockscreen.sampling import Sampler, Screen
from knockscreen.sweep import solvers

ROOT = Path(__file__).resolve().parents[1]
EXACT = partial(flow.dopri5, rtol=1e-6, atol=1e-6)
ADAPTIVE = partial(flow.dopri5, rtol=1e-3, atol=1e-6)
EVALUATIONS = (6, 8, 10, 12, 13, 14, 15, 16, 20)


def load(run: str) -> Sampler:
    """Return the sampler of a run's checkpoints, with the settings of config/config.yaml."""
    config = read_config(str(ROOT / "config/config.yaml"))
    paths = [Path(run) / name / f"{name}.safetensors" for name in ("vae", "flow", "effect")]
    return make_sampler(config.seed, config.screen, *paths)


class Reference(Sampler):
    """Four rows of the network for each cell and time, as scldm's sampler has them."""

    def velocity(self, condition: Condition) -> flow.Velocity:
        net = self.model.net
        levels = torch.tensor(net.settings.levels).expand_as(condition.contexts)
        no_features = None if condition.features is None else 0 * condition.features
        none = Condition(levels, torch.full_like(condition.target, net.null_target()), no_features)
        given = join([none, none, condition, condition])

        def velocity(x, t):
            null, _, conditional, _ = net(x.repeat(4, 1, 1), t.repeat(4), given).chunk(4)
            return null + 1.0 * (conditional - null)

        return velocity


def reference(sampler: Sampler) -> Reference:
    other = copy.copy(sampler.changed(ADAPTIVE, solver="dopri5", steps=10, batch_size=64))
    other.__class__ = Reference
    return other


def latents(sampler: Sampler, screen: Screen, targets: list[str]) -> None:
    for name in targets:
        sampler.latents(sampler.target(name), screen.rows, screen.noise)


def main() -> None:
    shared = parser(__doc__)
    shared.add_argument("run", nargs="?", default="results/demo")
    given = shared.parse_args()
    sampler = load(given.run).changed(draws=8)
    torch.set_num_threads(1)
    v = sampler.model.vocabulary
    seen = [name for name in v.target_ids[1 : v.n_real] if sampler.is_seen(name)]
    targets, contexts = seen[:: len(seen) // 4][:4], list(sampler.model.library_size_log)[:2]
    exact = solvers.make(sampler.changed(EXACT, solver="dopri5", steps=10), targets, contexts)

    def errors(made: solvers.Made) -> tuple[float, float]:
        found = solvers.compare(made, exact, sampler.settings.draws)
        return found["cell_rmse"], found["effect_rmse"]

    def show(name: str, made: solvers.Made) -> None:
        cell, effect = errors(made)
        text = f"RMSE of cells {cell:.5f}, of effects {effect:.5f}"
        print(f"{name}: {made.evaluations:.1f} passes per cell, {text}", flush=True)

    euler = solvers.make(sampler.changed(solver="euler", steps=50), targets, contexts)
    show("euler 50", euler)
    tried = solvers.settings(("ab2", "rk4"), EVALUATIONS)
    for setting in sorted(tried, key=lambda one: one.steps * solvers.PER_STEP[one.solver]):
        ours = sampler.changed(solver=setting.solver, steps=setting.steps)
        made = solvers.make(ours, targets, contexts)
        show(f"{setting.solver} {setting.steps}", made)
        if all(a <= b for a, b in zip(errors(made), errors(euler), strict=True)):
            break
    other = reference(sampler)
    theirs = solvers.make(other, targets, contexts)
    show("dopri5 rtol 1e-3, four rows", theirs)
    stage = f"sampling (demo, {setting.solver}, {setting.steps} steps)"
    peer = "four rows, dopri5 rtol 1e-3"
    counted = Comparison([made.evaluations], [theirs.evaluations])
    report(f"{stage}, passes", peer, counted, unit="passes per cell", bar=12, record=given.record)
    screen = Screen(ours, contexts)
    timed = compare(
        lambda: latents(ours, screen, targets[:1]),
        lambda: latents(other, screen, targets[:1]),
        rounds=given.rounds,
    )
    cells = len(screen.rows)
    timed = Comparison(*([s / cells for s in side] for side in (timed.ours, timed.theirs)))
    report(f"{stage}, time", peer, timed, unit="CPU s per cell", bar=12, record=given.record)
    began = time.process_time()
    screen.generate(targets[0])
    print(f"a cell whole, decoded and summed up: {(time.process_time() - began) / cells:.4f} CPU s")


if __name__ == "__main__":
    main()
