"""Make tables of one run's findings, of two models side by side, or of one model's scores."""

from collections.abc import Sequence
from dataclasses import replace
from xml.etree import ElementTree

from slimdown.evaluation.results import Evaluation
from slimdown.judging.budgets import Gate, Outcome
from slimdown.judging.findings import Findings
from slimdown.judging.stages import Step
from slimdown.report import text
from slimdown.report.columns import make_rows, name_levels
from slimdown.report.formatting import format_number, visible
from slimdown.report.tables import EVERYWHERE, NOT_BRIEF, Cell, Column, Row, Table, make_table


def findings_table(
    findings: Findings, title: str = "", notes: Sequence[str] = (), gate: Gate | None = None
) -> Table:
    """Show a run's findings, one row for each benchmark, followed by rows of its further metrics.

    Args:
        findings: What is shown.
        title: What stands above it.
        notes: What stands below it.
        gate: The budgets. Their outcome comes first, and each budget is in its benchmark's row.

    Returns:
        The table. Its records hold benchmark, role, metric, n, base, tuned, change and related
        values, as shares of 1. Further metrics have neither verdict nor p-value.
    """
    rows = name_levels(make_rows(findings, gate))  # their headings name the intervals' level
    table = Table(title, rows, text.explain_table(findings), tuple(notes))
    return add_outcome(table, gate) if gate else table


def add_outcome(table: Table, gate: Gate) -> Table:
    """Put the outcome of a gate first, for people and for programs."""
    summary = text.describe_outcome(gate)
    word, exit_code = text.OUTCOMES[gate.outcome].lower(), int(gate.outcome)
    facts = {"outcome": word, "exit_code": exit_code, "summary": summary}
    return replace(table, outcome=summary, facts=facts)


def evaluation_table(evaluation: Evaluation) -> Table:
    """Show one model's scores, one row for each benchmark and metric.

    The table shows scores and standard errors in percent. Its records hold them as shares of 1.
    """
    records = []
    for name, result in evaluation.benchmarks.items():
        config = result.benchmark
        # None: the tasks of a group have different numbers of worked examples.
        shots = "as in each task" if config.num_fewshot is None else config.num_fewshot
        primary_first = sorted(result.scores, key=lambda metric: metric != config.metric)
        for metric in primary_first:
            score, error = result.scores[metric].value, result.scores[metric].standard_error
            row = {"benchmark": name, "metric": metric, "shots": shots, "n": len(result.samples)}
            records.append({**row, "score": score, "standard_error": error})

    def show_percent(share: float) -> str:
        return format_number(100 * share)

    return make_table("", records, {"score": show_percent, "standard_error": show_percent})


def pairs_table(pairs: Sequence[Step]) -> Table:
    """Show pairs of models by the primary metrics, one row for each pair and benchmark.

    Args:
        pairs: At least one, each with the findings of its second model against its first. Either
            all begin with the base model, or none does.

    Returns:
        The table. Its title names the pair, or says how many runs there are. Its notes are the
        caveats of each pair.
    """
    if pairs[0].before == "base":
        sides, direction = ("base", "tuned"), "from the base model to the tuned model"
    else:
        sides, direction = ("first", "second"), "from the first to the second model"
    has_many = len(pairs) > 1
    # The title names a single pair, so the console needs no column for it.
    pair_column = Column("pair", max_width=30, places=EVERYWHERE if has_many else NOT_BRIEF)
    rows, notes = [], list[str]()
    names = [f"{pair.before} → {pair.after}" for pair in pairs]
    for pair, name in zip(pairs, names, strict=True):
        for caveat in text.list_caveats(pair.findings):
            notes.append(f"{name}: {caveat}" if has_many else caveat)
        pair_cell = {pair_column: Cell(name, values={"pair": name})}
        for row in make_rows(pair.findings, gate=None, sides=sides):
            if not row.is_secondary:  # secondary rows show further metrics
                rows.append(Row(pair_cell | row.cells))  # the pair is the first column
    title = f"{len(pairs)} runs on the held-out questions" if has_many else names[0]
    legend = f"Each change is {direction}. {text.explain_table(pairs[0].findings)}"
    return Table(title, name_levels(rows), legend, tuple(notes))


def write_junit(gate: Gate, title: str) -> str:
    """Write a gate as JUnit's XML, each budget a test: FAILED is a failure, CANNOT TELL an error.

    Args:
        gate: The budgets. If the retained benchmarks are worse on average, a failing test is added.
        title: The suite's title.

    Returns:
        The XML document. Each test holds the reason of its outcome, and the suite the outcome of
        all budgets together.
    """
    kinds = {Outcome.beyond: "failure", Outcome.undecided: "error"}  # a passed test has none
    suite = ElementTree.Element("testsuite", name=visible(title))
    for check in gate.checks:
        name = f"{visible(check.benchmark)} loses at most {100 * check.budget:.3g} points"
        case = ElementTree.SubElement(suite, "testcase", classname="slimdown", name=name)
        outcome = text.OUTCOMES[check.outcome].lower()
        reason = visible(check.reason)  # it may name the benchmark; XML has no control characters
        if kind := kinds.get(check.outcome):
            ElementTree.SubElement(case, kind, message=reason, type=outcome)
        else:
            ElementTree.SubElement(case, "system-out").text = reason
    if gate.mean and gate.is_worse:
        name = "the retained benchmarks are not worse on average"
        case = ElementTree.SubElement(suite, "testcase", classname="slimdown", name=name)
        message = text.describe_overall(gate.mean)
        ElementTree.SubElement(case, "failure", message=message, type="failed")
    suite.set("tests", str(len(suite)))  # so far, the suite has no children but tests
    for kind in kinds.values():
        n_tests = len(suite.findall(f"*/{kind}"))
        suite.set(f"{kind}s", str(n_tests))  # the attributes "failures" and "errors"
    ElementTree.SubElement(suite, "system-out").text = visible(text.describe_outcome(gate))
    ElementTree.indent(suite)
    content = ElementTree.tostring(suite, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{content}\n'
