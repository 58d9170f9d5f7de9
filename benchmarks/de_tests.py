"""Really DE genes of a finished run by Welch's t and by rank sums, and what it does to the metrics.

    python benchmarks/de_tests.py results/demo [config/scenarios/thp1.yaml]

For every split, all contexts together: how many genes each test calls and how many both do; how
many remain when the test cells of a context, controls among them, change labels at random; and the
model's metrics that rest on the calls.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from knockscreen.config import Config, read_config
from knockscreen.names import SPLITS, Split
from knockscreen.score.candidates import read_candidates
from knockscreen.score.cases import Case, make_case
from knockscreen.score.evaluate import MODEL, aggregate, judge
from knockscreen.score.holdout import SCREENED, SPLIT_OF, Holdout, read_holdout
from knockscreen.score.predicted import read_predicted
from knockscreen.score.programs import load_programs

TESTS = ("welch", "rank_sum")
SHUFFLES = 20
METRICS = ("de_overlap_at_n", "de_precision", "de_recall", "de_auprc", "direction_match")


def shuffled(store: Path, folder: Path, rng: np.random.Generator) -> Path:
    """Copy a store with the targets of its test cells, controls too, dealt anew in each context."""
    copy = folder / "store"
    shutil.copytree(store, copy)
    target, split = np.load(store / "target.npy"), np.load(store / "split.npy")
    contexts = np.load(store / "contexts.npy")
    _, context = np.unique(contexts, axis=0, return_inverse=True)
    for c in np.unique(context):
        rows = np.flatnonzero((split == SPLITS.index(Split.TEST)) & (context.reshape(-1) == c))
        target[rows] = target[rng.permutation(rows)]
    np.save(copy / "target.npy", target)
    return copy


def read(store: Path, seed: int) -> list[Holdout]:
    return [read_holdout(store, seed=seed, ranks=test == "rank_sum") for test in TESTS]


def called_by_chance(store: Path, config: Config) -> None:
    """Print how many targets have a DE gene where nothing but chance differs."""
    found, of = np.zeros((len(TESTS), 2), dtype=int), 0
    for k in range(SHUFFLES):
        with tempfile.TemporaryDirectory() as folder:
            null = read(shuffled(store, Path(folder), np.random.default_rng(k)), config.seed)
            pair = cases(null, SCREENED, config)
        found += [(case.is_de.sum(), case.is_de.any(axis=1).sum()) for case in pair]
        of += len(pair[0].targets)
    for test, (genes, some) in zip(TESTS, found, strict=True):
        print(f"shuffled {SHUFFLES} times, {test}: {genes} genes of {some} of {of} targets")


def cases(held: list[Holdout], split: str, config: Config) -> list[Case]:
    members = range(len(held[0].contexts))
    return [make_case(h, split, "all", members, settings=config.evaluate) for h in held]


def main() -> None:
    run, overlays = Path(sys.argv[1]), sys.argv[2:]
    config = read_config("config/config.yaml", *overlays)
    held = read(run / "store", config.seed)
    programs = load_programs(config.programs, run / "store")
    listed = read_candidates(run / "screen/candidates.parquet")
    everyone = np.arange(1, len(held[0].target_gene_ids))
    predicted = read_predicted(run / "screen/shards", listed, held[0], everyone)
    for split in (name for name in SPLIT_OF if held[0].evaluated(name).any()):
        pair = cases(held, split, config)
        welch, ranks = (case.is_de for case in pair)
        print(f"{split}: {len(welch)} targets; both call {(welch & ranks).sum()} genes")
        for test, case in zip(TESTS, pair, strict=True):
            error = predicted.pooled_error(case)
            found = judge(case, MODEL, case.pool(predicted.delta), programs, simulation=error)
            means = [f"{name} {aggregate(found.values[name]):.3f}" for name in METRICS]
            some = case.is_de.any(axis=1).sum()
            print(f"  {test}: {case.is_de.sum()} genes of {some} targets; {', '.join(means)}")
    called_by_chance(run / "store", config)


if __name__ == "__main__":
    main()
