"""The `Evaluator` asks one model after another the same questions, scored by the same code."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass, field, replace
from importlib.metadata import version
from math import nan
from typing import Any

from slimdown.config.benchmark_config import PROMPT_SETTINGS
from slimdown.config.engines import BACKENDS, Backend
from slimdown.config.schema import EvaluationConfig
from slimdown.evaluation.backend import BackendOptions, choose_backend, open_lm
from slimdown.evaluation.benchmark_run import BenchmarkRun, Chunk, answer_chunk, choose_window
from slimdown.evaluation.evaluation_cache import EvaluationCache
from slimdown.evaluation.families import explain_no_sharing
from slimdown.evaluation.hub_metrics import forbid_hub_metrics
from slimdown.evaluation.results import Cost, Evaluation, StopRule
from slimdown.evaluation.tasks import BenchmarkTask, keep_random_states
from slimdown.models.base_model import LoadedModel
from slimdown.models.causal import eval_mode
from slimdown.models.device_memory import is_out_of_memory, measure_peak_memory, release_memory
from slimdown.models.quiet import quiet_libraries
from slimdown.utils.distributed import assist, end_shared_work
from slimdown.utils.errors import ModelError
from slimdown.utils.progress import OnProgress


@dataclass(eq=False, repr=False)
class Evaluator:
    """Asks benchmarks of one model after another; nothing is asked before `evaluate`.

    The first model decides the backend, the code that scores and its batch size; each later model
    gets the same backend, or is refused.

    Attributes:
        tasks: The benchmarks by name, as `load_tasks` returned them.
        config: Batch size and prompt format.
        share_prefixes: Whether `PrefixLM` may score, which computes the common beginning of several
            prompts once. If not, HFLM's own code scores, which trained prompts and prefixes need.
        backend: How all answers are computed; None: the first model that is measured decides.
        counts_memory: Whether to measure the peak of memory; this resets torch's counter.
        n_processes: How many processes answer. This one leads them; the others run
            `assist_measuring` with an equal model.
        notes: Lines for the user: which batches were halved.
    """

    tasks: dict[str, BenchmarkTask]
    config: EvaluationConfig
    share_prefixes: bool = True
    _: KW_ONLY
    backend: BackendOptions | None = None
    counts_memory: bool = False
    n_processes: int = 1
    notes: list[str] = field(default_factory=list, init=False)

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
            stop_when: Tests the answers after each block of questions, and names the benchmarks
                that need more questions; None asks all questions.
            on_progress: Called with questions done, questions in all, and the benchmark's name;
                also for each token of an answer that this process generates.

        Returns:
            What the model answered.

        Raises:
            ConfigError: The questions do not fit in the model's window; nothing was asked.
            DataError: The primary metric's scores cannot be compared question by question.
            ModelError: Answers are not numbers, memory runs out, or the backend does not fit the
                model.
        """
        # The first model's backend is kept, so that both models are asked alike.
        backend = self.backend or choose_backend(model, self.config, self.share_prefixes)
        cache = cache or EvaluationCache()
        if backend.shares_prefixes and (reason := explain_no_sharing(model.model)):
            raise ModelError(
                f"{model.id} cannot be scored as the model before ({reason}); measure both "
                "with share_prefixes=False (in a notebook: stock=True)"
            )
        while True:  # until the batches are small enough for the memory
            try:
                evaluation = self._evaluate(model, backend, cache, stop_when, on_progress)
                self.backend = backend
                if self.n_processes > 1:
                    end_shared_work()  # ends `assist_measuring` in the other processes
                return evaluation
            except (RuntimeError, MemoryError, IndexError) as error:
                if "index out of range in self" in str(error):  # torch's, of an embedding
                    raise ModelError(
                        f"{model.id} has no embedding of a token, or is asked beyond its window; "
                        "take its own tokenizer, or model.resize_token_embeddings(len(tokenizer))"
                    ) from error
                if not is_out_of_memory(error):
                    raise
                backend = self._halve_batches(backend, model.id)
            release_memory()  # after `except`: the error holds the tensors until then

    def _halve_batches(self, backend: BackendOptions, model_id: str) -> BackendOptions:
        """Return the backend with batches half as large, unless a model was measured with these."""
        sizes = backend.batch_size, backend.generation_batch_size
        half, generation_half = (max(1, size // 2) for size in sizes)
        if self.backend or max(sizes) == 1:
            raise ModelError(
                f"{model_id} does not fit in memory ({backend.name}); measure both models "
                f"with evaluation.batch_size={min(half, generation_half)} (in Python, "
                f"batch_size={min(half, generation_half)}), or with fewer worked examples"
            ) from None
        smaller = BackendOptions(backend.shares_prefixes, half, generation_half)
        self.notes.append(f"The memory was too small; slimdown continues with {smaller.name}.")
        return smaller

    def _evaluate(
        self,
        model: LoadedModel,
        backend: BackendOptions,
        cache: EvaluationCache,
        stop_when: StopRule | None,
        on_progress: OnProgress,
    ) -> Evaluation:
        """Measure a model with this backend; arguments are those of `evaluate`."""
        started = time.perf_counter()
        with _undisturbed(), eval_mode(model.model), ExitStack() as stack:
            counter: AbstractContextManager[Any] = nullcontext(lambda: nan)  # no peak is measured
            if self.counts_memory:
                counter = measure_peak_memory(model.device)
            measure_peak = stack.enter_context(counter)
            runs, backend_name = self._open(model, backend, on_progress, stack)
            for run in runs.values():
                # One lock at a time: processes that hold several may wait for each other for ever.
                with cache.lock(run.key):
                    run.look_up(cache)
                    # A benchmark that may end early is asked and saved by `_ask_with_looks`.
                    if not (stop_when and run.can_stop):
                        run.ask_rest()
                        run.save(cache)
            if stop_when:
                self._ask_with_looks(runs, cache, stop_when)
            if model.server:
                any_run = next(iter(runs.values()))  # all share one lm
                self.notes += any_run.lm.describe_answers()
            return Evaluation(
                benchmarks={name: run.summarize() for name, run in runs.items()},
                harness_version=version("lm-eval"),
                backend=backend_name,
                served_by=str(model.server or ""),
                seconds=time.perf_counter() - started,
                peak_bytes=measure_peak(),
                conditions=self._describe_prompts(),
                costs=tuple(filter(None, (run.measure_cost() for run in runs.values()))),
            )

    def _describe_prompts(self) -> dict[str, str]:
        """Return by `benchmark.setting` how benchmarks are asked, if not in the usual way."""
        used: dict[str, str] = {}
        for name, task in self.tasks.items():
            narrowed = task.narrow(self.config)
            settings = {setting: getattr(narrowed, setting) for setting in PROMPT_SETTINGS}
            for setting in ("max_gen_toks", "stop", "temperature", "repeats"):
                settings[setting] = getattr(task.config, setting)
            for setting, value in settings.items():
                if value not in (None, False, {}):
                    used[f"{name}.{setting}"] = str(value)
            if narrowed.enable_thinking is False:  # None is the usual way
                used[f"{name}.enable_thinking"] = "False"
        return used

    def _open(
        self, model: LoadedModel, backend: BackendOptions, on_progress: OnProgress, stack: ExitStack
    ) -> tuple[dict[str, BenchmarkRun], str]:
        """Build the questions of every benchmark; nothing is asked yet.

        Args:
            model: The model that will answer.
            backend: How its answers are computed.
            on_progress: As for `evaluate`.
            stack: If another engine generates the answers, the engine ends with this stack.

        Returns:
            The benchmarks by name, and the backend's name in the record. This name also says which
            other engine generates.
        """
        if model.server:  # it makes its own batches: `batch_size` is how many requests it gets
            size = model.server.settings.concurrency
            server = str(model.server)
            backend = replace(backend, batch_size=size, generation_batch_size=size, server=server)
        lm = open_lm(model, self.config, backend)
        generating_backend = backend
        generate = None
        runs: dict[str, BenchmarkRun] = {}
        engine_facts = BACKENDS[self.config.backend]
        if engine_facts.module:  # another engine generates, such as vLLM
            generating_backend = backend.generate_by(engine_facts.packages)
            open_generator = engine_facts.find_function("open_generator")
            # The engine starts at the first question, when `runs` is filled.
            generator = open_generator(model, lambda: choose_window(lm, runs.values()))
            generate = stack.enter_context(generator)
        asked_blocks: dict[str, Any] = {}  # all benchmarks share it
        for name, task in self.tasks.items():
            runs[name] = BenchmarkRun(
                task=task,
                model=model,
                lm=lm,
                backend=generating_backend if task.generates else backend,
                config=self.config,
                on_progress=on_progress,
                generate=generate,
                n_processes=self.n_processes,
                asked_blocks=asked_blocks,
            )
        return runs, generating_backend.name

    def _ask_with_looks(
        self, runs: dict[str, BenchmarkRun], cache: EvaluationCache, stop_when: StopRule
    ) -> None:
        """Ask the benchmarks that may end early, block by block, with a look after each block.

        A look is a test of the answers so far: `stop_when` names the benchmarks that need more
        questions. It takes all benchmarks, because their tests are corrected together.

        Args:
            runs: All benchmarks. Those that may not end early have been asked already.
            cache: Keeps the evaluations.
            stop_when: As for `evaluate`.
        """
        stoppable = {name: run for name, run in runs.items() if not run.n_asked}
        needed = set(stoppable)
        while needed:
            for name, run in stoppable.items():
                if name in needed:
                    run.ask_block(is_look=True)
            # A benchmark that was decided may be needed again: Holm's correction makes its test
            # stricter when the evidence of another benchmark weakens.
            undecided = stop_when({name: run.summarize() for name, run in runs.items()})
            needed = {name for name in stoppable if name in undecided and not runs[name].is_whole}
        for run in stoppable.values():
            run.save(cache)


def assist_measuring(model: LoadedModel) -> None:
    """Answer chunks for the evaluator of the first process, until it has measured the model.

    If a launcher starts several processes, the first one has the `Evaluator`, and all others call
    this. Each holds the whole model.

    Args:
        model: This process's copy of the model that the first process measures.
    """
    lms: dict[tuple[BackendOptions, str | None], Any] = {}  # by all that `open_lm` depends on

    def answer(chunks: list[Chunk]) -> list[list[list[Any]]]:
        """Return the responses by chunk, request and repeat."""
        first = chunks[0]  # all are of one benchmark
        key = first.backend, first.config.think_end_token
        if key not in lms:
            lms[key] = open_lm(model, first.config, first.backend)
        try:
            return [answer_chunk(lms[key], chunk) for chunk in chunks]
        except (RuntimeError, MemoryError):
            release_memory()  # the first process may try again with smaller batches
            raise

    with keep_random_states(), quiet_libraries(), eval_mode(model.model):
        assist(answer)


def check_room(
    tasks: dict[str, BenchmarkTask], config: EvaluationConfig, model: LoadedModel
) -> None:
    """Refuse generated benchmarks whose prompts do not fit, before weights are loaded.

    Args:
        tasks: All benchmarks.
        config: How they are asked.
        model: The tokenizer, and the model without weights.

    Raises:
        ConfigError: A prompt and its new tokens are longer than the model's window.
    """
    generating = {name: task for name, task in tasks.items() if task.generates}
    evaluator = Evaluator(generating, replace(config, backend=Backend.hf))  # vLLM need not start
    # Nothing is asked, so the batch sizes do not matter.
    backend = BackendOptions(shares_prefixes=False, batch_size=1, generation_batch_size=1)
    with _undisturbed(), ExitStack() as stack:
        if generating:
            # Raises the error: building the questions checks their length.
            evaluator._open(model, backend, on_progress=lambda *_: None, stack=stack)


def count_costs(
    tasks: dict[str, BenchmarkTask],
    config: EvaluationConfig,
    model: LoadedModel,
    is_recorded: Callable[[str, str], bool],
    share_prefixes: bool = True,
) -> list[tuple[Cost, bool]]:
    """Count what each benchmark costs, before weights are loaded.

    Args:
        tasks: All benchmarks.
        config: How they are asked.
        model: The tokenizer, and the model without weights.
        is_recorded: Takes a benchmark's `BenchmarkRun.key` and name, and returns whether the base's
            answers are in the record.
        share_prefixes: As for `Evaluator`.

    Returns:
        What each benchmark costs, and whether the base's answers are in the record.
    """
    # `BenchmarkRun.key` names the backend, so it is the one that will answer. No question is asked,
    # so another engine, such as vLLM, doesn't start.
    evaluator = Evaluator(tasks, config, share_prefixes)
    backend = choose_backend(model, config, share_prefixes)
    with _undisturbed(), ExitStack() as stack:
        runs, _ = evaluator._open(model, backend, on_progress=lambda *_: None, stack=stack)
        return [(run.count_cost(), is_recorded(run.key, name)) for name, run in runs.items()]


def try_costs(
    tasks: dict[str, BenchmarkTask],
    config: EvaluationConfig,
    model: LoadedModel,
    most_seconds: float,
    share_prefixes: bool = True,
) -> Iterator[Cost]:
    """Try one batch of each benchmark, generated answers last.

    Args:
        tasks: All benchmarks.
        config: How they are asked.
        model: The base.
        most_seconds: After this time, no further benchmark is tried. But at least one benchmark
            that generates answers and one that does not are tried, if there are any.
        share_prefixes: As for `Evaluator`.

    Yields:
        What each benchmark would cost, estimated from the batch.
    """
    evaluator = Evaluator(tasks, config, share_prefixes)
    began = time.perf_counter()
    with _undisturbed(), eval_mode(model.model), ExitStack() as stack:
        backend = choose_backend(model, config, share_prefixes)
        runs, _ = evaluator._open(model, backend, on_progress=lambda *_: None, stack=stack)
        tried_kinds = set[bool]()  # values of `generates` of which a benchmark was tried
        for run in sorted(runs.values(), key=lambda run: run.task.generates):
            if run.task.generates not in tried_kinds or time.perf_counter() - began < most_seconds:
                tried_kinds.add(run.task.generates)
                yield run.try_batch()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Inside, the harness draws from states of its own, prints nothing, and runs no hub's code."""
    with keep_random_states(), quiet_libraries(), forbid_hub_metrics():
        yield
