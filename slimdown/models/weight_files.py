"""The safetensors files of a model, and whether they hold what its config.json describes."""

from functools import partial
from pathlib import Path
from typing import Any

from slimdown.config.schema import ModelConfig
from slimdown.utils.errors import ModelError
from slimdown.utils.hub import explain_hub_errors


def find_weight_files(config: ModelConfig) -> list[Path]:
    """Return the files of a model's weights; download those that this machine lacks.

    Raises:
        ModelError: It cannot be fetched, or has no safetensors.
    """
    from transformers.utils.hub import cached_file, get_checkpoint_shard_files

    source = str(config.folder or config.id)
    find: Any = partial(cached_file, source, revision=config.revision)
    with explain_hub_errors(config.named):
        files = [find("model.safetensors", _raise_exceptions_for_missing_entries=False)]
        if files == [None]:  # the weights are in several files, which an index lists
            index = find("model.safetensors.index.json")
            files, _ = get_checkpoint_shard_files(source, index, revision=config.revision)
    for file in map(Path, files):
        if file.suffix != ".safetensors" or not file.is_file():
            problem = f"its index names {file.name}, which is no .safetensors file there"
            raise ModelError(f"{config.named}: {problem}; get it again")
    return [*map(Path, files)]


def check_weight_files(config: ModelConfig, outline: Any) -> None:
    """Check that a model's files are whole, and hold the tensors that its config.json describes.

    transformers loads names and shapes from the headers onto the meta device: no weight is read.
    The tensors of a model that its publisher quantized are not compared.

    Args:
        config: Which model.
        outline: See `load_outline`; it is not changed. A quantization that config.json names is in
            `outline.config.quantization_config`, a dict.

    Raises:
        ModelError: A file is missing or damaged, or tensors are missing or have other shapes.
    """
    from transformers.modeling_utils import load_state_dict

    headers: dict[str, Any] = {}  # tensors on the meta device, by name
    with explain_hub_errors(config.named):
        for file in find_weight_files(config):
            headers |= load_state_dict(str(file), map_location="meta")
        if quantization := getattr(outline.config, "quantization_config", None):  # its publisher's
            # A quantizer names its tensors itself, so they are not compared. Only the names of
            # bitsandbytes' scales are known: without scales, the weights are not quantized.
            is_bitsandbytes = quantization.get("load_in_4bit") or quantization.get("load_in_8bit")
            has_scales = any(name.endswith((".absmax", ".SCB")) for name in headers)
            if is_bitsandbytes and not has_scales:
                problem = "its config.json says that bitsandbytes quantized its weights, and"
                advice = "take quantization_config out of it"
                raise ModelError(f"{config.named}: {problem} its files hold no scales; {advice}")
            return
        # A second outline gets these tensors as a model gets its weights: other shapes raise, and
        # `loading_info` lists what is missing.
        settings: dict[str, Any] = {"config": outline.config, "device_map": {"": "meta"}}
        settings |= {"state_dict": headers, "output_loading_info": True, "use_kernels": False}
        _, loading_info = type(outline).from_pretrained(None, **settings)
    refuse_missing(config, loading_info)


def refuse_missing(config: ModelConfig, loading_info: dict[str, Any]) -> None:
    """Refuse a model whose files lack weights: transformers fills them with random values.

    Args:
        config: Which model.
        loading_info: What transformers returned with the model by `output_loading_info=True`.

    Raises:
        ModelError: Some are missing.
    """
    if missing := sorted(loading_info["missing_keys"]):
        raise ModelError(
            f"{config.named}: {len(missing)} of the weights that its config.json describes are not "
            f"in its files, {missing[0]} for one; get the model again, or correct config.json"
        )
