"""Inspect's logs: the `.eval` and `.json` files of `inspect eval`, by Inspect's own reader.

The score of a question is what a scorer gave it: C is 1, P is 0.5, I and N are 0, and numbers count
as they are. Where a question was asked several times (`--epochs`), it is their mean.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any
from zipfile import BadZipFile, ZipFile

from slimdown.evaluation.harness_results import parse_score
from slimdown.evaluation.logs import logged_task
from slimdown.evaluation.logs.logged_task import name_metric
from slimdown.evaluation.results import FLAT_MESSAGES
from slimdown.utils.errors import ConfigError, DataError
from slimdown.utils.extras import name_install
from slimdown.utils.hashing import hash_json

_LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
_LARGEST_LOG = 512 * 2**20  # bytes, unpacked; reading them takes seven times as much memory


FILES = "logs of Inspect, .eval"


def find_files(path: Path) -> list[Path]:
    """Find the logs that a path stands for, oldest first: Inspect's names begin with a date."""
    if path.is_file():
        is_log = path.suffix == ".eval" or (path.suffix == ".json" and "results_" not in path.name)
        return [path] if is_log else []
    dated = "[0-9][0-9][0-9][0-9]-*T*_*.json"  # other files of JSON lie beside them
    return sorted(file for file in (*path.glob("*.eval"), *path.glob(dated)) if file.is_file())


def open_logs(file: Path) -> Iterator[logged_task.LoggedTask]:
    """Read a log, but not the answers."""
    header = _read(file, header_only=True)
    made, generation = header.eval, dict[str, Any]()
    for config in (made.model_generate_config, header.plan.config):
        generation |= config.model_dump(exclude_none=True, mode="json")
    settings = {
        "model_args": logged_task.drop_free(made.model_args),
        "generation": logged_task.drop_free(generation),
        "epochs": made.config.epochs or 1,
        "task_args": made.task_args,
        "solvers": [[step.solver, step.params] for step in header.plan.steps],
        "scorers": [[scorer.name, scorer.options] for scorer in made.scorers or ()],
        "model_roles": made.model_roles,
    }
    conditions = logged_task.write_conditions("Inspect", made.task, settings)
    conditions |= {FLAT_MESSAGES: "true"}
    tool = f"inspect_ai {made.packages.get('inspect_ai', 'of unknown version')}"
    provider = f"Inspect, {made.model.partition('/')[0]}"
    model = logged_task.name_model(made.model, made.model_args)
    made_by = {"model": model, "tool": tool, "backend": provider}
    answers, limit = _read_answers(file, header.status), generation.get("max_tokens")
    version = str(made.task_version)
    yield logged_task.LoggedTask(file, made.task, made_by, conditions, answers, version, limit)


def _read(file: Path, header_only: bool = False) -> Any:
    """Read a log with Inspect's own reader."""
    try:
        from inspect_ai.log import read_eval_log
    except ImportError:
        problem = "a log of Inspect is read by inspect-ai, which is not installed"
        raise ConfigError(f"{file}: {problem}; {name_install('inspect')}") from None
    skipped = {"events", "store", "attachments", "timelines", "events_data"}
    with logged_task.explain_malformed(f"{file} is no log of Inspect, or was cut short"):
        if header_only:
            _check_content(file)
        return read_eval_log(str(file.resolve()), header_only, exclude_fields=skipped)


def _check_content(file: Path) -> None:
    """Refuse what Inspect's reader does not: large content, wrong checksums, deep brackets.

    Raises:
        DataError: The log is too large.
        BadZipFile: An archive is damaged.
        RecursionError: Brackets are so deep that Inspect's reader would not end.
        ValueError: It is no JSON.
    """
    if file.suffix != ".eval":
        _check_size(file, file.stat().st_size)
        json.loads(file.read_bytes())
        return
    with ZipFile(file) as packed:
        _check_size(file, sum(part.file_size for part in packed.infolist()))
        if damaged := packed.testzip():
            raise BadZipFile(f"the checksum of {damaged} is wrong")
        for name in packed.namelist():
            if name.endswith(".json"):
                json.loads(packed.read(name))


def _check_size(file: Path, n_bytes: int) -> None:
    """Refuse a log that is too large, unpacked."""
    if n_bytes > _LARGEST_LOG:
        problem = f"has {n_bytes:,} bytes, and slimdown reads {_LARGEST_LOG:,} at most"
        raise DataError(f"{file} {problem}: log fewer samples, or without events")


def _read_answers(file: Path, status: str) -> Iterator[logged_task.LoggedAnswer]:
    """Read the answers, and refuse a log in which some are missing."""
    if status != "success":
        advice = "finish it with `inspect eval-retry`"
        raise DataError(f"{file}: the log has the status {status}; {advice}")
    log = _read(file)
    by_id: dict[str, list[Any]] = {}
    for sample in log.samples or ():
        by_id.setdefault(str(sample.id), []).append(sample)
    n_logged = sum(map(len, by_id.values()))
    if n_logged != (log.results and log.results.total_samples):
        raise DataError(f"{file} holds {n_logged} answers, and not those of all that was asked")
    for question, samples in by_id.items():
        n_epochs = len({sample.epoch for sample in samples})
        checks = {
            "was not asked as often as others": n_epochs * len(by_id) == n_logged,
            "ended in an error": not any(sample.error for sample in samples),
            "was invalidated": not any(sample.invalidation for sample in samples),
            "has no score": all(sample.scores for sample in samples),
        }
        if problem := next((text for text, is_passed in checks.items() if not is_passed), ""):
            advice = "`inspect eval-retry` or `inspect score` completes a log"
            raise DataError(f"{file}: question {question!r} {problem}; {advice}")
        yield _read_answer(question, samples)


def _read_answer(question: str, samples: Sequence[Any]) -> logged_task.LoggedAnswer:
    """Read one question: its mean scores, and the texts of the first time that it was asked."""
    first, by_epoch = samples[0], [dict(_list_scores(sample)) for sample in samples]
    metrics = [key for key in by_epoch[0] if all(key in scores for scores in by_epoch)]
    inputs = first.input if isinstance(first.input, list) else [first.input]
    sent = []
    for message in first.messages:
        # An assistant's message in the input is a worked example; the first other is an answer.
        if message.role == "assistant" and message.source != "input":
            break
        sent.append(message)
    texts = list(map(_write_message, sent or inputs))
    read_as = {name_metric(key): score.answer for key, score in first.scores.items()}
    response = first.output.completion
    fields = {
        "prompt": texts[0].removeprefix("user: ") if len(texts) == 1 else "\n\n".join(texts),
        "target": first.target if isinstance(first.target, str) else " | ".join(first.target),
        "response": response,
        "answers": {key: read_as.get(key.partition(".")[0]) or response for key in metrics},
        "scores": {key: fmean(scores[key] for scores in by_epoch) for key in metrics},
        "doc_hash": hash_json([*map(_describe_message, inputs), first.choices]),
        "prompt_hash": hash_json([*map(_describe_message, sent or inputs)]),
        "document": first.metadata,
        "ran_out": first.output.stop_reason == "max_tokens",
    }
    return question, 1 / len(set(first.choices)) if first.choices else 0.0, fields


def _write_message(message: Any) -> str:
    return message if isinstance(message, str) else f"{message.role}: {message.text}"


def _describe_message(message: Any) -> Any:
    """Return what a message says, without the ids that are new in each log."""
    content = {"role", "content", "tool_calls", "tool_call_id", "function"}
    return message if isinstance(message, str) else message.model_dump(include=content, mode="json")


def _list_scores(sample: Any) -> Iterator[tuple[str, float]]:
    """Yield the scores of one answer by scorer, with a name after a dot if it has several."""
    for scorer, score in sample.scores.items():
        values = score.value if isinstance(score.value, dict) else {"": score.value}
        for name, value in values.items():
            if (number := _LETTERS.get(str(value), parse_score(value))) is not None:
                yield name_metric(f"{scorer}.{name}" if name else scorer), number
