"""lighteval's logs: `details/MODEL/DATE/details_TASK_DATE.parquet` and `results_DATE.json`.

Reads what 0.13 writes with `--save-details`: for each question what was asked (`doc`), what came
back (`model_response`) and what it scored (`metric`). No lighteval.
"""

import json
import re
from collections.abc import Iterator, Mapping
from math import fsum, nan
from pathlib import Path
from typing import Any

from slimdown.evaluation.harness_results import find_category, parse_score
from slimdown.evaluation.logs.lm_eval import FREE_ARGUMENTS
from slimdown.evaluation.logs.logged_task import (
    MALFORMED,
    LoggedTask,
    describe_settings,
    name_metric,
    read_rows,
)
from slimdown.utils.errors import DataError, describe_error
from slimdown.utils.hashing import hash_json

_DETAILS = re.compile(r"details_(.+)_(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.parquet")


def find_files(path: Path) -> list[Path]:
    """Find the details that a path stands for, oldest first."""
    files = [path, *path.glob("*.parquet"), *(path / "details").rglob("*.parquet")]
    if "details" in path.absolute().parts:  # else it may be a home folder, with no end to it
        files += path.rglob("*.parquet")
    dates = {file: found[2] for file in files if (found := _DETAILS.fullmatch(file.name))}
    return sorted((file for file in dates if file.is_file()), key=lambda file: (dates[file], file))


def open_logs(files: list[Path]) -> list[LoggedTask]:
    """Read the results that belong to details, but not the answers."""
    return [_open_log(file) for file in files]


def _open_log(file: Path) -> LoggedTask:
    title, date = _DETAILS.fullmatch(file.name).groups()  # type: ignore[union-attr]
    name = f"results_{date}.json"
    places = [file.with_name(name), file.parent.parent / name]
    outputs = [folder.parent for folder in file.absolute().parents if folder.name == "details"]
    places += [found for output in outputs for found in (output / "results").rglob(name)]
    if not (there := [place for place in places if place.is_file()]):
        advice = "give the folder that lighteval's --output-dir named"
        raise DataError(f"{file}: there is no {name} in results/ beside details/; {advice}")
    try:
        results = json.loads(there[0].read_bytes())
        general, task = results["config_general"], results["config_tasks"][title]
        asked = {k: v for k, v in general["model_config"].items() if k != "model_name"}
        asked = {k: v for k, v in asked.items() if not FREE_ARGUMENTS.fullmatch(k)}
        # An installed lighteval logs "?".
        tool = f"lighteval {general['lighteval_sha']}".replace("?", "of unknown version")
        limit = asked["generation_parameters"].get("max_new_tokens") or task["generation_size"]
        return LoggedTask(
            file,
            title,
            {"model": general["model_name"], "tool": tool, "backend": "lighteval"},
            {"kind": "lighteval", **dict(describe_settings(title, asked | {"task": task}))},
            _read_answers(file, results["results"][title], _list_worse(task["metrics"])),
            str(task["version"]),
            limit,
        )
    except MALFORMED as error:
        problem = "is no results file of lighteval, or was cut short"
        raise DataError(f"{there[0]} {problem} ({describe_error(error)})") from None


def _list_worse(metrics: list[Any]) -> set[str]:
    """The metrics of which less is better."""
    described = [metric for metric in metrics if isinstance(metric, dict)]  # else names
    return {str(one["metric_name"]) for one in described if one["higher_is_better"] is False}


def _read_answers(
    file: Path, reported: Mapping[str, Any], worse: set[str]
) -> Iterator[dict[str, Any]]:
    answers: list[dict[str, Any]] = []
    for number, row in read_rows(file):
        try:
            answers.append(_read_answer(row))
        except MALFORMED as error:
            problem = f"row {number} is not logged as lighteval 0.13 does it"
            raise DataError(f"{file}: {problem} ({describe_error(error)})") from None
    for metric in {key for answer in answers for key in answer["scores"]}:
        mean = fsum(answer["scores"].get(metric, nan) for answer in answers) / len(answers)
        # Others are computed of all answers at once.
        if metric in worse or abs(reported.get(metric, mean) - mean) > 1e-9:
            for answer in answers:
                answer["scores"].pop(metric, None)
    for answer in answers:
        for field in ("scores", "answers"):
            answer[field] = {name_metric(key): value for key, value in answer[field].items()}
        yield answer


def _read_answer(row: Mapping[str, Any]) -> dict[str, Any]:
    asked, came_back = row["doc"], row["model_response"]
    prompt, right = came_back.get("input") or asked["query"], asked["gold_index"]
    choices, likelihoods = asked["choices"], came_back.get("logprobs") or ()
    texts = came_back.get("text") or [""]
    numbers = ((key, parse_score(value)) for key, value in row["metric"].items())
    scores = {key: score for key, score in numbers if score is not None}
    read_as = dict.fromkeys(scores, (came_back.get("text_post_processed") or texts)[0])
    chosen: dict[str, Any] = {}
    if not texts[0] and 1 < len(choices) == len(likelihoods):
        chosen = {"choices": tuple(choices), "log_likelihoods": tuple(likelihoods)}
        chosen["n_choices"] = len(set(choices))
        by_length = [ll / max(len(c), 1) for ll, c in zip(likelihoods, choices, strict=True)]
        for key in scores:
            ranks = by_length if "norm" in key else likelihoods
            read_as[key] = choices[ranks.index(max(ranks))]
    return {
        "question": str(asked["id"]),
        "prompt": prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False),
        "target": " | ".join(choices[i] for i in (right if isinstance(right, list) else [right])),
        "response": texts[0],
        "scores": scores,
        "answers": read_as,
        "doc_hash": hash_json([asked["query"], choices]),
        "category": find_category(asked.get("specific") or {}),
    } | chosen
