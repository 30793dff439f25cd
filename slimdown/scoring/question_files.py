"""Files of your own questions or texts: each row is checked before a model is loaded."""

import json
from functools import lru_cache
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from slimdown.scoring.score import EXACT, Score, check_right_answers, to_text
from slimdown.scoring.scores import find_score
from slimdown.utils.errors import DataError
from slimdown.utils.row_files import iter_records

QuestionRows = tuple[dict[str, Any], ...]
"""Rows have question and answer, or also choices: answer is then the number of the right one.

`conversation` is the JSON text of messages and tools, `rule` that of the rule for `is_right`.
A document has `text` alone.
"""
_KINDS = {"question": "question", "choices": "choices", "conversation": "messages"}
_KINDS |= {"category": "score=refusal", "cluster": "cluster"}  # by key of a row
_KEYS_OF_QUESTIONS = ("question", "messages", "answer", "choices")
_MOST_ANSWERS, _MOST_TOOLS = 100, 1000
_OWN_PREFIX, _OWN_FOLDER = "assistant:", Path(__file__).with_name("assistant")


def find_question_file(path: str) -> Path:
    """Return the file that a benchmark's `path` names.

    Args:
        path: A file of yours, or `assistant:NAME`, which names a file that comes with slimdown.

    Raises:
        DataError: No file of that name comes with slimdown.
    """
    if not path.startswith(_OWN_PREFIX):
        return Path(path).expanduser()
    file = _OWN_FOLDER / f"{path.removeprefix(_OWN_PREFIX)}.jsonl"
    names = sorted(own.stem for own in _OWN_FOLDER.glob("*.jsonl"))
    if file.stem not in names:
        known = ", ".join(names)
        raise DataError(f"no such questions come with slimdown; {_OWN_PREFIX} takes one of {known}")
    return file


def read_questions(path: str, score: str) -> QuestionRows:
    """Read questions from a JSON, JSONL, CSV or Parquet file.

    Args:
        path: See `find_question_file`. A row has `question` and `answer`, a text or a number. It
            may have `choices`, a list; `answer` is then the number from 0, the letter or the text
            of the right one.
            `messages` and `tools` may stand for `question`; `forbidden` and `score` may be added.
            A row with `text` and neither question nor answer is a document.
            Rows with the same `cluster`, such as those of one passage, count as one.
        score: The name of the score for rows that have neither choices nor a `score`.

    Returns:
        The rows, without other columns and without spaces around answers.

    Raises:
        DataError: Names the first row that is not such a question.
    """
    file = find_question_file(path).absolute()
    # Rows are cached. The time of the last change makes a changed file be read again; 0 if there is
    # no file, which reading then reports.
    return _read_question_rows(file, file.stat().st_mtime_ns if file.is_file() else 0, score)


def name_score(rows: QuestionRows) -> str:
    """Name how the answers of rows are scored; "right" where rows have scores of their own."""
    scores = list_used_scores(rows)
    return scores[0] if len(scores) == 1 else "right"


def list_used_scores(rows: QuestionRows) -> list[str]:
    """Return the names of the scores that rows have."""
    return sorted({json.loads(row["rule"])["score"] if "rule" in row else EXACT for row in rows})


@lru_cache(maxsize=16)  # a sweep checks the same file for each of its runs
def _read_question_rows(file: Path, changed_at: int, score: str) -> QuestionRows:
    """Read a file's rows, see `read_questions`.

    Args:
        file: Its absolute path.
        changed_at: When the file was last changed, in nanoseconds. It is part of the cache's key,
            so that a changed file is read again.
        score: The name of the score for rows that have neither choices nor a `score`.

    Raises:
        DataError: A row is no question, or is of another kind than the first, or there is no row.
    """
    rows: list[dict[str, Any]] = []
    for number, record in iter_records(file):
        try:
            row = read_row(record, score) | _read_cluster(record)
            json.dumps(row, ensure_ascii=False).encode()  # raises at half of a surrogate pair
            if rows and row.keys() != rows[0].keys():
                # The first key in `_KINDS` that only one of the two rows has. There is one: rows
                # that differ in another key, such as `rule` or `text`, also differ in one of these.
                key = next(key for key in _KINDS if key in row.keys() ^ rows[0].keys())
                has = f"it has {'' if key in row else 'no '}{_KINDS[key]}"
                raise DataError(f"{has}, unlike the rows before; give each kind a file")
        except (DataError, UnicodeEncodeError) as error:
            raise DataError(f"row {number}: {error}") from None
        rows.append(row)
    if not rows:
        examples = '{"question": ..., "answer": ...}, or {"text": ...}'
        raise DataError(f"it is empty; write rows such as {examples}")
    return tuple(rows)


def read_row(record: Any, score: str) -> dict[str, Any]:
    """Read one row, see `read_questions`.

    Args:
        record: What `iter_records` yields: the row, or the error of a row that cannot be read.
        score: The name of the score, if the row has neither choices nor a `score`.

    Raises:
        DataError: It is no such question.
    """
    if isinstance(record, DataError):
        raise record
    if not isinstance(record, dict):
        raise DataError(f"it is {str(record)[:60]} and no object with question and answer")
    has_question = any(record.get(key) is not None for key in _KEYS_OF_QUESTIONS)
    if "text" in record and not has_question:
        return _read_document(record["text"], score)
    if isinstance(own_score := record.get("score"), str) and own_score.strip():
        score = own_score
    found_score = find_score(score)
    prompt = _read_prompt(record)
    if record.get("choices") is None:
        return prompt | _read_answers(record, found_score)
    if score != EXACT or record.get("forbidden"):  # a choice is taken by likelihood
        raise DataError(f"choices are not written, so leave out score={score} and forbidden")
    return prompt | _read_choices(record.get("answer"), record["choices"])


def _read_choices(answer: Any, choices: Any) -> dict[str, Any]:
    """Read a row's choices, and which of them is right.

    Args:
        answer: The text of the right choice, its number from 0, or its letter from A.
        choices: The choices, texts or numbers.

    Returns:
        `choices`, as texts, and `answer`, the number from 0 of the right one.

    Raises:
        DataError: The choices are not two or more different texts, or the answer does not name
            exactly one of them.
    """
    if not (text := to_text(answer)):
        raise DataError(f"answer is {answer!r}, and must be a text or a number"[:200])
    texts = [to_text(choice) for choice in choices] if isinstance(choices, list) else []
    if len(texts) < 2 or not all(texts) or len(set(texts)) < len(texts):
        wanted = "must be a list of two or more different texts"
        raise DataError(f"choices {wanted}, got {choices!r}"[:200])
    # What the answer may call each choice; there is no letter behind Z.
    names = [(choice, str(i), ascii_uppercase[i : i + 1]) for i, choice in enumerate(texts)]
    meant = [i for i, choice_names in enumerate(names) if text in choice_names]
    if isinstance(answer, str) and text in texts:
        meant = [texts.index(text)]  # the text of a choice comes before numbers and letters
    if len(meant) != 1:
        problem = "may mean two of the choices" if meant else "is none of the choices"
        advice = "give the number (from 0), the letter or the text of the right one"
        raise DataError(f"answer {text[:60]!r} {problem}; {advice}")
    return {"choices": texts, "answer": meant[0]}


def _read_document(text: Any, score: str) -> dict[str, Any]:
    """Read a text that is no question; spaces around it stay, they are read, too."""
    if not isinstance(text, str) or not to_text(text):
        raise DataError(f"text must hold something to read, got {text!r}"[:200])
    if score != EXACT:
        raise DataError(f"it has only text, which nothing answers; leave out score={score}")
    return {"text": text}


def _read_cluster(record: dict[str, Any]) -> dict[str, str]:
    """Read the cluster that a row shares with others; empty where it has none."""
    if (cluster := record.get("cluster")) is None:
        return {}
    if not (text := to_text(cluster)):
        raise DataError(f"cluster must be a text or a number, got {cluster!r}"[:200])
    return {"cluster": text}


def _read_prompt(record: dict[str, Any]) -> dict[str, Any]:
    """Read a row's question, or its messages and tools.

    Returns:
        `question`. Messages and tools become `conversation`, their JSON text; the question is then
        what the user says in them.

    Raises:
        DataError: There is no question, or messages or tools are not as a chat template takes them.
    """
    question, messages, tools = map(record.get, ("question", "messages", "tools"))
    if messages is None and tools is None:
        if not isinstance(question, str) or not to_text(question):
            raise DataError(f"it has no text in question; it has {', '.join(record)}"[:200])
        return {"question": question}
    if question is not None or not isinstance(messages, list) or not messages:
        problem = "messages must be a list of turns with role and content, instead of a question"
        raise DataError(f"{problem}, got {messages!r}"[:200])
    _check_turns(messages)
    if tools is not None and not (isinstance(tools, list) and 0 < len(tools) <= _MOST_TOOLS):
        raise DataError(f"tools must be a list of 1 to {_MOST_TOOLS:,}, got {tools!r}"[:200])
    for tool in tools or ():  # a schema may stand under `function`, as OpenAI has it
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(f"a tool must be a JSON schema with a name, got {tool!r}"[:200])
    question = "\n".join(turn["content"] for turn in messages if turn["role"] == "user")
    chat = json.dumps({"messages": messages, "tools": tools}, ensure_ascii=False, default=str)
    return {"question": question, "conversation": chat}


def _check_turns(messages: list[Any]) -> None:
    """Check that messages are turns of user and assistant, and that the user speaks last.

    Only the first message may be the system's.

    Args:
        messages: At least one, as a row of a file has them.

    Raises:
        DataError: Names the first message that is no such turn.
    """
    for number, turn in enumerate(messages, start=1):
        fields = turn if isinstance(turn, dict) else {}
        role, content = map(fields.get, ("role", "content"))
        allowed = ["user", "assistant"] + (["system"] if number == 1 else [])
        if role not in allowed or not isinstance(content, str) or not to_text(content):
            wanted = f"must have a role of {', '.join(allowed)}, and a text in content"
            raise DataError(f"message {number} {wanted}, got {turn!r}"[:200])
    if messages[-1]["role"] != "user":
        raise DataError("the last message must be the user's; what the model says is the answer")


def _read_answers(record: dict[str, Any], score: Score) -> dict[str, Any]:
    """Read the right answers to a question without choices, and how they are scored."""
    answers = record.get("answer")
    if not isinstance(answers, list) or not score.takes_lists:
        answers = [answers]
    if not 0 < len(answers) <= _MOST_ANSWERS:
        raise DataError(f"answer must be one, or a list of 1 to {_MOST_ANSWERS}")
    accepted = [score.check_answer(answer, record) for answer in answers]
    rule = {"score": score.name, "accepted": accepted} | score.list_extras(accepted, record)
    check_right_answers(score, rule)
    row = {"answer": " | ".join(accepted), "rule": json.dumps(rule, ensure_ascii=False)}
    category = score.categorize(accepted)
    return row | ({"category": category} if category else {})
