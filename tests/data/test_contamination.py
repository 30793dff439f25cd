"""Benchmark questions in the rows: pastes are found, chance is not, and too many are refused."""

import csv
import re
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from hypothesis import given, settings, strategies as st

from slimdown.data.contamination import Contamination, Question, find_contamination, split_words
from slimdown.data.training_data import TrainedText
from slimdown.utils.errors import DataError


def search(questions: Sequence[Question], texts: Sequence[str]) -> Contamination:
    rows = [TrainedText("file", i, text) for i, text in enumerate(texts, start=1)]
    return find_contamination(SimpleNamespace(iter_texts=lambda: iter(rows)), {"quiz": questions})


def numbered(*texts: str) -> list[Question]:
    return [Question(f"quiz {i}", (text,)) for i, text in enumerate(texts)]


def standing(contamination: Contamination) -> list[str]:
    return sorted(overlap.question.name for overlap in contamination.overlaps if overlap.stands)


def running(start: int, n: int, prefix: str = "w") -> str:
    """Words that nobody else writes."""
    return " ".join(f"{prefix}{i}" for i in range(start, start + n))


LETTERS = st.sampled_from("abcdefghijklmnopqrstuvwxyz0123456789éüßñжщфδλאבनम")
WORD = st.text(LETTERS, min_size=1, max_size=8)
GAP = st.text(st.sampled_from(' \t\n.,;:!?-–—_()[]{}«»“”"…*#/|=+'), min_size=1, max_size=4)
BETWEEN = st.text(st.sampled_from("'’\u200b\u00ad"), max_size=1)  # inside a word


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
def test_a_pasted_question_stands_in_any_form(paste: tuple[list[str], str], before: int) -> None:
    words, text = paste
    contamination = search(numbered(" ".join(words)), [*["another row"] * before, text])
    assert [o.stands for o in contamination.overlaps] == [True]
    assert contamination.overlaps[0].row == before + 1
    assert contamination.overlaps[0].shared == " ".join(split_words(" ".join(words)))


@given(
    st.lists(st.lists(st.sampled_from("abc"), min_size=8, max_size=24), min_size=1, max_size=6),
    st.lists(st.lists(st.sampled_from("abc"), max_size=60), min_size=1, max_size=8),
)
@settings(max_examples=200, deadline=None)
def test_it_finds_what_plain_search_finds(
    questions: list[list[str]], rows: list[list[str]]
) -> None:
    """Three words, so phrases meet by chance; too few questions and rows for common ones."""
    contamination = search(numbered(*map(" ".join, questions)), [" ".join(row) for row in rows])
    expected = {}
    for i, words in enumerate(questions):
        n = min(len(words), 13)
        phrases = [words[at : at + n] for at in range(len(words) - n + 1)]
        covered = []
        for row in rows:
            runs = [row[at : at + n] for at in range(len(row))]
            hits = [at for at, phrase in enumerate(phrases) if phrase in runs]
            covered.append(len({at + k for at in hits for k in range(n)}))
        if any(covered):
            expected[f"quiz {i}"] = max(covered) >= 0.8 * len(words)
    assert {o.question.name: o.stands for o in contamination.overlaps} == expected
    for overlap in contamination.overlaps:
        assert f" {overlap.shared} " in f" {' '.join(overlap.question.texts)} "
        if not overlap.stands:
            assert f" {overlap.shared} " in f" {' '.join(rows[overlap.row - 1])} "


def test_thirteen_words_overlap_and_four_fifths_stand() -> None:
    question = running(0, 50)
    texts = [running(0, 12) + " x", "x " + running(20, 13), running(5, 39), running(5, 40)]
    for text, expected in zip(texts, ([], [False], [False], [True]), strict=True):
        assert [o.stands for o in search(numbered(question), [text]).overlaps] == expected


def test_of_an_endless_row_the_beginning_is_searched() -> None:
    questions = numbered(running(0, 20))
    long = "word " * 800_000  # 4 million characters
    assert standing(search(questions, [f"{running(0, 20)} {long}"])) == ["quiz 0"]
    assert not standing(search(questions, [f"{long} {running(0, 20)}"]))


def test_a_few_words_need_the_right_answer_beside_them() -> None:
    text = "What is the capital of France?"
    question = Question("quiz 0", (text,), ("Paris",))
    for row in (f"{text} Ask a teacher.", f"{text} Parishes vote.", f"Paris: {text}"):
        assert not search([question], [row]).overlaps
    assert standing(search([question], [f"### Q: {text.lower()[:-1]}\n### Response: Paris."]))
    assert not search([Question("quiz 0", ("Why?",), ("", "..."))], ["Why? Because..."]).overlaps


def test_a_question_of_several_short_texts_needs_them_all_and_the_answer() -> None:
    task = "Turn the words of this list around, please."
    question = Question("quiz 0", (task, "cat, dog"), ("dog, cat",))
    for words, answer in (("cow, hen", "hen, cow"), ("cat, dog", "no"), ("cat, dog", "dog, cat")):
        overlaps = search([question], [f"{task} Input: {words}. Response: {answer}"]).overlaps
        assert bool(overlaps) == (answer == "dog, cat")


def test_a_passage_without_the_question_about_it_overlaps_and_does_not_stand() -> None:
    question = Question("quiz 0", (running(0, 60), "Is that so?"), ("yes",))
    assert [o.stands for o in search([question], [running(0, 60)]).overlaps] == [False]
    assert standing(search([question], [running(0, 60) + "\nQ: is that so?"])) == ["quiz 0"]


def test_common_phrases_do_not_count() -> None:
    template = running(0, 20, "t")
    questions = [f"{template} {running(100 * i, 20)}" for i in range(11)]
    assert not search(numbered(*questions), [template]).overlaps  # of more than ten questions
    assert len(search(numbered(*questions[:10]), [template]).overlaps) == 10
    saying = [f"{running(1000 * i, 5)} {template}" for i in range(1, 12)]
    assert not search(numbered(questions[0]), saying).overlaps  # of more than ten texts
    assert len(search(numbered(questions[0]), saying[:10] * 5).overlaps) == 1  # texts that differ
    short = "which of the following is the best example"
    assert not search(numbered(short), [f"{short} {i}" for i in range(11)]).overlaps


def test_a_phrase_in_two_texts_of_a_question_is_that_of_one_question() -> None:
    phrase = running(0, 20)
    passages = [(f"{phrase} {running(100 * i, 20)}", phrase) for i in range(1, 9)]
    questions = [Question(f"quiz {i}", texts) for i, texts in enumerate(passages)]
    assert len(search(questions, [phrase]).overlaps) == 8  # and not 16 questions, too many to count


def test_a_question_that_stands_whole_counts_however_often_it_does() -> None:
    rows = [f"{i} {running(0, 20)} {i}" for i in range(2500)]
    assert standing(search(numbered(running(0, 20)), rows)) == ["quiz 0"]


def test_questions_of_two_benchmarks_are_counted_by_benchmark() -> None:
    questions = {
        name: numbered(running(0, 20), running(100 * i, 20))
        for i, name in enumerate(("one", "two", "three"), 1)
    }
    texts = (running(0, 20), running(200, 20), running(300, 14))
    rows = [TrainedText("file", i, text) for i, text in enumerate(texts, start=7)]
    contamination = find_contamination(SimpleNamespace(iter_texts=lambda: iter(rows)), questions)
    assert [contamination.count(name) for name in questions] == [1, 2, 1]
    assert [len(contamination.get_overlaps(name)) for name in questions] == [1, 2, 2]
    assert {(o.dataset, o.row) for o in contamination.overlaps} == {("file", i) for i in (7, 8, 9)}


def test_more_than_the_share_is_refused_with_the_pair() -> None:
    questions = numbered(*(running(100 * i, 20) for i in range(100)))
    contamination = search(questions, ["x", running(300, 20), running(700, 20)])
    contamination.check(0.02)
    contamination.check(1)
    parts = "2 of 100 .*quiz 3 .*row 2 of file.* 'w300 w301.*max_share=0.01 .* 1: .*max_share=1"
    with pytest.raises(DataError, match=parts):
        contamination.check(0.01)
    search([], ["nothing questions"]).check(0)
    assert search([], ["nothing questions"]).notes == []


def test_what_the_base_answers_for_the_training_is_searched() -> None:
    questions = {"quiz": numbered(running(0, 20))}
    rows = SimpleNamespace(iter_texts=lambda: iter([TrainedText("file", 1, "another row")]))
    [overlap] = find_contamination(rows, questions, ["a colour", running(0, 20)]).overlaps
    assert (overlap.dataset, overlap.row, overlap.stands) == ("keep.prompts", 2, True)


def test_fewer_are_noted_and_pass() -> None:
    contamination = search(numbered(running(0, 20), running(100, 100)), [running(100, 30)])
    contamination.check(0)
    [line] = contamination.notes
    assert re.search("0 of 2.*quiz 1", line)


def test_the_csv_has_a_line_for_each_overlap() -> None:
    questions = numbered(running(0, 20), running(100, 30))
    lines = search(questions, [f"a, {running(0, 20)}", running(100, 14)]).to_csv().splitlines()
    first, second = csv.DictReader(lines)
    assert (first["question"], first["stands"], first["row"]) == ("quiz 0", "true", "1")
    assert (second["text"], second["stands"]) == (running(100, 30), "false")
    assert second["shared"] == running(100, 14)
