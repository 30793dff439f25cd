"""What a GGUF file says about itself, read without its weights."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from slimdown.utils.errors import ModelError

# Reading one value of a list takes about 300 bytes. Vocabularies of 270,000 tokens need 2,200,000.
_MOST_READS = 2_500_000
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
        sizes: The number of values in each tensor, by its name.
    """

    architecture: str
    weights: str
    tokens: tuple[str, ...]
    chat_template: str | None
    bos: str | None
    eos: str | None
    eot: str | None
    puts_bos: bool
    sizes: Mapping[str, int]


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
        reader = _open_reader(file)
        fields = reader.fields
        values: dict[str, Any] = {name: field.contents() for name, field in fields.items()}
        file_type = values.get("general.file_type")  # the number of ALL_F32, MOSTLY_Q4_0 or GUESSED
        weights = gguf.LlamaFileType(file_type).name if file_type is not None else ""
        is_sentencepiece = values.get(f"{_TOKENIZER}model") == "llama"
        puts_bos = is_sentencepiece or values.get(f"{_TOKENIZER}pre") in _PUT_BOS  # by default
        if not isinstance(template := values.get("tokenizer.chat_template"), str | None):
            raise TypeError("tokenizer.chat_template is no text")
        header = GgufHeader(
            architecture=str(values["general.architecture"]),
            weights=re.sub("^(ALL|MOSTLY)_|^GUESSED$", "", weights),
            tokens=tuple(values[f"{_TOKENIZER}tokens"]),
            chat_template=template,
            bos=_find_token(values, "bos"),
            eos=_find_token(values, "eos"),
            eot=_find_token(values, "eot"),
            puts_bos=bool(values.get(f"{_TOKENIZER}add_bos_token", puts_bos)),
            sizes={tensor.name: int(tensor.n_elements) for tensor in reader.tensors},
        )
        n_parts = int(values.get("split.count", 1))
    except Exception as error:  # numpy's, where a tensor is cut, and the package's own
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise ModelError(f"{setting} is cut short, or damaged ({reason}); get it again") from None
    if n_parts > 1:
        advice = "join them by llama.cpp: llama-gguf-split --merge FIRST.gguf WHOLE.gguf"
        raise ModelError(f"{setting} is one of {n_parts} parts of a model; {advice}")
    return header


class _LimitedContent:
    """The content of a file, of which only parts that exist can be read, and not too many.

    gguf 0.19 reads empty values beyond the end of a file, for as long as a list says that it is.
    """

    def __init__(self, content: Any) -> None:
        import numpy as np

        # Parts of a plain array take half of the memory that parts of a memmap take.
        self._content = np.asarray(content)
        self._n_reads = 0

    def __getitem__(self, part: slice) -> Any:
        self._n_reads += 1
        if part.stop > len(self._content):
            raise ValueError("a value lies beyond the end of the file")
        if self._n_reads > _MOST_READS:
            raise ValueError(f"it has more than {_MOST_READS:,} values beside its weights")
        return self._content[part]


def _open_reader(file: Path) -> Any:
    """Open gguf's reader so that it reads a `_LimitedContent`."""
    import gguf

    class LimitedReader(gguf.GGUFReader):  # type: ignore[misc]  # gguf is untyped
        @property
        def data(self) -> Any:
            return self._limited

        @data.setter
        def data(self, content: Any) -> None:
            self._limited = _LimitedContent(content)

    return LimitedReader(file)


def _find_token(values: Mapping[str, Any], name: str) -> str | None:
    """Return the text of a token that a file names by its number; None where there is none.

    Args:
        values: The fields of the header, by name.
        name: The token's: bos, eos or eot.
    """
    number = values.get(f"{_TOKENIZER}{name}_token_id")
    tokens: Sequence[str] = values[f"{_TOKENIZER}tokens"]
    return tokens[number] if number is not None and 0 <= number < len(tokens) else None


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


def refuse_unread_weights(header: GgufHeader, setting: str, outline: Any) -> None:
    """Refuse a file with weights that the model does not take: transformers drops them silently.

    Args:
        header: The file's.
        setting: What names the file, for a message.
        outline: The model that transformers builds for it, see `load_outline`.

    Raises:
        ModelError: The file has more weights than the model.
    """
    import gguf

    # Factors of the rotary embedding, such as rope_freqs, are numbers of the config.
    sizes = {name: size for name, size in header.sizes.items() if not name.startswith("rope_")}
    parameters = dict(outline.named_parameters())  # a tied one once
    tied = dict(outline.named_parameters(remove_duplicate=False)).keys() - parameters.keys()
    taken = outline.state_dict()
    # transformers splits and joins tensors, so the numbers of values decide, and not the names.
    if sum(sizes.values()) <= sum(taken[name].numel() for name in taken.keys() - tied):
        return
    architectures = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    n_blocks = outline.config.get_text_config().num_hidden_layers
    names = gguf.get_tensor_name_map(architectures[header.architecture], n_blocks)
    known = {names.get_name(name, (".weight", ".bias")) for name in taken}
    unread = [name for name in sizes if name not in known] or list(sizes)
    raise ModelError(
        f"{setting} has weights that transformers does not read, such as {unread[0]}; correct "
        "its metadata, such as block_count, or measure the folder that it was made from"
    )
