rule plan:
    input:
        store="results/{run}/store/store.json",
        effect="results/{run}/effect/effect.safetensors",
        vae="results/{run}/vae/vae.safetensors",
        flow="results/{run}/flow/flow.safetensors",
        candidates=candidates_file,
    output:
        candidates="results/{run}/screen/candidates.parquet",
        plan="results/{run}/screen/plan.json",
    log:
        "results/{run}/logs/plan.log",
    conda:
        "../envs/knockscreen.yaml"
    resources:
        mem_mb=2000,
    params:
        store=subpath(input.store, parent=True),
        folder=subpath(output.plan, parent=True),
        settings=settings("plan"),
        code=code("plan"),
    shell:
        "knockscreen plan --effect {input.effect} --vae {input.vae} --flow {input.flow}"
        " --store {params.store} --output-dir {params.folder} --settings {params.settings:q} 2> {log}"


rule generate_control:
    input:
        store="results/{run}/store/store.json",
        effect="results/{run}/effect/effect.safetensors",
        vae="results/{run}/{model}vae/vae.safetensors",
        flow="results/{run}/{model}flow/flow.safetensors",
        plan="results/{run}/screen/plan.json",
    output:
        control="results/{run}/{model}screen/control.npz",
    log:
        "results/{run}/{model}logs/generate_control.log",
    benchmark:
        "results/{run}/{model}benchmarks/generate_control.tsv"
    conda:
        "../envs/knockscreen.yaml"
    resources:
        mem_mb=3000,
    params:
        store=subpath(input.store, parent=True),
        settings=settings("generate"),
        code=code("generate"),
    shell:
        "knockscreen generate-control --effect {input.effect} --vae {input.vae} --flow {input.flow}"
        " --store {params.store} --plan {input.plan} --output {output.control} --settings {params.settings:q} 2> {log}"


rule program_weights:
    input:
        store="results/{run}/store/store.json",
        programs=program_files,
    output:
        weights="results/{run}/screen/weights.npz",
    log:
        "results/{run}/logs/program_weights.log",
    conda:
        "../envs/knockscreen.yaml"
    resources:
        mem_mb=1000,
    params:
        store=subpath(input.store, parent=True),
        settings=settings("program_weights"),
        code=code("program_weights"),
    shell:
        "knockscreen program-weights --store {params.store} --output {output.weights}"
        " --settings {params.settings:q} 2> {log}"


rule generate:
    input:
        **weights_of_programs(),
        store="results/{run}/store/store.json",
        effect="results/{run}/effect/effect.safetensors",
        vae="results/{run}/{model}vae/vae.safetensors",
        flow="results/{run}/{model}flow/flow.safetensors",
        plan="results/{run}/screen/plan.json",
        candidates="results/{run}/screen/candidates.parquet",
        control="results/{run}/{model}screen/control.npz",
    output:
        **cells_of_shard(),
        shard="results/{run}/{model}screen/shards/{shard}.npz",
    log:
        "results/{run}/{model}logs/generate/{shard}.log",
    benchmark:
        "results/{run}/{model}benchmarks/generate/{shard}.tsv"
    conda:
        "../envs/knockscreen.yaml"
    resources:
        mem_mb=3000,
    params:
        store=subpath(input.store, parent=True),
        weights=weights_flag,
        settings=settings("generate"),
        code=code("generate"),
    shell:
        "knockscreen generate-shard --effect {input.effect} --vae {input.vae} --flow {input.flow}"
        " --store {params.store} --plan {input.plan} --candidates {input.candidates} --control {input.control}"
        " --shard {wildcards.shard} --output {output.shard} {params.weights} --settings {params.settings:q} 2> {log}"


rule generate_matched:
    input:
        store="results/{run}/store/store.json",
        effect="results/{run}/effect/effect.safetensors",
        vae="results/{run}/vae/vae.safetensors",
        flow="results/{run}/flow/flow.safetensors",
    output:
        cells="results/{run}/screen/matched.npz",
    log:
        "results/{run}/logs/generate_matched.log",
    benchmark:
        "results/{run}/benchmarks/generate_matched.tsv"
    conda:
        "../envs/knockscreen.yaml"
    resources:
        mem_mb=3000,
    params:
        store=subpath(input.store, parent=True),
        settings=settings("generate_matched"),
        code=code("generate_matched"),
    shell:
        "knockscreen generate-matched --effect {input.effect} --vae {input.vae} --flow {input.flow}"
        " --store {params.store} --output {output.cells} --settings {params.settings:q} 2> {log}"
