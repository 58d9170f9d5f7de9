# Optional, not part of a run: `snakemake results/<run>/figures/sweep.svg`.
rule sweep:
    input:
        store="results/{run}/store/store.json",
        effect="results/{run}/effect/effect.safetensors",
        vae="results/{run}/vae/vae.safetensors",
        flow="results/{run}/flow/flow.safetensors",
    output:
        table="results/{run}/sweep/sweep.parquet",
        chosen="results/{run}/sweep/chosen.json",
    log:
        "results/{run}/logs/sweep.log",
    benchmark:
        "results/{run}/benchmarks/sweep.tsv"
    conda:
        "../envs/knockscreen.yaml"
    resources:
        mem_mb=4000,
    params:
        store=subpath(input.store, parent=True),
        folder=subpath(output.table, parent=True),
        settings=settings("sweep"),
        code=code("sweep"),
    shell:
        "knockscreen sweep --store {params.store} --effect {input.effect} --vae {input.vae}"
        " --flow {input.flow} --output-dir {params.folder} --settings {params.settings:q} 2> {log}"


rule plot_sweep:
    input:
        store="results/{run}/store/store.json",
        table="results/{run}/sweep/sweep.parquet",
        chosen="results/{run}/sweep/chosen.json",
    output:
        figure="results/{run}/figures/sweep.svg",
    log:
        "results/{run}/logs/plot_sweep.log",
    conda:
        "../envs/knockscreen.yaml"
    resources:
        mem_mb=2000,
    params:
        folder=subpath(output.figure, ancestor=2),
        settings=settings("plot"),
        code=code("plot"),
    shell:
        "knockscreen plot sweep --results-dir {params.folder} --output {output.figure}"
        " --settings {params.settings:q} 2> {log}"
