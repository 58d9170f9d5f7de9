"""The stages under the roof of this processor: achieved rates beside what it can do at most.

    python benchmarks/roofline.py [--size small] [--genes 2000] [--record]

The roof is measured first: a matrix product and a memory copy, one thread. Networks run with random
weights; their floating-point operations and the bytes that each operator reads and writes are
counted from the shapes of the operators as they run, so intensity is that of the code and not of
an ideal. (Bytes in a cache do not reach memory: a point may lie above the slope.) Stages that move
data without arithmetic are bars of bytes per second beside the copy. CPU time, the fastest round.
``--record`` writes ``docs/roofline.tsv``, ``docs/figures/roofline.png`` and the table of
``docs/performance.md``.

    python benchmarks/roofline.py --gpu [--tflops 350]

prints the arithmetic of the cd4 configuration on a GPU: operations over an assumed rate. No GPU was
there to measure it.
"""

import csv
import datetime as dt
import importlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from growth import BASE, LOADED, commands, configuration, measure
from matplotlib.figure import Figure
from rounds import PAGE, ROOT, machine, parser
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from knockscreen.config import read_config
from knockscreen.data.cells import CellStore
from knockscreen.figures.style import (
    BLUE,
    GREY,
    VERMILION,
    Page,
    house_style,
    new_figure,
    place_labels,
    render,
)
from knockscreen.models.vae import VAE_SIZES, Batch, TransformerVAE, VaeSettings
from knockscreen.models.velocity import FLOW_SIZES, Condition, VelocityNet, VelocitySettings
from knockscreen.nn.linear import product
from knockscreen.plan import EVALUATIONS, flops_per_cell

RESULTS = ROOT / "docs" / "roofline.tsv"
START, END = "<!-- roofline: start -->", "<!-- roofline: end -->"
GEMM, COPY = "matrix product", "memory copy"
DENSITY = 0.17


class Count(TorchDispatchMode):
    """Adds up the operations and the bytes of every operator that runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.bytes = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.is_view:
            return out
        name = func.overloadpacket
        if name in flop_registry:
            self.flops += flop_registry[name](*args, **(kwargs or {}), out_val=out)
        elif name is product:
            self.flops += 2 * args[0].numel() * len(args[1])
        elif "flash_attention_for_cpu" in str(name):
            query, keys = args[:2] if "backward" not in str(name) else args[1:3]
            products = 2 if "backward" not in str(name) else 5
            b, h, n, d = query.shape
            self.flops += 2 * products * b * h * n * keys.shape[2] * d
        tensors: list[torch.Tensor] = []
        torch.utils._pytree.tree_map_only(torch.Tensor, tensors.append, (args, out))
        self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return out


def fastest(call: Callable[[], object], rounds: int) -> float:
    """Return the least CPU seconds of some calls, after one to warm up."""
    call()
    best = np.inf
    for _ in range(rounds):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return float(best)


def roof(rounds: int) -> dict[str, float]:
    """Return GFLOP/s of a matrix product, by oneDNN, and GB/s of a copy (read and written)."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    x, y = torch.zeros(64 * 2**20), torch.zeros(64 * 2**20)
    return {
        GEMM: 2 * 2048**3 / fastest(lambda: product(a, b), rounds) / 1e9,
        COPY: 2 * 4 * x.numel() / fastest(lambda: y.copy_(x), rounds) / 1e9,
    }


def networks(size: str, genes: int) -> dict[str, Callable[[], object]]:
    """Return what the networks do: a call each of a training step, an encoding, a decoding, ..."""
    torch.manual_seed(0)
    settings = VaeSettings(VAE_SIZES[size])
    vae = TransformerVAE(genes, settings)
    cells = 64
    counts = torch.poisson(torch.full((cells, genes), -float(np.log1p(-DENSITY))))
    library = counts.sum(1) + 1
    batch = Batch(counts, counts, library, None)
    tokens, dim = settings.size.latent_tokens, settings.size.latent_dim
    net = VelocityNet(VelocitySettings(FLOW_SIZES[size], tokens, dim, (4, 3), 1000))
    x, t = torch.randn(512, tokens, dim), torch.rand(512)
    of = Condition(torch.zeros(512, 2, dtype=torch.long), torch.ones(512, dtype=torch.long), None)

    def train(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> None:
        model.zero_grad(set_to_none=True)
        loss().backward()

    @torch.no_grad()
    def without_gradient(call: Callable[[], object]) -> None:
        call()

    z = torch.randn(cells, settings.tokens, dim)
    return {
        "VAE training step": lambda: train(vae, lambda: vae.loss(batch)["loss"]),
        "VAE encode": lambda: without_gradient(lambda: vae.encode(counts)),
        "VAE decode": lambda: without_gradient(lambda: vae.decode(z, library)),
        "DiT training step": lambda: train(net, lambda: net(x, t, of).square().mean()),
        "DiT sampling step": lambda: without_gradient(lambda: net(x, t, of)),
    }


def data_stages(rounds: int) -> dict[str, float]:
    """Return GB/s of the stages that move counts: counts read, and batches written."""
    for module in LOADED:
        importlib.import_module(f"knockscreen.{module}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = configuration(BASE | {"cells": 20_000, "genes": 1000}, folder)
        verbs = commands(folder, settings)
        measure(verbs["simulate"], folder / "log")
        stored = 0
        for path in (folder / "input").glob("*.h5ad"):
            with h5py.File(path) as file:
                stored += sum(file["X"][part].nbytes for part in ("data", "indices"))
        found = {verb: stored / measure(verbs[verb], folder / "log")[0] / 1e9
                 for verb in ("qc", "normalize")}  # fmt: skip
        store = CellStore.open(folder / "store")
        rows = np.random.default_rng(0).permutation(len(store))[:4096]
        nonzero = np.diff(store.indptr)[rows].sum()
        one = store.indices.itemsize + store.counts.itemsize
        moved = nonzero * one + 4 * len(rows) * len(store.vocabulary.gene_ids)
        found["loader"] = float(moved) / fastest(lambda: store.dense(rows), rounds) / 1e9
    return found


@house_style
def draw(rows: list[dict[str, str]]) -> Figure:
    """Draw the roofline of the networks and the bars of the data stages."""
    peaks = {row["stage"]: float(row["rate"]) for row in rows if row["kind"] == "roof"}
    page = Page(
        "The stages under the roof of one core",
        f"{peaks[GEMM]:.0f} GFLOP/s in a matrix product, {peaks[COPY]:.1f} GB/s in a copy",
        "python benchmarks/roofline.py; operations and bytes of every operator as it runs",
    )
    figure = new_figure(7.2, 3.2, page)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    intensity = np.geomspace(0.5, 200, 100)
    roofline = np.minimum(peaks[GEMM], intensity * peaks[COPY])
    left.plot(intensity, roofline, color=GREY)
    points = [row for row in rows if row["kind"] == "network"]
    x = np.array([float(row["intensity"]) for row in points])
    y = np.array([float(row["rate"]) for row in points])
    left.plot(x, y, "o", color=VERMILION, markersize=5)
    left.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="GFLOP/s")
    left.set(xlim=(0.5, 200), ylim=(10, 2 * peaks[GEMM]))
    names = {i: row["stage"] for i, row in enumerate(points)}
    place_labels(left, np.append(x, intensity), np.append(y, roofline), names)
    bars = [row for row in rows if row["kind"] == "data"]
    right.barh([row["stage"] for row in bars], [float(row["rate"]) for row in bars], color=BLUE)
    right.axvline(peaks[COPY], color=GREY, linestyle="--", linewidth=0.9)
    right.set(xlabel="GB/s; dashed: copy", xscale="log", xlim=(0.01, 2 * peaks[COPY]))
    return figure


def table(rows: list[dict[str, str]]) -> str:
    """Return the Markdown table of the stages and their share of the roof above them."""
    peaks = {row["stage"]: float(row["rate"]) for row in rows if row["kind"] == "roof"}
    lines = ["| stage | rate | FLOP per byte | share of the roof |", "|---|--:|--:|--:|"]
    for row in rows:
        rate, unit = float(row["rate"]), "GFLOP/s" if row["intensity"] else "GB/s"
        top = peaks[COPY]
        if row["intensity"]:
            top = min(peaks[GEMM], float(row["intensity"]) * peaks[COPY])
        share = "" if row["kind"] == "roof" else f"{rate / top:.0%}"
        if row["stage"] == GEMM:
            unit = "GFLOP/s"
        lines.append(f"| {row['stage']} | {rate:.3g} {unit} | {row['intensity']} | {share} |")
    return "\n".join(lines)


def publish() -> None:
    """Draw the figure and write the table from what was recorded."""
    with RESULTS.open(newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    (ROOT / "docs/figures/roofline.png").write_bytes(render(draw(rows), "png"))
    before, _, rest = PAGE.read_text().partition(START)
    _, _, after = rest.partition(END)
    text = f"{table(rows)}\n\nMeasured on: {rows[0]['machine']}, {rows[0]['date']}."
    PAGE.write_text(f"{before}{START}\n{text}\n{END}{after}")


def on_a_gpu(tflops: float, targets: int, genes: int) -> None:
    """Print the arithmetic of the cd4 configuration."""
    config = read_config(*(str(ROOT / "config" / f) for f in ("config.yaml", "scenarios/cd4.yaml")))
    vae = VaeSettings(VAE_SIZES["cd4"])
    size = vae.size
    net = VelocitySettings(FLOW_SIZES["cd4"], size.latent_tokens, size.latent_dim, (), 1)
    configured = config.screen.steps * EVALUATIONS[config.screen.solver]
    print("arithmetic, not measured: operations over an assumed sustained rate")
    for evaluations in dict.fromkeys((50, 12, configured)):
        flops = flops_per_cell(vae, net, genes, evaluations)
        cells = targets * 3 * 100
        print(
            f"cd4, {evaluations} evaluations: {flops / 1e9:.0f} GFLOP per cell; {targets:,} x 3 x "
            f"100 cells: {cells * flops:.3g} FLOP, {tflops * 1e12 / flops:,.0f} cells/s and "
            f"{cells * flops / tflops / 3.6e15:.2f} h at {tflops:g} TFLOP/s"
        )


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--size", default="small", choices=list(VAE_SIZES))
    arguments.add_argument("--genes", type=int, default=2000)
    arguments.add_argument("--gpu", action="store_true", help="only the arithmetic of cd4")
    arguments.add_argument("--tflops", type=float, default=350)
    arguments.add_argument("--draw", action="store_true", help="only draw what was recorded")
    options = arguments.parse_args()
    if options.gpu:
        on_a_gpu(options.tflops, 12_000, 3699)
        return
    if options.draw:
        publish()
        return
    torch.set_num_threads(1)
    data = data_stages(options.rounds)
    rows = [{"kind": "roof", "stage": name, "rate": rate, "intensity": ""}
            for name, rate in roof(options.rounds).items()]  # fmt: skip
    for name, call in networks(options.size, options.genes).items():
        with Count() as count:
            call()
        rate = count.flops / fastest(call, options.rounds) / 1e9
        rows.append({"kind": "network", "stage": name, "rate": rate,
                     "intensity": f"{count.flops / count.bytes:.3g}"})  # fmt: skip
    rows += [{"kind": "data", "stage": k, "rate": v, "intensity": ""} for k, v in data.items()]
    for row in rows:
        print(f"{row['stage']}: {row['rate']:.4g} at {row['intensity'] or '-'} FLOP per byte")
    if options.record:
        where = {"machine": machine(), "date": dt.datetime.now(dt.UTC).date().isoformat()}
        with RESULTS.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, [*rows[0], *where], delimiter="\t", lineterminator="\n")
            writer.writeheader()
            writer.writerows(row | where | {"rate": f"{row['rate']:.4g}"} for row in rows)
        publish()


if __name__ == "__main__":
    main()
