"""Add to runs that are finished: files, the outcome of a gate, another name or note."""

import re
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import unquote, urlsplit

from slimdown.comparison.run_records import RunRecord
from slimdown.config.schema import RunConfig
from slimdown.config.tracking_config import TrackingConfig
from slimdown.report.formatting import escape_markdown
from slimdown.tracking import store
from slimdown.tracking.metrics_and_tags import DESCRIPTION, Tag
from slimdown.utils.secrets import redact_leaf

# A line that `record_outcome` wrote, such as "**PASSED: ...** (budgets)", and the empty line below.
_OUTCOME = re.compile(
    r"\A\*\*(PASSED|FAILED|CANNOT TELL)\b.*?\*\*(?: \((?P<budgets>[^\n]*)\))?\n\n"
)
_MOST_OUTCOMES = 5  # lines of gates in a run's description


def begin_scaling(tracking: TrackingConfig, run: RunRecord) -> None:
    """Mark that a run is scaled, and check that files can be added to it before hours are spent.

    Raises:
        TrackingError: The store or the run's folder takes nothing.
    """
    client = store.open_store(tracking, must_exist=True)
    place = urlsplit(run.artifact_uri)
    with store.explain_store_errors(tracking):
        client.set_tag(run.run_id, Tag.scaled, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}")
        if place.scheme in ("", "file"):
            tempfile.TemporaryFile(dir=unquote(place.path)).close()


def add_artifacts(tracking: TrackingConfig, run: RunRecord, files: Mapping[str, str]) -> None:
    """Add files to those of a recorded run.

    Args:
        tracking: The store.
        run: The run.
        files: Texts, by path among the run's artifacts.

    Raises:
        TrackingError: The store does not take them.
    """
    client = store.open_store(tracking, must_exist=True)
    with store.explain_store_errors(tracking):
        for path, content in files.items():
            client.log_text(run.run_id, content, path)


def record_outcome(tracking: TrackingConfig, run: RunRecord, outcome: str, budgets: str) -> None:
    """Put the outcome of a gate at the top of a run's description.

    There is a line for each set of budgets, in the order in which each set was first decided: a new
    outcome of the same budgets replaces the old one in its place. Only the last `_MOST_OUTCOMES`
    lines are kept. The text below these lines stays, as far as MLflow's limit for a tag allows.

    Args:
        tracking: The store.
        run: The run.
        outcome: The outcome in words.
        budgets: The budgets in words; a line with the same budgets is replaced.

    Raises:
        TrackingError: The store does not take it.
    """
    client = store.open_store(tracking, must_exist=True)
    with store.explain_store_errors(tracking):
        rest = client.get_run(run.run_id).data.tags.get(DESCRIPTION, "")
        lines_by_budgets = dict[str, str]()
        # Take the lines of earlier gates from the description's beginning.
        while found := _OUTCOME.match(rest):
            lines_by_budgets[found["budgets"]] = found[0]
            rest = rest[found.end() :]
        budgets = escape_markdown(budgets)
        lines_by_budgets[budgets] = f"**{escape_markdown(outcome)}** ({budgets})\n\n"
        text = "".join(list(lines_by_budgets.values())[-_MOST_OUTCOMES:]) + rest
        client.set_tag(run.run_id, DESCRIPTION, text[: store.MAX_TAG])


def rename_run(tracking: TrackingConfig, run: RunRecord, name: str, config: RunConfig) -> None:
    """Give a finished run a new name and a new note, if a repeated command sets them.

    They change in MLflow. The run's pages were written earlier and keep the old ones.

    Args:
        tracking: The store.
        run: The run. One without findings is left as it is.
        name: The new name in MLflow, without secrets. For a sweep's run it is `config.name` with
            the varied settings. It is used only if `config.name` is set.
        config: The settings of the repeated command. A name or a note that it does not set stays.

    Raises:
        TrackingError: The store does not take them.
    """
    given_name = config.name or run.given_name  # the setting alone, for the tag `Tag.name`
    note = run.note if config.note is None else config.note  # an empty note removes the old one
    shown_name = name if config.name else run.name
    is_unchanged = (shown_name, given_name, note) == (run.name, run.given_name, run.note)
    if is_unchanged or not run.findings:
        return
    client = store.open_store(tracking, must_exist=True)
    with store.explain_store_errors(tracking):
        for tag, text in ((Tag.name, given_name), (Tag.note, note)):
            client.set_tag(run.run_id, tag, redact_leaf(text)[: store.MAX_TAG])
        client.update_run(run.run_id, name=shown_name)
