"""What lm-eval calls of vLLM, answered by transformers and PEFT; there is no vLLM without a GPU."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

FILES = {
    "vllm/__init__.py": "from vllm_stand_in import LLM, SamplingParams, TokensPrompt",
    "vllm/lora/request.py": "from vllm_stand_in import LoRARequest",
    "vllm/renderers/hf.py": "def resolve_chat_template(**options): return None",
    "vllm/tokenizers.py": "from vllm_stand_in import get_tokenizer",
    "vllm-0.99.dist-info/METADATA": "Metadata-Version: 2.1\nName: vllm\nVersion: 0.99\n",
    "vllm_bnb_plugin.py": "",
    "vllm_bnb_plugin-0.1.dist-info/METADATA": (
        "Metadata-Version: 2.1\nName: vllm-bnb-plugin\nVersion: 0.1\n"
    ),
}
ROOM = 4096  # tokens of keys and values beside the model that is resident
TokensPrompt = dict
get_tokenizer: Callable[..., Any] = AutoTokenizer.from_pretrained


def write_packages(folder: Path) -> None:
    """Make packages of vLLM's names, to be put on `sys.path`."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@dataclass
class SamplingParams:
    max_tokens: int
    stop: list[str]
    temperature: float
    skip_special_tokens: bool
    spaces_between_special_tokens: bool


@dataclass
class LoRARequest:
    name: str
    number: int
    path: str


class LLM:
    """Greedy texts of a real model, a prompt at a time."""

    def __init__(self, model: str, dtype: str, tokenizer: str, **settings: Any) -> None:
        assert settings["enable_lora"]
        if settings["gpu_memory_utilization"] > 1:
            raise ValueError("Free memory is less\nthan desired")
        loader: Any = AutoModelForCausalLM
        self._model = loader.from_pretrained(model, dtype=dtype)
        self._tokenizer = get_tokenizer(tokenizer)
        window = settings["max_model_len"] or self._model.config.max_position_embeddings
        if window > ROOM:
            raise ValueError(f"To serve one request with max seq len {window}, more is needed")
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=window))

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        sampling_params: list[SamplingParams],
        use_tqdm: bool,
        lora_request: LoRARequest | None,
    ) -> list[Any]:
        assert not use_tqdm  # vLLM 0.32 divides by zero where bars are switched off
        model = self._model
        if lora_request:
            from peft import PeftModel  # whose import takes seconds

            model = PeftModel.from_pretrained(model, lora_request.path)
        outputs = []
        for prompt, params in zip(prompts, sampling_params, strict=True):
            assert params.temperature == 0
            n_tokens = len(prompt["prompt_token_ids"]) + params.max_tokens
            assert n_tokens <= self.llm_engine.model_config.max_model_len
            tokens = torch.tensor([prompt["prompt_token_ids"]])
            mask = torch.ones_like(tokens)
            settings: Any = {"attention_mask": mask, "do_sample": False}
            made = model.generate(input_ids=tokens, max_new_tokens=params.max_tokens, **settings)
            text = self._tokenizer.decode(made[0, tokens.shape[1] :])
            end = min(text.find(stop) % (len(text) + 1) for stop in params.stop)
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(text=text[:end])]))
        return outputs
