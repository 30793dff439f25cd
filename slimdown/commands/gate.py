"""The gate of `check` and `verdict`: its options, and what it decides."""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isnan

from slimdown.commands.arguments import CommandParser
from slimdown.config.schema import Role
from slimdown.evaluation.results import Evaluation
from slimdown.judging.budgets import (
    BudgetCheck,
    Outcome,
    check_budgets,
    overall_outcome,
    read_budgets,
)
from slimdown.judging.findings import Findings, judge
from slimdown.report.findings_report import write_junit
from slimdown.report.text import describe_off, describe_overall
from slimdown.utils.errors import ConfigError

_FURTHER_BUDGET = re.compile(r"([^=]+=)?(off|0?\.\d+)|[^=]+=0")


@dataclass(frozen=True)
class GateRules:
    """What a model may lose, as the options say."""

    max_loss: dict[str, float]
    max_relative_loss: dict[str, float]
    off: list[str]
    overall: bool

    @property
    def are_set(self) -> bool:
        """Whether any option of the gate was given."""
        return any(vars(self).values())

    def decide(
        self, findings: Findings, read_evaluations: Callable[[], tuple[Evaluation, Evaluation]]
    ) -> "Gate":
        """Decide whether a model has lost more than it may.

        Args:
            findings: What changed.
            read_evaluations: Returns those of base and tuned model; `--overall` takes their mean.

        Raises:
            ConfigError: A name is no benchmark, or no benchmark is left for `--overall`.
        """
        budgets = self.max_loss, self.max_relative_loss
        checks = check_budgets(findings, *budgets, self.off)
        checked = [check.benchmark for check in checks]
        unchecked = [name for name in findings.benchmarks if name not in checked]
        off = [name for name in unchecked if "" in self.off or name in self.off]
        notes = list(describe_off(findings, off))
        outcome, is_worse = overall_outcome(checks), False
        if self.overall:
            base, tuned = (
                replace(one, benchmarks={k: b for k, b in one.benchmarks.items() if k not in off})
                for one in read_evaluations()
            )
            mean = judge(base, tuned).mean_change(Role.retained)
            if isnan(mean.value):
                raise ConfigError("--overall: every retained benchmark is off")
            notes.append(describe_overall(mean))
            is_worse = mean.high < 0
            outcome = Outcome.beyond if is_worse else outcome
        return Gate(checks, notes, is_worse, outcome)


@dataclass(frozen=True)
class Gate:
    """Every budget that was checked, and what follows from all of them.

    Attributes:
        checks: One for each benchmark with a budget.
        notes: What is off, and the mean of all.
        is_worse: Whether `--overall` is set and shows that the retained benchmarks are worse.
        outcome: The exit code.
    """

    checks: list[BudgetCheck]
    notes: list[str]
    is_worse: bool
    outcome: Outcome

    def write_junit(self, title: str) -> str:
        """Write XML with a test for each budget, and one that fails if all are worse together."""
        name = "the retained benchmarks are not worse together"
        return write_junit(self.checks, title, {name: self.notes[-1]} if self.is_worse else {})


def add_gate_options(parser: CommandParser, others: str) -> None:
    """Add the options of the gate; `others` says what benchmarks that are not named may lose."""
    text = "gsm8k=0.02: two points; gsm8k=off: shown, decides nothing; off: all that are not named"
    text += f"; without it: {others}"
    parser.add_list("--max-loss", "[BENCHMARK=]SHARE|off", text)
    text = "gsm8k=0.05: a twentieth of what the base scored"
    parser.add_list("--max-relative-loss", "[BENCHMARK=]SHARE", text)
    text = "also fail where the retained benchmarks are shown to be worse on average"
    parser.add_argument("--overall", action="store_true", help=text)


def name_budgets(argv: Sequence[str]) -> list[str]:
    """Repeat the option before each further budget, as in `--max-loss off gsm8k=0.02`.

    argparse by itself would take a run's name that follows for a budget.
    """
    named, option = list[str](), ""
    for previous, text in pairwise(["", *argv]):
        if text.startswith("-"):
            option = text.partition("=")[0]
        elif option in ("--max-loss", "--max-relative-loss") and previous != option:
            named += [option] * bool(_FURTHER_BUDGET.fullmatch(text))
        named.append(text)
    return named


def read_rules(options: argparse.Namespace) -> GateRules:
    """Read the options of the gate, before anything else is read.

    Raises:
        ConfigError: A budget is no share, or a benchmark has two.
    """
    is_off = re.compile("(?:(.+)=)?off").fullmatch
    return GateRules(
        max_loss=read_budgets([text for text in options.max_loss if not is_off(text)]),
        max_relative_loss=read_budgets(options.max_relative_loss, "--max-relative-loss"),
        off=[found[1] or "" for text in options.max_loss if (found := is_off(text))],
        overall=options.overall,
    )
