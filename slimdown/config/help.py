"""What `slimdown run --help` and docs/settings.md say of groups and settings."""

import re
from dataclasses import dataclass
from enum import Enum, EnumMeta
from functools import cache
from pathlib import Path
from textwrap import wrap
from types import NoneType
from typing import Any, get_args

from omegaconf import OmegaConf

from slimdown.config.fields import MISSING, Setting, list_settings
from slimdown.config.loader import compose_defaults
from slimdown.config.paths import CONF_DIR, list_group_choices
from slimdown.config.schema import RunConfig
from slimdown.config.tracking_config import DEFAULT_STORE
from slimdown.utils.extensions import list_added_choices

_WIDTH, _MOST_LINES = 80, 99
_GROUPS = {
    "model": "the base model: OWNER/NAME of the hub, a folder, or",
    "quantization": "precision of the base weights:",
    "dataset": "the rows to train on, a list: rows.jsonl, or",
    "method": "how to train:",
    "lora": "which layers get a LoRA:",
    "keep": "how to forget less:",
    "train": "length, batch size, learning rate:",
    "benchmark": "what is measured, a list: any task of lm-eval, my.jsonl, or",
    "suite": "a set of benchmarks:",
    "experiment": "prepared settings:",
}
_MOST_CHANGED = (
    "tuned", "dataset.<name>.max_examples", "train.num_train_epochs", "train.max_steps",
    "train.learning_rate", "train.per_device_train_batch_size", "train.max_length", "lora.r",
    "benchmark.<name>.limit", "benchmark.<name>.max_loss", "evaluation.limit", "evaluation.until",
    "evaluation.holdout",
    "tracking.experiment", "seed", "name", "note", "rerun",
)  # fmt: skip
_TITLE = """\
slimdown run: fine-tune a small model, and measure what it learned and forgot.

  slimdown run [GROUP=CHOICE ...] [SETTING=VALUE ...]       one run
  slimdown run -m SETTING=VALUE1,VALUE2 ...                 every combination
  slimdown run ... --plan                                   its plan and time
"""
_EXAMPLES = """\
Examples
  slimdown run                                    the pocket world, no download
  slimdown run model=smollm2 dataset=rows.jsonl benchmark=gsm8k,piqa
  slimdown run model=Qwen/Qwen2.5-0.5B suite=quick benchmark.gsm8k.max_loss=2%
  slimdown run tuned=you/yours suite=quick        what a tuned model forgot
  slimdown run -m model=llama32,tinyllama lora.r=8,16 name=ranks
  slimdown run --cfg job model=smollm2            show the settings, run nothing
"""
_MORE = "slimdown run --help all    every group, choice, setting and default\n"
_FLAGS = f"""\
  train.args.NAME=...  lora.args.NAME=...  model.args.NAME=...
      any other option of TRL's SFTConfig, PEFT's LoraConfig, from_pretrained

Flags
  -m                    a sweep: several values of a setting make several runs
  --plan, --plan=try    show what the run does and how long it takes; `try` runs
                        one batch of each kind of work to measure the time
  --config-dir FOLDER   your own group files: FOLDER/dataset/mine.yaml, ...
  --cfg job             show the composed settings, run nothing
  --hydra-help          show the other options, which are Hydra's

{_EXAMPLES}
If the package `kernels` is installed, bitsandbytes downloads compiled code from
the hub and runs it. To prevent this, uninstall `kernels`.
"""


@dataclass(frozen=True)
class SettingHelp:
    """What is said of a setting.

    Attributes:
        key: Its dotted key.
        default: Its value with a model of the hub, as it is typed; empty where it has none.
        text: What it sets.
        choices: The values that it may have; empty where the text says them.
    """

    key: str
    default: str
    text: str
    choices: str

    @property
    def whole_text(self) -> str:
        """What it sets, and the values that it may have."""
        return f"{self.text}; {self.choices}" if self.choices else self.text


@cache
def describe_settings() -> tuple[SettingHelp, ...]:
    """Describe every setting, in the order of the schema."""
    composed, described = compose_defaults(), []
    for key, setting in list_settings(RunConfig).items():
        if not setting.help:
            continue  # a section
        value = setting.default if "<name>" in key else OmegaConf.select(composed, key)
        if key == "tracking.uri":
            value = DEFAULT_STORE  # the environment may name another, with a password
        is_unset = value == MISSING or (value is None and NoneType not in get_args(setting.type))
        default = "" if is_unset else _write_value(value)
        described.append(SettingHelp(key, default, setting.help, _describe_choices(setting)))
    return tuple(described)


def write_help(is_whole: bool = False, folders: tuple[Path, ...] = (CONF_DIR,)) -> str:
    """Write what `--help` shows.

    Args:
        is_whole: Whether to write all choices and settings. Otherwise the text fits one screen.
        folders: Folders such as `conf/`, whose subfolders hold a file for each choice of a group.
    """
    lines = [_TITLE, "Groups and their choices"]
    for group, text in _GROUPS.items():
        names = {*list_group_choices(group, folders), *list_added_choices(group)}
        choices = sorted(names - {"any"})  # model=any stands for a model that has no file
        n_lines = 2 if group == "model" else 1
        if is_whole:
            n_lines = _MOST_LINES
        lines += _write_entry(group, f"{text} {', '.join(choices)}", width=14, n_lines=n_lines)
    lines += ["", "Settings" if is_whole else "Settings that people change most often"]
    for setting in describe_settings():
        name = f"{setting.key}={setting.default}"
        if is_whole:
            lines += _write_entry(name, setting.whole_text, width=36, n_lines=_MOST_LINES)
        elif setting.key in _MOST_CHANGED:
            fits = len(setting.text) <= _WIDTH - 39  # 36 for the name, 3 for the spaces around it
            text = setting.text if fits else setting.text.partition(";")[0]
            lines += _write_entry(name, text, width=36, n_lines=1)
    end = _FLAGS if is_whole else f"\n{_EXAMPLES}\n{_MORE}"
    return "\n".join([*lines, end])


def write_table() -> str:
    """Write the table of docs/settings.md, in Markdown."""
    rows = ["| setting | default | |", "|---|---|---|"]
    for setting in describe_settings():
        default = f"`{setting.default}`" if setting.default else ""
        rows.append(f"| `{setting.key}` | {default} | {setting.whole_text} |")
    return "\n".join(rows)


def _write_entry(name: str, text: str, width: int, n_lines: int) -> list[str]:
    """Write a name and what it is; what finds no room in the lines is cut."""
    wrapped = wrap(
        text, _WIDTH - width - 3, max_lines=n_lines, placeholder=" ...", break_on_hyphens=False
    )
    if len(name) > width:  # it has a line of its own
        wrapped = ["", *wrapped]
    indent = " " * (width + 3)
    first, *others = wrapped
    return [f"  {name:<{width}} {first}".rstrip(), *(f"{indent}{line}" for line in others)]


def _write_value(value: Any) -> str:
    """Write a value as it is typed."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    if isinstance(value, list):
        return f"[{','.join(map(_write_value, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value.value if isinstance(value, Enum) else value)


def _describe_choices(setting: Setting) -> str:
    """Say which values a setting may have: names, true or false, or a range."""
    for kind in (setting.type, *get_args(setting.type)):
        if isinstance(kind, EnumMeta):
            names = list(map(str, kind))  # the members of a StrEnum are its values
            is_said = all(name in setting.help for name in names)
            return "" if is_said else f"one of {', '.join(names)}"
    if setting.allowed:
        return re.sub("^must (be |have )?", "", setting.allowed.demand).replace("not be", "not")
    return "true or false" if setting.type is bool else ""
