"""The files of a screen: the sampler from its checkpoints, the control, shards, matched cells."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from knockscreen.artifacts import atomic, require_file
from knockscreen.checkpoint import read_vocabulary, require_same
from knockscreen.data.cells import CellStore
from knockscreen.errors import CheckpointError, DataError
from knockscreen.names import Split
from knockscreen.nn.likelihood import nb_sample
from knockscreen.sampling import (
    Sampler,
    SamplerSettings,
    Screen,
    control_statistics,
    shard_statistics,
)
from knockscreen.stopping import Until
from knockscreen.training.effect import load_effects
from knockscreen.training.flow import load_flow
from knockscreen.training.vae import load_vae


def load_sampler(
    vae: Path, flow: Path, effect: Path, settings: SamplerSettings, device: torch.device
) -> Sampler:
    """Return the sampler of three checkpoints, refusing any that are not of one training."""
    decoder, about = load_vae(vae, device)
    model = load_flow(flow, device)
    effects = load_effects(effect)
    trained = read_vocabulary(about)
    require_same(trained, model.vocabulary, checkpoint=str(vae), conditions=False)
    require_same(effects.vocabulary, model.vocabulary, checkpoint=str(effect), conditions=True)
    made = model.net.settings.latent_tokens, model.net.settings.latent_dim
    read = decoder.settings.tokens, decoder.settings.size.latent_dim
    if made != read:
        msg = (
            f"{flow} makes latents of {made[0]} x {made[1]} and {vae} reads {read[0]} x {read[1]}, "
            "so that they are not of one training; run encode and train-flow again."
        )
        raise CheckpointError(msg)
    return Sampler(decoder, model, effects, settings, about.get("panel_shares"))


def seconds_per_cell(
    sampler: Sampler, contexts: list[str], gene_id: str, flops: float, *, budget: float = 1.0
) -> float:
    """Return what one generated cell costs here: the fastest of probes of about a second in all.

    In CPU seconds of this process, which other work on the machine does not lengthen; on a GPU by
    the clock on the wall.

    Parameters
    ----------
    gene_id
        A candidate, generated as the screen does it.
    flops
        Floating-point operations of one cell: a probe has as many cells as a core does in a tenth
        of a second, but no more than a batch.
    budget
        Seconds after which the probes end.
    """
    on_cpu = sampler.device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    most = min(sampler.settings.batch_size, max(1, int((5e9 if on_cpu else 5e12) / flops)))
    draws = min(sampler.settings.draws, most)
    chosen = contexts[: max(1, most // draws)]
    screen = Screen(sampler.changed(draws=draws, blocks=1), chosen)
    screen.generate(gene_id)  # warm up
    best, began = np.inf, clock()
    while clock() - began < budget or best == np.inf:
        start = clock()
        screen.generate(gene_id)
        best = min(best, clock() - start)
    return float(best) / (draws * len(chosen))


def _meta(screen: Screen) -> NDArray[np.str_]:
    about = {
        "contexts": screen.contexts,
        "gene_ids": list(screen.sampler.model.vocabulary.gene_ids),
        "draws": screen.draws,
        "blocks": int(screen.blocks().max()) + 1,
    }
    return np.array(json.dumps(about))


def write_control(path: Path, screen: Screen) -> None:
    """Generate the control in every context and write its statistics and its draws."""
    arrays = control_statistics(screen)
    with atomic(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, allow_pickle=False, meta=_meta(screen), **arrays)


def write_shard(
    path: Path,
    screen: Screen,
    control: Path,
    candidates: list[tuple[int, str]],
    progress: Callable[[int], None],
    *,
    until: Until | None = None,
) -> None:
    """Generate candidates (number, Ensembl id) and write their statistics against the control.

    ``n_draws`` (K,) says how many draws each has: all of them, unless ``until`` asks for fewer.

    Raises
    ------
    DataError
        The control is of other contexts, draws or genes, or the weights of ``until`` of others.
    """
    with np.load(require_file(control, "generate-control")) as file:
        meta = json.loads(str(file["meta"]))
        draws = file["draw_log1p"]
    if meta != json.loads(str(_meta(screen))):
        msg = f"{control} was generated for another plan; run 'knockscreen generate-control' again."
        raise DataError(msg)
    if until is not None and list(until.gene_ids) != meta["gene_ids"]:
        msg = "the weights of the programs are of another panel; run program-weights again."
        raise DataError(msg)
    parts: dict[str, list[NDArray[Any]]] = {}
    ids = [gene_id for _, gene_id in candidates]
    for done, statistics in enumerate(shard_statistics(screen, ids, draws, until), start=1):
        for name, value in statistics.items():
            parts.setdefault(name, []).append(value)
        progress(done)
    shape = (0, len(screen.contexts), len(meta["gene_ids"]))
    names = ("mean_count", "mean_log1p", "var_log1p", "detection", "delta_mean", "delta_var")
    arrays: dict[str, NDArray[Any]] = {
        name: np.stack(parts[name]) if ids else np.zeros(shape, dtype=np.float32) for name in names
    }
    arrays["block_delta"] = (
        np.stack(parts["block_delta"], axis=1)
        if ids
        else np.zeros((meta["blocks"], *shape), dtype=np.float32)
    )
    arrays["n_draws"] = np.array(parts.get("n_draws", []), dtype=np.int32)
    numbers = np.array([number for number, _ in candidates], dtype=np.int32)
    with atomic(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, allow_pickle=False, meta=_meta(screen), candidate=numbers, **arrays)


def matched_rows(store: CellStore, most: int = 4000) -> NDArray[np.int64]:
    """Return the rows of the test cells, at most ``most`` of them, taken evenly.

    Validation cells where there is no test.
    """
    rows = store.rows(Split.TEST)
    rows = rows if len(rows) else store.rows(Split.VALIDATION)
    if len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
    return rows


def matched_cells(sampler: Sampler, store: CellStore, rows: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return counts (n, G) generated for real cells, the rows of a store.

    Each has the condition and the library size of its real cell, so that the two sets differ by
    the model alone.
    """
    v = store.vocabulary
    target = np.asarray(store.target)[rows]
    context = store.context_index()[rows]
    rng = np.random.default_rng([sampler.settings.seed, 20])
    settings = sampler.model.net.settings
    noise = rng.standard_normal(
        (len(rows), settings.latent_tokens, settings.latent_dim), dtype=np.float32
    )
    generator = torch.Generator(device=sampler.device).manual_seed(sampler.settings.seed)
    counts = np.zeros((len(rows), len(v.gene_ids)), dtype=np.int32)
    for code in np.unique(target):
        mine = np.flatnonzero(target == code)
        names = [v.contexts[i] for i in context[mine]]
        known = sampler.target(v.target_ids[code])
        z = sampler.latents(known, names, torch.from_numpy(noise[mine]).to(sampler.device))
        library = torch.from_numpy(np.asarray(store.library_size)[rows[mine]]).to(sampler.device)
        mu, theta = sampler.decode(z, library, known, names)
        counts[mine] = nb_sample(mu, theta, generator).cpu().numpy().astype(np.int32)
    return counts


def write_matched(path: Path, sampler: Sampler, store: CellStore) -> int:
    """Write the matched cells; returns how many."""
    rows = matched_rows(store)
    counts = matched_cells(sampler, store, rows)
    with atomic(path) as temporary, temporary.open("wb") as handle:
        np.savez_compressed(handle, counts=counts, rows=rows)
    return len(rows)
