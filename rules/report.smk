# Every figure is one job of `knockscreen plot`; the rules differ in what they read and in their caption.
rule plot_qc:
    input:
        store="results/{run}/store/store.json",
        cells="results/{run}/qc/cells.parquet",
        guides="results/{run}/qc/guides.parquet",
        summary="results/{run}/qc/summary.parquet",
    output:
        figure=report(
            "results/{run}/figures/qc.svg",
            caption="../workflow/report/qc.rst",
            category="Data",
            labels={"figure": "cells kept and knock-down of the targets"},
        ),
    log:
        "results/{run}/logs/plot_qc.log",
    conda:
        "../envs/knockscreen.yaml"
    resources:
        mem_mb=2000,
    params:
        name=subpath(output.figure, basename=True, strip_suffix=".svg"),
        folder=subpath(output.figure, ancestor=2),
        settings=settings("plot"),
        code=code("plot"),
    shell:
        "knockscreen plot {params.name} --results-dir {params.folder} --output {output.figure}"
        " --settings {params.settings:q} 2> {log}"


use rule plot_qc as plot_loss with:
    input:
        store="results/{run}/store/store.json",
        vae="results/{run}/vae/loss.parquet",
        flow="results/{run}/flow/loss.parquet",
    output:
        figure=report(
            "results/{run}/figures/loss.svg",
            caption="../workflow/report/loss.rst",
            category="Model",
            labels={"figure": "loss curves"},
        ),
    log:
        "results/{run}/logs/plot_loss.log",


use rule plot_qc as plot_cells with:
    input:
        store="results/{run}/store/store.json",
        generated="results/{run}/screen/matched.npz",
    output:
        figure=report(
            "results/{run}/figures/cells.svg",
            caption="../workflow/report/cells.rst",
            category="Model",
            labels={"figure": "real beside generated cells"},
        ),
    log:
        "results/{run}/logs/plot_cells.log",


use rule plot_qc as plot_volcano with:
    input:
        store="results/{run}/store/store.json",
        scores="results/{run}/rank/program_scores.parquet",
        measured="results/{run}/measured/effects.parquet",
        effects=all_shards("results/{run}/score/effects/{shard}.parquet"),
    output:
        figure=report(
            "results/{run}/figures/volcano.svg",
            caption="../workflow/report/volcano.rst",
            category="Knock-downs",
            labels={"figure": "one knock-down, gene by gene"},
        ),
    log:
        "results/{run}/logs/plot_volcano.log",


use rule plot_qc as plot_ranking with:
    input:
        store="results/{run}/store/store.json",
        scores="results/{run}/rank/program_scores.parquet",
        rankings="results/{run}/rank/rankings.parquet",
    output:
        figure=report(
            "results/{run}/figures/ranking.svg",
            caption="../workflow/report/ranking.rst",
            category="Rankings",
            labels={"figure": "knock-downs toward and away from a program"},
        ),
    log:
        "results/{run}/logs/plot_ranking.log",


use rule plot_qc as plot_heatmap with:
    input:
        store="results/{run}/store/store.json",
        scores="results/{run}/rank/program_scores.parquet",
    output:
        figure=report(
            "results/{run}/figures/heatmap.svg",
            caption="../workflow/report/heatmap.rst",
            category="Rankings",
            labels={"figure": "top knock-downs by program"},
        ),
    log:
        "results/{run}/logs/plot_heatmap.log",


use rule plot_qc as plot_measured with:
    input:
        store="results/{run}/store/store.json",
        scores="results/{run}/rank/program_scores.parquet",
        measured="results/{run}/measured/programs.parquet",
        ceiling="results/{run}/measured/ceiling.parquet",
    output:
        figure=report(
            "results/{run}/figures/measured.svg",
            caption="../workflow/report/measured.rst",
            category="Rankings",
            labels={"figure": "predicted beside measured scores"},
        ),
    log:
        "results/{run}/logs/plot_measured.log",


use rule plot_qc as plot_calibration with:
    input:
        store="results/{run}/store/store.json",
        rankings="results/{run}/rank/rankings.parquet",
        scores="results/{run}/rank/program_scores.parquet",
        programs=all_shards("results/{run}/score/programs/{shard}.parquet"),
        measured="results/{run}/measured/programs.parquet",
        decoys="results/{run}/measured/decoys.parquet",
    output:
        figure=report(
            "results/{run}/figures/calibration.svg",
            caption="../workflow/report/calibration.rst",
            category="Rankings",
            labels={"figure": "knock-downs beside decoys"},
        ),
    log:
        "results/{run}/logs/plot_calibration.log",


use rule plot_qc as plot_evaluation with:
    input:
        store="results/{run}/store/store.json",
        metrics="results/{run}/evaluate/metrics.parquet",
        summary="results/{run}/evaluate/summary.parquet",
    output:
        figure=report(
            "results/{run}/figures/evaluation.svg",
            caption="../workflow/report/evaluation.rst",
            category="Evaluation",
            labels={"figure": "model, baselines and ceiling"},
        ),
    log:
        "results/{run}/logs/plot_evaluation.log",


use rule plot_qc as plot_targets with:
    input:
        store="results/{run}/store/store.json",
        metrics="results/{run}/evaluate/metrics.parquet",
    output:
        figure=report(
            "results/{run}/figures/targets.svg",
            caption="../workflow/report/targets.rst",
            category="Evaluation",
            labels={"figure": "model and best baseline, target by target"},
        ),
    log:
        "results/{run}/logs/plot_targets.log",
