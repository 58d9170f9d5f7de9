"""The verb ``evaluate``: how good the generated cells are, beside baselines and the ceiling."""

import logging
from pathlib import Path
from typing import Annotated

import typer

log = logging.getLogger(__name__)


def evaluate(
    store: Annotated[Path, typer.Option(help="Folder of the training store.")],
    effect: Annotated[Path, typer.Option(help="Gene features, as fit-effects wrote them.")],
    candidates: Annotated[Path, typer.Option(help="Candidate table (.parquet).")],
    shards_dir: Annotated[Path, typer.Option(help="Folder of the screen's shards (.npz).")],
    output_dir: Annotated[Path, typer.Option(help="Folder for metrics and summary.")],
    settings: Annotated[
        str, typer.Option(help="JSON text, or the path of a complete configuration.")
    ],
    matched: Annotated[
        Path | None, typer.Option(help="Generated cells matched to held-out ones; none: left out.")
    ] = None,
) -> None:
    """Evaluate predictions on held-out cells, with baselines and the data's ceiling beside them."""
    from knockscreen.artifacts import atomic, write_manifest
    from knockscreen.config import read_stage
    from knockscreen.score import evaluation

    config = read_stage(evaluation.EvaluateStage, settings)
    sources = evaluation.Sources(store, effect, candidates, shards_dir, matched)
    metrics, summary, notes = evaluation.evaluate(sources, config)
    undefined = dict(evaluation.count_undefined(metrics))
    inputs = [store / "store.json", effect, candidates, *([matched] if matched else [])]
    for name, table in (("metrics", metrics), ("summary", summary)):
        with atomic(output_dir / f"{name}.parquet") as temporary:
            table.write_parquet(temporary)
        write_manifest(
            output_dir / f"{name}.parquet",
            stage="evaluate",
            inputs=inputs,
            settings=config.model_dump(mode="json"),
            seed=config.seed,
            notes=notes | {"undefined": undefined},
        )
    for why, count in undefined.items():
        log.info("%s values are undefined: %s", f"{count:,}", why)
    log.info("evaluated: %s", output_dir / "metrics.parquet")


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(evaluate)
