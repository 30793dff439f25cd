"""Train with Unsloth in a process of its own, because importing it changes other libraries.

It changes transformers, PEFT and TRL. An adapter comes back, so base and tuned model are measured
by the unchanged libraries.
"""

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimdown.config.methods import list_methods
from slimdown.config.schema import RunConfig
from slimdown.utils.errors import ModelError
from slimdown.utils.extras import name_install
from slimdown.utils.hub import find_file

if TYPE_CHECKING:
    from slimdown.models.base_model import LoadedModel
    from slimdown.training.tokenizing import TokenizedRows


def find_problems(config: RunConfig) -> Iterator[str]:
    """Find why Unsloth cannot train: it is not installed, or does not train what is asked for."""
    if find_spec("unsloth") is None:  # looks for it and imports nothing
        yield f"train.engine=unsloth is not installed; {name_install('unsloth')}"
    is_able = config.method.facts.is_plain_lora and config.quantization.name in ("nf4", "none")
    if not is_able or "lm_head" in config.lora.target_modules:
        able = f"method={list_methods(lambda facts: facts.is_plain_lora)}"
        ability = f"{able} on quantization=nf4 or none, and no lm_head"
        yield f"train.engine=unsloth trains {ability}; set train.engine=trl"


def train(
    base: "LoadedModel", model: Any, rows: "TokenizedRows", config: RunConfig, callback: Any
) -> float:
    """Train the LoRA on a base; on return, it has the trained values.

    Args:
        base: The model as it was loaded.
        model: PEFT's model around it.
        rows: Tokenized and cut.
        config: The checked settings.
        callback: A `TrainingCallback`; it receives every step.

    Returns:
        Seconds that the steps took.

    Raises:
        ModelError: Unsloth cannot train it.
    """
    import peft
    from safetensors.torch import load_file

    place = str(config.model.folder or base.id)
    source = find_file(place, "config.json", base.revision).parent
    with tempfile.TemporaryDirectory(prefix="slimdown-unsloth-") as folder:
        padded = replace(rows, is_padding_free=False)
        job = (str(source.absolute()), base.dtype, base.tokenizer, padded, config)
        Path(folder, "job").write_bytes(pickle.dumps(job))
        variables = {
            "HF_HUB_OFFLINE": "1",
            "UNSLOTH_DISABLE_STATISTICS": "1",  # it would send statistics about users
            "UNSLOTH_COMPILE_LOCATION": f"{folder}/compiled",  # instead of the working folder
        }
        if base.device == "cpu":
            variables["UNSLOTH_FORCE_CPU"] = "1"
        command = [sys.executable, "-m", "slimdown.training.unsloth_process", folder]
        answer: dict[str, Any] = {}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | variables
        ) as process:
            try:
                for line in process.stdout or ():
                    answer = json.loads(line)
                    if "step" in answer:
                        callback.log_step(answer["step"], answer["of"], answer["logs"])
            finally:
                process.kill()
        if "seconds" not in answer:
            raise ModelError(answer.get("error", f"Unsloth's process ended: {process.returncode}"))
        state = load_file(Path(folder, "adapter", "adapter_model.safetensors"))
        peft.set_peft_model_state_dict(model, state)
        return float(answer["seconds"])
