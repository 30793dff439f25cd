"""What a GGUF file says about itself, read without its weights."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from slimdown.utils.errors import ModelError

_TOKENIZER = "tokenizer.ggml."  # begins the names of the fields that describe the tokenizer
# If a file does not say whether BOS stands before a prompt, llama.cpp decides by the tokenizer. It
# puts BOS for SentencePiece's, and of the others for those that split text as Llama 3 does.
_PUT_BOS = frozenset(["llama3", "llama-v3", "llama-bpe"])
# llama.cpp ends an answer at tokens of these texts, whatever the file says (src/llama-vocab.cpp).
KNOWN_ENDS = frozenset(
    ["<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<EOT>"]
)


@dataclass(frozen=True)
class GgufHeader:
    """The beginning of a GGUF file.

    Attributes:
        architecture: llama.cpp's name of it.
        weights: How most weights are stored, such as Q4_0; empty where the file does not say.
        tokens: The vocabulary, by id.
        chat_template: None where the file holds none.
        bos, eos, eot: The texts of tokens; None where the file names none.
        puts_bos: Whether BOS is put before a prompt.
    """

    architecture: str
    weights: str
    tokens: tuple[str, ...]
    chat_template: str | None
    bos: str | None
    eos: str | None
    eot: str | None
    puts_bos: bool


def read_gguf_header(file: Path, setting: str) -> GgufHeader:
    """Read the beginning of a GGUF file, and check that all of its weights are there.

    Args:
        file: The file.
        setting: What names it, for a message.

    Raises:
        ModelError: It is cut short or damaged, or a part of a model.
    """
    status = file.stat()
    return _read_header(file, setting, status.st_size, status.st_mtime_ns)


@cache  # a vocabulary takes a second to read
def _read_header(file: Path, setting: str, size: int, modified_ns: int) -> GgufHeader:
    """Read the beginning of a GGUF file, see `read_gguf_header`.

    Args:
        file: The file.
        setting: What names it, for a message.
        size: The file's size in bytes.
        modified_ns: When the file was last changed, in nanoseconds. Like the size, it is only part
            of the cache's key, so that a changed file is read again.
    """
    import gguf

    try:
        # The reader maps every tensor. So it raises if one lies beyond the end of the file.
        fields = gguf.GGUFReader(file).fields
        values: dict[str, Any] = {name: field.contents() for name, field in fields.items()}
        file_type = values.get("general.file_type")  # the number of ALL_F32, MOSTLY_Q4_0 or GUESSED
        weights = gguf.LlamaFileType(file_type).name if file_type is not None else ""
        is_sentencepiece = values.get(f"{_TOKENIZER}model") == "llama"
        puts_bos = is_sentencepiece or values.get(f"{_TOKENIZER}pre") in _PUT_BOS  # by default
        header = GgufHeader(
            architecture=str(values["general.architecture"]),
            weights=re.sub("^(ALL|MOSTLY)_|^GUESSED$", "", weights),
            tokens=tuple(values[f"{_TOKENIZER}tokens"]),
            chat_template=values.get("tokenizer.chat_template"),
            bos=_find_token(values, "bos"),
            eos=_find_token(values, "eos"),
            eot=_find_token(values, "eot"),
            puts_bos=bool(values.get(f"{_TOKENIZER}add_bos_token", puts_bos)),
        )
    except Exception as error:  # numpy's, where a tensor is cut, and the package's own
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise ModelError(f"{setting} is cut short, or damaged ({reason}); get it again") from None
    if (n_parts := values.get("split.count", 1)) > 1:
        advice = "join them by llama.cpp: llama-gguf-split --merge FIRST.gguf WHOLE.gguf"
        raise ModelError(f"{setting} is one of {n_parts} parts of a model; {advice}")
    return header


def _find_token(values: Mapping[str, Any], name: str) -> str | None:
    """Return the text of a token that a file names by its number; None where there is none.

    Args:
        values: The fields of the header, by name.
        name: The token's: bos, eos or eot.
    """
    number = values.get(f"{_TOKENIZER}{name}_token_id")
    tokens: Sequence[str] = values[f"{_TOKENIZER}tokens"]
    return tokens[number] if number is not None and number < len(tokens) else None


def find_differing_token(header: GgufHeader, vocabulary: dict[str, int]) -> str | None:
    """Return a token of the base that has another number in the file, or None.

    A file may have more tokens than the base. In some tokens, llama.cpp's converter writes a space
    instead of the mark that SentencePiece has for it.

    Args:
        header: The file's.
        vocabulary: The base's tokens, with their numbers.
    """

    def write_spaces(token: str) -> str:
        return token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ")

    for token, number in vocabulary.items():
        is_missing = number >= len(header.tokens)
        if is_missing or write_spaces(header.tokens[number]) != write_spaces(token):
            return token
    return None
