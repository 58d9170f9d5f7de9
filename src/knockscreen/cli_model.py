"""Verbs that train: ``fit-effects``, ``train-vae``, ``encode`` and ``train-flow``."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from knockscreen.config import FlowConfig, TrainingConfig, VaeConfig
    from knockscreen.data.cells import CellStore
    from knockscreen.models.vae import VaeSettings
    from knockscreen.training.loop import Progress, TrainingSettings
    from knockscreen.training.transfer import Start

log = logging.getLogger(__name__)

Settings = Annotated[
    str,
    typer.Option("--settings", "-s", help="Complete config file (YAML), or its sections as JSON."),
]
Store = Annotated[Path, typer.Option("--store", help="Training store, a folder.")]
Effect = Annotated[Path, typer.Option("--effect", help="effect.safetensors of fit-effects.")]
OutputDir = Annotated[Path, typer.Option("--output-dir", "-o", help="Folder to write to.")]
ResumeDir = Annotated[
    Path | None, typer.Option("--resume-dir", help="Folder of the state to go on from.")
]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command("fit-effects")(fit_effects)
    app.command("train-vae")(train_vae)
    app.command("encode")(encode)
    app.command("train-flow")(train_flow)


def fit_effects(settings: Settings, store: Store, output_dir: OutputDir) -> None:
    """Fit gene features and the linear part of every knock-down, from training cells."""
    from knockscreen.artifacts import write_manifest
    from knockscreen.config import EffectConfig, Section, expand_path, read_stage
    from knockscreen.data.cells import CellStore
    from knockscreen.training import effect as fitting

    class Stage(Section):
        effect: EffectConfig

    config = read_stage(Stage, settings).effect
    cells = CellStore.open(store)
    named = config.features in {"none", "coexpression"}
    model = fitting.fit_effects(
        cells,
        features=config.features if named else str(expand_path(config.features)),
        feature_dims=config.feature_dims,
        rank=config.rank if config.model == "low_rank" else 0,
        keep_cells=config.keep_cells,
    )
    notes: dict[str, object] = {
        "effects": 0 if model.linear is None else sum(model.trained),
        "targets": sum(model.trained),
        "weights": None if model.linear is None else model.linear.unseen.weights.round(4).tolist(),
    }
    known = set(model.featured())
    pairs = zip(model.vocabulary.gene_ids, model.vocabulary.genes, strict=True)
    without = [gene for gene_id, gene in pairs if gene_id not in known]
    notes["genes_without_features"] = len(without)
    if known and without:
        log.info(
            "%d of %d panel genes have no features, so their knock-down is predicted only where it"
            " was trained: %s%s",
            len(without), len(model.vocabulary.gene_ids), ", ".join(without[:5]),
            ", ..." if len(without) > 5 else "",
        )  # fmt: skip
    path = output_dir / "effect.safetensors"
    fitting.save_effects(path, model, notes)
    write_manifest(
        path,
        stage="fit_effects",
        inputs=[store / "store.json"],
        settings=config.model_dump(),
        notes=notes,
    )
    log.info("effects of %s knock-downs -> %s", notes["effects"], path)


def train_vae(
    settings: Settings,
    store: Store,
    effect: Effect,
    output_dir: OutputDir,
    resume_dir: ResumeDir = None,
) -> None:
    """Train the VAE on the training cells; stop by the validation cells."""
    from knockscreen.checkpoint import require_same
    from knockscreen.config import NonNegative, Section, VaeConfig, expand_path, read_stage
    from knockscreen.data.cells import CellStore
    from knockscreen.stages import code_digest
    from knockscreen.training import transfer
    from knockscreen.training import vae as training
    from knockscreen.training.effect import load_effects
    from knockscreen.training.loop import pick_device

    class Stage(Section):
        seed: NonNegative
        vae: VaeConfig

    stage = read_stage(Stage, settings)
    config = stage.vae
    network = _network(config)
    cells = CellStore.open(store)
    effects = load_effects(effect)
    require_same(effects.vocabulary, cells.vocabulary, checkpoint=str(effect), conditions=True)
    start = None
    if config.init_from is not None:
        start = transfer.read_vae(expand_path(config.init_from), cells.vocabulary, network)
    _use_threads(config.training.workers)
    model, progress = training.fit_vae(
        training.library_sizes(cells, config.library),
        network,
        _training(config.training),
        effects,
        seed=stage.seed,
        vae_training=training.VaeTraining(
            config.kl_weight, config.thinning, code_digest("train_vae")
        ),
        device=pick_device(),
        resume_dir=resume_dir,
        start=start,
    )
    path = output_dir / "vae.safetensors"
    notes = _notes(progress, start)
    training.save_vae(path, model, cells, notes)
    inputs = [store / "store.json", effect]
    _finish(path, progress, notes, inputs=inputs, config=config, seed=stage.seed)


def encode(
    settings: Settings,
    store: Store,
    effect: Effect,
    vae: Annotated[Path, typer.Option("--vae", help="vae.safetensors of train-vae.")],
    output_dir: OutputDir,
) -> None:
    """Write the latents of every cell (N, L, D), once."""
    import numpy as np

    from knockscreen.artifacts import atomic, digest, write_json, write_manifest
    from knockscreen.checkpoint import read_vocabulary, require_same
    from knockscreen.config import NonNegative, Section, VaeConfig, read_stage
    from knockscreen.data.cells import CellStore
    from knockscreen.training import vae as training
    from knockscreen.training.effect import load_effects
    from knockscreen.training.loop import pick_device

    class Stage(Section):
        seed: NonNegative
        vae: VaeConfig

    stage = read_stage(Stage, settings)
    cells = CellStore.open(store)
    model, about = training.load_vae(vae, pick_device())
    require_same(read_vocabulary(about), cells.vocabulary, checkpoint=str(vae), conditions=False)
    _use_threads(stage.vae.training.workers)
    n, dim = len(cells) + len(cells.decoy_rows), model.settings.size.latent_dim
    shape = n, model.settings.tokens, dim
    path = output_dir / "latents.npy"
    with atomic(path) as temporary:
        out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        training.encode_store(model, cells, out, effects=load_effects(effect))
        out.flush()
    write_json(output_dir / "latents.json", {"shape": shape, "vae": digest(vae)})
    write_manifest(path, stage="encode", inputs=[vae, store / "store.json"], seed=stage.seed)
    log.info("%d cells, %d x %d latents -> %s", *shape, path)


def train_flow(
    settings: Settings,
    store: Store,
    effect: Effect,
    latents: Annotated[Path, typer.Option("--latents", help="Folder of encode.")],
    output_dir: OutputDir,
    resume_dir: ResumeDir = None,
) -> None:
    """Train the flow on the latents of the training cells; stop by the validation cells."""
    from knockscreen.artifacts import require_file
    from knockscreen.checkpoint import require_same
    from knockscreen.config import FlowConfig, NonNegative, Section, expand_path, read_stage
    from knockscreen.data.cells import CellStore
    from knockscreen.models.velocity import FLOW_SIZES
    from knockscreen.stages import code_digest
    from knockscreen.training import flow as training
    from knockscreen.training import transfer
    from knockscreen.training.effect import load_effects
    from knockscreen.training.loop import pick_device

    class Stage(Section):
        seed: NonNegative
        flow: FlowConfig

    stage = read_stage(Stage, settings)
    config = stage.flow
    cells = CellStore.open(store)
    effects = load_effects(effect)
    require_same(effects.vocabulary, cells.vocabulary, checkpoint=str(effect), conditions=True)
    table = require_file(latents / "latents.npy", "encode")
    values = _latents(table, cells, store)
    start = None
    if config.init_from is not None:
        base = expand_path(config.init_from)
        start = transfer.FlowStart(base, cells.vocabulary, gaussian=config.gaussian)
    _use_threads(config.training.workers)
    trained_as = training.FlowTraining(
        FLOW_SIZES[config.size],
        **config.model_dump(include={"condition_dropout", "target_dropout", "gaussian"}),
        version=code_digest("train_flow"),
    )
    model, progress = training.fit_flow(
        cells,
        values,
        trained_as,
        _training(config.training),
        effects,
        seed=stage.seed,
        device=pick_device(),
        resume_dir=resume_dir,
        start=start,
        compiling=config.compile,
    )
    path, notes = output_dir / "flow.safetensors", _notes(progress, start)
    training.save_flow(path, model, notes)
    inputs = [store / "store.json", effect, table]
    _finish(path, progress, notes, inputs=inputs, config=config, seed=stage.seed)


def _latents(table: Path, cells: "CellStore", store: Path) -> "NDArray[np.float32]":
    """Return the latents (N, L, D) of a store's cells, its decoys' after them."""
    import numpy as np

    from knockscreen.errors import DataError

    values: NDArray[np.float32] = np.load(table, mmap_mode="r")
    expected = len(cells) + len(cells.decoy_rows)
    if len(values) != expected:
        msg = f"{table} holds {len(values)} cells, {store} {expected}; run encode again."
        raise DataError(msg)
    return values


def _network(config: "VaeConfig") -> "VaeSettings":
    from knockscreen.errors import ConfigError
    from knockscreen.models.vae import VAE_SIZES, VaeSettings

    dim = VAE_SIZES[config.size].latent_dim
    if config.linear % dim:
        below = config.linear - config.linear % dim
        msg = (
            f"vae.linear is {config.linear}, which is not a multiple of the {dim} dimensions that "
            f"a latent token of vae.size '{config.size}' has; set it to {below} or {below + dim}."
        )
        raise ConfigError(msg)
    return VaeSettings(
        size=VAE_SIZES[config.size],
        input=config.input,
        dispersion=config.dispersion,
        library=config.library,
        variational=config.kl_weight > 0,
        linear=config.linear,
    )


def _training(config: "TrainingConfig") -> "TrainingSettings":
    from knockscreen.training.loop import TrainingSettings

    return TrainingSettings(**config.model_dump(exclude={"workers"}))


def _use_threads(requested: int) -> None:
    import torch

    from knockscreen.artifacts import threads

    torch.set_num_threads(threads(requested))


def _notes(progress: "Progress", start: "Start | None") -> dict[str, Any]:
    if start is not None:
        log.info("%s", start.report)
    return {
        "start": None if start is None else start.report,
        "steps": progress.step,
        "best_step": progress.best_step,
        "best_validation_loss": progress.best,
        "seconds": round(progress.seconds, 1),
    }


def _finish(
    path: Path,
    progress: "Progress",
    notes: dict[str, Any],
    *,
    inputs: list[Path],
    config: "VaeConfig | FlowConfig",
    seed: int,
) -> None:
    """Write the loss curves and the manifest of a trained model, and say how it went."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from knockscreen.artifacts import atomic, write_manifest

    with atomic(path.with_name("loss.parquet")) as temporary:
        pq.write_table(pa.Table.from_pylist(progress.history), temporary)
    write_manifest(
        path,
        stage=f"train_{path.stem}",
        inputs=inputs,
        settings=config.model_dump(),
        seed=seed,
        notes=notes,
    )
    best, step = progress.best, progress.best_step
    log.info("best validation loss %.5g at step %d -> %s", best, step, path)
