"""What logs have in common: `LoggedTask`, the answers of one model to one benchmark. No torch."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import fsum, nan
from pathlib import Path
from typing import Any

from slimdown.config.fields import nearest
from slimdown.config.schema import ResolvedBenchmark, Role
from slimdown.evaluation.evaluation_cache import check_evaluation
from slimdown.evaluation.harness_results import choose_metric, summarize_samples
from slimdown.evaluation.results import BenchmarkEvaluation, Sample
from slimdown.utils.errors import ConfigError, DataError, describe_error
from slimdown.utils.hashing import hash_json
from slimdown.utils.row_files import iter_records
from slimdown.utils.secrets import redact

# What is larger is refused before it is read: it may not fit into memory.
MAX_BYTES = 2**28
MAX_ROWS = 200_000

MALFORMED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What reading a file raises that is not what its name says."""

_NO_CHOICE: dict[str, Any] = {"choices": (), "log_likelihoods": ()}


@dataclass(frozen=True)
class LoggedTask:
    """The answers of one model to one benchmark, as a log holds them.

    Answers are mappings: `question`, its id; `prompt`, `target`, `response` and `scores` by metric.
    Where the log says more, there is more of what `Sample` has, and `n_choices`, from how many one
    was chosen. They are read when they are needed: an older log of the task is not.
    """

    file: Path
    title: str  # the tool's name of the benchmark
    made_by: Mapping[str, str]  # the model, `tool`, with its version, and `backend`
    conditions: Mapping[str, str]  # what must be equal for answers to be compared
    answers: Iterable[Mapping[str, Any]]
    task_version: str = ""
    max_new_tokens: int | None = None
    seconds: float = nan

    @property
    def benchmarks(self) -> dict[str, str]:
        """The tool's name by ours."""
        return {name_benchmark(self.title): self.title}

    def read_benchmark(
        self, name: str, metric: str | None, role: Role | None
    ) -> BenchmarkEvaluation:
        """Read the answers, and check that each has a score on the primary metric."""
        place, answers = f"{self.file}: {self.title}", list(self.answers)
        metrics = list(dict.fromkeys(key for answer in answers for key in answer["scores"]))
        if not metrics:
            raise DataError(f"{place} has no answers with scores that are numbers")
        primary = metric or choose_metric(metrics)
        if primary not in metrics:
            raise ConfigError(f"{name}={metric}: no such score{nearest(primary, metrics)}")
        n_of_each = Counter(answer["question"] for answer in answers)
        for answer in answers:
            shown, score = f"question {answer['question']!r}", answer["scores"].get(primary)
            if n_of_each[answer["question"]] > 1:
                raise DataError(f"{place}: {shown} stands there twice; keep one answer to each")
            if score is None or not 0 <= score <= 1:
                problem = f"{shown} has {primary}={score}; it must be a number from 0 to 1"
                more = f", or choose one of {', '.join(metrics)}" if len(metrics) > 1 else ""
                raise DataError(f"{place}: {problem}{more}")
        # Numbers stay, so that messages name them; other names count in their order.
        are_numbers = all(re.fullmatch("0|-?[1-9][0-9]{0,17}", text) for text in n_of_each)
        numbers = {
            text: int(text) if are_numbers else n for n, text in enumerate(sorted(n_of_each))
        }
        samples, shares = [], []
        for answer in sorted(answers, key=lambda answer: numbers[answer["question"]]):
            told = dict(answer)
            number, n_choices = numbers[told.pop("question")], told.pop("n_choices", 0)
            shares.append(
                1 / n_choices if n_choices > 1 and told["scores"][primary] in (0, 1) else 0
            )
            read_as = dict.fromkeys(told["scores"], told["response"]) | told.pop("answers", {})
            hashes = dict.fromkeys(("doc_hash", "prompt_hash"), hash_json(told["prompt"]))
            fields = {"task": name, "doc_id": number, "answers": read_as} | _NO_CHOICE | hashes
            samples.append(Sample(**(fields | told)))
        chance = fsum(shares) / len(shares) if all(shares) else 0.0
        described: Any = {"metric": primary, "chance": chance, "role": role or Role.retained}
        config = ResolvedBenchmark(task=self.title, **described)
        evaluation = summarize_samples(config, samples, self.task_version, self.seconds)
        if problem := check_evaluation(evaluation):
            raise DataError(f"{place} is odd, {problem}")
        return replace(evaluation, max_new_tokens=self.max_new_tokens)


def name_benchmark(name: str) -> str:
    """Write a benchmark's name as a record takes it."""
    return re.sub(r"[^\w-]", "_", name)


def name_metric(name: str) -> str:
    """Write a metric's name as a record takes it: `pass@k:k=1` as `pass_k_k_1`."""
    return re.sub(r"[^\w.-]", "_", name)


def describe_settings(benchmark: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Write settings of a benchmark as conditions, without secrets and places in memory."""
    for key, value in settings.items():
        text = json.dumps(value, sort_keys=True, default=str)
        yield f"{name_benchmark(benchmark)}.{key}", redact(re.sub(" at 0x[0-9a-f]+", "", text))


def read_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the rows of a table, with their numbers.

    Raises:
        DataError: It cannot be read, or is too large to be held.
    """
    try:
        check_size(file.stat().st_size)
        if file.suffix.lower() == ".parquet":
            from pyarrow.parquet import read_metadata

            table = read_metadata(file)
            groups = map(table.row_group, range(table.num_row_groups))
            check_size(sum(group.total_byte_size for group in groups))
        for number, row in iter_records(file):
            if not isinstance(row, dict):
                problem = row if isinstance(row, DataError) else "it is no object with columns"
                raise DataError(f"row {number}: {problem}")
            if number > MAX_ROWS:
                raise DataError(f"it has more than {MAX_ROWS:,} rows; leave some out")
            yield number, row
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    except MALFORMED as error:  # Arrow's are ValueErrors
        raise DataError(f"{file}: it is no Parquet file ({describe_error(error)})") from None


def check_size(n_bytes: int) -> None:
    """Check that what a log holds, unpacked, can be held in memory.

    Raises:
        DataError: It cannot.
    """
    if n_bytes > MAX_BYTES:
        size, most = (f"{n / 2**20:,.0f} MiB" for n in (n_bytes, MAX_BYTES))
        raise DataError(f"it holds {size}, and at most {most} are read; leave questions out")
