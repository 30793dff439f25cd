"""Signs and colors of verdicts. Color only repeats what the sign and the word say."""

from dataclasses import dataclass


@dataclass(frozen=True)
class VerdictStyle:
    """A verdict's sign and colors (after Okabe and Ito, for any kind of color blindness)."""

    sign: str
    console_style: str  # as rich writes it
    color: str  # of marks in a figure
    on_light: str  # the color of text on a light page
    on_dark: str  # the color of text on a dark page
    marker: str  # matplotlib's code of the mark in a figure


STYLES = {
    "retained": VerdictStyle("=", "bold cyan", "#2a86c7", "#1a6ba6", "#74b8ec", "s"),
    "forgotten": VerdictStyle("↓", "bold red", "#d55e00", "#b04a00", "#ff9a5c", "v"),
    "improved": VerdictStyle("↑", "bold green", "#009e73", "#00765a", "#4fd0a8", "^"),
    "undecided": VerdictStyle("?", "yellow", "#7a7a7a", "#626262", "#b5b5b5", "o"),
}


# Of a watched benchmark, which has no verdict
WATCHED = VerdictStyle("·", "", "#7a7a7a", "#626262", "#b5b5b5", "D")


def find_style(verdict: str | None) -> VerdictStyle:
    """Return the style of a verdict; where seeds have several, that of undecided.

    Args:
        verdict: The verdict's name, or several with their numbers of seeds. A watched benchmark has
            no verdict: None, "" or "watched".
    """
    if verdict in ("", "watched", None):
        return WATCHED
    return STYLES.get(verdict, STYLES["undecided"])
