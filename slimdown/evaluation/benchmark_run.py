"""Ask one model one benchmark: block by block, in chunks whose answers are kept at once."""

import copy
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from itertools import chain
from types import SimpleNamespace
from typing import Any

import torch
from lm_eval import evaluate as evaluate_by_harness
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs

from slimdown.config.benchmark_config import ResolvedBenchmark
from slimdown.config.schema import EvaluationConfig
from slimdown.data.chat_templates import read_template_args
from slimdown.evaluation.answers_file import AnswersFile
from slimdown.evaluation.backend import BackendOptions
from slimdown.evaluation.evaluation_cache import EvaluationCache, evaluation_key
from slimdown.evaluation.harness_results import (
    average_repeats,
    check_primary_metric,
    find_no_number,
    read_task_samples,
    summarize_samples,
)
from slimdown.evaluation.question_order import order_questions
from slimdown.evaluation.results import Answer, BenchmarkEvaluation, Cost, Sample, Work
from slimdown.evaluation.tasks import BenchmarkTask
from slimdown.models.base_model import LoadedModel
from slimdown.stats.sequential import block_ends
from slimdown.utils.distributed import share_work
from slimdown.utils.errors import ConfigError, DataError, ModelError
from slimdown.utils.progress import OnProgress
from slimdown.utils.tested_versions import LibraryError, describe_change

# Forward batches per chunk. The answers to a chunk are kept on disk as soon as they are there; a
# killed evaluation answers a chunk that is not there again, in the same batches.
_BATCHES_PER_CHUNK = 8
_TRIED_TOKENS = 32  # of each answer, where one batch is tried

AskedBlocks = dict[str, dict[int, list[Sample]]]
"""The blocks of questions that one model was asked, by key of the benchmark and first question."""


@dataclass(frozen=True)
class Chunk:
    """Requests that a process answers by itself, and all that their answers depend on."""

    task: str  # the harness's name of the task
    name: str  # the chunk's name in the answers file
    backend: BackendOptions
    size: int  # how many requests a batch has
    config: EvaluationConfig
    benchmark: ResolvedBenchmark
    requests: list[Any]


@dataclass
class BenchmarkRun:
    """One benchmark asked of one model, block by block.

    Raises:
        ConfigError: Its questions do not fit in the model's window.
        ModelError: The tokenizer's chat template cannot ask them.
    """

    task: BenchmarkTask
    model: LoadedModel
    lm: Any
    backend: BackendOptions
    config: EvaluationConfig
    on_progress: OnProgress
    generate: Callable[[list[Any]], list[str]] | None  # another engine's; None: `lm` does
    n_processes: int  # each answers a chunk; all hold the model
    asked_blocks: AskedBlocks  # shared with the other benchmarks: equal questions are asked once
    n_asked = n_found = n_uncached = 0  # questions asked, found in the cache, not taken from it
    n_answered = 0  # of the `n_uncached`, those that no other benchmark with them had asked before
    _samples: list[Sample] = field(default_factory=list, init=False)
    # How many questions were asked before each look, a test that may end the asking.
    _looks: list[int] = field(default_factory=list, init=False)
    # What the cache holds of this benchmark.
    _found: BenchmarkEvaluation | None = field(default=None, init=False)
    _answers: AnswersFile = field(default_factory=lambda: AnswersFile(None), init=False)
    _had_answers = False  # whether an earlier, killed evaluation left answers in the file
    _seconds = 0.0  # spent on new questions

    def __post_init__(self) -> None:
        """Build the requests, decide in which order and blocks they are asked, and check them."""
        self.config = self.task.narrow(self.config)
        if self.config.apply_chat_template:
            self.lm.set_template_args(read_template_args(self.model.tokenizer, self.config))
        self.requests = self.task.build_requests(self.lm, self.config)
        # The row of each question as JSON, by task and by the question's number in it.
        rows: dict[str, dict[int, str]] = {}
        for (name, number), requests in self.requests.items():
            # All requests of a question have the same row.
            rows.setdefault(name, {})[number] = json.dumps(requests[0].doc, default=str)
        self._order = order_questions(rows)  # task and number of each question
        self.ends = block_ends(len(self._order))  # how many questions are asked after each block
        self._task_weights: dict[str, float] | None = None  # None: every question weighs the same
        task_sizes = {len(task_rows) for task_rows in rows.values()}
        if self.task.weighs_tasks_alike and len(task_sizes) > 1:
            self._task_weights = dict.fromkeys(rows, 1 / len(rows))
        different_rows = set(chain.from_iterable(task_rows.values() for task_rows in rows.values()))
        has_copies = len(different_rows) < len(self._order)
        # Asking may stop after any block but the last, with two exceptions. A group that weighs
        # unequal tasks alike needs all its questions. Copies of a question count once, but they may
        # lie in different blocks.
        self.can_stop = len(self.ends) > 1 and self._task_weights is None and not has_copies
        self._check_room()

    @cached_property
    def key(self) -> str:
        """The key under which its evaluation is kept."""
        questions_hash = self.task.hash_questions(self.requests)
        return evaluation_key(
            self.model, self.backend.name, questions_hash, self.task.config, self.config
        )

    @property
    def is_whole(self) -> bool:
        """Whether every question was asked."""
        return self.n_asked == self.ends[-1]

    @cached_property
    def _blocks(self) -> dict[int, list[Sample]]:
        """The blocks that this benchmark shares with others that ask the same questions."""
        return self.asked_blocks.setdefault(self.key, {})

    def look_up(self, cache: EvaluationCache) -> None:
        """Take what was answered before, unless the questions were asked here a moment ago.

        Args:
            cache: Where evaluations are kept, and the answers that a killed process left.
        """
        if not self._blocks and (earlier := cache.find(self.key, self.task.name, self.task.config)):
            self._found, self.n_found = earlier, len(earlier.samples)
        if self.n_found < self.ends[-1]:
            self._answers = AnswersFile(cache.answers_file(self.key))
            self._had_answers = bool(self._answers.responses)

    def save(self, cache: EvaluationCache) -> None:
        """Keep the evaluation, unless all of it was found."""
        if self.n_uncached:
            cache.save(self.key, self.task.name, self.summarize())
            self._answers.remove()

    def ask_block(self, is_look: bool = False) -> None:
        """Ask the next block, or take its answers from the evaluation that the cache had.

        Args:
            is_look: Whether the caller then decides by the answers if more are needed.

        Raises:
            DataError: The harness cannot score an answer, or a question has no score between 0 and
                1 on the primary metric.
            ModelError: A log-likelihood or a score is not a number.
        """
        started = time.perf_counter()
        begin = self.n_asked
        end = next(end for end in self.ends if end > begin)
        if self._found and end <= self.n_found:
            self._samples += self._found.samples[begin:end]
        else:
            # Benchmarks with the same questions share `_blocks`, so another one may have asked this
            # block. Only questions that are asked here count in `n_answered`; `n_uncached` counts
            # all that do not come from the cache.
            if begin not in self._blocks:
                self._blocks[begin] = self._ask(begin, end)
                self.n_answered += end - begin
            check_primary_metric(self.task.name, self.task.config, self._blocks[begin])
            self._samples += self._blocks[begin]
            self.n_uncached += end - begin
            self._seconds += time.perf_counter() - started
        self.n_asked = end
        if is_look:
            self._looks.append(end)

    def ask_rest(self) -> None:
        """Ask all questions that are left."""
        if self.n_processes > 1:
            self._share_blocks()
        while not self.is_whole:
            self.ask_block()

    def _share_blocks(self) -> None:
        """Share all blocks that are left among the processes: one may be a single chunk."""
        started = time.perf_counter()
        n_done = max(self.n_asked, self.n_found)  # questions that were answered before
        chunks: list[Chunk] = []
        for begin, end in zip([0, *self.ends], self.ends, strict=False):
            if begin >= n_done and begin not in self._blocks:
                chunks += self._cut(begin, end)
        # The longest come first, because a process that is done waits for the others.
        chunks.sort(key=lambda chunk: -sum(len(request.args[0]) for request in chunk.requests))
        for _ in self._find_or_answer(chunks, n_done):
            pass  # the answers file keeps them
        self._seconds += time.perf_counter() - started

    def summarize(self) -> BenchmarkEvaluation:
        """Return the evaluation so far."""
        task, usable = self.task, self.task.usable_metrics
        evaluation = summarize_samples(task.config, self._samples, self._task_weights, usable)
        return replace(
            evaluation,
            task_version=", ".join(sorted({str(part.VERSION) for part in task.tasks.values()})),
            seconds=self._seconds + (self._found.seconds if self._found else 0),
            looks=tuple(self._looks),
            n_available=self.ends[-1] if self._looks else None,
            origin=self._found.origin if self._found and not self.n_uncached else "",
            max_new_tokens=max(map(self._max_new_tokens, task.tasks.values())),
        )

    def count_cost(self) -> Cost:
        """Count what all questions cost, without asking one.

        Returns:
            The tokens that the model reads, and the most that it may write; without seconds.
        """
        texts = list[str]()  # all that the model reads
        new_tokens = 0
        for (name, _doc_id), requests in self.requests.items():
            task = self.task.tasks[name]
            # The choices of a question share its prompt, which is read once: `dict.fromkeys` drops
            # the repeated ones.
            texts += dict.fromkeys(str(request.args[0]) for request in requests)
            if task.OUTPUT_TYPE == "generate_until":
                n_answers = sum(request.repeats for request in requests)
                new_tokens += n_answers * self._max_new_tokens(task)
            elif not self.task.reads_texts:
                texts += [str(request.args[1]) for request in requests]  # the choices
        if self.model.server:
            work = Work.server
        elif self.task.reads_texts:
            work = Work.documents
        else:
            work = Work.answers if self.task.generates else Work.choices
        return Cost(
            name=self.task.name,
            work=work,
            n=len(self.requests),
            prompt_tokens=self._count_tokens(texts),
            new_tokens=new_tokens,
        )

    def measure_cost(self) -> Cost | None:
        """Return what all questions cost; None if some of the answers were there before."""
        if self.n_answered < self.ends[-1] or self._had_answers:
            return None
        cost = self.count_cost()
        written = [sample.thinking + sample.response for sample in self._samples]
        n_tokens = self._count_tokens([text for text in written if text])
        new_tokens = min(cost.new_tokens, n_tokens * (self.task.config.repeats or 1))
        return replace(cost, new_tokens=new_tokens, seconds=self._seconds)

    def try_batch(self) -> Cost:
        """Answer one batch, and return what all questions would cost at this speed.

        Only the first `_TRIED_TOKENS` tokens of each answer are generated. If the longest answer
        does not end within them, all answers are taken to be as long as they may be. Of a group
        that also has tasks with choices, a task with generated answers is tried: it takes longer.
        """
        cost = self.count_cost()
        chunks = list(self._cut(0, self.ends[-1]))
        generating = (c for c in chunks if c.requests[0].request_type == "generate_until")
        chunk = next(generating, chunks[0])
        # A chunk holds several batches of `chunk.size` questions each. If the questions have
        # choices, there is a request for each choice.
        doc_ids = list(dict.fromkeys(request.doc_id for request in chunk.requests))
        tried_ids = doc_ids[: chunk.size]
        requests = [copy.copy(request) for request in chunk.requests if request.doc_id in tried_ids]
        most = self._max_new_tokens(self.task.tasks[chunk.task])  # tokens of each answer
        n_tried = min(_TRIED_TOKENS, most)
        if self.task.generates:
            for request in requests:
                request.arguments = (request.args[0], {**request.args[1], "max_gen_toks": n_tried})
        # How many tokens the longest answer has so far, reported before each further token. Stays
        # [0] for choices, and if another engine generates.
        token_counts = [0]
        self.lm.report_tokens(lambda n_tokens, _most: token_counts.append(n_tokens))
        began = time.perf_counter()
        answer_chunk(self.lm, replace(chunk, requests=requests), generate=self.generate)
        seconds = (time.perf_counter() - began) / len(tried_ids) * cost.n
        longest = max(token_counts)
        if not longest:
            return replace(cost, seconds=seconds)
        # No count is reported after the last token, so the longest answer has `longest + 1` tokens.
        if longest + 1 >= n_tried:
            # It was cut off, so each answer is taken to have `most` tokens. `cost` counts so many
            # already. The measured seconds are those of about `longest` tokens.
            return replace(cost, seconds=seconds * most / longest)
        # All answers ended, so the measured seconds are those of whole answers. But `cost` counts
        # `most` tokens for each. The last token only ends the answer, so `longest` is what it has.
        return replace(cost, new_tokens=round(cost.new_tokens * longest / most), seconds=seconds)

    def _count_tokens(self, texts: list[str]) -> int:
        if not texts:
            return 0
        return sum(map(len, self.lm.tokenizer(texts, add_special_tokens=False)["input_ids"]))

    def _max_new_tokens(self, task: Any) -> int:
        settings = task.config.generation_kwargs or {}
        return int(normalize_gen_kwargs(settings, self.lm.max_gen_toks)["max_gen_toks"])

    def _cut(self, begin: int, end: int) -> Iterator[Chunk]:
        """Cut a block into chunks of one task each, because a task's prompts begin alike.

        Args:
            begin: How many questions come before the block, in the order in which they are asked.
            end: How many questions have been asked after the block.
        """
        for name, task in self.task.tasks.items():
            # A question is its task's name and its number there.
            questions = [question for question in self._order[begin:end] if question[0] == name]
            size = self.backend.batch_size
            if task.OUTPUT_TYPE == "generate_until":
                size = self.backend.generation_batch_size
            n_per_chunk = _BATCHES_PER_CHUNK * size
            for first in range(0, len(questions), n_per_chunk):
                own_questions = questions[first : first + n_per_chunk]
                own_requests = (self.requests[question] for question in own_questions)
                yield Chunk(
                    task=name,
                    name=f"{begin} {name} {first}",
                    backend=self.backend,
                    size=size,
                    config=self.config,
                    benchmark=self.task.config,
                    requests=list(chain.from_iterable(own_requests)),
                )

    def _ask(self, begin: int, end: int) -> list[Sample]:
        """Ask a block chunk by chunk."""
        samples: dict[tuple[str, int], Sample] = {}
        self.on_progress(begin, self.ends[-1], self.task.name)
        for chunk, responses in self._find_or_answer(list(self._cut(begin, end)), begin):
            task = self.task.tasks[chunk.task]
            if task.OUTPUT_TYPE == "generate_until":
                responses = [[Answer(*parts) for parts in repeated] for repeated in responses]
            for sample in self._score_repeats(task, chunk.requests, responses):
                samples[chunk.task, sample.doc_id] = sample
        return [samples[question] for question in self._order[begin:end]]

    def _find_or_answer(
        self, chunks: Sequence[Chunk], n_done: int
    ) -> Iterator[tuple[Chunk, list[list[Any]]]]:
        """Yield each chunk with its responses, after answering it if the answers file lacks it.

        Args:
            chunks: In the order in which they are answered. For several processes, the longest
                come first.
            n_done: How many questions were answered before them.

        Yields:
            A chunk and, for each of its requests, the list of its responses.
        """
        n_per_round = 2 * self.n_processes if self.n_processes > 1 else 1
        for i in range(0, len(chunks), n_per_round):
            round_chunks = chunks[i : i + n_per_round]
            self._report_tokens(n_done, round_chunks[0].requests)
            known = self._answers.responses
            self._answer([chunk for chunk in round_chunks if chunk.name not in known])
            for chunk in round_chunks:
                yield chunk, self._answers.responses[chunk.name]
                n_done += len({request.doc_id for request in chunk.requests})
            self.on_progress(n_done, self.ends[-1], self.task.name)

    def _answer(self, chunks: list[Chunk]) -> None:
        """Answer chunks and keep the responses in the answers file.

        Args:
            chunks: At most two per process; for several processes, the longest come first.
        """

        def answer(part: list[Chunk]) -> list[list[list[Any]]]:
            return [answer_chunk(self.lm, chunk, generate=self.generate) for chunk in part]

        parts = [[chunk] for chunk in chunks[: self.n_processes]]  # what each process answers
        # So that all end at about the same time, the process with the shortest of these chunks also
        # takes the longest of the rest, and so on.
        for part, chunk in zip(reversed(parts), chunks[self.n_processes :], strict=False):
            part.append(chunk)
        answered = share_work(parts, answer) if self.n_processes > 1 else map(answer, parts)
        for part, part_responses in zip(parts, answered, strict=True):
            for chunk, responses in zip(part, part_responses, strict=True):
                self._answers.save(chunk.name, responses)

    def _report_tokens(self, n_done: int, requests: list[Any]) -> None:
        """Report each token that the model generates, with the questions answered so far."""
        answers, repeats = list[Any](), requests[0].repeats
        self.lm.set_cache_hook(SimpleNamespace(add_partial=lambda *answer: answers.append(answer)))

        def report(n_tokens: int, most: int) -> None:
            detail = f"{self.task.name}, token {n_tokens:,} of at most {most:,}"
            self.on_progress(n_done + len(answers) // repeats, self.ends[-1], detail)

        self.lm.report_tokens(report)

    def _score_repeats(
        self, task: Any, requests: list[Any], responses: list[list[Any]]
    ) -> list[Sample]:
        """Score responses. With `repeats`, a question gets the mean score of its answers.

        The harness's usual filter would keep only the first answer.
        """
        if not self.task.config.repeats or task.OUTPUT_TYPE != "generate_until":
            return self._score(task, requests, responses)
        # The harness expects as many responses as a request has `repeats`. Each call of `_score`
        # below passes a single response to each request.
        single_requests = [copy.copy(request) for request in requests]
        for request in single_requests:
            request.repeats = 1
        samples_by_repeat = []
        for answers in zip(*responses, strict=True):  # all first answers, then all second ones
            samples = self._score(task, single_requests, [[answer] for answer in answers])
            samples_by_repeat.append(samples)
        return [average_repeats(samples) for samples in zip(*samples_by_repeat, strict=True)]

    def _score(self, task: Any, requests: list[Any], responses: list[list[Any]]) -> list[Sample]:
        """Have the harness filter and score responses; return a sample for each question.

        Raises:
            DataError: The harness cannot score them.
            ModelError: A log-likelihood or a score is not a number.
        """
        name = task.config.task
        docs = {request.doc_id: request.doc for request in requests}
        for request in requests:  # they still hold the previous model's answers
            request.resps = []
            request.filtered_resps = {}
        # The harness calls `build_all_requests`, has the model answer `instances`, and scores the
        # rows of `doc_iterator`. In the copy, all three are of these questions only.
        task_copy = copy.copy(task)
        task_copy.build_all_requests = lambda **_: None  # they are built already
        task_copy._instances = requests  # the property `instances` returns them
        if task_copy.instances is not requests:
            raise LibraryError(describe_change("lm-eval", "_instances"))
        task_copy.doc_iterator = lambda **_: iter(docs.items())
        lm = _AnsweredLM(requests, responses)  # the harness asks it, and gets the responses
        tasks = {"tasks": {name: task_copy}, "groups": {}}
        try:
            results: Any = evaluate_by_harness(lm, tasks, bootstrap_iters=0)
        except ValueError as error:
            raise DataError(f"benchmark.{self.task.name} ({name}): {error}") from error
        lines = results["samples"][name]  # one for each question and filter
        samples = read_task_samples(name, lines, results["configs"][name], self.task.config)
        if task.OUTPUT_TYPE == "generate_until":
            # A response is an `Answer`: a text that also has the attributes `thinking`,
            # `never_ended` and `ran_out`. The harness drops them, so they are copied from the first
            # answer to the sample here, whose fields have the same names.
            pairs = zip(requests, responses, strict=True)
            answers = {request.doc_id: repeated[0] for request, repeated in pairs}
            samples = [replace(sample, **vars(answers[sample.doc_id])) for sample in samples]
        if sample := find_no_number(samples):
            raise ModelError(
                f"benchmark.{self.task.name}: what {self.model.id} answers to question "
                f"{sample.doc_id} of {name} is not a number; model.dtype={self.model.dtype} "
                "overflows, or its weights are damaged: try model.dtype=float32, or download "
                "the model again"
            )
        return samples

    def count_longest(self) -> int:
        """Count the tokens of the longest generated answer with its prompt; 0: none is."""
        longest = 0
        for (name, _), requests in self.requests.items():
            task = self.task.tasks[name]
            if task.OUTPUT_TYPE == "generate_until":
                n_tokens = len(self.lm.tok_encode(str(requests[0].args[0])))
                longest = max(longest, n_tokens + self._max_new_tokens(task))
        return longest

    def _check_room(self) -> None:
        """Refuse requests beyond the window, and examples and own questions that would be cut."""
        for request in chain.from_iterable(self.requests.values()):
            if request.request_type == "loglikelihood":
                self._check_choice(request)
        if not self.task.reads_texts:
            for name, task in self.task.tasks.items():
                self._check_prompts(name, task)

    def _check_choice(self, request: Any) -> None:
        lm = self.lm
        n_bytes = len(request.args[1].encode(errors="replace"))
        if 0 < n_bytes < lm.max_length // 2:
            return  # it has fewer tokens than bytes, so it fits; encoding every choice takes time
        context, choice = request.args
        n_tokens = len(lm.tok_encode(context + choice)) - len(lm.tok_encode(context))
        if not 0 < n_tokens <= lm.max_length:
            raise ConfigError(
                f"benchmark.{self.task.name}: a choice of question {request.doc_id} of "
                f"{request.task_name} has {n_tokens} tokens, and {self.model.id} takes 1 to "
                f"{lm.max_length}; change the choice, or use a model with a longer window"
            )

    def _check_prompts(self, name: str, task: Any) -> None:
        benchmark = self.task.config
        prompts = [str(self.requests[key][0].args[0]) for key in self.requests if key[0] == name]
        n_tokens = len(self.lm.tok_encode(max(prompts, key=len, default="")))
        n_new = self._max_new_tokens(task) if task.OUTPUT_TYPE == "generate_until" else 0
        room = self.lm.max_length - n_new
        # The harness cuts a prompt that is too long. That is refused if the prompt has worked
        # examples, or if the user chose the questions or the length of answers.
        may_not_be_cut = task.config.num_fewshot or benchmark.path or benchmark.max_gen_toks
        if room < 1 or (may_not_be_cut and n_tokens > room):
            raise ConfigError(
                f"benchmark.{self.task.name}: the longest prompt of {name} has {n_tokens} "
                f"tokens, and beside {n_new} new ones {self.model.id} has room for {room}; use "
                "shorter or fewer examples (num_fewshot), fewer new tokens (max_gen_toks), or "
                "a model with a longer window"
            )


def choose_window(lm: Any, runs: Iterable[BenchmarkRun]) -> int:
    """Choose how many tokens another engine makes room for.

    It is the longest prompt with its answer, rounded up to a power of two: so most runs get an
    equal engine.

    Returns:
        0: the model's own window, which is no longer.
    """
    longest = max((run.count_longest() for run in runs), default=0)
    window = 1 << (longest + 8).bit_length()  # the engine's tokenizer may add tokens in front
    return window if window < lm.max_length else 0


def answer_chunk(
    lm: Any, chunk: Chunk, generate: Callable[[list[Any]], list[str]] | None = None
) -> list[list[Any]]:
    """Get the responses to each request, as many as its `repeats`.

    Args:
        lm: Scores choices, and generates the answers whose tokens are drawn at random.
        chunk: The requests, all of one task; so they have one type and the same settings.
        generate: Generates all other answers; None: `lm` does.

    Returns:
        By request, its responses as the answers file holds them: `Answer.parts` of what was
        generated, and otherwise what `lm` returns.
    """
    lm.set_batches(chunk.size, keeps_special_tokens=chunk.benchmark.metric == "tool_call")
    requests = chunk.requests
    request_type = requests[0].request_type  # the name of the method of `lm` that answers
    settings = requests[0].args[-1]  # of generating; read only if the type is generate_until
    # All repeats of the first request, then those of the second one.
    repeated = [request for request in requests for _ in range(request.repeats)]
    if request_type == "generate_until" and normalize_gen_kwargs(settings)["do_sample"]:
        responses = []
        # If the user sets `repeats`, each request has exactly so many, and they are drawn in one
        # batch. Otherwise a request has as many as its task sets, and they are drawn one by one.
        n_together = chunk.benchmark.repeats or 1
        for request in requests:
            for repeat in range(0, request.repeats, n_together):
                # The seed depends on the question and the repeat alone, so both models and a
                # repeated run draw alike. Seven bytes fit in the 64 bits of torch's seed.
                seed = sha256(f"{request.task_name} {request.doc_id} {repeat}".encode()).digest()
                torch.manual_seed(int.from_bytes(seed[:7]))
                responses += lm.generate_until([request] * n_together, disable_tqdm=True)
    elif request_type == "generate_until" and generate:
        responses = [Answer(text) for text in generate(repeated)]
    else:
        responses = getattr(lm, request_type)(repeated, disable_tqdm=True)
    # The responses lie in one row; each request takes the next ones.
    plain_responses = iter(getattr(response, "parts", response) for response in responses)
    return [[next(plain_responses) for _ in range(request.repeats)] for request in requests]


class _AnsweredLM(LM):  # type: ignore[misc]  # lm_eval is untyped
    """A model that returns given responses, so that the harness scores them."""

    def __init__(self, requests: list[Any], responses: list[list[Any]]) -> None:
        super().__init__()
        pairs = zip(requests, responses, strict=True)
        self._responses = {id(request): list(repeated) for request, repeated in pairs}

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        return [self._responses[id(request)].pop(0) for request in requests]

    loglikelihood_rolling = generate_until = loglikelihood
