rule score:
    input:
        store="results/{run}/store/store.json",
        candidates="results/{run}/screen/candidates.parquet",
        control="results/{run}/{model}screen/control.npz",
        shard="results/{run}/{model}screen/shards/{shard}.npz",
        programs=program_files,
    output:
        effects="results/{run}/{model}score/effects/{shard}.parquet",
        decoys="results/{run}/{model}score/decoys/{shard}.parquet",
        programs="results/{run}/{model}score/programs/{shard}.parquet",
    log:
        "results/{run}/{model}logs/score/{shard}.log",
    benchmark:
        "results/{run}/{model}benchmarks/score/{shard}.tsv"
    conda:
        "../envs/knockscreen.yaml"
    resources:
        mem_mb=2000,
    params:
        store=subpath(input.store, parent=True),
        settings=settings("score"),
        code=code("score"),
    shell:
        "knockscreen score --shard {input.shard} --control {input.control}"
        " --candidates {input.candidates} --store {params.store} --effects {output.effects}"
        " --decoys-out {output.decoys} --programs-out {output.programs} --settings {params.settings:q} 2> {log}"


rule load_external:
    input:
        unpack(external_files),
        store="results/{run}/store/store.json",
        panel="results/{run}/store/panel.parquet",
        cells="results/{run}/store/cells.parquet",
        programs=program_files,
    output:
        effects="results/{run}/external/effects.parquet",
        programs="results/{run}/external/programs.parquet",
    log:
        "results/{run}/logs/load_external.log",
    benchmark:
        "results/{run}/benchmarks/load_external.tsv"
    conda:
        "../envs/knockscreen.yaml"
    resources:
        mem_mb=3000,
    params:
        store=subpath(input.store, parent=True),
        folder=subpath(output.effects, parent=True),
        settings=settings("external"),
        code=code("external"),
    shell:
        "knockscreen load-external --store {params.store} --output-dir {params.folder}"
        " --settings {params.settings:q} 2> {log}"


rule measure:
    input:
        store="results/{run}/store/store.json",
        programs=program_files,
    output:
        effects="results/{run}/measured/effects.parquet",
        programs="results/{run}/measured/programs.parquet",
        ceiling="results/{run}/measured/ceiling.parquet",
        decoys="results/{run}/measured/decoys.parquet",
    log:
        "results/{run}/logs/measure.log",
    benchmark:
        "results/{run}/benchmarks/measure.tsv"
    conda:
        "../envs/knockscreen.yaml"
    resources:
        mem_mb=3000,
    params:
        store=subpath(input.store, parent=True),
        folder=subpath(output.effects, parent=True),
        settings=settings("measure"),
        code=code("measure"),
    shell:
        "knockscreen measure --store {params.store} --output-dir {params.folder}"
        " --settings {params.settings:q} 2> {log}"
