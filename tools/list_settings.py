"""A hook of MkDocs: writes the table of settings where a page has `{{ settings }}`."""

from typing import Any

from slimdown.config.fields import describe_settings
from slimdown.config.schema import RunConfig


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with the table of settings, made of the help of the schema."""
    rows = [f"| `{key}` | {text} |" for key, text in describe_settings(RunConfig)]
    return markdown.replace("{{ settings }}", "\n".join(["| setting | |", "|---|---|", *rows]))
