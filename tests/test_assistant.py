"""The questions of `suite=assistant`: sound, spread, seen nowhere else, and judged as labelled."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from record_builders import compose_config

from slimdown.config.benchmarks import read_benchmarks
from slimdown.data.contamination import find_contamination
from slimdown.data.training_data import TrainedText
from slimdown.evaluation.tasks import load_tasks
from slimdown.pocket import DATA_DIR
from slimdown.scoring.language import find_languages
from slimdown.scoring.question_files import find_question_file, read_questions, read_row
from slimdown.scoring.score import EXACT
from slimdown.scoring.scores import is_right, read_answer
from slimdown.training.mitigations import dialogues
from slimdown.utils.errors import DataError

SAMPLES = Path(__file__).with_name("assistant")
BENCHMARKS = sorted(file.stem for file in SAMPLES.glob("*.jsonl"))
ASKED_BY_DEFAULT = 25
# Of the sample answers, those that the rules judge as their writers did; two right and two wrong
# ones for each question. The writers had not seen the rules, but the rules were improved with them.
AGREEMENTS = {
    "arithmetic": 379,
    "facts": 350,
    "format": 576,
    "harmful": 375,
    "harmless": 407,
    "language": 352,
    "memory": 352,
    "system_prompt": 528,
    "tools": 488,
}


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(params=BENCHMARKS)
def name(request: pytest.FixtureRequest) -> str:
    """The name of each benchmark in turn, without `assistant_`."""
    return str(request.param)


@pytest.fixture
def rows(name: str) -> list[dict[str, Any]]:
    return read_lines(find_question_file(f"assistant:{name}"))


def test_the_suite_asks_nine_benchmarks() -> None:
    names = {f"assistant_{name}" for name in BENCHMARKS}
    for suite, limit in (("assistant", ASKED_BY_DEFAULT), ("assistant_full", None)):
        config = compose_config(f"suite={suite}")
        assert set(config.benchmark) == names
        for benchmark in config.benchmark.values():
            assert (benchmark.limit, benchmark.max_gen_toks) == (limit, 128)
    assert len(names) == 9


def test_there_are_enough_unlike_questions(name: str, rows: list[dict[str, Any]]) -> None:
    assert len(rows) >= 80
    assert len(read_questions(f"assistant:{name}", EXACT)) == len(rows)
    counts = Counter(json.dumps([row["messages"], row.get("tools")]) for row in rows)
    assert max(counts.values()) == 1


def test_no_pattern_is_asked_too_often(rows: list[dict[str, Any]]) -> None:
    """The first questions, which the suite asks, have each pattern as often as all have it."""
    shares = {p: n / len(rows) for p, n in Counter(row["pattern"] for row in rows).items()}
    assert max(shares.values()) <= 0.25
    for n in (ASKED_BY_DEFAULT, 2 * ASKED_BY_DEFAULT):
        first = Counter(row["pattern"] for row in rows[:n])
        assert all(abs(first[pattern] - n * share) < 2 for pattern, share in shares.items())


def test_the_first_questions_about_language_ask_for_each() -> None:
    rows = read_lines(find_question_file("assistant:language"))
    first = Counter(row["answer"] for row in rows[:ASKED_BY_DEFAULT])
    assert set(first) == {row["answer"] for row in rows}
    assert min(first.values()) >= 3


def test_answers_are_judged_as_a_person_judged_them(name: str, rows: list[dict[str, Any]]) -> None:
    n_agreed = 0
    for row, samples in zip(rows, read_lines(SAMPLES / f"{name}.jsonl"), strict=True):
        assert [len(samples["right"]), len(samples["wrong"])] == [2, 2]
        rule = json.loads(read_row(row, EXACT)["rule"])
        judged = [is_right(rule, read_answer(rule, text)) for text in samples["right"]]
        judged += [not is_right(rule, read_answer(rule, text)) for text in samples["wrong"]]
        n_agreed += sum(judged)
    assert n_agreed >= AGREEMENTS[name]
    assert AGREEMENTS[name] >= 0.95 * 4 * len(rows)


@pytest.mark.parametrize("benchmark", [name for name in BENCHMARKS if name != "harmful"])
def test_answers_of_models_are_judged_as_labelled(benchmark: str) -> None:
    """Labelled by readers who had not seen the rules, and after the rules were written.

    The answers to harmful requests are not kept here: the labels of all 40 agreed.
    """
    rows = read_lines(find_question_file(f"assistant:{benchmark}"))
    labelled = read_lines(SAMPLES / "labelled" / f"{benchmark}.jsonl")
    assert Counter(answer["side"] for answer in labelled) == {"base": 20, "tuned": 20}
    n_agreed = 0
    for answer in labelled:
        rule = json.loads(read_row(rows[answer["question"]], EXACT)["rule"])
        judged = is_right(rule, read_answer(rule, answer["answer"]))
        n_agreed += judged == (answer["label"] == "right")
    assert n_agreed >= 0.95 * len(labelled)


def test_languages_are_told_by_ten_words() -> None:
    """Of Chinese and Japanese, by fifteen characters."""
    n_whole, n_cut, n = 0, 0, 0
    rows = read_lines(find_question_file("assistant:language"))
    for row, samples in zip(rows, read_lines(SAMPLES / "language.jsonl"), strict=True):
        for text in samples["right"]:
            has_spaces = row["answer"] not in ("zh", "ja")
            beginning = " ".join(text.split()[:10]) if has_spaces else text[:15]
            n_whole += find_languages(text) == [row["answer"]]
            n_cut += find_languages(beginning) == [row["answer"]]
            n += 1
    assert (n, n_whole) == (176, 176)
    assert n_cut >= 174


# --- contamination ------------------------------------------------------------------------------


def list_strings(value: Any) -> Iterator[str]:
    """List the texts in a row, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from list_strings(inner)


def find_overlaps(rows: Iterator[TrainedText]) -> list[str]:
    """Find the questions that the product's own search finds in rows."""
    names = [f"assistant_{name}" for name in BENCHMARKS]
    tasks = load_tasks(read_benchmarks(names))
    questions = {name: task.questions() for name, task in tasks.items()}
    found = find_contamination(SimpleNamespace(iter_texts=lambda: rows), questions)  # type: ignore[arg-type]
    return [f"{o.question.name} and row {o.row} of {o.dataset}: {o.shared}" for o in found.overlaps]


def test_no_question_stands_in_the_rows_that_slimdown_ships() -> None:
    files = [Path(dialogues.__file__).parents[1] / "messages.jsonl", *DATA_DIR.glob("*.jsonl")]
    assert all(file.is_file() for file in files)
    rows = [
        TrainedText(file.name, number, text)
        for file in files
        for number, row in enumerate(read_lines(file), start=1)
        for text in list_strings(row)
    ]
    assert len(rows) > 5000
    assert find_overlaps(iter(rows)) == []
    question = read_lines(find_question_file("assistant:facts"))[0]["messages"][0]["content"]
    pasted = TrainedText("mine", 1, f"Question: {question} Answer: yes")
    assert len(find_overlaps(iter([*rows, pasted]))) == 1


WELL_KNOWN = (
    "openai/gsm8k main, Rowan/hellaswag, cais/mmlu all, tatsu-lab/alpaca, google/IFEval, "
    "databricks/databricks-dolly-15k, sahil2801/CodeAlpaca-20k, allenai/ai2_arc ARC-Challenge, "
    "allenai/ai2_arc ARC-Easy, local/xstest, baber/piqa"
)


@pytest.mark.hub
def test_no_question_stands_in_well_known_data_sets() -> None:
    from datasets import load_dataset

    def iter_rows() -> Iterator[TrainedText]:
        for source in WELL_KNOWN.split(", "):
            for split, table in load_dataset(*source.split()).items():
                for number, row in enumerate(table, start=1):
                    for text in list_strings(row):
                        yield TrainedText(f"{source} {split}", number, text)

    assert find_overlaps(iter_rows()) == []


# --- what is refused ----------------------------------------------------------------------------


def test_an_unknown_name_lists_those_that_there_are() -> None:
    with pytest.raises(DataError, match="arithmetic, facts, format"):
        find_question_file("assistant:fact")
