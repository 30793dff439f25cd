"""The tables of what can train and of what can generate answers, and the properties of each.

To add one, write a row here and its module. Nothing else names it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import Any

# Whose trainer takes the steps: TRL's, or Unsloth's in a process of its own.
Engine = StrEnum("Engine", "trl unsloth")
# What generates answers, alike for base and tuned model: transformers, or vLLM in a process of its
# own. Likelihoods are always computed by slimdown.
Backend = StrEnum("Backend", "hf vllm")


@dataclass(frozen=True)
class EngineFacts:
    """The properties of a library that trains, or that generates answers.

    Attributes:
        module: Its functions are called by name; empty: slimdown's own code does it. Each has
            `find_problems(config)`, which imports no torch. A backend has `check_tuned(config)`
            and `open_generator(model, count_longest)`; an engine has
            `train(base, model, rows, config, callback)`.
        extra: The extra of slimdown that installs it.
        packages: Its packages. Their versions are in the key and the record of a run.
        takes_processes: Whether several processes can share its work.
        needs_gpu: Whether it needs a GPU of NVIDIA's.
        keeps_base: Whether the base stays beside an adapter that is trained.
        skips_steps: Whether its trainer skips a step in float16 whose gradient is too large.
        refuses_options: Why options of model and adapter do not reach it; empty: they do.
    """

    module: str = ""
    extra: str = ""
    packages: tuple[str, ...] = ()
    takes_processes: bool = True
    needs_gpu: bool = False
    keeps_base: bool = True
    skips_steps: bool = False
    refuses_options: str = ""

    def find_function(self, name: str) -> Callable[..., Any]:
        """Return a function of its module."""
        function: Callable[..., Any] = getattr(import_module(self.module), name)
        return function


ENGINES: dict[Engine, EngineFacts] = {
    Engine.trl: EngineFacts(),
    Engine.unsloth: EngineFacts(
        module="slimdown.training.unsloth",
        extra="unsloth",
        packages=("unsloth",),
        takes_processes=False,
        keeps_base=False,
        skips_steps=True,
        refuses_options="Unsloth uses its own model, adapter and trainer",
    ),
}
BACKENDS: dict[Backend, EngineFacts] = {
    Backend.hf: EngineFacts(),
    Backend.vllm: EngineFacts(
        module="slimdown.evaluation.vllm_backend",
        extra="vllm",
        packages=("vllm", "vllm-bnb-plugin"),
        takes_processes=False,
        needs_gpu=True,
        refuses_options="vLLM loads the model by itself, and only with a plain LoRA",
    ),
}


def list_engines() -> Iterator[tuple[str, EngineFacts]]:
    """Yield each row of both tables under the setting that chooses it."""
    tables: list[tuple[str, Mapping[Any, EngineFacts]]] = [
        ("train.engine", ENGINES),
        ("evaluation.backend", BACKENDS),
    ]
    for setting, table in tables:
        for name, facts in table.items():
            yield f"{setting}={name}", facts
