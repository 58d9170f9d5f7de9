rule train_flow:
    input:
        store="results/{run}/store/store.json",
        effect="results/{run}/effect/effect.safetensors",
        latents="results/{run}/{model}latents/latents.npy",
        start=flow_start,
    output:
        weights="results/{run}/{model}flow/flow.safetensors",
        card="results/{run}/{model}flow/flow.json",
        loss="results/{run}/{model}flow/loss.parquet",
    log:
        "results/{run}/{model}logs/train_flow.log",
    benchmark:
        "results/{run}/{model}benchmarks/train_flow.tsv"
    conda:
        "../envs/knockscreen.yaml"
    threads: 16
    resources:
        mem_mb=4000,
    params:
        store=subpath(input.store, parent=True),
        latents=subpath(input.latents, parent=True),
        folder=subpath(output.weights, parent=True),
        resume="results/{run}/{model}resume/flow",  # undeclared on purpose: outlives an interruption
        settings=settings("train_flow"),
        code=code("train_flow"),
    shell:
        "knockscreen train-flow --store {params.store} --effect {input.effect}"
        " --latents {params.latents} --output-dir {params.folder} --resume-dir {params.resume}"
        " --settings {params.settings:q} 2> {log}"
