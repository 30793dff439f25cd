"""A hook of MkDocs: writes the table of settings where a page has `{{ settings }}`."""

from typing import Any

from slimdown.config.help import write_table

_PLACE = "{{ settings }}"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with the table of settings, made of what `slimdown run --help all` shows."""
    return markdown.replace(_PLACE, write_table()) if _PLACE in markdown else markdown
