"""What is asked: the harness's tasks, their data and worked examples, checked before a model is loaded.

Questions, worked examples and their order never depend on the run's seed: two runs are asked the same things, or they
could not be compared.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from jinja2 import TemplateError
from omegaconf import MISSING

from slimdown.config.schema import BenchmarkConfig, EvaluationConfig
from slimdown.config.task_files import task_folders, task_problem
from slimdown.evaluation.order import order_of, stages_of
from slimdown.evaluation.results import metric_name
from slimdown.models.hub import asking_hub
from slimdown.pocket import TASKS_DIR
from slimdown.utils.errors import SlimdownError

FEWSHOT_SEED = 1234  # the harness's own, so that its command line asks the same questions


_last: dict[str, dict[str, Any]] = {}  # the tasks of the last call, by what was chosen


def tasks_of(chosen: dict[str, BenchmarkConfig]) -> dict[str, Any]:
    """What `load_tasks` returns, or returned last where that was for the same: jobs of a sweep read benchmarks once.

    Whoever asks builds the requests anew and seeds the draw of worked examples, as base and tuned model are asked by
    the same tasks already.

    Raises:
        SlimdownError: see `load_tasks`.
    """
    if (asked := repr(chosen)) not in _last:
        _last.clear()
        _last[asked] = load_tasks(chosen)
    return _last[asked]


def load_tasks(chosen: dict[str, BenchmarkConfig]) -> dict[str, Any]:
    """What the harness loads for each benchmark, its data downloaded and its shots set.

    Raises:
        SlimdownError: an unknown task, a dataset that cannot be had, shots that the task cannot give.
    """
    # The harness logs each of its steps, and warns of the shots that we set on purpose.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # It also hands generate() two length limits at once, and tokenizes before it truncates.
    logging.getLogger("transformers.generation.utils").setLevel(logging.ERROR)
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    tasks: dict[str, Any] = {}
    manager = task_manager([benchmark.task for benchmark in chosen.values()])
    for name, benchmark in chosen.items():
        if benchmark.task not in manager.all_tasks:
            problem = (
                task_problem(benchmark.task) or "the harness has no task, group or tag of this name"
            )
            raise SlimdownError(f"benchmark.{name}.task={benchmark.task}: {problem}")
        try:
            with asking_hub(f"benchmark.{name}: the data of {benchmark.task} cannot be had"):
                loaded = manager.load([benchmark.task])
        except SlimdownError:
            raise
        except Exception as error:  # whatever a task's own code and its dataset's may raise
            raise SlimdownError(
                f"benchmark.{name}: the data of {benchmark.task} cannot be had "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); check the network and HF_ENDPOINT, "
                "or run the embedded world, which needs none: python -m slimdown.run"
            ) from None
        benchmark = completed(benchmark, loaded)
        for task in loaded["tasks"].values():
            _set_shots(name, task, benchmark)
            if task.higher_is_better().get(benchmark.metric.partition(".")[0]) is False:
                raise SlimdownError(
                    f"benchmark.{name}.metric={benchmark.metric}: of this metric less is better, so a rise would be "
                    "called an improvement; choose one of which more is better"
                )
        _check_metric(name, loaded, benchmark)
        tasks[name] = loaded
    return tasks


def completed(benchmark: BenchmarkConfig, loaded: Any) -> BenchmarkConfig:
    """The benchmark; what it leaves open as the harness has it of the (first) task.

    Left open, the metric is the first of which more is better, the shots are the task's own, and guessing scores, on
    plain accuracy, a share of the choices.

    Args:
        benchmark: whose `metric`, `num_fewshot` and `chance` may be missing.
        loaded: what the harness loads for it.
    """
    task = next(iter(loaded["tasks"].values()))
    metric = next(
        (name for name, better in task.higher_is_better().items() if better is not False), "none"
    )
    filters = [f["name"] for f in task.config.filter_list or [{"name": "none"}]]
    own: dict[str, Any] = {
        "metric": metric_name(metric, filters[0]),
        "num_fewshot": task.config.num_fewshot or 0,
    }
    own["chance"] = 0.0
    if task.OUTPUT_TYPE == "multiple_choice" and metric in ("acc", "acc_norm"):
        asked = list(islice(task.eval_docs, 100))
        own["chance"] = sum(1 / len(task.doc_to_choice(doc)) for doc in asked) / len(asked)
    return replace(
        benchmark,
        **{key: value for key, value in own.items() if getattr(benchmark, key) == MISSING},
    )


def task_manager(tasks: list[str]) -> Any:
    """The harness's task manager, knowing at least `tasks` where the harness does.

    It parses thousands of task files at its start, which takes seconds (lm_eval 0.4.13). A plain task needs only the
    folder of its own file, which a search for its name finds in half a second; for a group, a tag, or a name that is
    not found, every file is read.
    """
    from lm_eval.tasks import TaskManager

    wanted = set(tasks) - {file.stem for file in TASKS_DIR.glob("*.yaml")}
    folders = task_folders(wanted) if wanted else {}
    if all(len(folders.get(task, [])) == 1 for task in wanted):
        narrow = TaskManager(
            include_path=[str(TASKS_DIR), *{str(folder) for (folder,) in folders.values()}],
            include_defaults=False,
        )
        if wanted <= set(narrow.all_subtasks):
            return narrow
    return TaskManager(include_path=str(TASKS_DIR))


def _check_metric(name: str, loaded: Any, benchmark: BenchmarkConfig) -> None:
    """Refuse a metric that the task cannot give, before hours go into measuring it."""
    task = loaded["tasks"].get(benchmark.task)
    if task is None or task.config.process_results is not None:
        return  # a group, or a task with scoring code of its own: what they give is known when they have given it
    filters = [f["name"] for f in task.config.filter_list or [{"name": "none"}]]
    known = {metric_name(m["metric"], f) for m in task.config.metric_list or [] for f in filters}
    known |= {"flexible_accuracy"} if benchmark.numeric_tolerance is not None else set()
    if known and benchmark.metric not in known:
        raise SlimdownError(
            f"benchmark.{name}.metric={benchmark.metric}: {benchmark.task} has no such metric; "
            f"it has {', '.join(sorted(known))}"
        )


def _set_shots(name: str, task: Any, benchmark: BenchmarkConfig) -> None:
    if task.config.num_fewshot == 0 and benchmark.num_fewshot != 0:
        reason = "a task that is asked without worked examples"
    elif benchmark.num_fewshot > 0 and not (task.has_training_docs() or task.config.fewshot_split):
        reason = "a task without a split to take worked examples from"
    else:
        task.set_config(key="num_fewshot", value=benchmark.num_fewshot)
        return
    raise SlimdownError(
        f"benchmark.{name}.num_fewshot={benchmark.num_fewshot}: {task.config.task} is {reason}; set it to 0"
    )


def build_requests(
    lm: Any, task: Any, benchmark: BenchmarkConfig, config: EvaluationConfig
) -> None:
    """Make the task's requests, `task.instances`, as `lm` will be asked them.

    Raises:
        SlimdownError: the chat template fails for these questions.
    """
    task.set_fewshot_seed(FEWSHOT_SEED)
    try:
        task.build_all_requests(
            limit=benchmark.limit,
            rank=0,
            world_size=1,
            apply_chat_template=config.apply_chat_template,
            fewshot_as_multiturn=config.apply_chat_template,
            chat_template=lm.apply_chat_template if config.apply_chat_template else None,
            tokenizer_name=lm.tokenizer_name if config.apply_chat_template else "",
        )
    except (
        TemplateError
    ) as error:  # one that takes a question, and not these, or not the worked examples before them
        raise SlimdownError(
            "evaluation.apply_chat_template=true: the tokenizer's chat template fails for the questions of "
            f"{benchmark.task} with {benchmark.num_fewshot} worked examples ({' '.join(str(error).split())[:200]}); "
            "set it to false, or choose another model"
        ) from None


@dataclass(frozen=True)
class Staged:
    """A benchmark's questions in the order that they are asked in, in stages, by the requests of a whole evaluation.

    A task draws worked examples along its questions, so all requests are made once and each stage asks its own.
    """

    loaded: Any  # what the harness loaded
    order: list[tuple[str, int]]  # task and number of each question
    ends: tuple[int, ...]  # how many have been asked after each stage
    requests: dict[tuple[str, int], list[Any]]  # of each question
    means: frozenset[str]  # the metrics that are means of their questions' scores

    def asked(self, stage: int) -> list[tuple[str, int]]:
        """Task and number of each question of a stage."""
        return self.order[self.ends[stage - 1] if stage else 0 : self.ends[stage]]

    def instances(self, stage: int) -> Iterator[tuple[str, Any, list[Any]]]:
        """Each task that a stage asks something of, by name, and the requests that it asks, in the harness's order."""
        by_task: dict[str, list[int]] = {}
        for task, number in self.asked(stage):
            by_task.setdefault(task, []).append(number)
        for name, numbers in sorted(by_task.items()):
            requests = [
                request for number in sorted(numbers) for request in self.requests[name, number]
            ]
            yield name, self.loaded["tasks"][name], requests

    @contextmanager
    def only(self, stage: int) -> Iterator[Any]:
        """Inside, these tasks have the questions of a stage and no others, and the requests that were made for them."""
        tasks: dict[str, Any] = {}
        try:
            for name, task, requests in self.instances(stage):
                tasks[name] = task
                _restrict(
                    task, [replace(request, resps=[], filtered_resps={}) for request in requests]
                )
            yield {**self.loaded, "tasks": tasks, "groups": {}}
        finally:
            for task in tasks.values():
                del task.build_all_requests, task.doc_iterator


def _restrict(task: Any, requests: list[Any]) -> None:
    """Have the harness, which builds requests anew and goes through all questions, find these."""
    docs = {request.doc_id: request.doc for request in requests}
    task.build_all_requests = lambda **_: setattr(task, "_instances", requests)
    task.doc_iterator = lambda **_: iter(docs.items())


def in_stages(loaded: Any, benchmark: BenchmarkConfig) -> Staged | None:
    """The benchmark's questions in stages; None where all are asked at once.

    That is so of few questions, and of a primary metric that is not the mean of its questions' scores.

    Args:
        loaded: what the harness loaded, its requests made.
        benchmark: how it is read.
    """
    requests: dict[tuple[str, int], list[Any]] = {}
    for name, task in loaded["tasks"].items():
        for request in task.instances:
            requests.setdefault((name, request.doc_id), []).append(request)
    numbers: dict[str, list[int]] = {}
    for name, number in requests:
        numbers.setdefault(name, []).append(number)
    ends, means = (
        stages_of(len(requests)),
        _means(loaded, benchmark, {len(of_task) for of_task in numbers.values()}),
    )
    if len(ends) == 1 or benchmark.metric.partition(".")[0] not in means:
        return None
    texts = {
        name: [json.dumps(requests[name, number][0].doc, default=str) for number in of_task]
        for name, of_task in numbers.items()
    }
    order = [(name, numbers[name][place]) for name, place in order_of(texts)]
    return Staged(loaded, order, ends, requests, frozenset(means))


def _means(loaded: Any, benchmark: BenchmarkConfig, sizes: set[int]) -> set[str]:
    """The metrics, without filters, of which the benchmark's score is the mean of its questions' scores.

    `sizes`: how many questions its tasks have. A group may weigh tasks of unequal size alike.
    """
    from lm_eval.api.metrics import mean

    tasks = loaded["tasks"].values()
    metrics = {name for task in tasks for name in task.aggregation()}
    means = {
        name for name in metrics if all(task.aggregation().get(name) is mean for task in tasks)
    }
    if (group := loaded["groups"].get(benchmark.task)) is not None:
        means &= {
            m.metric
            for m in group.aggregate_metric_list or ()
            if m.weight_by_size or len(sizes) == 1
        }
    return means | ({"flexible_accuracy"} if benchmark.numeric_tolerance is not None else set())
