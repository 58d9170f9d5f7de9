"""Steps saved by starting from a base checkpoint, on a tenth of the cells.

    python benchmarks/transfer.py results/demo [--seeds 0 1 2]

The base is a finished run; the target is the same simulated screen with a tenth of the cells and
two other donors. Each seed trains the target's VAE and flow from nothing, and from the base with
half as many steps (a whole schedule of warm-up and decay each), the VAE at a tenth of the learning
rate, so that its latents stay near those that the base's flow was trained on. Told is the step at
which the start from the base is at or below the best validation loss that the start from nothing
reaches, over the step at which that is reached.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import polars as pl

from knockscreen.config import merge, read_config, read_values

ROOT = Path(__file__).parents[1]
TENTH = {
    "simulate": {"cells": 2000, "donors": ["D3", "D4"]},
    "qc": {"min_cells": 1, "min_control_cells": 20},
    "splits": {"validation": 0.2, "test": 0.0},
    "vae": {"training": {"steps": 200, "batch_size": 32, "validate_every": 10, "patience": 1000}},
    "flow": {"training": {"steps": 400, "batch_size": 32, "validate_every": 20, "patience": 1000}},
}
"""Laid over config.yaml; a fifth of the cells validates, so that losses can be told apart."""


def knockscreen(verb: str, settings: dict, *words: object) -> None:
    """Run one verb."""
    command = ["knockscreen", "--quiet", verb, "--settings", json.dumps(settings)]
    subprocess.run([*command, *map(str, words)], check=True, cwd=ROOT)


def losses(folder: Path) -> pl.DataFrame:
    """Return step and validation loss of a training."""
    table = pl.read_parquet(folder / "loss.parquet").filter(split="validation")
    return table.select("step", "loss")


def compare(what: str, seed: int, scratch: pl.DataFrame, base: pl.DataFrame) -> dict[str, object]:
    """Return when the start from the base is as good as the best of the start from nothing."""
    best = scratch.sort("loss").row(0, named=True)
    reached = base.filter(pl.col("loss") <= best["loss"])
    step = int(reached["step"].min()) if reached.height else None
    return {
        "model": what,
        "seed": seed,
        "scratch_best": best["loss"],
        "scratch_step": best["step"],
        "base_best": base["loss"].min(),
        "base_step": step,
        "ratio": None if step is None else step / best["step"],
        "scratch_first": scratch["loss"][0],
        "base_first": base["loss"][0],
    }


def train(
    what: str, settings: dict, given: list[object], folder: Path, init: Path | None
) -> pl.DataFrame:
    """Train a vae or flow, from ``init`` with half the steps; return its validation losses."""
    start: dict = {"init_from": None if init is None else str(init)}
    if init is not None:
        usual = settings[what]["training"]
        start["training"] = {"steps": usual["steps"] // 2}
        if what == "vae":
            start["training"]["learning_rate"] = usual["learning_rate"] / 10
    knockscreen(f"train-{what}", merge(settings, {what: start}), *given, "-o", folder)
    return losses(folder)


def main() -> None:
    """Print a row per model and seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path, help="a finished run, such as results/demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    base = options.base.resolve()
    settings = merge(read_values(str(ROOT / "config/config.yaml")), TENTH)
    read_config(json.dumps(settings))
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        knockscreen("simulate", settings, "--output-dir", place / "input")
        files = ["-i", place / "input"]
        knockscreen("qc", settings, *files, "-o", place / "qc")
        knockscreen("normalize", settings, *files, "--qc-dir", place / "qc", "-o", place / "store")
        knockscreen("fit-effects", settings, "--store", place / "store", "-o", place / "effect")
        given = ["--store", place / "store", "--effect", place / "effect/effect.safetensors"]
        for seed in options.seeds:
            ours = {**settings, "seed": seed}
            vae = {}
            for name, init in (("scratch", None), ("base", base / "vae/vae.safetensors")):
                vae[name] = train("vae", ours, given, place / f"{name}{seed}", init)
            rows.append(compare("vae", seed, vae["scratch"], vae["base"]))
            print(rows[-1], flush=True)
            folder = place / f"base{seed}"
            knockscreen("encode", ours, *given, "--vae", folder / "vae.safetensors", "-o", folder)
            flow = {}
            for name, init in (("scratch", None), ("base", base / "flow/flow.safetensors")):
                words = [*given, "--latents", folder]
                flow[name] = train("flow", ours, words, folder / name, init)
            rows.append(compare("flow", seed, flow["scratch"], flow["base"]))
            print(rows[-1], flush=True)
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=200):
        print(pl.DataFrame(rows))


if __name__ == "__main__":
    main()
