"""A training kept on disk as it goes: the trainer's own checkpoints, used whole or not at all. Imports no torch."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from slimdown.utils import distributed as processes
from slimdown.utils.digests import file_digest
from slimdown.utils.disk import Interim, whole_file

_MARK = "whole.json"  # written last: a checkpoint without it was cut short


@dataclass(frozen=True)
class Checkpoint:
    """A training as it was after a step."""

    folder: Path
    step: int
    of: int
    seconds: float  # that it had taken until then

    @property
    def history(self) -> list[dict[str, float]]:
        """What the trainer said after each step until then."""
        said = json.loads((self.folder / "trainer_state.json").read_text())["log_history"]
        numbers = [
            {k: v for k, v in one.items() if k != "step" and isinstance(v, (int, float))}
            for one in said
        ]
        return [
            {key: float(value) for key, value in one.items()} for one in numbers if "loss" in one
        ]


def last_checkpoint(interim: Interim, dtype: str = "") -> Checkpoint | None:
    """The last one that is whole; of one that is there and cannot be used a line is told.

    Args:
        interim: where they are kept.
        dtype: of the model that goes on, which on another machine may be another; empty: any.
    """
    told = ""
    for folder in sorted(interim.folder.glob("checkpoint-*"), key=_step, reverse=True):
        if not (folder / _MARK).is_file():
            continue
        try:
            mark = json.loads((folder / _MARK).read_text())
            wrong = [
                name
                for name, digest in mark["files"].items()
                if file_digest(folder / name) != digest
            ]
            if wrong:
                told = told or f"{wrong[0]} is damaged"
            elif mark["run"] != interim.folder.name:
                told = told or "it is of another run"
            elif dtype and mark["dtype"] != dtype:
                told = told or f"it was computed in {mark['dtype']}, and here the model is {dtype}"
            else:
                return Checkpoint(
                    folder, int(mark["step"]), int(mark["of"]), float(mark["seconds"])
                )
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            told = told or f"{type(error).__name__}: {error}"
    if told:
        interim.tell(
            f"training starts from the beginning: its checkpoint in {interim.folder} cannot be used ({told})"
        )
    return None


def agreed_checkpoint(interim: Interim, dtype: str) -> Checkpoint | None:
    """`last_checkpoint` of the first process, in all of them; None where one of them does not see its folder."""
    found = processes.from_first(last_checkpoint(interim, dtype) if processes.is_first() else None)
    return found if all(processes.gathered(found is not None and found.folder.is_dir())) else None


class Keeping:
    """Keeps what a trainer has after a step, where the last time is long enough ago.

    Of several processes the first decides when, and keeps what they have in common; each keeps its generators.
    """

    def __init__(self, trainer: Any, interim: Interim, before: Checkpoint | None) -> None:
        """Keep nothing yet; `before` is where the training goes on from."""
        trainer.args.output_dir = str(interim.folder)
        trainer.save_model = self._save_weights
        self._trainer, self._interim, self._is_long = trainer, interim, before is not None
        self._seconds = before.seconds if before else 0.0
        self._began = self._kept = time.monotonic()

    def after_step(self, step: int, of: int) -> None:
        """Keep a checkpoint where it is time, and in a training that has one also after the last step.

        One that cannot be written leaves the one before, and the training goes on.
        """
        seconds = self._interim.seconds
        is_due = seconds < inf and processes.from_first(time.monotonic() - self._kept >= seconds)
        if not is_due and not (self._is_long and step == of):
            return
        folder, useless = self._interim.folder / f"checkpoint-{step}", []
        self._delete([folder])  # one that was cut short
        processes.from_first(None)  # before any writes
        problems = processes.gathered(_problem(self._write))
        if processes.is_first() and not any(problems):
            problems = [_problem(lambda: self._mark(folder, step, of))]
        if problem := processes.from_first(next(filter(None, problems), "")):
            self._interim.tell(
                f"no checkpoint is kept of step {step} in {self._interim.folder} ({problem})"
            )
            useless = [folder]
        else:
            self._is_long = True
            useless = [
                other for other in self._interim.folder.glob("checkpoint-*") if other != folder
            ]
        self._delete(useless)
        self._kept = time.monotonic()

    def _delete(self, folders: list[Path]) -> None:
        for folder in folders if processes.is_first() else []:
            shutil.rmtree(folder, ignore_errors=True)

    def _write(self) -> None:
        import transformers

        transformers.Trainer._save_checkpoint(
            self._trainer, self._trainer.model, None
        )  # past TRL's, which adds a card

    def _mark(self, folder: Path, step: int, of: int) -> None:
        if len(list(folder.glob("rng_state*.pth"))) < processes.count():
            raise OSError("the processes of this run share no folder")
        digests = {}
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            digests[str(file.relative_to(folder))] = file_digest(file)
            with file.open("rb") as written:
                os.fsync(written.fileno())  # before the one before is deleted
        seconds = self._seconds + time.monotonic() - self._began
        mark = {
            "run": self._interim.folder.name,
            "step": step,
            "of": of,
            "seconds": seconds,
            "files": digests,
        }
        mark["dtype"] = dtype_of(self._trainer.model)
        with whole_file(folder / _MARK) as marking:
            marking.write(json.dumps(mark).encode())
            marking.flush()
            os.fsync(marking.fileno())

    def _save_weights(self, folder: str, _internal_call: bool) -> None:
        # Not as published files call them (a mixture's experts one by one, GPT-NeoX's head embed_out): the trainer
        # (transformers 5.24) passes over names that the model does not have, and says nothing.
        if processes.is_first():
            self._trainer.model.save_pretrained(folder, save_original_format=False)


def _problem(write: Callable[[], None]) -> str:
    """What keeps this from being written; empty where it is."""
    try:
        write()
    except Exception as error:  # of the system, of torch, of safetensors
        return str(error) or type(error).__name__
    return ""


def dtype_of(model: Any) -> str:
    """What a model computes in: an adapter's base, or all of a model whose own weights are trained."""
    return str(model.dtype).removeprefix("torch.")


def _step(folder: Path) -> int:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1
