rule simulate:
    input:
        unpack(simulation_sources),
    output:
        counts=expand(
            "results/{{run}}/input/{donor}_{time}.assigned_guide.h5ad",
            donor=config["simulate"]["donors"],
            time=config["simulate"]["times"],
        ),
        truth="results/{run}/input/truth.npz",
        regulators="results/{run}/input/regulators.tsv",
    log:
        "results/{run}/logs/simulate.log",
    benchmark:
        "results/{run}/benchmarks/simulate.tsv"
    conda:
        "../envs/knockscreen.yaml"
    resources:
        mem_mb=2000,
    params:
        folder=subpath(output.truth, parent=True),
        settings=settings("simulate"),
        code=code("simulate"),
    shell:
        "knockscreen simulate --output-dir {params.folder} --settings {params.settings:q} 2> {log}"


rule qc:
    input:
        counts=counts,
    output:
        inputs="results/{run}/qc/inputs.parquet",
        cells="results/{run}/qc/cells.parquet",
        genes="results/{run}/qc/genes.parquet",
        guides="results/{run}/qc/guides.parquet",
        targets="results/{run}/qc/targets.parquet",
        summary="results/{run}/qc/summary.parquet",
    log:
        "results/{run}/logs/qc.log",
    benchmark:
        "results/{run}/benchmarks/qc.tsv"
    conda:
        "../envs/knockscreen.yaml"
    resources:
        mem_mb=3000,
    params:
        files=input_flags,
        folder=subpath(output.cells, parent=True),
        settings=settings("qc"),
        code=code("qc"),
    shell:
        "knockscreen qc {params.files:q} --output-dir {params.folder}"
        " --settings {params.settings:q} 2> {log}"


rule normalize:
    input:
        counts=counts,
        inputs="results/{run}/qc/inputs.parquet",
        cells="results/{run}/qc/cells.parquet",
        genes="results/{run}/qc/genes.parquet",
        targets="results/{run}/qc/targets.parquet",
        programs=program_files,
    output:
        store="results/{run}/store/store.json",
        indptr="results/{run}/store/indptr.npy",
        indices="results/{run}/store/indices.npy",
        counts="results/{run}/store/counts.npy",
        library_size="results/{run}/store/library_size.npy",
        target="results/{run}/store/target.npy",
        contexts="results/{run}/store/contexts.npy",
        split="results/{run}/store/split.npy",
        decoy_rows="results/{run}/store/decoy_rows.npy",
        decoy_target="results/{run}/store/decoy_target.npy",
        cells="results/{run}/store/cells.parquet",
        panel="results/{run}/store/panel.parquet",
        splits=report(
            "results/{run}/store/splits.tsv",
            caption="../workflow/report/splits.rst",
            category="Data",
            labels={"table": "splits of the cells"},
        ),
    log:
        "results/{run}/logs/normalize.log",
    benchmark:
        "results/{run}/benchmarks/normalize.tsv"
    conda:
        "../envs/knockscreen.yaml"
    resources:
        mem_mb=3000,
    params:
        files=input_flags,
        qc=subpath(input.cells, parent=True),
        folder=subpath(output.store, parent=True),
        settings=settings("normalize"),
        code=code("normalize"),
    shell:
        "knockscreen normalize {params.files:q} --qc-dir {params.qc} --output-dir {params.folder}"
        " --settings {params.settings:q} 2> {log}"
