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
from slimdown.judging.findings import Findings, list_averaged
from slimdown.judging.mean_change import average_changes
from slimdown.judging.pairing import Pair
from slimdown.utils.errors import ConfigError

_FURTHER_BUDGET = re.compile(r"([^=]+=)?(off|0?\.\d+|\d*\.?\d+ ?%)|[^=]+=0")


@dataclass(frozen=True)
class GateRules:
    """What a model may lose, as the options say."""

    budgets: dict[str, float]
    relative_budgets: dict[str, float]
    off: list[str]
    overall: bool

    @property
    def are_set(self) -> bool:
        """Whether any option of the gate was given."""
        return any(vars(self).values())

    def resolve(self, findings: Findings) -> None:
        """Find out what each benchmark may lose.

        Raises:
            ConfigError: A name is no benchmark, or no benchmark has a budget.
        """
        resolve_budgets(findings, self.budgets, self.relative_budgets, self.off)

    def decide(
        self,
        findings: Findings,
        read_pairs: Callable[[], Mapping[str, Pair]],
        n_reports: int = 1,
    ) -> Gate:
        """Decide whether a model has lost more than it may.

        Args:
            findings: What changed.
            read_pairs: Returns both models' answers; `--overall` takes their mean.
            n_reports: See `check_budgets`.

        Raises:
            ConfigError: A name is no benchmark, or no benchmark is left for `--overall`.
        """
        limits = self.budgets, self.relative_budgets, self.off
        checks = check_budgets(findings, *limits, n_reports, read_pairs)
        checked = [check.benchmark for check in checks]
        unchecked = [name for name in findings.benchmarks if name not in checked]
        off = tuple(name for name in unchecked if "" in self.off or name in self.off)
        if not self.overall:
            return Gate(tuple(checks), off)
        mean = findings.mean_change(Role.retained)
        if off:
            pairs = read_pairs()
            used = {name: b for name, b in findings.benchmarks.items() if name not in off}
            averaged = list_averaged(used, Role.retained)
            mean = average_changes([(pairs[n], used[n].primary.difference) for n in averaged])
        if isnan(mean.value):
            retained = [n for n, b in findings.benchmarks.items() if b.role is Role.retained]
            unclear = [name for name in retained if name not in off]
            problem = "every retained benchmark is off"
            if unclear:
                problem = f"thinking never ended in too many answers of {', '.join(unclear)}"
                problem += f"; raise benchmark.{unclear[0]}.max_gen_toks"
            raise ConfigError(f"--overall: {problem}")
        return Gate(tuple(checks), off, mean)


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
        budgets=read_budgets([text for text in options.max_loss if not is_off(text)]),
        relative_budgets=read_budgets(options.max_relative_loss, "--max-relative-loss"),
        off=[found[1] or "" for text in options.max_loss if (found := is_off(text))],
        overall=options.overall,
    )
