"""Program files: signed tables, gene sets (GMT) and tables of differential expression.

Every reader returns the same table: program, gene, weight, source, description. A weight is signed:
positive for genes that are high in the program. Nothing is merged that was not one program before:
a name that two files give, or two contrasts of one table, is refused.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl

from knockscreen.config import ProgramsConfig, ProgramSource
from knockscreen.errors import DataError, suggest
from knockscreen.score.published import DATE, numbers
from knockscreen.score.text_tables import MISSING, missing_column, read_text_table

COLUMNS = ("program", "gene", "weight", "source", "description")
REQUIRED = ("program", "gene")
SCHEMA = dict.fromkeys(COLUMNS, pl.String()) | {"weight": pl.Float64()}
GENES = ("gene", "gene_id", "gene_name", "symbol", "variable", "names")
STATISTICS = ("stat", "statistic", "zscore", "z", "t", "scores")
EFFECTS = (("log_fc", "lfcSE"), ("log2FoldChange", "lfcSE"), ("log2_fold_change", "standard_error"))
CONTRAST = "contrast"
ARM = re.compile(r"(.+)[_-](UP|DN|DOWN)$", re.IGNORECASE)


def all_programs(settings: ProgramsConfig) -> pl.DataFrame:
    """Return the programs of ``programs.file`` and of every file in ``programs.extra``.

    Raises
    ------
    DataError
        As the readers, and where two files give a program of the same name.
    """
    tables = [read_programs(settings.file)]
    files = [settings.file]
    for source in settings.extra:
        table = read_source(source)
        for known, file in zip(tables, files, strict=True):
            shared = set(table["program"]) & set(known["program"])
            if shared:
                msg = (
                    f"program {min(shared)} is in '{file}' and in '{source.file}'; programs are"
                    " never merged: give one of them another name."
                )
                raise DataError(msg)
        tables.append(table)
        files.append(source.file)
    return pl.concat(tables)


def read_source(source: ProgramSource) -> pl.DataFrame:
    """Return the programs of one file, by what it is: GMT, a program table, or a table of DE.

    Raises
    ------
    DataError
        As the reader of its kind; it has one arm only, and ``arms`` asks for both; or a contrast or
        a name is given for what is no table of DE.
    """
    path = Path(source.file)
    if not path.is_file():
        msg = f"program file '{path}' does not exist; correct its path."
        raise DataError(msg)
    named = path.suffix == ".gmt" or set(REQUIRED) <= set(_columns(path))
    if named and (source.contrast or source.name):
        msg = f"'{path}' names its programs itself; contrast and name are for tables of DE."
        raise DataError(msg)
    if path.suffix == ".gmt":
        table = read_gmt(path)
    else:
        table = read_programs(path) if named else read_de(path, source)
    if source.arms == "both":
        for (program,), part in table.group_by("program", maintain_order=True):
            if (part["weight"] > 0).all() or (part["weight"] < 0).all():
                msg = (
                    f"program {program} of '{path}' has one arm only ({part.height} genes of one"
                    " sign) and arms is 'both'; add the other arm, or set arms to any."
                )
                raise DataError(msg)
    return table


def _read(path: Path) -> pl.DataFrame:
    instead = f"give a TSV of {', '.join(COLUMNS)}"
    return read_text_table(path, "program file", instead)


def _columns(path: Path) -> list[str]:
    return _read(path).columns


def read_gmt(path: Path | str) -> pl.DataFrame:
    """Return the gene sets of a GMT file; a pair ``X_UP``, ``X_DN`` becomes a signed program X.

    Raises
    ------
    DataError
        It is no text, a line has no genes, a gene stands twice in a set or in both arms of a pair,
        or two sets would be one arm of a program (``X`` beside ``X_UP`` and ``X_DN``).
    """
    path = Path(path)
    sets = _gene_sets(path)
    arms: dict[tuple[str, float], str] = {}
    programs: dict[str, list[tuple[str, str, float, str, str | None]]] = {}
    for name, (described, genes) in sets.items():
        program, weight = _arm(name, sets)
        other = arms.setdefault((program, weight), name)
        if other != name:
            msg = (
                f"gene sets {other} and {name} of '{path}' would be one arm of program {program};"
                " programs are never merged: give one of them another name."
            )
            raise DataError(msg)
        rows = [(program, gene, weight, path.name, described or None) for gene in genes]
        programs.setdefault(program, []).extend(rows)
    rows = [row for of_program in programs.values() for row in of_program]
    table = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    if table.is_empty():
        msg = f"'{path}' has no gene sets; give one per line: name, description, genes, by tabs."
        raise DataError(msg)
    _check_rows(table, path)
    return table


def _gene_sets(path: Path) -> dict[str, tuple[str, list[str]]]:
    """Return description and genes of each set of a GMT file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        msg = f"'{path}' is not a text file ({error.reason}); give a GMT file in UTF-8."
        raise DataError(msg) from None
    sets: dict[str, tuple[str, list[str]]] = {}
    for number, line in enumerate(lines, start=1):
        name, *rest = [part.strip() for part in line.split("\t")]
        genes = [gene for gene in rest[1:] if gene]
        if not line.strip():
            continue
        if not name or not genes:
            msg = f"line {number} of '{path}' is no gene set: name, description, genes, by tabs."
            raise DataError(msg)
        if name in sets:
            msg = f"gene set {name} stands twice in '{path}'; give each its own name."
            raise DataError(msg)
        sets[name] = (rest[0], genes)
    return sets


def _arm(name: str, sets: Iterable[str]) -> tuple[str, float]:
    """Return the program that a gene set belongs to, and the sign of its genes."""
    arm = ARM.match(name)
    if arm is None:
        return name, 1.0
    pair = {m[2].upper() == "UP" for other in sets if (m := ARM.match(other)) and m[1] == arm[1]}
    if len(pair) < 2:
        return name, 1.0
    return arm[1], 1.0 if arm[2].upper() == "UP" else -1.0


def read_de(path: Path | str, source: ProgramSource) -> pl.DataFrame:
    """Return one contrast of a DE table as a program: the ``top`` genes of each arm, weights 1, -1.

    Genes are ordered by the test statistic (``stat``, ``zscore``, ..., or log fold change over its
    standard error). The contrast is chosen by its exact name; two are never merged.

    Raises
    ------
    DataError
        A column is missing, the contrast is not there or not chosen, a gene stands twice in it, or
        a statistic is text or infinite.
    """
    path = Path(path)
    table = _read(path)
    gene = next((name for name in GENES if name in table.columns), None)
    if gene is None:
        msg = (
            f"'{path}' has neither program nor gene columns (it has {', '.join(table.columns)});"
            f" name the genes in one of {', '.join(GENES)}."
        )
        raise DataError(msg)
    contrast, table = _one_contrast(table, path, source.contrast)
    table = table.with_columns(_statistic(table, path).alias("value"))
    table = table.select(pl.col(gene).alias("gene"), "value").drop_nulls()
    program = source.name or contrast or path.name.split(".")[0]
    up = table.filter(pl.col("value") > 0).sort("value", "gene", descending=[True, False])
    down = table.filter(pl.col("value") < 0).sort("value", "gene")
    what = f"top {source.top} genes of each arm by statistic" + f", {contrast}" * bool(contrast)
    chosen = pl.concat([up.head(source.top), down.head(source.top)]).select(
        pl.lit(program).alias("program"),
        "gene",
        pl.col("value").sign().alias("weight"),
        pl.lit(path.name).alias("source"),
        pl.lit(what).alias("description"),
    )
    if table["gene"].is_duplicated().any():
        twice = table.filter(pl.col("gene").is_duplicated())["gene"][0]
        msg = (
            f"gene {twice} stands twice in contrast '{contrast or path.name}' of '{path}';"
            " is it two contrasts in one? Keep one row per gene."
        )
        raise DataError(msg)
    _check_rows(chosen, path)
    return chosen


def _statistic(table: pl.DataFrame, path: Path) -> pl.Series:
    for name in STATISTICS:
        if name in table.columns:
            return _numbers(table, name, path)
    for effect, error in EFFECTS:
        if {effect, error} <= set(table.columns):
            errors = _numbers(table, error, path)
            if (errors < 0).any():
                msg = f"column '{error}' of '{path}' has values below 0; a standard error has none."
                raise DataError(msg)
            ratio = _numbers(table, effect, path) / errors
            if ratio.is_infinite().any():
                msg = (
                    f"column '{error}' of '{path}' is 0 beside a change, so that the statistic is"
                    " infinite; leave such genes out."
                )
                raise DataError(msg)
            return ratio.fill_nan(None)
    msg = (
        f"'{path}' has no test statistic ({', '.join(STATISTICS)}, or log_fc with lfcSE); it has"
        f" {', '.join(table.columns)}."
    )
    raise DataError(msg)


def _numbers(table: pl.DataFrame, name: str, path: Path) -> pl.Series:
    known = table.select(pl.when(~pl.col(name).is_in(MISSING)).then(name).alias(name))
    return numbers(known, name, path)


def _one_contrast(
    table: pl.DataFrame, path: Path, wanted: str | None
) -> tuple[str | None, pl.DataFrame]:
    if CONTRAST not in table.columns:
        if wanted is not None:
            msg = f"'{path}' has no column '{CONTRAST}', but contrast '{wanted}' is asked for."
            raise DataError(msg)
        return None, table
    known = table[CONTRAST].drop_nulls().unique().sort().to_list()
    if wanted is None and len(known) != 1:
        msg = (
            f"'{path}' has {len(known)} contrasts ({', '.join(known[:5])}); choose one by its exact"
            " name with contrast."
        )
        raise DataError(msg)
    name = wanted or known[0]
    if name not in known:
        msg = f"'{path}' has no contrast '{name}'{suggest(name, known)}."
        raise DataError(msg)
    return name, table.filter(pl.col(CONTRAST) == name)


def read_programs(path: Path | str) -> pl.DataFrame:
    """Return the program table in ``path`` (TSV) as program, gene, weight, source, description.

    A missing ``weight`` column means +1 for every gene; empty weights do too.

    Raises
    ------
    DataError
        The file is missing or empty, has unknown or missing columns, a gene twice in one program,
        or a weight that is not a finite number.
    """
    path = Path(path)
    table = _read(path)
    _check_columns(table.columns, path)
    for column in COLUMNS:
        if column not in table.columns:
            table = table.with_columns(pl.lit(None, pl.String).alias(column))
    table = table.select(pl.col(c).str.strip_chars() for c in COLUMNS)
    table = table.with_columns(_weights(table, path))
    _check_rows(table, path)
    return table


def _check_columns(found: Sequence[str], path: Path) -> None:
    for column in found:
        if column not in COLUMNS:
            msg = f"unknown column '{column}' in program file '{path}'{suggest(column, COLUMNS)}."
            raise DataError(msg)
    for column in REQUIRED:
        if column not in found:
            raise DataError(missing_column(f"program file '{path}'", [column], found))


def _weights(table: pl.DataFrame, path: Path) -> pl.Series:
    text = table["weight"].fill_null("1").replace("", "1")
    weight = text.cast(pl.Float64, strict=False)
    bad = (weight.is_null() | ~weight.is_finite()).fill_null(value=True).arg_true()
    if len(bad):
        row = table.row(int(bad[0]), named=True)
        msg = (
            f"weight '{row['weight']}' of gene {row['gene']} in program {row['program']} of "
            f"'{path}' is not a finite number; give a signed number such as 1 or -1."
        )
        raise DataError(msg)
    return weight.alias("weight")


def _check_rows(table: pl.DataFrame, path: Path) -> None:
    if table.is_empty():
        msg = f"program file '{path}' has no rows; give one row per program and gene."
        raise DataError(msg)
    for column in REQUIRED:
        empty = (table[column].is_null() | (table[column] == "")).arg_true()
        if len(empty):
            msg = f"row {int(empty[0]) + 1} of program file '{path}' has no {column}."
            raise DataError(msg)
    dates = [gene for gene in table["gene"] if DATE.fullmatch(gene)]
    if dates:
        msg = (
            f"gene '{dates[0]}' of '{path}' is a date: a spreadsheet changed its symbol; restore"
            " the symbols."
        )
        raise DataError(msg)
    twice = table.filter(pl.struct("program", "gene").is_duplicated())
    if not twice.is_empty():
        row = twice.row(0, named=True)
        msg = (
            f"gene {row['gene']} stands twice in program {row['program']} of '{path}'; keep one "
            "row."
        )
        raise DataError(msg)
