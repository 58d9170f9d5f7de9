"""The small tables of the database as polars frames, read from the files of a run.

Everything with one row per gene, target, context or program is here; effects are inserted by
:mod:`knockscreen.store.build` without passing through memory.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl
import polars.selectors as cs

from knockscreen.artifacts import read_json, versions
from knockscreen.errors import DataError
from knockscreen.gene_names import GeneNames
from knockscreen.names import GENE, GENE_ID, NTC, TARGET_GENE, TARGET_GENE_ID, parse_context
from knockscreen.score.verdicts import CONTROLS, GATES, NOT_TESTED, overall
from knockscreen.store.connection import SCHEMA_VERSION

MAX_KEYS = 65_535
POINTERS = ".manifest.json"
WHY_NOT = {
    "not_expressed": "too few cells express it to be on the panel",
    "filtered": "QC kept no cells of it",
    "no_features": "never knocked down, and without gene features to predict it by",
    "not_in_library": "it was not knocked down, and is not on the panel",
    "not_a_candidate": "measured, but not among screen.candidates",
}
OFF_PANEL = "it was not knocked down, and the panel left it out, so that the model does not see it"


def json_text(value: Any) -> str:
    """Return ``value`` as JSON text with sorted keys."""
    return json.dumps(value, sort_keys=True, default=str)


def read_table(path: Path, columns: Iterable[str]) -> pl.DataFrame:
    """Return ``columns`` of a Parquet file; not-a-number becomes missing.

    Raises
    ------
    DataError
        The file is missing or not Parquet, or lacks a column.
    """
    try:
        found = pl.read_parquet_schema(path)
    except FileNotFoundError:
        msg = f"{path} does not exist; run the stage that writes it before build-db."
        raise DataError(msg) from None
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        msg = f"{path} is not a Parquet file ({reason}); run the stage that writes it again."
        raise DataError(msg) from None
    missing = [name for name in columns if name not in found]
    if missing:
        msg = (
            f"{path} has no column '{missing[0]}' (it has {', '.join(found)});"
            " run the stage that writes it again."
        )
        raise DataError(msg)
    return pl.read_parquet(path, columns=list(columns)).with_columns(cs.float().fill_nan(None))


def _numbered(frame: pl.DataFrame, key: str, what: str) -> pl.DataFrame:
    if frame.height > MAX_KEYS:
        msg = f"the run has {frame.height:,} {what}; a database holds at most {MAX_KEYS:,}."
        raise DataError(msg)
    return frame.with_row_index(key).with_columns(pl.col(key).cast(pl.UInt16))


def genes(results: Path, store: dict[str, Any]) -> pl.DataFrame:
    """Return every input gene, panel genes first in panel order, numbered by ``gene_key``."""
    columns = (
        GENE_ID, GENE, "in_panel", "is_hvg", "is_program", "is_target", "n_cells", "mean",
        "dispersion",
    )  # fmt: skip
    path = results / "store/panel.parquet"
    frame = read_table(path, columns)
    if frame[GENE_ID].is_duplicated().any():
        twice = frame.filter(pl.col(GENE_ID).is_duplicated())[GENE_ID][0]
        msg = f"{path} has the gene_id '{twice}' twice; gene ids must be unique."
        raise DataError(msg)
    order = pl.DataFrame({GENE_ID: [gene[GENE_ID] for gene in store["genes"]]})
    order = order.with_row_index("position")
    frame = frame.join(order, on=GENE_ID, how="left").sort("position", GENE_ID, nulls_last=True)
    return _numbered(frame.drop("position"), "gene_key", "genes")


def target_contexts(results: Path) -> pl.DataFrame:
    """Return what QC kept of each measured target per context (no rows without a QC table)."""
    path = results / "qc/targets.parquet"
    columns = (TARGET_GENE, TARGET_GENE_ID, "context", "n_cells", "status")
    if not path.exists():
        texts = dict.fromkeys(columns, pl.String)
        return pl.DataFrame(schema=texts | {"n_cells": pl.Int64()})
    return read_table(path, columns).filter(pl.col(TARGET_GENE_ID) != NTC)


def targets(
    results: Path, gene_table: pl.DataFrame, measured: pl.DataFrame, external: pl.DataFrame
) -> pl.DataFrame:
    """Return every candidate and every measured target, numbered by ``target_key``; no decoys.

    A measured target that was no candidate has status ``filtered`` if QC kept it nowhere, else
    ``not_a_candidate``; so have those that only tables from elsewhere name.
    """
    columns = (TARGET_GENE, TARGET_GENE_ID, "evidence", "status")
    asked = read_table(results / "screen/candidates.parquet", columns)
    asked = asked.filter(pl.col("status") != "decoy")
    kept = pl.col("status") == "kept"
    by_target = measured.group_by(TARGET_GENE_ID).agg(
        pl.col(TARGET_GENE).first(),
        pl.when(kept.any()).then(pl.col("n_cells").filter(kept).sum()).alias("n_cells"),
        pl.when(kept.any())
        .then(pl.lit("not_a_candidate"))
        .otherwise(pl.lit("filtered"))
        .alias("status"),
    )
    others = by_target.join(asked, on=TARGET_GENE_ID, how="anti").drop("n_cells")
    elsewhere = external.with_columns(status=pl.lit("not_a_candidate"))
    frame = pl.concat([asked, others, elsewhere], how="diagonal")
    frame = frame.unique(TARGET_GENE_ID, keep="first", maintain_order=True)
    frame = frame.join(by_target.select(TARGET_GENE_ID, "n_cells"), on=TARGET_GENE_ID, how="left")
    by_id = gene_table.select(pl.col(GENE_ID).alias(TARGET_GENE_ID), "gene_key")
    frame = frame.join(by_id, on=TARGET_GENE_ID, how="left")
    in_library = pl.col(TARGET_GENE_ID).is_in(by_target[TARGET_GENE_ID].implode())
    reason = pl.col("status").replace_strict(WHY_NOT, default=None, return_dtype=pl.String)
    filtered = (pl.col("status") == "filtered") & ~in_library
    frame = frame.with_columns(
        status_reason=pl.when(filtered).then(pl.lit(OFF_PANEL)).otherwise(reason)
    )
    return _numbered(frame.sort(TARGET_GENE_ID), "target_key", "targets")


def contexts(results: Path, store: dict[str, Any], names: Iterable[str]) -> pl.DataFrame:
    """Return the contexts ``names``, separate ones first, with their levels and cells."""
    factors = list(store["factors"])
    cells = _cells_per_context(results)
    rows = []
    for name in sorted(set(names), key=lambda n: (-len(parse_context(n)), n)):
        levels = parse_context(name)
        missing = [factor for factor in factors if factor not in levels]
        inside = [c for c in cells if levels.items() <= parse_context(c).items()]
        rows.append(
            {
                "context": name,
                "levels": json.dumps(levels),
                "is_pooled": bool(missing),
                "pooled_over": ",".join(missing) or None,
                "n_cells": sum(cells[c][0] for c in inside) if inside else None,
                "n_control_cells": sum(cells[c][1] for c in inside) if inside else None,
            }
        )
    schema = {
        "context": pl.String(), "levels": pl.String(), "is_pooled": pl.Boolean(),
        "pooled_over": pl.String(), "n_cells": pl.Int64(), "n_control_cells": pl.Int64(),
    }  # fmt: skip
    return _numbered(pl.DataFrame(rows, schema=schema), "context_key", "contexts")


def _cells_per_context(results: Path) -> dict[str, tuple[int, int]]:
    path = results / "store/cells.parquet"
    if not path.exists():
        return {}
    frame = pl.scan_parquet(path).group_by("context").agg(pl.len(), pl.col("is_control").sum())
    return {name: (n, control) for name, n, control in frame.collect().iter_rows()}


def program_genes(programs: pl.DataFrame, gene_table: pl.DataFrame) -> pl.DataFrame:
    """Return the genes of each program, matched as for scoring.

    By Ensembl id, else by symbol, else by either whatever the version or case.
    """
    known = gene_table.select(GENE_ID, "gene_key", "in_panel", symbol=GENE)
    parts = [
        part
        for _, part in known.sort("in_panel", descending=True).group_by(
            "in_panel", maintain_order=True
        )
    ]
    ways = [(GeneNames(part[GENE_ID], part["symbol"]), part["gene_key"]) for part in parts]
    found: dict[str, int | None] = {}
    for name in programs[GENE].unique():
        at = ((genes.find(name), keys) for genes, keys in ways)
        found[name] = next((keys[k] for k, keys in at if k is not None), None)
    key = pl.col(GENE).replace_strict(found, return_dtype=known.schema["gene_key"])
    frame = programs.with_columns(gene_key=key)
    frame = frame.join(known, on="gene_key", how="left", maintain_order="left")
    return frame.with_columns(pl.col("in_panel").fill_null(value=False))


def programs(members: pl.DataFrame, ranked: pl.DataFrame, gates: pl.DataFrame) -> pl.DataFrame:
    """Return one row per program, those of ``ranked`` as ranked, with what their controls say.

    Raises
    ------
    DataError
        A program was ranked whose genes are not given.
    """
    unknown = sorted(set(ranked["program"]) - set(members["program"]))
    if unknown:
        msg = (
            f"program {unknown[0]} was ranked, but is not among the programs given; give the"
            " program file and the settings of the run."
        )
        raise DataError(msg)
    frame = members.group_by("program", maintain_order=True).agg(
        pl.len().alias("n_genes"),
        pl.col("in_panel").sum().alias("n_panel_genes"),
        pl.col("description").drop_nulls().first(),
        pl.col("source").drop_nulls().unique(maintain_order=True).str.join("; "),
    )
    frame = frame.join(overall(gates), on="program", how="left", maintain_order="left")
    status = pl.when(pl.col("program").is_in(ranked["program"].implode()))
    return frame.with_columns(
        status=status.then(pl.lit("ranked")).otherwise(pl.lit("left_out")),
        source=pl.when(pl.col("source") != "").then(pl.col("source")),
        control_status=pl.col("control_status").fill_null(NOT_TESTED),
        control_reason=pl.when(pl.col("control_status").is_null())
        .then(status.then(pl.lit("the gate was not run")).otherwise(pl.lit("not ranked")))
        .otherwise("control_reason"),
    )


def gate_tables(results: Path) -> dict[str, pl.DataFrame]:
    """Return the rows of ``gates`` and ``positive_controls``; none if the gate was not run."""
    files = {"gates": ("gates", GATES), "positive_controls": ("controls", CONTROLS)}
    found = {}
    for table, (name, schema) in files.items():
        path = results / f"gate/{name}.parquet"
        found[table] = read_table(path, schema) if path.exists() else pl.DataFrame(schema=schema)
    return found


def guides(results: Path) -> pl.DataFrame:
    """Return the guides that QC judged (no rows if the input names none)."""
    path = results / "qc/guides.parquet"
    schema = {
        TARGET_GENE_ID: pl.String(), "guide_id": pl.String(), "n_cells": pl.Int64(),
        "log2_fold_change": pl.Float64(), "p_value": pl.Float64(), "fdr": pl.Float64(),
        "status": pl.String(),
    }  # fmt: skip
    return read_table(path, schema) if path.exists() else pl.DataFrame(schema=schema)


def of_targets(
    frame: pl.DataFrame, guide: pl.DataFrame, gene: pl.DataFrame, control: pl.DataFrame
) -> pl.DataFrame:
    """Return the targets with what guides, genes and positive controls say of each.

    Where QC judged no guide of the run, its test was off (knock-outs): nothing was assessed.
    """
    tested = (guide["status"] != "not_judged").any()
    kept = pl.col("status") != "inactive"
    judged = pl.col("fdr").is_not_null()
    weight = pl.col("n_cells").filter(kept & pl.col("log2_fold_change").is_not_null())
    change = pl.col("log2_fold_change").filter(kept & pl.col("log2_fold_change").is_not_null())
    by_guide = guide.group_by(TARGET_GENE_ID).agg(
        pl.len().alias("n_guides"),
        kept.sum().alias("n_guides_kept"),
        (change.dot(weight) / weight.sum()).fill_nan(None).alias("on_target_log2_fold_change"),
        pl.when(((pl.col("status") == "kept") & judged).any())
        .then(pl.lit("confirmed"))
        .when((pl.col("status") == "inactive").all())
        .then(pl.lit("inactive"))
        .when(pl.lit(tested) & (pl.col("status") == "not_judged").any())
        .then(pl.lit("not_measurable"))
        .otherwise(pl.lit("not_assessed"))
        .alias("knockdown_status"),
    )
    expression = gene.select(pl.col(GENE_ID).alias(TARGET_GENE_ID), baseline_expression="mean")
    known = control.select(TARGET_GENE_ID, "program").unique().sort("program")
    known = known.group_by(TARGET_GENE_ID).agg(pl.col("program").str.join(", "))
    for more in (by_guide, expression, known.rename({"program": "known_regulator"})):
        frame = frame.join(more, on=TARGET_GENE_ID, how="left", maintain_order="left")
    return frame


def artifacts(results: Path) -> pl.DataFrame:
    """Return the manifests of the run's files, by path inside its folder."""
    rows = []
    for path in sorted(results.rglob("*" + POINTERS)):
        manifest = read_json(path)
        texts = {
            name: json_text(manifest.get(name) or {})
            for name in ("settings", "inputs", "versions", "notes")
        }
        artifact = path.relative_to(results).as_posix().removesuffix(POINTERS)
        plain = {name: manifest.get(name) for name in ("stage", "digest", "seed")}
        rows.append({"artifact": artifact} | plain | texts)
    names = ("artifact", "stage", "digest", "settings", "inputs", "versions", "notes")
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String()) | {"seed": pl.Int64()})


def runs(values: dict[str, Any]) -> pl.DataFrame:
    """Return the row that describes the run, with the versions of this environment."""
    found = versions()
    row = {
        "schema_version": SCHEMA_VERSION,
        "knockscreen_version": found.get("knockscreen"),
        "versions": json_text(found),
    }
    return pl.DataFrame([row | values])
