"""Whole models at several scales: base + scale (tuned - base), one tensor at a time.

That is WiSE-FT (Wortsman et al. 2021, arXiv 2109.01903). At scale 0 the weights are the base's and
at scale 1 those of the tuned model, to the bit where both have one dtype.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from slimdown.config.schema import ModelConfig
from slimdown.models.base_model import LoadedModel
from slimdown.models.device_memory import release_weights
from slimdown.models.external import ExternalModel, fetch_tuned_model
from slimdown.models.weight_files import find_weight_files
from slimdown.utils.errors import ModelError
from slimdown.utils.hub import explain_hub_errors

_FLOATS = {torch.float32, torch.float16, torch.bfloat16}
# A trainer's folder holds more, which may be private.
_READ_BY_TRANSFORMERS = ["config.json", "generation_config.json", "model.safetensors.index.json"]
_READ_BY_TRANSFORMERS += ["*token*.json", "vocab.*", "merges.txt", "*.model", "chat_template.*"]
# Keys of config.json that may differ without changing an answer.
_HARMLESS = re.compile(
    "(_|architectures|dtype|initializer_|max_position_|output_router_|router_aux_|tie_word_|"
    "transformers_version|use_cache).*|.*(dropout|pdrop|token_id)"
)


class Checkpoint:
    """The safetensors files of a model, without its weights in memory."""

    def __init__(self, config: ModelConfig, outline: Any) -> None:
        """List the tensors, and download the files that this machine lacks.

        Args:
            config: Which model.
            outline: See `load_outline`.

        Raises:
            ModelError: It cannot be fetched, is quantized, or has no safetensors.
        """
        self.named = config.named
        # The weights of a GGUF file are quantized, too.
        if getattr(outline.config, "quantization_config", None) or config.gguf_args:
            raise ModelError(f"{self.named} is quantized, and only floats have a scale")
        self.files = find_weight_files(config)
        # A file may have a tensor's name with this prefix, such as `model.`, or without. Here all
        # names are without.
        self._prefix = f"{outline.base_model_prefix}."
        # By a tensor's name: its file, and its name in the file.
        self.places = dict[str, tuple[Path, str]]()
        with explain_hub_errors(self.named):
            for file in self.files:
                with safe_open(file, "pt") as opened:
                    stored_names = opened.keys()
                self.places |= {self._shorten(name): (file, name) for name in stored_names}
        self._weights = set(map(self._shorten, outline.state_dict()))
        # Patterns of tensors that transformers ignores: the architecture's own, and one for all.
        own_patterns = outline._keys_to_ignore_on_load_unexpected or ()
        self._ignored_patterns = [*own_patterns, r"rotary_emb\.inv_freq"]
        # By the name of a tensor that has two names, its other name: embeddings may be the head.
        self.ties: dict[str, str] = {}
        for pair in outline.all_tied_weights_keys.items():
            name, other_name = map(self._shorten, pair)
            self.ties |= {name: other_name, other_name: name}

    def _shorten(self, name: str) -> str:
        return name.removeprefix(self._prefix)

    def __contains__(self, name: str) -> bool:
        """Whether a tensor is there, or one that it is tied to."""
        return name in self.places or self.ties.get(name) in self.places

    def ignores(self, name: str) -> bool:
        """Whether transformers computes a tensor itself, though older versions saved it.

        A weight is never ignored, even if a pattern finds it: that of GPT-2's mask `attn.bias` also
        finds the weight `c_attn.bias`.
        """
        is_weight = self._shorten(name) in self._weights
        return not is_weight and any(re.search(part, name) for part in self._ignored_patterns)

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor, or the one that it is tied to; its numbers are read when used.

        The file is mapped for this tensor alone, so that no other page of it stays in memory.
        """
        name = self._shorten(name)
        file, stored_name = self.places[name if name in self.places else self.ties[name]]
        with safe_open(file, "pt") as opened:
            tensor: torch.Tensor = opened.get_tensor(stored_name)
        return tensor


@dataclass(frozen=True)
class Interpolation:
    """A base and a whole model that was tuned from it; `pair_models` makes it."""

    external: ExternalModel  # the tuned model
    base: Checkpoint
    tuned: Checkpoint

    def save(self, scale: float, out: Path) -> None:
        """Write the model at a scale, as transformers reads it, with the tuned one's tokenizer.

        The files have the tuned model's layout and dtypes; sums are made in float32. One tensor of
        either model is in memory at a time.

        Args:
            scale: How much of the change is taken; 0: the base, 1: the tuned model.
            out: A folder that exists.

        Raises:
            ModelError: The disk is full.
        """
        needed = sum(file.stat().st_size for file in self.tuned.files)
        free = shutil.disk_usage(out).free
        if needed > free:
            raise ModelError(
                f"a scaled model takes {needed / 1e9:,.3f} GB, and {free / 1e9:,.3f} GB are free "
                f"at {out}; make room, or name another disk (by TMPDIR, or in --save)"
            )
        for file in self.tuned.files:
            with safe_open(file, "pt") as opened:
                names = opened.offset_keys()  # in the order of their bytes
            with file.open("rb") as source, (out / file.name).open("wb") as target:
                # The header is copied, and only the numbers behind it are written anew. Its first 8
                # bytes say how long the rest of it is: names, shapes, dtypes, places.
                n_header_bytes = 8 + int.from_bytes(source.read(8), "little")
                source.seek(0)
                target.write(source.read(n_header_bytes))
                for name in names:
                    tensor = self.compute(name, scale).reshape(-1)
                    target.write(tensor.view(torch.uint8).numpy().data)
        folder = fetch_tuned_model(self.external.config)
        for pattern in _READ_BY_TRANSFORMERS:
            for file in folder.glob(pattern):
                shutil.copyfile(file, out / file.name)
        # If only the model was saved, it is asked with the base's tokenizer.
        if not (out / "tokenizer_config.json").is_file():
            self.external.tokenizer.save_pretrained(out)

    def compute(self, name: str, scale: float) -> torch.Tensor:
        """Compute one tensor of the model at a scale, in the tuned model's dtype."""
        after = self.tuned.read(name)
        if self.tuned.ignores(name):  # the base's files may not have it, and no model uses it
            return after
        start, end = self.base.read(name).float(), after.float()
        return torch.lerp(start, end, scale).to(after.dtype)  # exact at 0 and 1, which a sum is not

    @contextmanager
    def open(self, scale: float) -> Iterator[LoadedModel]:
        """Load the model at a scale, from a temporary folder.

        That releases the weights of the base; those of this model are released on leaving.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save(scale, Path(folder))
            config = replace(self.external.config, id=folder, revision="main")
            loaded = replace(self.external, config=config).load()
            yield loaded
            release_weights(loaded.model)


def pair_models(config: ModelConfig, external: ExternalModel) -> Interpolation:
    """Check that two models have the same tensors, and differ only in the tensors' values.

    Args:
        config: The base.
        external: A whole tuned model; no weights of it or of `external.base` need be loaded.

    Raises:
        ModelError: They differ in tensors, shapes or architecture (it names the first difference),
            or one is quantized.
    """
    base = Checkpoint(config, external.base.outline)
    tuned = Checkpoint(external.config, external.outline)
    problem = f"{tuned.named} has no scales on {base.named}:"
    advice = "give the base that it was made from, model.id=..., with as many tokens"
    for name in sorted(base.places.keys() | tuned.places.keys()):
        if base.ignores(name):
            continue
        # The scaled model's files hold the same names as the tuned model's (`places`). So the tuned
        # model must have this tensor in its files. Or both models tie it to another one that is
        # there, and it needs no place of its own. Tied in the tuned model alone, it is missing.
        is_in_tuned = name in tuned.places or (name in base.ties and name in tuned)
        if name not in base or not is_in_tuned:
            owner = "the base" if name in base else "the tuned model"
            raise ModelError(f"{problem} only {owner} has a {name} of its own; {advice}")
        before, after = base.read(name), tuned.read(name)
        has_other_numbers = not {before.dtype, after.dtype} <= _FLOATS  # such as integers
        if before.shape != after.shape or has_other_numbers:
            base_kind, tuned_kind = (f"{t.dtype} {[*t.shape]}" for t in (before, after))
            raise ModelError(
                f"{problem} {name} is {base_kind} in the base and {tuned_kind} in the tuned model, "
                f"and only floats of one shape have a scale; {advice}"
            )
    # Equal tensors can still compute otherwise, for example by another base of the rotary angles.
    base_settings = external.base.outline.config.get_text_config().to_dict()
    tuned_settings = external.outline.config.get_text_config().to_dict()
    for key in sorted(base_settings.keys() & tuned_settings.keys()):
        value, tuned_value = base_settings[key], tuned_settings[key]
        if value != tuned_value and not _HARMLESS.fullmatch(key):
            raise ModelError(f"{problem} {key} is {value} there and {tuned_value} here; {advice}")
    return Interpolation(external, base, tuned)
