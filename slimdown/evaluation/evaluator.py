"""The `Evaluator`: the same questions to one model after another, scored by the same code."""

import copy
import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from math import isnan, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lm_eval import evaluate as evaluate_by_harness
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs

from slimdown.config.schema import Backend, EvaluationConfig, OnProgress
from slimdown.data.chat_templates import FIXED_DATE, check_chat_template
from slimdown.evaluation.evaluation_cache import (
    EvaluationCache,
    check_evaluation,
    evaluation_key,
    explain_older,
)
from slimdown.evaluation.families import explain_no_sharing
from slimdown.evaluation.harness_results import (
    check_primary_metric,
    read_task_samples,
    summarize_samples,
)
from slimdown.evaluation.prefix_lm import PrefixLM, VirtualTokensLM, without_tying
from slimdown.evaluation.question_order import block_ends, order_questions
from slimdown.evaluation.results import BenchmarkEvaluation, Evaluation, Sample, StopRule
from slimdown.evaluation.tasks import BenchmarkTask, Requests, keep_random_states
from slimdown.evaluation.vllm_backend import open_vllm
from slimdown.models.base_model import LoadedModel
from slimdown.models.causal import eval_mode
from slimdown.models.memory import is_out_of_memory, measure_peak_memory, release_memory
from slimdown.models.quiet import quiet_libraries
from slimdown.utils.errors import ConfigError, DataError, ModelError

# Questions of a chunk, for each that a forward holds: a chunk is what is kept on disk at once, and
# what a killed evaluation computes again as it was.
_BATCHES_PER_CHUNK = 8


@dataclass(frozen=True)
class BackendOptions:
    """How answers are computed, alike for every model that is compared."""

    shares_prefixes: bool  # PrefixLM, else HFLM
    batch_size: int
    generation_batch_size: int
    engine: str = ""  # what generates, where another engine does

    @property
    def name(self) -> str:
        """What the record calls it.

        >>> BackendOptions(True, 8, 1).name
        'PrefixLM, batch size 8, 1 to generate'
        """
        kind = "PrefixLM" if self.shares_prefixes else "HFLM"
        generating = self.engine or self.generation_batch_size
        return f"{kind}, batch size {self.batch_size}, {generating} to generate"


class Evaluator:
    """Asks benchmarks of one model after another.

    The first model decides the backend, the code that scores and its batch size; each later model
    gets the same backend, or is refused.

    Attributes:
        tasks: The benchmarks by name.
        backend: How answers are computed; None until a model was measured.
        notes: Lines for the user: what was measured anew, and why.
        counts_memory: Whether to measure the memory's peak: torch's one counter is set back.
    """

    counts_memory = False

    def __init__(
        self, tasks: dict[str, BenchmarkTask], config: EvaluationConfig, share_prefixes: bool = True
    ) -> None:
        """Take the benchmarks.

        Args:
            tasks: What `load_tasks` returned.
            config: Batch size and prompt format.
            share_prefixes: False takes HFLM's own code, as trained prompts and prefixes need it.
        """
        self.tasks = tasks
        self.backend: BackendOptions | None = None
        self.notes: list[str] = []
        self._config, self._share_prefixes = config, share_prefixes

    def evaluate(
        self,
        model: LoadedModel,
        cache: EvaluationCache | None = None,
        stop_when: StopRule | None = None,
        on_progress: OnProgress = lambda *_: None,
    ) -> Evaluation:
        """Measure a model on every benchmark.

        The model, its mode and all random generators are left as they were. Each benchmark is saved
        as soon as it is finished; answers in between lie in the cache's answers file.

        Args:
            model: With adapters or without.
            cache: Where evaluations are found and kept; None measures everything.
            stop_when: Looks at the answers after each block of questions; None asks all questions.
            on_progress: Called with questions done, questions in all, and the benchmark's name; for
                each token, too, of an answer that is generated here.

        Returns:
            What the model answered.

        Raises:
            ConfigError: The questions do not fit in the model's window; nothing was asked.
            DataError: The primary metric cannot be compared.
            ModelError: Answers are not numbers, memory runs out, or the backend does not fit the
                model.
        """
        backend = self.backend or choose_backend(model, self._config, self._share_prefixes)
        if backend.shares_prefixes and (reason := explain_no_sharing(model.model)):
            raise ModelError(
                f"{model.id} cannot be scored as the model before ({reason}); measure both "
                "with share_prefixes=False (in a notebook: stock=True)"
            )
        while True:
            try:
                evaluation = self._evaluate(model, backend, cache, stop_when, on_progress)
                self.backend = backend
                return evaluation
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                sizes = backend.batch_size, backend.generation_batch_size
                halves = [max(1, size // 2) for size in sizes]
                if self.backend or max(sizes) == 1:
                    raise ModelError(
                        f"{model.id} does not fit in memory ({backend.name}); measure both models "
                        f"with evaluation.batch_size={min(halves)}, or with fewer worked examples"
                    ) from None
                backend = BackendOptions(backend.shares_prefixes, halves[0], halves[1])
                self.notes.append(f"Memory ran out; from now on {backend.name}.")
            release_memory()

    def _evaluate(
        self,
        model: LoadedModel,
        backend: BackendOptions,
        cache: EvaluationCache | None,
        stop_when: StopRule | None,
        on_progress: OnProgress,
    ) -> Evaluation:
        started = time.perf_counter()
        with ExitStack() as stack:
            stack.enter_context(keep_random_states())
            stack.enter_context(quiet_libraries())
            stack.enter_context(eval_mode(model.model))
            measure_peak: Callable[[], float] = lambda: nan  # noqa: E731
            if self.counts_memory:
                measure_peak = stack.enter_context(measure_peak_memory(model.device))
            lm = open_lm(model, self._config, backend)
            scoring, vllm = backend, None
            if self._config.backend is Backend.vllm:  # it makes batches of its own, of large chunks
                versions = [f"{name} {version(name)}" for name in ("vllm", "vllm-bnb-plugin")]
                backend = replace(backend, engine=", ".join(versions), generation_batch_size=64)
                vllm = stack.enter_context(open_vllm(model))
            runs: dict[str, _BenchmarkRun] = {}
            for name, task in self.tasks.items():
                requests = task.build_requests(lm, self._config.apply_chat_template)
                kinds = {t.OUTPUT_TYPE for t in task.tasks.values()}
                used = backend if "generate_until" in kinds else scoring
                run = runs[name] = _BenchmarkRun(task, requests, model, lm, used, on_progress, vllm)
                hashed = task.hash_questions(requests)
                run.key_parts = (model, used.name, hashed, task.config, self._config)
            blocks: dict[str, dict[int, list[Sample]]] = {run.key: {} for run in runs.values()}
            for run in runs.values():
                run.blocks = blocks[run.key]
                # One lock at a time: who holds several may wait for each other for ever.
                with cache.lock(run.key) if cache else nullcontext():
                    if cache:
                        self._look_up(run, cache)
                    if run.answers:
                        stack.enter_context(closing(run.answers))
                    while not (stop_when and run.can_stop) and run.n_asked < run.ends[-1]:
                        run.ask_block()
                    if run.n_asked:
                        _save(run, cache)
            stoppable = {name: run for name, run in runs.items() if not run.n_asked}
            open_runs = list(stoppable.values())
            while stop_when and open_runs:
                for run in open_runs:
                    run.ask_block(is_look=True)
                needed = stop_when({name: run.summarize() for name, run in runs.items()})
                # The rule may open one again, where what another showed came to nothing.
                needed -= {name for name, run in runs.items() if run.n_asked == run.ends[-1]}
                open_runs = [run for name, run in stoppable.items() if name in needed]
            for run in stoppable.values():
                _save(run, cache)
            benchmarks = {name: run.summarize() for name, run in runs.items()}
            seconds = time.perf_counter() - started
            return Evaluation(benchmarks, version("lm-eval"), backend.name, seconds, measure_peak())

    def _look_up(self, run: "_BenchmarkRun", cache: EvaluationCache) -> None:
        """Take what was answered before, unless the questions were asked here a moment ago."""
        name = run.task.name
        key, *older = [evaluation_key(*parts) for parts in run.every_key_parts]
        earlier = None if run.blocks else cache.find(key, name, run.task.config, *older)
        if not (earlier or run.blocks):
            self.notes += explain_older(cache, name, run.every_key_parts)
        if earlier and (problem := run.take(earlier)):
            line = f"{name} is measured anew: what was found of it is odd ({problem})."
            self.notes.append(line)
        if run.n_found < run.ends[-1] and (file := cache.answers_file(run.key)):
            run.answers = _AnswersFile(file)


def _save(run: "_BenchmarkRun", cache: EvaluationCache | None) -> None:
    """Keep what was asked, unless all of it was found."""
    if cache and run.n_new:
        cache.save(run.key, run.task.name, run.summarize())
        if run.answers:
            run.answers.remove()


@dataclass
class _BenchmarkRun:
    """One benchmark asked of one model, block by block."""

    task: BenchmarkTask
    requests: Requests
    model: LoadedModel
    lm: Any
    backend: BackendOptions
    on_progress: OnProgress
    vllm: Callable[[list[Any]], list[str]] | None  # generates; None: `lm` does
    key_parts: Any = None  # what `evaluation_key` takes
    blocks: dict[int, list[Sample]] = field(default_factory=dict)  # asked, by begin; of equal keys
    answers: "_AnswersFile | None" = None
    n_asked = n_found = n_new = 0  # questions; of them found in the cache, and not

    def __post_init__(self) -> None:
        texts: dict[str, list[str]] = {}
        for (name, _), of_question in self.requests.items():
            texts.setdefault(name, []).append(json.dumps(of_question[0].doc, default=str))
        numbers = {name: [key[1] for key in self.requests if key[0] == name] for name in texts}
        self._order = [(name, numbers[name][place]) for name, place in order_questions(texts)]
        self.ends = block_ends(len(self._order))
        self._task_weights: dict[str, float] | None = None  # every question alike
        if self.task.weighs_tasks_alike and len(set(map(len, texts.values()))) > 1:
            self._task_weights = dict.fromkeys(texts, 1 / len(texts))
        # A group that weighs unequal tasks alike needs all of its questions.
        self.can_stop = self._task_weights is None and len(self.ends) > 1
        self._samples: list[Sample] = []
        self._looks: list[int] = []
        self._found: BenchmarkEvaluation | None = None
        self._seconds = 0.0
        self._check_room()

    @cached_property
    def key(self) -> str:
        """The key under which its evaluation is kept."""
        return evaluation_key(*self.key_parts)

    @property
    def every_key_parts(self) -> list[tuple[Any, ...]]:
        """Today's `key_parts`, and those of the first versions: with a processor's threads."""
        model, *others = self.key_parts
        processor = f"{model.identity.get('processor')} {torch.get_num_threads()} threads"
        first = replace(model, identity={**model.identity, "processor": processor})
        return [self.key_parts, (first, *others)]

    def take(self, earlier: BenchmarkEvaluation) -> str:
        """Take what was answered before; say what is odd about it, empty where it is sound."""
        questions = [(sample.task, sample.doc_id) for sample in earlier.samples]
        if problem := check_evaluation(earlier):
            return problem
        if questions != self._order[: len(questions)] or len(questions) not in self.ends:
            return "its questions are others, or in another order"
        self._found, self.n_found = earlier, len(questions)
        return ""

    def ask_block(self, is_look: bool = False) -> None:
        """Ask the next block, or take its answers from what was found."""
        begin, started = self.n_asked, time.perf_counter()
        end = next(end for end in self.ends if end > begin)
        if self._found and end <= self.n_found:
            self._samples += self._found.samples[begin:end]
        else:
            if begin not in self.blocks:
                self.blocks[begin] = self._ask(self._order[begin:end], begin)
            check_primary_metric(self.task.name, self.task.config, self.blocks[begin])
            self._samples += self.blocks[begin]
            self.n_new += end - begin
            self._seconds += time.perf_counter() - started
        self.n_asked = end
        self._looks += [end] if is_look else []

    def summarize(self) -> BenchmarkEvaluation:
        """The evaluation so far."""
        versions = sorted({str(task.VERSION) for task in self.task.tasks.values()})
        seconds = self._seconds + (self._found.seconds if self._found else 0)
        read_as = self.task.config, self._samples, ", ".join(versions), seconds
        evaluation = summarize_samples(*read_as, self._task_weights, self.task.usable_metrics)
        looks, n_available = tuple(self._looks), self.ends[-1] if self._looks else None
        origin = self._found.origin if self._found and not self.n_new else ""
        longest = max(map(self._max_new_tokens, self.task.tasks.values()))
        about: Any = {"looks": looks, "n_available": n_available, "origin": origin}
        return replace(evaluation, **about, max_new_tokens=longest)

    def _max_new_tokens(self, task: Any) -> int:
        settings = task.config.generation_kwargs or {}
        return int(normalize_gen_kwargs(settings, self.lm.max_gen_toks)["max_gen_toks"])

    def _ask(self, block: Sequence[tuple[str, int]], begin: int) -> list[Sample]:
        """Ask questions chunk by chunk, those of one task together: they share a beginning."""
        samples: dict[tuple[str, int], Sample] = {}
        self.on_progress(begin, self.ends[-1], self.task.name)
        for name, task in self.task.tasks.items():
            questions = [question for question in block if question[0] == name]
            is_generated = task.OUTPUT_TYPE == "generate_until"
            size = getattr(self.backend, "generation_" * is_generated + "batch_size")
            for i in range(0, len(questions), _BATCHES_PER_CHUNK * size):
                chunk = questions[i : i + _BATCHES_PER_CHUNK * size]
                requests = [r for question in chunk for r in self.requests[question]]
                chunk_name = f"{begin} {name} {i}"
                responses = self.answers.find(chunk_name, requests) if self.answers else None
                if responses is None:
                    self.lm.batch_size_per_gpu = size  # where HFLM and PrefixLM look for it
                    self._follow(begin + len(samples), requests)
                    responses = _ask_model(self.lm, requests, self.vllm)
                    if self.answers:
                        self.answers.save(chunk_name, responses)
                for sample in self._score(task, requests, responses):
                    samples[name, sample.doc_id] = sample
                self.on_progress(begin + len(samples), self.ends[-1], self.task.name)
        return [samples[question] for question in block]

    def _follow(self, n_done: int, requests: list[Any]) -> None:
        """Have the model tell each token that it generates, with the questions answered so far."""
        answers, repeats = list[Any](), requests[0].repeats
        self.lm.set_cache_hook(SimpleNamespace(add_partial=lambda *answer: answers.append(answer)))

        def report(n_tokens: int, most: int) -> None:
            detail = f"{self.task.name}, token {n_tokens:,} of at most {most:,}"
            self.on_progress(n_done + len(answers) // repeats, self.ends[-1], detail)

        self.lm.on_token = report

    def _score(self, task: Any, requests: list[Any], responses: list[list[Any]]) -> list[Sample]:
        """Have the harness filter and score responses."""
        name, benchmark = task.config.task, self.task.config
        lm = _AnsweredLM({id(r): list(of_r) for r, of_r in zip(requests, responses, strict=True)})
        task_copy = copy.copy(task)  # of which the harness finds these questions only
        task_copy._instances, docs = requests, {request.doc_id: request.doc for request in requests}
        task_copy.build_all_requests = lambda **_: None
        task_copy.doc_iterator = lambda **_: iter(docs.items())
        try:
            answered = {"tasks": {name: task_copy}, "groups": {}}
            results: Any = evaluate_by_harness(lm, answered, bootstrap_iters=0)
        except ValueError as error:
            raise DataError(f"benchmark.{self.task.name} ({name}): {error}") from error
        entries, task_config = results["samples"][name], results["configs"][name]
        samples = read_task_samples(name, entries, task_config, benchmark)
        for sample in samples:
            if any(map(isnan, (*sample.log_likelihoods, *sample.scores.values()))):
                raise ModelError(
                    f"benchmark.{self.task.name}: what {self.model.id} answers to question "
                    f"{sample.doc_id} of {name} is not a number; model.dtype={self.model.dtype} "
                    "overflows, or its weights are damaged: try model.dtype=float32, or download "
                    "the model again"
                )
        return samples

    def _check_room(self) -> None:
        """Refuse what no forward holds, and examples and files' questions that would be cut."""
        benchmark, lm = self.task.config, self.lm
        requests = (request for of_question in self.requests.values() for request in of_question)
        for request in (r for r in requests if r.request_type == "loglikelihood"):
            n_tokens = len(request.args[1].encode(errors="replace"))  # no more than bytes
            if not 0 < n_tokens < lm.max_length // 2:
                n_tokens = len(lm._encode_pair(*request.args)[1])
            if not 0 < n_tokens <= lm.max_length:
                raise ConfigError(
                    f"benchmark.{self.task.name}: a choice of question {request.doc_id} of "
                    f"{request.task_name} has {n_tokens} tokens, and {self.model.id} takes 1 to "
                    f"{lm.max_length}; change the choice, or use a model with a longer window"
                )
        for name, task in self.task.tasks.items():
            prompts = [of[0].args[0] for key, of in self.requests.items() if key[0] == name]
            n_tokens = len(lm.tok_encode(max(map(str, prompts), key=len, default="")))
            is_generated = task.OUTPUT_TYPE == "generate_until"
            room = lm.max_length - (n_new := self._max_new_tokens(task) if is_generated else 0)
            is_own = task.config.num_fewshot or benchmark.path
            if room < 1 or (is_own and n_tokens > room):
                raise ConfigError(
                    f"benchmark.{self.task.name}: the longest prompt of {name} has {n_tokens} "
                    f"tokens, and beside {n_new} new ones {self.model.id} has room for {room}; use "
                    "shorter or fewer examples (num_fewshot), or a model with a longer window"
                )


class _AnsweredLM(LM):  # type: ignore[misc]  # lm_eval is untyped
    """A model that gives responses which are there already, so that the harness scores them."""

    def __init__(self, responses: dict[int, list[Any]]) -> None:
        super().__init__()
        self._responses = responses

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        return [self._responses[id(request)].pop(0) for request in requests]

    loglikelihood_rolling = generate_until = loglikelihood


class _AnswersFile:
    """Responses by chunk, on disk while an evaluation goes on. A chunk is there whole, or not."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        try:
            self._open()
        except sqlite3.DatabaseError:  # damaged: its questions are asked again
            self.remove()
            self._open()

    def _open(self) -> None:
        self._database = sqlite3.connect(self._file, isolation_level=None)
        self._database.execute("CREATE TABLE IF NOT EXISTS chunks (name PRIMARY KEY, data)")
        self._chunks = dict(self._database.execute("SELECT name, data FROM chunks"))

    def find(self, name: str, requests: list[Any]) -> list[list[Any]] | None:
        """The responses of a chunk; None where it is not there."""
        found: list[list[Any]] = json.loads(self._chunks.get(name, "[]"))
        is_whole = [len(of_request) for of_request in found] == [r.repeats for r in requests]
        return found if is_whole else None

    def save(self, name: str, responses: list[list[Any]]) -> None:
        row = name, json.dumps(responses)
        self._database.execute("INSERT OR REPLACE INTO chunks VALUES (?, ?)", row)

    def remove(self) -> None:
        self.close()
        self._file.unlink(missing_ok=True)

    def close(self) -> None:
        self._database.close()


def _ask_model(lm: Any, requests: list[Any], vllm: Any) -> list[list[Any]]:
    """Get `repeats` responses to each request; all are of one task. What is drawn, `lm` draws."""
    kind, settings = requests[0].request_type, requests[0].args[-1]
    repeated = [(request, number) for request in requests for number in range(request.repeats)]
    if kind == "generate_until" and normalize_gen_kwargs(settings)["do_sample"]:
        responses = []
        for request, number in repeated:
            # A seed for each question: base, tuned model and a repeated run draw alike.
            seed = sha256(f"{request.task_name} {request.doc_id} {number}".encode()).digest()
            torch.manual_seed(int.from_bytes(seed[:7]))
            responses += lm.generate_until([request], disable_tqdm=True)
    elif kind == "generate_until" and vllm:
        responses = vllm([request for request, _ in repeated])
    else:
        responses = getattr(lm, kind)([request for request, _ in repeated], disable_tqdm=True)
    in_order = iter(responses)
    return [[next(in_order) for _ in range(request.repeats)] for request in requests]


def choose_backend(
    model: LoadedModel, config: EvaluationConfig, share_prefixes: bool
) -> BackendOptions:
    """Choose how a model is scored, by the model and its device alone: the next run chooses alike.

    Args:
        model: The first model that is measured.
        config: `batch_size`, where it is set, is taken as it is.
        share_prefixes: Whether `PrefixLM` may score the model at all.

    Returns:
        The language model's class and its batch sizes, in questions.
    """
    shares = share_prefixes and not explain_no_sharing(model.model)
    if config.batch_size:
        return BackendOptions(shares, config.batch_size, config.batch_size)
    device = model.model.device
    if device.type != "cuda":
        return BackendOptions(shares, 4, 4)
    sizes = model.model.config.get_text_config()
    # Of 1,024 tokens: logits in two precisions, or keys and values; and some layers' activations.
    choices = 1024 * (6 * sizes.vocab_size + 64 * sizes.hidden_size)
    text = 1024 * (4 * sizes.num_hidden_layers + 64) * sizes.hidden_size
    free_bytes = torch.cuda.get_device_properties(device).total_memory / 2 - model.memory_bytes
    rows = (max(1, min(64, int(free_bytes // row_bytes))) for row_bytes in (choices, text))
    size, generation_size = (1 << (n.bit_length() - 1) for n in rows)
    return BackendOptions(shares, size, generation_size)


def open_lm(model: LoadedModel, config: EvaluationConfig, backend: BackendOptions) -> Any:
    """Wrap a model for the harness: a `PrefixLM`, or `HFLM` where no prefix may be shared.

    Raises:
        ModelError: A chat template is asked for, and the tokenizer's cannot be used.
    """
    if config.apply_chat_template:
        check_chat_template(model.tokenizer, "evaluation.apply_chat_template=true")
    with without_tying(model.model):
        return (PrefixLM if backend.shares_prefixes else VirtualTokensLM)(
            model.model,
            tokenizer=copy.deepcopy(model.tokenizer),  # HFLM may add a padding token
            batch_size=backend.batch_size,
            softmax_dtype=torch.float32,
            chat_template_args=FIXED_DATE,
        )
