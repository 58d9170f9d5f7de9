"""The verb that holds scores of knock-downs against a screen of other people's."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from knockscreen import cli_output as out
from knockscreen.cli_external import pairs
from knockscreen.cli_output import Format, Row, number, text

if TYPE_CHECKING:
    import polars as pl

READING = (
    "hits: any, or those whose knock-down lowers or raises the phenotype. auroc, auprc: of telling"
    " hits from the other genes; chance is 0.5 and the share of hits. Intervals: 95 % bootstrap"
    " over genes. minus: the score minus that baseline, on the same resamples."
)
BASELINES = "Baselines have no sign: a strong knock-down hits more screens, whatever its direction."


def _value(row: Row) -> str:
    if row["value"] is None or row["low"] is None:
        return number(row["value"])
    return f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


COLUMNS = [
    ("predictor", text("predictor")),
    ("minus", text("against")),
    ("hits", text("hits")),
    ("metric", text("metric")),
    ("value", _value),
    ("chance", text("chance")),
    ("genes", text("n")),
    ("of them hits", text("n_hits")),
]


def validate(
    screen: Annotated[Path, typer.Option(help="MAGeCK gene table (id, neg|lfc, neg|fdr, ...).")],
    direction_of_lfc: Annotated[
        Literal["lower", "higher"],
        typer.Option(help="What lfc < 0 means: the knock-down lowers the phenotype, or raises it."),
    ],
    suffix: Annotated[
        str | None, typer.Option(help="Of columns such as neg|fdr.Resting_Teff.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="COLUMN=VALUE: rows of the screen to keep; repeatable.")
    ] = None,
    fdr: Annotated[
        float, typer.Option(help="Level below which the screen calls a hit.", min=0, max=1)
    ] = 0.05,
    gene: Annotated[
        str | None, typer.Option(help="Score: the effect on this gene, e.g. IL2RA.")
    ] = None,
    program: Annotated[
        str | None, typer.Option(help="Score: the move toward this program.")
    ] = None,
    context: Annotated[
        str | None, typer.Option(help="Context of the run, or condition of --table.")
    ] = None,
    evidence: Annotated[
        Literal["predicted", "predicted_seen", "predicted_unseen", "measured"],
        typer.Option(help="Of the run: which effects."),
    ] = "predicted",
    source: Annotated[
        str | None,
        typer.Option(help="Of the run: an external table it holds, in place of evidence."),
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Scores from this measured table instead of a run.")
    ] = None,
    programs: Annotated[Path | None, typer.Option(help="With --table: TSV of programs.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="With --table: ROLE=COLUMN; repeatable.")
    ] = None,
    absent: Annotated[
        Literal["missing", "zero"],
        typer.Option(help="With --table: genes that a profile does not list."),
    ] = "missing",
    scores: Annotated[
        Path | None, typer.Option(help="Scores from a table with one signed number per gene.")
    ] = None,
    score_column: Annotated[str | None, typer.Option(help="With --scores: its column.")] = None,
    scores_gene: Annotated[
        str | None, typer.Option(help="With --scores: column of the genes, if not a usual name.")
    ] = None,
    scores_where: Annotated[
        list[str] | None, typer.Option(help="With --scores: COLUMN=VALUE; repeatable.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Table with sizes of knock-downs, e.g. numbers of DE genes.")
    ] = None,
    baseline_column: Annotated[
        list[str] | None, typer.Option(help="With --baseline: its columns; repeatable.")
    ] = None,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples.", min=100)] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0)] = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the rows (.csv, .parquet).")
    ] = None,
    format: Annotated[Format, typer.Option("--format", help="How to print.")] = "table",
    db: Annotated[
        Path | None, typer.Option(help="Database, or a run's folder; else that of the only run.")
    ] = None,
    run: Annotated[str | None, typer.Option(help="Name of the run under results/.")] = None,
) -> None:
    """Compare a run, or a table, with other people's screen: AUROC, AUPRC, Spearman, sign."""
    from knockscreen.score import validation
    from knockscreen.score.screens import read_screen

    _check_choice(gene, program, table, scores)
    hits = read_screen(screen, direction_of_lfc, suffix=suffix, where=pairs(where, "--where"))
    simulated, notes = False, [READING]
    if scores is not None:
        rows_of = pairs(scores_where, "--scores-where")
        score, sizes = _of_scores(scores, score_column, scores_gene, rows_of)
    elif table is not None:
        columns = pairs(column, "--column")
        score, sizes = _of_table(table, context, gene, (program, programs), (absent, columns))
    else:
        kind = (evidence, source)
        score, sizes, (simulated, doubts) = _of_run((db, run), context, gene, program, kind)
        notes += doubts
    if baseline is not None and not baseline_column:
        _refuse("--baseline needs --baseline-column, the column of sizes.")
    for name in baseline_column or ():
        if baseline is None:
            _refuse("--baseline-column needs --baseline, the table that has it.")
        else:
            sizes[name] = validation.read_values(baseline, name)
    frame = validation.compare_with_screen(
        hits, score, sizes, fdr=fdr, resamples=resamples, seed=seed
    )
    if output is not None:
        _write(frame, output, [screen, *(p for p in (table, scores, baseline) if p)])
    title = f"{screen.name}: lfc < 0 means the knock-down {_verb(direction_of_lfc)} the phenotype"
    rows = list(frame.iter_rows(named=True))
    notes += [BASELINES] if sizes else []
    if frame["n_hits"].max() == 0:
        notes.append(f"The screen calls no gene a hit at {fdr:g}: see --fdr.")
    out.emit(
        frame, format, lambda: out.table(title, COLUMNS, rows), simulated=simulated, notes=notes
    )


def _verb(direction: str) -> str:
    return "lowers" if direction == "lower" else "raises"


def _refuse(message: str) -> None:
    from knockscreen.errors import ConfigError

    raise ConfigError(message)


def _check_choice(
    gene: str | None, program: str | None, table: Path | None, scores: Path | None
) -> None:
    if table is not None and scores is not None:
        _refuse("give --table or --scores, not both.")
    if scores is not None and (gene or program):
        _refuse("--scores has its own numbers; leave --gene and --program out.")
    if scores is None and (gene is None) == (program is None):
        _refuse("say what the screen measured: --gene (its effect on one) or --program.")


def _of_scores(
    path: Path, column: str | None, gene: str | None, where: dict[str, str]
) -> "tuple[tuple[str, pl.DataFrame], dict[str, pl.DataFrame]]":
    from knockscreen.score.validation import read_values

    if column is None:
        _refuse("--scores needs --score-column, the column with one signed number per gene.")
    return (str(column), read_values(path, str(column), gene=gene, where=where)), {}


def _of_table(
    path: Path,
    condition: str | None,
    gene: str | None,
    program: tuple[str | None, Path | None],
    layout: tuple[str, dict[str, str]],
) -> "tuple[tuple[str, pl.DataFrame], dict[str, pl.DataFrame]]":
    from knockscreen.config import ExternalConfig
    from knockscreen.config import validate as check
    from knockscreen.score.external import open_external
    from knockscreen.score.program_files import read_programs
    from knockscreen.score.programs import program_matrix
    from knockscreen.score.validation import external_values

    values = {
        "source": "table", "file": str(path), "unit": "log2", "absent": layout[0],
        "columns": layout[1], "contexts": {},
    }  # fmt: skip
    opened = open_external(check(ExternalConfig, values, where="the options"))
    if condition is None and len(opened.conditions) > 1:
        _refuse(f"choose one condition with --context: {', '.join(opened.conditions)}.")
    matrix = None
    name, programs = program
    if name is not None:
        if programs is None:
            _refuse("--program of a table needs --programs, the TSV that has it.")
        matrix = program_matrix(
            read_programs(str(programs)), opened.genes["gene_id"].to_list(),
            opened.genes["gene"].to_list(), names=[name],
        )  # fmt: skip
    score, sizes = external_values(
        opened, condition or opened.conditions[0], gene=gene, programs=matrix
    )
    return (str(name or gene), score), sizes


def _of_run(
    where: tuple[Path | None, str | None],
    context: str | None,
    gene: str | None,
    program: str | None,
    kind: tuple[Any, str | None],
) -> "tuple[tuple[str, pl.DataFrame], dict[str, pl.DataFrame], tuple[bool, list[str]]]":
    """Return the score, the sizes, and whether the run is simulated and what speaks against it."""
    from contextlib import closing

    from knockscreen.store import predictions
    from knockscreen.store.connection import connect, find_database, rows

    source = kind[1]
    evidence: predictions.Evidence = "measured" if source else kind[0]
    doubts: list[str] = []
    with closing(connect(find_database(*where))) as connection:
        if program is not None:
            doubts = predictions.doubts(connection, program)
            frame = predictions.program_scores(
                connection, program, context, evidence=evidence, source=source
            )
        else:
            frame = predictions.gene_effects(
                connection, str(gene), context, evidence=evidence, source=source
            )
        sizes = predictions.baselines(connection, context, evidence=evidence, source=source)
        simulated = bool(rows(connection, "select simulated from runs")[0][0])
    return (str(program or gene), frame), sizes, (simulated, doubts)


def _write(frame: "pl.DataFrame", output: Path, inputs: list[Path]) -> None:
    from knockscreen.artifacts import atomic, write_manifest

    if output.suffix not in {".csv", ".parquet"}:
        _refuse(f"'{output}' is neither .csv nor .parquet; name one of these.")
    with atomic(output) as temporary:
        if output.suffix == ".csv":
            frame.write_csv(temporary)
        else:
            frame.write_parquet(temporary)
    write_manifest(output, stage="validate", inputs=inputs)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(validate)
