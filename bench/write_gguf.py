"""Write a Llama as GGUF files, with its tokenizer and its chat template, by the package `gguf`.

    python -m bench.write_gguf MODEL FOLDER [--kinds F32,Q8_0,Q4_0] [--pre smollm]

MODEL is a hub id or a folder of the architecture llama with a tokenizer of GPT-2's kind, such as
SmolLM2's; for all others take llama.cpp's converter. What is made equals its files but for Q4_0,
where llama.cpp stores the table of tokens as Q6_K, which the package cannot write: here it is Q8_0.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

KINDS = ("F32", "Q8_0", "Q4_0")


def write_gguf(
    model: Any,
    tokenizer: Any,
    file: Path,
    kind: str = "F32",
    *,
    puts_bos: bool | None = None,
    pre: str = "default",
) -> Path:
    """Write a model as a GGUF file.

    Args:
        model: A `LlamaForCausalLM`.
        tokenizer: Its fast tokenizer, of the kind BPE over bytes.
        file: Where to.
        kind: How matrices are stored: F32, Q8_0 or Q4_0.
        puts_bos: What the file says about BOS before a prompt; None: what the tokenizer does.
        pre: llama.cpp's name for how the tokenizer splits text; transformers does not read it.

    Returns:
        The file.
    """
    config, writer = model.config, gguf.GGUFWriter(file, "llama")
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    writer.add_name(file.stem)
    writer.add_file_type(gguf.LlamaFileType[f"{'ALL' if kind == 'F32' else 'MOSTLY'}_{kind}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(head_dim)
    _add_tokenizer(writer, tokenizer, config.vocab_size, puts_bos, pre)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # llama.cpp takes the table of tokens
        weight = tensor.detach().float().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        if n_heads := heads.get(name.split(".")[-2]):
            weight = _interleave_halves(weight, n_heads)
        stored = gguf.GGMLQuantizationType[_choose_kind(name, weight, kind)]
        place = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(place, gguf.quantize(weight, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _interleave_halves(weight: Any, n_heads: int) -> Any:
    """Order a projection's rows as llama.cpp rotates them: in neighbouring pairs, not in halves."""
    halves = weight.reshape(n_heads, 2, weight.shape[0] // n_heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def _choose_kind(name: str, weight: Any, kind: str) -> str:
    """Choose how a tensor is stored; blocks of 32 numbers must fill its rows."""
    if weight.ndim == 1 or weight.shape[-1] % 32:
        return "F32"
    return (
        "Q8_0"
        if kind == "Q4_0" and name.endswith(("embed_tokens.weight", "lm_head.weight"))
        else kind
    )


def _add_tokenizer(
    writer: Any, tokenizer: Any, n_tokens: int, puts_bos: bool | None, pre: str
) -> None:
    """Add the vocabulary by id, the merges, the special tokens and the chat template."""
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for number in range(n_tokens):
        kind = gguf.TokenType.NORMAL if number in by_id else gguf.TokenType.UNUSED
        if number in added:
            is_special = added[number].special
            kind = gguf.TokenType.CONTROL if is_special else gguf.TokenType.USER_DEFINED
        tokens.append(by_id.get(number, f"[PAD{number}]"))
        types.append(kind)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    if tokenizer.eos_token_id is not None:
        writer.add_eos_token_id(tokenizer.eos_token_id)
    if puts_bos is None:
        puts_bos = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    writer.add_add_bos_token(puts_bos)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def main() -> None:
    """Write the files that the command line asks for."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("model", help="a hub id or a folder")
    parser.add_argument("folder", type=Path, help="where the files are written")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of F32, Q8_0 and Q4_0")
    parser.add_argument("--pre", default="smollm", help="llama.cpp's name for how text is split")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    options.folder.mkdir(parents=True, exist_ok=True)
    stem = Path(options.model).name
    for kind in options.kinds.split(","):
        file = write_gguf(
            model, tokenizer, options.folder / f"{stem}-{kind}.gguf", kind, pre=options.pre
        )
        print(f"{file}: {file.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
