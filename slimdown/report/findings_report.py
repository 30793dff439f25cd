"""Make tables of one run's findings, of two models side by side, or of one model's scores."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from xml.etree import ElementTree

from slimdown.config.schema import Role
from slimdown.evaluation.results import Evaluation
from slimdown.judging.budgets import BudgetCheck
from slimdown.judging.findings import Findings
from slimdown.report import formatting, text
from slimdown.report.formatting import format_count, format_number, format_points, visible
from slimdown.report.tables import Cell, Column, Row, Table, make_table
from slimdown.stats.estimates import Estimate


def findings_table(findings: Findings, title: str = "", with_notes: bool = False) -> Table:
    """Show a run's findings, one row for each benchmark; further metrics of a benchmark follow it.

    Args:
        findings: What is shown.
        title: What stands above it.
        with_notes: Put the sentences of the findings below the table.

    Returns:
        The table. Its records hold benchmark, role, metric, n, base, tuned, change and related
        values, as shares of 1. Further metrics have neither verdict nor p-value.
    """
    rows = list(_make_rows(findings, "base", "tuned"))
    notes = tuple(text.describe_findings(findings)) if with_notes else ()
    return Table(title, rows, text.explain_table(findings), notes)


def evaluation_table(evaluation: Evaluation) -> Table:
    """Show one model's scores in percent, one row for each benchmark and metric."""
    records = []
    for name, result in evaluation.benchmarks.items():
        config, n = result.benchmark, len(result.samples)
        shots = "each its own" if config.num_fewshot is None else config.num_fewshot
        for metric in sorted(result.scores, key=lambda m: m != config.metric):
            value, error = result.scores[metric].value, result.scores[metric].standard_error
            record = {"benchmark": name, "metric": metric, "shots": shots, "n": n, "score": value}
            records.append(record | {"standard_error": error})
    formats = dict.fromkeys(("score", "standard_error"), lambda s: format_number(100 * s))
    return make_table("", records, formats)


@dataclass(frozen=True)
class ModelPair:
    """Two tuned models, or a base and a tuned one on questions that did not choose it."""

    first: str  # a run's name and id, or "base"
    second: str
    findings: Findings


def pairs_table(pairs: Sequence[ModelPair]) -> Table:
    """Show pairs of models by the primary metrics, one row for each pair and benchmark."""
    n, sides, direction = len(pairs), ("first", "second"), "from first to second"
    if pairs[0].first == "base":
        sides, direction = ("base", "tuned"), "from the base to the tuned model"
    rows, notes = [], list[str]()
    for pair in pairs:
        title = f"{pair.first} → {pair.second}"
        caveats = text.list_caveats(pair.findings)
        notes += (f"{title}: {line}" if n > 1 else line for line in caveats)
        first = {Column("pair", max_width=30, is_extra=n == 1): Cell(title, values={"pair": title})}
        shown = (row for row in _make_rows(pair.findings, *sides) if not row.is_secondary)
        rows += [Row(first | row.cells) for row in shown]
    title = f"{n} runs on the questions that did not choose them" if n > 1 else title
    legend = f"Change {direction}. {text.explain_table(pairs[0].findings)}"
    return Table(title, rows, legend, tuple(notes))


def budgets_table(
    checks: Sequence[BudgetCheck], title: str = "", notes: Sequence[str] = ()
) -> Table:
    """Show each benchmark's loss against its budget, one row for each."""
    records = []
    for check in checks:
        d = check.change.primary.difference
        one_sided = Estimate(d.value, d.standard_error, *d.margin_interval())
        records.append(
            {
                "benchmark": check.benchmark,
                "change [90 %]": make_change_cell(one_sided),
                "budget": check.budget,
                "outcome": check.outcome.name,
                "reason": check.reason,
            }
        )
    formats = {"budget": lambda share: f"{100 * share:.3g} points"}
    return replace(make_table(title, records, formats), notes=tuple(notes))


def write_junit(
    checks: Sequence[BudgetCheck], title: str, failures: Mapping[str, str] | None = None
) -> str:
    """Write budget checks as JUnit's XML: `beyond` is a failure, `undecided` an error.

    Args:
        checks: Each is a test.
        title: The suite's title.
        failures: Further tests that failed, with the reasons.
    """
    kinds = {"beyond": "failure", "undecided": "error"}
    suite = ElementTree.Element("testsuite", name=visible(title))
    for check in checks:
        name = f"{visible(check.benchmark)} loses at most {100 * check.budget:.3g} points"
        case = ElementTree.SubElement(suite, "testcase", classname="slimdown", name=name)
        if kind := kinds.get(check.outcome.name):
            ElementTree.SubElement(case, kind, message=check.reason, type=check.outcome.name)
        else:
            ElementTree.SubElement(case, "system-out").text = check.reason
    for name, reason in (failures or {}).items():
        case = ElementTree.SubElement(suite, "testcase", classname="slimdown", name=name)
        ElementTree.SubElement(case, "failure", message=reason, type="beyond")
    suite.set("tests", str(len(suite)))
    for kind in kinds.values():
        suite.set(f"{kind}s", str(len(suite.findall(f"*/{kind}"))))
    ElementTree.indent(suite)
    content = ElementTree.tostring(suite, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{content}\n'


def make_change_cell(change: Estimate, prefix: str = "change") -> Cell:
    """Show a change in points with its interval; the record has value and both ends as shares."""
    values = {prefix: change.value, f"{prefix}_low": change.low, f"{prefix}_high": change.high}
    return Cell(*format_points(change), sort_key=change.value, values=values)


def _make_rows(findings: Findings, first: str, second: str) -> Iterator[Row]:
    """Yield one row for each metric, the primary one of each benchmark first."""
    for name, benchmark in findings.benchmarks.items():
        n, n_available, role = benchmark.n, benchmark.n_available, benchmark.role.value
        count, marked = format_count(n, n_available), text.mark_target(name, role)
        for metric, change in benchmark.changes.items():
            d, is_primary = change.difference, metric == benchmark.metric
            short = text.shorten_metric(metric, benchmark)
            heading = marked if is_primary else f"  {short}"
            values: dict[str, Any] = {"change": d.value, "change_stderr": d.standard_error}
            values |= {"change_low": d.low, "change_high": d.high}
            values |= {k: change.counts and getattr(change.counts, k) for k in ("lost", "gained")}
            if is_primary and (one := benchmark.p_right):
                values |= {"p_right_change": one.change.value, "p_right_verdict": one.verdict.value}
            shown = format_points(benchmark.shown_change if is_primary else d)
            stopped = f"after {count}" if is_primary and benchmark.is_stopped else ""
            numbers = {"n": n, "n_available": n_available or n}
            cells = {
                Column("benchmark", max_width=30): Cell(
                    heading, values={"benchmark": name, "role": role}
                ),
                Column("metric", is_extra=True): Cell(short, values={"metric": metric}),
                Column("n", "questions", True, is_extra=True): Cell(count, values=numbers),
                Column(first, "%", True): _make_score(first, change.base),
                Column(second, "%", True): _make_score(second, change.tuned),
                Column("change", "points [95 %; retained: 90 %]", True): Cell(
                    *shown, stopped, sort_key=d.value, values=values
                ),
            }
            claims = _make_claims(findings, name) if is_primary else {}
            yield Row(cells | claims, is_secondary=not is_primary)


def _make_score(side: str, score: Estimate) -> Cell:
    values = {side: score.value, f"{side}_stderr": score.standard_error}
    return Cell(format_number(100 * score.value), sort_key=score.value, values=values)


def _make_claims(findings: Findings, name: str) -> dict[Column, Cell]:
    """Make the cells of a benchmark's verdict: its cause, p-value and rates."""
    benchmark, losses = findings.benchmarks[name], findings.lost_answers.get(name)
    verdict, p_value = benchmark.verdict.value, benchmark.p_value
    cause, share = (losses.main_cause if losses else None) or (None, None)
    shown_cause = f"{100 * share:.0f} % {text.CAUSES[cause][0]}" if cause and share else ""
    rate, is_target = benchmark.forgetting_rate, benchmark.role is Role.target
    rates = make_change_cell(rate, "forgetting_rate") if rate and not is_target else Cell()
    shown_rate, interval = text.describe_rate(rate, benchmark)
    p_values = {"p_value": p_value, "equivalence_p_value": benchmark.equivalence_p_value}
    causes = {"main_cause": cause, "main_cause_share": share}
    claims = {
        Column("verdict"): Cell(verdict=verdict, sort_key=verdict, values={"verdict": verdict}),
        Column("main cause of loss", is_extra=True): Cell(shown_cause, values=causes),
        Column("p", "corrected", True, is_extra=True): Cell(
            formatting.format_p_value(p_value), sort_key=p_value, values=p_values
        ),
        Column("forgetting rate", "[95 %]", True, is_extra=True): replace(
            rates, text=shown_rate, interval=interval
        ),
    }
    if any(one.paper_metric for one in findings.benchmarks.values()):
        column = Column("paper’s metric", "± standard error [95 %]", True, is_extra=True)
        claims[column] = Cell(*text.describe_paper_metric(benchmark))
    return claims
