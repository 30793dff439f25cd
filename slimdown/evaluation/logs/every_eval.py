"""Entries of Every Eval Ever: `UUID.json` and, beside it, `UUID_samples.jsonl`.

Reads schema 0.3 (https://github.com/evaleval/every_eval_ever), which converters write from logs of
lm_eval, Inspect and HELM. The first file says what was asked and of whom; the second has a line for
each question and score. An entry without the second file holds nothing that can be paired.

Entries that were made from lm_eval's logs keep its metrics and hashes, and are read as lm_eval's
logs are. In all others a line's score is that of its benchmark, or of the metric that its
`evaluation_result_id` names. Entries hold no likelihoods, so p_right cannot be computed.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import md5, sha256
from pathlib import Path
from statistics import fmean
from typing import Any

from slimdown.config.benchmark_config import BenchmarkConfig
from slimdown.evaluation.harness_results import parse_score
from slimdown.evaluation.logs.lm_eval import known_benchmarks
from slimdown.evaluation.logs.logged_task import (
    LoggedAnswer,
    LoggedTask,
    drop_free,
    explain_malformed,
    name_metric,
    name_model,
    read_limit,
    read_table_rows,
    write_conditions,
)
from slimdown.evaluation.results import Metric
from slimdown.utils.errors import DataError
from slimdown.utils.hashing import hash_json

FILES = "entries of Every Eval Ever, UUID.json with UUID_samples.jsonl"
_UUID = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-4[0-9a-fA-F]{3}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_NAME = re.compile(rf"({_UUID})(?:\.json|_samples\.jsonl)")
_VERSION = re.compile(r"0\.3(\.\d+)?")
# Folders between the one that a converter was told to write to and its files: benchmark, developer
# and model; the repository has `data` above them.
_PLACES = ("*.json", "*/*.json", "*/*/*.json", "*/*/*/*.json", "data/*/*/*/*.json")


def find_files(path: Path) -> list[Path]:
    """Find the entries that a path stands for, oldest first: the files without samples."""
    if path.is_file():
        match = _NAME.fullmatch(path.name)
        return [path.with_name(f"{match[1]}.json")] if match else []
    found = (file for pattern in _PLACES for file in path.glob(pattern))
    files = {file for file in found if _NAME.fullmatch(file.name) and file.is_file()}
    return sorted(files, key=lambda file: (_read_date(file), file))


def _read_date(file: Path) -> float:
    """Read when an entry was made; 0 where it is damaged, which `open_logs` explains."""
    with suppress(Exception):
        return float(json.loads(file.read_bytes())["retrieved_timestamp"])
    return 0.0


def open_logs(file: Path) -> Iterator[LoggedTask]:
    """Yield the benchmarks of an entry, those that the lines of its samples file name.

    Args:
        file: The entry's first file, `UUID.json`.

    Raises:
        DataError: The entry has another schema version, no results of single questions, or is
            damaged.
    """
    if not file.is_file():
        raise DataError(f"there is no {file}, which says what {file.stem}_samples.jsonl holds")
    with explain_malformed(f"{file} is no entry of Every Eval Ever, or was cut short"):
        summary = json.loads(file.read_bytes())
        version = str(summary.get("schema_version"))
        if not _VERSION.fullmatch(version):
            problem = f"has schema version {version:.40}; slimdown reads 0.3"
            advice = "convert the log again with a current every_eval_ever"
            raise DataError(f"{file} {problem}: {advice}")
        if not summary.get("detailed_evaluation_results"):
            problem = "has no results of single questions (detailed_evaluation_results)"
            raise DataError(f"{file} {problem}; convert the log with --include_samples")
        model, library = summary["model_info"], summary["eval_library"]
        engine = (model.get("inference_engine") or {}).get("name")
        arguments = _read_arguments(model.get("additional_details") or {})
        adapter = arguments.get("peft") or arguments.get("lora_local_path")
        made_by = {
            # Where an adapter was loaded, `id` names only the base model.
            "model": name_model(str(adapter or model["id"]), arguments),
            "tool": f"{library['name']} {library['version']}",
            "backend": str(engine or model.get("inference_platform") or library["name"]),
        }
        for title, lines in _read_lines(file, summary).items():
            results = _find_results(summary["evaluation_results"], lines)
            generation = results[0].get("generation_config") or {}  # alike in all of a benchmark
            limit = read_limit((generation.get("generation_args") or {}).get("max_tokens"))
            settings = {"generation": generation, "model_args": drop_free(arguments)}
            conditions = write_conditions("Every Eval Ever", title, settings)
            answers = _read_answers(file, lines, results)
            task = LoggedTask(file, title, made_by, conditions, answers, max_new_tokens=limit)
            yield _add_harness_facts(task, results) if _is_of_harness(lines) else task


def _add_harness_facts(task: LoggedTask, results: Sequence[Mapping[str, Any]]) -> LoggedTask:
    """Add what lm_eval's converter keeps of a task: its settings, and the reported scores."""
    settings = known_benchmarks().get(task.title, BenchmarkConfig(task=task.title))
    details = (results[0].get("generation_config") or {}).get("additional_details") or {}
    shots = str(details.get("num_fewshot"))
    settings = replace(settings, num_fewshot=int(shots) if shots.isdecimal() else None)
    reported = {_name_harness_metric(r): float(r["score_details"]["score"]) for r in results}
    return replace(task, settings=settings, reported=reported)


def _read_arguments(details: Mapping[str, Any]) -> dict[str, Any]:
    """Read how the model was loaded, where the entry says it."""
    text = str(details.get("model_args") or "")
    arguments: Any = dict(part.partition("=")[::2] for part in text.split(",") if part)
    if text.startswith("{"):
        with suppress(ValueError, SyntaxError):
            arguments = ast.literal_eval(text)
    if details.get("dtype"):  # what `auto` stood for
        arguments["dtype"] = str(details["dtype"]).removeprefix("torch.")
    return {str(key): value for key, value in arguments.items()}


def _read_lines(file: Path, summary: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Read the lines of an entry's samples file, by benchmark.

    Raises:
        DataError: The file is missing, was changed or cut short, or holds an error of a question.
    """
    details = summary["detailed_evaluation_results"]
    samples = file.with_name(f"{file.stem}_samples.jsonl")
    if not samples.is_file():
        raise DataError(f"there is no file {samples}, which {file.name} names")
    hash_function = {"sha256": sha256, "md5": md5}.get(str(details.get("hash_algorithm")))
    if hash_function:
        checksum = hash_function(samples.read_bytes()).hexdigest()
        if details.get("checksum") not in (None, checksum):  # an entry may leave it out
            problem = f"is not what {file.name} was written with: its checksum differs"
            raise DataError(f"{samples} {problem}")
    by_title: dict[str, list[dict[str, Any]]] = {}
    for number, line in read_table_rows(samples):
        place = f"{samples}, line {number}"
        with explain_malformed(f"{place}, is no line of Every Eval Ever"):
            if line["evaluation_id"] != summary["evaluation_id"]:
                raise DataError(f"{place}, belongs to {line['evaluation_id']!r:.80}")
            if line.get("error"):
                problem = f"question {line['sample_id']!r:.80} ended in an error"
                raise DataError(f"{place}: {problem}: {line['error']!s:.100}")
            # The name ends in the filter of lm_eval, which is part of the metric's name instead.
            filter_name = (line.get("metadata") or {}).get("filter")
            title = str(line["evaluation_name"]).removesuffix(f"/{filter_name}")
            by_title.setdefault(title, []).append(line)
    n_lines = sum(map(len, by_title.values()))
    if not n_lines or details.get("total_rows") not in (None, n_lines):
        raise DataError(f"{samples} has {n_lines} lines, {file.name} {details.get('total_rows')}")
    return by_title


def _is_of_harness(lines: Sequence[Mapping[str, Any]]) -> bool:
    return all("lm_eval_metrics" in (line.get("metadata") or {}) for line in lines)


def _find_results(
    results: Sequence[dict[str, Any]], lines: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the results of an entry that some of its lines belong to, one for each metric.

    Lines name their results by id. If no id fits, results of the same name are returned, or all
    if there are none.
    """
    ids = {line.get("evaluation_result_id") for line in lines} - {None}
    names = {line["evaluation_name"] for line in lines}
    by_id = [result for result in results if result.get("evaluation_result_id") in ids]
    by_name = [result for result in results if result["evaluation_name"] in names]
    return by_id or by_name or list(results)


def _name_harness_metric(result: Mapping[str, Any]) -> str:
    """Name a metric of lm_eval: `exact_match (filter: strict)` as `exact_match.strict`."""
    description = str(result["metric_config"]["evaluation_description"])
    name, _, rest = description.partition(" (filter: ")
    return Metric(name, rest.removesuffix(")") or "none")


def _name_metric(result: Mapping[str, Any]) -> str:
    """Name the metric of a result as a record takes it."""
    config = result["metric_config"]
    names = (config.get(key) for key in ("metric_id", "metric_name", "evaluation_description"))
    return name_metric(str(next(filter(None, names), "score")))


def _read_answers(
    file: Path, lines: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]
) -> Iterator[LoggedAnswer]:
    """Yield a benchmark's questions, each with its mean score on every metric.

    A question has several lines if it has several metrics, or was asked several times. Metrics of
    which less is better are left out.

    Args:
        file: The entry, for messages.
        lines: The benchmark's lines of the samples file.
        results: The benchmark's results in the entry: of each metric, a mean and a description.

    Raises:
        DataError: A question is not as the schema has it.
    """
    has_harness_metrics = _is_of_harness(lines)  # then a line has the scores on all metrics
    name_result = _name_harness_metric if has_harness_metrics else _name_metric
    lower_is_better = [result for result in results if result["metric_config"]["lower_is_better"]]
    left_out = set(map(name_result, lower_is_better))
    results_by_id = {result.get("evaluation_result_id"): result for result in results}
    results_by_id.pop(None, None)  # an id is optional, and a line without one names no result
    lines_by_question: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        lines_by_question.setdefault(str(line["sample_id"]), []).append(line)
    for question, own_lines in lines_by_question.items():
        with explain_malformed(f"{file}: question {question!r:.80} is not as schema 0.3 has it"):
            # By metric: a score for each time the question was asked, and what was read from the
            # first answer.
            scores: dict[str, list[float]] = {}
            answers: dict[str, str] = {}
            for line in own_lines:
                if has_harness_metrics:
                    line_scores = _read_harness_scores(line)
                else:  # a line has one score
                    result = results_by_id.get(line.get("evaluation_result_id"))
                    if result is None:
                        [result] = results  # raises if it could be the score of several
                    line_scores = {_name_metric(result): float(line["evaluation"]["score"])}
                for metric, score in line_scores.items():
                    scores.setdefault(metric, []).append(score)
                    answers.setdefault(metric, _read_extracted(line))
            # A question counts once, so the scores of its repetitions are averaged.
            means = {metric: fmean(scores[metric]) for metric in scores if metric not in left_out}
            yield _read_question(own_lines[0], means, answers)


def _read_harness_scores(line: Mapping[str, Any]) -> dict[str, float]:
    """Read the scores that lm_eval gave to an answer, by metric and filter."""
    metadata = line["metadata"]
    scores = json.loads(metadata["lm_eval_metrics"])
    numbers = {Metric(name, metadata["filter"]): parse_score(scores[name]) for name in scores}
    return {metric: number for metric, number in numbers.items() if number is not None}


def _read_question(
    line: Mapping[str, Any], scores: dict[str, float], answers: dict[str, str]
) -> LoggedAnswer:
    """Read what was asked and answered.

    Args:
        line: The first line of the question.
        scores: The question's mean scores, by metric.
        answers: What was read from the answer, by metric; of other metrics, too.

    Returns:
        The question's id, what guessing scores, and fields of `Sample`; see `LoggedAnswer`.
    """
    question = line["input"]
    metadata = dict(line.get("metadata") or {})
    choices = [str(choice) for choice in question.get("choices") or ()]
    references = [str(reference) for reference in question["reference"]]
    if choices:  # lm_eval names the right choice by its place
        by_place = {str(place): choice for place, choice in enumerate(choices)}
        references = [by_place.get(reference, reference) for reference in references]
    question_hash = hash_json([question["raw"], references, choices])
    # lm_eval takes the likeliest choice, so the model wrote nothing.
    is_likeliest_choice = bool(choices) and "lm_eval_metrics" in metadata
    fields: dict[str, Any] = {
        "prompt": str(question.get("formatted") or question["raw"]),
        "target": " | ".join(references),
        "response": "" if is_likeliest_choice else _read_response(line),
        "answers": {metric: answers[metric] for metric in scores},
        "scores": scores,
        "doc_hash": str(metadata.get("doc_hash") or question_hash),
        "document": metadata,
    }
    if metadata.get("prompt_hash"):
        fields["prompt_hash"] = str(metadata["prompt_hash"])
    chance = 1 / len(set(choices)) if choices else 0.0
    return str(line["sample_id"]), chance, fields


def _read_response(line: Mapping[str, Any]) -> str:
    """Read what the model wrote: the output, or the last message of the assistant."""
    if output := line.get("output"):
        return "".join(map(str, output["raw"][:1]))
    messages = line.get("messages") or ()
    written = [m.get("content") or "" for m in messages if m["role"] == "assistant"]
    return str(written[-1]) if written else ""


def _read_extracted(line: Mapping[str, Any]) -> str:
    """Read the answer as it was taken from the text, else the text."""
    found = [part for part in line.get("answer_attribution") or () if part["is_terminal"]]
    return str(found[-1]["extracted_value"]) if found else _read_response(line)
