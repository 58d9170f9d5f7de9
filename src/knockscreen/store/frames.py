"""Columns and types of the answers: names as in the database, whatever the data."""

import json
import sys

import polars as pl

Schema = dict[str, pl.DataType]

TEXT, INT, F32, F64, BOOL = pl.String(), pl.Int64(), pl.Float32(), pl.Float64(), pl.Boolean()

TOP: Schema = {
    "program": TEXT, "context": TEXT, "target_gene": TEXT, "target_gene_id": TEXT,
    "direction": TEXT, "rank": INT, "rank_low": INT, "rank_high": INT, "score": F64,
    "score_sd": F64, "p_value": F64, "fdr": F64, "evidence": TEXT, "control_status": TEXT,
    "n_genes": INT, "source": TEXT, "measured_score": F64, "measured_score_sd": F64,
    "control_reason": TEXT, "top_genes": TEXT, "n_cells": INT, "n_guides": INT,
    "knockdown_status": TEXT,
    "on_target_log2_fold_change": F64, "baseline_expression": F64, "known_regulator": TEXT,
    "effect_size": F64, "n_up": INT, "n_down": INT, "activation_score": F64,
    "proliferation_score": F64, "caveat": TEXT, "program_specificity_p": F64, "direction_p": F64,
    "donor_concordance": F64, "guide_concordance": F64, "replicate_fdr": F64, "tau": F64,
    "annotations": TEXT,
}  # fmt: skip
SHOW_PROGRAMS: Schema = {
    "target_gene": TEXT, "target_gene_id": TEXT, "context": TEXT, "evidence": TEXT,
    "program": TEXT, "score": F64, "score_sd": F64, "n_genes": INT, "rank_toward": INT,
    "rank_away": INT, "n_ranked": INT, "measured_score": F64, "measured_score_sd": F64,
    "n_cells": INT, "control_status": TEXT, "control_reason": TEXT,
}  # fmt: skip
SHOW_GENES: Schema = {
    "target_gene": TEXT, "target_gene_id": TEXT, "context": TEXT, "evidence": TEXT, "gene": TEXT,
    "gene_id": TEXT, "log2_fold_change": F32, "delta": F32, "delta_se": F32,
    "measured_log2_fold_change": F32, "measured_delta": F32, "measured_standard_error": F32,
    "is_target": BOOL,
}  # fmt: skip
SHOW: Schema = {"part": TEXT} | SHOW_PROGRAMS | SHOW_GENES
MOVERS: Schema = {
    "gene": TEXT, "gene_id": TEXT, "context": TEXT, "target_gene": TEXT, "target_gene_id": TEXT,
    "log2_fold_change": F32, "delta": F32, "delta_se": F32, "evidence": TEXT, "is_target": BOOL,
    "measured_delta": F32, "measured_standard_error": F32,
}  # fmt: skip
COMPARE: Schema = {
    "program_a": TEXT, "program_b": TEXT, "context": TEXT, "target_gene": TEXT,
    "target_gene_id": TEXT, "evidence": TEXT, "difference": F64, "score_a": F64,
    "score_sd_a": F64, "score_b": F64, "score_sd_b": F64, "measured_difference": F64,
    "control_status_a": TEXT, "control_status_b": TEXT,
}  # fmt: skip
EXPLAIN: Schema = {
    "target_gene": TEXT, "target_gene_id": TEXT, "program": TEXT, "context": TEXT,
    "evidence": TEXT, "gene": TEXT, "gene_id": TEXT, "weight": F64, "delta": F32, "delta_se": F32,
    "contribution": F64, "measured_delta": F32, "measured_contribution": F64, "in_panel": BOOL,
    "is_target": BOOL, "control_status": TEXT,
}  # fmt: skip
REVERSE: Schema = {
    "context": TEXT, "direction": TEXT, "rank": INT, "n_ranked": INT, "target_gene": TEXT,
    "target_gene_id": TEXT, "evidence": TEXT, "score": F64, "projection": F64, "up_score": F64,
    "down_score": F64, "both_arms": BOOL, "n_genes": INT, "n_signature": INT, "effect_size": F64,
    "measured_score": F64, "measured_projection": F64,
}  # fmt: skip
CONTROLS: Schema = {
    "program": TEXT, "context": TEXT, "evidence": TEXT, "control_status": TEXT,
    "control_reason": TEXT, "n_controls": INT, "n_others": INT, "auroc": F64, "auprc": F64,
    "auprc_chance": F64, "sign_share": F64, "permutation_p": F64, "program_p": F64,
    "controls": TEXT,
}  # fmt: skip
RUNS: Schema = {
    "run": TEXT, "created": pl.Datetime("us"), "schema_version": INT, "knockscreen_version": TEXT,
    "seed": INT, "simulated": BOOL, "n_cells": INT, "n_genes": INT, "n_targets": INT,
    "n_contexts": INT, "draws": INT, "store_digest": TEXT, "config": TEXT, "versions": TEXT,
}  # fmt: skip
PROGRAMS: Schema = {
    "program": TEXT, "n_genes": INT, "n_panel_genes": INT, "status": TEXT, "control_status": TEXT,
    "control_reason": TEXT, "description": TEXT, "source": TEXT,
}  # fmt: skip
METRICS: Schema = {
    "split": TEXT, "context": TEXT, "metric": TEXT, "baseline": TEXT, "model_value": F64,
    "baseline_value": F64, "difference": F64, "low": F64, "high": F64, "best": F64, "n": INT,
    "verdict": TEXT,
}  # fmt: skip
CONTEXTS: Schema = {
    "context": TEXT, "is_pooled": BOOL, "pooled_over": TEXT, "n_cells": INT,
    "n_control_cells": INT,
}  # fmt: skip

ANSWERS: dict[str, Schema] = {
    "top": TOP, "show": SHOW, "movers": MOVERS, "compare": COMPARE, "explain": EXPLAIN,
    "reverse": REVERSE, "controls": CONTROLS, "runs": RUNS, "programs": PROGRAMS,
    "contexts": CONTEXTS, "metrics": METRICS,
}  # fmt: skip
"""The answer of each verb, as a frame, CSV or a list of JSON objects."""


def json_schema() -> str:
    """Return the JSON schema of ``--format json``, as kept in ``workflow/schemas``."""
    names = {BOOL: "boolean", INT: "integer", F32: "number", F64: "number"}
    answers = {}
    for verb, schema in ANSWERS.items():
        columns = {
            column: {"type": [names.get(dtype, "string"), "null"]}
            for column, dtype in schema.items()
        }
        row = {
            "type": "object", "properties": columns, "required": list(columns),
            "additionalProperties": False,
        }  # fmt: skip
        answers[verb] = {"type": "array", "items": row}
    draft = "https://json-schema.org/draft/2020-12/schema"
    title = "Answers of the knockscreen verbs with --format json: a list of rows, null is missing"
    return json.dumps({"$schema": draft, "title": title, "$defs": answers}, indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(json_schema())
