"""What the jobs of a sweep set otherwise than each other."""

import itertools
import re
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override

from slimdown.guarding.redaction import redact
from slimdown.settings.files import group_choices


def swept_keys(overrides: list[str]) -> tuple[str, ...]:
    """The settings that have several values."""
    return tuple(_key(override) for override in _swept(overrides))


def planned_jobs(overrides: list[str], folders: tuple[Path, ...]) -> list[str]:
    """For each job, in Hydra's order, what it sets that others set otherwise; secrets blanked.

    >>> planned_jobs(["lora.r=4,8", "seed=range(0,2)", "model=pocket"], ())
    ['lora.r=4 seed=0', 'lora.r=4 seed=1', 'lora.r=8 seed=0', 'lora.r=8 seed=1']
    """
    swept = [
        [f"{_key(override)}={value}" for value in swept_values(override, folders)] for override in _swept(overrides)
    ]
    return [
        redact(re.sub(r"\\(.)", r"\1", " ".join(job))) for job in itertools.product(*swept)
    ]  # Hydra escapes a colon


def swept_values(override: Override, folders: tuple[Path, ...]) -> list[str]:
    """What a sweep gives a setting, one after the other; `folders` are where group files are looked for."""
    sweep = override.value()
    if isinstance(sweep, Glob):
        return sweep.filter(group_choices(override.key_or_group, folders))
    return list(override.sweep_string_iterator())


def _swept(overrides: list[str]) -> list[Override]:
    parsed = OverridesParser.create().parse_overrides(overrides)
    return [override for override in parsed if override.is_sweep_override()]


def _key(override: Override) -> str:
    return override.get_key_element().lstrip("+~")
