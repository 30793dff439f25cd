"""A model that somebody else tuned, for `tuned=`: an adapter for the base, or a whole model.

A whole model is a folder, a hub's repository, or a GGUF file.
"""

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from slimdown.config.methods import find_own_type
from slimdown.config.schema import QuantizationConfig, RunConfig, TunedModelConfig
from slimdown.models.adapters import check_whole_modules, load_adapter
from slimdown.models.base_model import (
    MODEL_FILES,
    AskingRules,
    LoadedModel,
    check_numbers,
    find_files,
    load_base_model,
    load_outline,
    load_tokenizer,
)
from slimdown.models.device_memory import release_weights
from slimdown.models.gguf_file import find_differing_token, read_gguf_header, refuse_unread_weights
from slimdown.models.identity import ADAPTER_WEIGHTS, identify_adapted
from slimdown.models.quiet import quiet_libraries
from slimdown.models.serving_settings import (
    Serving,
    build_served_tokenizer,
    compare_serving,
    find_other_generation,
    read_serving,
)
from slimdown.models.tuned_base import ADAPTER_CONFIG, read_adapter_config
from slimdown.models.weight_files import check_weight_files
from slimdown.utils.errors import ModelError
from slimdown.utils.hub import explain_hub_errors, find_damaged
from slimdown.utils.time_limit import limit_time

_FETCHED = [*MODEL_FILES, "README.md", ADAPTER_WEIGHTS]


@dataclass(frozen=True)
class ExternalModel:
    """A tuned model whose files were checked and whose weights are not loaded yet."""

    base: LoadedModel  # `load` needs it with its weights, all else without
    config: TunedModelConfig
    quantization: QuantizationConfig
    tokenizer: Any  # makes the same prompts as the base's
    folder: Path | None = None  # of an adapter; None: a whole model
    learns_prompt: bool = False  # whether the adapter puts virtual tokens before a prompt
    outline: Any = None  # of a whole model; None for an adapter
    # How the tuned model's own files and the base's have them served; None where files do not say.
    serving: Serving | None = None
    base_serving: Serving | None = None

    @property
    def revision(self) -> str:
        """The hub's commit, or sha256:DIGEST of a local folder."""
        if self.config.folder:
            return f"sha256:{self.config.hash_files()}"
        return fetch_tuned_model(self.config).name

    def load(self) -> LoadedModel:
        """Load it: an adapter onto the base, a whole model in the base's place.

        Returns:
            The tuned model in evaluation mode. The base's model is not usable any more.

        Raises:
            ModelError: It does not fit on the base or in memory, or computes NaN.
        """
        tuned = self._load_whole() if self.folder is None else self._load_adapter(self.folder)
        stop_ids = tuple[int, ...]()  # empty: the settings of generation decide
        # If base and tuned model end answers at other tokens, the stops of both end an answer.
        if self.serving and self.base_serving and self.serving.stops != self.base_serving.stops:
            stop_ids = _list_ids(self.tokenizer, {*self.serving.stops, *self.base_serving.stops})
        return tuned.with_rules(AskingRules(stop_ids), self.tokenizer)

    def _load_whole(self) -> LoadedModel:
        release_weights(self.base.model)  # makes room
        tuned = load_base_model(self.config, self.quantization, self.tokenizer, self.outline)
        # Both models generate by the base's settings, so that only their weights differ. What the
        # tuned model's own settings change is measured apart, see `serve`.
        settings = deepcopy(self.base.model.generation_config)
        # The identity of files implies their own settings; others must be added to it. A GGUF file
        # has none.
        if self.config.gguf or settings != tuned.model.generation_config:
            tuned = replace(tuned, identity={**tuned.identity, "generation": settings.to_dict()})
        tuned.model.generation_config = settings
        return tuned

    def _load_adapter(self, folder: Path) -> LoadedModel:
        with explain_hub_errors(self.config.named):  # PEFT reads what others wrote
            model = load_adapter(self.base, folder)
        check_numbers(self.config.named, model)
        identity = identify_adapted(self.base.identity, folder)
        tuned = replace(self.base, model=model, id=self.config.id, adapter=str(folder))
        return replace(tuned, revision=self.revision, identity=identity)

    @property
    def differences(self) -> list[str]:
        """What differs between serving it and serving the base, a line each; empty if unknown."""
        if not (self.serving and self.base_serving):
            return []
        return compare_serving(self.serving, self.base_serving, "the base")

    def serve(self, tuned: LoadedModel) -> LoadedModel:
        """Return the model, set up to be asked as its own files say.

        They decide on its chat template, BOS, stop tokens and settings of generation. Call this
        only if there are `differences`: then the files of both models say how they are served.

        Args:
            tuned: What `load` returned, or the model without its weights.
        """
        assert self.serving
        assert self.base_serving
        place = fetch_tuned_model(self.config)
        tokenizer = build_served_tokenizer(place, self.serving, self.tokenizer)
        # By name, the tuned model's value and the base's.
        other_settings = find_other_generation(self.serving, self.base_serving)
        rules = AskingRules(
            stops=_list_ids(tokenizer, self.serving.stops),
            stops_alone=True,
            doubles_bos=self.serving.doubles_bos(self.base_serving),
            generation={name: tuned_value for name, (tuned_value, _) in other_settings.items()},
        )
        return tuned.with_rules(rules, tokenizer)


def _list_ids(tokenizer: Any, tokens: Iterable[str]) -> tuple[int, ...]:
    """Return the ids of those tokens that a tokenizer has."""
    ids = map(tokenizer.convert_tokens_to_ids, tokens)
    return tuple(sorted(token_id for token_id in ids if token_id is not None))


def fetch_tuned_model(tuned: TunedModelConfig) -> Path:
    """Return where a tuned model's files are: a folder, or the GGUF file.

    Of a model on the hub, the adapter or all files but the weights are downloaded if needed.

    Raises:
        ModelError: There is no such model, or it is gated, or the hub does not answer.
    """
    import huggingface_hub

    if place := tuned.gguf or tuned.folder:
        return place
    with explain_hub_errors(tuned.named), quiet_libraries():
        # Subfolders, such as those of checkpoints, are left out.
        downloaded = huggingface_hub.snapshot_download(
            tuned.id, revision=tuned.revision, allow_patterns=_FETCHED, ignore_patterns="*/*"
        )
    return Path(downloaded)


def read_chat_template(tuned: TunedModelConfig) -> str | None:
    """Return the chat template that a tuned model brings; None where it brings none.

    Raises:
        ModelError: It cannot be fetched or read.
    """
    folder = fetch_tuned_model(tuned)
    if tuned.gguf:
        return read_gguf_header(tuned.gguf, tuned.named).chat_template
    with explain_hub_errors(tuned.named):
        if (file := folder / "chat_template.jinja").is_file():
            return file.read_text(encoding="utf-8")
        has_tokenizer = (folder / "tokenizer_config.json").is_file()
        return load_tokenizer(folder).chat_template if has_tokenizer else None


def open_tuned_model(config: RunConfig, base: LoadedModel) -> ExternalModel:
    """Check what `tuned` names, before hours go into measuring the base.

    Args:
        config: The checked settings; `tuned` is set.
        base: The model that it is compared with; its weights need not be loaded.

    Returns:
        The tuned model, whose weights can be loaded later.

    Raises:
        ModelError: It cannot be fetched, has pickled weights, was made on another base, or has
            another tokenizer.
    """
    tuned = config.tuned_model
    assert tuned is not None
    external = _open_files(tuned, config, base)
    base_serving = read_serving(config.model, find_files(config.model))
    serving = read_serving(tuned, fetch_tuned_model(tuned), before=base_serving)
    return replace(external, serving=serving, base_serving=base_serving)


def _open_files(tuned: TunedModelConfig, config: RunConfig, base: LoadedModel) -> ExternalModel:
    """Check a tuned model's files and return the model, without `serving` and `base_serving`.

    For the arguments and errors, see `open_tuned_model`, which adds both.
    """
    if tuned.gguf:
        return _open_gguf(tuned, tuned.gguf, config.quantization, base)
    folder = fetch_tuned_model(tuned)
    if damaged := find_damaged(folder):
        raise ModelError(f"{tuned.named} cannot be loaded: {damaged} is damaged; get it again")
    with explain_hub_errors(tuned.named), quiet_libraries():
        has_tokenizer = (folder / "tokenizer_config.json").is_file()
        tokenizer = load_tokenizer(folder) if has_tokenizer else base.tokenizer
        vocabulary, base_vocabulary = tokenizer.get_vocab(), base.tokenizer.get_vocab()
        # Fine-tuning may add tokens, but those of the base keep their numbers.
        for token, number in base_vocabulary.items():
            if vocabulary.get(token) != number:
                raise ModelError(
                    f"{tuned.named} has another tokenizer than {base.id}: {token!r} gets other "
                    "tokens; give the base that it was made from, model.id=..."
                )
        # Both models get identical prompts. What the tuned model's own files change in them is
        # measured apart, see `serve`.
        if vocabulary == base_vocabulary:
            tokenizer = base.tokenizer
        else:
            _set_prompt_format(tokenizer, base.tokenizer)
        if (folder / ADAPTER_CONFIG).is_file():
            learns_prompt = _check_adapter_files(base, folder, config)
            return ExternalModel(base, tuned, config.quantization, tokenizer, folder, learns_prompt)
        outline = load_outline(tuned, config.quantization.name)
        check_weight_files(tuned, outline)
    return ExternalModel(base, tuned, config.quantization, tokenizer, outline=outline)


def _set_prompt_format(tokenizer: Any, base_tokenizer: Any) -> None:
    """Give a tokenizer with more tokens the base's chat template, special tokens and BOS rule."""
    tokenizer.chat_template = base_tokenizer.chat_template
    tokenizer.bos_token = base_tokenizer.bos_token
    tokenizer.eos_token = base_tokenizer.eos_token
    backend = getattr(tokenizer, "backend_tokenizer", None)
    base_backend = getattr(base_tokenizer, "backend_tokenizer", None)
    # The post-processor puts BOS before a text, or does not. Slow tokenizers have no backend.
    if backend and base_backend:
        backend.post_processor = base_backend.post_processor


def _open_gguf(
    tuned: TunedModelConfig, file: Path, quantization: QuantizationConfig, base: LoadedModel
) -> ExternalModel:
    """Check a GGUF file and return the model: a whole one, whose weights transformers will unpack.

    It is asked with the base's tokenizer, because a file with another vocabulary is refused.

    Raises:
        ModelError: The file is damaged, has another vocabulary, or transformers cannot unpack it.
    """
    header = read_gguf_header(file, tuned.named)
    if token := find_differing_token(header, base.tokenizer.get_vocab()):
        raise ModelError(
            f"{tuned.named} has another vocabulary than {base.id}: {token!r} is another token; "
            "name the base that it was made from: model=OWNER/NAME, or a folder"
        )
    try:
        with quiet_libraries():
            outline = load_outline(tuned, quantization.name)
    except ModelError as error:
        if "not supported" not in str(error):  # transformers' words for the architecture
            raise
        raise ModelError(
            f"{tuned.named} is of the architecture {header.architecture!r}, which transformers "
            "does not unpack; measure the folder that it was made from, or serve the file by "
            "llama.cpp and measure tuned=http://HOST:PORT/v1 (docs/serving.md)"
        ) from None
    refuse_unread_weights(header, tuned.named, outline)
    return ExternalModel(base, tuned, quantization, base.tokenizer, outline=outline)


def _check_adapter_files(base: LoadedModel, folder: Path, config: RunConfig) -> bool:
    """Refuse an adapter that is damaged or does not fit on the base.

    Args:
        base: The base; its outline is enough.
        folder: Where the adapter is.
        config: The settings; `tuned` names the adapter.

    Returns:
        Whether it puts virtual tokens before a prompt. Shapes of such an adapter are not compared.
    """
    import peft
    from safetensors.torch import load_file

    named = f"tuned={config.tuned}"
    settings = read_adapter_config(folder)
    if (task := settings.get("task_type")) not in (None, "CAUSAL_LM"):
        raise ModelError(f"{named}: its task_type is {task!r:.40}, and slimdown takes CAUSAL_LM")
    if settings.get("use_dora") and config.quantization.name == "int8":
        raise ModelError(
            f"{named} is a DoRA, which has no int8 layers; set quantization=nf4 or none"
        )
    weights = load_file(folder / ADAPTER_WEIGHTS)
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            problem = f"its weights are of the type {tensor.dtype} ({name})"
            raise ModelError(f"{named}: {problem}, and should be fractions; save it again")
        if not tensor.float().isfinite().all():
            raise ModelError(f"{named}: its weights hold NaN or infinity ({name}); get it again")
    check_whole_modules(named, settings, base.outline)
    if find_own_type(settings["peft_type"]):  # PEFT does not know it; loading compares its shapes
        return False
    adapter = peft.PeftConfig.from_pretrained(str(folder))
    if reason := _explain_no_effect(adapter, weights):
        raise ModelError(
            f"{named} changes nothing in the base: {reason}; name the adapter that was trained"
        )
    if not adapter.is_prompt_learning:
        saved_shapes = {name: list(tensor.shape) for name, tensor in weights.items()}
        _check_shapes(named, base, adapter, saved_shapes)
    return bool(adapter.is_prompt_learning)


def _explain_no_effect(adapter: Any, weights: Mapping[str, torch.Tensor]) -> str:
    """Return why an adapter of PEFT leaves the base as it is; empty if it may change it.

    Args:
        adapter: PEFT's settings of the adapter.
        weights: Its tensors, by name.
    """
    # At zero, other methods change the base: a prompt is still read, and IA3 multiplies by zero.
    if adapter.peft_type != "LORA" or adapter.use_dora:
        return ""
    used = {"A": False, "B": False}  # whether any of these matrices is not zero
    for name, tensor in weights.items():
        matrix = re.search(r"\.lora_(?:embedding_)?([AB])(?!.*\.bias)", name)
        if matrix:
            used[matrix[1]] |= bool(tensor.any())
        elif tensor.any():  # a bias, or a whole module
            return ""
    for letter, is_used in used.items():
        if not is_used:
            return f"all of its lora_{letter} are zero"
    scales = [adapter.lora_alpha, *(adapter.alpha_pattern or {}).values()]
    return "" if any(scales) else "its lora_alpha is 0"


def _check_shapes(named: str, base: LoadedModel, adapter: Any, saved: dict[str, list[int]]) -> None:
    """Refuse an adapter whose tensors have other names or shapes than PEFT makes on the base.

    Args:
        named: The setting that names the adapter, for a message.
        base: The base; its outline is enough.
        adapter: PEFT's settings of the adapter.
        saved: The shapes of the adapter's saved tensors, by name.
    """
    import peft

    # PEFT matches names with the file's regular expressions, and these may take forever.
    task = f"{named}: its adapter_config.json should hold plain names; matching its patterns"
    with torch.device("meta"), limit_time(task):
        state = peft.get_peft_model_state_dict(peft.PeftModel(deepcopy(base.outline), adapter))
    expected = {name: list(tensor.shape) for name, tensor in state.items()}
    for name in sorted(saved.keys() | expected.keys()):
        is_table = ".embed" in name or "lm_head" in name  # embeddings or head, a row per token
        # A table that the file has may differ, or be one that PEFT would not save here: training
        # may have added tokens. A table that the file lacks is refused, unless it is the base's own
        # (`base_layer`), which need not be saved.
        may_differ = is_table and (name in saved or ".base_" in name)
        if saved.get(name) != expected.get(name) and not may_differ:
            raise ModelError(
                f"{named} does not fit on {base.id}: it was made on another base ({name} is "
                f"{saved.get(name)} and should be {expected.get(name)})"
            )
