"""Measure a model before and after your own training, and judge what changed."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from slimdown.config.benchmark_config import BenchmarkConfig, Until
from slimdown.config.benchmarks import BenchmarkSpec, read_benchmarks
from slimdown.config.fields import build_settings, find_problems, nearest
from slimdown.config.schema import EvaluationConfig
from slimdown.evaluation.results import Evaluation
from slimdown.judging.budgets import Gate, Outcome, check_budgets
from slimdown.judging.findings import Findings, judge as judge_evaluations
from slimdown.report.findings_report import evaluation_table, findings_table
from slimdown.report.formatting import FORMATS
from slimdown.report.tables import Table, write_table
from slimdown.report.text import (
    describe_budgets,
    describe_findings,
    describe_outcome,
    summarize_briefly,
)
from slimdown.utils.errors import ConfigError, DataError
from slimdown.utils.extras import explain_missing_packages
from slimdown.utils.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

    from slimdown.evaluation.evaluator import Evaluator


class Prompts(TypedDict, total=False):
    """Settings for models that chat or think; in `slimdown run` they have the same names."""

    system_instruction: str | None  # a system prompt for all benchmarks
    chat_template_args: dict[str, Any] | None  # further variables of the chat template
    enable_thinking: bool | None  # the chat template's own switch
    think_end_token: str | None  # what ends the thinking, such as </think>; it is cut off
    max_gen_toks: int | None  # tokens of each generated answer, thinking included
    stop: list[str] | None  # texts at which each generated answer ends


@dataclass(frozen=True, repr=False)
class MeasuredEvaluation(Evaluation):
    """An evaluation that a notebook shows as a small table, and that can be repeated.

    Attributes:
        evaluator: Has the questions and the scoring code, so that another model gets the same.
    """

    evaluator: "Evaluator" = field(kw_only=True, compare=False)

    def __repr__(self) -> str:
        return write_table(evaluation_table(self), "table")


@explain_missing_packages()
def measure(
    model: Any,
    tokenizer: Any,
    benchmarks: BenchmarkSpec | Iterable[BenchmarkSpec] | Evaluation,
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool | str | None = None,
    batch_size: int | None = None,
    include_path: str | None = None,
    stock: bool | None = None,
    **prompts: Unpack[Prompts],
) -> MeasuredEvaluation:
    """Ask a loaded model the questions of benchmarks and keep every answer.

    The model computes in its own data types, without a trainer's autocast. Afterwards its mode, its
    flags and all random states are as before, so you can train it. Under DDP, each process that
    calls this function measures by itself.

    Args:
        model: A causal language model of transformers: plain, with PEFT adapters, in 4 or 8 bits,
            on any device, in DDP or torch.compile. Active adapters take part.
        tokenizer: Its tokenizer.
        benchmarks: Names from conf/benchmark/ or of tasks of the harness, files of your own
            questions ("support.jsonl"), or settings such as `{"task": "arc_easy", "metric":
            "acc_norm"}` or `{"path": "support.jsonl", "score": "contains"}`. Or the result of
            `measure` for another model: then this model gets identical prompts and the same
            scoring code, and you leave out all other arguments.
        limit: Ask only the first N questions of each benchmark, as `lm_eval --limit`; None: all.
        num_fewshot: Number of worked examples in the prompt; None: the benchmark's own number.
        apply_chat_template: Use the tokenizer's chat template for prompts; "auto": only for
            generated answers; None: never.
        batch_size: Rows per forward pass; None: chosen to fit the device.
        include_path: A folder with task files of your own.
        stock: Use only the harness's own model class, which is slower; None: use slimdown's. You
            need `stock=True` for a model that will get prefix or prompt tuning.
        prompts: Settings for models that chat or think: system_instruction, chat_template_args,
            enable_thinking, think_end_token, max_gen_toks, stop. docs/instruct.md explains them.

    Returns:
        The scores and every answer, by benchmark.

    Raises:
        ConfigError: There is no such benchmark or setting.
        ModelError: The model cannot be asked these questions.
    """
    from slimdown.models.causal import wrap_model  # imports torch

    loaded = wrap_model(model, tokenizer)
    settings: dict[str, Any] = {
        "limit": limit,
        "num_fewshot": num_fewshot,
        "apply_chat_template": apply_chat_template,
        "batch_size": batch_size,
        "include_path": include_path,
        "stock": stock,
    }
    if isinstance(benchmarks, MeasuredEvaluation):  # of another model, whose questions are asked
        if any(value is not None for value in {**settings, **prompts}.values()):
            raise ConfigError(
                "the same questions are asked again, as in the first measurement: leave out all "
                "that follows the benchmarks, or name benchmarks instead"
            )
        evaluator = benchmarks.evaluator
    elif isinstance(benchmarks, Evaluation):
        problem = "benchmarks is an evaluation that measure did not make; give names of benchmarks"
        raise ConfigError(problem)
    else:
        evaluator = build_evaluator(benchmarks, **settings, **prompts)
    return MeasuredEvaluation(**vars(evaluator.evaluate(loaded)), evaluator=evaluator)


def build_evaluator(
    benchmarks: BenchmarkSpec | Iterable[BenchmarkSpec],
    *,
    limit: int | None,
    num_fewshot: int | None,
    apply_chat_template: bool | str | None = None,
    batch_size: int | None = None,
    include_path: str | None = None,
    stock: bool | None = None,
    **prompts: Unpack[Prompts],
) -> "Evaluator":
    """Build the evaluator of benchmarks, which asks any model the same questions.

    The arguments are those of `measure`.

    Args:
        stock: Use only the harness's own model class. slimdown's, which is faster, computes the
            common beginning of several rows once (`share_prefixes`).

    Raises:
        ConfigError: There is no such benchmark or setting.
    """
    from slimdown.evaluation.evaluator import Evaluator  # these import torch
    from slimdown.evaluation.tasks import load_tasks

    for name in prompts.keys() - Prompts.__annotations__.keys():  # the first one raises
        raise ConfigError(f"{name} is no argument{nearest(name, list(Prompts.__annotations__))}")
    if stock not in (None, True, False):
        raise ConfigError(f"stock={stock!r} must be True, False or None")
    # These two are settings of benchmarks. All others in `prompts` are settings of the evaluation.
    max_gen_toks, stop = prompts.pop("max_gen_toks", None), prompts.pop("stop", None)
    values: dict[str, Any] = {
        "batch_size": batch_size,
        "holdout": 0.0,  # no question is held out
        "until": Until.all,  # every question is asked
        "apply_chat_template": False if apply_chat_template is None else apply_chat_template,
        "include_path": str(include_path) if include_path else include_path,
    }
    values |= {name: value for name, value in prompts.items() if value is not None}
    config = build_settings(EvaluationConfig, values)
    # A benchmark that is made only to check the two settings of benchmarks, and is never asked.
    answer_settings = {"task": "any", "max_gen_toks": max_gen_toks, "stop": stop}
    checked = build_settings(BenchmarkConfig, answer_settings)
    if problems := [*find_problems(config), *find_problems(checked)]:
        raise ConfigError("\n".join(problems))
    chosen = read_benchmarks(benchmarks, limit=limit, num_fewshot=num_fewshot)
    tasks = load_tasks(
        chosen, config.include_path, max_gen_toks=checked.max_gen_toks, stop=checked.stop
    )
    return Evaluator(tasks, config, share_prefixes=not stock)


def judge(before: Evaluation, after: Evaluation) -> "NotebookFindings":
    """Test what changed between two evaluations of the same questions.

    Args:
        before: The evaluation of the base model.
        after: The evaluation of the tuned model, from `measure(model, tokenizer, before)`.

    Returns:
        Findings that a notebook shows as a table; see `NotebookFindings`.

    Raises:
        DataError: The models were not asked the same questions, or not scored by the same code.
    """
    for name, evaluation in (("before", before), ("after", after)):
        if not isinstance(evaluation, Evaluation):
            raise DataError(
                f"{name} is a {type(evaluation).__name__}; give what slimdown.measure returned, or "
                "slimdown.read_logs for logs"
            )
        if not evaluation.benchmarks:
            raise DataError(f"{name} holds no benchmark, so there is nothing to judge")
    try:
        findings = judge_evaluations(before, after)
        # The same findings, as an object of the class that a notebook shows.
        return NotebookFindings(**{f.name: getattr(findings, f.name) for f in fields(Findings)})
    except DataError as error:
        raise DataError(
            f"before and after cannot be compared: {error}; "
            "slimdown.measure(model, tokenizer, before) asks the same questions"
        ) from None


@dataclass(frozen=True, repr=False)
class NotebookFindings(Findings):
    """What a model learned and what it forgot; a notebook shows it as a table."""

    @explain_missing_packages()
    def table(self) -> "pd.DataFrame":
        """Return one row for each benchmark and metric; scores are shares of 1."""
        import pandas as pd  # installed with MLflow; the import takes half a second

        return pd.DataFrame(findings_table(self).records)

    def save(self, file: str | Path, title: str = "before → after") -> Path:
        """Write a page with all results and lost answers, or a table; return the path of the file.

        Args:
            file: Its ending decides what is written: .html for a page; .md, .csv or .json for a
                table.
            title: The title of the page or table.

        Raises:
            ConfigError: `file` is no path with such an ending, or `title` is no text.
            OSError: It cannot be written.
        """
        if not isinstance(file, str | Path) or "\0" in str(file):
            raise ConfigError(f"save({file!r:.40}): give the path of a file, such as report.html")
        if not isinstance(title, str):
            raise ConfigError(f"save(title={title!r:.40}): give a text, such as 'before → after'")
        path = Path(file).expanduser()
        # By ending, such as .md: the format. "table", for the screen, has no ending.
        formats = {ending: name for name, endings in FORMATS.items() for ending in endings}
        file_format = formats.get(path.suffix.lower())
        if file_format is None:
            raise ConfigError(f"save({str(file)!r}): end the name in {', '.join(formats)}")
        if file_format == "html":
            from slimdown.report.run_page import render_page  # imports jinja2: 0.2 s

            content = render_page(self, title)
        else:
            notes = describe_findings(self)
            content = write_table(findings_table(self, title, notes), file_format)
        write_atomically(path, content)
        return path

    def passes(
        self, others: float | Literal["off"] | None = None, /, **budgets: float | Literal["off"]
    ) -> "BudgetResult":
        """Check each loss against its budget.

        `passes("off", gsm8k=0.02)` checks only GSM8K.

        Args:
            others: The largest loss you allow for each retained benchmark that you do not name.
                None: its own `max_loss`, or its margin. "off": such benchmarks are not checked.
            budgets: The largest loss you allow by benchmark, as a share: `gsm8k=0.02` is two
                points; with `gsm8k="off"` GSM8K is not checked.

        Returns:
            An object that is true if every loss is proven to be within its budget, and false if one
            exceeds its budget or there are too few questions to decide.

        Raises:
            ConfigError: A budget is no share, or its benchmark was not measured.
        """
        # The name "" stands for all retained benchmarks without a budget of their own.
        all_budgets: dict[str, Any] = budgets if others is None else {"": others, **budgets}
        # The names of `off` are benchmarks, or "" if all that are not named are off.
        off = [name for name, budget in all_budgets.items() if budget == "off"]
        shares = {name: budget for name, budget in all_budgets.items() if name not in off}
        return BudgetResult(tuple(check_budgets(self, shares, off=off)))

    def _repr_html_(self) -> str:  # what a notebook shows
        return write_table(self._make_table(), "html")

    def __repr__(self) -> str:  # without a legend: a table for the screen
        return write_table(replace(self._make_table(), legend=""), "table")

    def _make_table(self) -> Table:
        """Return a table of all changes, with few notes."""
        return findings_table(self, notes=summarize_briefly(self))


@dataclass(frozen=True, repr=False)
class BudgetResult(Gate):
    """Budget checks of several benchmarks; true if every loss is proven to be within its budget."""

    def __bool__(self) -> bool:
        return self.outcome is Outcome.within

    def __repr__(self) -> str:
        return "\n".join([describe_outcome(self), *describe_budgets(self)])
