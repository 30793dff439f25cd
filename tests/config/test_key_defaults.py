"""Keys leave defaults out, so a default changes only with a version in the keys."""

import json
from pathlib import Path

import pytest
from golden import key_defaults
from golden.key_defaults import check_defaults, read_key_defaults
from record_builders import Compose, Patch

from slimdown.config.naming import drop_defaults, flatten, read_defaults

STORED = json.loads((Path(__file__).parents[1] / "golden" / "key_defaults.json").read_text())


def test_no_default_has_changed_without_a_version() -> None:
    assert check_defaults(STORED) == ""
    # A new setting is stored by: tests/golden/make_record.py --defaults
    assert read_key_defaults() == STORED


@pytest.mark.parametrize("key", ["train.look_steps", "benchmark.<name>.margin", "tuned"])
def test_a_changed_default_is_named_until_a_version_is_raised(key: str, monkeypatch: Patch) -> None:
    before = {**STORED, "defaults": STORED["defaults"] | {key: "another"}}
    assert f"the default of {key} has changed" in check_defaults(before)
    monkeypatch.setattr(key_defaults, "TRAINING_VERSION", 99)
    assert check_defaults(before) == ""


def test_a_key_holds_what_differs_from_its_default_and_what_has_none(composed: Compose) -> None:
    changed = {"train.look_steps": 51, "benchmark.pocket_cs.margin": 0.03}
    config = composed(*(f"{key}={value}" for key, value in changed.items()))
    held, whole = flatten(config, without_defaults=True), flatten(config)
    assert held.items() >= changed.items()
    assert {key: whole[key] for key in held} == held
    defaults = STORED["defaults"]
    for key in whole.keys() - held.keys():
        parts = key.split(".")
        if parts[0] in ("dataset", "benchmark"):
            parts[1] = "<name>"
        assert whole[key] == defaults[".".join(parts)], key
    assert "benchmark.pocket_cs.role" not in held
    assert {"seed", "lora.r", "train.learning_rate", "benchmark.pocket_cs.task"} <= held.keys()


def test_a_setting_that_comes_changes_no_key(composed: Compose, monkeypatch: Patch) -> None:
    config = composed()
    before = flatten(config, without_defaults=True)
    defaults = read_defaults()
    longer = defaults | {"train": defaults["train"] | {"new": 3}}
    monkeypatch.setattr("slimdown.config.naming.read_defaults", lambda: longer)
    assert flatten(config, without_defaults=True) == before
    assert drop_defaults({"train": {"new": 3, "seed": 4}}) == {"train": {"seed": 4}}
    assert drop_defaults({"train": {"new": 4}}) == {"train": {"new": 4}}
