"""Train with Unsloth in a process of its own, since importing it changes transformers, PEFT and TRL.

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
        weights: A hash of the base's weights as they are quantized here.
        callback: A `TrainingCallback`, given every step.

    Returns:
        Seconds that the steps took.

    Raises:
        ModelError: Unsloth cannot train it, or holds other weights than those that are measured.
    """
    import peft
    from huggingface_hub import try_to_load_from_cache
    from safetensors.torch import load_file

    folder_of_base = (
        ModelConfig(id=base.id).folder
        or Path(str(try_to_load_from_cache(base.id, "config.json", revision=base.revision))).parent
    )
    with tempfile.TemporaryDirectory(prefix="slimdown-unsloth-") as folder:
        # No hub, no statistics about its users, no folder of compiled files in the working folder.
        variables = {
            "HF_HUB_OFFLINE": "1",
            "UNSLOTH_DISABLE_STATISTICS": "1",
            "UNSLOTH_COMPILE_LOCATION": f"{folder}/compiled",
            **({"UNSLOTH_FORCE_CPU": "1"} if base.device == "cpu" else {}),
        }
        job = {
            "base": base.id,
            "source": str(folder_of_base.absolute()),
            "weights": weights,
            "dtype": base.dtype,
            "in_4bit": base.quantization == "nf4",
            "tokenizer": base.tokenizer,
            "rows": rows,
            "config": config,
            "folder": Path(folder),
        }
        log = Path(folder, "log")
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "slimdown.training.unsloth_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | variables,
            )
        assert process.stdin and process.stdout
        seconds = None
        try:
            process.stdin.write(pickle.dumps(job))
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
        if seconds is None:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise ModelError(
                f"the process in which Unsloth trains {base.id} ended ({' '.join(last)[:200]})"
            )
        state = load_file(Path(folder, "adapter", "adapter_model.safetensors"))
        peft.set_peft_model_state_dict(model, state)
        return float(seconds)
