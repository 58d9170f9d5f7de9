"""The genes the model sees: highly variable ones, those of the programs, and the targets.

B batches, G genes. Variability follows Seurat's first flavour as scanpy does it: dispersion
(variance over mean of CP10k) on a log scale, standardised among genes of like mean, in each batch;
genes chosen in most batches go first. The sums are streamed, so cells are never held together.
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from knockscreen.compiled import compiled
from knockscreen.config import PanelConfig, ProgramsConfig
from knockscreen.data.count_loops import scaled_sums
from knockscreen.data.vocab import Genes
from knockscreen.errors import ConfigError, UnknownNameError, suggest

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]
N_BINS = 20


@dataclass
class GeneSums:
    """Streamed sums over training cells by batch and gene, and what else is known of kept cells.

    ``n`` (B,) cells; ``x`` and ``xx`` (B, G) sums of CP10k and its square; ``seen`` (B, G) cells
    with a count; ``seen_other`` (G,) the same over other kept cells; ``highest`` the largest count.
    """

    n: Floats
    x: Floats
    xx: Floats
    seen: Floats
    seen_other: NDArray[np.int64]
    highest: int = 0

    @classmethod
    def zeros(cls, batches: int, genes: int) -> "GeneSums":
        """Return empty sums; the three of a gene lie side by side, where one look finds all."""
        x, xx, seen = np.moveaxis(np.zeros((batches, genes, 3)), -1, 0)
        return cls(np.zeros(batches), x, xx, seen, np.zeros(genes, dtype=np.int64))

    def add(
        self,
        counts: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
        kept: NDArray[np.bool_],
        batch: NDArray[np.int64],
        library: Floats,
    ) -> None:
        """Add the ``kept`` cells (n,) of CSR ``counts``: data, indices, row pointers.

        ``batch`` (n,) is that of a training cell, -1 for other cells.
        """
        loop, sums = compiled(scaled_sums), (self.x, self.xx, self.seen)
        highest = loop(counts, (kept, batch, library), sums, self.seen_other)
        self.highest = max(self.highest, int(highest))

    @property
    def seen_all(self) -> NDArray[np.int64]:
        """Kept cells with a count, of each gene, shape (G,)."""
        return np.asarray(self.seen_other + self.seen.sum(axis=0).astype(np.int64))


@dataclass(frozen=True)
class Variability:
    """Per gene (G,): log1p of mean CP10k, standardised dispersion, rank (0 = most variable)."""

    mean: Floats
    dispersion: Floats
    rank: NDArray[np.int64]


def variability(sums: GeneSums, n_top: int, eligible: NDArray[np.bool_]) -> Variability:
    """Rank genes by variability.

    Parameters
    ----------
    sums
        Sums over training cells by batch.
    n_top
        Genes to be chosen; a batch votes for its ``n_top`` most variable ones.
    eligible
        Genes that may be chosen, shape (G,); the others are described, not ranked before them.
    """
    means, normed, votes = [], [], np.zeros(len(eligible))
    batches = np.flatnonzero(sums.n > 1)
    for b in batches:
        # As in scanpy: several batches leave out the genes that one does not express, one does not.
        among = sums.seen[b] > 0 if len(batches) > 1 else np.ones(len(eligible), dtype=bool)
        mean, dispersion = _one_batch(sums.n[b], sums.x[b], sums.xx[b], among)
        means.append(mean)
        normed.append(dispersion)
        votes += _votes(dispersion, n_top)
    if not normed:
        nothing = np.full(len(eligible), np.nan)
        return Variability(nothing, nothing, np.arange(len(eligible)))
    mean, dispersion = np.mean(means, axis=0), _mean_known(np.array(normed))
    order = np.lexsort((-np.nan_to_num(dispersion, nan=-np.inf), -votes, ~eligible))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return Variability(mean, dispersion, rank)


def _one_batch(n: float, x: Floats, xx: Floats, among: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return log1p mean and standardised log dispersion (G,); 0 outside ``among``."""
    mean = x / n
    var = np.maximum(xx / n - mean**2, 0) * n / (n - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        dispersion = np.log(np.where(var > 0, var / mean, np.nan))
    log_mean = np.log1p(mean)
    normed = np.zeros(len(x))
    normed[among] = _standardise(dispersion[among], log_mean[among])
    return log_mean, normed


def _standardise(dispersion: Floats, mean: Floats) -> Floats:
    """Standardise within 20 equal bins of the mean; one alone in its bin gets 1."""
    if not len(mean):
        return dispersion
    low, high = mean.min(), mean.max()
    if low == high:
        low, high = low - 0.001 * abs(low), high + 0.001 * abs(high)
    edges = np.linspace(low, high, N_BINS + 1)
    group = np.clip(np.searchsorted(edges, mean, side="left") - 1, 0, N_BINS - 1)
    known = np.isfinite(dispersion)
    n = np.bincount(group[known], minlength=N_BINS).astype(float)
    total = np.bincount(group[known], weights=dispersion[known], minlength=N_BINS)
    with np.errstate(divide="ignore", invalid="ignore"):
        average = total / n
        square = (dispersion[known] - average[group[known]]) ** 2
        spread = np.sqrt(np.bincount(group[known], weights=square, minlength=N_BINS) / (n - 1))
    alone = n == 1
    spread[alone], average[alone] = average[alone], 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((dispersion - average[group]) / spread[group])


def _votes(dispersion: Floats, n_top: int) -> Floats:
    known = np.sort(dispersion[~np.isnan(dispersion)])[::-1]
    if not len(known) or n_top < 1:
        return np.zeros(len(dispersion))
    cut = known[min(n_top, len(known)) - 1]
    chosen: Floats = (np.nan_to_num(dispersion, nan=-np.inf) >= cut).astype(float)
    return chosen


def _mean_known(values: Floats) -> Floats:
    """Return the mean over batches of what is known; NaN where nothing is."""
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(axis=0)
    n = known.sum(axis=0)
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


def choose_panel(
    genes: Genes,
    sums: GeneSums,
    settings: PanelConfig,
    program_genes: set[str],
    target_ids: set[str],
) -> pl.DataFrame:
    """Return every input gene with whether, and why, it is on the panel.

    Returns
    -------
    polars.DataFrame
        gene_id, gene, in_panel, is_hvg, is_program, is_target, n_cells (kept cells with a count),
        mean (log1p of the mean CP10k of training cells, batches averaged), dispersion
        (standardised, batches averaged), in the order of the input.
    """
    is_program = np.array([g in program_genes for g in genes.genes], dtype=bool)
    is_target = np.array([g in target_ids for g in genes.gene_ids], dtype=bool)
    eligible = ~genes.is_mitochondrial & (sums.seen.sum(axis=0) >= max(settings.min_cells, 1))
    found = variability(sums, settings.genes, eligible)
    is_hvg = eligible & (found.rank < settings.genes)
    in_panel = is_hvg | (is_program & settings.programs) | (is_target & settings.targets)
    if settings.genes == 0:
        in_panel[:] = True
    if not in_panel.any():
        msg = (
            f"no gene is on the panel: none is seen in panel.min_cells = {settings.min_cells} "
            "training "
            "cells; lower it, or set panel.genes to 0 for every gene of the input."
        )
        raise ConfigError(msg)
    log.info(
        "panel: %d of %d genes (%d highly variable, %d of programs, %d targets)",
        *(int(x.sum()) for x in (in_panel,)),
        len(genes),
        *(int(x.sum()) for x in (is_hvg, is_program, is_target)),
    )
    return pl.DataFrame(
        {
            "gene_id": genes.gene_ids,
            "gene": genes.genes,
            "in_panel": in_panel,
            "is_hvg": is_hvg,
            "is_program": is_program,
            "is_target": is_target,
            "n_cells": sums.seen_all,
            "mean": found.mean,
            "dispersion": found.dispersion,
        }
    ).with_columns(pl.col("mean", "dispersion").fill_nan(None))


def select_programs(programs: pl.DataFrame, settings: ProgramsConfig) -> pl.DataFrame:
    """Return the rows (program, gene, ...) of the programs that ``programs.names`` asks for.

    Raises
    ------
    UnknownNameError
        A name is not in the table; the sentence names the nearest.
    """
    known = programs["program"].unique(maintain_order=True).to_list()
    for name in settings.names:
        if name not in known:
            msg = f"unknown program '{name}' in programs.names{suggest(name, known)}."
            raise UnknownNameError(msg)
    return programs.filter(pl.col("program").is_in(settings.names or known))


def check_programs(programs: pl.DataFrame, panel: pl.DataFrame, settings: ProgramsConfig) -> None:
    """Report the programs with too few genes on the panel.

    Raises
    ------
    ConfigError
        Not one program has a gene on the panel.
    """
    on_panel = [*panel.filter("in_panel")["gene"], *panel.filter("in_panel")["gene_id"]]
    counted = programs.group_by("program", maintain_order=True).agg(
        pl.len().alias("n"), pl.col("gene").is_in(on_panel).sum().alias("matched")
    )
    if not counted["matched"].sum():
        listed = ", ".join(f"{p} 0 of {n}" for p, n, _ in counted.head(5).iter_rows())
        msg = (
            f"no program of {settings.file} has a gene on the panel of "
            f"{int(panel['in_panel'].sum())} "
            f"genes ({listed}); check that its genes are symbols of the input."
        )
        raise ConfigError(msg)
    for program, n, matched in counted.iter_rows():
        if matched < max(settings.min_genes, 1):
            log.info(
                "program %s is left out: %d of its %d genes are on the panel, fewer than "
                "programs.min_genes = %d",
                program,
                matched,
                n,
                settings.min_genes,
            )
