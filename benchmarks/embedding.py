"""Cell types read off the embedding: macro-F1 of a linear probe on donors never seen, beside PCA.

    python benchmarks/embedding.py                              # five splits, the settings kept
    python benchmarks/embedding.py --inner --steps 500          # tuning: within training donors

For each split one donor of the real PBMC (Kang 2018) is left out. Panel, VAE and PCA are made from
the other four alone; a logistic regression is trained on their cells and tested on the donor left
out. ``--inner`` leaves the first donor out altogether and tests on the second, which is what
settings may be chosen by. KNOCKSCREEN_DATA names the folder that holds counts/.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import yaml
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from knockscreen.cli_embed import _data
from knockscreen.config import expand_path, merge, read_stage
from knockscreen.data.cells import CellStore
from knockscreen.data.counts import CountsFile
from knockscreen.data.h5ad import open_h5ad
from knockscreen.data.normalize import NormalizeStage, run_normalize
from knockscreen.data.qc import QcStage, run_qc
from knockscreen.embedding import GeneMatch, embed_chunks, embed_counts, match_genes
from knockscreen.models.vae import VAE_SIZES, TransformerVAE, VaeSettings
from knockscreen.score.program_files import read_programs
from knockscreen.training.loop import TrainingSettings
from knockscreen.training.vae import VaeTraining, fit_vae, library_sizes

ROOT = Path(__file__).parents[1]
FILE = Path(expand_path("${KNOCKSCREEN_DATA}/counts/pbmc_cd4_kang2018_ctrl_5donors.h5ad"))
PBMC3K = FILE.with_name("pbmc3k_10x_raw.h5ad")
SAME_TYPES = {
    "Naive CD4 T": "CD4 T cells",
    "Memory CD4 T": "CD4 T cells",
    "CD14+ Mono": "CD14+ Monocytes",
    "B": "B cells",
    "NK": "NK cells",
}
"""Types of the second file that the first has too."""


def settings(options: argparse.Namespace, donors: list[str]) -> dict:
    """Return the PBMC scenario's settings with the training donors and the options laid over."""
    base = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    scenario = yaml.safe_load((ROOT / "config/scenarios/pbmc.yaml").read_text())
    ours = {"data": {"where": {"donor": donors}}, "panel": {"genes": options.genes}}
    if options.genes == 0:
        ours["panel"] |= {"programs": False}
    merged = merge(merge(base, scenario), ours)
    merged["programs"]["file"] = str(ROOT / merged["programs"]["file"])
    return merged


def make_store(config: dict, folder: Path) -> CellStore:
    """Run QC and normalisation on the training donors."""
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(config))
    run_qc([FILE], read_stage(QcStage, str(path)), folder / "qc")
    stage = read_stage(NormalizeStage, str(path))
    programs = read_programs(stage.programs.file)
    run_normalize([FILE], folder / "qc", stage, folder / "store", programs=programs)
    return CellStore.open(folder / "store")


def train(store: CellStore, config: dict, options: argparse.Namespace) -> TransformerVAE:
    """Train a VAE as ``train-vae`` does, without a linear effect."""
    vae = config["vae"]
    training = {k: v for k, v in vae["training"].items() if k != "workers"}
    training |= {"steps": options.steps, "validate_every": max(50, options.steps // 10)}
    training |= {"learning_rate": options.learning_rate, "ema_decay": options.ema}
    training |= {"batch_size": options.batch_size}
    network = VaeSettings(
        VAE_SIZES[options.size], vae["input"], vae["dispersion"], vae["library"],
        linear=options.linear,
    )  # fmt: skip
    cells = library_sizes(store, network.library)
    trained_as = VaeTraining(0.0, options.thinning)
    began = time.monotonic()
    model, progress = fit_vae(
        cells, network, TrainingSettings(**training), seed=options.seed, vae_training=trained_as
    )
    print(f"# {progress.best:.5g} at {progress.best_step}, {time.monotonic() - began:.0f} s")
    return model


def embed(
    model: TransformerVAE, store: CellStore, path: Path, *, zeros: bool = False, hidden: float = 0.0
) -> np.ndarray:
    """Return the latents (N, L D) of every cell of a file, as ``knockscreen embed`` writes them.

    ``hidden`` is the share of the panel taken away as if the file lacked it; ``zeros`` shows the
    genes that it lacks as zero counts instead of leaving them out.
    """
    size = len(store.vocabulary.gene_ids)
    keep = np.random.default_rng(7).random(size) >= hidden
    with open_h5ad(path) as handle:
        file = CountsFile(path, handle, _data(path, None, None, None))
        match = match_genes(file.genes, store.vocabulary, file=path, vae=Path("vae"))
        there = keep[match.panel]
        match = GeneMatch(match.columns[there], match.panel[there], match.by_id)
        if not zeros:
            return np.concatenate([z for _, z, _ in embed_chunks(model, file, match)])
        parts = []
        for chunk in file.chunks(512):
            whole = np.zeros((chunk.counts.shape[0], size))
            whole[:, match.panel] = chunk.counts[:, match.columns].toarray()
            parts.append(embed_counts(model, whole, np.arange(size)))
        return np.concatenate(parts)


def fitted(z: np.ndarray, types: np.ndarray, donors: np.ndarray) -> Any:
    """Return the linear probe, its strength chosen by leaving out each training donor in turn."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    grid = {"logisticregression__C": [0.001, 0.01, 0.1, 1.0]}
    search = GridSearchCV(probe, grid, scoring="f1_macro", cv=LeaveOneGroupOut())
    return search.fit(z, types, groups=donors)


def macro_f1(probe: Any, z: np.ndarray, types: np.ndarray) -> float:
    """Return the macro-F1 of a fitted probe."""
    return float(f1_score(types, probe.predict(z), average="macro"))


def log1p(cells: ad.AnnData) -> np.ndarray:
    """Return log1p CP10k (N, G) by the library size over all genes."""
    size = cells.obs["n_counts_total"].to_numpy()[:, None]
    return np.log1p(cells.X.toarray() * (1e4 / size)).astype(np.float32)


def judge(left_out: str, training: list[str], options: argparse.Namespace) -> dict[str, float]:
    """Return the macro-F1 of each representation on the donor left out, and on the second file."""
    cells, second = ad.read_h5ad(FILE), ad.read_h5ad(PBMC3K)
    types = cells.obs["cell_type"].astype(str).to_numpy()
    donor = cells.obs["donor"].astype(str).to_numpy()
    fit, test = np.isin(donor, training), donor == left_out
    with tempfile.TemporaryDirectory() as folder:
        config = settings(options, training)
        store = make_store(config, Path(folder))
        model = train(store, config, options)
    z = embed(model, store, FILE)
    probe = fitted(z[fit], types[fit], donor[fit])
    found = {"knockscreen": macro_f1(probe, z[test], types[test])}
    x = log1p(cells)
    panel = cells.var["ensembl_id"].isin(store.vocabulary.gene_ids).to_numpy()
    for name, table in (("pca_panel", x[:, panel]), ("pca_all", x)):
        pca = PCA(z.shape[1], svd_solver="randomized", random_state=0).fit(table[fit])
        y = pca.transform(table)
        linear = fitted(y[fit], types[fit], donor[fit])
        found[name] = macro_f1(linear, y[test], types[test])
    for name, zeros in (("half_left_out", False), ("half_zeros", True)):
        z = embed(model, store, FILE, zeros=zeros, hidden=0.5)
        found[name] = macro_f1(probe, z[test], types[test])
    other = second.obs["cell_type"].map(SAME_TYPES).astype(object).fillna("").to_numpy()
    known = other != ""
    for name, zeros in (("pbmc3k_left_out", False), ("pbmc3k_zeros", True)):
        z = embed(model, store, PBMC3K, zeros=zeros)
        found[name] = macro_f1(probe, z[known], other[known])
    found["pbmc3k_pca"] = second_by_pca(x[fit], cells, second[known], z.shape[1], types[fit])
    return found


def second_by_pca(
    x: np.ndarray, cells: ad.AnnData, second: ad.AnnData, dims: int, types: np.ndarray
) -> float:
    """Return the macro-F1 on the second file of a PCA over all genes that both files have."""
    shared = [g for g in cells.var_names if g in set(second.var_names)]
    here, there = (a.var_names.get_indexer(shared) for a in (cells, second))
    pca = PCA(dims, svd_solver="randomized", random_state=0).fit(x[:, here])
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    probe.fit(pca.transform(x[:, here]), types)
    labels = second.obs["cell_type"].map(SAME_TYPES).astype(str).to_numpy()
    return macro_f1(probe, pca.transform(log1p(second)[:, there]), labels)


def main() -> None:
    """Print one line per split, and their mean."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="tiny", choices=list(VAE_SIZES))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--linear", type=int, default=32, help="components of the linear part")
    parser.add_argument("--thinning", type=float, default=0.0)
    parser.add_argument("--learning-rate", type=float, default=0.004)
    parser.add_argument("--ema", type=float, default=0.995)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inner", action="store_true")
    options = parser.parse_args()
    donors = sorted(ad.read_h5ad(FILE, backed="r").obs["donor"].astype(str).unique())
    splits = [(d, [e for e in donors if e != d]) for d in donors]
    if options.inner:
        splits = [(donors[1], donors[2:])]
    rows = []
    for left_out, training in splits:
        found = judge(left_out, training, options)
        if not rows:
            print("donor", *found)
        rows.append(list(found.values()))
        print(left_out, *(f"{value:.4f}" for value in found.values()), flush=True)
    print("mean", *(f"{value:.4f}" for value in np.mean(rows, 0)))


if __name__ == "__main__":
    main()
