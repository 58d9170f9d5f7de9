"""The model's answer for the evaluated targets, gathered from the shards of a screen.

T targets of the store, C separate contexts, G panel genes.
"""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen.errors import DataError
from knockscreen.score.cases import Case
from knockscreen.score.holdout import Holdout

Array = NDArray[np.floating]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Predicted:
    """Generated knock-downs: paired difference to control in log1p CP10k."""

    delta: Array  # (T, C, G); NaN where not generated
    error: Array  # (T, C, G) squared Monte-Carlo error of delta

    def pooled_error(self, case: Case) -> Floats:
        """Return the squared Monte-Carlo error (P, G) of the case's pooled delta."""
        chosen = self.error[case.targets[:, None], case.members]
        squared = case.weights[:, :, None] ** 2
        return np.asarray(np.sum(np.where(squared > 0, chosen, 0) * squared, axis=1, dtype=float))


def read_predicted(
    shards: Path, candidates: pl.DataFrame, held: Holdout, evaluated: Ints
) -> Predicted:
    """Read the predictions of the evaluated targets; a context that was not generated stays NaN.

    Raises
    ------
    DataError
        A shard is missing or broken, is of another panel, or no evaluated target was generated.
    """
    names = {held.target_gene_ids[code]: int(code) for code in evaluated}
    screened = candidates.filter(
        pl.col("target_gene_id").is_in(list(names)), pl.col("status") == "screened"
    )
    if screened.is_empty():
        msg = (
            "no target with held-out cells was generated, so the model cannot be evaluated; set"
            " screen.candidates to all or measured."
        )
        raise DataError(msg)
    shape = (len(held.target_gene_ids), len(held.contexts), len(held.gene_ids))
    delta, error = (np.full(shape, np.nan, dtype=np.float32) for _ in range(2))
    for (shard,), rows in screened.group_by("shard", maintain_order=True):
        path = shards / f"{shard}.npz"
        meta, number, mean, squared = _read(path)
        if tuple(meta["gene_ids"]) != held.gene_ids:
            msg = f"{path} is of another panel than the store; run generate again."
            raise DataError(msg)
        position = {int(k): i for i, k in enumerate(number)}
        columns = [held.contexts.index(c) for c in meta["contexts"] if c in held.contexts]
        there = [i for i, c in enumerate(meta["contexts"]) if c in held.contexts]
        for candidate, gene_id in rows.select("candidate", "target_gene_id").iter_rows():
            if candidate not in position:
                msg = (
                    f"{path} lacks candidate {candidate} ({gene_id}); run plan and generate again."
                )
                raise DataError(msg)
            at = position[candidate]
            delta[names[gene_id], columns] = mean[at, there]
            error[names[gene_id], columns] = squared[at, there]
    return Predicted(delta, error)


def _read(path: Path) -> tuple[dict[str, Any], Ints, Array, Array]:
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            meta = json.loads(str(file["meta"][()]))
            squared = file["delta_var"] / file["n_draws"].astype(np.float32)[:, None, None]
            return meta, file["candidate"], file["delta_mean"], squared
    except FileNotFoundError:
        msg = f"{path} does not exist; run generate for this shard first."
        raise DataError(msg) from None
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        msg = f"{path} is not a whole shard file ({error}); run generate again."
        raise DataError(msg) from error
