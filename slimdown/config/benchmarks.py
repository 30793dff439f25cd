"""Benchmarks by name -> their settings: those of `conf/benchmark/`, or any task of the harness."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from difflib import get_close_matches
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from slimdown.config.files import CONF_DIR, group_choices
from slimdown.config.keys import problems_of, setting_problem
from slimdown.config.schema import BenchmarkConfig
from slimdown.config.task_files import task_problem
from slimdown.utils.errors import ConfigError, SlimdownError

Named = str | Mapping[str, Any] | BenchmarkConfig
"""A benchmark: its name, or settings whose `task` names it and whose others go above its own."""


def read_benchmarks(named: Named | Iterable[Named], **settings: Any) -> dict[str, BenchmarkConfig]:
    """Settings by benchmark name; of a task of the harness, what is not given is missing.

    Args:
        named: one or several benchmarks.
        settings: of all of them, such as `limit`; None leaves each its own.

    Raises:
        SlimdownError: there is no such benchmark, no such setting, or no such value.
    """
    several = (
        list(named)
        if isinstance(named, Iterable) and not isinstance(named, str | Mapping)
        else [named]
    )
    if not several:
        raise SlimdownError(
            f"no benchmark is named; name some of {', '.join(group_choices('benchmark'))}, or a task"
        )
    over = {key: value for key, value in settings.items() if value is not None}
    chosen: dict[str, BenchmarkConfig] = {}
    for one in several:
        given = (
            {"task": one}
            if isinstance(one, str)
            else asdict(one)
            if isinstance(one, BenchmarkConfig)
            else one
        )
        name = given.get("task") if isinstance(given, Mapping) else None
        if not isinstance(name, str):
            raise SlimdownError(
                f"{one!r} names no benchmark; give a name, or settings such as {{'task': 'gsm8k'}}"
            )
        if name in chosen:
            raise SlimdownError(f"{name} is named twice; name it once")
        chosen[name] = _read(name, {**given, **over})
    return chosen


def _read(name: str, given: dict[str, Any]) -> BenchmarkConfig:
    if name in (known := group_choices("benchmark")):
        shipped = OmegaConf.load(CONF_DIR / "benchmark" / f"{name}.yaml")
        given = {**given, "task": shipped.task}
    elif problem := task_problem(name):
        close = " or ".join(get_close_matches(name, known, n=2))
        raise SlimdownError(
            f"{name}: "
            + (f"there is no such benchmark; did you mean {close}?" if close else problem)
        )
    else:
        shipped = OmegaConf.create()
    problems = [problem for key in given if (problem := setting_problem(key, BenchmarkConfig))]
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(BenchmarkConfig), shipped, {} if problems else given
        )
    except OmegaConfBaseException as error:
        raise ConfigError(f"{name}: {str(error).splitlines()[0]}") from None
    benchmark = BenchmarkConfig(**OmegaConf.to_container(merged))  # type: ignore[arg-type]
    if problems := problems or list(problems_of(benchmark)):
        raise ConfigError("\n".join(f"{name}: {problem}" for problem in problems))
    return benchmark
