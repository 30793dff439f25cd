"""The harness, called in one place: a model and benchmarks -> `Evaluation`, with every sample kept.

`questions.py` says what is asked, `results.py` reads what comes back.
"""

import hashlib
import json
import random
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.metadata import version
from math import isnan, nan
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from slimdown.config.schema import BenchmarkConfig, EvaluationConfig, OnProgress
from slimdown.data.chat import ONE_DAY, check_chat_template
from slimdown.evaluation.answers import BenchmarkEvaluation, Evaluation
from slimdown.evaluation.questions import FEWSHOT_SEED, Staged, build_requests, in_stages
from slimdown.evaluation.results import read_results, read_stage
from slimdown.models.causal import CausalModel, own_forward
from slimdown.models.dequantize import dequantized, dequantizes
from slimdown.models.memory import is_out_of_memory
from slimdown.models.model import context_window
from slimdown.utils import distributed as processes
from slimdown.utils.errors import SlimdownError

if TYPE_CHECKING:
    from slimdown.evaluation.engine import Scoring
    from slimdown.evaluation.parts import Parts


class Evaluator:
    """Measures one model on one benchmark after another; use as a context manager.

    Inside, 4-bit weights may be held as the values that they stand for; on leaving, the model, its mode and all random
    states are as they were. With a PEFT adapter on the model, what is measured is the tuned model.

    Args:
        loaded: the model.
        config: budget and prompt format.
        scoring: what `choose_scoring` returned for the base.
        on_progress: told how many questions of a benchmark are done; None shows bars.
    """

    def __init__(
        self,
        loaded: CausalModel,
        config: EvaluationConfig,
        scoring: "Scoring",
        on_progress: OnProgress | None = lambda done, total, note: None,
    ) -> None:
        self._loaded, self._config, self._scoring, self._on_progress = (
            loaded,
            config,
            scoring,
            on_progress,
        )
        self._open = ExitStack()

    def __enter__(self) -> "Evaluator":
        self._open.enter_context(_undisturbed(self._loaded))
        if self._scoring.dequantizes:
            self._open.enter_context(dequantized(self._loaded.model))
        self._lm = _language_model(
            self._loaded,
            self._config,
            scoring=self._scoring,
            progress=self._on_progress and self._progress,
        )
        return self

    def expect(self, report: BenchmarkEvaluation) -> None:
        """Take what another model answered for a guess at what this one will; it changes no answer."""
        self._lm.answered |= {
            sample.prompt: sample.response for sample in report.samples if sample.response
        }

    @property
    def accepted_draft_share(self) -> float:
        """Of the tokens that were decoded, those that had been guessed; none decoded: not a number."""
        return self._lm.n_guessed / self._lm.n_decoded if self._lm.n_decoded else nan

    def _progress(self, task: str, done: int, total: int) -> None:
        if self._on_progress:
            self._on_progress(
                min(total, done * processes.count()), total, task
            )  # the others are about as far

    def __exit__(self, *error: object) -> None:
        self._open.__exit__(None, None, None)

    def questions_hash(self, loaded_task: Any, benchmark: BenchmarkConfig) -> str:
        """A digest of all that the model would be asked, and of the task and rows that say how answers are scored.

        Raises:
            SlimdownError: the worked examples do not fit in the model's window; the harness would cut them in silence.
        """
        self._build(loaded_task, benchmark)
        return _digest(
            (name, task, task.instances) for name, task in sorted(loaded_task["tasks"].items())
        )

    def in_stages(self, loaded_task: Any, benchmark: BenchmarkConfig) -> Staged | None:
        """The benchmark's questions in stages, or None; see `questions.in_stages`.

        Raises:
            SlimdownError: see `questions_hash`.
        """
        self._build(loaded_task, benchmark)
        return in_stages(loaded_task, benchmark)

    def stage_hash(self, staged: Staged, stage: int) -> str:
        """What `questions_hash` is of a whole benchmark, of one stage."""
        return _digest(staged.instances(stage))

    def _build(self, loaded_task: Any, benchmark: BenchmarkConfig) -> None:
        for task in loaded_task["tasks"].values():
            build_requests(self._lm, task, benchmark, self._config)
            self._check_room(task, benchmark)

    def path(self, loaded_task: Any) -> str:
        """How a benchmark's answers come about: `Scoring.path`, and in how many shares prompts are decoded.

        Which prompts are decoded side by side depends on when others end; all else is computed in the same batches by
        however many processes.
        """
        is_shared = processes.count() > 1 and self._scoring.decodes and _generates(loaded_task)
        return self._scoring.path + (f"-{processes.count()}_processes" if is_shared else "")

    def _check_room(self, task: Any, benchmark: BenchmarkConfig) -> None:
        if benchmark.num_fewshot == 0:
            return  # what is too long by itself loses its start, as in the harness
        longest = max((str(instance.args[0]) for instance in task.instances), key=len)
        n_tokens = len(self._lm.tok_encode(longest))
        answer = (task.config.generation_kwargs or {}).get("max_gen_toks", self._lm.max_gen_toks)
        room = self._lm.max_length - (answer if task.OUTPUT_TYPE == "generate_until" else 0)
        if n_tokens > room:
            raise SlimdownError(
                f"num_fewshot={benchmark.num_fewshot}: the longest prompt of {task.config.task} has {n_tokens} tokens, "
                f"and {self._loaded.id} has room for {room}; ask with fewer worked examples, or choose a model with a "
                "longer window"
            )

    def evaluate(
        self, name: str, loaded_task: Any, benchmark: BenchmarkConfig, parts: "Parts | None" = None
    ) -> BenchmarkEvaluation:
        """Ask one benchmark's questions, but for those whose answers are in `parts`.

        Raises:
            SlimdownError: the harness cannot ask what is asked of it, or the model answers in no numbers.
        """
        begun = time.perf_counter()
        results = self._results(name, loaded_task, benchmark, parts)
        return self._sound(
            name, read_results(name, benchmark, results, time.perf_counter() - begun)
        )

    def evaluate_stage(
        self,
        name: str,
        staged: Staged,
        stage: int,
        benchmark: BenchmarkConfig,
        parts: "Parts | None" = None,
    ) -> BenchmarkEvaluation:
        """Ask the questions of one stage, but for those whose answers are in `parts`.

        Raises:
            SlimdownError: see `evaluate`.
        """
        begun = time.perf_counter()
        with staged.only(stage) as loaded_task:
            results = self._results(name, loaded_task, benchmark, parts, bootstrap_iters=0)
        versions = [task.VERSION for task in staged.loaded["tasks"].values()]
        seconds = time.perf_counter() - begun
        report = read_stage(
            benchmark, results, staged.asked(stage), staged.means, versions, seconds
        )
        return self._sound(name, report)

    def _results(
        self,
        name: str,
        loaded_task: Any,
        benchmark: BenchmarkConfig,
        parts: "Parts | None",
        **how: Any,
    ) -> Any:
        import lm_eval

        if parts:
            self._lm.parts = parts
        for task in loaded_task["tasks"].values():
            task.set_fewshot_seed(
                FEWSHOT_SEED
            )  # a task draws its shots from a generator that moves on
        try:
            return lm_eval.evaluate(
                self._lm,
                loaded_task,
                limit=benchmark.limit,
                apply_chat_template=self._config.apply_chat_template,
                fewshot_as_multiturn=self._config.apply_chat_template,
                **how,
            )
        except ValueError as error:
            raise SlimdownError(f"benchmark.{name} ({benchmark.task}): {error}") from None
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise SlimdownError(
                f"benchmark.{name} does not fit in the memory that is free, one question alone or, where no work is "
                f"shared, evaluation.batch_size={self._config.batch_size} of them: ask with a smaller num_fewshot, set "
                "evaluation.batch_size=1 or quantization.dequantize_for_evaluation=false"
            ) from None

    def _sound(self, name: str, report: BenchmarkEvaluation) -> BenchmarkEvaluation:
        """The report, in which every answer is a number."""
        for sample in report.samples:
            if any(isnan(value) for value in (*sample.log_likelihoods, *sample.scores.values())):
                raise SlimdownError(
                    f"benchmark.{name}: what {self._loaded.id} answers to question {sample.doc_id} of {sample.task} is "
                    f"not a number; model.dtype={self._loaded.dtype} overflows there, or its weights are damaged: try "
                    "model.dtype=float32, or download the model again"
                )
        return report


def _digest(asked: Iterable[tuple[str, Any, list[Any]]]) -> str:
    """Of tasks by name and what is asked of each."""
    digest = hashlib.sha256()
    for name, task, instances in asked:
        settings = json.dumps([name, task.dump_config()], sort_keys=True, default=str)
        digest.update(
            re.sub(r" at 0x[0-9a-f]+", "", settings).encode()
        )  # a function lies elsewhere each time
        for instance in instances:
            row = instance.doc if instance.idx == 0 else None
            digest.update(
                json.dumps([instance.doc_id, str(instance.args), row], default=str).encode()
            )
    return digest.hexdigest()[:16]


def choose_scoring(
    loaded: CausalModel,
    tasks: dict[str, Any],
    chosen: dict[str, BenchmarkConfig],
    config: EvaluationConfig,
    dequantize: str = "auto",
    tuned: Any = None,
) -> "Scoring":
    """How the answers of a base and of the model tuned from it come about, for both of their evaluations.

    Args:
        loaded: the base; or any model that is measured alone.
        tasks: what `load_tasks` returned for `chosen`.
        chosen: settings by benchmark name.
        config: budget and prompt format.
        dequantize: quantization.dequantize_for_evaluation.
        tuned: what will be asked besides: PEFT's config of an adapter, or another model, its numbers not needed.
    """
    with _undisturbed(loaded), ExitStack() as stack:
        if is_dequantized := dequantizes(loaded.model, dequantize):
            stack.enter_context(dequantized(loaded.model))
        lm = _language_model(loaded, config)
        scoring: Scoring = lm.choose_scoring(
            lambda: _longest_row(lm, tasks, chosen, config), tuned, is_dequantized
        )
        adapter = getattr(loaded.model, "active_peft_config", None) if tuned is None else tuned
        if (
            not (scoring.shares and scoring.decodes)
            and _n_virtual(adapter)
            and any(map(_generates, tasks.values()))
        ):
            raise SlimdownError(
                f"{loaded.id} with virtual tokens before each prompt can only be measured by PEFT's own generate "
                f"({scoring.reason}), which misplaces them (peft 0.21 with transformers 5.24); leave out the "
                "benchmarks with generated answers, or choose another method"
            )
        scoring = replace(scoring, window=_shorter_window(int(lm.max_length), adapter))
        return processes.from_first(scoring)  # a trial takes memory, which one of several may lack


def _n_virtual(adapter: Any) -> int:
    return getattr(adapter, "num_virtual_tokens", None) or 0


def _generates(loaded_task: Any) -> bool:
    return any(task.OUTPUT_TYPE == "generate_until" for task in loaded_task["tasks"].values())


def _shorter_window(own: int, tuned: Any) -> int | None:
    """Tokens that both models have room for; None where that is the same."""
    other = (
        context_window(tuned) or own
        if isinstance(tuned, torch.nn.Module)
        else own - _n_virtual(tuned)
    )
    return None if other == own else min(own, other)


def _longest_row(
    lm: Any, tasks: dict[str, Any], chosen: dict[str, BenchmarkConfig], config: EvaluationConfig
) -> int:
    """Tokens of the longest row that will be asked: prompt and answer, or prompt and what may be generated."""
    rows = [0]
    for name, benchmark in chosen.items():
        for task in tasks[name]["tasks"].values():
            build_requests(lm, task, benchmark, config)
            generates = task.OUTPUT_TYPE == "generate_until"
            texts = [
                "".join(str(part) for part in i.args[: 1 if generates else 2])
                for i in task.instances
            ]
            by_bytes = sorted(texts, key=lambda text: len(text.encode()), reverse=True)
            room = (
                max((lm.max_new_tokens(i.args[1]) for i in task.instances), default=0)
                if generates
                else 0
            )
            rows += [len(lm.tok_encode(text)) + room for text in by_bytes[:16]]
    return min(int(lm.max_length), max(rows))


def evaluate(
    loaded: CausalModel,
    tasks: dict[str, Any],
    chosen: dict[str, BenchmarkConfig],
    config: EvaluationConfig,
    scoring: "Scoring | None" = None,
    on_progress: OnProgress | None = lambda done, total, note: None,
) -> Evaluation:
    """Measure a model by itself on every benchmark, nothing taken from a record.

    Args:
        loaded: the model.
        tasks: what `load_tasks` returned for `chosen`.
        chosen: settings by benchmark name.
        config: budget and prompt format.
        scoring: how answers come about; None chooses it for this model.
        on_progress: told how many questions of a benchmark are done; None shows bars.
    """
    started = time.perf_counter()
    scoring = scoring or choose_scoring(loaded, tasks, chosen, config)
    with Evaluator(loaded, config, scoring, on_progress) as evaluator:
        reports = {name: evaluator.evaluate(name, tasks[name], b) for name, b in chosen.items()}
        return Evaluation(reports, version("lm-eval"), scoring.path, time.perf_counter() - started)


def _language_model(
    loaded: CausalModel, config: EvaluationConfig, scoring: "Scoring | None" = None, **more: Any
) -> Any:
    from slimdown.evaluation.engine.scoring import SharedWorkLM

    if config.apply_chat_template:
        check_chat_template(loaded.tokenizer, "evaluation.apply_chat_template=true")
    return SharedWorkLM(
        loaded.model,
        loaded.tokenizer,
        token_budget=config.token_budget,
        batch_size=config.batch_size,
        chat_template_args=ONE_DAY,
        scoring=scoring,
        max_length=scoring.window if scoring else None,
        **more,
    )


@contextmanager
def _undisturbed(loaded: CausalModel) -> Iterator[None]:
    """Whatever happens inside, training afterwards is what it would have been."""
    from slimdown.evaluation.engine.forward import measuring

    side = loaded.tokenizer.padding_side
    try:
        with generators_kept(), own_forward(loaded.model), measuring(loaded.model):
            yield
    finally:
        loaded.tokenizer.padding_side = side


@contextmanager
def generators_kept() -> Iterator[None]:
    """Every generator goes on where it was: the harness reseeds them and draws from them."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    is_in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # asked before that, it would take memory
    cuda = torch.cuda.get_rng_state_all() if is_in_use else []
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
