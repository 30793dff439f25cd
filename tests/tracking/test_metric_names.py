"""Every recorded name stands in the reference."""

import re
from collections.abc import Callable
from pathlib import Path

from mlflow import MlflowClient
from record_builders import record_run

from slimdown.config.schema import RunConfig
from slimdown.tracking.metric_names import METRICS, Tag, render_reference


def test_every_recorded_name_is_in_the_reference(
    store: MlflowClient, composed: Callable[..., RunConfig]
) -> None:
    run = store.get_run(record_run(composed(), "one", run_key="a" * 32)).data
    for name in run.metrics:
        assert name in METRICS or re.sub("^[^/]*/", "{benchmark}/", name) in METRICS, name
    own = {tag for tag in run.tags if tag.startswith("slimdown.")}
    assert own <= {str(tag) for tag in Tag}
    assert "pocket_cs -44.0 forgotten" in run.tags[Tag.headline]


def test_the_reference_is_printed_by_its_command() -> None:
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert page.read_text() == render_reference() + "\n"
