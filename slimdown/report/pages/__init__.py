"""Pages and cards, rendered by the jinja2 templates of this folder."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from slimdown.config.benchmark_config import Role
from slimdown.report import formatting, text
from slimdown.report.tables import Place, Table
from slimdown.report.verdict_styles import STYLES, find_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def render(template: str, **values: object) -> str:
    """Render a template of this folder; HTML templates escape every value.

    Args:
        template: The file's name. If it ends with ".html.j2", every value is escaped.
        **values: What the template shows, by the names that it uses. A name that is missing raises
            an error of jinja2.

    Returns:
        The text. A page holds all it needs and loads nothing.
    """
    environment = Environment(
        loader=PackageLoader("slimdown.report", "pages"),
        autoescape=lambda name: bool(name and name.endswith(".html.j2")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # A template's filter `number` is the function `formatting.format_number`, and so on.
    names = ("interval", "number", "p_value", "points", "percent")
    environment.filters |= {name: getattr(formatting, f"format_{name}") for name in names}
    environment.filters |= {
        "visible": lambda value: formatting.visible(value, multiline=True),
        "markdown": formatting.escape_markdown,
        "svg": _inline_svg,
        "out_of": formatting.format_count,
        "plural": formatting.pluralize,
    }
    environment.globals |= {"STYLES": STYLES, "Role": Role, "find_style": find_style, "text": text}
    return environment.get_template(template).render(**values)


def render_table_page(
    table: Table,
    command: str,
    figures: "Sequence[tuple[Figure, Figure, str]]" = (),
    *,
    headings: Sequence[str] = (),
    answer: Sequence[str] = (),
    closing: Sequence[str] = (),
) -> str:
    """Render a table with its figures as a page.

    Args:
        table: What is shown; you can sort and filter it.
        command: What made the page, such as "verdict --chain".
        figures: For each figure, its drawing for a page, its drawing for a phone, and its caption.
        headings: Two texts: what was varied, and what the numbers are. Empty: the page is headed
            with the table's title.
        answer: Sentences above the table, which answer what was asked.
        closing: Sentences below the figures.

    Returns:
        The page, see `render`.
    """
    return render(
        "comparison.html.j2",
        table=table.at(Place.page),
        command=command,
        figures=figures,
        headings=headings,
        answer=answer,
        closing=closing,
    )


def _inline_svg(figure: "Figure") -> Markup:
    """Draw a figure as SVG that a template shows without escaping it."""
    from slimdown.report.figures import write_svg  # matplotlib takes half a second

    return Markup(write_svg(figure))  # matplotlib escapes the texts that it writes
