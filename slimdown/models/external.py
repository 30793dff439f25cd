"""A model that somebody else tuned, for `tuned=`: an adapter for the base, or a whole model."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from slimdown.config.schema import ModelConfig, QuantizationConfig, RunConfig
from slimdown.models.adapters import load_adapter
from slimdown.models.base_model import (
    LoadedModel,
    check_numbers,
    load_base_model,
    load_outline,
    load_tokenizer,
    resolve_revision,
)
from slimdown.models.identity import hash_tokenizer, package_versions
from slimdown.models.memory import release_memory
from slimdown.models.quiet import quiet_libraries
from slimdown.utils.errors import ModelError
from slimdown.utils.hashing import hash_file
from slimdown.utils.hub import explain_hub_errors

# Texts on which two tokenizers of one vocabulary differ: spaces, digits, other scripts, code.
_PROBES = (
    "Two  spaces\n\n\tand a tab.",
    " 12345 + 678",
    "Naïve café — 你好 🙂",
    "def f(x):\n    pass",
)
# What repackagers add to the name of a model whose weights they took over.
_REPACKED = re.compile(r"(-unsloth)?(-bnb)?(-[48]bit)?$")


@dataclass(frozen=True)
class ExternalModel:
    """A tuned model whose files were checked and whose weights are not loaded yet."""

    base: LoadedModel
    config: ModelConfig
    quantization: QuantizationConfig
    folder: Path | None  # of an adapter; None: a whole model
    tokenizer: Any
    learns_prompt: bool  # whether the adapter puts virtual tokens before a prompt
    notes: Sequence[str] = ()

    @property
    def keeps_base(self) -> bool:
        """Whether the base is still in memory once the tuned model is loaded."""
        return self.folder is not None

    def load(self) -> LoadedModel:
        """Load it: an adapter onto the base, a whole model in the base's place.

        Returns:
            The tuned model in evaluation mode. The base's model is not usable any more.

        Raises:
            ModelError: It does not fit on the base or in memory, or computes no numbers.
        """
        if self.folder is None:
            self.base.model.to("meta")
            release_memory()
            tuned = load_base_model(self.config, self.quantization)
            identity = {**tuned.identity, "tokenizer": hash_tokenizer(self.tokenizer)}
            return replace(tuned, tokenizer=self.tokenizer, identity=identity)
        model = load_adapter(self.base, self.folder)
        check_numbers(self.config.named, model)
        files = [hash_file(self.folder / name) for name in _ADAPTER_FILES]
        identity = {
            **self.base.identity,
            "adapter": files,
            "tokenizer": hash_tokenizer(self.tokenizer),
            "versions": package_versions(self.base.quantization != "none", has_adapter=True),
        }
        revision = resolve_revision(self.config) if self.config.folder else self.folder.name
        return replace(
            self.base,
            model=model,
            tokenizer=self.tokenizer,
            id=self.config.id,
            revision=revision,
            identity=identity,
        )


_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def open_tuned_model(config: RunConfig, base: LoadedModel) -> ExternalModel:
    """Check what `tuned` names, before hours go into measuring the base.

    Args:
        config: The checked settings; `tuned` is set.
        base: The model that it is compared with.

    Returns:
        What loads it later.

    Raises:
        ModelError: It cannot be had, has pickled weights, was made on another base, or has another
            tokenizer.
    """
    tuned = config.tuned_model
    assert tuned is not None
    with explain_hub_errors(tuned.named), quiet_libraries():
        folder = tuned.folder or _download_files(tuned)
        is_adapter = (folder / "adapter_config.json").is_file()
        if is_adapter and not (folder / "adapter_model.safetensors").is_file():
            raise ModelError(
                f"{tuned.named} has no adapter_model.safetensors, and pickled weights can run code "
                "when they are read; save the adapter again with a PEFT of today"
            )
        has_tokenizer = (folder / "tokenizer_config.json").is_file()
        own = load_tokenizer(folder) if has_tokenizer else base.tokenizer
        tokenizer, notes = _check_tokenizer(base, own, config)
        learns_prompt = False
        if is_adapter:
            learns_prompt = _check_adapter_files(base, folder, config)
        else:
            outline = load_outline(tuned)
            shapes = [m.config.get_text_config() for m in (base.model, outline)]
            for key in ("model_type", "num_hidden_layers", "hidden_size", "intermediate_size"):
                before, after = (getattr(shape, key, None) for shape in shapes)
                if before != after:
                    notes.append(
                        f"{tuned.named} is another model than {base.id}: its {key} is {after} and "
                        f"not {before}"
                    )
            if getattr(outline.config, "quantization_config", None):
                notes.append(
                    f"{tuned.named} is stored quantized: you measure that along with its tuning"
                )
    place = folder if is_adapter else None
    return ExternalModel(
        base, tuned, config.quantization, place, tokenizer, learns_prompt, tuple(notes)
    )


def _download_files(tuned: ModelConfig) -> Path:
    """Fetch a hub model's files, of a whole model all but its weights."""
    import huggingface_hub

    wanted = ["*.json", "*.jinja", "*.model", "*.txt", "adapter_model.safetensors"]
    folder = huggingface_hub.snapshot_download(
        tuned.id, revision=tuned.revision, allow_patterns=wanted, ignore_patterns="*/*"
    )
    return Path(folder)


def _check_tokenizer(base: LoadedModel, own: Any, config: RunConfig) -> tuple[Any, list[str]]:
    """Return the tuned model's tokenizer with the base's template, and what to know of it."""
    setting = f"tuned={config.tuned}"
    vocabulary, other = base.tokenizer.get_vocab(), own.get_vocab()
    differing = [token for token, i in vocabulary.items() if other.get(token) != i]
    differing += [p for p in _PROBES if own(p).input_ids != base.tokenizer(p).input_ids]
    if differing:
        raise ModelError(
            f"{setting} has another tokenizer than {base.id}: {differing[0]!r} gets other tokens; "
            "give the base that it was made from, model.id=..."
        )
    notes = []
    if n_added := len(other.keys() - vocabulary.keys()):
        notes.append(f"{setting} adds {n_added} to the tokens of {base.id}")
    if own.chat_template != base.tokenizer.chat_template:
        own.chat_template = base.tokenizer.chat_template
        if config.evaluation.apply_chat_template:
            notes.append(
                f"{setting} has a chat template of its own; both models are asked through that of "
                f"{base.id}"
            )
    return own, notes


def _check_adapter_files(base: LoadedModel, folder: Path, config: RunConfig) -> bool:
    """Refuse an adapter for another base, by its name and its shapes; say if it learns a prompt."""
    import peft
    from safetensors import safe_open

    setting = f"tuned={config.tuned}"
    settings = json.loads((folder / "adapter_config.json").read_text())
    if settings.get("task_type") not in (None, "CAUSAL_LM"):
        raise ModelError(
            f"{setting} is an adapter for {settings['task_type']}; only CAUSAL_LM can be asked"
        )
    made_on = str(settings.get("base_model_name_or_path") or "")
    if not config.model.folder and is_other_base(made_on, base.id) and _is_on_hub(made_on):
        raise ModelError(
            f"{setting} was made on {made_on}, and the base is {base.id}; set model.id={made_on}, or "
            "where the two are the same, correct base_model_name_or_path in its adapter_config.json"
        )
    with safe_open(folder / "adapter_model.safetensors", "pt") as saved:
        shapes = {key: tuple(saved.get_slice(key).get_shape()) for key in saved.keys()}  # noqa: SIM118
    if settings["peft_type"] == "BOTTLENECK":
        return False  # loading compares its shapes
    adapter = peft.PeftConfig.from_pretrained(folder)
    if adapter.is_prompt_learning:
        return True
    outline = load_outline(config.model)
    with torch.device("meta"):
        expected = peft.get_peft_model_state_dict(peft.PeftModel(outline, adapter))
    for key, tensor in expected.items():
        if ".embed" not in key and shapes.get(key) != tuple(tensor.shape):
            raise ModelError(
                f"{setting} does not fit on {base.id}: it was made on another base ({key} is "
                f"{shapes.get(key, 'missing')} and should be {tuple(tensor.shape)})"
            )
    if stray := sorted(shapes.keys() - expected.keys()):
        raise ModelError(
            f"{setting} does not fit on {base.id}: it was made on another base ({stray[0]} finds no "
            "place)"
        )
    return False


def is_other_base(made_on: str, base: str) -> bool:
    """Return whether two hub ids name different models, whoever repackaged them.

    >>> is_other_base("unsloth/Llama-3.2-1B-unsloth-bnb-4bit", "meta-llama/Llama-3.2-1B")
    False
    >>> is_other_base("meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-1B")
    True
    """
    names = [_REPACKED.sub("", id_.rpartition("/")[2].lower()) for id_ in (made_on, base)]
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", made_on) is not None
    return is_hub_id and names[0] != names[1]


def _is_on_hub(id_: str) -> bool:
    """Return False where the hub has no such model: then it names a folder of somebody's machine."""
    import huggingface_hub

    try:
        return huggingface_hub.repo_exists(id_)
    except Exception:  # offline: the name is all there is
        return True
