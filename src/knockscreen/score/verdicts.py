"""What the gate says of a program: its tables, and from contexts to the program as a whole.

The judging itself is in :mod:`knockscreen.score.gate`; this module is all that rankings and the
database need of it.
"""

from collections.abc import Iterable

import polars as pl

from knockscreen.names import Evidence, parse_context

PASSED, EXPLORATORY, NOT_TESTED = "passed", "exploratory", "not_tested"
PREDICTED = "predicted"
"""Kind of evidence: seen and unseen together, as they are ranked."""

CONTROLS: dict[str, type[pl.DataType]] = {
    "program": pl.String, "context": pl.String, "evidence": pl.String, "target_gene": pl.String,
    "target_gene_id": pl.String, "direction": pl.String, "score": pl.Float64,
    "percentile": pl.Float64, "sign_right": pl.Boolean, "source": pl.String,
}  # fmt: skip
GATES: dict[str, type[pl.DataType]] = {
    "program": pl.String, "context": pl.String, "evidence": pl.String, "control_status": pl.String,
    "control_reason": pl.String, "n_controls": pl.Int32, "n_others": pl.Int32, "auroc": pl.Float64,
    "auprc": pl.Float64, "auprc_chance": pl.Float64, "sign_share": pl.Float64,
    "permutation_p": pl.Float64,
    "program_p": pl.Float64,
}  # fmt: skip


def reported(contexts: Iterable[str]) -> list[str]:
    """Return the contexts that a program is judged over: the pooled ones, or all if none is.

    >>> reported(["donor=D1,time=Rest", "time=Rest"])
    ['time=Rest']
    """
    levels = {name: len(parse_context(name)) for name in contexts}
    most = max(levels.values(), default=0)
    return [name for name, n in levels.items() if n < most] or list(levels)


def over_contexts(gates: pl.DataFrame) -> pl.DataFrame:
    """Call a program exploratory everywhere if it fails in most of the reported contexts.

    Seen or unseen knock-downs with too few controls of their own are exploratory where both
    together fail; where both together pass they stay untested. Unseen ones, alone or together with
    seen ones, pass only where seen ones do (:func:`_led_by_seen`).
    """
    parts = [_failed(part) for _, part in gates.group_by("evidence", maintain_order=True)]
    judged = _led_by_seen(pl.concat([gates.head(0), *parts]))
    together = judged.filter(
        (pl.col("evidence") == PREDICTED) & (pl.col("control_status") == EXPLORATORY)
    ).select("context", why="control_reason")
    untested = pl.col("evidence").is_in([Evidence.PREDICTED_SEEN, Evidence.PREDICTED_UNSEEN]) & (
        pl.col("control_status") == NOT_TESTED
    )
    fails = untested & pl.col("why").is_not_null()
    reason = pl.format("seen and unseen together: {}", "why")
    return (
        judged.join(together, on="context", how="left", maintain_order="left")
        .with_columns(
            control_status=pl.when(fails).then(pl.lit(EXPLORATORY)).otherwise("control_status"),
            control_reason=pl.when(fails).then(reason).otherwise("control_reason"),
        )
        .drop("why")
    )


def _led_by_seen(gates: pl.DataFrame) -> pl.DataFrame:
    """Give unseen knock-downs that pass where seen ones do not the verdict of those.

    Controls of one pathway have like features and are predicted alike, so that random knock-downs
    are no match for them: on screens without effects one program in seven passes by them.
    """
    seen = gates.filter(evidence=Evidence.PREDICTED_SEEN.value)
    seen = seen.select("program", "context", of_seen="control_status", why="control_reason")
    leans = pl.col("evidence").is_in([Evidence.PREDICTED_UNSEEN.value, PREDICTED])
    status = pl.col("of_seen").fill_null(NOT_TESTED)
    led = leans & (pl.col("control_status") == PASSED) & (status != PASSED)
    why = pl.col("why").fill_null("none of them is a control")
    return (
        gates.join(seen, on=["program", "context"], how="left", maintain_order="left")
        .with_columns(
            control_status=pl.when(led).then(status).otherwise("control_status"),
            control_reason=pl.when(led)
            .then(pl.format("knock-downs that were trained on: {}", why))
            .otherwise("control_reason"),
        )
        .drop("of_seen", "why")
    )


def _failed(gates: pl.DataFrame) -> pl.DataFrame:
    failed, tested = _count(gates)
    if 2 * failed <= tested:
        return gates
    passed = pl.col("control_status") == PASSED
    reason = pl.lit(f"passes here, but fails in {failed} of the {tested} contexts reported")
    status = pl.when(passed).then(pl.lit(EXPLORATORY)).otherwise("control_status")
    return gates.with_columns(
        control_reason=pl.when(passed).then(reason).otherwise("control_reason"),
        control_status=status,
    )


def _count(gates: pl.DataFrame) -> tuple[int, int]:
    """Return in how many reported contexts a program fails, and in how many it was tested."""
    of = gates.filter(pl.col("context").is_in(reported(gates["context"])))
    tested = of.filter(pl.col("control_status") != NOT_TESTED)
    return tested.filter(pl.col("control_status") == EXPLORATORY).height, tested.height


def overall(gates: pl.DataFrame) -> pl.DataFrame:
    """Return program, control_status, control_reason: each program by its predicted rankings.

    >>> gate = {"program": "A", "context": "all", "evidence": "predicted"}
    >>> gates = pl.DataFrame([gate | {"control_status": "passed"}], schema=GATES)
    >>> overall(gates).row(0)
    ('A', 'passed', 'passes in 1 of the 1 contexts tested')
    """
    rows = []
    for (program,), part in gates.group_by("program", maintain_order=True):
        of = part.filter(pl.col("evidence") == PREDICTED)
        of = of.filter(pl.col("context").is_in(reported(of["context"])))
        failed, tested = _count(of)
        worst = of.filter(pl.col("control_status") == EXPLORATORY)["control_reason"].to_list()
        reasons = of["control_reason"].drop_nulls().to_list()
        if not tested:
            rows.append((program, NOT_TESTED, reasons[0] if reasons else None))
        else:
            status = EXPLORATORY if 2 * failed > tested else PASSED
            details = f" ({worst[0]})" if worst else ""
            passes = f"passes in {tested - failed} of the {tested} contexts tested{details}"
            rows.append((program, status, passes))
    columns = ("program", "control_status", "control_reason")
    return pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")


def label(rankings: pl.DataFrame, gates: pl.DataFrame | None) -> pl.DataFrame:
    """Return rankings with the ``control_status`` of their program, context and evidence.

    Measured rows of tables from elsewhere (``source``) have not been through the gate.
    """
    if gates is None:
        return rankings
    keys = ["program", "context", "evidence"]
    status = gates.select(*keys, status="control_status")
    return (
        rankings.join(status, on=keys, how="left", maintain_order="left")
        .with_columns(
            control_status=pl.when(pl.col("source").is_null())
            .then(pl.col("status"))
            .fill_null(NOT_TESTED)
        )
        .drop("status")
    )
