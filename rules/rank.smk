rule gate:
    input:
        store="results/{run}/store/store.json",
        candidates="results/{run}/screen/candidates.parquet",
        predicted=all_shards("results/{run}/score/programs/{shard}.parquet"),
        replicates=replicate_scores,
        measured="results/{run}/measured/programs.parquet",
        effects=all_shards("results/{run}/score/effects/{shard}.parquet"),
        measured_effects="results/{run}/measured/effects.parquet",
        panel="results/{run}/store/panel.parquet",
        programs=program_files,
        controls=controls_file,
    output:
        controls="results/{run}/gate/controls.parquet",
        gates="results/{run}/gate/gates.parquet",
    log:
        "results/{run}/logs/gate.log",
    benchmark:
        "results/{run}/benchmarks/gate.tsv"
    conda:
        "../envs/knockscreen.yaml"
    resources:
        mem_mb=2000,
    params:
        store=subpath(input.store, parent=True),
        predicted="results/{run}/score/programs",
        effects="results/{run}/score/effects",
        replicates=replicate_flags,
        folder=subpath(output.gates, parent=True),
        settings=settings("gate"),
        code=code("gate"),
    shell:
        "knockscreen gate --programs-dir {params.predicted} {params.replicates:q} --measured {input.measured}"
        " --effects-dir {params.effects} --measured-effects {input.measured_effects}"
        " --candidates {input.candidates} --store {params.store} --output-dir {params.folder}"
        " --settings {params.settings:q} 2> {log}"


rule rank:
    input:
        gates="results/{run}/gate/gates.parquet",
        store="results/{run}/store/store.json",
        candidates="results/{run}/screen/candidates.parquet",
        predicted=all_shards("results/{run}/score/programs/{shard}.parquet"),
        replicates=replicate_scores,
        measured="results/{run}/measured/programs.parquet",
        measured_decoys="results/{run}/measured/decoys.parquet",
        external="results/{run}/external/programs.parquet",
        programs=program_files,
    output:
        scores="results/{run}/rank/program_scores.parquet",
        rankings="results/{run}/rank/rankings.parquet",
    log:
        "results/{run}/logs/rank.log",
    benchmark:
        "results/{run}/benchmarks/rank.tsv"
    conda:
        "../envs/knockscreen.yaml"
    resources:
        mem_mb=2000,
    params:
        store=subpath(input.store, parent=True),
        predicted="results/{run}/score/programs",
        replicates=replicate_flags,
        folder=subpath(output.rankings, parent=True),
        settings=settings("rank"),
        code=code("rank"),
    shell:
        "knockscreen rank --programs-dir {params.predicted} {params.replicates:q} --measured {input.measured}"
        " --measured-decoys {input.measured_decoys} --external {input.external}"
        " --candidates {input.candidates} --store {params.store} --output-dir {params.folder}"
        " --gates {input.gates} --settings {params.settings:q} 2> {log}"


rule build_db:
    input:
        store="results/{run}/store/store.json",
        panel="results/{run}/store/panel.parquet",
        cells="results/{run}/store/cells.parquet",
        qc="results/{run}/qc/targets.parquet",
        vae="results/{run}/vae/vae.json",
        flow="results/{run}/flow/flow.json",
        plan="results/{run}/screen/plan.json",
        candidates="results/{run}/screen/candidates.parquet",
        effects=all_shards("results/{run}/score/effects/{shard}.parquet"),
        measured="results/{run}/measured/effects.parquet",
        external="results/{run}/external/effects.parquet",
        halves="results/{run}/measured/programs.parquet",
        ceiling="results/{run}/measured/ceiling.parquet",
        scores="results/{run}/rank/program_scores.parquet",
        rankings="results/{run}/rank/rankings.parquet",
        gates="results/{run}/gate/gates.parquet",
        controls="results/{run}/gate/controls.parquet",
        metrics="results/{run}/evaluate/metrics.parquet",
        summary="results/{run}/evaluate/summary.parquet",
        programs=program_files,
        annotations=annotations_file,
    output:
        database="results/{run}/screen.duckdb",
    log:
        "results/{run}/logs/build_db.log",
    benchmark:
        "results/{run}/benchmarks/build_db.tsv"
    conda:
        "../envs/knockscreen.yaml"
    resources:
        mem_mb=3000,
    params:
        folder=subpath(output.database, parent=True),
        settings=settings("build_db"),
        code=code("build_db"),
    shell:
        "knockscreen build-db --results-dir {params.folder} --programs {input.programs[0]}"
        " --output {output.database} --settings {params.settings:q} 2> {log}"
