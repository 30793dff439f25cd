"""Signs and colors of verdicts. Color only repeats what the sign and the word say."""

from dataclasses import dataclass


@dataclass(frozen=True)
class VerdictStyle:
    """A verdict's sign and colors (after Okabe and Ito, for any kind of color blindness)."""

    sign: str
    console_style: str  # of rich
    color: str  # in a figure
    on_light: str  # text on a page
    on_dark: str
    marker: str  # in a figure


STYLES = {
    "retained": VerdictStyle("=", "bold cyan", "#2a86c7", "#1a6ba6", "#74b8ec", "s"),
    "forgotten": VerdictStyle("↓", "bold red", "#d55e00", "#b04a00", "#ff9a5c", "v"),
    "improved": VerdictStyle("↑", "bold green", "#009e73", "#00765a", "#4fd0a8", "^"),
    "undecided": VerdictStyle("?", "yellow", "#7a7a7a", "#626262", "#b5b5b5", "o"),
}


# Of a watched benchmark, which has no verdict
WATCHED = VerdictStyle("·", "", "#7a7a7a", "#626262", "#b5b5b5", "D")


def find_style(verdict: str | None) -> VerdictStyle:
    """Return the style of a verdict; that of undecided where seeds disagree."""
    if verdict in ("", "watched", None):
        return WATCHED
    return STYLES.get(verdict, STYLES["undecided"])
