"""Verbs on cells: ``embed`` (of any file, to latents) and ``generate`` (of a knock-down)."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from knockscreen.config import DataConfig, ScreenConfig

log = logging.getLogger(__name__)


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command("embed")(embed)
    app.command("generate")(generate)


def embed(
    file: Annotated[Path, typer.Argument(metavar="FILE.h5ad", help="Raw counts of any cells.")],
    vae: Annotated[Path, typer.Option("--vae", help="vae.safetensors of train-vae.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file with its latents.")],
    layer: Annotated[str | None, typer.Option(help="Layer of the raw counts; else X.")] = None,
    gene_symbol: Annotated[
        str | None, typer.Option(help="Column of var with symbols, or index; else found.")
    ] = None,
    gene_id: Annotated[
        str | None, typer.Option(help="Column of var with Ensembl ids, or index; else found.")
    ] = None,
) -> None:
    """Add a VAE's latents of every cell to obsm["X_knockscreen"]: (cells, tokens x dims).

    Genes are matched by Ensembl id, then by symbol. Genes of the panel that the file lacks are
    filled in with what the model expects of each cell, not taken for zeros. Counts must be raw, as
    for training.
    """
    from knockscreen import embedding
    from knockscreen.artifacts import digest, write_manifest
    from knockscreen.checkpoint import read_vocabulary
    from knockscreen.data.counts import CountsFile
    from knockscreen.data.h5ad import open_h5ad
    from knockscreen.errors import ConfigError
    from knockscreen.training.loop import pick_device
    from knockscreen.training.vae import load_vae

    if output.exists() and file.exists() and output.samefile(file):
        msg = f"--output {output} is the input itself; name another file for the copy."
        raise ConfigError(msg)
    model, card = load_vae(vae, pick_device())
    with open_h5ad(file) as handle, _own_options():
        counts = CountsFile(file, handle, _data(file, layer, gene_symbol, gene_id))
        vocabulary = read_vocabulary(card)
        match = embedding.match_genes(counts.genes, vocabulary, file=file, vae=vae)
        tokens, dim = model.settings.tokens, model.settings.size.latent_dim
        panel = len(vocabulary.gene_ids)
        log.info(
            "%d of the %d genes of %s found: %d by Ensembl id, %d by symbol; %d filled in",
            len(match.panel), panel, vae, match.by_id, match.by_symbol, panel - len(match.panel),
        )  # fmt: skip
        about = {
            "what": "latent mean of the knockscreen VAE, tokens x dims flattened; no unit",
            "latent_tokens": tokens,
            "latent_dim": dim,
            "linear_components": model.settings.linear,
            "vae": str(vae),
            "vae_digest": digest(vae),
            "genes_of_panel": panel,
            "genes_by_id": match.by_id,
            "genes_by_symbol": match.by_symbol,
            "counts": counts.where,
            "vae_trained_on_simulated": bool(card.get("simulated", False)),
        }
        empty = embedding.write_embedding(output, model, counts, match, about)
    if empty:
        log.warning("%d cells have no count on these genes; their latents say nothing", empty)
    write_manifest(output, stage="embed", inputs=[file, vae], notes=about)
    log.info("%d cells, %d x %d latents -> %s", counts.n_cells, tokens, dim, output)


def generate(
    perturbation: Annotated[
        list[str],
        typer.Option(
            "--perturbation",
            "-p",
            help="Knock-down, by symbol or Ensembl id; non-targeting: control cells; measured: "
            "every target of the training cells. Repeatable.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Cells to write (.h5ad).")],
    context: Annotated[
        str | None,
        typer.Option(help="factor=level[,factor=level]; a factor left out: each of its levels."),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Cells per knock-down and context.")] = 100,
    run: Annotated[str | None, typer.Option(help="Run under results/; else the only one.")] = None,
    vae: Annotated[Path | None, typer.Option(help="vae.safetensors; else the run's.")] = None,
    flow: Annotated[Path | None, typer.Option(help="flow.safetensors; else the run's.")] = None,
    effect: Annotated[Path | None, typer.Option(help="effect.safetensors; else the run's.")] = None,
    settings: Annotated[
        str | None,
        typer.Option("--settings", "-s", help="Config file (YAML) or JSON; else as the run did."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Another seed than the run's: other cells.")
    ] = None,
) -> None:
    """Generate cells of knock-downs: counts, latents, and where they came from.

    Draw r of a context shares its noise and library size with draw r of every other knock-down and
    of control, so that cells of one draw differ by the knock-down alone.
    """
    from knockscreen import generated
    from knockscreen.artifacts import digest, write_manifest
    from knockscreen.cli_screen import make_sampler

    models = _models(run, {"vae": vae, "flow": flow, "effect": effect})
    own_seed, config = _screen_settings(models["flow"].parents[1], settings)
    seed = own_seed if seed is None else seed
    sampler = make_sampler(seed, config, **models)
    targets = generated.resolve_targets(sampler, perturbation)
    v, known = sampler.model.vocabulary, sampler.model.library_size_log
    contexts = generated.resolve_contexts(v, list(known), context)
    pairs = [(target, name) for target in targets for name in contexts]
    about = {f"{name}_digest": digest(path) for name, path in models.items()}
    n = generated.write_cells(out, sampler, pairs, draws, about)
    asked = {"perturbation": perturbation, "context": context, "draws": draws}
    settings_used = {**config.model_dump(), **asked}
    write_manifest(
        out,
        stage="generate",
        inputs=models.values(),
        settings=settings_used,
        seed=seed,
        notes=about,
    )
    log.info("%d cells: %d knock-downs x %d contexts -> %s", n, len(targets), len(contexts), out)


def _models(run: str | None, given: "dict[str, Path | None]") -> dict[str, Path]:
    """Return the paths of the three checkpoints: those given, the others of the run."""
    from knockscreen.run_tables import RunTables, find_run

    named = {name: path for name, path in given.items() if path is not None}
    if len(named) == len(given):
        return named
    tables = RunTables(find_run(run))
    return {
        name: named[name] if name in named else tables.path(f"{name}/{name}.safetensors")
        for name in given
    }


def _screen_settings(folder: Path, settings: str | None) -> "tuple[int, ScreenConfig]":
    """Return seed and screen section: those given, or those that the run was planned with."""
    from knockscreen.artifacts import read_json
    from knockscreen.cli_screen import _read
    from knockscreen.config import ScreenConfig, validate
    from knockscreen.errors import ConfigError

    if settings is not None:
        return _read(settings)
    path = folder / "screen/plan.json.manifest.json"
    if not path.is_file():
        msg = (
            f"{path} does not exist, so nothing says how to generate; run 'knockscreen plan', or "
            "give --settings config/config.yaml."
        )
        raise ConfigError(msg)
    planned = read_json(path)
    return planned["seed"], validate(ScreenConfig, planned["settings"], where=str(path))


def _data(
    file: Path, layer: str | None, gene_symbol: str | None, gene_id: str | None
) -> "DataConfig":
    """Return how to read the counts; nothing of knock-downs or contexts is asked for."""
    from knockscreen.config import Columns, DataConfig

    return DataConfig(
        files=[str(file)],
        preset="generic",
        layer=layer,
        columns=Columns(gene_symbol=gene_symbol, gene_id=gene_id),
        contexts={},
        control_labels=[],
        where={},
    )


@contextlib.contextmanager
def _own_options() -> Iterator[None]:
    """Let errors of the readers name this verb's options, as it has no configuration."""
    from knockscreen.errors import DataError

    options = {
        "map it under data.columns.gene_symbol in the configuration": "name another, --gene-symbol",
        "map it under data.columns.gene_id in the configuration": "name another with --gene-id",
        "data.columns.gene_symbol": "--gene-symbol",
        "data.columns.gene_id": "--gene-id",
        "data.layer": "--layer",
    }
    try:
        yield
    except DataError as error:
        text = str(error)
        for setting, option in options.items():
            text = text.replace(setting, option)
        raise DataError(text) from error
