"""Watch forgetting while a `transformers.Trainer` trains."""

import weakref
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, Unpack

from transformers import TrainerCallback

from slimdown.config.benchmarks import BenchmarkSpec
from slimdown.evaluation.results import Evaluation
from slimdown.models.causal import disabled_adapters, has_untouched_base, wrap_model
from slimdown.notebook import NotebookFindings, Prompts, build_evaluator, judge
from slimdown.utils.errors import ConfigError, ModelError


class ForgettingCallback(TrainerCallback):  # type: ignore[misc]
    """Measure the base at the start, a few questions every so many steps, and all at the end.

    The values stand in the trainer's `state.log_history`: `base/gsm8k`, then by step
    `change/gsm8k` with `_low` and `_high` of the few questions, and at the last step those of all
    questions, with `tuned/gsm8k`. `findings` holds everything once training has ended. The
    training takes the same steps as without the callback.

    The base is the model without its adapters, or what the training began with; so a full
    fine-tuning cannot be resumed under it. Under DDP the first process measures while the others
    wait, so `ddp_timeout` has to be longer than that.

    Args:
        benchmarks: As `slimdown.measure` takes them.
        every: Steps between two looks; 0: only at the start and at the end.
        questions: How many questions of each benchmark a look asks, always the first ones.
        log: Sends the values elsewhere, too, e.g. `mlflow.log_metrics`; called as
            `log(values, step=step)`.
        limit: As `slimdown.measure` takes it; so are the four that follow.
        num_fewshot: Worked examples before each question.
        apply_chat_template: Ask through the tokenizer's chat template, or "auto".
        batch_size: Rows in a forward.
        include_path: A folder with task files of your own.
        prompts: How models are asked that chat or think, see `slimdown.notebook.Prompts`.

    Raises:
        ConfigError: There is no such benchmark or setting.
    """

    findings: NotebookFindings | None = None

    def __init__(
        self,
        benchmarks: BenchmarkSpec | Iterable[BenchmarkSpec],
        every: int = 50,
        questions: int = 64,
        *,
        log: Callable[..., Any] | None = None,
        limit: int | None = None,
        num_fewshot: int | None = None,
        apply_chat_template: bool | str = False,
        batch_size: int | None = None,
        include_path: str | None = None,
        **prompts: Unpack[Prompts],
    ) -> None:
        for name, value, least in (("every", every, 0), ("questions", questions, 1)):
            if not isinstance(value, int) or value < least:
                raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}")
        few = questions if limit is None else min(questions, limit)
        settings = num_fewshot, apply_chat_template, batch_size, include_path
        self._every, self._log_elsewhere = every, log
        self._evaluators = {
            name: build_evaluator(benchmarks, n_questions, *settings, **prompts)
            for name, n_questions in (("all", limit), ("few", few))
        }
        self._base: dict[str, Evaluation] = {}
        self._model: Any = lambda: None  # a weak reference to the model whose base was measured

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Measure the base."""
        loaded = wrap_model(kwargs["model"], kwargs["processing_class"])  # fails in every process
        if not state.is_world_process_zero or self._model() is loaded.model:
            return control  # the second: the trainer tried another batch size and starts again
        is_untouched = has_untouched_base(loaded.model)
        if state.global_step and not is_untouched:
            raise ModelError(
                f"training goes on at step {state.global_step}, where the weights are not the "
                "base's any more; begin anew, or measure the base and the tuned model by "
                "slimdown.measure"
            )
        self._model, self.findings = weakref.ref(loaded.model), None
        with disabled_adapters(loaded.model) if is_untouched else nullcontext():
            self._base = {name: e.evaluate(loaded) for name, e in self._evaluators.items()}
        scores = self._base["all"].benchmarks
        self._log({f"base/{name}": b.score.value for name, b in scores.items()}, state)
        return control

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Ask the few questions, and at the last step all of them."""
        if not state.is_world_process_zero:
            return control
        # Loggers close in on_train_end, before this callback is called there.
        if state.global_step >= state.max_steps or control.should_training_stop:
            self._measure_all(state, kwargs)
        elif self._every and state.global_step % self._every == 0:
            self._log(_changes(self._judge("few", kwargs)), state)
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Ask all questions, where a training that ended early has not yet."""
        if state.is_world_process_zero and self.findings is None:
            self._measure_all(state, kwargs)
        return control

    def _measure_all(self, state: Any, kwargs: Any) -> None:
        self.findings = self._judge("all", kwargs)
        primary = {name: b.primary for name, b in self.findings.benchmarks.items()}
        tuned = {f"tuned/{name}": change.tuned.value for name, change in primary.items()}
        self._log(tuned | _changes(self.findings), state)

    def _judge(self, name: str, kwargs: Any) -> NotebookFindings:
        loaded = wrap_model(kwargs["model"], kwargs["processing_class"])
        return judge(self._base[name], self._evaluators[name].evaluate(loaded))

    def _log(self, values: dict[str, float], state: Any) -> None:
        epoch = {"epoch": state.epoch} if state.epoch is not None else {}
        state.log_history.append({**values, **epoch, "step": state.global_step})
        if self._log_elsewhere:
            self._log_elsewhere(values, step=state.global_step)


def _changes(findings: NotebookFindings) -> dict[str, float]:
    """Return the change of each benchmark with the ends of its interval, by metric name."""
    values: dict[str, float] = {}
    for name, benchmark in findings.benchmarks.items():
        d = benchmark.primary.difference
        ends = {f"change/{name}_low": d.low, f"change/{name}_high": d.high}
        values |= {f"change/{name}": d.value, **ends}
    return values
