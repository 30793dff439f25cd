"""Questions of a benchmark in the rows: pastes are found, chance is not, and who asks what is trained on is refused."""

import csv
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from mlflow import MlflowClient

from slimdown.config.schema import RunConfig
from slimdown.data.contamination import Contamination, Question, find_contamination, words_of
from slimdown.data.loading import load_data
from slimdown.evaluation.questions import load_tasks
from slimdown.evaluation.wording import worded
from slimdown.models.model import LoadedModel
from slimdown.pocket import DATA_DIR
from slimdown.tracking.write import TrackedRun
from slimdown.training.tuning import way_to_tuned
from slimdown.utils.errors import ConfigError, SlimdownError

Composed = Callable[..., RunConfig]


def found(
    questions: Sequence[Question], texts: Sequence[str], at_once: int = 1000
) -> Contamination:
    rows = [("file", i, text) for i, text in enumerate(texts, start=1)]
    return find_contamination(
        {"quiz": questions}, (rows[i : i + at_once] for i in range(0, len(rows), at_once))
    )


def numbered(*texts: str) -> list[Question]:
    return [Question(f"quiz {i}", (text,)) for i, text in enumerate(texts)]


def standing(contamination: Contamination) -> list[str]:
    return sorted(one.question.name for one in contamination.overlaps if one.stands)


def running(start: int, n: int, prefix: str = "w") -> str:
    """Words that nobody else writes."""
    return " ".join(f"{prefix}{i}" for i in range(start, start + n))


# --- pastes ---------------------------------------------------------------------------------------------

LETTERS = st.sampled_from("abcdefghijklmnopqrstuvwxyz0123456789éüßñжщфδλאבनम")
WORD = st.text(LETTERS, min_size=1, max_size=8)
GAP = st.text(st.sampled_from(' \t\n.,;:!?-–—_()[]{}«»“”"…*#/|=+'), min_size=1, max_size=4)
BETWEEN = st.text(
    st.sampled_from("'’\u200b\u00ad"), max_size=1
)  # inside a word, where none of them is seen


@st.composite
def pastes(draw: st.DrawFn) -> tuple[list[str], str]:
    """A question's words, and a text in which they are written in another way."""
    words = draw(st.lists(WORD, min_size=8, max_size=40))
    retyped = []
    for word in words:
        at, mark = draw(st.integers(0, len(word))), draw(BETWEEN)
        cased = draw(st.sampled_from([str.lower, str.upper, str.title]))(word)
        retyped += [cased[:at], mark, cased[at:], draw(GAP)]
    around = draw(st.lists(WORD, max_size=5)), draw(st.lists(WORD, max_size=5))
    return words, " ".join(around[0]) + draw(GAP) + "".join(retyped) + " ".join(around[1])


@given(pastes(), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_a_pasted_question_is_found_however_it_is_typed(
    paste: tuple[list[str], str], before: int
) -> None:
    words, text = paste
    contamination = found(numbered(" ".join(words)), [*["another row"] * before, text], at_once=2)
    assert [one.stands for one in contamination.overlaps] == [True]
    assert contamination.overlaps[0].row == before + 1
    assert contamination.overlaps[0].shared == " ".join(words_of(" ".join(words)))


@given(
    st.lists(WORD, max_size=60),
    st.lists(WORD.map(lambda word: f"q{word}q"), min_size=1, max_size=60),
)
@settings(max_examples=100, deadline=None)
def test_texts_without_a_common_word_raise_no_alarm(row: list[str], question: list[str]) -> None:
    row = [word for word in row if not word.startswith("q")]
    assert found(numbered(" ".join(question)), [" ".join(row), ""]) == Contamination({"quiz": 1})


@given(
    st.lists(st.lists(st.sampled_from("abc"), min_size=8, max_size=24), min_size=1, max_size=6),
    st.lists(st.lists(st.sampled_from("abc"), max_size=60), min_size=1, max_size=8),
    st.integers(1, 9),
)
@settings(max_examples=200, deadline=None)
def test_what_is_found_is_what_a_plain_search_finds(
    questions: list[list[str]], rows: list[list[str]], at_once: int
) -> None:
    """Of three words, so that phrases are met by chance; too few questions and rows for one to be common."""
    contamination = found(
        numbered(*map(" ".join, questions)), [" ".join(row) for row in rows], at_once
    )
    expected = {}
    for i, words in enumerate(questions):
        n = min(len(words), 13)
        phrases = [words[at : at + n] for at in range(len(words) - n + 1)]
        hits = [
            [phrase in [row[at : at + n] for at in range(len(row))] for phrase in phrases]
            for row in rows
        ]
        covered = [
            len({at + k for at, hit in enumerate(row) if hit for k in range(n)}) for row in hits
        ]
        if any(covered):
            expected[f"quiz {i}"] = max(covered) >= 0.8 * len(words)
    assert {one.question.name: one.stands for one in contamination.overlaps} == expected
    for one in contamination.overlaps:
        assert f" {one.shared} " in f" {' '.join(one.question.texts)} "
        if not one.stands:
            assert f" {one.shared} " in f" {' '.join(rows[one.row - 1])} "


# --- what counts ------------------------------------------------------------------------------------------


def test_thirteen_words_overlap_and_four_fifths_stand() -> None:
    question = running(0, 50)
    texts = [running(0, 12) + " x", "x " + running(20, 13), running(5, 39), running(5, 40)]
    for text, expected in zip(texts, ([], [False], [False], [True]), strict=True):
        assert [one.stands for one in found(numbered(question), [text]).overlaps] == expected


def test_a_word_that_was_changed_hides_no_long_question() -> None:
    words = running(0, 40).split()
    assert standing(
        found(numbered(" ".join(words)), [" ".join([*words[:20], "other", *words[21:]])])
    ) == ["quiz 0"]


def test_a_few_words_need_the_right_answer_beside_them() -> None:
    question = Question("quiz 0", ("What is the capital of France?",), ("Paris",))
    assert not found([question], ["What is the capital of France? Ask a teacher."]).overlaps
    assert not found([question], ["What is the capital of France? Parishes vote."]).overlaps
    assert standing(
        found([question], ["### Instruction: what is the capital of france\n### Response: Paris."])
    )
    assert not found([question], ["Paris: what is the capital of France?"]).overlaps
    assert not found([Question("quiz 0", ("Why?",), ("", "..."))], ["Why? Because..."]).overlaps


def test_a_question_of_several_short_texts_needs_them_all_and_the_answer() -> None:
    question = Question(
        "quiz 0", ("Turn the words of this list around, please.", "cat, dog"), ("dog, cat",)
    )
    assert not found(
        [question],
        ["Turn the words of this list around, please. Input: cow, hen. Response: hen, cow"],
    ).overlaps
    assert not found(
        [question], ["Turn the words of this list around, please. Input: cat, dog. Response: no"]
    ).overlaps
    assert found(
        [question],
        ["Turn the words of this list around, please. Input: cat, dog. Response: dog, cat"],
    ).overlaps


def test_a_passage_without_the_question_about_it_overlaps_and_does_not_stand() -> None:
    question = Question("quiz 0", (running(0, 60), "Is that so?"), ("yes",))
    assert [one.stands for one in found([question], [running(0, 60)]).overlaps] == [False]
    assert standing(found([question], [running(0, 60) + "\nQuestion: is that so?"])) == ["quiz 0"]


def test_common_phrases_do_not_count() -> None:
    template = running(0, 20, "t")
    asked = [f"{template} {running(100 * i, 20)}" for i in range(11)]
    assert not found(numbered(*asked), [template]).overlaps  # of more than ten questions
    assert len(found(numbered(*asked[:10]), [template]).overlaps) == 10
    saying = [f"{running(1000 * i, 5)} {template}" for i in range(1, 12)]
    assert not found(numbered(asked[0]), saying).overlaps  # of more than ten texts
    assert (
        len(found(numbered(asked[0]), saying[:10] * 5).overlaps) == 1
    )  # the same text again is no other
    short = numbered("which of the following is the best example")
    assert not found(
        short, [f"which of the following is the best example {i}" for i in range(11)]
    ).overlaps


def test_a_question_that_stands_whole_counts_however_often_it_does() -> None:
    question = running(0, 20)
    assert standing(found(numbered(question), [f"{i} {question} {i}" for i in range(500)])) == [
        "quiz 0"
    ]


def test_each_han_and_kana_character_is_a_word() -> None:
    question = "下列关于细胞结构和功能的叙述中，正确的是哪一项？"
    assert standing(found(numbered(question), [f"请回答：{question.replace('，', '')}谢谢"])) == [
        "quiz 0"
    ]


def test_questions_of_two_benchmarks_are_counted_by_benchmark() -> None:
    asked = {
        name: numbered(running(0, 20), running(100 * i, 20))
        for i, name in enumerate(("one", "two", "three"), 1)
    }
    rows = [
        ("file", 7, running(0, 20)),
        ("file", 8, running(200, 20)),
        ("file", 9, running(300, 14)),
    ]
    contamination = find_contamination(asked, [rows])
    assert [contamination.n_standing(name) for name in asked] == [1, 2, 1]
    assert [len(contamination.of(name)) for name in asked] == [1, 2, 2]
    assert {one.dataset for one in contamination.overlaps} == {"file"}


class Task:
    """As much of one of the harness's as says what is asked."""

    def __init__(
        self, doc: dict[str, Any], prompt: str | int, target: Any, choices: list[str] | None = None
    ) -> None:
        self.doc, self.prompt, self.target, self.choices = doc, prompt, target, choices or []
        self.config = SimpleNamespace(task="quiz")
        self.OUTPUT_TYPE = "multiple_choice" if choices else "generate_until"
        self.doc_to_text, self.doc_to_target = lambda doc: prompt, lambda doc: target
        self.doc_to_choice = lambda doc: self.choices

    def doc_iterator(self, **of: Any) -> Any:
        return enumerate([self.doc])


STEM, OPTIONS = "Which of these is prime?", ["four", "five", "six", "nine"]
LISTED = f"{STEM}\nA. four\nB. five\nC. six\nD. nine\nAnswer:"


@pytest.mark.parametrize(
    ("task", "texts", "answers"),
    [
        (
            Task({"question": STEM, "choices": OPTIONS, "answer": 1}, LISTED, 1, list("ABCD")),
            (STEM,),
            ("five",),
        ),
        (Task({"question": STEM, "answer": "B", "label": "1"}, LISTED, "B"), (STEM,), ()),
        (
            Task({"question": STEM, "o": OPTIONS}, f"Question: {STEM}\nAnswer:", 1, OPTIONS),
            (STEM,),
            ("five",),
        ),
        (
            Task({"q": {"stem": STEM}}, f"Q: {STEM}\nA:", ["five", "5"]),
            (f"Q: {STEM}\nA:",),
            ("five", "5"),
        ),
        (
            Task({"passage": "Five is prime.", "question": STEM}, f"Five is prime. {STEM}", "five"),
            ("Five is prime.", STEM),
            ("five",),
        ),
        (
            Task(
                {"label": "Cats", "ctx": "a cat sits", "query": "Cats: A cat sits"},
                "Cats: A cat sits",
                0,
                ["x y"],
            ),
            ("Cats: A cat sits",),
            ("x y",),
        ),
        (
            Task(
                {"sentence": "She saw _ there.", "option1": "him"},
                0,
                "there.",
                ["She saw him", "She saw"],
            ),
            ("She saw _ there.",),
            ("there.",),
        ),
        (Task({"page": "A long page."}, "", "A long page."), ("A long page.",), ("A long page.",)),
    ],
    ids=[
        "letters",
        "a letter generated",
        "options",
        "nested",
        "a passage",
        "parts of a whole",
        "a blank",
        "a page",
    ],
)
def test_a_questions_own_words_are_those_of_its_row(
    task: Task, texts: tuple[str, ...], answers: tuple[str, ...], composed: Composed
) -> None:
    chosen = {"quiz": composed("benchmark=[pocket_cs]").benchmark["pocket_cs"]}
    [question] = worded({"quiz": {"tasks": {"quiz": task}}}, chosen)["quiz"]
    assert question == Question("quiz 0", texts, answers)


# --- what becomes of it -------------------------------------------------------------------------------------


def test_more_than_the_share_is_refused_with_the_pair() -> None:
    contamination = found(
        numbered(*(running(100 * i, 20) for i in range(100))),
        ["x", running(300, 20), running(700, 20)],
    )
    contamination.check(0.02)
    contamination.check(1)
    with pytest.raises(SlimdownError) as refused:
        contamination.check(0.01)
    for part in (
        "2 of 100 questions",
        "quiz 3",
        "row 2 of file",
        "w300 w301",
        "max_share=0.01 allows 1",
        "max_share=1",
    ):
        assert part in str(refused.value)
    found([], ["nothing asked"]).check(0)
    assert found([], ["nothing asked"]).told == []


def test_fewer_are_told_and_pass() -> None:
    contamination = found(numbered(running(0, 20), running(100, 100)), [running(100, 30)])
    contamination.check(0)
    [line] = contamination.told
    for part in ("0 of 2 questions stand", "1 more share 13 words", "quiz 1"):
        assert part in line


def test_the_embedded_worlds_rows_hold_none_of_its_questions(composed: Composed) -> None:
    """Four of 300 word problems share 13 words of a template with a row of replay, and none its numbers."""
    chosen = composed().benchmark
    asked = worded(load_tasks(chosen), chosen)
    rows = {}
    for name in ("pocket_instructions_train", "pocket_replay"):
        lines = (DATA_DIR / f"{name}.jsonl").read_text().splitlines()
        rows[name] = [(name, i, "".join(json.loads(line).values())) for i, line in enumerate(lines)]
    n_overlaps = Counter()
    for name, texts in rows.items():
        contamination = find_contamination(asked, [texts])
        assert not standing(contamination)
        n_overlaps += Counter({name: len(contamination.overlaps)})
    assert n_overlaps == {"pocket_replay": 4}
    everything = [
        (name, i, " ".join((*q.texts, *q.answers)))
        for name in asked
        for i, q in enumerate(asked[name])
    ]
    contamination = find_contamination(asked, [everything])
    assert {name: contamination.n_standing(name) for name in asked} == dict.fromkeys(asked, 300)


SMALL = [
    "benchmark=[pocket_cs,pocket_math]",
    "benchmark.pocket_cs.limit=100",
    "benchmark.pocket_math.limit=20",
]


@pytest.fixture
def pasted(tmp_path: Path) -> Path:
    """Rows of which a third are questions with their answers."""
    rows = [
        json.loads(line)
        for line in (DATA_DIR / "pocket_instructions_train.jsonl").read_text().splitlines()[:100]
    ]
    for line in (DATA_DIR / "pocket_cs_test.jsonl").read_text().splitlines()[:50]:
        row = json.loads(line)
        rows.append(
            {
                "prompt": f"{row['question']} Answer in a word.",
                "completion": row["choices"][row["label"]],
            }
        )
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(
            f"{json.dumps({'instruction': r['prompt'], 'output': r['completion']})}\n" for r in rows
        )
    )
    return file


def test_a_training_on_what_is_asked_is_refused_and_its_pairs_are_recorded(
    pasted: Path, pocket: LoadedModel, composed: Composed, store: MlflowClient
) -> None:
    rows_of_file = [
        "dataset=[file]",
        f"dataset.file.path={pasted}",
        "dataset.file.validation_examples=2",
    ]
    config = composed(
        *SMALL, *rows_of_file, f"tracking.uri=sqlite:///{pasted.parent}/mlruns/mlflow.db"
    )
    tasks = load_tasks(config.benchmark)
    with (
        pytest.raises(
            SlimdownError, match=r"pocket_cs: \d\d of 100 questions stand .* row \d+ of file"
        ),
        TrackedRun(config.tracking, "a name", "tuned", {}) as run,
    ):
        way_to_tuned(pocket, config, tasks, run.log_contamination)
    metrics = store.get_run(run.run_id).data.metrics
    assert (
        45
        <= metrics["contamination/pocket_cs/standing"]
        == metrics["contamination/pocket_cs/overlapping"]
        <= 50
    )
    assert metrics["contamination/pocket_math/standing"] == 0
    with Path(store.download_artifacts(run.run_id, "contamination.csv")).open(newline="") as lines:
        listed = list(csv.DictReader(lines))
    assert len(listed) == metrics["contamination/pocket_cs/overlapping"]
    rows = pasted.read_text().splitlines()
    for one in listed:
        assert one["text"] in json.loads(rows[int(one["row"]) - 1])["instruction"]
    config.contamination = composed("contamination.max_share=1").contamination
    assert any(
        "questions stand in the rows" in note for note in way_to_tuned(pocket, config, tasks).notes
    )


@pytest.mark.parametrize("share", ["-0.1", "1.5", "nan"])
def test_a_share_that_is_none_is_refused(share: str, composed: Composed) -> None:
    with pytest.raises(ConfigError, match=r"contamination\.max_share"):
        composed(f"contamination.max_share={share}")


# --- real data ------------------------------------------------------------------------------------------------


def of_real_rows(config: RunConfig, tokenizer: Any) -> Contamination:
    data = load_data(config.dataset, config.seed, tokenizer)
    return find_contamination(worded(load_tasks(config.benchmark), config.benchmark), data.texts())


@pytest.mark.hub
def test_gsm8ks_train_split_is_not_its_test(composed: Composed, pocket: LoadedModel) -> None:
    rows = ["dataset=[gsm8k_train]", "dataset.gsm8k_train.max_examples=null"]
    contamination = of_real_rows(
        composed("model=smollm2", "benchmark=[gsm8k]", *rows), pocket.tokenizer
    )
    assert contamination.n_asked == {"gsm8k": 1319}
    assert len(contamination.of("gsm8k")) in (2, 3)  # by the rows that are held out
    assert standing(contamination) == []
    contamination.check(0)


@pytest.mark.hub
def test_alpaca_holds_nothing_of_the_papers_benchmarks(
    composed: Composed, pocket: LoadedModel
) -> None:
    config = composed("model=smollm2", "dataset=[alpaca]", "dataset.alpaca.max_examples=null")
    contamination = of_real_rows(config, pocket.tokenizer)
    assert contamination.n_asked["hellaswag"] >= 1000  # a mirror's part; there none overlaps
    contamination.check(0.001)


@pytest.mark.hub
@pytest.mark.parametrize("task", ["mmlu_college_computer_science", "mmlu_high_school_us_history"])
def test_pasted_mmlu_is_refused(
    task: str, composed: Composed, pocket: LoadedModel, tmp_path: Path
) -> None:
    from datasets import load_dataset

    asked = load_dataset("cais/mmlu", task.removeprefix("mmlu_"), split="test")
    file = tmp_path / "rows.jsonl"
    rows = [
        {"instruction": row["question"].upper(), "output": row["choices"][row["answer"]]}
        for row in asked
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config = composed(
        "model=smollm2",
        "benchmark=[mmlu_cs]",
        f"benchmark.mmlu_cs.task={task}",
        "dataset=[file]",
        f"dataset.file.path={file}",
        "dataset.file.validation_examples=1",
    )
    contamination = of_real_rows(config, pocket.tokenizer)
    assert contamination.n_standing("mmlu_cs") >= len(rows) - 1  # one is held out
    with pytest.raises(SlimdownError, match=rf"questions stand .* {task} \d+ .* row \d+ of file"):
        contamination.check(0.01)
