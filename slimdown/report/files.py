"""Findings, tables or figures -> the files that people are given."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from slimdown.config.naming import flatten
from slimdown.config.schema import RunConfig
from slimdown.report.table import PLAIN_WIDTH, Table, show, write
from slimdown.stats.findings import Findings
from slimdown.utils.errors import SlimdownError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def files_of(
    findings: Findings,
    name: str,
    run_id: str,
    settings: RunConfig | Mapping[str, object],
    environment: Mapping[str, object],
) -> dict[str, str | bytes]:
    """Report, page and plots by their paths among a run's artifacts."""
    from slimdown.report import plots
    from slimdown.report.findings import findings_markdown
    from slimdown.report.page import page

    flat = flatten(settings) if isinstance(settings, RunConfig) else settings
    figures = {
        "changes": plots.forest(findings.changes),
        "answers": plots.answers(findings.changes),
    }
    if t := findings.training:
        figures["training"] = plots.training_curve(
            t.history, t.validation_loss_before, t.validation_loss_after
        )
    return {
        "report.md": findings_markdown(findings, name),
        "report.html": page(findings, name, run_id, flat, environment),
        **{f"plots/{file}": content for file, content in images(figures).items()},
    }


def images(figures: "Mapping[str, Figure]") -> dict[str, bytes]:
    """Each figure as SVG and as PNG, by file name."""
    from slimdown.report.drawing import png, svg  # matplotlib takes half a second

    stems = {name.replace("/", "-"): figure for name, figure in figures.items()}
    found = {f"{stem}.svg": svg(figure).encode() for stem, figure in stems.items()}
    return found | {f"{stem}.png": png(figure) for stem, figure in stems.items()}


def put(table: Table, page: Callable[[], str], format: str, output: Path | None) -> None:
    """Show a table on the console, or write it to where it is asked for in one of `FORMATS`; as HTML it is `page`.

    Raises:
        SlimdownError: the file cannot be written.
    """
    try:
        _put(table, page, format, output)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _put(table: Table, page: Callable[[], str], format: str, output: Path | None) -> None:
    if format == "table" and not output:
        return show(
            table, Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
        )
    text = page() if format == "html" else write(table, format)
    if not output:
        sys.stdout.write(text)
        return
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SlimdownError(
            f"--output {output} cannot be written: {error.strerror}; choose another file"
        ) from None
    sys.stderr.write(f"wrote {output}\n")
