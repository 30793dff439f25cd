"""Find the base of an adapter, from its one small file: without torch, before any load."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from slimdown.config.schema import ModelConfig, RunConfig, TunedModelConfig
from slimdown.pocket import MODEL_DIR
from slimdown.utils.errors import ModelError
from slimdown.utils.hub import check_repositories, explain_hub_errors, resolve_commit

POCKET = "pocket:model"
ADAPTER_CONFIG = "adapter_config.json"
_MOST_BYTES = 4_000_000  # the full names of 500 layers take 20,000
# What repackagers add to the name of a model whose weights they took over.
_REPACKED = re.compile(r"(-unsloth)?(-bnb)?(-[48]bit)?$")


def find_base(tuned: TunedModelConfig) -> ModelConfig:
    """Return the base that an adapter was made on: its id and revision.

    Raises:
        ModelError: It is a whole model, or its base is not named or not here.
    """
    settings = fetch_adapter_config(tuned) or {}  # a whole model names no base
    base = ModelConfig(id=_read_base_name(settings))
    if not base.folder:  # a folder has no revisions
        base.revision = str(settings.get("revision") or "main")
        if any(base.source_problems()):
            problem = f"was made on {base.id}, which is not here" if base.id else "names no base"
            raise ModelError(f"{tuned.named} {problem}; name it: model=OWNER/NAME, or a folder")
    return base


def find_wrong_base(config: RunConfig) -> Iterator[str]:
    """Report an adapter that was made on another base than the chosen one, in one line."""
    if not (tuned := config.tuned_model):
        return
    made_on = _read_base_name(fetch_adapter_config(tuned) or {})  # empty for a whole model
    # A folder's name does not say what it holds, unless it is the embedded model's.
    may_be_copy = config.model.folder not in (None, MODEL_DIR)
    if not may_be_copy and is_other_base(made_on, config.model.id):
        advice = "leave out model= and model.id to take that one, or correct"
        advice += f" base_model_name_or_path in {ADAPTER_CONFIG}"
        yield f"{tuned.named} was made on {made_on}, and the base is {config.model.id}; {advice}"


def fetch_adapter_config(tuned: TunedModelConfig) -> dict[str, Any] | None:
    """Return the settings of an adapter; from the hub, only this file is downloaded.

    Returns:
        The settings, see `read_adapter_config`; None for a whole model.

    Raises:
        ModelError: The file is damaged, or the hub does not give it.
    """
    if tuned.gguf:
        return None
    folder = tuned.folder or _download_adapter_config(tuned)
    return read_adapter_config(folder) if folder and (folder / ADAPTER_CONFIG).is_file() else None


def _download_adapter_config(tuned: TunedModelConfig) -> Path | None:
    """Download the settings of an adapter from the hub, and nothing else.

    Returns:
        The folder that holds them; None if the hub has a whole model, which has no such file.
    """
    # One repository has one problem at most.
    for problem in check_repositories([(tuned.named, tuned.id, tuned.revision, "model")]):
        raise ModelError(f"{tuned.named} is no folder here. As an id of the hub: {problem}")
    with explain_hub_errors(tuned.named):
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        commit = resolve_commit(tuned.id, tuned.revision)
        try:
            return Path(hf_hub_download(tuned.id, ADAPTER_CONFIG, revision=commit)).parent
        except LocalEntryNotFoundError:  # offline; the hub may have the file that the cache lacks
            if try_to_load_from_cache(tuned.id, "config.json", revision=commit):
                return None  # the cache holds a whole model
            raise
        except EntryNotFoundError:
            return None


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return the settings of a saved adapter, by PEFT's names; `peft_type` is among them.

    Raises:
        ModelError: Their file is damaged.
    """
    file = folder / ADAPTER_CONFIG
    settings = None  # stays so if the file is too large or no JSON
    with suppress(ValueError, RecursionError):
        if file.stat().st_size <= _MOST_BYTES:
            settings = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(settings, dict) or "peft_type" not in settings:
        raise ModelError(f"{file} is damaged: it holds no settings of an adapter; get it again")
    return settings


def is_other_base(made_on: str, base: str) -> bool:
    """Return whether two ids name different models, whoever repackaged them.

    >>> is_other_base("unsloth/Llama-3.2-1B-unsloth-bnb-4bit", "meta-llama/Llama-3.2-1B")
    False
    >>> is_other_base("meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-1B")
    True
    """

    def read_name(model_id: str) -> str:
        return _REPACKED.sub("", model_id.rpartition("/")[2].lower())

    is_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+|pocket:model", made_on) is not None
    return is_id and read_name(made_on) != read_name(base)


def _read_base_name(settings: dict[str, Any]) -> str:
    """Return the base's name as `model.id` has it: for the embedded one, PEFT writes a folder."""
    name = str(settings.get("base_model_name_or_path") or "")
    return POCKET if name == str(MODEL_DIR) else name
