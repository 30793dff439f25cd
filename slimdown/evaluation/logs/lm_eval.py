"""lm_eval's logs: what `lm_eval --log_samples --output_path DIR` leaves.

Reads what 0.4.9 to 0.4.13 write: `results_DATE.json` in a folder of the model's name, and beside it
a `samples_TASK_DATE.jsonl` for each task, one line a question and filter. No torch, no lm_eval.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from math import isclose
from pathlib import Path
from typing import Any

from slimdown.config.benchmark_config import CHOICE_PROBABILITY, BenchmarkConfig, ResolvedBenchmark
from slimdown.config.benchmarks import read_benchmarks
from slimdown.config.paths import read_group
from slimdown.evaluation.harness_results import read_task_samples, summarize_samples
from slimdown.evaluation.logs.logged_task import (
    LoggedAnswers,
    LoggedTask,
    drop_free,
    explain_malformed,
    name_model,
)
from slimdown.evaluation.results import SEED_CONDITION, MeanScore, Metric, Sample
from slimdown.utils.errors import DataError
from slimdown.utils.secrets import redact

_DATE = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?"
_DATED = re.compile(rf"_({_DATE})\.json$")
_SAMPLES = re.compile(rf"samples_(.+)_({_DATE})\.jsonl$")
# Settings of a task that say how an answer is made and scored. What is asked is compared by hashes.
_SCORED_BY = ["output_type", "num_fewshot", "generation_kwargs", "filter_list", "metric_list"]
_SCORED_BY += ["process_results"]
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens")  # the harness takes each of them


FILES = "results as lm_eval names them, results_DATE.json, with samples_TASK_DATE.jsonl"


def find_files(path: Path) -> list[Path]:
    """Find the results files that a path stands for, oldest first.

    Args:
        path: A results file, a samples file, a folder that holds results files, or the folder
            above. It may also be the file that the user named as `--output_path`, although lm_eval
            adds a date to this name.
    """

    def list_dated(folder: Path) -> list[Path]:
        return [file for file in folder.glob("*.json") if _read_date(file) and file.is_file()]

    if path.is_file():
        files = [path] if _read_date(path) or _SAMPLES.fullmatch(path.name) else []
    elif path.is_dir():
        places = [path, *sorted(path.iterdir())]
        # The folders with results files; the path itself comes first if it has some.
        folders = [place for place in places if place.is_dir() and list_dated(place)]
        # lm_eval makes a folder for each model. Of several models none is taken, and `find_logs`
        # asks the user which two are meant.
        is_of_one_model = path in folders or len(folders) == 1
        files = list_dated(folders[0]) if is_of_one_model else []
    else:  # `--output_path out/base.json` is written as out/base_DATE.json
        dated = list_dated(path.parent)
        files = [file for file in dated if _DATED.sub(".json", file.name) == path.name]
    return sorted(files, key=_read_date)


def open_logs(file: Path) -> Iterator[LoggedTask]:
    """Yield the benchmarks of a results file; the samples are read later.

    Args:
        file: A results file. If it is a samples file, only its task is yielded.

    Raises:
        DataError: A file is damaged, or the results are not beside the samples.
    """
    only_title = ""
    if match := _SAMPLES.fullmatch(file.name):
        only_title, date = match.groups()
        results_file = file.with_name(f"results_{date}.json")
        if not results_file.is_file():
            needed = f"{results_file.name} beside it, which says how lm_eval asked and scored"
            advice = "copy it there, or give the folder of both"
            raise DataError(f"{file} needs {needed}; {advice}")
        file = results_file
    with explain_malformed(f"{file} is no results file of lm_eval, or was cut short"):
        results = json.loads(file.read_bytes())
        titles = [only_title] if only_title else list(_list_benchmarks(results))
        arguments = _read_arguments(results)
        adapter = arguments.get("peft") or arguments.get("lora_local_path")
        made_by = {
            "model": name_model(str(adapter or results["model_name"]), arguments),
            "tool": str(results.get("lm_eval_version")),
            "backend": str(results["config"]["model"]),
            "adapter": str(adapter or ""),
        }
        conditions = dict(_list_conditions(results))
        # lm_eval logs the time of all benchmarks together; each gets an equal share.
        seconds = float(results.get("total_evaluation_time_seconds") or 0) / max(len(titles), 1)
    for title in titles:
        yield _HarnessTask(
            file, title, made_by, conditions, answers=(), seconds=seconds, results=results
        )


def _read_date(file: Path) -> str:
    return "".join(_DATED.findall(file.name))


@dataclass(frozen=True)
class _HarnessTask(LoggedTask):
    """A benchmark of a results file; its answers are the samples beside it."""

    results: dict[str, Any] = field(default_factory=dict, kw_only=True)

    def read_answers(self, name: str, cluster: str | None) -> LoggedAnswers:
        """Read the samples of the benchmark, and find the metrics that can be compared.

        These are the metrics whose means are those in the results file. The harness weighs a
        group's tasks by their numbers of questions, or equally. The results file does not say how,
        but only one of the two ways gives its means.

        Args:
            name: Not used: the samples keep the harness's names of their tasks.
            cluster: The field of a question's row that names its cluster.

        Returns:
            The samples, task by task, and how the tasks are weighed. It has no metrics if neither
            way gives a mean of the results file.

        Raises:
            DataError: A samples file is missing, or not as lm_eval writes it.
        """
        task, results = self.title, self.results
        with explain_malformed(f"{self.file}: {task} is not logged as lm_eval does it"):
            reported = dict(_list_metrics(task, results))
            subtasks = _list_tasks(task, results)
            task_configs = {subtask: results["configs"][subtask] for subtask in subtasks}
            settings = self._read_settings(subtasks, cluster)
            config = ResolvedBenchmark.of(settings)
            samples = list[Sample]()
            for subtask, task_config in task_configs.items():
                lines = self._read_lines(subtask)
                samples += read_task_samples(subtask, lines, task_config, config)
            versions = {str(results["versions"].get(subtask)) for subtask in subtasks}
            limits = list(map(_read_limit, task_configs.values()))  # 0: not known
            # Scoring code of a task's own may give the right choice another score than 1. Then it
            # is not known what guessing scores.
            has_own_code = any(c.get("process_results") for c in task_configs.values())
            better = dict(results["higher_is_better"].get(task) or {})

        def find_metrics(task_weights: dict[str, float] | None) -> list[str]:
            """Find the metrics whose means, weighted like this, are those of the results file."""
            scores = summarize_samples(config, samples, task_weights).scores
            usable = _list_usable(scores, reported, better)
            # lm_eval does not report p_right, which slimdown computes. So it agrees with the file
            # whatever the weights are, and does not tell whether they are right.
            return usable if set(usable) - {CHOICE_PROBABILITY} else []

        task_weights: dict[str, float] | None = None  # None: by their numbers of questions
        metrics = find_metrics(task_weights)
        if not metrics:  # then each task may count equally
            task_weights = dict.fromkeys(subtasks, 1 / len(subtasks))
            metrics = find_metrics(task_weights)
        return LoggedAnswers(
            samples=samples,
            questions=[str(sample.doc_id) for sample in samples],
            metrics=metrics,
            chances=[0.0 if has_own_code else _find_chance(sample) for sample in samples],
            settings=settings,
            # How many of `metrics` lm_eval reports: these come first, and the primary metric is one
            # of them. If it reports none of them, any may be the primary one (None).
            n_reported=sum(key in reported for key in metrics) or None,
            task_version=", ".join(sorted(versions)),
            task_weights=task_weights,
            max_new_tokens=max(limits) if all(limits) else None,
        )

    def _read_settings(self, subtasks: Sequence[str], cluster: str | None) -> BenchmarkConfig:
        """Read how the benchmark was asked; what a log does not say is as in conf/benchmark/."""
        limit = self.results["config"].get("limit")
        n_shots = {int(self.results["n-shot"].get(subtask) or 0) for subtask in subtasks}
        return replace(
            known_benchmarks().get(self.title, BenchmarkConfig(task=self.title)),
            num_fewshot=n_shots.pop() if len(n_shots) == 1 else None,
            limit=int(limit) if limit and limit >= 1 else None,
            cluster=cluster,
        )

    def _read_lines(self, task: str) -> list[dict[str, Any]]:
        """Return the lines of one task in the order of its questions.

        Raises:
            DataError: The lines are not those that the results file was written with.
        """
        file = self.file.with_name(f"samples_{task}_{_read_date(self.file)}.jsonl")
        if not file.is_file():  # nor a named pipe, which may never end
            raise DataError(f"there is no file {file}; lm_eval --log_samples keeps the answers")
        lines: list[dict[str, Any]] = []
        digest = sha256()  # of the lines' hashes, in the order of the file: the task's hash
        with file.open("rb") as stream:
            for number, text in enumerate(stream, start=1):
                place = f"{file}, line {number},"
                with explain_malformed(f"{place} is no line of lm_eval, or was cut short"):
                    line = json.loads(text)
                    if b"\\ud" in text.lower():
                        # This raises at a lone surrogate, which UTF-8 cannot hold.
                        json.dumps(line, ensure_ascii=False).encode()
                    if abs(int(line["doc_id"])) >= 2**63:
                        raise ValueError("its doc_id has more than 64 bits")
                    hashes = line["doc_hash"] + line["prompt_hash"] + line["target_hash"]
                    digest.update(hashes.encode())
                    # {"gen_args_0": {"arg_0": ..., "arg_1": ...}} becomes [[..., ...]], as
                    # `read_task_samples` expects it.
                    line["arguments"] = [list(own.values()) for own in line["arguments"].values()]
                    lines.append(line | {"doc_id": int(line["doc_id"])})
        n_different = len({(line["doc_id"], line["filter"]) for line in lines})
        is_whole = 0 < len(lines) == n_different
        if not is_whole or digest.hexdigest() != self.results["task_hashes"][task]:
            problem = "lines are missing, doubled or changed"
            raise DataError(f"{file} is not what {self.file.name} was written with: {problem}")
        # If several processes answered, they wrote their lines in turn.
        return sorted(lines, key=lambda line: line["doc_id"])


def _read_limit(task_config: Mapping[str, Any]) -> int:
    """Return the most tokens of an answer to a task's questions; 0: its settings do not say."""
    generation = task_config.get("generation_kwargs") or {}
    return max(int(generation.get(name) or 0) for name in _LIMITS)


def _find_chance(sample: Sample) -> float:
    """Return what guessing scores on a question; 0 if it has no choices, so that it is unknown."""
    return 1 / len(set(sample.choices)) if sample.choices else 0.0


def _list_benchmarks(results: dict[str, Any]) -> Iterator[str]:
    """Yield groups with a score, and tasks in no such group."""
    groups = results["group_subtasks"]
    inner = {child for children in groups.values() for child in children}
    names = [name for name in dict.fromkeys((*results["results"], *groups)) if name not in inner]
    listed = set(names)
    for name in names:  # `names` grows in this loop: what is added is looked at, too
        if groups.get(name) and not any(_list_metrics(name, results)):
            names += [child for child in groups[name] if child not in listed]  # each by itself
            listed.update(groups[name])
        else:
            yield name


def _list_tasks(name: str, results: dict[str, Any]) -> list[str]:
    """Return a group's tasks, or the task itself; sorted, as the harness has them in any order."""
    groups, inside, open_names = results["group_subtasks"], {name}, [name]
    while open_names:
        children = set(groups.get(open_names.pop()) or ()) - inside
        inside |= children
        open_names += children
    return sorted(task for task in inside if not groups.get(task))


def _list_metrics(name: str, results: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the metrics by which the harness reports a benchmark's score, and the scores."""
    for key, value in results["results"].get(name, {}).items():
        metric, _, filter_name = key.partition(",")
        is_error = metric == "bypass" or metric.endswith("_stderr")
        if filter_name and not is_error and isinstance(value, int | float):
            yield Metric(metric, filter_name), float(value)


def _list_usable(
    scores: Mapping[str, MeanScore], reported: Mapping[str, float], better: Mapping[str, Any]
) -> list[str]:
    """List the metrics of which more is better, and whose mean is the score that lm_eval reports.

    A metric that lm_eval does not report, such as p_right, is also taken. The reported metrics come
    first. Within both kinds, metrics are in the task's order.

    Args:
        scores: The means of the questions' scores, by metric.
        reported: The scores that lm_eval reports.
        better: By metric without its filter, whether more is better; in the task's order.
    """
    usable = [
        key
        for key, score in scores.items()
        if better.get(Metric(key).name) is not False
        and isclose(reported.get(key, score.value), score.value, abs_tol=1e-9)
    ]
    places = {name: place for place, name in enumerate(better)}
    # A metric that the task does not list comes last.
    usable.sort(key=lambda key: places.get(Metric(key).name, len(places)))
    return sorted(usable, key=lambda key: key not in reported)  # the reported ones come first


@cache
def known_benchmarks() -> dict[str, BenchmarkConfig]:
    """Return the benchmarks of conf/benchmark/, by task."""
    names = [name for name, settings in read_group("benchmark").items() if "task" in settings]
    return {config.task: config for config in read_benchmarks(names).values()}


def _read_arguments(results: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the model, which older versions write as a text."""
    arguments = results["config"].get("model_args") or {}
    if isinstance(arguments, str):
        return dict(argument.partition("=")[::2] for argument in arguments.split(","))
    return dict(arguments)


def _list_conditions(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what must be equal, besides the questions, so that two models can be compared.

    Yields:
        The name of a condition and its value: arguments of the model that may change answers, how
        prompts are built, and for each task how its answers are made and scored.
    """
    config = results["config"]
    has_template = results.get("chat_template") is not None
    arguments = drop_free(_read_arguments(results))
    if config.get("model_dtype"):  # what `auto` stood for
        arguments["dtype"] = str(config["model_dtype"]).removeprefix("torch.")
    arguments["max_length"] = results.get("max_length") or arguments.get("max_length")
    yield from ((key, redact(str(value)).lower()) for key, value in sorted(arguments.items()))
    is_multiturn = has_template and bool(results.get("fewshot_as_multiturn"))
    yield "apply_chat_template", str(has_template).lower()
    yield "fewshot_as_multiturn", str(is_multiturn).lower()
    yield "system_instruction", str(results.get("system_instruction"))
    for task, settings in results["configs"].items():
        sampler = (settings.get("fewshot_config") or {}).get("sampler")
        if settings.get("num_fewshot") and sampler != "first_n":  # examples are drawn at random
            yield f"{task}.{SEED_CONDITION}", str(config.get("fewshot_seed"))
        for key in _SCORED_BY:
            text = json.dumps(settings.get(key), sort_keys=True)
            # A function without source has a new address each time.
            yield f"{task}.{key}", re.sub(r" at 0x[0-9a-f]+", "", text)
