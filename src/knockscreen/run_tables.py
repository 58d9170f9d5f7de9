"""The tables of one run, found by name: a missing one says which verb writes it."""

from functools import cached_property
from pathlib import Path

import polars as pl

from knockscreen.artifacts import read_json
from knockscreen.errors import DataError, UnknownNameError, suggest
from knockscreen.names import DECOY, UNSEEN_DECOY, Evidence, parse_context

WRITERS = {
    "qc": "qc",
    "store": "normalize",
    "effect": "fit-effects",
    "vae": "train-vae",
    "flow": "train-flow",
    "screen": "generate-shard",
    "score": "score",
    "measured": "measure",
    "rank": "rank",
    "evaluate": "evaluate",
    "sweep": "sweep",
}
"""Folder of a run -> verb that writes it."""
VERBS = {"screen/matched.npz": "generate-matched", "screen/candidates.parquet": "plan"}


def find_run(run: str | None, results: Path = Path("results")) -> Path:
    """Return the folder of the run of this name, or of the only one that has a trained flow.

    Raises
    ------
    DataError
        There is none, or several and no name says which.
    UnknownNameError
        No run is called so.
    """
    runs = {path.name: path for path in sorted(results.glob("*")) if path.is_dir()}
    if run is not None:
        if run in runs:
            return runs[run]
        msg = f"there is no run '{run}' under {results}/{suggest(run, runs)}."
        raise UnknownNameError(msg)
    ready = {n: path for n, path in runs.items() if (path / "flow/flow.safetensors").is_file()}
    if not ready:
        msg = f"no run under {results}/ has a trained flow; 'make screen' makes the demonstration."
        raise DataError(msg)
    if len(ready) > 1:
        msg = f"there are several runs under {results}/: {', '.join(ready)}; choose one with --run."
        raise DataError(msg)
    return next(iter(ready.values()))


class RunTables:
    """Reads of ``results/<run>/``; ``used`` lists what was read, for the manifest."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.used: list[Path] = []

    def path(self, name: str) -> Path:
        """Return the path of a file of the run.

        Raises
        ------
        DataError
            It is not there; the message names the verb that writes it.
        """
        path = self.folder / name
        if not path.exists():
            verb = VERBS.get(name, WRITERS[name.split("/", maxsplit=1)[0]])
            msg = f"{path} does not exist; 'knockscreen {verb}' writes it: run that stage first."
            raise DataError(msg)
        self.used.append(path)
        return path

    def scan(self, name: str, columns: tuple[str, ...]) -> pl.LazyFrame:
        """Return some columns of a Parquet table, or of all shards in a folder, unread.

        Raises
        ------
        DataError
            The table is missing, empty of shards, or lacks a column.
        """
        path = self.path(name)
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not files:
            verb = WRITERS[name.split("/", maxsplit=1)[0]]
            msg = f"{path} holds no Parquet shard; run 'knockscreen {verb}' first."
            raise DataError(msg)
        frame = pl.scan_parquet(files)
        found = frame.collect_schema().names()
        missing = [column for column in columns if column not in found]
        if missing:
            msg = f"{path} has no column '{missing[0]}'{suggest(missing[0], found)}."
            raise DataError(msg)
        return frame.select(columns)

    def has(self, name: str) -> bool:
        """Say whether the run has this file."""
        return (self.folder / name).exists()

    @cached_property
    def simulated(self) -> bool:
        """Whether the counts are simulated, as the store (or before it the QC) says."""
        if self.has("store/store.json"):
            return bool(read_json(self.folder / "store/store.json").get("simulated", False))
        if self.has("qc/inputs.parquet"):
            return bool(pl.read_parquet(self.folder / "qc/inputs.parquet")["simulated"].any())
        return self.has("input/regulators.tsv")

    @cached_property
    def planted(self) -> dict[str, dict[str, int]] | None:
        """Program -> planted regulator -> sign of its knock-down's true effect; None if real.

        Known for simulated screens only. The sign is +1 toward the program, -1 away from it.

        Raises
        ------
        DataError
            The simulator's table lacks a column.
        """
        path = self.folder / "input/regulators.tsv"
        if not (self.simulated and path.exists()):
            return None
        table = pl.read_csv(path, separator="\t", infer_schema=False)
        for column in ("program", "target_gene", "sign", "planted"):
            if column not in table.columns:
                near = suggest(column, table.columns)
                msg = f"{path} has no column '{column}'{near}; run 'knockscreen simulate' again."
                raise DataError(msg)
        self.used.append(path)
        rows = table.filter(pl.col("planted") == "true").select(
            "program", "target_gene", pl.col("sign").cast(pl.Int8)
        )
        found: dict[str, dict[str, int]] = {}
        for program, gene, sign in rows.iter_rows():
            found.setdefault(program, {})[gene] = sign
        return found

    def scores(self) -> pl.LazyFrame:
        """Return predicted program scores, without the measured rows beside them."""
        columns = ("program", "context", "target_gene_id", "target_gene", "evidence", "score")
        table = self.scan("rank/program_scores.parquet", (*columns, "score_sd"))
        return table.filter(pl.col("evidence") != Evidence.MEASURED)

    def calibration(self, program: str, context: str) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return rankings and decoys with the ``value`` by which one is counted against the other.

        Predicted of trained targets: the score. Measured: the score in units of its own error.
        """
        here = (pl.col("program") == program) & (pl.col("context") == context)
        key, kinds = "target_gene_id", [Evidence.PREDICTED_SEEN, Evidence.MEASURED]
        columns = ("program", "context", key, "target_gene", "direction", "evidence", "score")
        ranked = self.scan("rank/rankings.parquet", (*columns, "p_value", "fdr", "source"))
        ranked = ranked.filter(here, pl.col("evidence").is_in(kinds), pl.col("source").is_null())
        made = self.scan("score/programs", ("program", "context", key, "score")).filter(here)
        decoy = pl.col(key).str.starts_with(DECOY) & ~pl.col(key).str.starts_with(UNSEEN_DECOY)
        decoys = made.filter(decoy).select(value="score", evidence=pl.lit(kinds[0].value)).collect()
        value, unit = pl.col("score"), pl.lit(1.0)
        if self.has("measured/decoys.parquet"):
            of_cells = ("program", "context", key, "own_error")
            errors = self.scan("measured/programs.parquet", of_cells).filter(here)
            ranked = ranked.join(errors.select(key, "own_error"), on=key, how="left")
            unit = pl.when(pl.col("evidence") == Evidence.MEASURED).then("own_error").otherwise(1.0)
            real = self.scan("measured/decoys.parquet", (*of_cells, "score")).filter(here)
            found = real.select(value=value / pl.col("own_error"), evidence=pl.lit(kinds[1].value))
            decoys = pl.concat([decoys, found.collect()])
        rows = ranked.with_columns(value=value / unit).collect()
        return rows.sort("evidence", "direction", key), decoys

    def check_program(self, program: str) -> str:
        """Return ``program`` if it was scored in this run.

        Raises
        ------
        UnknownNameError
            It was not; the message names the nearest that was.
        """
        known = self.scores().select("program").unique().collect()["program"].sort().to_list()
        if program not in known:
            msg = f"program '{program}' has no scores in {self.folder}{suggest(program, known)}."
            raise UnknownNameError(msg)
        return program

    def choose_context(
        self, program: str, wanted: str | None, among: list[str] | None = None
    ) -> str:
        """Return ``wanted``, or the most pooled context; of equals the one with the widest scores.

        Parameters
        ----------
        program
            Program whose spread of scores decides.
        wanted
            A context by name; None chooses.
        among
            Contexts to choose from; None: all that were scored.

        Raises
        ------
        UnknownNameError
            ``wanted`` has no scores; the message names the nearest that have.
        """
        rows = self.scores().filter(pl.col("program") == program)
        spread = rows.group_by("context").agg(pl.col("score").std().fill_null(0.0)).collect()
        known = {c: s for c, s in spread.iter_rows() if among is None or c in among}
        if wanted is not None and wanted in known:
            return wanted
        if wanted is not None or not known:
            name = wanted or "(any)"
            near = suggest(name, sorted(known))
            msg = f"context '{name}' has no scores of program '{program}' in {self.folder}{near}."
            raise UnknownNameError(msg)
        order = sorted((len(parse_context(name)), -width, name) for name, width in known.items())
        return str(order[0][2])
