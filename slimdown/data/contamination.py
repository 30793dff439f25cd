"""Find benchmark questions that stand in the training rows, by the words that both share.

Texts are compared by their words: Unicode's compatibility forms (NFKC), case folded, without
apostrophes and invisible characters; all other punctuation, symbols and spaces end a word; each
character of Chinese and Japanese is a word. Prompt and completion count equally, as an answer
teaches, too.

A question **overlaps** with a row that shares 13 successive words with it (Brown et al. 2020,
appendix C, arXiv 2005.14165). A phrase of more than ten questions, or of more than ten different
texts of the rows, is common and does not count. A question **stands** in a row that holds four
fifths of its words in such phrases, common or not (Touvron et al. 2023, appendix A.6, arXiv
2307.09288); with fewer than 13 words, in a row that holds all of them. A question of fewer than 8
words, one of several short texts, and one that is a common phrase stand there only if the right
answer follows them.
"""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any
from unicodedata import category, normalize

import numpy as np

from slimdown.data.training_data import TrainedText
from slimdown.utils.errors import DataError

if TYPE_CHECKING:
    from slimdown.data.training_data import TrainingData

PHRASE_WORDS = 13  # successive words that a question and a row share
_STANDING_SHARE = 0.8  # with this share of its words in a row, a question stands there
_SELF_CONTAINED_WORDS = 8  # a question of so many words needs no answer beside it
# Characters of a row that are searched: words take memory, and training cuts it (train.max_length).
_MOST_CHARACTERS = 4_000_000
_COMMON = 10  # questions or texts that may hold a phrase before it is common
_UNSPACED = range(0x3040, 0x3100), range(0x3400, 0xA000), range(0x20000, 0x40000)  # kana and Han
_FACTOR = 6364136223846793005  # odd, so that a multiplication loses nothing


@dataclass(frozen=True)
class Question:
    """What a benchmark asks, in its own words: no template, no worked examples."""

    name: str  # the task, and the number in it
    texts: tuple[str, ...]  # its parts, such as a passage and a question about it
    answers: tuple[str, ...] = ()  # the right ones


@dataclass(frozen=True)
class Overlap:
    """A question, and the row that shares most with it."""

    benchmark: str
    question: Question
    dataset: str
    row: int
    shared: str  # the question's words where it stands in the row, else the longest shared run
    stands: bool


@dataclass(frozen=True)
class Contamination:
    """The questions that overlap with the training rows."""

    n_questions: dict[str, int] = field(default_factory=dict)  # by benchmark
    overlaps: tuple[Overlap, ...] = ()  # one for each question: standing ones first, then by length

    def get_overlaps(self, benchmark: str) -> list[Overlap]:
        """Return the overlaps of one benchmark."""
        return [overlap for overlap in self.overlaps if overlap.benchmark == benchmark]

    def count(self, benchmark: str) -> int:
        """Count the benchmark's questions that stand in rows."""
        return sum(overlap.stands for overlap in self.get_overlaps(benchmark))

    @property
    def notes(self) -> list[str]:
        """A sentence for each benchmark with overlaps."""
        return [self._describe(name) for name in self.n_questions if self.get_overlaps(name)]

    def _describe(self, benchmark: str) -> str:
        overlaps, n_standing = self.get_overlaps(benchmark), self.count(benchmark)
        first, n_partly = overlaps[0], len(overlaps) - n_standing
        text = " ".join(" ".join(first.question.texts).split())[:120]
        partly = f", {n_partly:,} more share {PHRASE_WORDS} successive words" if n_partly else ""
        count = f"{n_standing:,} of {self.n_questions[benchmark]:,} questions are also"
        return (
            f"{benchmark}: {count} in the training rows{partly}; for example {first.question.name} "
            f"({text!r}) and row {first.row} of {first.dataset}, which share {first.shared[:120]!r}"
        )

    def to_csv(self) -> str:
        """Write every overlap as a line of a CSV file."""
        lines = io.StringIO()
        table = csv.writer(lines)
        table.writerow(("benchmark", "question", "text", "stands", "dataset", "row", "shared"))
        for overlap in self.overlaps:
            question, stands = overlap.question, str(overlap.stands).lower()
            cells = [overlap.benchmark, question.name, "\n".join(question.texts), stands]
            table.writerow([*cells, overlap.dataset, overlap.row, overlap.shared])
        return lines.getvalue()

    def check(self, max_share: float) -> None:
        """Refuse rows that would make a benchmark's scores worthless.

        Args:
            max_share: The share of a benchmark's questions that may stand in the rows, from 0 to 1.

        Raises:
            DataError: More questions of some benchmark stand in the rows than that share allows.
        """
        for benchmark, n_questions in self.n_questions.items():
            limit = max_share * n_questions
            if self.count(benchmark) > limit:
                raise DataError(
                    f"{self._describe(benchmark)}; contamination.max_share={max_share:g} allows "
                    f"{int(limit):,}: remove these rows (contamination.csv of the run names one "
                    "for each question), or set contamination.max_share=1 to train on them"
                )


def find_contamination(
    train_data: "TrainingData",
    questions: Mapping[str, Sequence[Question]],
    prompts: Sequence[str] = (),
) -> Contamination:
    """Search the training rows for the questions, in one pass.

    Args:
        train_data: The rows; `iter_texts` gives their texts.
        questions: The questions of each benchmark.
        prompts: The messages in the file of the setting `keep.prompts`, in their order. The base's
            answers to them are trained on, to forget less, so they are searched like rows.

    Returns:
        The number of questions of each benchmark; and, for each question that shares 13 successive
        words with a row or stands in one, the row that shares most with it. Questions that stand in
        a row come first, and within these and the others those that share most words.
    """
    search = _Search([(name, question) for name in questions for question in questions[name]])
    messages = (TrainedText("keep.prompts", number, text) for number, text in enumerate(prompts, 1))
    for row in chain(train_data.iter_texts(), messages):
        search.add_row(row)
    overlaps = sorted(search.list_overlaps(), key=_rank_overlap, reverse=True)
    return Contamination({name: len(questions[name]) for name in questions}, tuple(overlaps))


def _rank_overlap(overlap: Overlap) -> tuple[bool, int]:
    return overlap.stands, len(overlap.shared.split())


class _Characters(dict[int, str | None]):
    """Maps a character's code to its replacement: itself, nothing, or a space that ends a word."""

    def __missing__(self, code: int) -> str | None:
        char, kind = chr(code), category(chr(code))
        replacement: str | None = " "
        if char in "'’ʼ" or kind == "Cf":  # apostrophes and invisible characters
            replacement = None
        elif kind[0] in "LMN":  # letters, marks and numbers
            replacement = f" {char} " if any(code in block for block in _UNSPACED) else char
        self[code] = replacement
        return replacement


_CHARACTERS = _Characters()


def split_words(text: str) -> list[str]:
    r"""Split a text into the words that texts are compared by.

    >>> split_words("What’s “1F” in\nDECIMAL?"), split_words("首都は?")
    (['whats', '1f', 'in', 'decimal'], ['首', '都', 'は'])
    """
    return normalize("NFKC", text).casefold().translate(_CHARACTERS).split()


def join_words(words: Iterable[str]) -> str:
    """Join words to one text for searching whole words: each word stands between spaces."""
    return f" {' '.join(words)} "


_Place = tuple[str, int]  # the dataset, and the number of the row in it


class _Search:
    """The phrases of all questions, and the rows that hold them so far.

    A phrase is a run of 13 words, or a whole text of fewer words; it is known by its digest, a
    number of 64 bits. A question is known by its number in the list. What overlaps and what stands
    in a row, the file's docstring says.
    """

    def __init__(self, questions: list[tuple[str, Question]]) -> None:
        """Take the questions, each with its benchmark, and collect the digests of their phrases."""
        self._questions = questions
        self._texts: list[list[list[str]]] = []  # for each question: the words of each of its texts
        questions_by_phrase: dict[int, list[int]] = defaultdict(list)
        for number, (_, question) in enumerate(questions):
            texts = [words for words in map(split_words, question.texts) if words]
            self._texts.append(texts)
            phrases = chain.from_iterable(map(_digest_phrases, texts))
            for phrase in set(phrases):  # a question counts once, however often it has the phrase
                questions_by_phrase[phrase].append(number)
        self._questions_by_phrase = {  # without phrases that many questions share
            phrase: numbers for phrase, numbers in questions_by_phrase.items() if _is_rare(numbers)
        }
        # How many words phrases have: a text of fewer than 13 words is one phrase.
        lengths = {min(len(words), PHRASE_WORDS) for texts in self._texts for words in texts}
        self._lengths = sorted(lengths)
        # For each phrase, the rows that hold it, by the hash of the row's text: rows with equal
        # texts count once. No more are added as soon as there are enough to call it common.
        self._rows_by_phrase: dict[int, dict[int, _Place]] = defaultdict(dict)
        # For each question, the rows that it stands in, collected in the same way.
        self._rows_by_question: dict[int, dict[int, _Place]] = defaultdict(dict)
        # For each question, the first row in which it cannot stand by chance.
        self._certain_rows: dict[int, _Place] = {}

    def add_row(self, row: "TrainedText") -> None:
        """Note which phrases of questions a row holds, and which questions stand in it."""
        words = split_words(row.text[:_MOST_CHARACTERS])
        place = (row.dataset, row.row)
        runs = list(_digest_runs(words))  # digests of all runs of 1 word, of 2 words, ...
        # Only runs that are as long as some question's phrase can be such a phrase.
        digests = chain.from_iterable(runs[length - 1].tolist() for length in self._lengths)
        shared_phrases = self._questions_by_phrase.keys() & set(digests)
        if not shared_phrases:
            return
        text = join_words(words)
        row_phrases = set(_digest_phrases(words))
        for phrase in shared_phrases:
            _add(self._rows_by_phrase[phrase], text, place)
        for number in self._find_questions(shared_phrases) - self._certain_rows.keys():
            texts = self._texts[number]  # the words of each text
            if all(_holds(text, row_phrases, text_words) for text_words in texts):
                _add(self._rows_by_question[number], text, place)
                # A short question may stand in a row by chance, unless its answer follows it.
                n_words = sum(map(len, texts))
                if n_words >= PHRASE_WORDS or self._is_answered(number, text):
                    self._certain_rows[number] = place

    def _find_questions(self, phrases: Iterable[int]) -> set[int]:
        """Return the numbers of the questions that hold any of these phrases."""
        return {number for phrase in phrases for number in self._questions_by_phrase[phrase]}

    def _is_answered(self, number: int, text: str) -> bool:
        """Return whether a right answer stands in a text behind a question that stands in it."""
        parts = map(join_words, self._texts[number])
        end = max(text.index(part) + len(part) - 1 for part in parts)
        _, question = self._questions[number]
        answers = filter(None, map(split_words, question.answers))
        return any(text.find(join_words(answer), end) >= 0 for answer in answers)

    def list_overlaps(self) -> Iterator[Overlap]:
        """Yield the overlap of each question that shares enough with a row."""
        for number in sorted(self._find_questions(self._rows_by_phrase)):
            texts = self._texts[number]
            place = self._find_standing(number)
            words = list(chain.from_iterable(texts))
            stands = place is not None
            if not stands:  # then it may share a run of words with a row
                runs = filter(None, map(self._find_longest_run, texts))
                words, place = max(runs, key=lambda run: len(run[0]), default=([], None))
            if place:
                (benchmark, question), (dataset, row) = self._questions[number], place
                yield Overlap(benchmark, question, dataset, row, " ".join(words), stands)

    def _find_standing(self, number: int) -> _Place | None:
        """Return a row in which a question stands, or None."""
        if number in self._certain_rows:
            return self._certain_rows[number]
        texts = self._texts[number]
        rows = self._rows_by_question.get(number, {})
        # Without its answer a question stands only if it says enough and is no common phrase.
        is_self_contained = len(texts) == 1 and len(texts[0]) >= _SELF_CONTAINED_WORDS
        return next(iter(rows.values()), None) if is_self_contained and _is_rare(rows) else None

    def _find_longest_run(self, words: list[str]) -> tuple[list[str], _Place] | None:
        """Return the longest run of words that stands in one row, and that row.

        The row is the one that shares most of the text's rare phrases. None if no row shares any.
        """
        if len(words) < PHRASE_WORDS:
            return None
        holders = [self._rows_by_phrase.get(phrase, {}) for phrase in _digest_phrases(words)]
        rows = [set(places.values()) if _is_rare(places) else set() for places in holders]
        if not any(rows):
            return None
        [(row, _)] = Counter(chain.from_iterable(rows)).most_common(1)
        hits = groupby(range(len(rows)), key=lambda i: row in rows[i])
        longest = max((list(places) for is_hit, places in hits if is_hit), key=len)
        return words[longest[0] : longest[-1] + PHRASE_WORDS], row


def _is_rare(holders: Sized) -> bool:
    """Return whether few enough questions or texts hold a phrase that it counts."""
    return len(holders) <= _COMMON


def _add(places: dict[int, _Place], text: str, place: _Place) -> None:
    """Add a row's place, one for each different text, until there are too many to count."""
    if _is_rare(places):
        places.setdefault(hash(text), place)


def _holds(text: str, phrases: set[int], words: list[str]) -> bool:
    """Return whether a text holds most of a question's words in its phrases.

    It must hold all words of a question that is shorter than a phrase.
    """
    if len(words) < PHRASE_WORDS:
        return join_words(words) in text
    hits = [phrase in phrases for phrase in _digest_phrases(words)]
    n_covered = np.count_nonzero(np.convolve(hits, np.ones(PHRASE_WORDS)))
    return bool(n_covered >= _STANDING_SHARE * len(words))


def _digest_phrases(words: Sequence[str]) -> list[int]:
    """Return the digests of a text's phrases, in order; a shorter text is one phrase."""
    runs = list(_digest_runs(words))[: len(words)]
    return runs[-1].tolist() if runs else []


def _digest_runs(words: Sequence[str]) -> Iterator[Any]:
    """Yield, for each length from 1 to 13, the digests of all runs of so many words, in order.

    A digest has 64 bits. Between a million phrases of questions and the billion of a million rows,
    one search in 20,000 meets two that are equal by chance.
    """
    digests = np.fromiter(map(hash, words), np.int64, len(words))
    runs = digests
    for length in range(1, PHRASE_WORDS + 1):
        yield runs
        runs = runs[:-1] * _FACTOR + digests[length:]
