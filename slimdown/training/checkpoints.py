"""A training kept on disk as it goes: the trainer's own checkpoints, used whole or not at all. Imports no torch."""

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimdown.guarding.disk import Interim, whole_file
from slimdown.preparing.digests import file_digest

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
        numbers = [{k: v for k, v in one.items() if k != "step" and isinstance(v, (int, float))} for one in said]
        return [{key: float(value) for key, value in one.items()} for one in numbers if "loss" in one]


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
            wrong = [name for name, digest in mark["files"].items() if file_digest(folder / name) != digest]
            if wrong:
                told = told or f"{wrong[0]} is damaged"
            elif mark["run"] != interim.folder.name:
                told = told or "it is of another run"
            elif dtype and mark["dtype"] != dtype:
                told = told or f"it was computed in {mark['dtype']}, and here the model is {dtype}"
            else:
                return Checkpoint(folder, int(mark["step"]), int(mark["of"]), float(mark["seconds"]))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            told = told or f"{type(error).__name__}: {error}"
    if told:
        interim.tell(f"training starts from the beginning: its checkpoint in {interim.folder} cannot be used ({told})")
    return None


class Keeping:
    """Keeps what a trainer has after a step, where the last time is long enough ago."""

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
        is_due = time.monotonic() - self._kept >= self._interim.seconds
        if not is_due and not (self._is_long and step == of):
            return
        folder = self._interim.folder / f"checkpoint-{step}"
        try:
            self._write(folder, step, of)
        except Exception as error:  # of the system, of torch, of safetensors
            shutil.rmtree(folder, ignore_errors=True)
            self._interim.tell(f"no checkpoint is kept of step {step} in {self._interim.folder} ({error})")
        else:
            self._is_long = True
            for other in self._interim.folder.glob("checkpoint-*"):
                if other != folder:
                    shutil.rmtree(other, ignore_errors=True)
        self._kept = time.monotonic()

    def _write(self, folder: Path, step: int, of: int) -> None:
        import transformers

        shutil.rmtree(folder, ignore_errors=True)  # one that was cut short
        transformers.Trainer._save_checkpoint(self._trainer, self._trainer.model, None)  # past TRL's, which adds a card
        digests = {}
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            digests[str(file.relative_to(folder))] = file_digest(file)
            with file.open("rb") as written:
                os.fsync(written.fileno())  # before the one before is deleted
        seconds = self._seconds + time.monotonic() - self._began
        mark = {"run": self._interim.folder.name, "step": step, "of": of, "seconds": seconds, "files": digests}
        mark["dtype"] = dtype_of(self._trainer.model)
        with whole_file(folder / _MARK) as marking:
            marking.write(json.dumps(mark).encode())
            marking.flush()
            os.fsync(marking.fileno())

    def _save_weights(self, folder: str, _internal_call: bool) -> None:
        # Not as published files call them (a mixture's experts one by one, GPT-NeoX's head embed_out): the trainer
        # (transformers 5.24) passes over names that the model does not have, and says nothing.
        self._trainer.model.save_pretrained(folder, save_original_format=False)


def dtype_of(model: Any) -> str:
    """What a model computes in: an adapter's base, or all of a model whose own weights are trained."""
    return str(model.dtype).removeprefix("torch.")


def _step(folder: Path) -> int:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1
