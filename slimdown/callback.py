"""Forgetting watched while any `transformers.Trainer` trains, through the trainer's own logging."""

import re
import sys
import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler

from slimdown.config.benchmarks import Named, read_benchmarks
from slimdown.config.schema import EvaluationConfig, Until
from slimdown.evaluation.repeatable import Measured, Questions, load_questions
from slimdown.models.causal import CausalModel, causal_model, has_untouched_base, without_adapters
from slimdown.notebook import Findings, judge
from slimdown.stats.runs import recorded_changes
from slimdown.tracking.names import score_metrics, to_metrics
from slimdown.utils.errors import SlimdownError

_BY_STEP = re.compile(r"/(mean_retained_|mean_target_)?change(_low|_high)?$")


class ForgettingCallback(TrainerCallback):  # type: ignore[misc]
    """Measures the base when training begins, a few questions every so many steps, and everything at the end.

    What is measured goes where the trainer's own logs go (`report_to`, `state.log_history`), under the names of
    docs/metrics.md: `forgetting/gsm8k/change` with `_low` and `_high` by step, of the few questions; and at the end, of
    all, everything else. `findings` holds what was found once training has ended. Training takes the same steps.

    The base is the model without its adapters, or what training began with. Where it is not in the weights any more, as
    in a full fine-tuning that is resumed, it is read from `forgetting/` in the trainer's `output_dir`, where every
    training leaves it. Under DDP the first process measures while the others wait: `ddp_timeout` has to be longer.

    Args:
        benchmarks: as `slimdown.measure` takes them.
        every: steps from one look to the next; 0: only at the beginning and at the end.
        questions: how many of each benchmark are asked at a look, always the first.
        limit, num_fewshot, apply_chat_template, token_budget, batch_size: as `slimdown.measure` takes them.

    Raises:
        SlimdownError: there is no such benchmark, or no such setting.
    """

    findings: Findings | None = None

    def __init__(
        self,
        benchmarks: Named | Iterable[Named],
        every: int = 50,
        questions: int = 64,
        *,
        limit: int | None = None,
        num_fewshot: int | None = None,
        apply_chat_template: bool = False,
        token_budget: int | None = None,
        batch_size: int = 16,
    ) -> None:
        for name, value, least in (("every", every, 0), ("questions", questions, 1)):
            if not isinstance(value, int) or value < least:
                raise SlimdownError(f"{name}={value!r} must be a whole number of at least {least}")
        self._chosen = read_benchmarks(benchmarks, limit=limit, num_fewshot=num_fewshot)
        self._config = EvaluationConfig(
            token_budget, batch_size, apply_chat_template, holdout=0.0, until=Until.all
        )
        self._every, self._n_few = every, questions
        self._model: Any = lambda: None  # a weak reference to the one whose base is measured

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Measure the base, or read what was measured of it."""
        given = causal_model(
            kwargs["model"], kwargs["processing_class"]
        )  # in every process: all stop, or none
        if (
            not state.is_world_process_zero or self._model() is given.model
        ):  # a batch size was tried before this one
            return control
        self._handler, self._model = self._whose(), weakref.ref(given.model)
        self._all = load_questions(self._chosen, self._config)
        self._few = self._all.few(self._n_few)
        self._base, self._few_base = self._measured_base(
            given, state, Path(args.output_dir) / "forgetting"
        )
        return self._log(score_metrics("base", self._base.benchmarks), args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Ask the few questions."""
        is_time = (
            self._every
            and state.global_step % self._every == 0
            and state.global_step < state.max_steps
        )
        if not state.is_world_process_zero or not is_time:
            return control
        values = _changes(judge(self._few_base, self._ask(self._few, self._few_base, kwargs)))
        return self._log(
            {k: v for k, v in values.items() if _BY_STEP.search(k)}, args, state, control
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Ask everything."""
        if not state.is_world_process_zero:
            return control
        tuned = self._ask(self._all, self._base, kwargs)
        self.findings = judge(self._base, tuned)
        values = score_metrics("tuned", tuned.benchmarks) | _changes(self.findings)
        return self._log(values, args, state, control)

    def _ask(self, questions: Questions, base: Measured, kwargs: Any) -> Measured:
        return questions.ask(
            causal_model(kwargs["model"], kwargs["processing_class"]), like=base.scoring
        )

    def _measured_base(
        self, given: CausalModel, state: Any, folder: Path
    ) -> tuple[Measured, Measured]:
        """The base's answers to all questions and to the few."""
        asked = {"all": self._all, "few": self._few}
        if state.global_step:  # resumed
            kept = [questions.read(folder / name) for name, questions in asked.items()]
            if kept[0] and kept[1]:
                return kept[0], kept[1]
            if not has_untouched_base(given.model):
                raise SlimdownError(
                    f"training goes on at step {state.global_step}, where the weights are not the base's any more, and "
                    f"{folder} does not hold what the base answered to these questions: put it there from where the "
                    "training began, with the same benchmarks and settings here, or begin anew"
                )
        with without_adapters(given.model) if has_untouched_base(given.model) else nullcontext():
            everything = self._all.ask(given)
            few = self._few.ask(given, like=everything.scoring)
        for name, measured in (("all", everything), ("few", few)):
            asked[name].write(measured, folder / name)
        return everything, few

    def _log(self, values: dict[str, float], args: Any, state: Any, control: Any) -> Any:
        """Hand values to the trainer's history and to whoever its logs go to."""
        epoch = {"epoch": state.epoch} if state.epoch is not None else {}
        state.log_history.append({**values, **epoch, "step": state.global_step})
        # Neither Trainer.log, which in TRL empties what it means to log itself, nor CallbackHandler.on_log, after which
        # the trainer would leave out the step's own loss.
        return self._handler.call_event("on_log", args, state, control, logs={**values, **epoch})

    def _whose(self) -> CallbackHandler:
        """The trainer's callbacks, of which this one is made the first: integrations close their logs at the end.

        transformers 5.20 to 5.24 hands a callback no way to log; to be deleted when it does.
        """
        frame: Any = sys._getframe()
        while frame := frame.f_back:
            handler = frame.f_locals.get("self")
            if isinstance(handler, CallbackHandler) and self in handler.callbacks:
                handler.callbacks.remove(self)
                handler.callbacks.insert(0, self)
                return handler
        raise SlimdownError(
            "ForgettingCallback is called by no transformers.Trainer; hand it over with callbacks=[...]"
        )


def _changes(findings: Findings) -> dict[str, float]:
    return to_metrics(recorded_changes(findings))
