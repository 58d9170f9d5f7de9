"""Generated cells as AnnData, with where they came from: for a look, or for data augmentation.

A cell is a function of (seed, context, draw) and of its target: neither the other cells of the
file, nor their order, nor the device's random numbers matter. G genes, L x D latents.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from knockscreen.artifacts import atomic
from knockscreen.data.cells import Vocabulary
from knockscreen.errors import UnknownNameError, suggest
from knockscreen.names import NTC, Evidence, is_decoy, parse_context
from knockscreen.sampling import Sampler, draw_generator

AT_ONCE = 1024
"""Cells generated and written at a time."""


@dataclass(frozen=True)
class Cells:
    """Generated cells of one target in one context, of the draws ``first`` to ``first + n``."""

    gene_id: str
    context: str
    first: int
    library_size: NDArray[np.float32]
    """(n,) drawn library size over all genes, not the sum of ``counts``."""
    counts: NDArray[np.int64]
    """(n, G)"""
    latents: NDArray[np.float32]
    """(n, L D)"""


def resolve_target(sampler: Sampler, name: str) -> str:
    """Return the Ensembl id (or control label) of a target given by symbol or id, case ignored."""
    v = sampler.model.vocabulary
    known: dict[str, str] = {}
    for ids, symbols in ((v.gene_ids, v.genes), (v.target_ids, v.targets)):
        for gene_id, symbol in zip(ids, symbols, strict=True):
            known[gene_id.lower()] = known[symbol.lower()] = gene_id
    found = known.get(name.lower())
    if found is None:
        known_names = [t for t in (*v.targets, *v.genes) if not is_decoy(t)]
        msg = f"unknown target '{name}'{suggest(name, known_names)}."
        raise UnknownNameError(msg)
    return found


def resolve_targets(sampler: Sampler, names: list[str]) -> list[str]:
    """Return the ids of targets, each once; ``measured`` stands for all knocked down in training.

    Raises
    ------
    UnknownNameError
        The model can say nothing of a target.
    """
    found: list[str] = []
    for name in names:
        if name.lower() == "measured":
            ids = sampler.model.vocabulary.target_ids
            found += [
                gene_id
                for gene_id in ids
                if gene_id != NTC and not is_decoy(gene_id) and sampler.is_seen(gene_id)
            ]
        else:
            found.append(resolve_target(sampler, name))
            sampler.target(found[-1])
    return list(dict.fromkeys(found))


def resolve_contexts(vocabulary: Vocabulary, known: list[str], wanted: str | None) -> list[str]:
    """Return the contexts that a name means: a factor left out stands for all of its levels.

    Parameters
    ----------
    vocabulary
        Factors and levels of the model.
    known
        Contexts with cells in training.
    wanted
        factor=level[,factor=level]; None: all.

    Raises
    ------
    UnknownNameError
        A factor or a level is unknown, or no training cell is in such a context.
    """
    named = parse_context(wanted or "all")
    for factor, level in named.items():
        if factor not in vocabulary.factors:
            near = suggest(factor, vocabulary.factors)
            msg = f"unknown context factor '{factor}' in '{wanted}'{near}."
            raise UnknownNameError(msg)
        levels = vocabulary.levels[vocabulary.factors.index(factor)]
        if level not in levels:
            msg = f"unknown {factor} '{level}' in context '{wanted}'{suggest(level, levels)}."
            raise UnknownNameError(msg)
    hits = [name for name in known if named.items() <= parse_context(name).items()]
    if not hits:
        msg = f"no training cells in context '{wanted}'{suggest(str(wanted), known)}."
        raise UnknownNameError(msg)
    return hits


def generate_cells(
    sampler: Sampler, pairs: list[tuple[str, str]], draws: int, at_once: int = AT_ONCE
) -> Iterator[Cells]:
    """Yield the cells of each (target id, context), in pieces of at most ``at_once`` cells.

    Draw r of a context has the same noise, library size and random stream for every target.
    """
    for gene_id, context in pairs:
        target = sampler.target(gene_id)
        for first in range(0, draws, at_once):
            numbers = range(first, min(first + at_once, draws))
            noise, library = sampler.noise(context, numbers)
            names = [context] * len(numbers)
            z = sampler.latents(target, names, noise)
            mu, theta = (
                x.double().cpu().numpy() for x in sampler.decode(z, library, target, names)
            )
            counts = np.empty(mu.shape, dtype=np.int64)
            for row, draw in enumerate(numbers):
                size = theta if theta.ndim == 1 else theta[row]
                rng = draw_generator(sampler.settings.seed, context, draw).spawn(1)[0]
                counts[row] = rng.poisson(rng.gamma(size, mu[row] / size))
            flat = z.flatten(1).float().cpu().numpy()
            yield Cells(gene_id, context, first, library.cpu().numpy(), counts, flat)


def write_cells(
    path: Path,
    sampler: Sampler,
    pairs: list[tuple[str, str]],
    draws: int,
    provenance: dict[str, Any] | None = None,
) -> int:
    """Write ``draws`` cells per (target id, context) as h5ad; returns how many cells.

    X holds NB counts, ``obsm["z"]`` the latents, obs the target, its evidence, the context, the
    draw and the library size over all genes; ``uns["knockscreen"]`` says that the cells are
    generated, and from what. Cells are written as they come.

    Raises
    ------
    UnknownNameError
        A target or a context that the model does not know.
    """
    from anndata.io import sparse_dataset, write_elem
    from scipy import sparse

    net, genes = sampler.model.net.settings, len(sampler.model.vocabulary.gene_ids)
    width = net.latent_tokens * net.latent_dim
    done: list[Cells] = []
    with atomic(path) as temporary, h5py.File(temporary, "w") as handle:
        handle.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        packed = {"compression": "gzip", "chunks": (1 << 16,)}
        write_elem(
            handle, "X", sparse.csr_matrix((0, genes), dtype=np.float32), dataset_kwargs=packed
        )
        write_elem(handle, "obsm", {})
        table = handle["obsm"].create_dataset(
            "z", (0, width), np.float32, maxshape=(None, width), compression="gzip"
        )
        table.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for cells in generate_cells(sampler, pairs, draws):
            sparse_dataset(handle["X"]).append(sparse.csr_matrix(cells.counts.astype(np.float32)))
            table.resize(len(table) + len(cells.latents), axis=0)
            table[-len(cells.latents) :] = cells.latents
            done.append(replace(cells, counts=cells.counts[:0], latents=cells.latents[:0]))
        obs = _obs(sampler, done)
        about = {**_about(sampler), **(provenance or {})}
        uns = {"knockscreen": about, "simulated": sampler.model.simulated}
        for name, value in {"obs": obs, "var": _var(sampler), "uns": uns}.items():
            write_elem(handle, name, value)
    return len(obs)


def _obs(sampler: Sampler, done: list[Cells]) -> Any:
    """Return the annotation of all cells, text as categories."""
    import pandas as pd  # type: ignore[import-untyped]

    v = sampler.model.vocabulary
    symbol = dict(zip((*v.gene_ids, *v.target_ids), (*v.genes, *v.targets), strict=True))
    sizes = [len(cells.library_size) for cells in done]

    def each(values: list[str]) -> Any:
        return pd.Categorical(np.repeat(np.array(values, dtype=object), sizes))

    seen = [sampler.is_seen(cells.gene_id) for cells in done]
    evidence = [Evidence.PREDICTED_SEEN if s else Evidence.PREDICTED_UNSEEN for s in seen]
    columns: dict[str, Any] = {
        "target_gene": each([symbol[cells.gene_id] for cells in done]),
        "target_gene_id": each([cells.gene_id for cells in done]),
        "evidence": each([str(e) for e in evidence]),
        "context": each([cells.context for cells in done]),
        "is_control": np.repeat([cells.gene_id == NTC for cells in done], sizes),
    }
    for factor in v.factors:
        columns[factor] = each([parse_context(cells.context)[factor] for cells in done])
    columns["draw"] = np.concatenate(
        [
            np.empty(0, np.int64),
            *(np.arange(c.first, c.first + n) for c, n in zip(done, sizes, strict=True)),
        ]
    )
    columns["library_size"] = np.concatenate(
        [np.empty(0, np.float32), *(c.library_size for c in done)]
    )
    return pd.DataFrame(columns, index=[f"generated_{i}" for i in range(sum(sizes))])


def _var(sampler: Sampler) -> Any:
    import pandas as pd

    v = sampler.model.vocabulary
    names = {"gene_symbol": list(v.genes), "ensembl_id": list(v.gene_ids)}
    return pd.DataFrame(names, index=pd.Index(list(v.gene_ids)))


def _about(sampler: Sampler) -> dict[str, Any]:
    """Return what the cells are and how they were made."""
    s = sampler.settings
    return {
        "generated": True,
        "unit": "counts",
        "seed": s.seed,
        "solver": s.solver,
        "steps": s.steps,
        "guidance_strategy": s.guidance.strategy,
        "guidance_context": s.guidance.context,
        "guidance_perturbation": s.guidance.perturbation,
        "simulated": sampler.model.simulated,
    }
