"""What one run found, or two models side by side -> a `Table`; a run's findings as Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from slimdown.config.schema import Role
from slimdown.report import numbers, words
from slimdown.report.table import Cell, Column, Row, Table, in_markdown, write
from slimdown.stats.anatomy import Anatomy
from slimdown.stats.changes import BenchmarkChange, Verdict
from slimdown.stats.findings import Findings


def findings_table(findings: Findings, title: str = "") -> Table:
    """A run's findings, one row a benchmark and metric; further metrics of a benchmark follow its primary one.

    Records hold `benchmark`, `role`, `metric`, `n`, `base`, `tuned`, `change` and what goes with them, shares of 1.
    Further metrics are not judged: they have neither `verdict` nor p-values.
    """
    columns = [
        c if c.heading != "p" else replace(c, on_console=False) for c in _columns("base", "tuned")
    ]
    table = Table(
        title,
        tuple(columns),
        tuple(_rows(findings, "base", "tuned")),
        words.legend(findings.changes),
    )
    changes = findings.changes
    document = {
        "title": title,
        "part": changes.part,
        "summary": words.summary(changes),
        "benchmarks": table.records,
        "mean_retained_change": asdict(changes.mean_retained_change),
        "mean_target_change": asdict(changes.mean_target_change),
    }
    return replace(table, document=lambda: document)


def findings_markdown(findings: Findings, name: str) -> str:
    """The findings as Markdown: the table, what it says in words, what it cost."""
    training, costs = findings.training, findings.costs
    ends = "_seconds"
    spent = [
        (key.removesuffix(ends).replace("_", " "), costs[key])
        for key in costs
        if key.endswith(ends)
    ]
    told = [f"{what} {numbers.duration(seconds)}" for what, seconds in spent]
    if training:
        speed = numbers.number(training.tokens_per_second, ".0f")
        told.append(f"training {numbers.duration(training.runtime_seconds)} ({speed} tokens/s)")
    lines = [
        write(findings_table(findings, name), "markdown"),
        *(f"- {in_markdown(sentence)}" for sentence in words.sentences(findings)),
        "",
        f"Time: {', '.join(told)}. {_memory(costs)}",
        "Every answer is in `samples/` (a base's, where tags `slimdown.baseline.*` name another run, in that "
        "one's); all of this is a page in `report.html`.",
        "",
    ]
    return "\n".join(lines)


def _memory(costs: Mapping[str, float]) -> str:
    """What was held at most, beside what was estimated."""
    measured = {
        "training": costs.get("training_peak_bytes"),
        "evaluation": max(
            (
                costs[key]
                for key in costs
                if key.endswith("evaluation_peak_bytes") and "estimated" not in key
            ),
            default=None,
        ),
    }
    parts = [
        f"{what} {numbers.size(peak)}"
        + (f" (estimated {numbers.size(costs[key])})" if key in costs else "")
        for what, peak in measured.items()
        if peak is not None
        for key in [f"estimated_{what}_peak_bytes"]
    ]
    return f"Peak memory {', '.join([numbers.size(costs.get('peak_memory_bytes', 0)), *parts])}."


def tests_table(findings: Findings) -> Table:
    """What the verdicts rest on, one row a benchmark: intervals, tests, and what as many questions can show."""
    columns = (
        Column("benchmark"),
        *(
            Column(*heading, is_number=True)
            for heading in (("base", "[95 %]"), ("tuned", "[95 %]"))
        ),
        Column("test"),
        Column("p", "no change", is_number=True),
        Column("p", "paired t, uncorrected", is_number=True),
        Column("p", "change beyond margin", is_number=True),
        Column("margin", "points", is_number=True),
        Column("smallest seen", "change, points", is_number=True),
        Column("questions", "to decide", is_number=True),
        Column("unpaired", "± points", is_number=True),
        Column("chance", "%", is_number=True),
        Column("forgetting rate", "raw [95 %]", is_number=True),
    )
    benchmarks = findings.changes.benchmarks
    rows = tuple(Row(tuple(_tested(name, benchmark))) for name, benchmark in benchmarks.items())
    return Table("", columns, rows, words.tests_legend(len(benchmarks)))


def _tested(name: str, benchmark: BenchmarkChange) -> Iterator[Cell]:
    change = benchmark.primary
    d = change.difference
    yield Cell(words.benchmark_name(name, benchmark.role))
    for score in (change.base, change.tuned):
        yield Cell(doubt=numbers.percent(score)[1] or numbers.UNDEFINED)
    yield Cell(d.test + (f", for {d.population}" if d.n_groups else ""))
    left_out = numbers.NOTHING if benchmark.n_available else ""  # what would hold of one look alone
    yield Cell(numbers.p_value(benchmark.p_value))
    yield Cell(left_out or numbers.p_value(d.t_test_p_value))
    yield Cell(numbers.p_value(benchmark.equivalence_p_value))
    yield Cell(f"{100 * benchmark.margin:g}")
    smallest = 100 * benchmark.minimum_detectable_change
    yield Cell(numbers.NOTHING if benchmark.is_stopped else numbers.number(smallest))
    decides = f"{benchmark.n_to_decide:,}" if benchmark.n_to_decide else "not known"
    yield Cell(decides if benchmark.verdict is Verdict.undecided else numbers.NOTHING)
    yield Cell(left_out or numbers.number(100 * change.unpaired_standard_error))
    yield Cell(f"{100 * benchmark.chance:g}")
    yield Cell(*words.rate(benchmark, benchmark.forgetting_rate, "0"))


@dataclass(frozen=True)
class Pair:
    """Two tuned models, question by question; or a base and a tuned one, on questions that did not choose it."""

    before: str  # a run's name and id, or base
    after: str
    findings: Findings
    n_confirmed: int = 0  # how many runs are confirmed together; 0: two tuned models
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.before} → {self.after}"

    @property
    def sides(self) -> tuple[str, str]:
        """What the two columns of scores are called."""
        return ("base", "tuned") if self.n_confirmed else ("first", "second")


def pairs_table(pairs: Sequence[Pair]) -> Table:
    """Pairs of models, one row a pair and benchmark, of its primary metric alone."""
    several, confirmed = len(pairs) > 1, bool(pairs[0].n_confirmed)
    columns = _columns(*pairs[0].sides)[:_OF_TWO]
    rows: list[Row] = []
    documents = []
    for pair in pairs:
        shown = [
            row.cells[:_OF_TWO] for row in _rows(pair.findings, *pair.sides) if not row.is_minor
        ]
        records = Table("", columns, tuple(map(Row, shown))).records
        documents.append(_document(pair, records))
        about = Cell(pair.title, values={"pair": pair.title})
        named = [replace(first, values={**about.values, **first.values}) for first, *_ in shown]
        rows += [
            Row((*([about] if several else []), first, *rest))
            for first, (_, *rest) in zip(named, shown, strict=True)
        ]
    return Table(
        title=f"{len(pairs)} runs on the questions that did not choose them"
        if several
        else pairs[0].title,
        columns=(*([Column("pair", widest=44)] if several else []), *columns),
        rows=tuple(rows),
        notes=tuple(note for pair in pairs for note in pair.notes),
        legend=words.pairs_legend([pair.findings.changes for pair in pairs], confirmed),
        document=lambda: documents if confirmed else documents[0],
    )


def _document(pair: Pair, records: list[dict[str, Any]]) -> dict[str, Any]:
    first, second = pair.sides
    shares = {
        name: {cause.name: cause.share.value for cause in found.causes if cause.share}
        for name, found in pair.findings.anatomies.items()
    }
    return {
        first: pair.before,
        second: pair.after,
        "part": pair.findings.changes.part,
        "notes": pair.notes,
        "n_confirmed": pair.n_confirmed,
        "benchmarks": records,
        "causes": shares,
        "mean_retained_change": asdict(pair.findings.changes.mean_retained_change),
    }


_OF_TWO = 8  # the columns that make sense of any two models


def _columns(before: str, after: str) -> tuple[Column, ...]:
    return (
        Column("benchmark"),
        Column("metric"),
        Column("n", "questions", is_number=True),
        Column(before, "% ± standard error", is_number=True),
        Column(after, "% ± standard error", is_number=True),
        Column("change", "points [95 %]", is_number=True),
        Column("p", "corrected", is_number=True),
        Column("verdict"),
        Column("forgetting rate", "above chance [95 %]", is_number=True),
        Column("paper’s metric", "± standard error [95 %]", on_console=False),
    )


def _rows(findings: Findings, before: str, after: str) -> Iterator[Row]:
    """One a metric, the primary one of each benchmark first."""
    for name, benchmark in findings.changes.benchmarks.items():
        for metric in benchmark.changes:
            judged = (
                _judged(benchmark, findings.anatomies.get(name))
                if metric == benchmark.metric
                else [Cell()] * 4
            )
            yield Row(
                (*_measured(name, benchmark, metric, before, after), *judged),
                metric != benchmark.metric,
            )


def _measured(
    name: str, benchmark: BenchmarkChange, metric: str, before: str, after: str
) -> list[Cell]:
    change = benchmark.changes[metric]
    d, counts = change.difference, change.counts
    about = {"benchmark": name, "role": benchmark.role.value}
    scores = [
        Cell(
            *numbers.score(of),
            order=of.value,
            values={side: of.value, f"{side}_stderr": of.standard_error},
        )
        for side, of in ((before, change.base), (after, change.tuned))
    ]
    answers = (
        {"lost": counts.lost, "gained": counts.gained} if counts else {"lost": None, "gained": None}
    )
    changed = {
        "change": d.value,
        "change_stderr": d.standard_error,
        "change_low": d.low,
        "change_high": d.high,
    }
    return [
        Cell(words.benchmark_name(name, benchmark.role), values=about),
        Cell(words.short_metric(metric, benchmark), values={"metric": metric}),
        Cell(
            numbers.asked(benchmark.n, benchmark.n_available),
            order=benchmark.n,
            values={
                "n": benchmark.n,
                "n_available": benchmark.n_available or benchmark.n,
                "population": d.population,
            },
        ),
        *scores,
        Cell(*numbers.points(d), order=d.value, values={**changed, **answers}),
    ]


def _judged(benchmark: BenchmarkChange, anatomy: Anatomy | None) -> list[Cell]:
    """What is said of a benchmark's primary metric."""
    cause = anatomy.main_cause if anatomy else None
    found = benchmark.forgetting_rate_above_chance if benchmark.role is Role.retained else None
    value, low, high = (found.value, found.low, found.high) if found else (None, None, None)
    p_values = {"p_value": benchmark.p_value, "equivalence_p_value": benchmark.equivalence_p_value}
    name, share = cause or (None, None)
    said = {"verdict": benchmark.verdict.value, "main_cause": name, "main_cause_share": share}
    rate = {"forgetting_rate": value, "forgetting_rate_low": low, "forgetting_rate_high": high}
    return [
        Cell(numbers.p_value(benchmark.p_value), order=benchmark.p_value, values=p_values),
        Cell(
            verdict=benchmark.verdict.value, note=words.cause(*cause) if cause else "", values=said
        ),
        Cell(*words.rate_above_chance(benchmark), order=value, values=rate),
        Cell(*words.paper(benchmark)),
    ]
