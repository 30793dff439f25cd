"""The gate of `check` and `verdict`: its options, and what it decides."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isnan

from slimdown.commands.arguments import CommandParser
from slimdown.config.benchmark_config import Role
from slimdown.judging.budgets import Gate, check_budgets, read_budgets, resolve_budgets
from slimdown.judging.findings import Findings, average_role
from slimdown.judging.pairing import Pair
from slimdown.utils.errors import ConfigError

_FURTHER_BUDGET = re.compile(r"([^=]+=)?(off|0?\.\d+|\d*\.?\d+ ?%)|[^=]+=0")


@dataclass(frozen=True)
class GateRules:
    """What a model may lose, as the options say."""

    budgets: dict[str, float]  # by benchmark, a share of 1; "" stands for every retained one
    relative_budgets: dict[str, float]  # the same, a share of the base's score
    off: list[str]  # benchmarks to show but not to check; "" stands for all without such a budget
    overall: bool  # whether the mean of the retained benchmarks is checked, too

    @property
    def are_set(self) -> bool:
        """Whether any option of the gate was given."""
        return any(vars(self).values())

    def check_fit(self, findings: Findings) -> None:
        """Refuse budgets that do not fit the benchmarks of findings; their losses do not matter.

        Raises:
            ConfigError: A name is no benchmark, or no benchmark has a budget.
        """
        resolve_budgets(findings, self.budgets, self.relative_budgets, self.off)

    def decide(
        self,
        findings: Findings,
        n_reports: int = 1,
        read_pairs: Callable[[], Mapping[str, Pair]] | None = None,
    ) -> Gate:
        """Decide whether a model has lost more than it may.

        Args:
            findings: What changed from the base model to the tuned model.
            n_reports: How many gates are read together; losses that exceed a budget are corrected
                for all of them.
            read_pairs: Returns both models' answers. Relative budgets need them, and so does
                `--overall` if a benchmark is off. None: the findings hold the answers.

        Returns:
            The gate: the check of each budget, the names of the benchmarks that are off (shown, but
            not checked), and with `--overall` the mean change of the retained benchmarks.

        Raises:
            ConfigError: A name is no benchmark, or no benchmark is left for `--overall`.
        """
        checks = check_budgets(
            findings,
            self.budgets,
            self.relative_budgets,
            off=self.off,
            n_reports=n_reports,
            read_pairs=read_pairs,
        )
        checked = [check.benchmark for check in checks]
        off = tuple(name for name in findings.benchmarks if name in self.off)
        if "" in self.off:  # `--max-loss off`: all are off that have no budget, named or not
            off = tuple(name for name in findings.benchmarks if name not in checked)
        if not self.overall:
            return Gate(tuple(checks), off)
        mean = findings.mean_change(Role.retained)
        if off:  # this mean includes benchmarks that are off, so it is computed without them
            used = {name: change for name, change in findings.benchmarks.items() if name not in off}
            pairs = read_pairs() if read_pairs else findings.pairs
            mean = average_role(used, pairs, Role.retained)
        if isnan(mean.value):  # no benchmark is left, or none was measured
            raise ConfigError(
                "--overall: every retained benchmark is off, or the thinking did not end in too "
                "many of its answers; check another one, or raise max_gen_toks"
            )
        return Gate(tuple(checks), off, mean)


def add_gate_options(parser: CommandParser, default: str) -> None:
    """Add the options of the gate; `default` says what is checked without them."""
    text = (
        "the largest loss you allow: gsm8k=0.02 is two points of GSM8K, and 0.02 is two points of "
        "each retained benchmark; gsm8k=off shows GSM8K but does not check it; off does so for "
        f"all benchmarks you do not name (default: {default})"
    )
    parser.add_list("--max-loss", "[BENCHMARK=]SHARE|off", text)
    text = "as --max-loss, relative to the base model's score: gsm8k=0.05 is a twentieth of it"
    parser.add_list("--max-relative-loss", "[BENCHMARK=]SHARE", text)
    text = "also fail if the retained benchmarks are significantly worse on average"
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
            named += [option] if _FURTHER_BUDGET.fullmatch(text) else []
        named.append(text)
    return named


def read_rules(options: argparse.Namespace) -> GateRules:
    """Read the options of the gate, before anything else is read.

    Raises:
        ConfigError: A budget is no share, or a benchmark has two.
    """
    is_off = re.compile("(?:(.+)=)?off").fullmatch
    return GateRules(
        budgets=read_budgets([text for text in options.max_loss if not is_off(text)]),
        relative_budgets=read_budgets(options.max_relative_loss, "--max-relative-loss"),
        off=[found[1] or "" for text in options.max_loss if (found := is_off(text))],
        overall=options.overall,
    )
