"""A training step of the flow's DiT: compiled against eager, and against plain matrix products.

    python benchmarks/dit.py [--rounds 7] [--tokens 16] [--record]

The small size on random latents, minibatches of 128, one thread, CPU time, the package's loop and
optimiser. Eager is the network written straight (tests/fixtures/straight.py); loss and weights
after a step are compared first. Further rows are the share of the matrix-product peak: the seconds
that products of 2,048 x 512 x 512 take for the arithmetic of the network's step, over the step's,
by torch's own product, and by the faster one of the package (nn/linear.py).
Compiling takes a minute or more of one core; it is not in the times.
"""

import copy
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rounds import compare, parser, report

from knockscreen.models.velocity import FLOW_SIZES, Condition, VelocityNet, VelocitySettings
from knockscreen.nn.blocks import swiglu_width
from knockscreen.nn.linear import product
from knockscreen.training.flow import FlowLoss, FlowTraining, compile_network
from knockscreen.training.loop import Trainer, TrainingSettings

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from fixtures import straight

CELLS, BATCH, SIZE = 2048, 128, FLOW_SIZES["small"]
SETTINGS = TrainingSettings(
    steps=1000, batch_size=BATCH, learning_rate=1e-4, warmup=0.05, weight_decay=0.0,
    betas=(0.9, 0.95), clip=1.0, ema_decay=0.99, validate_every=1000, patience=1,
)  # fmt: skip


def step_flop(tokens: int, dim: int) -> float:
    """Operations of a step's network: forward, and twice that backward."""
    width, hidden = SIZE.width, swiglu_width(SIZE.width)
    token = width * (4 * width + 3 * hidden) + 2 * tokens * width
    cell = SIZE.layers * (tokens * token + 6 * width**2) + 2 * tokens * width * dim
    return 3 * 2.0 * BATCH * cell


def products(flop: float, multiply):
    """Return a call that multiplies matrices for so many operations."""
    a, b = torch.randn(2048, 512), torch.randn(512, 512)
    n = round(flop / (2 * 2048 * 512 * 512))

    def run() -> None:
        for _ in range(n):
            multiply(a, b)

    return run, flop / (n * 2 * 2048 * 512 * 512)


class Straight(VelocityNet):
    def learned(self, x, t, condition: Condition):
        return straight.learned(self, x, t, condition)


def main() -> None:
    shared = parser(__doc__)
    shared.add_argument("--tokens", type=int, default=16)
    given = shared.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = VelocitySettings(SIZE, given.tokens, 16, (4, 3), 100, 32)
    net = VelocityNet(settings)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    plain = Straight(settings)
    plain.load_state_dict(net.state_dict())
    data = (
        torch.randn(CELLS, given.tokens, 16), torch.randint(0, 3, (CELLS, 2)),
        torch.randint(0, 100, (CELLS,)), torch.randn(100, 32), FlowTraining(SIZE, 0.1, 0.1),
    )  # fmt: skip
    rows = np.arange(BATCH)
    trainers = {
        "compiled": Trainer(net, FlowLoss(*data, compile_network(net)), SETTINGS, seed=0),
        "eager": Trainer(copy.deepcopy(net), FlowLoss(*data), SETTINGS, seed=0),
        "straight": Trainer(plain, FlowLoss(*data), SETTINGS, seed=0),
    }
    losses = {}
    for name, trainer in trainers.items():
        began = time.process_time()
        losses[name] = trainer.step(rows)["loss"]
        print(
            f"{name}: loss {losses[name]:.6f}, first step {time.process_time() - began:.1f} CPU s"
        )
    assert np.ptp(list(losses.values())) < 1e-5
    compiled, eager, reference = (lambda t=t: t.step(rows) for t in trainers.values())
    stage = f"DiT training step (small, {given.tokens} tokens)"
    kind = {"unit": f"CPU s per step of {BATCH}", "record": given.record}
    peaks = {"plain matrix products": torch.matmul, "matrix products by oneDNN": product}
    for name, step, bar in (("compiled", compiled, 1.25), ("eager", eager, 1)):
        result = compare(step, reference, rounds=given.rounds)
        report(f"{stage}, {name}", "the network written straight", result, bar=bar, **kind)
        for peak, multiply in peaks.items():
            run, more = products(step_flop(given.tokens, 16), multiply)
            result = compare(step, run, rounds=given.rounds)
            result.theirs[:] = [seconds * more for seconds in result.theirs]
            report(f"{stage}, {name}", peak, result, bar=0.8, **kind)


if __name__ == "__main__":
    main()
