rule evaluate:
    input:
        store="results/{run}/store/store.json",
        effect="results/{run}/effect/effect.safetensors",
        candidates="results/{run}/screen/candidates.parquet",
        shards=all_shards("results/{run}/screen/shards/{shard}.npz"),
        matched="results/{run}/screen/matched.npz",
        programs=program_files,
    output:
        metrics="results/{run}/evaluate/metrics.parquet",
        summary="results/{run}/evaluate/summary.parquet",
    log:
        "results/{run}/logs/evaluate.log",
    benchmark:
        "results/{run}/benchmarks/evaluate.tsv"
    conda:
        "../envs/knockscreen.yaml"
    resources:
        mem_mb=4000,
    params:
        store=subpath(input.store, parent=True),
        shards="results/{run}/screen/shards",
        folder=subpath(output.metrics, parent=True),
        settings=settings("evaluate"),
        code=code("evaluate"),
    shell:
        "knockscreen evaluate --store {params.store} --effect {input.effect}"
        " --candidates {input.candidates} --shards-dir {params.shards} --matched {input.matched}"
        " --output-dir {params.folder} --settings {params.settings:q} 2> {log}"
