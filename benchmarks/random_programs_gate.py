"""How often a program of random genes passes the gate of a real program's positive controls.

Random signed programs, of as many panel genes as the real one, are scored from the stored effects
of a finished run and judged by the real program's controls: each pass is a false one::

    python benchmarks/random_programs_gate.py results/demo Treg Th1 Th2 activation
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from knockscreen.config import read_config
from knockscreen.score.gate import effects_of_controls, gate_program, read_controls
from knockscreen.score.program_files import read_programs
from knockscreen.score.programs import program_matrix
from knockscreen.score.rescore import panel_of, rescore
from knockscreen.score.verdicts import overall


def random_programs(table: pl.DataFrame, genes: list[str], n: int, seed: int) -> pl.DataFrame:
    """Return n programs of random genes with the weights of the genes of ``table``."""
    rng = np.random.default_rng(seed)
    weights = table.filter(pl.col("gene").is_in(genes))["weight"].to_list()
    rows = [
        (f"random{k:03d}", gene, weight)
        for k in range(n)
        for gene, weight in zip(
            rng.choice(genes, len(weights), replace=False), weights, strict=True
        )
    ]
    return pl.DataFrame(rows, schema=["program", "gene", "weight"], orient="row")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("programs", nargs="+")
    parser.add_argument("--n", type=int, default=200)
    args = parser.parse_args()
    settings = read_config("config/config.yaml")
    controls = read_controls(settings.gate.controls)
    ids, genes = panel_of(args.run / "store")
    shipped = read_programs(settings.programs.file)
    candidates = pl.read_parquet(args.run / "screen/candidates.parquet")
    known = candidates.select("target_gene_id", "target_gene", "evidence")
    for program in args.programs:
        table = random_programs(shipped.filter(pl.col("program") == program), genes, args.n, 0)
        matrix = program_matrix(table, ids, genes)
        with tempfile.TemporaryDirectory() as folder:
            list(rescore(args.run, matrix, Path(folder), None))
            scores = pl.read_parquet(f"{folder}/programs/*.parquet").join(
                known, on="target_gene_id"
            )
        own = controls.filter(pl.col("program") == program)
        files = sorted((args.run / "score/effects").glob("*.parquet"))
        effects = effects_of_controls(own, matrix, args.run / "store", files, None)
        passed = {"with random programs": 0, "without": 0}
        for (name,), part in scores.group_by("program", maintain_order=True):
            renamed = own.with_columns(program=pl.lit(name))
            for how, known_effects in zip(passed, (effects, None), strict=True):
                gates = gate_program(str(name), part, renamed, settings.gate, known_effects)[1]
                passed[how] += overall(gates)["control_status"][0] == "passed"
        print(f"{program}: of {args.n} random programs pass {passed}", flush=True)


if __name__ == "__main__":
    main()
