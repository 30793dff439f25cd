"""The harness's tasks with their data and worked examples, checked before a model is loaded.

Questions, worked examples and their order never depend on the run's seed: two runs ask the same
questions, or they could not be compared.
"""

import json
import os
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError

from slimdown.config.benchmark_config import CHOICE_PROBABILITY, BenchmarkConfig, ResolvedBenchmark
from slimdown.config.benchmarks import check_task_names
from slimdown.config.schema import EvaluationConfig
from slimdown.data.chat_templates import read_template_args
from slimdown.data.contamination import Question, join_words, split_words
from slimdown.evaluation.harness_results import FLEXIBLE, choose_metric, read_cluster
from slimdown.evaluation.hub_metrics import forbid_hub_metrics
from slimdown.evaluation.results import Metric
from slimdown.models.quiet import quiet_libraries
from slimdown.pocket import TASKS_DIR
from slimdown.scoring.question_files import read_questions
from slimdown.scoring.scores import find_score
from slimdown.utils.errors import ConfigError, DataError
from slimdown.utils.hub import explain_hub_errors, is_silence
from slimdown.utils.progress import OnProgress

Requests = dict[tuple[str, int], list[Any]]
"""The harness's requests, by task and number of the question."""

_MEASURE_CACHED = "With HF_HUB_OFFLINE=1, slimdown measures the benchmarks that the cache holds."
FEWSHOT_SEED = 1234  # the harness's own, so that its command line builds the same prompts


@dataclass(frozen=True)
class BenchmarkTask:
    """One benchmark, ready to be asked of any number of models."""

    name: str
    config: ResolvedBenchmark
    tasks: dict[str, Any]  # the harness's tasks by name; a group has several
    usable_metrics: frozenset[str]  # means where more is better; without filters
    weighs_tasks_alike: bool = False  # a group that the harness averages over tasks
    files_hash: str = field(default="", repr=False)  # of task files that are not the harness's own
    # The requests that were built, by the format of the prompts.
    _built: dict[str, Requests] = field(default_factory=dict, repr=False, compare=False)

    @property
    def generates(self) -> bool:
        """Whether its answers are generated; of a group, those of any task."""
        return any(task.OUTPUT_TYPE == "generate_until" for task in self.tasks.values())

    @property
    def only_generates(self) -> bool:
        """Whether the answers of all its tasks are generated."""
        return all(task.OUTPUT_TYPE == "generate_until" for task in self.tasks.values())

    @property
    def reads_texts(self) -> bool:
        """Whether it has documents, whose likelihood is all that is asked for."""
        return all(task.OUTPUT_TYPE == "loglikelihood_rolling" for task in self.tasks.values())

    @property
    def has_messages(self) -> bool:
        """Whether its questions are conversations, which go through the chat template."""
        return any(getattr(task, "has_messages", False) for task in self.tasks.values())

    @property
    def compares_whole_messages(self) -> bool:
        """Whether a chat model's answer must equal the right one, letter by letter."""
        tasks = self.tasks.values()
        return any(getattr(task, "compares_whole_messages", False) for task in tasks)

    @property
    def unservable(self) -> str:
        """Why slimdown cannot ask a server its questions yet; empty: it can.

        Servers return tool calls in a form of their own, and only some continue an answer that the
        prompt begins.
        """
        if any(getattr(task, "has_tools", False) for task in self.tasks.values()):
            return "has questions with tools"
        begins = any(task.config.gen_prefix for task in self.tasks.values())
        return "begins the model's answers" if begins and self.generates else ""

    def narrow(self, evaluation: EvaluationConfig) -> EvaluationConfig:
        """Return how this benchmark is asked, see `EvaluationConfig.narrow`."""
        if self.has_messages:
            evaluation = replace(evaluation, apply_chat_template=True)
        if self.reads_texts:  # documents are no prompts: they are read as they are
            evaluation = replace(evaluation, apply_chat_template=False, system_instruction=None)
        return evaluation.narrow(self.generates)

    def build_requests(self, lm: Any, evaluation: EvaluationConfig) -> Requests:
        """Build the harness's requests, as `lm` will get them.

        Args:
            lm: The language model that will answer.
            evaluation: How this benchmark is asked, see `narrow`.

        Returns:
            The requests, in the harness's order. They are built once for each format of prompts.

        Raises:
            ConfigError: The chat template fails for these questions.
            DataError: It fails for the messages of a question, or drops some of them.
        """
        by_template = evaluation.apply_chat_template
        template = (lm.tokenizer.chat_template, lm.chat_template_args) if by_template else ()
        # All that prompts depend on besides the questions.
        prompt_format = repr((evaluation.system_instruction, template))
        if prompt_format in self._built:
            return self._built[prompt_format]
        requests: Requests = {}
        for name, task in self.tasks.items():
            task.set_fewshot_seed(FEWSHOT_SEED)  # else a second call would draw other examples
            if template and self.config.path:  # a `QuestionTask` renders messages itself
                task.tokenizer, task.template_args = lm.tokenizer, lm.chat_template_args
            try:
                task.build_all_requests(
                    limit=self.config.limit,
                    system_instruction=evaluation.system_instruction,
                    apply_chat_template=by_template,
                    fewshot_as_multiturn=by_template,
                    chat_template=lm.apply_chat_template if by_template else None,
                )
            except TemplateError as error:
                problem = f"fails for {self.config.task} ({' '.join(str(error).split())[:200]})"
                raise ConfigError(
                    f"evaluation.apply_chat_template=true: the chat template {problem}; "
                    "set it to false, or choose another model"
                ) from None
            for request in task.instances:
                requests.setdefault((name, request.doc_id), []).append(request)
        self._built[prompt_format] = requests
        return requests

    def count_requests(self) -> int:
        """Count the requests that `build_requests` has built: one for each answer or choice."""
        requests = (request for task in self.tasks.values() for request in task.instances)
        return sum(request.repeats for request in requests)

    def check_prompts(self, tokenizer: Any, evaluation: EvaluationConfig) -> None:
        """Check that a chat template takes the messages of all questions, and their tools.

        Args:
            tokenizer: The base's.
            evaluation: How benchmarks are asked.

        Raises:
            ModelError: There is no template, or it fails for a plain question.
            DataError: It fails for the messages of a question, or drops some of them.
        """
        if not self.has_messages:
            return
        variables = read_template_args(tokenizer, replace(evaluation, apply_chat_template=True))
        system, limit = evaluation.system_instruction, self.config.limit
        for task in self.tasks.values():
            task.check_prompts(tokenizer, variables, system, limit)  # raises the error

    def hash_questions(self, requests: Requests) -> str:
        """Hash the requests, the rows they come from, and how the tasks build and score them."""
        digest = sha256(self.files_hash.encode())
        for name, task in sorted(self.tasks.items()):
            settings = json.dumps([name, task.dump_config()], sort_keys=True, default=str)
            # A function without source has a new address each time.
            digest.update(re.sub(r" at 0x[0-9a-f]+", "", settings).encode())
        for key, own_requests in requests.items():
            arguments = [str(request.args) for request in own_requests]
            row = own_requests[0].doc  # all requests of a question have the same row
            digest.update(json.dumps([key, arguments, row], default=str).encode())
        return digest.hexdigest()[:32]

    def questions(self) -> list[Question]:
        """Return the questions in their own words, to search training rows for them."""
        questions = []
        with forbid_hub_metrics():
            for task in self.tasks.values():
                for number, doc in task.doc_iterator(limit=self.config.limit):
                    name = f"{task.config.task} {number}"
                    question = Question(name, _read_texts(task, doc), _read_answers(task, doc))
                    questions.append(question)
        return questions


def load_tasks(
    benchmarks: dict[str, BenchmarkConfig],
    include_path: str | None = None,
    *,
    max_gen_toks: int | None = None,
    stop: list[str] | None = None,
    lacking: dict[str, str] | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> dict[str, BenchmarkTask]:
    """Load the harness's tasks, download their data and set their worked examples.

    Args:
        benchmarks: By name; a metric, num_fewshot or chance of None becomes the task's own.
        include_path: A folder with task files of your own.
        max_gen_toks: The most tokens of each generated answer, if the benchmark does not set it.
        stop: Texts at which each generated answer ends, if the benchmark does not set them.
        lacking: Receives the harness's benchmarks whose questions cannot be loaded: by name, the
            reason. It is changed. None: a benchmark that cannot be loaded is an error.
        on_progress: Receives how many benchmarks are read, how many there are, and the next name.

    Returns:
        The benchmarks that could be loaded, by name.

    Raises:
        ConfigError: A task is unknown, runs code from outside, or cannot give the metric or the
            worked examples.
        DataError: The questions cannot be loaded.
    """
    own_folders = [str(TASKS_DIR), *([include_path] if include_path else [])]
    in_harness = {benchmark.task for benchmark in benchmarks.values() if benchmark.path is None}
    if problems := list(check_task_names(benchmarks, include_path)):
        raise ConfigError("\n".join(problems))
    loaded: dict[str, BenchmarkTask] = {}
    with keep_random_states(), quiet_libraries():
        manager = _index_task_files(in_harness, own_folders)
        for i, (name, benchmark) in enumerate(benchmarks.items()):
            on_progress(i, len(benchmarks), name)
            try:
                loaded[name] = _load_benchmark(name, benchmark, manager)
            except DataError as error:
                # A file of the user's own is never left out, because the user can correct it.
                if lacking is None or benchmark.path is not None:
                    raise
                if is_silence(error) and not loaded:
                    # The hub does not answer, and every other benchmark would wait for it as long.
                    # Once a benchmark is loaded, the wait is worth it: there is then something to
                    # measure, and those that the hub does not give are left out.
                    raise DataError(f"{error}. {_MEASURE_CACHED}") from None
                lacking[name] = str(error)
    if lacking and not loaded:
        raise DataError(_join_problems(lacking.values()))
    if (max_gen_toks or stop) and not any(task.generates for task in loaded.values()):
        problem = "max_gen_toks and stop are for generated answers, and every benchmark has choices"
        raise ConfigError(f"{problem}; leave them out")
    for benchmark_task in loaded.values():
        _set_generation(benchmark_task, max_gen_toks, stop)
    return loaded


def _load_benchmark(name: str, benchmark: BenchmarkConfig, manager: Any) -> BenchmarkTask:
    """Load one benchmark, from a file of the user's own questions or from the harness.

    Args:
        name: The benchmark's name.
        benchmark: Its settings.
        manager: What `_index_task_files` returned.

    Raises:
        ConfigError: The task is unknown, or cannot be asked or scored as the settings say.
        DataError: The questions cannot be loaded.
    """
    from slimdown.evaluation.question_task import make_file_task

    if benchmark.path is not None:
        task = make_file_task(benchmark, read_questions(benchmark.path, benchmark.score))
        return _resolve_benchmark(name, benchmark, {benchmark.task: task})
    found = _load_from_harness(name, benchmark.task, manager)
    group = found["groups"].get(benchmark.task)  # None: it is a single task, or a tag
    group_metrics = getattr(group, "aggregate_metric_list", None) or ()
    checked = _resolve_benchmark(name, benchmark, found["tasks"], group_metrics)
    files_hash = _hash_own_files(manager, (benchmark.task, *found["tasks"]))
    return replace(checked, files_hash=files_hash)


def _join_problems(problems: Iterable[str]) -> str:
    """Write problems that differ only in their first word, the setting, as one line."""
    settings: dict[str, list[str]] = {}
    for problem in problems:
        setting, _, reason = problem.partition(" ")
        settings.setdefault(reason, []).append(setting)
    return "\n".join(f"{', '.join(names)} {reason}" for reason, names in settings.items())


def _index_task_files(names: set[str], own: list[str]) -> Any:
    """Return a manager of the harness that knows the tasks, groups and tags of these names.

    The harness takes half a minute to parse all of its 14,000 files. So they are parsed only if a
    name is that of a group or a tag, whose file `_find_task_folders` does not find.

    Args:
        names: The tasks, groups and tags that are asked for.
        own: Folders with task files of slimdown and of the user. If the harness has a task of the
            same name, theirs is taken.

    Returns:
        The `TaskManager`. It may lack a name, if no task file can be read for it.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=own, include_defaults=False)
    if lacking := names.difference(manager.all_tasks):
        folders = _find_task_folders(lacking)
        manager = TaskManager(include_path=[*folders, *own], include_defaults=False)
    if names.difference(manager.all_tasks):
        manager = TaskManager(include_path=own)  # parses all files
    return manager


def _load_from_harness(name: str, task: str, manager: Any) -> Any:
    """Load a task, or all tasks of a group, with their data; check that none runs code of the hub.

    Args:
        name: The benchmark's name, for messages.
        task: The name of a task, a group or a tag.
        manager: What `_index_task_files` returned.

    Returns:
        What the harness's `load` returns: its `tasks` and its `groups`, both by name.

    Raises:
        ConfigError: There is no such task, its file is damaged, or it takes a metric from the hub.
        DataError: Its data cannot be loaded.
    """
    setting = f"benchmark.{name}.task={task}"
    if task not in manager.all_tasks:
        raise ConfigError(f"{setting}: a task file names it, but holds no task that can be read")
    with forbid_hub_metrics(f"benchmark.{name}: "):
        with explain_hub_errors(setting, DataError):
            try:
                found = manager.load([task])
            except RecursionError:
                problem = "one of its groups contains itself, or its settings are nested too deeply"
                raise ConfigError(f"{setting}: {problem}; correct its task file") from None
        _try_scoring(found["tasks"])
    return found


def _try_scoring(tasks: dict[str, Any]) -> None:
    """Score a made-up answer of each task; the caller does this inside `forbid_hub_metrics`.

    Some tasks take a metric from the hub only when they score. So this is refused before a run
    begins. `forbid_hub_metrics` raises on leaving, although errors are suppressed here.
    """
    for task in tasks.values():
        if getattr(task, "UNSAFE_CODE", False):
            continue  # it would run the answer as code; `_set_shots` refuses such tasks
        for _, doc in task.doc_iterator(limit=1):
            with suppress(Exception):  # scoring may fail, because the answer is made up
                task.doc_to_text(doc)
                choices = task.doc_to_choice(doc) if task.OUTPUT_TYPE == "multiple_choice" else ()
                # As a model gives them: log-likelihoods, for choices with whether it is greedy.
                answers: list[Any] = [(-1.0, False) for _ in choices]
                if task.OUTPUT_TYPE == "generate_until":
                    answers = ["made up"]
                elif task.OUTPUT_TYPE == "loglikelihood_rolling":
                    answers = [-1.0]
                task.process_results(doc, answers)


def _find_task_folders(names: set[str]) -> list[str]:
    """Return the harness's folders that define some of these tasks.

    The files are not parsed, but searched for their first line such as `task: NAME`, because a file
    defines one task. That takes half a second, and it finds no groups and no tags.
    """
    import lm_eval.tasks

    defines = re.compile(rb"""^["']?task["']?:[ \t]*["']?([^\s"'#]+)""", re.MULTILINE)
    wanted = {name.encode() for name in names}
    folders = set()
    for folder, _, file_names in os.walk(Path(lm_eval.tasks.__file__).parent):
        for file_name in file_names:
            if not file_name.endswith(".yaml"):
                continue
            with open(os.path.join(folder, file_name), "rb", buffering=0) as stream:
                line = defines.search(stream.read())
            if line and line[1] in wanted:
                folders.add(folder)
    return sorted(folders)


def _resolve_benchmark(
    name: str, benchmark: BenchmarkConfig, tasks: dict[str, Any], group_metrics: Sequence[Any] = ()
) -> BenchmarkTask:
    """Return a benchmark with its harness tasks and with all of its settings.

    The metric, the number of worked examples and the chance are filled in where the benchmark does
    not set them. All settings are checked, and the tasks get their number of worked examples.

    Args:
        name: The benchmark's name.
        benchmark: Its settings. The harness's tasks decide what is not set.
        tasks: The harness's tasks by name; a group has several.
        group_metrics: The metrics that a group averages over its tasks: objects of the harness,
            whose `metric` is a name without a filter, such as "acc".

    Raises:
        ConfigError: The tasks cannot be asked or scored as the settings say.
    """
    config = ResolvedBenchmark.of(benchmark)  # what is not set is filled in below
    first = tasks[min(tasks)]  # stands for all tasks of a group
    usable = _find_usable_metrics(tasks)
    usable_names = [metric for metric in first.higher_is_better() if metric in usable]
    filters = [settings["name"] for settings in first.config.filter_list or [{"name": "none"}]]
    # The primary metric is one of these: usable metrics, each with every filter.
    candidates = [Metric(metric, filter_name) for metric in usable_names for filter_name in filters]
    if benchmark.metric is None:
        config.metric = _choose_metric(candidates, group_metrics, first)
    # What slimdown computes itself, and takes as primary metric only if the settings name it.
    own_metrics: list[str] = []
    if all(task.OUTPUT_TYPE == "multiple_choice" for task in tasks.values()):
        own_metrics.append(CHOICE_PROBABILITY)
    if config.numeric_tolerance is not None and first.OUTPUT_TYPE == "generate_until":
        own_metrics.append(FLEXIBLE)
    usable.update(own_metrics)
    _check_metric(name, config, first, usable, [*candidates, *own_metrics])
    # If the tasks of a group differ in their worked examples, each keeps its own number.
    shots = {task.config.num_fewshot or 0 for task in tasks.values()}
    if benchmark.num_fewshot is None and len(shots) == 1:
        config.num_fewshot = shots.pop()
    # A group averages these metrics over its tasks, and all others over all questions. They are
    # named without filters, so the primary metric is looked up without its filter.
    means_over_tasks = {metric.metric for metric in group_metrics if not metric.weight_by_size}
    weighs_tasks_alike = Metric(config.metric).name in means_over_tasks
    if benchmark.chance is None:
        config.chance = _find_chance(tasks, config.limit, weighs_tasks_alike)
    _check_clusters(name, config, tasks)
    for task in tasks.values():
        _set_shots(name, config, task)
    return BenchmarkTask(name, config, tasks, frozenset(usable), weighs_tasks_alike)


def _choose_metric(candidates: list[Metric], group_metrics: Sequence[Any], first: Any) -> str:
    """Choose the primary metric of a benchmark whose settings name none.

    If some usable metrics are what the benchmark's group reports as its score, only these count.

    Args:
        candidates: The usable metrics, each with every filter, in the task's order.
        group_metrics: The metrics that a group averages over its tasks, as the harness has them.
        first: One of the harness's tasks, which stands for all of a group.

    Returns:
        The metric with its filter. If none is usable, the name of an unusable one or "none".
    """
    reported: list[Metric] = []
    for metric in group_metrics:
        if metric.filter_list:
            reported += [Metric(metric.metric, filter_name) for filter_name in metric.filter_list]
        else:  # without named filters, the group reports all of them
            reported += [candidate for candidate in candidates if candidate.name == metric.metric]
    preferred = [metric for metric in candidates if metric in reported]
    # An unusable metric is refused by `_check_metric`, which says why.
    return str(choose_metric(preferred or candidates or [*first.higher_is_better(), "none"]))


def _find_usable_metrics(tasks: dict[str, Any]) -> set[str]:
    """Return the metrics that are a mean in every task, and of which more is better."""
    from lm_eval.api.metrics import mean

    usable: list[set[str]] = []
    for task in tasks.values():
        better = task.higher_is_better()
        means = {name for name, aggregate in task.aggregation().items() if aggregate is mean}
        usable.append({name for name in means if better.get(name) is not False})
    return set.intersection(*usable)


def _find_chance(tasks: dict[str, Any], limit: int | None, weighs_tasks_alike: bool) -> float:
    """Return what guessing scores: one over the number of choices, or 0 if it is not known.

    It is known only for choices, and not if a task has its own scoring code: then the right choice
    may not score 1.

    Args:
        tasks: The harness's tasks by name.
        limit: How many questions of each task are asked; None: all.
        weighs_tasks_alike: Whether the mean is over tasks; otherwise it is over all questions.
    """
    kinds = {(task.OUTPUT_TYPE, bool(task.config.process_results)) for task in tasks.values()}
    if kinds != {("multiple_choice", False)}:
        return 0.0
    shares = []  # by task, what guessing scores on each question
    for task in tasks.values():
        docs = (doc for _, doc in task.doc_iterator(limit=limit))
        shares.append([1 / len(set(task.doc_to_choice(doc))) for doc in docs])
    return fmean(map(fmean, shares) if weighs_tasks_alike else chain(*shares))


def _check_clusters(name: str, config: ResolvedBenchmark, tasks: dict[str, Any]) -> None:
    """Check that every question has the field that names its cluster."""
    if config.cluster is None:
        return
    docs = (task.doc_iterator(limit=config.limit) for task in tasks.values())
    for number, doc in chain.from_iterable(docs):
        try:
            read_cluster(doc, config.cluster, str(number))
        except DataError as error:
            raise ConfigError(f"benchmark.{name}.cluster: {error}") from None


def _check_metric(
    name: str, config: ResolvedBenchmark, first: Any, usable: set[str], choices: list[str]
) -> None:
    """Check that the primary metric is a mean of scores where more is better.

    Args:
        name: The benchmark's name.
        config: The benchmark, whose metric is checked.
        first: One of its tasks, which stands for all.
        usable: The metrics that are such means, without filters.
        choices: The same, with the filters that the task has.

    Raises:
        ConfigError: It is no such mean.
    """
    primary = Metric(config.metric).name
    has_own_code = first.config.process_results is not None  # which may name metrics as it likes
    if primary in usable and (config.metric in choices or has_own_code):
        return
    problem = f"{config.task} has no such metric"
    if first.higher_is_better().get(primary) is False:
        problem = "for this metric lower is better, so a rise would be called an improvement"
    elif primary in first.aggregation() and primary not in usable:
        problem = "this metric is not the mean of the scores of its questions"
    advice = f"choose one of {', '.join(choices) or 'none'}"
    raise ConfigError(f"benchmark.{name}.metric={config.metric}: {problem}; {advice}")


def _set_shots(name: str, config: ResolvedBenchmark, task: Any) -> None:
    """Check that a task can be asked with its number of worked examples, and set this number.

    Raises:
        ConfigError: The task cannot be asked at all, or not with that many examples.
    """
    own = task.config.num_fewshot
    n_shots = (own or 0) if config.num_fewshot is None else config.num_fewshot
    if getattr(task, "UNSAFE_CODE", False):
        problem = "runs code that the model writes, which slimdown does not"
    elif getattr(task, "MULTIMODAL", False):
        problem = "asks about images or sounds, but the model reads only text"
    elif own == 0 and n_shots:  # the task itself demands 0; with None it demands nothing
        problem = "is asked without worked examples; set num_fewshot to 0"
    elif n_shots and n_shots > (n_rows := _count_examples(task)):
        problem = f"has {n_rows} rows to take {n_shots} worked examples from"
        problem += f"; set num_fewshot to {n_rows} or less"
    else:
        task.set_config(key="num_fewshot", value=n_shots)
        return
    raise ConfigError(f"benchmark.{name}: {task.config.task} {problem}")


def _set_generation(task: BenchmarkTask, max_gen_toks: int | None, stop: list[str] | None) -> None:
    """Set how generated answers are drawn, how long they may be, and where they end.

    The harness's tasks get the benchmark's settings, and `repeats`, the number of answers to each
    question. `repeats` needs a temperature, because without one every answer is the same.

    Args:
        task: The benchmark; it is changed.
        max_gen_toks: The most tokens of an answer, if the benchmark does not set it.
        stop: The texts that end an answer, if the benchmark does not set them.

    Raises:
        ConfigError: The benchmark has settings for generated answers, and generates none; or it
            sets `repeats`, and the task draws several answers already.
    """
    config = task.config
    if task.generates:
        config.max_gen_toks = config.max_gen_toks or max_gen_toks
        config.stop = config.stop or stop
    chosen: dict[str, Any] = {"max_gen_toks": config.max_gen_toks, "until": config.stop}
    if config.temperature:  # a model's generation_config.json could set another top_p or top_k
        chosen |= {"do_sample": True, "temperature": config.temperature, "top_p": 1.0, "top_k": 0}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    if not chosen:  # nor can `repeats` be set, which needs a temperature
        return
    if not task.generates:
        names = "max_gen_toks, stop, temperature and repeats"
        kind = "documents" if task.reads_texts else "choices"
        problem = f"{config.task} has {kind}, and {names} are for generated answers"
        raise ConfigError(f"benchmark.{task.name}: {problem}; leave them out")
    for harness_task in task.tasks.values():
        if harness_task.OUTPUT_TYPE != "generate_until":
            continue  # a group may also have tasks with choices
        own_repeats = harness_task.config.repeats or 1
        if own_repeats > 1 and config.repeats:
            problem = f"{harness_task.config.task} makes one answer of {own_repeats} already"
            raise ConfigError(f"benchmark.{task.name}: {problem}; leave repeats out")
        settings = {**harness_task.config.generation_kwargs, **chosen}
        harness_task.set_config(key="repeats", value=config.repeats or own_repeats)
        harness_task.set_config(key="generation_kwargs", value=settings)


def _count_examples(task: Any) -> int:
    """Count the worked examples that a task can give, from a split or samples of their own."""
    source = task.fewshot_cfg
    if not (task.has_training_docs() or source.split or source.samples):
        return 0  # the harness would use other questions of the benchmark as examples
    n_rows = len(task.sampler.df)
    # If examples come from the questions themselves, the one that is asked is not among them.
    return n_rows - 1 if source.split == task.config.test_split else n_rows


def _hash_own_files(manager: Any, tasks: Iterable[str]) -> str:
    """Hash the task files that are not the harness's own, and all YAML and Python beside them.

    A task file may include the files beside it.
    """
    import lm_eval.tasks

    harness = Path(str(lm_eval.tasks.__file__)).parent
    indexed = filter(None, map(manager.task_index.get, tasks))
    folders = {Path(task.yaml_path).parent for task in indexed if task.yaml_path}
    digest = sha256()
    for folder in sorted(folders):
        if not folder.is_relative_to(harness):
            files = (*folder.glob("*.yaml"), *folder.glob("*.py"))
            for file in sorted(file for file in files if file.is_file()):
                digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _read_texts(task: Any, doc: dict[str, Any]) -> tuple[str, ...]:
    """Return the texts of a question's row that its prompt consists of.

    Returns:
        The texts, such as a passage and a question about it. If the prompt has no text of the row
        in it, the prompt. If the prompt has no words, the longest text of the row.
    """
    prompt = task.doc_to_text(doc)
    texts: dict[str, str] = {}  # the row's texts, by their words
    for text in doc.values():
        words = join_words(split_words(text)) if isinstance(text, str) else ""
        if len(words.strip()) > 1:  # a single letter, such as that of a choice, is in any prompt
            texts[words] = text
    prompt_words = join_words(split_words(prompt)) if isinstance(prompt, str) else ""
    if not prompt_words.strip():  # it is the number of a choice, or all is the answer
        return (max(texts.values(), key=len, default=""),)
    used = [words for words in texts if words in prompt_words]
    # Each text is a part of itself. One that is also a part of another text is left out.
    outermost = [words for words in used if sum(words in other for other in used) == 1]
    return tuple(texts[words] for words in outermost) or (prompt,)


def _read_answers(task: Any, doc: dict[str, Any]) -> tuple[str, ...]:
    """Return the right answers to a question as training rows may have them.

    If the choices are letters, the text of the right one is taken from a list in the row. If the
    model has to write a letter, that answer is left out, because most texts hold the letter.

    Returns:
        The answers; none for a document, and none for a row whose right answer is a pattern, a call
        or a refusal. An answer is empty if no list in the row holds the texts of letters; searching
        training rows then ignores it, as any answer without words.
    """
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return ()  # a document has no answer
    if "rule" in doc:  # a row of a question file, whose rule may name no answers in words
        rule = json.loads(doc["rule"])
        targets = rule["accepted"] if find_score(rule["score"]).names_answers else []
    else:
        targets = task.doc_to_target(doc)
    choices = task.doc_to_choice(doc) if task.OUTPUT_TYPE == "multiple_choice" else []
    if choices and all(len(choice) == 1 for choice in choices):  # letters
        # The first list in the row with as many members as there are choices holds their texts.
        lists = (value for value in doc.values() if isinstance(value, list))
        no_texts = [""] * len(choices)  # not the letters, which most training rows hold
        choices = next((texts for texts in lists if len(texts) == len(choices)), no_texts)
    answers = []
    for target in targets if isinstance(targets, list) else [targets]:
        if isinstance(target, int) and choices:  # the number of a choice
            answers.append(str(choices[target]))
        elif not re.fullmatch(r"\W*[^\W\d]\W*", str(target)):  # a single letter
            answers.append(str(target))
    return tuple(answers)


@contextmanager
def keep_random_states() -> Iterator[None]:
    """Restore every random generator on leaving, because the harness draws from them."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    # `fork_rng` restores torch's generator of the CPU, and those of these CUDA devices. CUDA would
    # take memory if it were asked before it is in use.
    is_in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if is_in_use else ()
    mps_state = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    with torch.random.fork_rng(devices, device_type="cuda"):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
            if mps_state is not None:
                torch.mps.set_rng_state(mps_state)
