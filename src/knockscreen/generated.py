"""Generated cells as AnnData, with where they came from: for a look, or for data augmentation."""

from pathlib import Path

import numpy as np
import torch

from knockscreen.artifacts import atomic
from knockscreen.errors import UnknownNameError, suggest
from knockscreen.names import NTC, Evidence, is_decoy, parse_context
from knockscreen.nn.likelihood import nb_sample
from knockscreen.sampling import Sampler


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


def write_cells(path: Path, sampler: Sampler, pairs: list[tuple[str, str]], draws: int) -> None:
    """Write ``draws`` cells per (target, context) as h5ad: NB counts, latents in ``obsm["z"]``.

    Draw r of a context is the same noise and library size for every target, as in the screen.

    Raises
    ------
    UnknownNameError
        A target or a context that the model does not know.
    """
    import anndata as ad
    import pandas as pd  # type: ignore[import-untyped]
    import scipy.sparse as sp

    v = sampler.model.vocabulary
    counts, latents, rows = [], [], []
    for name, context in pairs:
        gene_id = resolve_target(sampler, name)
        v.context_codes(context)
        noise, library = sampler.noise(context, range(draws))
        names = [context] * draws
        target = sampler.target(gene_id)
        z = sampler.latents(target, names, noise)
        mu, theta = sampler.decode(z, library, target, names)
        generator = torch.Generator(device=sampler.device).manual_seed(sampler.settings.seed)
        counts.append(sp.csr_matrix(nb_sample(mu, theta, generator).cpu().numpy()))
        latents.append(z.flatten(1).cpu().numpy())
        seen = sampler.is_seen(gene_id)
        evidence = Evidence.PREDICTED_SEEN if seen else Evidence.PREDICTED_UNSEEN
        symbol = dict(zip((*v.gene_ids, *v.target_ids), (*v.genes, *v.targets), strict=True))
        for draw, size in enumerate(library.tolist()):
            about: dict[str, object] = {"target_gene": symbol[gene_id], "target_gene_id": gene_id}
            about |= {"evidence": str(evidence), "context": context, "is_control": gene_id == NTC}
            rows.append({**about, **parse_context(context), "draw": draw, "library_size": size})
    obs = pd.DataFrame(rows, index=[f"generated_{i}" for i in range(len(rows))])
    var = pd.DataFrame({"gene_symbol": list(v.genes)}, index=pd.Index(list(v.gene_ids)))
    cells = ad.AnnData(X=sp.vstack(counts, format="csr"), obs=obs, var=var)
    cells.obsm["z"] = np.concatenate(latents)
    cells.uns["knockscreen"] = {
        "generated": True,
        "unit": "counts",
        "seed": sampler.settings.seed,
        "solver": sampler.settings.solver,
        "steps": sampler.settings.steps,
        "simulated": sampler.model.simulated,
    }
    with atomic(path) as temporary:
        cells.write_h5ad(temporary, compression="gzip")
