"""Draw the figures of docs/studies whose numbers stand in the page's own table.

python -m tools.draw_studies
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

DOCS = Path(__file__).parents[1] / "docs"
LOST, KEPT, GREY = "#c0392b", "#2471a3", "#999999"
KINDS = {  # rows of the study of an instruct model, from what is lost to what shows nothing
    "XSTest, 50 harmful prompts, refused": "harmful prompts refused",
    "GSM8K, 50 questions, correct": "GSM8K, right",
    "XSTest, 100 prompts, correct": "XSTest, right: both kinds",
    "MMLU, 228 questions, correct": "MMLU, right",
    "HellaSwag, 200 questions, correct": "HellaSwag, right",
}
CLAIMS = {  # the start of a row of the study of the statistics -> what is wrongly claimed
    "| changed | no change": "changed, of 0/1 scores",
    "| `retained` | a change of exactly": "retained",
    "| exit 0; exit 1 | a loss": "a budget is kept, or broken",
    "| changed; `retained`; exit 0 | the same, stopped": "any of these, stopped early",
    "| | clusters of 4, or": "changed, by named clusters",
    "| any cell of `compare`": "changed, any cell of compare",
    "| a chosen checkpoint": "a chosen checkpoint passes",
    "| changed, at one of three": "changed, at one of four verdicts",
    "| | if each copy": "changed, if each copy counted",
    "| | clusters of 4; of 8": "changed, by unnamed clusters of 8",
    "| exit 0 | the best of 30": "the best of 30 passes, on what chose it",
}
BROKEN = 4  # the last ones are what nobody should do


def read_rows(page: str) -> list[list[str]]:
    """Return the cells of all table rows of a study."""
    lines = (DOCS / "studies" / page).read_text().splitlines()
    return [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in lines if "|" in line]


def draw_instruct(axes: Axes) -> None:
    """Draw each score before and after 400 rows."""
    rows = {row[0]: row for row in read_rows("instruct.md")}
    for place, (name, label) in enumerate(reversed(KINDS.items())):
        base, tuned = (float(cell.split(",")[0].strip("*")) for cell in rows[name][1:3])
        is_shown = place >= len(KINDS) - 2
        color = LOST if is_shown else GREY
        axes.annotate(
            "", (tuned, place), (base, place), arrowprops={"arrowstyle": "->", "color": color}
        )
        axes.plot([base, tuned], [place, place], "o", color=color)
        axes.annotate(f"{label}: {base:g} → {tuned:g}", (0, place + 0.2), color=color)
    axes.set(xlim=(0, 100), ylim=(-0.5, len(KINDS)), yticks=[], xlabel="percent; red: shown")


def draw_statistics(axes: Axes) -> None:
    """Draw the worst rate of each claim beside the five percent that are allowed."""
    lines = (DOCS / "studies" / "statistics.md").read_text().splitlines()
    for place, (start, label) in enumerate(reversed(CLAIMS.items())):
        [line] = [line for line in lines if line.startswith(start)]
        numbers = line.rstrip(" |").rpartition("|")[2].split(";")
        worst = max(map(float, numbers))
        axes.barh(place, worst, color=LOST if place < BROKEN else KEPT)
        axes.annotate(f"{label}: {worst:g}", (max(worst, 5) + 0.6, place - 0.2))
    axes.axvline(5, color="black", linestyle=":")
    axes.set(xlim=(0, 90), yticks=[], xlabel="wrong claims, %; dotted: what is allowed")


def draw_methods(axes: Axes) -> None:
    """Draw what each method learned over what it lost on average, as means over seeds."""
    for name, *changes in read_rows("methods.md"):
        if changes and changes[0][:1] in "+−":
            target, *retained = (float(cell.split()[0].replace("−", "-")) for cell in changes)
            lost = -sum(retained) / len(retained)
            axes.plot(lost, target, "o", color=LOST if name in ("prefix", "prompt") else KEPT)
            axes.annotate(name, (lost + 0.7, target + 1))
    axes.set(xlim=(0, 65), ylim=(0, 95))
    axes.set(xlabel="lost: mean of the retained, points", ylabel="learned, points")


def main() -> None:
    """Write the figures into docs/images."""
    figures = {
        "instruct": (draw_instruct, 2.6),
        "statistics": (draw_statistics, 3.4),
        "methods": (draw_methods, 3.4),
    }
    for name, (draw, height) in figures.items():
        figure, axes = pyplot.subplots(figsize=(7, height), layout="constrained")
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines["left"].set_visible(bool(axes.get_ylabel()))
        figure.savefig(DOCS / "images" / f"{name}.png", dpi=120)


if __name__ == "__main__":
    main()
