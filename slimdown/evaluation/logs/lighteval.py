"""lighteval's logs: `details/MODEL/DATE/details_TASK_DATE.parquet` and `results_DATE.json`.

Reads what 0.13 writes with `--save-details`: for each question what was asked (`doc`), what came
back (`model_response`) and what it scored (`metric`). Imports no lighteval.
"""

import json
import re
from collections.abc import Iterator, Mapping
from math import nan
from pathlib import Path
from typing import Any

from slimdown.evaluation.harness_results import parse_score
from slimdown.evaluation.logs import logged_task
from slimdown.evaluation.logs.logged_task import name_metric
from slimdown.evaluation.right_choice import add_right_choice
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
        settings = logged_task.drop_free_arguments(general["model_config"])
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
    yield logged_task.LoggedTask(
        file,
        title,
        made_by,
        conditions,
        answers=_read_answers(file),
        task_version=str(task.get("version")),
        max_new_tokens=limit,
        reported=reported,
    )


def _read_answers(file: Path) -> Iterator[logged_task.LoggedAnswer]:
    for number, row in logged_task.read_table_rows(file):
        problem = f"{file}: row {number} is not logged as lighteval 0.13 does it"
        with logged_task.explain_malformed(problem):
            yield _read_answer(row)


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
    fields["answers"] = add_right_choice(scores, choices, likelihoods, str(fields["target"]))
    return str(doc["id"]), 1 / len(set(choices)), fields
