"""What the files say about each cell: its guide, target and context, under our names.

One row per input cell, in the order of the files. Text columns are polars Categoricals (4 bytes a
cell), since there may be millions of cells and only thousands of guides.
"""

import re

import polars as pl

from knockscreen.config import DataConfig
from knockscreen.data.counts import CountsFile, Inputs
from knockscreen.data.presets import ObsColumns, from_file_name, obs_columns, require
from knockscreen.data.vocab import Genes
from knockscreen.errors import DataError, UnknownNameError, suggest
from knockscreen.names import NTC, context_name

NO_GUIDE = ("", "nan", "none", "na", "no-guide", "no_guide", "unassigned", "negative")
MULTI_GUIDE = ("multi-guide", "multi_guide", "multiguide", "multi", "multiple")
CONTROL_GUIDE_TYPES = ("non-targeting", "non_targeting", "nontargeting", "ntc")
_RESERVED = re.compile(r"[,=]")


def read_cells(inputs: Inputs) -> pl.DataFrame:
    """Return the annotation of all cells.

    Returns
    -------
    polars.DataFrame
        file, row, barcode, target_gene, target_gene_id, guide_id, is_control, one column per
        context factor, context, replicate, guide_umis, low_quality, pct_mt (percent), library_size
        (null where the file has none), and status: null, ``excluded``, ``no_guide`` or
        ``multi_guide``.

    Raises
    ------
    DataError
        A column is missing, no cell is a control, or a cell has no level of a context factor.
    UnknownNameError
        ``data.where`` names a level that no file has.
    """
    frames = [_read_file(k, file, inputs.data, inputs.genes) for k, file in enumerate(inputs.files)]
    cells = pl.concat(frames)
    _check_where(inputs, cells)
    _check_controls(inputs, cells)
    return cells.with_columns(_context(list(inputs.data.contexts)))


def _read_file(number: int, file: CountsFile, data: DataConfig, genes: Genes) -> pl.DataFrame:
    columns = obs_columns(data.preset, data.columns, file.obs_columns, file=file.path)
    kept = _where(file, data)
    guide, guide_status = _guides(file, columns)
    frame = pl.DataFrame({"barcode": file.barcodes}).with_columns(
        pl.lit(number, pl.Int32).alias("file"),
        pl.int_range(pl.len(), dtype=pl.Int64).alias("row"),
        guide.alias("guide_id"),
        *_targets(file, columns, data, genes),
        *(
            _factor(file, data, factor, column, kept).alias(factor)
            for factor, column in data.contexts.items()
        ),
        _category(file, columns.replicate).alias("replicate"),
        _number(file, columns.guide_umis).alias("guide_umis"),
        _flag(file, columns.low_quality).alias("low_quality"),
        _percent(file, columns.pct_mt).alias("pct_mt"),
        _number(file, columns.library_size).alias("library_size"),
        kept.alias("kept"),
        guide_status.alias("guide_status"),
    )
    has_target = pl.col("target_gene_id").is_not_null()
    status = (
        pl.when(~pl.col("kept"))
        .then(pl.lit("excluded"))
        .when(pl.col("guide_status").is_not_null())
        .then(pl.col("guide_status"))
        .when(~has_target)
        .then(pl.lit("no_guide"))
    )
    frame = frame.with_columns(status.cast(pl.Categorical).alias("status"))
    unassigned = pl.col("status").is_in(["no_guide", "multi_guide"])
    names = ["target_gene", "target_gene_id"]
    return frame.with_columns(
        *(
            pl.when(~unassigned.fill_null(value=False)).then(pl.col(name)).alias(name)
            for name in names
        ),
        (pl.col("is_control") & ~unassigned.fill_null(value=False)).alias("is_control"),
    ).drop("kept", "guide_status")


def _category(file: CountsFile, column: str | None) -> pl.Series:
    """Return a text column as Categorical; all null where the file has none."""
    if column is None:
        return pl.repeat(None, file.n_cells, dtype=pl.Categorical, eager=True)
    return file.column(column).cast(pl.String).cast(pl.Categorical)


def _number(file: CountsFile, column: str | None) -> pl.Series:
    if column is None:
        return pl.repeat(None, file.n_cells, dtype=pl.Float64, eager=True)
    values = file.column(column)
    numbers = values.cast(pl.Float64, strict=False)
    if numbers.null_count() > values.null_count() or (numbers < 0).any():
        msg = (
            f"obs column '{column}' of {file.path} is not a column of numbers >= 0; map another "
            "under data.columns."
        )
        raise DataError(msg)
    return numbers


def _flag(file: CountsFile, column: str | None) -> pl.Series:
    if column is None:
        return pl.repeat(None, file.n_cells, dtype=pl.Boolean, eager=True)
    values = file.column(column)
    if values.dtype == pl.Boolean:
        return values
    words = values.cast(pl.String).str.to_lowercase()
    known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    odd = words.drop_nulls().filter(~words.drop_nulls().is_in(list(known)))
    if len(odd):
        msg = f"obs column '{column}' of {file.path} holds '{odd[0]}'; expected true or false."
        raise DataError(msg)
    return words.replace_strict(known, default=None, return_dtype=pl.Boolean)


def _percent(file: CountsFile, column: str | None) -> pl.Series:
    """Return the mitochondrial percent.

    A column within 0-1 is a share unless its name says ``pct`` or ``percent``.
    """
    values = _number(file, column)
    highest = values.max()
    is_share = column is not None and not re.search("pct|percent", column.lower())
    if is_share and isinstance(highest, float) and highest <= 1:
        values = values * 100
    return values.cast(pl.Float32)


def _guides(file: CountsFile, columns: ObsColumns) -> tuple[pl.Series, pl.Series]:
    """Return the guide of each cell, and ``no_guide`` or ``multi_guide`` where it has not one."""
    if columns.guide_id is None:
        nothing = pl.repeat(None, file.n_cells, dtype=pl.Categorical, eager=True)
        return nothing, nothing.cast(pl.String)
    guide = _category(file, columns.guide_id)
    levels = pl.DataFrame({"guide": guide.unique()}).with_columns(
        pl.col("guide").cast(pl.String).fill_null("").str.to_lowercase().alias("word")
    )
    levels = levels.with_columns(
        pl.when(pl.col("word").is_in(NO_GUIDE))
        .then(pl.lit("no_guide"))
        .when(pl.col("word").is_in(MULTI_GUIDE))
        .then(pl.lit("multi_guide"))
        .alias("status")
    )
    frame = pl.DataFrame({"guide": guide})
    joined = frame.join(levels, on="guide", how="left", nulls_equal=True, maintain_order="left")
    single = joined.select(pl.when(pl.col("status").is_null()).then(pl.col("guide")))
    return single.to_series(), joined["status"]


def _targets(
    file: CountsFile, columns: ObsColumns, data: DataConfig, genes: Genes
) -> tuple[pl.Series, pl.Series, pl.Series]:
    """Return target_gene, target_gene_id and is_control of each cell."""
    raw = pl.DataFrame(
        {
            "symbol": _category(file, columns.target_gene),
            "id": _category(file, columns.target_gene_id),
            "type": _category(file, columns.guide_type),
        }
    )
    levels = raw.unique()
    labels = {label.lower() for label in [*data.control_labels, NTC]}
    rows = []
    for symbol, gene_id, kind in levels.iter_rows():
        known = [name for name in (symbol, gene_id) if name and name.lower() not in NO_GUIDE]
        control = any(name.lower() in labels for name in known)
        control = control or (kind is not None and kind.lower() in CONTROL_GUIDE_TYPES)
        clean = [name if name in known else None for name in (symbol, gene_id)]
        pair = (NTC, NTC) if control else genes.resolve(*clean) if known else (None, None)
        rows.append((*pair, control))
    schema = {
        "target_gene": pl.Categorical,
        "target_gene_id": pl.Categorical,
        "is_control": pl.Boolean,
    }
    named = pl.DataFrame(rows, schema=schema, orient="row")
    table = levels.hstack(named)
    joined = raw.join(
        table, on=["symbol", "id", "type"], how="left", nulls_equal=True, maintain_order="left"
    )
    return joined["target_gene"], joined["target_gene_id"], joined["is_control"]


def _factor(
    file: CountsFile, data: DataConfig, factor: str, column: str, kept: pl.Series
) -> pl.Series:
    if column not in file.obs_columns:
        level = from_file_name(data.preset, column, file.path)
        if level is None:
            setting = f"data.contexts.{factor}"
            require(column, file.obs_columns, file=file.path, setting=setting, axis="obs")
        return pl.repeat(level, file.n_cells, dtype=pl.Categorical, eager=True)
    levels = _category(file, column)
    empty = int((levels.is_null() & kept).sum())
    if empty:
        msg = (
            f"{empty} cells of {file.path} have no value in obs column '{column}' (context factor "
            f"'{factor}'); fill them in, or leave them out with data.where."
        )
        raise DataError(msg)
    for level in levels.unique().drop_nulls().cast(pl.String):
        if _RESERVED.search(level) or level != level.strip() or not level:
            msg = (
                f"level '{level}' of obs column '{column}' in {file.path} cannot be printed in a "
                "context; "
                "use levels without ',' and '=' and without spaces at the ends."
            )
            raise DataError(msg)
    return levels


def _context(factors: list[str]) -> pl.Expr:
    """Return the printed context of each cell."""
    if not factors:
        return pl.lit(context_name({})).cast(pl.Categorical).alias("context")
    parts = [
        pl.concat_str(pl.lit(f"{factor}="), pl.col(factor).cast(pl.String)) for factor in factors
    ]
    return pl.concat_str(parts, separator=",").cast(pl.Categorical).alias("context")


def _where(file: CountsFile, data: DataConfig) -> pl.Series:
    """Return which cells ``data.where`` keeps."""
    keep = pl.repeat(value=True, n=file.n_cells, dtype=pl.Boolean, eager=True)
    for column, wanted in data.where.items():
        require(column, file.obs_columns, file=file.path, setting="data.where", axis="obs")
        levels = file.column(column).cast(pl.String)
        keep = keep & levels.is_in(wanted).fill_null(value=False)
    return keep


def _check_where(inputs: Inputs, cells: pl.DataFrame) -> None:
    for column, wanted in inputs.data.where.items():
        levels = {
            level
            for file in inputs.files
            for level in file.column(column).cast(pl.String).unique().drop_nulls()
        }
        for level in wanted:
            if level not in levels:
                msg = (
                    f"unknown level '{level}' of '{column}' in "
                    f"data.where{suggest(level, sorted(levels))}."
                )
                raise UnknownNameError(msg)
    if inputs.data.where and (cells["status"] == "excluded").fill_null(value=False).all():
        msg = "data.where keeps no cell: its conditions are never met together; loosen them."
        raise DataError(msg)


def _check_controls(inputs: Inputs, cells: pl.DataFrame) -> None:
    if cells["is_control"].any():
        return
    common = cells["target_gene"].cast(pl.String).drop_nulls().value_counts(sort=True, name="n")
    found = ", ".join(common["target_gene"].head(5).to_list()) or "no target at all"
    labels = ", ".join(f"'{label}'" for label in inputs.data.control_labels)
    names = ", ".join(str(file.path) for file in inputs.files[:3])
    msg = (
        f"no control cells in {names}: no target is labelled {labels}; the commonest targets are "
        f"{found}; name the control label in data.control_labels."
    )
    raise DataError(msg)
