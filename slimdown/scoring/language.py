"""`language`: the answer is written in the right language."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from slimdown.scoring.contains import contains_answer
from slimdown.scoring.score import Rule, Score, to_text
from slimdown.utils.errors import DataError

_SENTENCE_END = re.compile(r"(?<=[.!?؟।])\s+|(?<=[。！？])\s*|\n+")
_HAN_OR_KANA = re.compile("[\u3040-\u30ff\u3400-\u9fff]")
# A shorter sentence does not tell its language. A character of Chinese or Japanese is a word.
_SHORTEST, _SHORTEST_OF_HAN = 25, 12


def find_languages(text: str) -> list[str]:
    """Find the languages of a text's sentences, as ISO 639-1 codes in the order in which they come.

    A sentence of fewer than 25 characters (12 of Chinese or Japanese) does not count. If all are
    shorter, the whole text is taken as one sentence. Nothing is found in a text without letters.

    The first sentence of this example has 18 characters, so it does not count:

    >>> find_languages("Der Topf ist heiß. It keeps the heat inside the pot, so you save energy.")
    ['en']
    >>> find_languages("Mit einem Deckel kocht das Wasser früher. It saves energy, too, my friend.")
    ['de', 'en']
    >>> find_languages("12 + 3")
    []
    """
    sentences = [sentence for sentence in _SENTENCE_END.split(text) if _is_long(sentence)]
    with_letters = [part for part in sentences or [text] if re.search(r"[^\W\d_]", part)]
    languages = [str(_load_identifier().classify(part)[0]) for part in with_letters]
    return list(dict.fromkeys(languages))  # each once, in the order of the text


def _is_long(sentence: str) -> bool:
    shortest = _SHORTEST_OF_HAN if _HAN_OR_KANA.search(sentence) else _SHORTEST
    return len(sentence.strip()) >= shortest


@cache
def _load_identifier() -> Any:
    """Load an identifier of our own: a program may restrict the languages of py3langid's."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    # Those with a code of two letters: the others are mostly dialects, such as Wu beside Chinese.
    identifier.set_languages([code for code in identifier.labels if len(code) == 2])
    return identifier


class Language(Score):
    """Right if the answer is in an accepted language, and names what the row wants named."""

    name = "language"
    description = (
        "every sentence is in the language, such as `de` (ISO 639-1). If the row has a field "
        "`contains` (a list of texts), it also names one of them. Ask for ten words or more."
    )
    names_answers = False

    def check_answer(self, answer: Any, record: Mapping[str, Any]) -> str:
        """Check that it is the code of a language that can be told."""
        code = super().check_answer(answer, record)
        known = _load_identifier().labels
        if code not in known:
            problem = f"answer {code[:60]!r} is no language that slimdown can tell"
            raise DataError(f"{problem}; give a code such as de, one of {', '.join(sorted(known))}")

        return code

    def list_extras(self, accepted: Sequence[str], record: Mapping[str, Any]) -> Rule:
        """Read the texts of which the answer must name one."""
        texts = record.get("contains") or []
        if not (isinstance(texts, list) and all(isinstance(t, str) and to_text(t) for t in texts)):
            raise DataError(f"contains must be a list of texts, got {texts!r}"[:200])
        return super().list_extras(accepted, record) | {"contains": texts}

    def read(self, text: str, rule: Rule, *_: Any, **__: Any) -> str:
        """Read the languages, and what is not named although it should be."""
        languages = ", ".join(find_languages(text))
        wanted: Iterable[str] = rule.get("contains") or ()
        is_lacking = wanted and languages and not contains_answer(text, list(wanted))
        return f"{languages} without {' | '.join(wanted)}" if is_lacking else languages
