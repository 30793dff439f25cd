"""Every recorded name stands in the reference."""

import re
from pathlib import Path

from mlflow import MlflowClient
from record_builders import Compose, record_run

from slimdown.tracking.metrics_and_tags import Tag


def test_every_recorded_name_is_in_the_reference(store: MlflowClient, composed: Compose) -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    explained = set(re.findall(r"^\| `(.*?)` \|", page, re.MULTILINE))
    names = {f"{tag}{{benchmark}}" if tag.endswith("/") else str(tag) for tag in Tag}
    assert names <= explained
    run = store.get_run(record_run(composed(), "one", run_key="a" * 32)).data
    for name in [*run.metrics, *(name for name in run.params if "/" in name)]:
        kinds = {re.sub("/.*", f"/{{{kind}}}", name) for kind in ("benchmark", "measure")}
        assert {name, *kinds} & explained, name
    assert {tag for tag in run.tags if tag.startswith("slimdown.")} <= explained
    assert "cs ↓" in run.tags["slimdown.verdict"]
    assert "pocket_cs -44.0 forgotten" in run.tags[Tag.headline]
