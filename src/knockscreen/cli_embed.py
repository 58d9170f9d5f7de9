"""Verbs on cells: ``embed`` (any file's cells to latents)."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from knockscreen.config import DataConfig

log = logging.getLogger(__name__)


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command("embed")(embed)


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
    left out, not taken for zeros. Counts must be raw, as for training.
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
        size, panel = model.settings.size, len(vocabulary.gene_ids)
        log.info(
            "%d of the %d genes of %s found: %d by Ensembl id, %d by symbol; %d left out",
            len(match.panel), panel, vae, match.by_id, match.by_symbol, panel - len(match.panel),
        )  # fmt: skip
        about = {
            "what": "latent mean of the knockscreen VAE, tokens x dims flattened; no unit",
            "latent_tokens": size.latent_tokens,
            "latent_dim": size.latent_dim,
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
    shape = counts.n_cells, size.latent_tokens, size.latent_dim
    log.info("%d cells, %d x %d latents -> %s", *shape, output)


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
