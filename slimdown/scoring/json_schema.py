"""`json`: the answer is JSON that is valid by a schema."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from slimdown.scoring.pattern import check_pattern
from slimdown.scoring.score import Rule, Score
from slimdown.scoring.strict_json import STRICT_DECODER
from slimdown.utils.errors import DataError

_LONGEST_SCHEMA, _LONGEST_ANSWER = 20_000, 100_000  # characters
_DEEPEST = 50  # objects and lists in each other; jsonschema calls itself for each
_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL | re.IGNORECASE)


def read_json(text: str) -> str:
    r"""Read the JSON of an answer: its one fenced block, or else the whole answer.

    Returns:
        The value as JSON; empty if there is none, if it is too long, or if a key stands in an
        object twice.

    >>> read_json('Here it is:\n```json\n{"a": 1}\n```'), read_json('Here it is: {"a": 1}')
    ('{"a": 1}', '')
    """
    fenced = _FENCE.findall(text)
    content = fenced[0] if len(fenced) == 1 else text
    if len(content) > _LONGEST_ANSWER:
        return ""
    try:
        return json.dumps(STRICT_DECODER.decode(content.strip()), ensure_ascii=False)
    except (ValueError, RecursionError):
        return ""


def check_schema(schema: Any) -> None:
    """Check a JSON schema (draft 2020-12) before a model is asked.

    Raises:
        DataError: It is no schema, is too large, refers to another place, or has a pattern that
            takes too long.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    if not isinstance(schema, dict):
        example = '{"type": "object", "required": ["name"]}'
        raise DataError(f"answer must be a JSON schema such as {example}, got {schema!r}"[:200])
    written = json.dumps(schema, ensure_ascii=False)
    if len(written) > _LONGEST_SCHEMA:
        problem = f"has {len(written):,} characters, and {_LONGEST_SCHEMA:,} are allowed"
        raise DataError(f"the JSON schema in answer {problem}; write a shorter one")
    for key, value in _walk(schema):
        if key in ("$ref", "$dynamicRef") and isinstance(value, str):
            _check_reference(schema, value)
        if key == "pattern" and isinstance(value, str):
            check_pattern(value)
        if key == "patternProperties" and isinstance(value, dict):
            for pattern in value:
                check_pattern(pattern)
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        place = "".join(f"/{key}" for key in error.absolute_path)
        problem = " ".join(error.message.split())[:120]
        raise DataError(f"answer is no JSON schema: {place or 'its top'}: {problem}") from None


def _check_reference(schema: dict[str, Any], reference: str) -> None:
    """Refuse a reference to another place than this schema: nothing is fetched."""
    from referencing import Registry
    from referencing.exceptions import NoSuchResource, Unresolvable, Unretrievable
    from referencing.jsonschema import DRAFT202012

    resolver = Registry().resolver_with_root(DRAFT202012.create_resource(schema))
    try:
        resolver.lookup(reference)
    except (Unresolvable, Unretrievable, NoSuchResource):
        problem = f"the JSON schema in answer refers to {reference[:60]!r}, which is not in it"
        raise DataError(f"{problem}; nothing is fetched, so put it under $defs") from None


def _walk(value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield every key of a schema with its value, at all depths."""
    if depth > _DEEPEST:
        problem = f"has more than {_DEEPEST} objects and lists in each other"
        raise DataError(f"the JSON schema in answer {problem}; write a flatter one")
    if isinstance(value, dict):
        yield from value.items()
        value = list(value.values())
    for inner in value if isinstance(value, list) else ():
        yield from _walk(inner, depth + 1)


@lru_cache(maxsize=1000)
def _make_validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator
    from referencing import Registry

    return Draft202012Validator(json.loads(schema), registry=Registry())  # which fetches nothing


class Json(Score):
    """Right if the answer's JSON is valid by the schema of the row."""

    name = "json"
    description = (
        "its JSON is valid by `answer`, a JSON schema. The JSON is the whole answer, or its one "
        "fenced block, which may follow a sentence."
    )
    takes_lists = False
    names_answers = False

    def check_answer(self, answer: Any, record: Mapping[str, Any]) -> str:
        """Check the schema, and return it as JSON."""
        check_schema(answer)
        return json.dumps(answer, ensure_ascii=False)

    def read(self, text: str, rule: Rule, *_: Any, **__: Any) -> str:
        """Read the JSON."""
        return read_json(text)

    def is_right(self, read: str, rule: Rule) -> bool:
        """Validate the JSON by the schema."""
        try:
            return bool(read) and _make_validator(rule["accepted"][0]).is_valid(json.loads(read))
        except RecursionError:  # the schema refers to itself, or the JSON is too deep
            return False
