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
from slimdown.evaluation.right_choice import add_p_right
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
    """Yield the one task of a details file; its answers are read later.

    The details hold only the answers. The model, its settings and the reported means come from the
    results file: lighteval writes `details/MODEL/DATE/details_TASK_DATE.parquet` and
    `results/MODEL/results_DATE.json` into the same folder.

    Args:
        file: A details file that `find_files` found.

    Raises:
        DataError: There is no results file, or it is damaged.
    """
    title, date = _DETAILS.fullmatch(file.name).groups()  # type: ignore[union-attr]
    name = f"results_{date}.json"
    # The folders that may hold details/ and results/. There may be several, because a folder
    # further up may have the name "details", too.
    roots = [folder.parent for folder in file.absolute().parents if folder.name == "details"]
    results_files = [match for root in roots for match in (root / "results").rglob(name)]
    if not results_files:
        advice = "give the folder that lighteval's --output-dir named"
        raise DataError(f"{file}: there is no {name} in results/ beside details/; {advice}")
    problem = f"{results_files[0]} is no results file of lighteval, or was cut short"
    with logged_task.explain_malformed(problem):
        results = json.loads(results_files[0].read_bytes())
        general = results["config_general"]
        task = results["config_tasks"][title]
        # The settings that must be equal in two logs that are compared: not the model's name.
        settings = logged_task.drop_free(general["model_config"])
        # If the user sets no limit of tokens for all tasks, the task's own holds.
        limit = settings["generation_parameters"].get("max_new_tokens") or task["generation_size"]
        # Only a git checkout of lighteval logs its commit; an installed package logs "?".
        tool = f"lighteval {general['lighteval_sha']}".replace("?", "of unknown version")
        model = logged_task.name_model(str(general["model_name"]), general["model_config"])
        made_by = {"model": model, "tool": tool, "backend": "lighteval"}
        conditions = logged_task.write_conditions("lighteval", title, settings | {"task": task})
        reported = _read_means(task, results["results"][title])
        max_new_tokens = logged_task.read_limit(limit)
    yield logged_task.LoggedTask(
        file,
        title,
        made_by,
        conditions,
        answers=_read_answers(file),
        task_version=str(task.get("version")),
        max_new_tokens=max_new_tokens,
        reported=reported,
    )


def _read_means(task: Mapping[str, Any], logged_scores: Mapping[str, Any]) -> dict[str, float]:
    """Return the means that lighteval reports, by metric; nan for a metric to be left out.

    `LoggedTask` takes a metric only if the mean of its scores is the reported one. No mean equals
    nan, so metrics of which less is better, and scores that are no number, are left out.
    """
    # lighteval logs a metric with its settings, or by its name alone.
    described = [metric for metric in task["metrics"] if isinstance(metric, dict)]
    lower_is_better = [metric for metric in described if metric["higher_is_better"] is False]
    left_out = [str(metric["metric_name"]) for metric in lower_is_better]
    scores = {**logged_scores, **dict.fromkeys(left_out, nan)}
    means = {name_metric(key): parse_score(value) for key, value in scores.items()}
    return {key: nan if mean is None else mean for key, mean in means.items()}


def _read_answers(file: Path) -> Iterator[logged_task.LoggedAnswer]:
    for number, row in logged_task.read_table_rows(file):
        problem = f"{file}: row {number} is not logged as lighteval 0.13 does it"
        with logged_task.explain_malformed(problem):
            yield _read_answer(row)


def _read_answer(row: Mapping[str, Any]) -> logged_task.LoggedAnswer:
    """Read one question; if its choices have likelihoods, also which choice each metric takes.

    Returns:
        The question's id, what guessing scores, and fields of `Sample`; see `LoggedAnswer`.
    """
    doc = row["doc"]
    model_response = row["model_response"]
    prompt = model_response.get("input") or doc["query"]
    choices = doc["choices"]
    gold_index = doc["gold_index"]  # the place of the right choice, or a list of places
    right_places = gold_index if isinstance(gold_index, list) else [gold_index]
    text = "".join(list(model_response.get("text") or ())[:1])  # the first of several responses
    numbers = ((name_metric(key), parse_score(value)) for key, value in row["metric"].items())
    scores = {key: score for key, score in numbers if score is not None}
    fields: dict[str, Any] = {
        "prompt": prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False),
        "target": " | ".join(choices[place] for place in right_places),
        "response": text,
        "scores": scores,
        "doc_hash": hash_json([doc["query"], choices]),
        "document": dict(doc.get("specific") or {}),
    }
    log_likelihoods = model_response.get("logprobs") or ()
    is_choosing = not text and 1 < len(choices) == len(log_likelihoods)
    if not is_choosing:
        return str(doc["id"]), 0.0, fields
    fields |= {"choices": tuple(choices), "log_likelihoods": tuple(log_likelihoods)}
    # This also adds p_right to `scores`, which `fields` holds.
    fields["answers"] = add_p_right(scores, choices, log_likelihoods, str(fields["target"]))
    return str(doc["id"]), 1 / len(set(choices)), fields
