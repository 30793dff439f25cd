"""Unsloth's `FastLanguageModel` under TRL's trainer, in a process of its own (`unsloth_process.py`).

Importing Unsloth changes transformers, PEFT and TRL, and only where it comes before them. Here it comes nowhere: base
and tuned model are measured by the libraries as they are, and what comes back is an adapter.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimdown.config.schema import ModelConfig, TrainConfig
from slimdown.models.model import LoadedModel
from slimdown.training.steps import Note, Steps
from slimdown.utils.disk import Interim
from slimdown.utils.errors import SlimdownError
from slimdown.utils.interruption import stop_if_interrupted

# No hub, no statistics about its users (which are an address on the hub that it fetches), no folder of compiled files
# where the command was typed.
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}


@dataclass(frozen=True)
class Job:
    """What the other process needs to know."""

    base: str  # what messages call it
    source: Path  # the folder that it was loaded from
    weights: str  # digest of them, as quantized
    dtype: str
    device: str
    in_4bit: bool
    tokenizer: Any
    adapter: dict[str, Any]  # arguments of `FastLanguageModel.get_peft_model`
    rows: Any
    config: TrainConfig
    seed: int
    folder: Path  # receives `adapter/`


class UnslothProcess:
    """A process that has loaded the base and stands ready to train; it ends with this object."""

    def __init__(
        self, base: LoadedModel, adapter: Any, rows: Any, config: TrainConfig, seed: int
    ) -> None:
        """Start it, and wait until it has loaded what it is to train: half a minute.

        Args:
            base: the model.
            adapter: PEFT's config of the adapter, a LoRA.
            rows: columns `input_ids` and `labels`.
            config: steps, batches, learning rate.
            seed: of the adapter's start and the order of the rows.

        Raises:
            SlimdownError: Unsloth cannot train it, or holds other weights than those that are measured.
        """
        self._base, self._folder = base, tempfile.TemporaryDirectory(prefix="slimdown-unsloth-")
        self._log = Path(self._folder.name, "log")
        elsewhere = {"UNSLOTH_COMPILE_LOCATION": str(Path(self._folder.name, "compiled"))}
        on_cpu = {"UNSLOTH_FORCE_CPU": "1"} if base.device == "cpu" else {}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "slimdown.training.unsloth_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | _ENVIRONMENT | elsewhere | on_cpu,
                start_new_session=True,  # Ctrl-C is for this process, which then ends the other
            )
        self._end = weakref.finalize(self, _end, self._process, self._folder)
        names = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora")
        job = Job(
            base=base.id,
            source=_folder_of(base),
            weights=base.identity["weights"],
            dtype=base.dtype,
            device=base.device,
            in_4bit=base.quantization == "nf4",
            tokenizer=base.tokenizer,
            adapter={name: getattr(adapter, name) for name in names},
            rows=rows,
            config=config,
            seed=seed,
            folder=Path(self._folder.name),
        )
        try:
            self._say(pickle.dumps(job))
            self._answer()
        except BaseException:
            self._end()
            raise

    def train(self, note: Note, interim: Interim | None = None) -> tuple[Any, Steps]:
        """PEFT's model around the base with the adapter that was trained on it, and what its steps came to.

        No checkpoint is kept in `interim`, which where a run goes on is told in a line.

        Raises:
            SlimdownError: training does not fit in memory, or Unsloth fails.
        """
        import peft

        if interim and interim.begun():
            interim.tell(
                "training starts from the beginning: with train.engine=unsloth no checkpoints are kept"
            )
        try:
            self._say(b"go\n")
            while "step" in (answer := self._answer()):
                stop_if_interrupted()  # no forward of a model is made here that would look
                note(answer["step"], answer["of"], answer["values"])
            adapter = Path(self._folder.name, "adapter")
            return peft.PeftModel.from_pretrained(
                self._base.model, str(adapter), is_trainable=True
            ), Steps(**answer)
        finally:
            self._end()

    def _say(self, message: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # its answer, or that there is none, says why
            self._process.stdin.write(message)
            self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise SlimdownError(self._why_it_ended())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SlimdownError(answer["error"])
        return answer

    def _why_it_ended(self) -> str:
        code = self._process.wait()
        how = (
            f"was ended by {signal.Signals(-code).name}"
            if code < 0
            else f"ended with exit code {code}"
        )
        memory = "; there may have been too little memory for it" if code == -signal.SIGKILL else ""
        said = self._log.read_text(errors="replace").strip().splitlines()[-1:]
        return f"the process in which Unsloth trains {self._base.id} {how}{memory} ({' '.join(said)[:200]})"


def _end(process: "subprocess.Popen[bytes]", folder: "tempfile.TemporaryDirectory[str]") -> None:
    with process, suppress(BrokenPipeError):  # which closes the pipes and waits
        process.kill()
    folder.cleanup()


def _folder_of(base: LoadedModel) -> Path:
    """Where its files lie: what was downloaded for this process is in the hub's cache for the other."""
    from huggingface_hub import try_to_load_from_cache

    local = ModelConfig(id=base.id).folder
    return (
        local
        or Path(str(try_to_load_from_cache(base.id, "config.json", revision=base.revision))).parent
    ).absolute()
