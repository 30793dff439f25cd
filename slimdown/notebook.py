"""A notebook's face: measure a model before and after somebody's own training, judge the two, show what was found."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimdown.config.benchmarks import Named, read_benchmarks
from slimdown.config.schema import EvaluationConfig, Until
from slimdown.evaluation.answers import Evaluation
from slimdown.report import words
from slimdown.report.findings import findings_table
from slimdown.report.table import Table, write
from slimdown.stats.budget import Judgement, Outcome, hold_to_budgets, overall
from slimdown.stats.findings import Findings as JudgedFindings, judge as judge_two
from slimdown.utils.errors import SlimdownError

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]


def measure(
    model: Any,
    tokenizer: Any,
    benchmarks: Named | Iterable[Named] | Evaluation,
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    token_budget: int | None = None,
    batch_size: int = 16,
    stock: bool = False,
) -> Evaluation:
    """What a model answers to benchmarks, every answer kept; the model comes back as it was, to be trained.

    It computes in its own dtypes, without the autocast of a trainer, its 4-bit layers as they are. Under DDP it is
    measured in each process that asks.

    Args:
        model: a loaded causal model of transformers: plain, with PEFT's adapters, in 4 or 8 bits, on any device, in
            DDP or torch.compile or neither. Its adapters count as far as they are active.
        tokenizer: its tokenizer.
        benchmarks: names of conf/benchmark/ or of the harness's tasks, or settings such as
            `{"task": "arc_easy", "metric": "acc_norm"}`. Or what this returned of another model: then this one is asked
            the same and scored alike, whatever has become of it, and nothing else is given.
        limit: the first so many questions of each; None asks all.
        num_fewshot: worked examples before each question; None is each benchmark's own.
        apply_chat_template: ask through the tokenizer's chat template.
        token_budget: tokens of one forward; None takes what suits the device.
        batch_size: questions run together, where a model cannot share work between them.
        stock: nothing but the harness's own code, slower; for a model that will be given an adapter that looks at the
            row (prompt tuning, ...), which can be measured in no other way.

    Raises:
        SlimdownError: these questions cannot be asked of this model.
    """
    from slimdown.evaluation.engine.sharing import Scoring  # torch
    from slimdown.evaluation.repeatable import Measured, load_questions
    from slimdown.models.causal import causal_model

    given = causal_model(model, tokenizer)
    if isinstance(benchmarks, Measured):
        if (limit, num_fewshot) != (None, None):
            raise SlimdownError(
                "what was asked before is asked again: leave out limit and num_fewshot, or name benchmarks"
            )
        chosen = {name: report.benchmark for name, report in benchmarks.benchmarks.items()}
        return load_questions(chosen, benchmarks.config).ask(given, like=benchmarks.scoring)
    chosen = read_benchmarks(benchmarks, limit=limit, num_fewshot=num_fewshot)  # type: ignore[arg-type]
    config = EvaluationConfig(
        token_budget, batch_size, apply_chat_template, holdout=0.0, until=Until.all
    )
    return load_questions(chosen, config).ask(given, like=Scoring(shares=False) if stock else None)


def judge(before: Evaluation, after: Evaluation) -> "Findings":
    """What changed between two evaluations, how sure that is, and what became of lost answers.

    Args:
        before, after: the same questions, asked of the base and of what was made of it.

    Raises:
        SlimdownError: the two were not asked the same things, or not scored alike.
    """
    for name, one in (("before", before), ("after", after)):
        if not isinstance(one, Evaluation):
            raise SlimdownError(
                f"{name} is a {type(one).__name__}; give what slimdown.measure returned"
            )
    try:
        return Findings(**vars(judge_two(before, after)))
    except SlimdownError as error:
        raise SlimdownError(
            f"before and after cannot be compared: {error}; slimdown.measure(model, tokenizer, before) asks and scores "
            "as before was"
        ) from None


@dataclass(frozen=True, repr=False)
class Findings(JudgedFindings):
    """What a model learned and what it lost, as a notebook shows it."""

    def table(self) -> "pd.DataFrame":
        """One row a benchmark and metric, shares of 1.

        Raises:
            SlimdownError: there is no pandas.
        """
        try:
            import pandas as pd
        except ImportError:
            raise SlimdownError(
                "a table is one of pandas, which is not installed: pip install pandas"
            ) from None
        return pd.DataFrame(findings_table(self).records)

    def save(self, file: str | Path, title: str = "before → after") -> Path:
        """Write the page with everything, examples of lost answers included, and say where it lies."""
        from slimdown.report.page import page  # matplotlib

        path = Path(file).expanduser()
        path.write_text(page(self, title), encoding="utf-8")
        return path

    def passes(self, **budgets: float) -> "Held":
        """Whether each loss is shown to be within its budget, a share: `gsm8k=0.02` is two points.

        Without any, a benchmark's own `max_loss` is its budget, else, where it is retained, its margin. What too few
        questions leave open does not pass.

        Raises:
            SlimdownError: a budget for what was not measured, or one that is no share.
        """
        return Held(tuple(hold_to_budgets(self.changes, budgets)))

    @property
    def _shown(self) -> Table:
        return replace(findings_table(self), notes=tuple(words.sentences(self)))

    def _repr_html_(self) -> str:
        return write(self._shown, "html")

    def __repr__(self) -> str:
        return write(self._shown, "table")


@dataclass(frozen=True, repr=False)
class Held:
    """Losses held to budgets: true where every one is shown to be within."""

    judgements: tuple[Judgement, ...]

    @property
    def outcome(self) -> Outcome:
        """What holds for all together: within, beyond or undecided."""
        return overall(self.judgements)

    def __bool__(self) -> bool:
        return self.outcome is Outcome.within

    def __repr__(self) -> str:
        lines = [f"{j.benchmark}: {j.outcome.name}, {j.reason}" for j in self.judgements]
        return "\n".join([f"{bool(self)} ({self.outcome.name})", *lines])
