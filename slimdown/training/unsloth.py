"""Train with Unsloth in a process of its own: importing it changes transformers, PEFT and TRL.

Base and tuned model are measured by the libraries as they are; what comes back is an adapter.
"""

import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from slimdown.config.schema import ModelConfig, RunConfig
from slimdown.models.base_model import LoadedModel
from slimdown.training.tokenizing import TokenizedRows
from slimdown.utils.errors import ModelError


def train_with_unsloth(
    base: LoadedModel,
    model: Any,
    rows: TokenizedRows,
    config: RunConfig,
    weights: str,
    callback: Any,
) -> float:
    """Train the LoRA that lies on a base; it has the trained values on return.

    Args:
        base: The model as it was loaded.
        model: PEFT's around it.
        rows: Tokenized and cut.
        config: The checked settings.
        weights: The hash of the base's weights, quantized as they are.
        callback: A `TrainingCallback`, given every step.

    Returns:
        Seconds that the steps took.

    Raises:
        ModelError: Unsloth cannot train it, or holds other weights than those that are measured.
    """
    import peft
    from huggingface_hub import try_to_load_from_cache
    from safetensors.torch import load_file

    source = (
        ModelConfig(id=base.id).folder
        or Path(str(try_to_load_from_cache(base.id, "config.json", revision=base.revision))).parent
    )
    with tempfile.TemporaryDirectory(prefix="slimdown-unsloth-") as folder:
        # No hub, no statistics about its users, no folder of compiled files in the working folder.
        variables = {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}
        variables["UNSLOTH_COMPILE_LOCATION"] = f"{folder}/compiled"
        variables |= {"UNSLOTH_FORCE_CPU": "1"} if base.device == "cpu" else {}
        with Path(folder, "log").open("w+b") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "slimdown.training.unsloth_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | variables,
            )
            assert process.stdin and process.stdout
            seconds = None
            try:
                job = (str(source.absolute()), base.dtype, weights, base.tokenizer, rows, config)
                pickle.dump((*job, folder), process.stdin)
                process.stdin.close()
                for line in process.stdout:
                    answer = json.loads(line)
                    if "error" in answer:
                        raise ModelError(answer["error"])
                    seconds = answer.get("seconds")
                    if "step" in answer:
                        callback.log_step(answer["step"], answer["of"], answer["values"])
            except BrokenPipeError:  # it ended before it read the job
                pass
            finally:
                process.kill()
                process.wait()
            log.seek(0)
            last = log.read().decode(errors="replace").strip().splitlines()[-1:]
        if seconds is None:
            raise ModelError(f"the process in which Unsloth trains {base.id} ended: {last}")
        state = load_file(Path(folder, "adapter", "adapter_model.safetensors"))
        peft.set_peft_model_state_dict(model, state)
        return float(seconds)
