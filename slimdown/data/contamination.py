"""Benchmark questions in the rows to be trained on, looked for by the words that both have.

Texts are compared by their words: Unicode's compatibility forms (NFKC), case folded, apostrophes and invisible
characters left out, all other punctuation, symbols and spaces being the ends of words; each character of Chinese and
Japanese is a word. Prompt and completion count alike: what is learned from an answer is learned too.

A question **overlaps** with a row that shares 13 words in a row with it, as in Brown et al. 2020, appendix C (arXiv
2005.14165). A phrase of more than ten questions, or of more than ten different texts of the rows, is a common one and
does not count. A question **stands** in a row that holds four fifths of its words in such phrases, common or not, as in
Touvron et al. 2023 (arXiv 2307.09288, appendix A.6); or, where it has fewer than 13 words, all of them. One of fewer
than 8 words, one of several short texts and one that is a common phrase stands there only with its right answer behind
it.
"""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby, islice
from typing import Any
from unicodedata import category, normalize

import numpy as np

from slimdown.utils.errors import SlimdownError

WORDS = 13  # in a row, that a question and a text share
MOST = 0.8  # of its words, with which a question stands in a text
ALONE = 8  # words of a question that say enough without its answer
COMMON = 10  # questions or texts that may hold a phrase, and it still counts
_AT_ONCE = 500_000  # characters
_FACTOR = 6364136223846793005  # odd: a multiplication loses nothing

Row = tuple[str, int, str]
"""The dataset, the number of the row in it, and the text."""
_Place = tuple[str, int]


@dataclass(frozen=True)
class Question:
    """What a benchmark asks, in its own words: no template, no worked examples."""

    name: str  # the task, and the number in it
    texts: tuple[str, ...]  # what it consists of, such as a passage and a question about it
    answers: tuple[str, ...] = ()  # the right ones


@dataclass(frozen=True)
class Overlap:
    """A question, and the row that shares most with it."""

    benchmark: str
    question: Question
    dataset: str  # and its row
    row: int
    shared: (
        str  # the question's words where it stands in the row, else the longest run that both have
    )
    stands: bool  # the question in the row


@dataclass(frozen=True)
class Contamination:
    """What the rows have of the questions."""

    n_asked: dict[str, int] = field(default_factory=dict)  # by benchmark
    overlaps: tuple[
        Overlap, ...
    ] = ()  # one a question: those that stand in a row first, the longest first

    def of(self, benchmark: str) -> tuple[Overlap, ...]:
        """The overlaps of one benchmark."""
        return tuple(overlap for overlap in self.overlaps if overlap.benchmark == benchmark)

    def n_standing(self, benchmark: str) -> int:
        """How many of its questions stand in rows."""
        return sum(overlap.stands for overlap in self.of(benchmark))

    @property
    def told(self) -> list[str]:
        """A sentence for each benchmark with overlaps."""
        return [self._told(name) for name in self.n_asked if self.of(name)]

    def _told(self, benchmark: str) -> str:
        overlaps, n_standing = self.of(benchmark), self.n_standing(benchmark)
        worst, n_others = overlaps[0], len(overlaps) - n_standing
        text = " ".join(" ".join(worst.question.texts).split())
        others = f", {n_others:,} more share {WORDS} words in a row with one" if n_others else ""
        return (
            f"{benchmark}: {n_standing:,} of {self.n_asked[benchmark]:,} questions stand in the rows that are trained "
            f"on{others}; first of all {worst.question.name} ({_shortened(text)!r}) and row {worst.row} of "
            f"{worst.dataset}, which share {_shortened(worst.shared)!r}"
        )

    def csv(self) -> str:
        """Every overlap as a line of a CSV file."""
        lines = io.StringIO()
        table = csv.writer(lines)
        table.writerow(("benchmark", "question", "text", "stands", "dataset", "row", "shared"))
        for one in self.overlaps:
            asked = (one.benchmark, one.question.name, "\n".join(one.question.texts))
            table.writerow((*asked, str(one.stands).lower(), one.dataset, one.row, one.shared))
        return lines.getvalue()

    def check(self, max_share: float) -> None:
        """Refuse rows that would make a benchmark's scores worthless.

        Raises:
            SlimdownError: more than `max_share` of a benchmark's questions stand in the rows.
        """
        for benchmark, n_asked in self.n_asked.items():
            if self.n_standing(benchmark) > max_share * n_asked:
                raise SlimdownError(
                    f"{self._told(benchmark)}; contamination.max_share={max_share:g} allows "
                    f"{int(max_share * n_asked):,}: take these rows out, of which the run's contamination.csv names "
                    "one a question, or set contamination.max_share=1 to train on them all the same"
                )


def find_contamination(
    asked: Mapping[str, Sequence[Question]], rows: Iterable[Sequence[Row]]
) -> Contamination:
    """Look for the questions in the rows: one pass, and memory for the questions alone.

    Args:
        asked: questions by benchmark.
        rows: dataset, number and text of each row, in batches.
    """
    search = _Search(
        [(name, question) for name, questions in asked.items() for question in questions]
    )
    for some in _portions(chain.from_iterable(rows)):
        search.look_into(some)
    by_size = sorted(
        search.overlaps(), key=lambda found: (found.stands, len(found.shared.split())), reverse=True
    )
    return Contamination(
        {name: len(questions) for name, questions in asked.items()}, tuple(by_size)
    )


def _shortened(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:119]}…"


class _Characters(dict[int, str | None]):
    """What becomes of a character by its code: kept, left out (None), or the end of a word (a space)."""

    def __missing__(self, code: int) -> str | None:
        char = chr(code)
        if char in "'’ʼ" or category(char) == "Cf":
            self[code] = None
        elif category(char)[0] not in "LMN":
            self[code] = " "
        else:  # kana and Han are written without spaces
            alone = (
                0x3040 <= code <= 0x30FF or 0x3400 <= code <= 0x9FFF or 0x20000 <= code <= 0x3FFFF
            )
            self[code] = f" {char} " if alone else char
        return self[code]


_CHARACTERS = _Characters()


def words_of(text: str) -> list[str]:
    r"""The words that texts are compared by.

    >>> words_of("What’s “1F” in\nDECIMAL?"), words_of("首都は?")
    (['whats', '1f', 'in', 'decimal'], ['首', '都', 'は'])
    """
    return normalize("NFKC", text).casefold().translate(_CHARACTERS).split()


def spaced_words(text: str) -> str:
    """The same as one text, in which others can be looked for: each word between spaces."""
    return _spaced(words_of(text))


def _spaced(words: Iterable[str]) -> str:
    return f" {' '.join(words)} "


class _Search:
    """The phrases of all questions, and what was found of them so far."""

    def __init__(self, asked: list[tuple[str, Question]]) -> None:
        self._asked = asked
        self._words = [[words for text in q.texts if (words := words_of(text))] for _, q in asked]
        phrases: dict[int, list[Any]] = defaultdict(
            list
        )  # by their number of words: digests, and whose they are
        for question, texts in enumerate(self._words):
            for words in texts:
                digests = np.unique(_phrases(words))
                phrases[min(len(words), WORDS)].append((digests, np.full(len(digests), question)))
        self._phrases = {
            length: _rare(*map(np.concatenate, zip(*each, strict=True)))
            for length, each in phrases.items()
        }
        # by the digest of a phrase: a row of each different text that holds it, up to one more than makes it common
        self._found: dict[int, dict[int, _Place]] = defaultdict(dict)
        self._touched: set[int] = set()  # questions with a phrase among these
        # by question: a row of each different text that it stands in, likewise; and one where no doubt is left
        self._standing: dict[int, dict[int, _Place]] = defaultdict(dict)
        self._sure: dict[int, _Place] = {}

    def look_into(self, rows: Sequence[Row]) -> None:
        """Note which phrases stand in these rows."""
        texts = [words_of(text) for _, _, text in rows]
        words = [
            word for text in texts for word in [*text, ""]
        ]  # the empty word, between two texts, is in no phrase
        ends = np.cumsum([len(text) + 1 for text in texts])
        hits: dict[int, dict[int, list[int]]] = defaultdict(
            dict
        )  # by text: the digests of phrases, and whose they are
        for length, digests in enumerate(_digests(words), start=1):
            known, owners = self._phrases.get(length, (np.empty(0), np.empty(0)))
            if not len(known):
                continue
            places = np.searchsorted(known, digests)
            here = np.flatnonzero(known[np.minimum(places, len(known) - 1)] == digests)
            behind = np.searchsorted(known, digests[here], "right")
            for text, start, stop in zip(
                np.searchsorted(ends, here, "right"), places[here], behind, strict=True
            ):
                hits[int(text)][int(known[start])] = owners[start:stop].tolist()
        for text, found in hits.items():
            self._note(found, rows[text][:2], texts[text])

    def _note(self, found: dict[int, list[int]], place: _Place, words: list[str]) -> None:
        """Note the phrases that the text of a row holds."""
        text, phrases = _spaced(words), set(_phrases(words).tolist())
        for phrase in found:
            _add(self._found[phrase], hash(text), place)
        for question in set(chain.from_iterable(found.values())):
            self._touched.add(question)
            if question in self._sure or not self._stands(question, text, phrases):
                continue
            _add(self._standing[question], hash(text), place)
            if self._is_long(question) or self._is_answered(question, text):
                self._sure[question] = place

    def _stands(self, question: int, text: str, phrases: set[int]) -> bool:
        """Whether a text holds most of each of the question's long texts, and its short ones whole."""
        return all(
            _n_covered([phrase in phrases for phrase in _phrases(words).tolist()])
            >= MOST * len(words)
            if len(words) >= WORDS
            else _spaced(words) in text
            for words in self._words[question]
        )

    def _is_long(self, question: int) -> bool:
        return sum(map(len, self._words[question])) >= WORDS

    def _is_answered(self, question: int, text: str) -> bool:
        """Whether a right answer stands in the text, behind the question."""
        asked = [_spaced(words) for words in self._words[question]]
        behind = max(text.index(words) + len(words) - 1 for words in asked)
        answers = map(spaced_words, self._asked[question][1].answers)
        return any(answer.strip() and text.find(answer, behind) >= 0 for answer in answers)

    def overlaps(self) -> Iterator[Overlap]:
        """Each question that overlaps with rows or stands in one."""
        for question in sorted(self._touched):
            texts, of = self._words[question], self._asked[question]
            standing = self._standing.get(question, {})
            says_enough = len(standing) <= COMMON and len(texts) == 1 and len(texts[0]) >= ALONE
            if question in self._sure or (standing and says_enough):
                place = self._sure.get(question, next(iter(standing.values())))
                yield Overlap(*of, *place, " ".join(chain.from_iterable(texts)), stands=True)
            elif pairs := [
                pair for words in texts if len(words) >= WORDS if (pair := self._shared(words))
            ]:
                shared, place = max(pairs, key=lambda pair: len(pair[0]))
                yield Overlap(*of, *place, " ".join(shared), stands=False)

    def _shared(self, words: list[str]) -> tuple[list[str], _Place] | None:
        """The words of a long text that the row shares which shares most of its rare phrases, and that row."""
        found = [self._found.get(phrase, {}) for phrase in _phrases(words).tolist()]
        rows = [set(texts.values()) if len(texts) <= COMMON else set() for texts in found]
        if not any(rows):
            return None
        [(row, _)] = Counter(chain.from_iterable(rows)).most_common(1)
        runs = [
            list(run) for hit, run in groupby(range(len(rows)), lambda i: row in rows[i]) if hit
        ]
        longest = max(runs, key=len)
        return words[longest[0] : longest[-1] + WORDS], row


def _portions(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """As many rows at a time as keep numpy busy and memory low, whatever their length."""
    portion: list[Row] = []
    n_characters = 0
    for row in rows:
        portion.append(row)
        if (n_characters := n_characters + len(row[2])) > _AT_ONCE:
            yield portion
            portion, n_characters = [], 0
    yield portion


def _rare(phrases: Any, owners: Any) -> tuple[Any, Any]:
    """The phrases in ascending order, and whose they are; without those of too many."""
    order = np.argsort(phrases, kind="stable")
    _, kinds, counts = np.unique(phrases[order], return_inverse=True, return_counts=True)
    order = order[counts[kinds] <= COMMON]
    return phrases[order], owners[order]


def _add(texts: dict[int, _Place], text: int, row: _Place) -> None:
    """Note one more text, until they are too many."""
    if len(texts) <= COMMON:
        texts.setdefault(text, row)


def _n_covered(found: list[bool]) -> int:
    """How many words lie in phrases that were found, of which there is one for each word that begins one.

    >>> _n_covered([True, True, False, False]), _n_covered([True] + [False] * 19 + [True])
    (14, 26)
    """
    covered = np.convolve(found, np.ones(WORDS))
    return int(np.count_nonzero(covered))


def _phrases(words: Sequence[str]) -> Any:
    """The digests of a text's phrases of `WORDS` words in their order, or of all of it where it is shorter."""
    return next(islice(_digests(words), min(len(words), WORDS) - 1, None))


def _digests(words: Sequence[str]) -> Iterator[Any]:
    """For each length from 1 to `WORDS`, the digests of all runs of so many words in their order.

    Of 64 bits: between a million phrases of questions and the thousand million of a million rows, one search in 20,000
    meets two that are alike by chance.
    """
    runs = each = np.fromiter(map(hash, words), np.int64, len(words))
    for length in range(1, WORDS + 1):
        yield runs
        runs = runs[:-1] * _FACTOR + each[length:]
