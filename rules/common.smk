# Functions only: what the rules share. Rules are in the other files of this folder.
import re
from pathlib import Path

from knockscreen import stages
from knockscreen.config import Config, expand_path
from knockscreen.config import validate as check
from knockscreen.errors import ScreenError
from snakemake.exceptions import WorkflowError
from snakemake.utils import validate


wildcard_constraints:
    run=r"[A-Za-z0-9][A-Za-z0-9_.-]*",
    shard=r"\d+",
    model=r"(replicates/\d+/)?",  # empty: the first model; its replicates have a folder each


FIGURES = [
    *["qc", "loss", "cells", "volcano", "ranking", "heatmap", "measured"],
    *["calibration", "evaluation", "targets"],
]


def check_config():
    """Refuse a configuration with an unknown or missing key, in one sentence that names the nearest."""
    try:
        check(Config, config, where="the configuration")
    except ScreenError as error:
        raise WorkflowError(str(error)) from None
    validate(config, schema="../workflow/schemas/config.schema.json", set_default=False)


check_config()


def settings(stage):
    """The sections of the configuration that a stage reads, as JSON: a rule reruns when they change.

    A function of the wildcards: a replicate has a seed of its own. (And Snakemake would take ${NAME}
    in a plain string for a wildcard.)
    """

    def of_model(wildcards):
        number = re.search(r"\d+", getattr(wildcards, "model", ""))
        later = int(number.group()) - 1 if number else 0
        return stages.settings(stage, {**config, "seed": config["seed"] + later})

    return of_model


def code(stage):
    """Digest of a stage's sources, or its version: a rule reruns when it changes."""
    return stages.code_digest(stage)


def existing(path, key):
    """A file that the configuration names, with ${KNOCKSCREEN_DATA} and other variables filled in."""
    expanded = expand_path(path)
    if not Path(expanded).is_file():
        raise WorkflowError(
            f"{key} names '{path}', and {expanded} does not exist; correct it in the configuration,"
            " or set KNOCKSCREEN_DATA to the folder that holds the data."
        )
    return expanded


def counts(wildcards):
    """The h5ad files to screen: the simulated ones, or those of the configuration."""
    if config["simulate"]["enabled"]:
        return expand(
            "results/{run}/input/{donor}_{time}.assigned_guide.h5ad",
            run=wildcards.run,
            donor=config["simulate"]["donors"],
            time=config["simulate"]["times"],
        )
    if not config["data"]["files"]:
        raise WorkflowError(
            "data.files is empty and simulate.enabled is false, so there is nothing to screen;"
            " name h5ad files under data.files, or set simulate.enabled to true."
        )
    return [existing(path, "data.files") for path in config["data"]["files"]]


def input_flags(wildcards, input):
    """The counts as repeated options, `--input a.h5ad --input b.h5ad`."""
    return [word for path in input.counts for word in ("--input", path)]


def simulation_sources(wildcards):
    """The tables that an anchored simulation starts from."""
    keys = ["baseline", "effects"] if config["simulate"]["mode"] == "anchored" else []
    named = {key: config["simulate"][key] for key in keys if config["simulate"][key]}
    return {key: existing(path, f"simulate.{key}") for key, path in named.items()}


def program_files(wildcards):
    """The table of gene programs, and further files of programs."""
    extra = [source["file"] for source in config["programs"].get("extra", [])]
    return [
        existing(config["programs"]["file"], "programs.file"),
        *[existing(path, "programs.extra") for path in extra],
    ]


def controls_file(wildcards):
    """The table of positive controls."""
    return existing(config["gate"]["controls"], "gate.controls")


def annotations_file(wildcards):
    """The table of what the user knows of genes, if any."""
    file = config["annotations"]["file"]
    return [existing(file, "annotations.file")] if file else []


def external_files(wildcards):
    """The measured tables from elsewhere that the configuration names."""
    files = [table["file"] for table in config["external"]]
    return {"external": [existing(path, "external") for path in files]} if files else {}


def vae_start(wildcards):
    """The checkpoint that the VAE starts from, if any."""
    start = config["vae"]["init_from"]
    return [existing(start, "vae.init_from")] if start else []


def flow_start(wildcards):
    """The checkpoint that the flow starts from, if any."""
    start = config["flow"]["init_from"]
    return [existing(start, "flow.init_from")] if start else []


def feature_table(wildcards):
    """The table of gene features, where the configuration names one."""
    features = config["effect"]["features"]
    named = features not in ("none", "coexpression")
    return [existing(features, "effect.features")] if named else []


def candidates_file(wildcards):
    """The list of candidates, where the configuration names one."""
    listed = config["screen"]["candidates"]
    return (
        [] if listed in ("all", "measured") else [existing(listed, "screen.candidates")]
    )


def weights_of_programs():
    """The programs' weights, where draws stop once the scores are known: then programs matter."""
    weights = "results/{run}/screen/weights.npz"
    return {"weights": weights} if config["screen"].get("tolerance") is not None else {}


def weights_flag(wildcards, input):
    """Those weights as an option."""
    return [f"--weights={input.weights}"] if "weights" in input.keys() else []


def cells_of_shard():
    """The generated cells of a shard, where screen.save_cells asks for them."""
    cells = "results/{run}/{model}screen/shards/{shard}.h5ad"
    return {"cells": cells} if config["screen"]["save_cells"] else {}


def all_shards(pattern):
    """One path per shard of the screen."""

    def paths(wildcards):
        return expand(
            pattern, run=wildcards.run, shard=range(config["screen"]["shards"])
        )

    return paths


def replicate_folders(wildcards):
    """Folders of the program scores of further models, numbered from 2."""
    numbers = range(2, config["replicates"] + 1)
    return [f"results/{wildcards.run}/replicates/{k}/score/programs" for k in numbers]


def replicate_scores(wildcards):
    """The program scores of further models, one file per shard."""
    shards = range(config["screen"]["shards"])
    return [
        f"{folder}/{k}.parquet"
        for folder in replicate_folders(wildcards)
        for k in shards
    ]


def replicate_flags(wildcards):
    """Those folders as repeated options."""
    return [f"--replicate-dir={folder}" for folder in replicate_folders(wildcards)]


def final_outputs():
    """What a complete run leaves: the database and the figures."""
    run = config["run"]
    figures = expand("results/{run}/figures/{figure}.svg", run=run, figure=FIGURES)
    return [f"results/{run}/screen.duckdb", *figures]
