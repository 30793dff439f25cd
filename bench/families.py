"""Which path each causal family of transformers takes, and why: tiny random models.

python -m bench.families            the table of docs/studies/families.md
python -m bench.families llama mpt  these families only
"""

from __future__ import annotations

import argparse
import copy
import functools
import logging
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedTokenizerFast,
    logging as transformers_logging,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from slimdown.evaluation.engine.scoring import SharedWorkLM
from slimdown.evaluation.engine.sharing import EXACT, Scoring, is_exact

WINDOW = 192  # tokens that a tiny model has positions for

# What makes a model tiny, by the names that families have for it; a config takes those that it knows.
SIZES: dict[str, Any] = {
    **dict.fromkeys(["hidden_size", "n_embd", "d_model"], 32),
    **dict.fromkeys(
        ["num_hidden_layers", "n_layer", "n_layers", "decoder_layers", "encoder_layers"], 2
    ),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads"], 4),
    **dict.fromkeys(["decoder_attention_heads", "encoder_attention_heads"], 4),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"], WINDOW),
    **dict.fromkeys(
        ["intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim"], 48
    ),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size"], 16),
    **dict.fromkeys(["num_local_experts", "num_experts", "n_routed_experts"], 4),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank"], 16),
    **dict.fromkeys(
        ["qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "head_dim", "rotary_dim"], 8
    ),
    "vocab_size": 260,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "initializer_range": 0.3,  # far from uniform: likelihoods and greedy texts vary
    "init_std": 0.3,
    "is_decoder": True,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
MLA = {"head_dim": None, "num_key_value_heads": 4}
PADDED = {"pad_token_id": 1, "bos_token_id": 2, "max_position_embeddings": WINDOW + 8}
# What a family needs besides; None takes a size away.
TWEAKS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ["axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"], MLA
    ),
    **dict.fromkeys(["glm_moe_dsa", "longcat_flash", "minicpm3", "sarvam_mla", "youtu"], MLA),
    **dict.fromkeys(
        ["camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta"], PADDED
    ),
    **dict.fromkeys(
        ["cwm", "emu3", "mllama", "modernbert-decoder", "xlm-roberta-xl", "xlm"], PADDED
    ),
    "codegen": {"n_embd": 64, "rotary_dim": 8},
    "dots1": {"n_shared_experts": 1},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 4},
    "cwm": {**PADDED, "rope_parameters": None},
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, but for a few merges, so that stop strings straddle tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|end|>", *letters, "Ċ" * 2, "th", "an"])}
    merges = [("Ċ", "Ċ"), ("t", "h"), ("a", "n")]
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", clean_up_tokenization_spaces=False
    )


def tiny(family: str, seed: int = 0, **changes: Any) -> Any:
    """A random model of `family`, tiny, with `changes` of its config; raises what the family raises."""
    config = CONFIG_MAPPING[family]().get_text_config(decoder=True)
    sizes = SIZES | TWEAKS.get(family, {}) | changes
    known = {*config.to_dict(), *getattr(config, "attribute_map", {}), *changes}
    chosen = {key: value for key, value in sizes.items() if key in known}
    chosen = {
        key: value for key, value in chosen.items() if value is not None or key.endswith("token_id")
    }
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(type(config)(**chosen)).eval()


def questions() -> list[Instance]:
    """Choices behind a shared preamble, alone, behind nothing, and behind more than the window holds."""
    shots = "Which letter comes first?\nA. the\nB. an\nAnswer: B\n\n" * 2
    contexts = [f"{shots}{'more ' * (i % 3)}{i}?\nAnswer:" for i in range(7)]
    contexts += ["A man walks", "", "x", "the cat and " * 30]
    answers = [" A", " of the land", "yz"]
    return [
        Instance("loglikelihood", {}, (context, answer), i, ("task", doc, 1))
        for doc, context in enumerate(contexts)
        for i, answer in enumerate(answers)
    ]


def prompts(max_gen_toks: int = 8) -> list[Instance]:
    """Prompts of 2 to more than the window's tokens, some behind a shared preamble."""
    shots = "How much is 7 and 1?\nAnswer: 8\n\n" * 4
    texts = [f"{shots}{i * 7} and {i}" for i in range(6)]
    texts += ["th", "the cat and " * 30]
    settings = {"until": ["\n\n"], "max_gen_toks": max_gen_toks, "do_sample": False}
    return [
        Instance("generate_until", {}, (text, dict(settings)), 0, ("task", i, 1))
        for i, text in enumerate(texts)
    ]


@dataclass(frozen=True)
class Compared:
    """What was asked, and what differs from stock asked one at a time: shared, and stock in batches."""

    scores: int
    texts: int
    differing_scores: tuple[int, int]
    differing_texts: tuple[int, int]
    furthest: float  # of a log-likelihood, in nats, where stock agrees with itself

    @property
    def is_exact(self) -> bool:
        """Whether nothing differs beyond what stock differs from itself."""
        return self.differing_scores[0] == 0 and self.differing_texts[0] == 0


def compare(model: Any, scoring: Scoring | None = None, tolerance: float = 1e-3) -> Compared:
    """`SharedWorkLM` against HFLM asked one question at a time, and in batches.

    An answer differs where it is neither what stock says alone nor what it says in a batch, by more than `tolerance`
    nats or than stock's two answers.
    """
    tokenizer = byte_tokenizer()
    common: dict[str, Any] = {"tokenizer": tokenizer, "max_length": WINDOW}
    copies = [
        copy.deepcopy(model) for _ in range(3)
    ]  # dynamic NTK remembers the longest row that it saw
    alone = HFLM(pretrained=copies[0], batch_size=1, **common)
    batches = HFLM(pretrained=copies[1], batch_size=5, **common)
    shared = SharedWorkLM(copies[2], scoring=scoring, **common)
    one, many, ours = (
        lm.loglikelihood(questions(), disable_tqdm=True) for lm in (alone, batches, shared)
    )
    text, texts, our_texts = (
        lm.generate_until(prompts(), disable_tqdm=True) for lm in (alone, batches, shared)
    )
    off = [abs(a[0] - c[0]) - abs(a[0] - b[0]) for a, b, c in zip(one, many, ours, strict=True)]
    flags = [c[1] not in (a[1], b[1]) for a, b, c in zip(one, many, ours, strict=True)]
    return Compared(
        len(one),
        len(text),
        (
            sum(not d <= tolerance or flag for d, flag in zip(off, flags, strict=True)),
            sum(not abs(a[0] - b[0]) <= tolerance for a, b in zip(one, many, strict=True)),
        ),
        (
            sum(c not in (a, b) for a, b, c in zip(text, texts, our_texts, strict=True)),
            sum(a != b for a, b in zip(text, texts, strict=True)),
        ),
        max(off),
    )


@dataclass(frozen=True)
class Case:
    """A family in a form that sharing must not get wrong."""

    make: Callable[[], Any]
    reason: str  # what the reason for stock says; empty where work is shared


# Families known to be exact that have a window; in some, layers of two kinds take turns.
WINDOWED = [family for family in sorted(EXACT) if hasattr(CONFIG_MAPPING[family], "sliding_window")]


def windowed(family: str, window: int, seed: int = 0) -> Any:
    """A tiny model of which a layer, or all where the family has one kind, looks back over `window` positions.

    Raises ValueError where the family has no window.
    """
    settings = {
        "sliding_window": window,
        "use_sliding_window": True,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    known = type(CONFIG_MAPPING[family]().get_text_config(decoder=True))
    if not hasattr(known, "sliding_window"):
        raise ValueError(f"{family} has no window")
    return tiny(
        family, seed, **{name: value for name, value in settings.items() if hasattr(known, name)}
    )


def with_adapter(model: Any = None, **settings: Any) -> Any:
    """`model` (a tiny Llama) with an adapter that has an effect: `kind` of PEFT's configs, its settings."""
    config = getattr(peft, settings.pop("kind"))(task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(model or tiny("llama"), config)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if weight.requires_grad and "lora_A" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def in_int8(folder: Path, family: str = "llama") -> Any:
    """A tiny model as bitsandbytes loads it in 8 bits, by way of `folder`."""
    tiny(family).save_pretrained(folder)
    config = BitsAndBytesConfig(load_in_8bit=True)
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32
    )


def in_bfloat16(model: Any) -> Any:
    """The same model with half the bits."""
    return model.to(torch.bfloat16)


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [8.0] * 4,
    "original_max_position_embeddings": 96,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
LORA = {"kind": "LoraConfig", "target_modules": ["q_proj", "v_proj"], "r": 4}

# What was once wrong, or could be: each kind of window, position, content and adapter.
CASES = {
    "GPT-Neo, local attention": Case(
        lambda: tiny("gpt_neo", window_size=16), "refuses shared rows"
    ),
    "GPT-Neo, local attention, rows of few of its positions": Case(
        lambda: tiny("gpt_neo", window_size=64, max_position_embeddings=2048),
        "shared rows give other logits",
    ),
    "MPT": Case(lambda: tiny("mpt"), "refuses shared rows"),
    "MPT in bfloat16": Case(lambda: in_bfloat16(tiny("mpt")), "refuses shared rows"),
    "BLOOM": Case(lambda: tiny("bloom"), "refuses shared rows"),
    "Falcon with ALiBi": Case(lambda: tiny("falcon", alibi=True), "shared rows"),
    "Falcon with ALiBi in bfloat16": Case(
        lambda: in_bfloat16(tiny("falcon", alibi=True)), "shared rows"
    ),
    "RWKV": Case(lambda: tiny("rwkv"), "other logits"),
    "Phi-3, longrope": Case(
        lambda: tiny("phi3", rope_parameters=LONGROPE), "rotary embedding longrope"
    ),
    "Llama, dynamic NTK": Case(
        lambda: tiny("llama", rope_parameters=DYNAMIC, max_position_embeddings=96),
        "rotary embedding dynamic",
    ),
    "Doge, 16 keys": Case(lambda: tiny("doge", keep_window_size=16), "other rows in a batch"),
    **{
        f"{family}, window of 16": Case(functools.partial(windowed, family, 16), "")
        for family in WINDOWED
    },
    "Gemma 3, all layers slide": Case(lambda: tiny("gemma3_text", sliding_window=16), ""),
    "Gemma 3 that looks ahead": Case(
        lambda: tiny("gemma3_text", sliding_window=16, use_bidirectional_attention=True),
        "other rows in a batch",
    ),
    "Arcee, a window in its file that it does not know": Case(
        lambda: tiny("arcee", sliding_window=16), "shared rows give other logits"
    ),
    "Mistral, kinds of layers in its file that it does not know": Case(
        lambda: tiny("mistral", sliding_window=16, layer_types=["full_attention"] * 2),
        "shared rows give other logits",
    ),
    "Llama 4, chunks of 16": Case(
        lambda: tiny("llama4_text", attention_chunk_size=16), "chunked attention"
    ),
    "gemma3_text with LoRA, window of 16": Case(
        lambda: with_adapter(**LORA, model=windowed("gemma3_text", 16)), ""
    ),
    "BERT that looks ahead": Case(lambda: tiny("bert", is_decoder=False), "other rows in a batch"),
    "LoRA": Case(lambda: with_adapter(**LORA), ""),
    "rank-stabilized LoRA of all layers": Case(
        lambda: with_adapter(kind="LoraConfig", target_modules="all-linear", use_rslora=True), ""
    ),
    "DoRA": Case(lambda: with_adapter(**LORA, use_dora=True), ""),
    "activated LoRA": Case(
        lambda: with_adapter(**LORA, alora_invocation_tokens=[32, 35]), "alora_invocation_tokens"
    ),
    **{
        name: Case(functools.partial(with_adapter, kind=f"{name}Config", **settings), "")
        for name, settings in {
            "AdaLora": {"target_modules": ["q_proj"], "total_step": 9},
            "BOFT": {"target_modules": ["q_proj"], "boft_block_size": 4},
            "HRA": {"target_modules": ["q_proj"]},
            "IA3": {
                "target_modules": ["k_proj", "down_proj"],
                "feedforward_modules": ["down_proj"],
            },
            "LNTuning": {},
            "LoHa": {"target_modules": ["q_proj"]},
            "LoKr": {"target_modules": ["q_proj"]},
            "OFT": {"target_modules": ["q_proj"], "oft_block_size": 4},
            "Vera": {"target_modules": ["q_proj"]},
        }.items()
    },
    "P-tuning": Case(
        lambda: with_adapter(
            kind="PromptEncoderConfig", num_virtual_tokens=4, encoder_hidden_size=8
        ),
        "P_TUNING",
    ),
    "adaption prompt": Case(
        lambda: with_adapter(kind="AdaptionPromptConfig", adapter_layers=1, adapter_len=4),
        "ADAPTION_PROMPT",
    ),
}


def row(name: str, make: Callable[[], Any]) -> str:
    """A line of the table; raises what the family raises."""
    model = make()
    model(input_ids=torch.arange(1, 25)[None])
    scoring = SharedWorkLM(model, byte_tokenizer(), max_length=WINDOW).scoring
    why = scoring.reason.partition("\n")[0][:110]
    if not why:
        known = is_exact(model.get_base_model() if hasattr(model, "peft_config") else model)
        why = "known to be exact" if known else "tried: as exact as stock"
    return f"| {name} | {scoring.path} | {why} |"


def too_slow(*_: Any) -> None:
    """Ends a family that is not tiny with the sizes above."""
    raise TimeoutError("not tiny with these sizes")


def main() -> None:
    """Print the table, and what could not be built."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "families", nargs="*", help="default: every causal family, and the cases of this file"
    )
    families = parser.parse_args().families
    logging.disable(logging.WARNING)
    transformers_logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, too_slow)
    makers = {
        family: functools.partial(tiny, family)
        for family in families or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    }
    makers |= {} if families else {name: case.make for name, case in CASES.items()}
    print("| family | path | reason |\n|---|---|---|")
    unbuilt = []
    for name, make in makers.items():
        signal.alarm(60)
        try:
            print(row(name, make), flush=True)
        except Exception as error:
            unbuilt.append(f"{name}: {type(error).__name__}")
        signal.alarm(0)
    print(f"\nNot built with these sizes ({len(unbuilt)}): {'; '.join(unbuilt)}")


if __name__ == "__main__":
    main()
