"""lm-evaluation-harness's own logs -> `Evaluation`: what `lm_eval --log_samples --output_path DIR` left there.

Read as 0.4.9 to 0.4.13 write them: `results_DATE.json` in a folder of the model's name, and beside it a
`samples_TASK_DATE.jsonl` for each task, a line a question and filter. Imports neither torch nor the harness.
"""

import gc
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from math import fsum, isnan, nan
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from slimdown.config.files import CONF_DIR
from slimdown.config.keys import nearest
from slimdown.config.schema import BenchmarkConfig, Role
from slimdown.evaluation.answers import BenchmarkEvaluation, Evaluation
from slimdown.evaluation.results import metric_name, read_results
from slimdown.utils.errors import SlimdownError

_DATED = re.compile(r"_(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.json$")
# The primary metric of a task that conf/benchmark/ does not name: the first of these that it has, else its first.
_PREFERRED = ("acc_norm", "acc", "exact_match.flexible-extract", "exact_match")
# Arguments that say which weights these are and where they run: to differ in them is what two logs are made for. Every
# other one moves answers, or may.
_FREE_ARGUMENTS = re.compile(
    "pretrained|peft|delta|revision|subfolder|gguf_file|tokenizer|tokenizer_revision|lora_local_path|enable_lora|"
    "max_lora_rank|model|base_url|api_key|token|hf_token|auth_token|cache_dir|trust_remote_code|use_fast_tokenizer|"
    "low_cpu_mem_usage|device|device_map|device_map_option|parallelize|gpus|max_memory_per_gpu|max_cpu_memory|"
    "offload_folder|tensor_parallel_size|data_parallel_size|gpu_memory_utilization|swap_space|batch_size|"
    "max_batch_size|logits_cache|num_concurrent|max_retries|timeout"
)
# What a task's settings say of how an answer comes about and is scored; what is asked, its hashes say.
_SCORED_BY = (
    "output_type",
    "num_fewshot",
    "generation_kwargs",
    "filter_list",
    "metric_list",
    "process_results",
)
_MALFORMED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


def read_lm_eval(
    folder: Path | str,
    metrics: Mapping[str, str] | None = None,
    targets: Collection[str] = (),
    tell: Callable[[str], object] = warnings.warn,
) -> Evaluation:
    """What one model answered, read from the logs of the harness's command line.

    A group that has a score of its own is one benchmark, whose questions come from its tasks; any other task is one by
    itself. Where a benchmark was asked several times, its newest answers are read.

    Args:
        folder: the one that `--output_path` named, the model's folder in it, or one results file.
        metrics: the primary metric by benchmark, filters after a dot; without it that of `conf/benchmark/`, else
            acc_norm, acc or exact_match, else the first one.
        targets: the benchmarks that the fine-tuning was meant to teach.
        tell: told in a line of what is not read.

    Raises:
        SlimdownError: no logs, none of questions, or not as the harness writes them.
    """
    logs = [_Log.read(file) for file in results_files(Path(folder))]
    newest = {name: log for log in logs for name in log.benchmarks}
    used = [log for log in logs if log in newest.values()]
    for name in (*(metrics or {}), *targets):
        if name not in newest:
            raise SlimdownError(f"{folder}: {name} was not asked{nearest(name, list(newest))}")
    for log in used[:-1]:
        if problem := log.unlike(used[-1]):
            raise SlimdownError(
                f"{folder} holds logs that were not made alike, {problem}; give one of the files"
            )
    if len(logs) > 1:
        read = "; ".join(
            f"{', '.join(n for n in newest if newest[n] is log)} from {log.file.name}"
            for log in used
        )
        tell(f"{folder} holds {len(logs)} results, of which the newest are read: {read}")
    found: dict[str, BenchmarkEvaluation] = {}
    with _uncollected():
        for name, log in newest.items():
            if report := log.benchmark(
                name, (metrics or {}).get(name), Role.target if name in targets else None
            ):
                found[name] = report
            else:
                tell(
                    f"{name} is left out: it has no metric of which more is better and each question has a score"
                )
    if not found:
        raise SlimdownError(
            f"{folder}: no benchmark has a score of each question, so none can be compared"
        )
    return Evaluation(
        benchmarks=found,
        harness_version=used[-1].harness_version,
        scoring_path=used[-1].scoring_path,
        seconds=fsum(log.seconds for log in used),
        conditions={key: value for log in used for key, value in log.conditions.items()},
    )


def results_files(path: Path) -> list[Path]:
    """The harness's results files that a path stands for, oldest first.

    Raises:
        SlimdownError: there are none, or those of several models.
    """
    try:
        if path.is_file():
            found = [path] if _date(path) else []
        elif path.is_dir():
            folders = [
                folder
                for folder in (path, *sorted(path.iterdir()))
                if folder.is_dir() and _dated(folder)
            ]
            if len(folders) > 1 and path not in folders:
                models = ", ".join(folder.name for folder in folders)
                raise SlimdownError(
                    f"{path} holds logs of several models; give the folder of one: {models}"
                )
            found = _dated(folders[0]) if folders else []
        else:  # `--output_path out/base.json` is written as out/base_DATE.json
            found = [
                file
                for file in _dated(path.parent)
                if f"{_DATED.sub('', file.name)}.json" == path.name
            ]
            if not found:
                raise SlimdownError(
                    f"there is no folder {path}; give the one that lm_eval's --output_path named"
                )
    except OSError as error:
        raise SlimdownError(f"{path} cannot be read ({error.strerror})") from None
    if not found:
        raise SlimdownError(f"{path} holds no results as lm_eval names them, results_DATE.json")
    return sorted(found, key=_date)


def _date(file: Path) -> str:
    return "".join(_DATED.findall(file.name))


def _dated(folder: Path) -> list[Path]:
    return [file for file in folder.glob("*.json") if _date(file)]


@dataclass(frozen=True, eq=False)
class _Log:
    """One results file, and the samples beside it."""

    file: Path
    results: dict[str, Any]
    benchmarks: dict[
        str, str
    ]  # the harness's name by ours: groups with a score, and tasks that are in none
    model: str
    harness_version: str
    scoring_path: str  # the harness's class of models
    seconds: float
    conditions: dict[str, str]  # what else must be equal for two logs to be compared

    @classmethod
    def read(cls, file: Path) -> "_Log":
        """Everything but the samples."""
        try:
            results = json.loads(file.read_bytes())
            return cls(
                file=file,
                results=results,
                benchmarks=dict(_benchmarks(results)),
                model=str(results["model_name"]),
                harness_version=str(results.get("lm_eval_version")),
                scoring_path=str(results["config"]["model"]),
                seconds=float(results.get("total_evaluation_time_seconds") or 0),
                conditions=dict(_conditions(results)),
            )
        except OSError as error:
            raise SlimdownError(f"{file} cannot be read ({error.strerror})") from None
        except _MALFORMED as error:
            raise SlimdownError(
                f"{file} is no results file of lm_eval, or was cut short ({_said(error)})"
            ) from None

    def unlike(self, other: "_Log") -> str:
        """How this log was made otherwise, whatever its tasks; empty where it was not."""
        fields = ("model", "harness_version", "scoring_path")
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in fields}
        of_all = {key for log in (self, other) for key in log.conditions if "." not in key}
        pairs |= {
            key: (self.conditions.get(key), other.conditions.get(key)) for key in sorted(of_all)
        }
        return next(
            (f"{key} differs: {one} and {two}" for key, (one, two) in pairs.items() if one != two),
            "",
        )

    def benchmark(
        self, name: str, metric: str | None, role: Role | None
    ) -> BenchmarkEvaluation | None:
        """The answers of one benchmark; None where it has no metric to compare."""
        task, results = self.benchmarks[name], self.results
        known = _known().get(task, BenchmarkConfig(task=task, metric=""))
        try:
            samples = {subtask: self._entries(subtask) for subtask in _tasks(task, results)}
            limit = results["config"].get("limit")
            config = replace(
                known,
                metric=next(_metrics(task, results), ""),
                num_fewshot=max(int(results["n-shot"].get(subtask) or 0) for subtask in samples),
                limit=int(limit) if limit and limit >= 1 else None,
            )
            report = (
                read_results(name, config, {**results, "samples": samples}, nan)
                if config.metric
                else None
            )
        except _MALFORMED as error:
            raise SlimdownError(
                f"{self.file}: {task} is not logged as lm_eval does it ({_said(error)})"
            ) from None
        if not report:
            return None
        scored = [
            key for key in report.scores if all(key in sample.scores for sample in report.samples)
        ]
        more_is_better = results["higher_is_better"].get(task, {})
        usable = [key for key in scored if more_is_better.get(key.partition(".")[0]) is not False]
        if not usable:
            return None
        if metric and metric not in usable:
            raise SlimdownError(
                f"{name}={metric}: the answers have no such score, or less of it is better{nearest(metric, usable)}"
            )
        for sample in report.samples:
            if any(isnan(value) for value in (*sample.log_likelihoods, *sample.scores.values())):
                raise SlimdownError(
                    f"{self.file}: what the model answers to question {sample.doc_id} of {sample.task} is not a "
                    "number; its weights are damaged, or its dtype overflows"
                )
        preferred = (
            m
            for wanted in (known.metric, *_PREFERRED)
            for m in usable
            if f"{m}.".startswith(f"{wanted}.")
        )
        primary = metric or next(preferred, usable[0])
        chance = known.chance if primary == known.metric else _chance(report, primary)
        return replace(
            report,
            benchmark=replace(config, metric=primary, chance=chance, role=role or known.role),
        )

    def _entries(self, task: str) -> list[dict[str, Any]]:
        """The lines of one task by question, without the rows of its data; they are held to what the results say."""
        file = self.file.with_name(f"samples_{task}_{_date(self.file)}.jsonl")
        entries: list[dict[str, Any]] = []
        digest = hashlib.sha256()
        try:
            with file.open("rb") as lines:
                for line in lines:
                    entry = json.loads(line)
                    digest.update(
                        (entry["doc_hash"] + entry["prompt_hash"] + entry["target_hash"]).encode()
                    )
                    del entry["doc"]
                    entry["arguments"] = [
                        list(arguments.values()) for arguments in entry["arguments"].values()
                    ]
                    entries.append(entry)
        except FileNotFoundError:
            raise SlimdownError(
                f"there is no {file}; lm_eval --log_samples keeps the answers"
            ) from None
        except OSError as error:
            raise SlimdownError(f"{file} cannot be read ({error.strerror})") from None
        except _MALFORMED as error:
            raise SlimdownError(
                f"{file}, line {len(entries) + 1}, is no line of lm_eval, or was cut short ({_said(error)})"
            ) from None
        questions = {(entry["doc_id"], entry["filter"]) for entry in entries}
        if (
            not 0 < len(entries) == len(questions)
            or digest.hexdigest() != self.results["task_hashes"][task]
        ):
            raise SlimdownError(
                f"{file} is not what {self.file.name} was written with: lines are missing, doubled or changed"
            )
        return sorted(
            entries, key=lambda entry: int(entry["doc_id"])
        )  # several processes write theirs in turn


def _benchmarks(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Groups with a score, and tasks that are in none, as they can be named in a record, and by the harness."""
    groups = results["group_subtasks"]
    inner = {child for children in groups.values() for child in children}
    names = [name for name in dict.fromkeys((*results["results"], *groups)) if name not in inner]
    for name in names:
        if groups.get(name) and not any(_metrics(name, results)):
            names += [child for child in groups[name] if child not in names]  # each by itself
        else:
            yield re.sub(r"[^\w-]", "_", name), name


def _tasks(name: str, results: dict[str, Any]) -> list[str]:
    """The tasks of a group, itself for a task; sorted, for the harness lists a group's in any order."""
    below = results["group_subtasks"].get(name)
    return sorted({task for child in below for task in _tasks(child, results)}) if below else [name]


def _metrics(name: str, results: dict[str, Any]) -> Iterator[str]:
    """The metrics that the harness gives a benchmark's score by."""
    for key, value in results["results"].get(name, {}).items():
        metric, _, filter_name = key.partition(",")
        if (
            filter_name
            and metric != "bypass"
            and not metric.endswith("_stderr")
            and isinstance(value, int | float)
        ):
            yield metric_name(metric, filter_name)


def _chance(report: BenchmarkEvaluation, metric: str) -> float:
    """What guessing scores: of questions with one right choice one in so many; of others it is not known."""
    if not all(sample.choices and sample.scores[metric] in (0, 1) for sample in report.samples):
        return 0.0
    return fsum(1 / len(set(sample.choices)) for sample in report.samples) / len(report.samples)


@cache
def _known() -> dict[str, BenchmarkConfig]:
    """The benchmarks that come along, by task."""
    schema = OmegaConf.structured(BenchmarkConfig)
    files = sorted((CONF_DIR / "benchmark").glob("*.yaml"))
    found = [OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.load(file))) for file in files]
    return {config.task: config for config in found if isinstance(config, BenchmarkConfig)}


def _conditions(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What must be equal, beside the questions, for the answers of two models to be compared."""
    config, chat = results["config"], results.get("chat_template") is not None
    given = config.get("model_args") or {}
    if isinstance(given, str):
        given = dict(argument.partition("=")[::2] for argument in given.split(","))
    arguments = {key: value for key, value in given.items() if not _FREE_ARGUMENTS.fullmatch(key)}
    if config.get("model_dtype"):  # what `auto` stood for
        arguments["dtype"] = str(config["model_dtype"]).removeprefix("torch.")
    arguments["max_length"] = results.get("max_length") or arguments.get("max_length")
    yield from ((key, str(value).lower()) for key, value in sorted(arguments.items()))
    yield "apply_chat_template", str(chat).lower()
    yield "fewshot_as_multiturn", str(chat and bool(results.get("fewshot_as_multiturn"))).lower()
    yield "system_instruction", str(results.get("system_instruction"))
    for task, settings in results["configs"].items():
        sampler = (settings.get("fewshot_config") or {}).get("sampler")
        if settings.get("num_fewshot") and sampler != "first_n":
            yield "fewshot_seed", str(config.get("fewshot_seed"))
        for key in _SCORED_BY:
            said = json.dumps(settings.get(key), sort_keys=True)
            yield (
                f"{task}.{key}",
                re.sub(r" at 0x[0-9a-f]+", "", said),
            )  # a function lies elsewhere each time


@contextmanager
def _uncollected() -> Iterator[None]:
    """Nothing that is read dies at once; to look for what did takes as long as reading it."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
