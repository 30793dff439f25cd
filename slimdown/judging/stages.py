"""Judge the stages that a model passes from training to serving: which of them lost what.

The stages of a chain are asked the same questions, so the changes of its steps add up to the change
from the first to the last.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from slimdown.evaluation.results import Evaluation
from slimdown.judging.budgets import BudgetCheck, check_budgets
from slimdown.judging.findings import BenchmarkChange, Findings, judge
from slimdown.judging.pairing import describe_differences
from slimdown.judging.verdicts import Verdict
from slimdown.utils.errors import ConfigError, DataError


@dataclass(frozen=True)
class Step:
    """What changed from one stage, or model, to another.

    Attributes:
        before: The name of the earlier stage, or of the first model.
        after: The name of the later one.
        findings: The change on each benchmark.
        differences: How the two were asked differently, a line each. The change holds that, too.
    """

    before: str
    after: str
    findings: Findings
    differences: tuple[str, ...] = ()


@dataclass(frozen=True)
class StageFindings:
    """Several stages of a model, or several models of one base.

    Attributes:
        steps: In a chain each stage against the one before; else each model against the base.
        whole: Of a chain of several steps: its last stage against the first.
    """

    steps: tuple[Step, ...]
    whole: Step | None = None

    @property
    def reported(self) -> tuple[Step, ...]:
        """All that is judged: the steps, and the whole behind them."""
        return (*self.steps, self.whole) if self.whole else self.steps

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """The benchmarks' names."""
        return tuple(self.steps[0].findings.benchmarks)

    def list_changes(self, benchmark: str) -> list[tuple[Step, BenchmarkChange]]:
        """Return what each step, and the whole, did to one benchmark."""
        return [(step, step.findings.benchmarks[benchmark]) for step in self.reported]

    def check_stages(
        self, budgets: Mapping[str, Mapping[str, float]], n_reports: int
    ) -> list[BudgetCheck]:
        """Check what single stages lost against their budgets.

        Args:
            budgets: By stage, then by benchmark, what may be lost there, as a share. Other
                benchmarks are not checked.
            n_reports: As for `check_budgets`.

        Returns:
            The checks; their benchmarks are named with the stage.

        Raises:
            ConfigError: There is no such stage or benchmark, or a budget names no benchmark.
        """
        steps = {step.after: step for step in self.steps}
        checks = list[BudgetCheck]()
        for stage, stage_budgets in budgets.items():
            if stage not in steps:
                known = ", ".join(steps)
                raise ConfigError(f"--max-loss-at {stage}: the stages are {known}; name one")
            if "" in stage_budgets:  # a share without a name
                raise ConfigError(f"--max-loss-at {stage}: name the benchmark, as in gsm8k=0.02")
            findings = steps[stage].findings
            # To `check_budgets`, "" means every benchmark that the budgets do not name. These are
            # off, so they are not checked by the budgets of their settings.
            for check in check_budgets(findings, stage_budgets, off=[""], n_reports=n_reports):
                checks.append(replace(check, benchmark=f"{check.benchmark} at {stage}"))
        return checks

    def find_losses(self, benchmark: str) -> list[Step]:
        """Return the steps that are shown to have lost some of a benchmark."""
        changes = self.list_changes(benchmark)[: len(self.steps)]
        return [step for step, change in changes if change.verdict is Verdict.forgotten]


def judge_stages(stages: Mapping[str, Evaluation], is_chain: bool = True) -> StageFindings:
    """Judge the stages of a model (such as merged, quantized, served), or models of one base.

    Verdicts are corrected over all comparisons and all benchmarks: Bonferroni over the comparisons,
    Holm within each (`bench.statistics`, "stages"). The chance of any false claim of change is at
    most 5 %, and so is that of any false claim of no change.

    Args:
        stages: By name, in their order, the base first; at least two.
        is_chain: Judge each stage against the one before, and the last against the first. The
            stages of a chain may be asked with other prompts and by other engines, as they are
            served. Otherwise each model is judged against the base.

    Raises:
        DataError: Two stages were not asked the same questions, or stopped at different ones.
    """
    names = list(stages)
    compared = list(pairwise(names)) if is_chain else [(names[0], name) for name in names[1:]]
    has_whole = is_chain and len(compared) > 1  # the last stage is judged against the first, too
    n_reports = len(compared) + (1 if has_whole else 0)
    if is_chain:
        _check_whole(stages)

    def judge_step(before: str, after: str) -> Step:
        first, second = stages[before], stages[after]
        try:
            findings = judge(first, second, n_reports=n_reports, same_prompts=not is_chain)
        except DataError as error:
            raise DataError(f"{before} → {after}: {error}") from None
        differences = tuple(describe_differences(first, second)) if is_chain else ()
        return Step(before, after, findings, differences)

    steps = tuple(judge_step(before, after) for before, after in compared)
    return StageFindings(steps, whole=judge_step(names[0], names[-1]) if has_whole else None)


def judge_served(findings: Findings) -> StageFindings | None:
    """Judge what a tuned model lost by its weights, and what it loses besides when it is served.

    A served model is asked with the chat template, BOS, stops and settings of generation of its own
    files. Otherwise it is asked as the base is.

    Args:
        findings: With all answers. `served` holds those of the tuned model as it is served.

    Returns:
        The steps "weights" (asked with the base's prompts) and "served" (asked as its own files
        say). None where the model is served as the base is.
    """
    base, tuned, served = findings.base, findings.tuned, findings.served
    if not (base and tuned and served):
        return None
    stages = {}
    for name, evaluation in {"base": base, "weights": tuned, "served": served}.items():
        # A benchmark whose prompts and ends of answers are the same was not asked again.
        asked_again = {n: evaluation.benchmarks[n] for n in served.benchmarks}
        stages[name] = replace(evaluation, benchmarks=asked_again)
    return judge_stages(stages)


def _check_whole(stages: Mapping[str, Evaluation]) -> None:
    """Refuse stages that stopped early at different questions: their steps do not add up."""
    first = next(iter(stages.values()))
    for name in first.benchmarks:
        stopped = {}
        for stage, evaluation in stages.items():
            benchmark = evaluation.benchmarks.get(name)
            if benchmark and benchmark.looks:
                stopped[stage] = len(benchmark.samples)
        if len(set(stopped.values())) > 1:
            counts = ", ".join(f"{stage} after {n:,}" for stage, n in stopped.items())
            advice = "a chain needs the same questions of all: evaluation.until=all"
            raise DataError(f"{name} stopped early in {counts}; {advice}")
