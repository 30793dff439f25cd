"""Generates answers with vLLM in a process of its own: its import changes torch and transformers.

The process ends with the evaluation, so that training finds the memory free.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import Pipe, get_context
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from slimdown.config.schema import MAX_VLLM_RANK, Backend, RunConfig
from slimdown.models.base_model import LoadedModel
from slimdown.models.external import fetch_tuned_model
from slimdown.models.memory import release_memory
from slimdown.models.tuned_base import read_adapter_config
from slimdown.utils.errors import ModelError, describe_error

# Adapter settings that vLLM reads or that no answer depends on; then what all others must be.
# fmt: off
_HARMLESS = frozenset([
    "auto_mapping", "base_model_name_or_path", "inference_mode", "lora_alpha", "lora_dropout",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "target_modules", "task_type",
    "use_rslora",
])
# fmt: on
_PLAIN = {"peft_type=LORA", "bias=none", "init_lora_weights=True"}
_PLAIN |= {f"r={rank + 1}" for rank in range(MAX_VLLM_RANK)}


def check_adapter(config: RunConfig) -> None:
    """Check, before anything is measured, that vLLM can answer with the adapter of `tuned`.

    Raises:
        ModelError: It cannot, or it is not known whether it does what PEFT does.
    """
    tuned = config.tuned_model
    if tuned and config.evaluation.backend is Backend.vllm:
        file = fetch_tuned_model(tuned) / "adapter_config.json"
        settings = read_adapter_config(file.parent).items() if file.is_file() else ()
        used = {f"{name}={value}" for name, value in settings if value and name not in _HARMLESS}
        if odd := sorted(used - _PLAIN, key=lambda one: ("peft_type" not in one, one)):
            raise ModelError(
                f"{tuned.named}: evaluation.backend=vllm takes a plain LoRA of rank "
                f"{MAX_VLLM_RANK} at most; found {odd[0]}; set evaluation.backend=hf"
            )


@contextmanager
def open_vllm(
    model: LoadedModel, count_longest: Callable[[], int]
) -> Iterator[Callable[[list[Any]], list[str]]]:
    """Yield a function that generates a model's answers; its process starts at the first question.

    Every model gets the same engine with room for a LoRA, so an adapter of zeros changes nothing.

    Args:
        model: Its files are read anew; the model itself stays where it is.
        count_longest: Returns the most tokens of a prompt and its answer, or 0: the model's window.
            It is called when the first question is asked.

    Raises:
        ModelError: vLLM would quantize the weights in another way, or cannot answer.
    """
    import torch
    from transformers import AutoConfig

    stored = str(AutoConfig.from_pretrained(model.files).dtype).removeprefix("torch.")
    has_experts = any(name.endswith("experts") for name, _ in model.model.named_modules())
    held = model.quantization, stored, model.dtype, has_experts
    if model.quantization != "none" and held != ("nf4", "bfloat16", "bfloat16", False):
        raise ModelError(
            f"evaluation.backend=vllm would quantize {model.id} otherwise than it is trained: that "
            f"takes nf4, bfloat16 and no experts; found {model.quantization} of weights in {stored}"
            f", computed in {model.dtype}{', and experts' * has_experts}; set evaluation.backend=hf"
        )
    with ExitStack() as stack:
        pipe: Any = None

        def generate(requests: list[Any]) -> list[str]:
            nonlocal pipe
            if pipe is None:
                folder = stack.enter_context(TemporaryDirectory(prefix="slimdown-vllm-"))
                model.tokenizer.save_pretrained(folder)
                release_memory()
                free, total = torch.cuda.mem_get_info()  # the model that is trained keeps its own
                settings: dict[str, Any] = {"pretrained": model.files, "tokenizer": folder}
                # vLLM makes room for one text of this length, beside the model that is resident.
                settings |= {"max_model_len": count_longest() or None}
                settings |= {"dtype": model.dtype, "gpu_memory_utilization": 0.85 * free / total}
                settings |= {"enable_lora": True, "max_lora_rank": MAX_VLLM_RANK}
                # With "auto", vLLM 0.32 shows a bar, and divides by zero under TQDM_DISABLE.
                settings |= {"lora_local_path": model.adapter or None, "batch_size": 512}
                if model.quantization != "none":
                    settings |= dict.fromkeys(("quantization", "load_format"), "bitsandbytes")
                pipe, theirs = Pipe()
                process = get_context("spawn").Process(target=_serve, args=(theirs, settings))
                process.start()
                theirs.close()
                stack.callback(process.kill)
                stack.callback(process.join, 10)
                stack.callback(pipe.close)
            try:
                pipe.send([request.args for request in requests])
                answer = pipe.recv()
            except (OSError, EOFError):
                answer = "its process ended"
            if not isinstance(answer, list):
                raise ModelError(f"vLLM fails on {model.id} ({answer}); set evaluation.backend=hf")
            return answer

        yield generate


def _serve(pipe: Any, settings: dict[str, Any]) -> None:
    """Answer requests that come through a pipe with texts, or with what went wrong."""
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    # In this process the engine schedules the same way each time, and ends with the process.
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    try:
        from lm_eval.models.vllm_causallms import VLLM

        lm = VLLM(**settings)
        while True:
            pipe.send(lm.generate_until([SimpleNamespace(args=args) for args in pipe.recv()]))
    except Exception as error:  # of somebody else's code
        pipe.send(describe_error(error))
