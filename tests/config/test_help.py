"""`run --help` fits one screen, `--help all` and docs/settings.md hold every setting."""

import re
import shlex
from pathlib import Path

import pytest
from record_builders import Capture, Compose, Patch

from slimdown.commands import run_command_line as runs
from slimdown.config.fields import find_setting, list_settings
from slimdown.config.help import describe_settings, write_help, write_table
from slimdown.config.mitigation import list_mitigations
from slimdown.config.naming import flatten
from slimdown.config.paths import CONF_DIR, list_group_choices
from slimdown.config.schema import RunConfig
from slimdown.sweep.command_line import compose_runs, read_command_line
from tools.list_settings import on_page_markdown


@pytest.mark.parametrize("is_whole", [False, True])
def test_help_is_80_columns_wide_and_the_short_one_fits_a_screen(is_whole: bool) -> None:
    lines = write_help(is_whole).splitlines()
    assert max(map(len, lines)) <= 80
    assert is_whole or len(lines) <= 50


def test_the_whole_help_and_the_page_hold_every_setting_choice_and_default() -> None:
    described = {setting.key: setting for setting in describe_settings()}
    assert [*described] == [
        key for key, setting in list_settings(RunConfig).items() if setting.help
    ]
    text, page = " ".join(write_help(is_whole=True).split()), on_page_markdown("{{ settings }}")
    assert page == write_table()
    for key, setting in described.items():
        assert f" {key}={setting.default} {setting.whole_text}" in text
        assert f"| `{key}` | " in page
    for group in ("model", "dataset", "method", "keep", "benchmark", "suite", "experiment"):
        for choice in list_group_choices(group):
            assert re.search(rf"[ ,]{re.escape(choice)}[, ]", text) or choice == "any"
    assert described["keep.name"].choices == f"one of {', '.join(list_mitigations())}"
    assert described["lora.r"].choices == "at least 1"
    assert described["rerun"].choices == "true or false"


def test_the_defaults_are_those_of_a_run_and_can_be_typed(composed: Compose) -> None:
    model = ["model=any", "model.id=me/base", "quantization=nf4"]
    plain = flatten(composed(*model))
    typed = [
        f"{setting.key}={setting.default}"
        for setting in describe_settings()
        if setting.default not in ("", "null") and "<name>" not in setting.key
    ]
    typed = [text for text in typed if not text.startswith("quantization.")]
    assert len(typed) > 40
    assert flatten(composed(*model, *typed)) == plain


def test_the_help_shows_no_password_of_the_environment(monkeypatch: Patch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host")
    describe_settings.cache_clear()
    assert "secret" not in write_help(is_whole=True)


def test_each_example_and_line_of_the_help_can_be_typed(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    text = write_help()
    below = text.partition("Examples")[2]
    examples = re.findall(r"^  slimdown run (\S.*?)(?:   .*)?$", below, re.MULTILINE)
    assert len(examples) >= 4
    for example in examples:
        line = read_command_line(shlex.split(example))
        assert not line.is_run or "you/yours" in example or compose_runs(line).runs
    keys = re.findall(r"^  ([\w.<>]+)=", text, re.M)
    assert len(keys) > 10
    assert all(find_setting(key.replace("<name>", "one"), RunConfig) for key in keys)


@pytest.mark.parametrize(
    "arguments", ["--help", "-h", "lora.r=4 --help", "--help all", "--help=all"]
)
def test_help_is_shown(arguments: str, capsys: Capture) -> None:
    assert runs.start(arguments.split()) == 0
    assert capsys.readouterr().out == write_help(is_whole=arguments.endswith("all"))


def test_choices_of_your_own_are_listed(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite/mine.yaml").write_text("# @package _global_\n")
    assert runs.start(["--help", "all", "--config-dir", str(tmp_path)]) == 0
    assert "mine, quick" in " ".join(capsys.readouterr().out.split())
    assert "mine" not in list_group_choices("suite", (CONF_DIR,))
