rule fit_effects:
    input:
        store="results/{run}/store/store.json",
        features=feature_table,
    output:
        weights="results/{run}/effect/effect.safetensors",
        card="results/{run}/effect/effect.json",
    log:
        "results/{run}/logs/fit_effects.log",
    benchmark:
        "results/{run}/benchmarks/fit_effects.tsv"
    conda:
        "../envs/knockscreen.yaml"
    threads: 16
    resources:
        mem_mb=4000,
    params:
        store=subpath(input.store, parent=True),
        folder=subpath(output.weights, parent=True),
        settings=settings("fit_effects"),
        code=code("fit_effects"),
    shell:
        "knockscreen fit-effects --store {params.store} --output-dir {params.folder}"
        " --settings {params.settings:q} 2> {log}"


rule train_vae:
    input:
        store="results/{run}/store/store.json",
        effect="results/{run}/effect/effect.safetensors",
        start=vae_start,
    output:
        weights="results/{run}/{model}vae/vae.safetensors",
        card="results/{run}/{model}vae/vae.json",
        loss="results/{run}/{model}vae/loss.parquet",
    log:
        "results/{run}/{model}logs/train_vae.log",
    benchmark:
        "results/{run}/{model}benchmarks/train_vae.tsv"
    conda:
        "../envs/knockscreen.yaml"
    threads: 16
    resources:
        mem_mb=4000,
    params:
        store=subpath(input.store, parent=True),
        folder=subpath(output.weights, parent=True),
        resume="results/{run}/{model}resume/vae",  # undeclared on purpose: outlives an interruption
        settings=settings("train_vae"),
        code=code("train_vae"),
    shell:
        "knockscreen train-vae --store {params.store} --effect {input.effect}"
        " --output-dir {params.folder} --resume-dir {params.resume} --settings {params.settings:q} 2> {log}"


rule encode:
    input:
        store="results/{run}/store/store.json",
        effect="results/{run}/effect/effect.safetensors",
        vae="results/{run}/{model}vae/vae.safetensors",
    output:
        latents="results/{run}/{model}latents/latents.npy",
        card="results/{run}/{model}latents/latents.json",
    log:
        "results/{run}/{model}logs/encode.log",
    benchmark:
        "results/{run}/{model}benchmarks/encode.tsv"
    conda:
        "../envs/knockscreen.yaml"
    threads: 16
    resources:
        mem_mb=4000,
    params:
        store=subpath(input.store, parent=True),
        folder=subpath(output.latents, parent=True),
        settings=settings("encode"),
        code=code("encode"),
    shell:
        "knockscreen encode --store {params.store} --effect {input.effect} --vae {input.vae}"
        " --output-dir {params.folder} --settings {params.settings:q} 2> {log}"
