"""lighteval's logs: `details/MODEL/DATE/details_TASK_DATE.parquet` and `results_DATE.json`.

Reads what 0.13 writes with `--save-details`: for each question what was asked (`doc`), what came
back (`model_response`) and what it scored (`metric`). Imports no lighteval.
"""

import json
import re
from collections.abc import Iterator, Mapping
from math import fsum, nan
from pathlib import Path
from typing import Any

from slimdown.config.benchmark_config import CHOICE_PROBABILITY
from slimdown.evaluation.harness_results import parse_score
from slimdown.evaluation.logs import logged_task
from slimdown.evaluation.logs.logged_task import name_metric
from slimdown.evaluation.right_choice import score_right_choice, take_choices
from slimdown.utils.errors import DataError
from slimdown.utils.hashing import hash_json

_DETAILS = re.compile(r"details_(.+)_(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.parquet")


FILES = "details_TASK_DATE.parquet of lighteval"


def find_files(path: Path) -> list[Path]:
    """Find the details that a path stands for, oldest first."""
    files = {path, *path.glob("*.parquet"), *(path / "details").rglob("*.parquet")}
    if "details" in path.absolute().parts:  # else it may be a home folder, too large to search
        files.update(path.rglob("*.parquet"))
    matches = {file: _DETAILS.fullmatch(file.name) for file in files if file.is_file()}
    dates = {file: match[2] for file, match in matches.items() if match}
    return sorted(dates, key=lambda file: (dates[file], file))


def open_logs(file: Path) -> Iterator[logged_task.LoggedTask]:
    """Read the results that belong to details, but not the answers."""
    title, date = _DETAILS.fullmatch(file.name).groups()  # type: ignore[union-attr]
    name = f"results_{date}.json"
    inside = [folder.parent for folder in file.absolute().parents if folder.name == "details"]
    results_files = [place for output in inside for place in (output / "results").rglob(name)]
    if not results_files:
        advice = "give the folder that lighteval's --output-dir named"
        raise DataError(f"{file}: there is no {name} in results/ beside details/; {advice}")
    with logged_task.explain_malformed(
        f"{results_files[0]} is no results file of lighteval, or was cut short"
    ):
        results = json.loads(results_files[0].read_bytes())
        general, task = results["config_general"], results["config_tasks"][title]
        settings = logged_task.drop_free(general["model_config"])
        limit = settings["generation_parameters"].get("max_new_tokens") or task["generation_size"]
        # An installed lighteval logs "?".
        tool = f"lighteval {general['lighteval_sha']}".replace("?", "of unknown version")
        model = logged_task.name_model(str(general["model_name"]), general["model_config"])
        made_by = {"model": model, "tool": tool, "backend": "lighteval"}
        conditions = logged_task.write_conditions("lighteval", title, settings | {"task": task})
        described = [metric for metric in task["metrics"] if isinstance(metric, dict)]  # else names
        lower_is_better = [metric for metric in described if metric["higher_is_better"] is False]
        worse = [str(metric["metric_name"]) for metric in lower_is_better]
        reported = results["results"][title] | dict.fromkeys(worse, nan)
        scores = ((name_metric(key), parse_score(value)) for key, value in reported.items())
        reported = {key: nan if score is None else score for key, score in scores}
        limit = logged_task.read_limit(limit)
    answers = _read_answers(file, reported)
    version = str(task.get("version"))
    yield logged_task.LoggedTask(file, title, made_by, conditions, answers, version, limit)


def _read_answers(file: Path, reported: Mapping[str, Any]) -> Iterator[logged_task.LoggedAnswer]:
    """Read the answers, with only those scores whose mean over questions is the reported one."""
    answers: list[logged_task.LoggedAnswer] = []
    for number, row in logged_task.read_table_rows(file):
        problem = f"{file}: row {number} is not logged as lighteval 0.13 does it"
        with logged_task.explain_malformed(problem):
            answers.append(_read_answer(row))
    all_scores = [fields["scores"] for _, _, fields in answers]
    for metric in {metric for scores in all_scores for metric in scores}:
        mean = fsum(scores.get(metric, nan) for scores in all_scores) / len(all_scores)
        if not abs(reported.get(metric, mean) - mean) < 1e-9:
            for scores in all_scores:
                scores.pop(metric, None)
    yield from answers


def _read_answer(row: Mapping[str, Any]) -> logged_task.LoggedAnswer:
    """Read one question; with likelihoods of choices, also which choice each metric takes."""
    doc, model_response = row["doc"], row["model_response"]
    prompt, right = model_response.get("input") or doc["query"], doc["gold_index"]
    choices, likelihoods = doc["choices"], model_response.get("logprobs") or ()
    text = "".join(list(model_response.get("text") or ())[:1])
    numbers = ((name_metric(key), parse_score(value)) for key, value in row["metric"].items())
    scores = {key: score for key, score in numbers if score is not None}
    fields: dict[str, Any] = {
        "prompt": prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False),
        "target": " | ".join(choices[i] for i in (right if isinstance(right, list) else [right])),
        "response": text,
        "scores": scores,
        "doc_hash": hash_json([doc["query"], choices]),
        "document": dict(doc.get("specific") or {}),
    }
    if text or not 1 < len(choices) == len(likelihoods):
        return str(doc["id"]), 0.0, fields
    fields |= {"choices": tuple(choices), "log_likelihoods": tuple(likelihoods)}
    p_right = score_right_choice(choices, likelihoods, str(fields["target"]), scores)
    if p_right is not None:
        scores[CHOICE_PROBABILITY] = p_right
    plain_choice, choice_by_length = take_choices(choices, likelihoods)
    by_length = [key for key in scores if "norm" in key]
    answers = dict.fromkeys(scores, plain_choice) | dict.fromkeys(by_length, choice_by_length)
    fields["answers"] = answers
    return str(doc["id"]), 1 / len(set(choices)), fields
