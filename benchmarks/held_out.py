"""THP-1 knock-outs held out one at a time: what is an unseen target's prediction worth?

python benchmarks/held_out.py run [TARGET ...]
python benchmarks/held_out.py show

Most targets are not among the 303 genes of the file, so co-expression there cannot describe them.
Gene features come from other cells instead: the principal components of 2,700 PBMC (10x Genomics),
cell types centred, written as a table of the kind that effect.features takes. Training is short,
as the mean effect of an unseen target does not come from the networks. Runs are
results/without-TARGET.
"""

import os
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import polars as pl
import yaml

from knockscreen.config import EvaluateConfig, read_config
from knockscreen.score.baselines import Training, baselines, read_features
from knockscreen.score.candidates import read_candidates
from knockscreen.score.cases import make_case
from knockscreen.score.evaluate import MODEL, judge
from knockscreen.score.holdout import read_holdout
from knockscreen.score.predicted import read_predicted
from knockscreen.score.programs import load_programs
from knockscreen.score.statistics import spearman

TARGETS = ("IFNGR1", "IFNGR2", "JAK2", "STAT1", "IRF1", "SMAD4", "STAT2", "STAT3")
DATA = Path(os.environ.get("KNOCKSCREEN_DATA", "../shared/data"))
TABLE = Path("results/pbmc-features.tsv")
METRICS = ("pearson_delta", "pearson_delta_perturbed_mean", "discrimination_score_l1",
           "centroid_accuracy", "de_auprc")  # fmt: skip
SHORT = {"steps": 150, "validate_every": 50, "ema_decay": 0.95}


def write_table(path: Path, components: int = 50) -> None:
    """Write the loadings of every gene on the components of PBMC, cell types centred."""
    cells = ad.read_h5ad(DATA / "counts/pbmc3k_10x_raw.h5ad")
    counts = cells.X.toarray()
    values = np.log1p(counts * (1e4 / counts.sum(axis=1, keepdims=True)))
    kind = cells.obs["cell_type"].astype(str).to_numpy()
    for name in np.unique(kind):
        values[kind == name] -= values[kind == name].mean(axis=0)
    spread = values.std(axis=0)
    values = values[:, spread > 1e-6] / spread[spread > 1e-6]
    _, axes = np.linalg.eigh(values @ values.T)
    loadings = values.T @ axes[:, ::-1][:, :components] / np.sqrt(len(values))
    genes = cells.var["gene_symbol"].astype(str).to_numpy()[spread > 1e-6]
    frame = pl.DataFrame(loadings, schema=[f"pc{k}" for k in range(components)])
    frame = frame.insert_column(0, pl.Series("gene", genes)).unique("gene", keep="none")
    frame.sort("gene").write_csv(path, separator="\t", float_precision=5)


def run(targets: tuple[str, ...]) -> None:
    TABLE.parent.mkdir(exist_ok=True)
    if not TABLE.exists():
        write_table(TABLE)
    for target in targets:
        values = {
            "run": f"without-{target}",
            "splits": {"held_out_targets": [target]},
            "effect": {"features": str(TABLE)},
            "vae": {"training": SHORT},
            "flow": {"training": SHORT},
            "screen": {"draws": 64},
        }
        path = Path(f"results/without-{target}.yaml")
        path.write_text(yaml.safe_dump(values))
        goal = f"results/without-{target}/evaluate/metrics.parquet"
        given = ["--configfile", "config/scenarios/thp1.yaml", str(path)]
        subprocess.run(["snakemake", "-c1", "--quiet", "all", "--nolock", goal, *given], check=True)


def answers(run: Path) -> dict[str, object]:
    """Return every method's answer for the target that the run held out."""
    config = read_config("config/config.yaml", "config/scenarios/thp1.yaml", f"{run}.yaml")
    held = read_holdout(run / "store", seed=config.seed)
    settings: EvaluateConfig = config.evaluate
    case = make_case(held, "held_out_target", held.contexts[0], [0], settings=settings)
    programs = load_programs(config.programs, run / "store")
    listed = read_candidates(run / "screen/candidates.parquet")
    predicted = read_predicted(run / "screen/shards", listed, held, case.targets)
    training = Training.of(held, read_features(run / "effect/effect.safetensors", held))
    methods = {
        MODEL: lambda: predicted.delta,
        **baselines(training, neighbours=settings.neighbours, components=settings.components),
    }
    return {
        name: judge(case, name, case.pool(make()), programs)
        for name, make in methods.items()
        if name not in ("measured_training", "low_rank", "other_context", "additive")
    }


def show() -> None:
    runs = sorted(p.with_suffix("") for p in Path("results").glob("without-*.yaml"))
    found = {run.name.removeprefix("without-"): answers(run) for run in runs}
    names = list(next(iter(found.values())))
    rng = np.random.default_rng(0)
    print(f"{len(found)} targets: {', '.join(found)}")
    print(f"{'metric':32s}" + "".join(f"{name:>26s}" for name in names))
    for metric in METRICS:
        values = {n: np.array([a[n].values[metric][0] for a in found.values()]) for n in names}
        line = f"{metric:32s}"
        for name in names:
            difference = values[MODEL] - values[name]
            draws = difference[rng.integers(0, len(found), (1000, len(found)))].mean(axis=1)
            low, high = np.quantile(draws, [0.025, 0.975])
            text = "" if name == MODEL else f" ({low:+.2f}, {high:+.2f})"
            line += f"{values[name].mean():.3f}{text}".rjust(26)
        print(line)
    real = [a[MODEL].real_scores[0, 0] for a in found.values()]
    for name in names:
        made = [a[name].scores[0, 0] for a in found.values()]
        print(f"interferon score, {name:20s} Spearman {spearman(made, real):6.2f}", end="  ")
        print(" ".join(f"{t} {m:+.2f}" for t, m in zip(found, made, strict=True)))
    print("measured:", " ".join(f"{t} {r:+.2f}" for t, r in zip(found, real, strict=True)))


if __name__ == "__main__":
    run(tuple(sys.argv[2:]) or TARGETS) if sys.argv[1:2] == ["run"] else show()
