"""Watch forgetting while a `transformers.Trainer` trains."""

import weakref
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Unpack

from transformers import TrainerCallback

from slimdown.config.benchmarks import BenchmarkSpec
from slimdown.evaluation.results import Evaluation
from slimdown.judging.budgets import default_budgets, judge_look
from slimdown.models.base_model import LoadedModel
from slimdown.models.causal import (
    copy_trained_weights,
    disabled_adapters,
    has_untouched_base,
    restore_weights,
    wrap_model,
)
from slimdown.notebook import NotebookFindings, Prompts, build_evaluator, judge
from slimdown.utils.errors import ConfigError, ModelError


class ForgettingCallback(TrainerCallback):  # type: ignore[misc]
    """Measure the base at the start, ask a few questions every few steps, and all at the end.

    The values go to the trainer's `state.log_history`: first `base/gsm8k`, then at each look
    `change/gsm8k` with `_low` and `_high` for the few questions, and at the last step those for all
    questions, with `tuned/gsm8k`. For choices, `p_right_change/mmlu` is the change of the right
    one's probability. `findings` holds everything once training has ended. The training takes the
    same steps as without the callback.

    The base is the model without its adapters, or the model that the training began with; so a full
    fine-tuning cannot be resumed with this callback. Under DDP the first process measures while the
    others wait, so `ddp_timeout` has to be longer than that.

    Args:
        benchmarks: The benchmarks, as `slimdown.measure` takes them.
        every: Steps between two looks; 0: only at the start and at the end.
        questions: How many questions of each benchmark a look asks, always the first ones; None:
            64.
        stop_on_forgetting: End the training where a look shows a loss beyond a benchmark's budget
            (`{"task": "gsm8k", "max_loss": 0.05}`, or its margin), and keep the weights of the last
            look within all budgets. The chance that any look ends a training that keeps its budgets
            is at most 5 %. These questions choose the weights, and `findings` are about them, too:
            judge the model on others. A copy of what is trained stays in memory.
        log: Sends the values elsewhere, too, e.g. `mlflow.log_metrics`; called as
            `log(values, step=step)`.
        limit: As `slimdown.measure` takes it, and so are the next four.
        num_fewshot: Worked examples before each question.
        apply_chat_template: Ask through the tokenizer's chat template, or "auto".
        batch_size: Rows in a forward.
        include_path: A folder with task files of your own.
        prompts: Settings for models that chat or think, see `slimdown.notebook.Prompts`.

    Raises:
        ConfigError: There is no such benchmark or setting.
    """

    findings: NotebookFindings | None = None
    stopped = ""  # why the training ended early, and what was kept

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
        numbers = ("every", every, 0), ("questions", questions, 1), ("limit", limit or 1, 1)
        for name, n, least in numbers:
            if type(n) is not int or n < least:
                raise ConfigError(f"{name}={n!r} must be a whole number of at least {least}")
        if stop_on_forgetting not in (True, False):
            raise ConfigError(f"stop_on_forgetting={stop_on_forgetting!r} must be True or False")
        if not (log is None or callable(log)):
            raise ConfigError(f"log={log!r} must be a function, such as wandb.log")
        few = min(questions, limit or questions)
        settings = num_fewshot, apply_chat_template, batch_size, include_path
        self._every, self._log_elsewhere = every, log
        self._evaluators = {
            name: build_evaluator(benchmarks, n_questions, *settings, **prompts)
            for name, n_questions in (("all", limit), ("few", few))
        }
        tasks = self._evaluators["few"].tasks
        self._budgets = default_budgets({name: task.config for name, task in tasks.items()})
        if stop_on_forgetting and not self._budgets:
            raise ConfigError(
                "stop_on_forgetting needs a benchmark that is retained, or a max_loss"
            )
        self._stops = stop_on_forgetting
        self._kept: tuple[int, dict[str, Any]] = (0, {})  # step and weights
        self._base: dict[str, Evaluation] = {}
        self._model: Any = lambda: None  # a weak reference to the model whose base was measured

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Measure the base."""
        loaded = _wrap_trained(kwargs)  # fails in every process
        self.findings, self.stopped = None, ""  # of an earlier `train()`
        if not state.is_world_process_zero or self._model() is loaded.model:
            return control  # the same model: the trainer tries another batch size and starts again
        if self._stops and (args.world_size > 1 or state.global_step):
            raise ModelError(
                "stop_on_forgetting takes one process and a training from its first step: what a "
                "look keeps is in no checkpoint"
            )
        if self._stops and args.load_best_model_at_end:
            reason = "both choose the weights; leave one of them out"
            raise ModelError(f"stop_on_forgetting and load_best_model_at_end=True {reason}")
        if self._stops and self._every > state.max_steps:
            raise ModelError(
                f"every={self._every} is beyond the {state.max_steps} steps; set fewer"
            )
        is_untouched = has_untouched_base(loaded.model)
        if state.global_step and not is_untouched:
            raise ModelError(
                f"training goes on at step {state.global_step}, where the weights are not the "
                "base's any more; begin anew, or measure the base and the tuned model by "
                "slimdown.measure"
            )
        self._model = weakref.ref(loaded.model)
        if self._stops:  # an untrained model has lost nothing
            self._kept = 0, copy_trained_weights(loaded.model)
        with disabled_adapters(loaded.model) if is_untouched else nullcontext():
            self._base = {name: e.evaluate(loaded) for name, e in self._evaluators.items()}
        scores = self._base["all"].benchmarks
        self._log({f"base/{name}": b.score.value for name, b in scores.items()}, state)
        return control

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Ask the few questions, and at the last step all of them."""
        if not state.is_world_process_zero:
            return control
        if self._every and state.global_step % self._every == 0:
            is_last = state.global_step >= state.max_steps or control.should_training_stop
            if self._stops or not is_last:
                findings = self._judge("few", kwargs)
                self._log(_changes(findings), state)
                if self._stops and self._is_beyond(findings, state, kwargs):
                    control.should_training_stop = True
        # Loggers close in on_train_end, before this callback is called there.
        is_over = state.global_step >= state.max_steps or control.should_training_stop
        if is_over and not args.load_best_model_at_end:  # that comes after the last step
            self._measure_all(state, kwargs)
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Ask all questions, if that was not done yet because the training ended early."""
        if state.is_world_process_zero and self.findings is None:
            self._measure_all(state, kwargs)
        return control

    def _is_beyond(self, findings: NotebookFindings, state: Any, kwargs: Any) -> bool:
        """Keep the weights of a look within all budgets; restore them if a loss is beyond."""
        model = _wrap_trained(kwargs).model
        n_looks = max(1, state.max_steps // self._every)
        is_within, beyond = judge_look(findings, self._budgets, n_looks)
        if is_within:
            self._kept = state.global_step, copy_trained_weights(model)
        if beyond:
            restore_weights(model, self._kept[1])
            at = f"at step {state.global_step}; kept as of step {self._kept[0]}"
            self.stopped = f"{beyond} {at}"
        return bool(beyond)

    def _measure_all(self, state: Any, kwargs: Any) -> None:
        self.findings = self._judge("all", kwargs)
        primary = {name: b.primary for name, b in self.findings.benchmarks.items()}
        tuned = {f"tuned/{name}": change.tuned.value for name, change in primary.items()}
        self._log(tuned | _changes(self.findings), state)

    def _judge(self, name: str, kwargs: Any) -> NotebookFindings:
        loaded = _wrap_trained(kwargs)
        return judge(self._base[name], self._evaluators[name].evaluate(loaded))

    def _log(self, values: dict[str, float], state: Any) -> None:
        epoch = {"epoch": state.epoch} if state.epoch is not None else {}
        state.log_history.append({**values, **epoch, "step": state.global_step})
        if self._log_elsewhere:
            self._log_elsewhere(values, step=state.global_step)


def _wrap_trained(kwargs: dict[str, Any]) -> LoadedModel:
    """Wrap the trainer's model; memory holds gradients and Adam's two states besides."""
    loaded = wrap_model(kwargs["model"], kwargs["processing_class"])
    n_trained = sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)
    return replace(loaded, memory_bytes=loaded.memory_bytes + 12 * n_trained)


def _changes(findings: NotebookFindings) -> dict[str, float]:
    """Return the change of each benchmark with the ends of its interval, by metric name."""
    values: dict[str, float] = {}
    for name, benchmark in findings.benchmarks.items():
        changes = {"change": benchmark.primary.difference.estimate}
        if benchmark.p_right:
            changes["p_right_change"] = benchmark.p_right.change
        for prefix, d in changes.items():
            ends = {f"{prefix}/{name}_low": d.low, f"{prefix}/{name}_high": d.high}
            values |= {f"{prefix}/{name}": d.value, **ends}
    return values
