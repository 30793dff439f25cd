"""Pages that hold all they need: HTML made by the templates that lie here."""

from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from slimdown.report.words import LOOKS, kind_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Control characters have no place in HTML; their pictures do. Tab and newline stay.
_PICTURES = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}


def render(template: str, **values: object) -> str:
    """The page that a template of this folder makes of the values, all of them escaped.

    Filters: `visible` shows control characters as pictures, `svg` a figure. A value that a template lacks is an error.
    """
    pages = Environment(
        loader=PackageLoader("slimdown.report", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pages.filters |= {"visible": visible, "svg": _inline}
    pages.globals |= {"looks": LOOKS, "kind_of": kind_of}
    return pages.get_template(template).render(**values)


def visible(text: object) -> str:
    r"""The text as a page can hold it: control characters as their pictures, broken characters as a mark.

    >>> visible("a\x00b\n")
    'a␀b\n'
    """
    return str(text).replace("\r\n", "\n").translate(_PICTURES).encode("utf-8", "replace").decode()


def _inline(figure: "Figure") -> Markup:
    from slimdown.report.drawing import svg  # matplotlib takes half a second

    return Markup(svg(figure))  # matplotlib escapes the texts that it writes
