"""Generates answers with vLLM in a process of its own: its import changes torch and transformers.

The process ends with the evaluation, so that training finds the memory free.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from multiprocessing import Pipe, get_context
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from slimdown.config.methods import list_methods
from slimdown.config.schema import Device, Dtype, RunConfig
from slimdown.models.tuned_base import read_adapter_config
from slimdown.utils.errors import ModelError, describe_error
from slimdown.utils.extras import name_install

if TYPE_CHECKING:
    from slimdown.models.base_model import LoadedModel

_MAX_RANK = 64  # vLLM's max_lora_rank, equal for all runs so that they share a base
_KEEP_HF = "set evaluation.backend=hf"
# Settings of an adapter that may have any value: vLLM reads them, or no answer depends on them.
# fmt: off
_HARMLESS = frozenset([
    "auto_mapping", "base_model_name_or_path", "inference_mode", "lora_alpha", "lora_dropout",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "target_modules", "task_type",
    "use_rslora",
])
# fmt: on
# All other settings must be unset, or be among these: those of a plain LoRA, of each rank that vLLM
# has room for.
_PLAIN = {"peft_type=LORA", "bias=none", "init_lora_weights=True"}
_PLAIN |= {f"r={rank}" for rank in range(1, _MAX_RANK + 1)}


def find_problems(config: RunConfig) -> Iterator[str]:
    """Yield each reason why vLLM cannot answer as these settings ask; nothing is imported."""
    named, quantization = "evaluation.backend=vllm", config.quantization
    if not all(map(find_spec, ("vllm", "vllm_bnb_plugin"))):
        yield f"{named} is not installed; {name_install('vllm')}"
    if end := config.evaluation.think_end_token:
        yield f"evaluation.think_end_token={end} needs backend=hf; or set it to null"
    if config.model.device not in (Device.auto, Device.cuda):
        yield f"{named} needs a GPU of NVIDIA's, got model.device={config.model.device}; {_KEEP_HF}"
    if config.tuned_model and config.tuned_model.gguf:
        yield f"{named} reads no GGUF file, got tuned={config.tuned}; {_KEEP_HF}"
    # vllm-bnb-plugin 0.0.3 always quantizes to nf4, double, in bfloat16, whatever it is asked for.
    double = quantization.bnb_4bit_use_double_quant
    compute = quantization.bnb_4bit_compute_dtype
    other_dtypes = {config.model.dtype, compute} - {Dtype.auto, Dtype.bfloat16}
    is_as_vllm_does = quantization.name == "nf4" and double and not other_dtypes
    if quantization.name != "none" and not is_as_vllm_does:
        dtypes = f"{compute}, model.dtype={config.model.dtype}"
        settings = f"{quantization.name}, double={double}, {dtypes}"
        yield f"{named} quantizes to nf4, double, in bfloat16; got {settings}; {_KEEP_HF}"
    if config.tuned is None and not _can_serve_method(config):  # this run trains
        methods = list_methods(lambda facts: facts.is_plain_lora or facts.trains_weights)
        able = f"method={methods}, a LoRA with r={_MAX_RANK} at most and no lm_head"
        yield f"{named} takes {able}, got {config.method.name} with r={config.lora.r}; {_KEEP_HF}"


def _can_serve_method(config: RunConfig) -> bool:
    """Whether vLLM can answer with what this method trains."""
    facts, lora = config.method.facts, config.lora
    if facts.trains_weights:
        return True
    return facts.is_plain_lora and lora.r <= _MAX_RANK and "lm_head" not in lora.target_modules


def check_tuned(config: RunConfig) -> None:
    """Check, before anything is measured, that vLLM can answer with the adapter of `tuned`.

    Raises:
        ModelError: vLLM cannot, or may compute the adapter otherwise than PEFT.
    """
    from slimdown.models.external import fetch_tuned_model

    if tuned := config.tuned_model:
        file = fetch_tuned_model(tuned) / "adapter_config.json"
        # A whole model has no such file: vLLM takes it.
        settings = read_adapter_config(file.parent).items() if file.is_file() else ()
        used = {f"{name}={value}" for name, value in settings if value and name not in _HARMLESS}
        # `_PLAIN` has `r=RANK` for each rank that vLLM takes, so a larger rank is odd, too. Sorted,
        # so that the message names the kind of adapter first if vLLM does not take this kind.
        if odd := sorted(used - _PLAIN, key=lambda text: ("peft_type" not in text, text)):
            raise ModelError(
                f"{tuned.named}: evaluation.backend=vllm takes a plain LoRA of rank "
                f"{_MAX_RANK} at most; found {odd[0]}; set evaluation.backend=hf"
            )


@contextmanager
def open_generator(
    model: "LoadedModel", count_longest: Callable[[], int]
) -> Iterator[Callable[[list[Any]], list[str]]]:
    """Yield a function that generates a model's answers; its process starts at the first question.

    Every model gets the same engine with room for a LoRA, so an adapter of zeros changes nothing.

    Args:
        model: vLLM reads its files; the model itself stays where it is.
        count_longest: Returns the most tokens of a prompt and its answer, or 0 for the model's
            window. It is called when the first question is asked.

    Yields:
        A function that takes the harness's requests and returns the text of an answer to each.

    Raises:
        ModelError: vLLM would quantize the weights in another way, or cannot answer.
    """
    from transformers import AutoConfig

    # The type of the numbers in the model's files, such as bfloat16.
    stored = str(AutoConfig.from_pretrained(model.files).dtype).removeprefix("torch.")
    has_experts = any(name.endswith("experts") for name, _ in model.model.named_modules())
    is_bfloat16 = stored == model.dtype == "bfloat16"
    # Whether vLLM quantizes the weights just as the model here is quantized.
    is_exact = model.quantization == "nf4" and is_bfloat16 and not has_experts
    if model.quantization != "none" and not is_exact:
        experts = ", and experts" if has_experts else ""
        raise ModelError(
            f"evaluation.backend=vllm would quantize {model.id} otherwise than it is trained: that "
            f"takes nf4, bfloat16 and no experts; found {model.quantization} of weights in {stored}"
            f", computed in {model.dtype}{experts}; set evaluation.backend=hf"
        )
    with ExitStack() as stack:
        pipe: Any = None  # to the engine's process, once it runs

        def generate(requests: list[Any]) -> list[str]:
            nonlocal pipe
            if pipe is None:
                pipe = stack.enter_context(_run_engine(model, count_longest()))
            try:
                pipe.send([request.args for request in requests])
                answers = pipe.recv()  # or a text that says what went wrong
            except (OSError, EOFError):
                answers = "its process ended"
            if not isinstance(answers, list):
                raise ModelError(f"vLLM fails on {model.id} ({answers}); set evaluation.backend=hf")
            return answers

        yield generate


@contextmanager
def _run_engine(model: "LoadedModel", longest: int) -> Iterator[Any]:
    """Yield a pipe to a process in which vLLM answers; on leaving, the process ends.

    Args:
        model: The model whose files vLLM reads.
        longest: The most tokens of a prompt and its answer; 0: the model's window.
    """
    import torch

    from slimdown.models.device_memory import release_memory

    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="slimdown-vllm-"))
        model.tokenizer.save_pretrained(folder)
        release_memory()
        free, total = torch.cuda.mem_get_info()  # the model that slimdown holds stays in memory
        settings: dict[str, Any] = {
            "pretrained": model.files,
            "tokenizer": folder,
            # vLLM makes room for one text of this length, beside the model that is resident.
            "max_model_len": longest or None,
            "dtype": model.dtype,
            "gpu_memory_utilization": 0.85 * free / total,
            "enable_lora": True,
            "max_lora_rank": _MAX_RANK,
            "lora_local_path": model.adapter or None,
            # With "auto", vLLM 0.32 shows a bar, and divides by zero under TQDM_DISABLE.
            "batch_size": 512,
        }
        if model.quantization != "none":
            settings |= dict.fromkeys(("quantization", "load_format"), "bitsandbytes")
        pipe, process_end = Pipe()
        process = get_context("spawn").Process(target=_serve, args=(process_end, settings))
        process.start()
        process_end.close()  # else `recv` would wait for ever after the process ended
        # On leaving, the last of these callbacks runs first.
        stack.callback(process.kill)
        stack.callback(process.join, 10)
        stack.callback(pipe.close)
        yield pipe


def _serve(pipe: Any, settings: dict[str, Any]) -> None:
    """Answer requests through a pipe, until the process is killed.

    Args:
        pipe: It brings lists of the arguments of requests. It gets back the list of their answers,
            or a text that says what went wrong; then the process ends.
        settings: Those of lm-eval's `VLLM`.
    """
    for stream in (1, 2):  # vLLM writes much to standard output and standard error
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    # The engine shall run in this process: there it schedules the same way each time, and it ends
    # with the process.
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    try:
        from lm_eval.models.vllm_causallms import VLLM

        lm = VLLM(**settings)
        while True:
            pipe.send(lm.generate_until([SimpleNamespace(args=args) for args in pipe.recv()]))
    except Exception as error:  # vLLM's code may raise anything
        pipe.send(describe_error(error))
