"""Gene features: what is known of a gene whether or not it was knocked down.

Co-expression in control cells by default: the loading of each panel gene on the principal
components of log1p CP10k among training controls, centred within each context.
"""

import csv
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from knockscreen.data.cells import CellStore
from knockscreen.errors import DataError
from knockscreen.names import CP10K, Split


def coexpression(store: CellStore, dims: int) -> NDArray[np.float32]:
    """Return features (G, F <= dims) of the panel genes from control cells of the training split.

    Genes are standardised within context, so that contexts do not drive the components; a gene's
    features are its correlations with the leading components. A gene silent in controls gets NaN.
    """
    rows = store.rows(Split.TRAIN)
    rows = rows[store.is_control[rows]]
    context = store.context_index()
    genes = len(store.vocabulary.gene_ids)
    gram = np.zeros((genes, genes))
    total = 0
    for code in np.unique(context[rows]):
        mine = rows[context[rows] == code]
        if len(mine) < 3:
            continue
        sums, squares = np.zeros(genes), np.zeros((genes, genes))
        for piece, counts in store.chunks(mine):
            values = np.log1p(counts * (CP10K / store.library_size[piece][:, None])).astype(float)
            sums += values.sum(0)
            squares += values.T @ values
        mean = sums / len(mine)
        gram += squares - len(mine) * np.outer(mean, mean)
        total += len(mine)
    if total == 0:
        msg = f"{store.path} has no training control cells to learn gene features from."
        raise DataError(msg)
    scale = np.sqrt(np.diag(gram))
    silent = scale < 1e-9 * np.sqrt(total)
    scale[silent] = np.inf
    values_, vectors = np.linalg.eigh(gram / np.outer(scale, scale))
    keep = np.argsort(values_)[::-1][: min(dims, genes)]
    features = vectors[:, keep] * np.sqrt(np.maximum(values_[keep], 0))
    features *= np.sign(features.sum(0, keepdims=True) + 1e-300)
    features[silent] = np.nan
    return np.asarray(features, dtype=np.float32)


def scrambled(features: NDArray[np.float32], row: int, name: str) -> NDArray[np.float32]:
    """Return the features (F,) of a decoy: those of a gene, each on a random side of the mean.

    What is left is how far a gene is from the average gene; which genes it is like is lost. The
    sides are a function of ``name`` alone.
    """
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    rng = np.random.default_rng(seed)
    mean = np.nanmean(features, axis=0)
    side = rng.choice(np.array([-1, 1], dtype=np.float32), features.shape[1])
    return np.asarray(mean + side * (features[row] - mean), dtype=np.float32)


def _read_rows(path: Path) -> list[list[str]]:
    if not path.is_file():
        msg = f"gene feature table {path} does not exist (effect.features)."
        raise DataError(msg)
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            sample = handle.readline()
            handle.seek(0)
            return list(csv.reader(handle, delimiter="\t" if "\t" in sample else ","))
    except (UnicodeDecodeError, csv.Error) as error:
        msg = (
            f"gene feature table {path} is not a text table ({error}); "
            "write it as tab- or comma-separated text: gene, v1, v2, ..."
        )
        raise DataError(msg) from None


def read_table(
    path: Path | str, gene_ids: tuple[str, ...], genes: tuple[str, ...]
) -> NDArray[np.float32]:
    """Return standardised features (N, F) of genes from a user's table: symbol or id, then numbers.

    Raises
    ------
    DataError
        The table is missing, has duplicate genes (also one by symbol and one by id), NaN, no
        numbers, or none of the panel's genes.
    """
    path = Path(path)
    rows = _read_rows(path)
    width = len(rows[0]) - 1 if rows else 0
    if width < 1 or len(rows) < 2:
        msg = (
            f"gene feature table {path} needs a header, a gene column "
            "and at least one number per gene."
        )
        raise DataError(msg)
    table: dict[str, list[float]] = {}
    for line, row in enumerate(rows[1:], start=2):
        try:
            values = [float(v) for v in row[1:]]
        except ValueError:
            values = []
        if len(values) != width or not np.isfinite(values).all():
            msg = (
                f"gene feature table {path}, line {line} ('{''.join(row[:1])}'): "
                f"expected {width} finite numbers, found {', '.join(row[1:5]) or 'none'}; "
                "fill them in, or leave the gene out."
            )
            raise DataError(msg)
        if row[0] in table:
            msg = (
                f"gene feature table {path} has '{row[0]}' twice (line {line}); "
                "keep one row per gene."
            )
            raise DataError(msg)
        table[row[0]] = values
    out = np.full((len(gene_ids), width), np.nan, dtype=np.float32)
    for i, (gene_id, gene) in enumerate(zip(gene_ids, genes, strict=True)):
        if gene_id != gene and gene_id in table and gene in table:
            msg = (
                f"gene feature table {path} has {gene} twice, as '{gene}' and as '{gene_id}'; "
                "keep one row per gene."
            )
            raise DataError(msg)
        found = table.get(gene_id, table.get(gene))
        if found is not None:
            out[i] = found
    if np.isnan(out).all():
        raise DataError(_foreign(path, list(table), gene_ids, genes))
    mean, sd = np.nanmean(out, 0), np.nanstd(out, 0)
    return np.asarray((out - mean) / np.where(sd > 0, sd, 1), dtype=np.float32)


def _foreign(
    path: Path, names: list[str], gene_ids: tuple[str, ...], genes: tuple[str, ...]
) -> str:
    """Return the sentence for a table without a gene of the panel, and what may be the matter."""
    known = {*genes, *gene_ids}
    upper = {name.upper() for name in known}
    if any(name.split(".")[0] in known for name in names):
        cure = "take the version off the ids"
    elif any(name.upper() in upper for name in names):
        cure = "write the symbols in the same case"
    elif all(name.isdecimal() for name in names):
        cure = "turn the numbers (Entrez ids?) into symbols or Ensembl ids"
    else:
        cure = "give symbols or Ensembl ids of the same species"
    return (
        f"gene feature table {path} has none of the {len(genes)} panel genes: its first is "
        f"'{names[0]}', the panel's are like '{genes[0]}' or '{gene_ids[0]}'; {cure}."
    )
