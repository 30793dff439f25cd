"""Both models asked in turn, stage by stage, until what is asked after is known; or all at once, one after the other.

A stage is an evaluation of its own: the base's is found in the record by every run, whatever is tuned there. What a
run keeps in the end is one evaluation a benchmark of what was asked, in the order in which it was.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import isnan, nan
from typing import Any

from slimdown.config.schema import BenchmarkConfig, EvaluationConfig, OnProgress, RunConfig, Until
from slimdown.evaluation.answers import BenchmarkEvaluation, Evaluation
from slimdown.evaluation.engine import Scoring
from slimdown.evaluation.harness import choose_scoring
from slimdown.evaluation.measure import Asker, Record, measure
from slimdown.evaluation.questions import Staged
from slimdown.evaluation.results import first_stages, joined
from slimdown.models.causal import without_adapters
from slimdown.models.model import LoadedModel
from slimdown.utils import distributed as processes

StillOpen = Callable[[Evaluation, Evaluation, Until], set[str]]
"""The names of the benchmarks that are to be asked further, of what base and tuned model answered so far."""


@dataclass(frozen=True)
class Asking:
    """What a base and the model tuned from it are asked, and how: the same of both."""

    tasks: dict[str, Any]  # what `load_tasks` returned for `chosen`
    chosen: dict[str, BenchmarkConfig]
    config: EvaluationConfig
    scoring: Scoring

    @classmethod
    def alike(
        cls, base: LoadedModel, tasks: dict[str, Any], config: RunConfig, tuned: Any
    ) -> "Asking":
        """Decide how both are scored, from the base and what will be made of it; arguments as of `choose_scoring`."""
        dequantize = config.quantization.dequantize_for_evaluation
        scoring = choose_scoring(
            base, tasks, config.benchmark, config.evaluation, dequantize, tuned
        )
        return cls(tasks, config.benchmark, config.evaluation, scoring)

    def base(
        self, base: LoadedModel, record: Record, on_progress: OnProgress, stays: bool
    ) -> Evaluation:
        """What the base answers before anything is tuned: to all questions, or to as many as need be by then.

        Args:
            base: the model, no adapter on it.
            record: where its evaluations are kept.
            on_progress: told how many questions of a benchmark are done.
            stays: whether the base can be asked when the tuned model is there; then one stage is enough, in which
                whatever is wrong with a benchmark comes to light.
        """
        if self.config.until is Until.all:
            return measure(
                base, self.tasks, self.chosen, self.config, self.scoring, record, on_progress
            )
        with self._side("base", base, record, on_progress) as side:
            for name in self.chosen:
                staged = side.in_stages(name)
                side.ask(name, staged, 1 if stays or staged is None else len(staged.ends))
            return side.evaluation()

    def both(
        self,
        before: Evaluation,
        base: LoadedModel,
        tuned: LoadedModel,
        records: tuple[Record, Record],
        still_open: StillOpen,
        on_progress: OnProgress,
    ) -> tuple[Evaluation, Evaluation]:
        """What base and tuned model answer to the same questions; those of the base are `before`, and more as needed.

        After each stage `still_open` says which benchmarks go on. What asks nothing but whole benchmarks ends with all.

        Args:
            before: what `base` returned.
            base: the model, which the tuned one may be around.
            tuned: what was made of it.
            records: where the evaluations of the base are kept, and those of the tuned model.
            still_open: decides; the first of several processes does.
            on_progress: told how many questions of a benchmark are done.
        """
        if self.config.until is Until.all:
            arguments = (
                self.tasks,
                self.chosen,
                self.config,
                self.scoring,
                records[1],
                on_progress,
            )
            return before, measure(tuned, *arguments, expected=before)
        # What holds for the tuned model's layers meanwhile holds for those of a base that it is around.
        with (
            self._side("tuned", tuned, records[1], on_progress) as other,
            self._side("base", base, records[0], on_progress, before) as one,
        ):
            staged = {name: other.in_stages(name) for name in self.chosen}
            n_stages = dict.fromkeys(self.chosen, 0)
            is_open = set(self.chosen)
            while is_open:
                for name in filter(is_open.__contains__, self.chosen):
                    n_stages[name] += 1
                    with _adapter_off(tuned.model, base.model):
                        one.ask(name, staged[name], n_stages[name])
                    other.expect(one, name)
                    other.ask(name, staged[name], n_stages[name])
                before, after = _looked_at(one.evaluation(n_stages), other.evaluation(n_stages))
                is_open = {
                    name for name, its in staged.items() if its and n_stages[name] < len(its.ends)
                }
                if is_open:
                    bounded = {name for name in is_open if before.benchmarks[name].stages}
                    is_open -= bounded - processes.from_first(
                        still_open(before, after, self.config.until)
                    )
            for record, one_of_both in zip(records, (before, after), strict=True):
                reports = {
                    name: report for name, report in one_of_both.benchmarks.items() if staged[name]
                }
                record.keep_asked(replace(one_of_both, benchmarks=reports))
            return before, after

    def _side(
        self,
        model: str,
        loaded: LoadedModel,
        record: Record,
        on_progress: OnProgress,
        before: Evaluation | None = None,
    ) -> "_Side":
        far = _Far(on_progress)
        return _Side(
            model, self, Asker(loaded, self.config, self.scoring, record, far), far, before
        )


class _Side:
    """One of the two models, and what it has answered; a base that nothing is asked of may be gone."""

    def __init__(
        self, model: str, asking: Asking, asker: Asker, far: "_Far", before: Evaluation | None
    ) -> None:
        self._model, self._asking, self._asker, self._far = model, asking, asker, far
        self._reports: dict[str, BenchmarkEvaluation] = dict(before.benchmarks) if before else {}
        self._seconds, self._peak = (before.seconds, before.peak_bytes) if before else (0.0, nan)
        self._open = ExitStack()

    def __enter__(self) -> "_Side":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.__exit__(None, None, None)

    @cached_property
    def _ready(self) -> Asker:
        return self._open.enter_context(self._asker)

    def in_stages(self, name: str) -> Staged | None:
        return self._ready.evaluator.in_stages(self._asking.tasks[name], self._asking.chosen[name])

    def expect(self, other: "_Side", name: str) -> None:
        """Take what the other answered to a benchmark for a guess."""
        self._ready.evaluator.expect(other._reports[name])

    def ask(self, name: str, staged: Staged | None, n_stages: int) -> None:
        """Ask what is not answered of the first stages of a benchmark; of one that has none, all."""
        benchmark, report = self._asking.chosen[name], self._reports.get(name)
        if staged is None:
            self._far.begin()
            self._reports[name] = report or self._ready.whole(
                name, self._asking.tasks[name], benchmark
            )
            return
        n_available = staged.ends[-1]
        while (n_asked := len(report.stages) if report else 0) < n_stages:
            note = f"{name}: {self._model}, looked at after {staged.ends[n_asked]}"
            self._far.begin(len(report.samples) if report else 0, n_available, note)
            report = joined(
                report, self._ready.stage(name, staged, n_asked, benchmark), n_available
            )
            self._reports[name] = report

    def evaluation(self, n_stages: dict[str, int] | None = None) -> Evaluation:
        """What was answered, where it is said, of the first so many stages."""
        reports = self._reports | {
            name: first_stages(self._reports[name], n) for name, n in (n_stages or {}).items()
        }
        found = self._asker.evaluation(reports)
        peak = self._peak if isnan(found.peak_bytes) else found.peak_bytes
        return replace(found, seconds=self._seconds + found.seconds, peak_bytes=peak)


def _looked_at(*both: Evaluation) -> list[Evaluation]:
    """Both, but without stages where a score is no share: of it no bound is known, so all must be there."""
    names = {
        name
        for one in both
        for name, report in one.benchmarks.items()
        if not all(0 <= score <= 1 for score in report.scores_of(report.benchmark.metric))
    }
    return [
        replace(one, benchmarks=one.benchmarks | {n: _whole(one.benchmarks[n]) for n in names})
        for one in both
    ]


def _whole(report: BenchmarkEvaluation) -> BenchmarkEvaluation:
    return replace(report, stages=(), n_available=None)


class _Far:
    """How far a benchmark is, from how far the tasks of a stage are."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self.begin()

    def begin(self, n_asked: int = 0, n_available: int = 0, note: str = "") -> None:
        """A stage begins; none available: a benchmark that is asked whole."""
        self._n_asked, self._n_available, self._note = n_asked, n_available, note
        self._done: dict[str, int] = {}

    def __call__(self, done: int, total: int, note: str) -> None:
        if self._n_available:
            self._done[note] = done
            done, total, note = (
                self._n_asked + sum(self._done.values()),
                self._n_available,
                self._note,
            )
        self._on_progress(done, total, note)


@contextmanager
def _adapter_off(tuned: Any, base: Any) -> Iterator[None]:
    """The base as it was, where what was tuned is an adapter in it."""
    if getattr(tuned, "get_base_model", lambda: None)() is base:
        with without_adapters(tuned):
            yield
    else:
        yield
