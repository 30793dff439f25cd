"""Watch forgetting while a `transformers.Trainer` trains."""

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, Unpack

from tqdm import tqdm

from slimdown.api.measuring import NotebookFindings, Prompts, build_evaluator, judge
from slimdown.config.benchmarks import BenchmarkSpec
from slimdown.evaluation.results import Evaluation
from slimdown.judging.budgets import default_budgets
from slimdown.judging.findings import Findings
from slimdown.models.causal import disabled_adapters, has_untouched_base
from slimdown.report import console
from slimdown.report.formatting import format_number, format_points, pluralize
from slimdown.runs.forgetting_watcher import WatchingCallback, is_last_step, wrap_trained
from slimdown.utils.errors import ConfigError, ModelError


class ForgettingCallback(WatchingCallback):
    """Watch forgetting during a training: measure the base model, then the model at regular looks.

    It measures the base model at the start, asks a few questions every few steps, and asks all
    questions at the end. It prints a line each time, with the changes in points and their 95 %
    confidence intervals:

        step 0       base   gsm8k 24.0   arc_easy 61.0   (64 questions each)
        step 50/200  gsm8k −6.2 [−14.1, +1.7]   arc_easy −1.6 [−7.8, +4.7]

    The values go to the trainer's `state.log_history`: first `base/gsm8k`, then at each look
    `change/gsm8k` with `_low` and `_high` for the few questions, and at the last step the same for
    all questions, with `tuned/gsm8k`. After the training, `findings` holds the results. The
    callback does not change the steps of the training.

    The base model is the model without its adapters or, without adapters, the model that the
    training began with. So a full fine-tuning cannot be resumed with this callback. Under DDP the
    first process measures while the others wait, so `ddp_timeout` must be longer than that.

    Args:
        benchmarks: The benchmarks, as `slimdown.measure` takes them: names, files of your own
            questions, or settings.
        every: Number of steps between two looks; 0: look only at the start and at the end.
        questions: How many questions of each benchmark a look asks, always the first ones; None:
            64.
        stop_on_forgetting: Stop the training when a look proves that a loss exceeds a benchmark's
            budget (`{"task": "gsm8k", "max_loss": 0.05}`, or its margin), and keep the weights of
            the last look within all budgets. The probability that a training within its budgets is
            stopped is at most 5 %. The questions of the looks choose the weights, and `findings`
            uses them too, so judge the model on other questions. A copy of the trained weights
            stays in memory.
        log: A function that also gets the values, for example `mlflow.log_metrics`; called as
            `log(values, step=step)`.
        limit: As in `slimdown.measure`, like the next four arguments.
        num_fewshot: Number of worked examples in the prompt.
        apply_chat_template: Use the tokenizer's chat template for prompts, or "auto".
        batch_size: Rows per forward pass.
        include_path: A folder with task files of your own.
        prompts: Settings for models that chat or think: system_instruction, chat_template_args,
            enable_thinking, think_end_token, max_gen_toks, stop. docs/instruct.md explains them.

    Raises:
        ConfigError: There is no such benchmark or setting.
    """

    findings: NotebookFindings | None = None  # None until all questions are asked at the end

    def __init__(
        self,
        benchmarks: BenchmarkSpec | Iterable[BenchmarkSpec],
        every: int = 50,
        questions: int | None = None,
        *,
        stop_on_forgetting: bool = False,
        log: Callable[..., Any] | None = None,
        limit: int | None = None,
        num_fewshot: int | None = None,
        apply_chat_template: bool | str = False,
        batch_size: int | None = None,
        include_path: str | None = None,
        **prompts: Unpack[Prompts],
    ) -> None:
        if not every and (questions is not None or stop_on_forgetting):
            idle = "stop_on_forgetting" if stop_on_forgetting else f"questions={questions}"
            raise ConfigError(f"{idle}: every=0 looks at nothing between start and end; set every")
        questions = 64 if questions is None else questions
        _check_number("every", every, least=0)
        _check_number("questions", questions, least=1)
        _check_number("limit", 1 if limit is None else limit, least=1)  # None: all questions
        if stop_on_forgetting not in (True, False):
            raise ConfigError(f"stop_on_forgetting={stop_on_forgetting!r} must be True or False")
        if not (log is None or callable(log)):
            raise ConfigError(f"log={log!r} must be a function, such as wandb.log")
        build = partial(  # takes the number of questions, `limit`
            build_evaluator,
            benchmarks,
            num_fewshot=num_fewshot,
            apply_chat_template=apply_chat_template,
            batch_size=batch_size,
            include_path=include_path,
            **prompts,
        )
        self._full_evaluator = build(limit=limit)  # for the start and the end
        look_evaluator = build(limit=min(questions, limit or questions))
        tasks = look_evaluator.tasks
        budgets = default_budgets({name: task.config for name, task in tasks.items()})
        if stop_on_forgetting and not budgets:
            problem = "stop_on_forgetting needs a benchmark that is retained, or a max_loss"
            raise ConfigError(problem)
        # Without budgets, no look ends the training.
        super().__init__(look_evaluator, every, budgets if stop_on_forgetting else {})
        self._log_elsewhere = log
        self._full_base_evaluation: Any = None  # of all questions; None until the training begins
        # Returns the model whose base was measured, or None. It is a weak reference, which does not
        # keep the model in memory.
        self._measured_ref: Callable[[], Any] = lambda: None

    def _check_training(self, args: Any, state: Any, is_untouched: bool) -> None:
        """Refuse a training whose base cannot be measured, or that it could not stop.

        Args:
            args: The trainer's `TrainingArguments`.
            state: Its `TrainerState`. `global_step` is above 0 if it resumes from a checkpoint.
            is_untouched: Whether the model without its adapters is still the base.

        Raises:
            ModelError: It says what to change.
        """
        if self._budgets and (args.world_size > 1 or state.global_step):
            raise ModelError(
                "stop_on_forgetting takes one process and a training from its first step: what a "
                "look keeps is in no checkpoint"
            )
        if self._budgets and args.load_best_model_at_end:
            reason = "both choose the weights; leave one of them out"
            raise ModelError(f"stop_on_forgetting and load_best_model_at_end=True {reason}")
        if state.global_step and not is_untouched:
            raise ModelError(
                f"training goes on at step {state.global_step}, where the weights are not the "
                "base's any more; begin anew, or measure the base and the tuned model by "
                "slimdown.measure"
            )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the base on all questions, and on the fewer ones of the looks during training.

        The answers to all questions are kept in `_full_base_evaluation`, for the comparison at the
        end. `measure_base` keeps those of the looks.

        Raises:
            ModelError: The base cannot be measured any more, or no look could end the training.
            DataError: The base's answers cannot be judged by the budgets.
        """
        loaded = wrap_trained(kwargs)
        self.findings, self.stopped = None, ""  # forget an earlier `train()`
        if self._measured_ref() is loaded.model:  # the reference gives None if that model is gone
            # The trainer starts the same training again, with a smaller batch size that fits
            # (`auto_find_batch_size`). The base was measured at the first start.
            return
        # Whether disabling the adapters gives the base, however far the adapters are trained.
        is_untouched = has_untouched_base(loaded.model)
        self._check_training(args, state, is_untouched)  # in every process: all fail together
        if not state.is_world_process_zero:
            return
        super().on_train_begin(args, state, control)
        if self._budgets:
            self.keep(0, loaded.model)  # to go back to, if each look finds too large a loss
        _show(state, f"step {state.global_step}", "measuring the base")
        # If disabling the adapters does not give the base, the model is asked as it is. It is still
        # the base, because `_check_training` refuses to go on with weights that steps have changed.
        with disabled_adapters(loaded.model) if is_untouched else nullcontext():
            full_evaluation = self._full_evaluator.evaluate(loaded)
            # The console shows the scores on the looks' questions, if there are looks: those that
            # it shows later are on the same questions.
            shown = self.measure_base(loaded) if self._every else full_evaluation
        self._measured_ref = weakref.ref(loaded.model)
        self._full_base_evaluation = full_evaluation
        benchmarks = full_evaluation.benchmarks
        self._log({f"base/{name}": b.score.value for name, b in benchmarks.items()}, state)
        _show(state, f"step {state.global_step}", f"base   {_describe_scores(shown)}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask the few questions, and at the last step all of them."""
        if not state.is_world_process_zero:
            return
        super().on_step_end(args, state, control, **kwargs)
        # All questions are not asked in `on_train_end`, because loggers are closed by then. But a
        # trainer that loads the best model does so after the last step, so they are asked there.
        if is_last_step(state, control) and not args.load_best_model_at_end:
            self._measure_all(state, kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask all questions, if `on_step_end` has not.

        It has not if the best model was loaded after the last step, or if another callback ended
        the training.
        """
        if state.is_world_process_zero and self.findings is None:
            self._measure_all(state, kwargs)
        self._measured_ref = lambda: None  # the next `train()` has another base
        super().on_train_end(args, state, control)

    def report_look(self, findings: Findings, state: Any) -> None:
        """Log and print what a look found."""
        self._log(_list_changes(findings), state)
        _show(state, f"step {state.global_step}/{state.max_steps}", _describe_changes(findings))

    def _measure_all(self, state: Any, kwargs: Mapping[str, Any]) -> None:
        """Ask all questions of the trained model, judge them, and log and print the findings.

        Args:
            state: The trainer's `TrainerState`.
            kwargs: What the trainer gave to the callback, see `wrap_trained`.
        """
        if self.stopped:  # a look has ended the training, and put earlier weights back
            _show(state, "stopped", self.stopped)
        tuned_evaluation = self._full_evaluator.evaluate(wrap_trained(kwargs))
        findings = self.findings = judge(self._full_base_evaluation, tuned_evaluation)
        benchmarks = findings.benchmarks
        scores = {f"tuned/{name}": b.primary.tuned.value for name, b in benchmarks.items()}
        self._log(scores | _list_changes(findings), state)
        counts = [benchmark.n for benchmark in benchmarks.values()]
        _show(state, "end", f"{_describe_changes(findings)}   {_count_questions(counts)}")

    def _log(self, values: dict[str, float], state: Any) -> None:
        """Log values to the trainer's history, and to the function `log` that the user gave."""
        epoch = {"epoch": state.epoch} if state.epoch is not None else {}
        state.log_history.append({**values, **epoch, "step": state.global_step})
        if self._log_elsewhere:
            self._log_elsewhere(values, step=state.global_step)


def _check_number(name: str, number: object, least: int) -> None:
    """Refuse an argument that is no whole number, or is too small."""
    if type(number) is not int or number < least:  # `isinstance` would take True for a number
        raise ConfigError(f"{name}={number!r} must be a whole number of at least {least}")


def _list_changes(findings: Findings) -> dict[str, float]:
    """Return the change of each benchmark and the ends of its interval, by the name to log.

    The names are `change/NAME`, `change/NAME_low` and `change/NAME_high`; the values are shares.
    """
    values: dict[str, float] = {}
    for name, benchmark in findings.benchmarks.items():
        change, key = benchmark.primary.difference, f"change/{name}"
        values |= {key: change.value, f"{key}_low": change.low, f"{key}_high": change.high}
    return values


def _show(state: Any, moment: str, content: str) -> None:
    """Print a line above the bars of tqdm, which the trainer draws in terminals.

    Args:
        state: The trainer's `TrainerState`.
        moment: The beginning of the line, such as `step 50/200`.
        content: The rest of the line.
    """
    # As wide as the last step's, so that the contents stand below each other.
    width = len(f"step {state.max_steps}/{state.max_steps}")
    with tqdm.external_write_mode():
        console.show_line(f"{moment:<{width}}  {content}")


def _describe_scores(evaluation: Evaluation) -> str:
    """Write a line of scores in percent, and of how many questions they are."""
    parts, counts = [], []
    for name, benchmark in evaluation.benchmarks.items():
        parts.append(f"{name} {format_number(100 * benchmark.score.value)}")
        counts.append(len(benchmark.samples))
    return "   ".join([*parts, _count_questions(counts)])


def _describe_changes(findings: Findings) -> str:
    """Write a line of changes in percentage points, with their confidence intervals."""
    parts = []
    for name, benchmark in findings.benchmarks.items():
        change, interval = format_points(benchmark.primary.difference.estimate)
        # Without an interval if too many answers never ended their thinking: no change is claimed.
        parts.append(f"{name} {change} {interval if benchmark.is_measured else ''}".rstrip())
    return "   ".join(parts)


def _count_questions(counts: list[int]) -> str:
    """Say how many questions the benchmarks have, such as `(64 questions each)`.

    Args:
        counts: The number of questions of each benchmark.
    """
    fewest, most = min(counts), max(counts)
    n = pluralize(most, "question") if fewest == most else f"{fewest:,} to {most:,} questions"
    return f"({n} each)" if len(counts) > 1 else f"({n})"
