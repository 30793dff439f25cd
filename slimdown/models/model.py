"""ModelConfig and QuantizationConfig -> `LoadedModel`: the quantized base and its tokenizer, on its device.

The base stays as it was published: nothing here changes a weight beyond quantizing it.
"""

import copy
import json
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from slimdown.config.schema import Device, Dtype, ModelConfig, QuantizationConfig
from slimdown.models.causal import CausalModel
from slimdown.models.dequantize import free_bytes
from slimdown.models.dtype import auto_dtype
from slimdown.models.hub import asking_hub, licence_of
from slimdown.models.identity import identify
from slimdown.models.memory import is_out_of_memory
from slimdown.models.quantize import quantize_quickly
from slimdown.models.sizes import count_parameters, published_shape, quantized_outline, weight_sizes
from slimdown.utils import distributed as processes
from slimdown.utils.digests import digest, folder_digest
from slimdown.utils.errors import SlimdownError


@dataclass(frozen=True)
class LoadedModel(CausalModel):
    """A causal language model that was loaded here, ready to be measured or trained."""

    revision: str  # the hub's commit, or a digest of a local folder
    quantization: str
    dtype_reason: str
    device: str
    n_parameters: int
    memory_bytes: int  # of weights and buffers, and of the constants that quantized ones need
    load_seconds: float
    identity: dict[str, Any]  # everything that answers depend on, see identity.py
    licence: str = ""  # as its card says: a name, or `other NAME LINK`

    @property
    def compute_dtype(self) -> str:
        """What 4-bit weights are unpacked to; empty where there are none."""
        config = getattr(self.model.config, "quantization_config", None)
        dtype = (
            getattr(config, "bnb_4bit_compute_dtype", None)
            if getattr(config, "load_in_4bit", False)
            else None
        )
        return str(dtype or "").removeprefix("torch.")

    @property
    def digest(self) -> str:
        """The identity in 32 hex digits: two models of one digest give the same answers."""
        return digest(self.identity)


def load_model(config: ModelConfig, quantization: QuantizationConfig) -> LoadedModel:
    """The base model in evaluation mode, quantized as asked, with its tokenizer.

    Raises:
        SlimdownError: the model cannot be had, read, or held in memory; the message says what to do.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()  # the console has a bar of its own
    started = time.perf_counter()
    bare = bare_outline(config)
    device, dtype = bare.device, bare.dtype
    source, common = _source(config)
    with explained(config):
        quantized = bare.quantized(quantization)
        _check_memory(config, quantization, bare, quantized)
        tokenizer = load_tokenizer(source, **common)
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            source,
            **common,
            use_safetensors=True,  # pickled weights can run code
            dtype=dtype,
            device_map={"": str(device)},
            attn_implementation=config.attn_implementation,
            quantization_config=_bitsandbytes(quantization, device),
            output_loading_info=True,
        )
        _check_weights(config, model, quantized, loading["missing_keys"])
        licence = licence_of(source, config.revision)
    for module in model.modules():
        # On a CPU with AVX512-BF16 the first inference forward of a 4-bit layer repacks its weights for a kernel that
        # computes in bfloat16 and passes no gradient: training after an evaluation would silently train nothing.
        # bitsandbytes 0.49 to 0.50; to be deleted when its packed kernel has a backward pass.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    model.eval()
    check_numbers(config.named, model)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        id=config.id,
        revision=resolved_revision(source, config.revision),
        quantization=quantization.name,
        dtype=str(dtype).removeprefix("torch."),
        dtype_reason=bare.dtype_reason,
        device=device.type,
        n_parameters=count_parameters(model),
        memory_bytes=weight_sizes(model).held,
        load_seconds=time.perf_counter() - started,
        identity=identify(model, tokenizer),
        licence=licence,
    )


@dataclass(frozen=True)
class Outline:
    """A model without its numbers, on torch's meta device."""

    id: str
    model: Any
    device: torch.device  # that it would be loaded on
    dtype: torch.dtype
    dtype_reason: str

    def quantized(self, quantization: QuantizationConfig, name: str = "") -> Any:
        """A copy of the model as it would be loaded; `name` stands for another quantization than the one set."""
        name = name or quantization.name
        as_named = replace(
            quantization, load_in_4bit=name in ("nf4", "fp4"), load_in_8bit=name == "int8"
        )
        return quantized_outline(self.model, _bitsandbytes(as_named, self.device))

    def loaded(self, quantization: QuantizationConfig) -> LoadedModel:
        """The model as it would be loaded, with all that its numbers and files do not decide."""
        model = self.quantized(quantization)
        dtype, sizes = (
            str(self.dtype).removeprefix("torch."),
            (count_parameters(model), weight_sizes(model).held),
        )
        about = (quantization.name, self.dtype_reason, self.device.type)
        return LoadedModel(
            model, None, self.id, dtype, "", *about, *sizes, load_seconds=0.0, identity={}
        )


def outline_of(loaded: LoadedModel) -> Outline:
    """The outline of a model that is loaded: no file is asked for again."""
    from transformers import AutoModelForCausalLM

    dtype, config = getattr(torch, loaded.dtype), copy.deepcopy(loaded.model.config)
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return Outline(loaded.id, model, torch.device(loaded.device), dtype, loaded.dtype_reason)


def bare_outline(config: ModelConfig) -> Outline:
    """The model as its config.json describes it; its weights are not fetched.

    Raises:
        SlimdownError: the config cannot be had, or describes no causal language model that transformers knows.
    """
    # Which optional kernel bitsandbytes did not find is no matter: it is the packed one that `load_model` keeps off.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    device = _device(config.device)
    dtype, reason = _dtype(config.dtype, device)
    with explained(config):
        return Outline(config.id, _skeleton(config, dtype), device, dtype, reason)


def outline(config: ModelConfig) -> tuple[Any, Any]:
    """The model without its numbers, which are fetched and found to be whole files, and its tokenizer.

    Raises:
        SlimdownError: see `load_model`.
    """
    import transformers
    from safetensors import safe_open
    from transformers.utils import cached_file

    source, common = _source(config)
    with explained(config):
        skeleton = _skeleton(config)
        if skeleton.can_generate():
            with suppress(OSError):  # it need not have one
                skeleton.generation_config = transformers.GenerationConfig.from_pretrained(
                    source, **common
                )
        for name in _weight_files(config, skeleton.config) or ["model.safetensors"]:
            with safe_open(cached_file(source, name, revision=config.revision), "pt"):
                pass  # a file that was cut short does not open
        return skeleton, load_tokenizer(source, **common)


def load_tokenizer(source: str | Path, **common: Any) -> Any:
    """A tokenizer as its files say, with a padding token."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(source, **common)
    if tokenizer.pad_token is None:
        # What the harness would choose when it measures; set here so that training sees the same, measured or not.
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def _source(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Where transformers finds it, and how."""
    return str(config.folder or config.id), {
        "revision": config.revision,
        "trust_remote_code": False,
    }


@contextmanager
def explained(config: ModelConfig) -> Iterator[None]:
    """Inside, whatever fetching and reading the files of others raises is a `SlimdownError` that says what to do."""
    try:
        with asking_hub(config.named):
            yield
    except SlimdownError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or is_out_of_memory(error):
            raise SlimdownError(
                f"{config.named} does not fit in the memory of {config.device}; {_SMALLER}"
            ) from None
        raise SlimdownError(_explain(config, error)) from error


def check_numbers(named: str, model: Any) -> None:
    """Refuse weights that compute no numbers, by one forward of a few tokens: NaN anywhere comes through."""
    tokens = torch.arange(
        min(16, model.get_input_embeddings().weight.shape[0]), device=model.device
    )[None]
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False).logits
    if logits.float().log_softmax(-1).isnan().any():
        narrow = (
            ""
            if model.dtype == torch.float32
            else f", or try model.dtype=float32 (now {model.dtype})"
        )
        raise SlimdownError(
            f"{named} computes no numbers: its weights hold NaN or infinity, or numbers that overflow. "
            f"Download it again or choose another revision{narrow}"
        )


def context_window(model: Any) -> int | None:
    """The most tokens the model was made for, or None where its config does not say."""
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(window) if window else None


def _device(wanted: Device) -> torch.device:
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    name = (
        next(name for name, there in available.items() if there)
        if wanted is Device.auto
        else wanted.value
    )
    if not available[name]:
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise SlimdownError(f"model.device={wanted}: this machine has none; it has {there}")
    if name != "cuda" or (index := processes.device_index()) is None:
        return torch.device(name)
    if index >= (n := torch.cuda.device_count()):
        raise SlimdownError(
            f"each process takes a GPU of its own, and this machine has {n}: start {n} processes or fewer"
        )
    torch.cuda.set_device(index)  # whoever says cuda from now on means this one
    return torch.device(name, index)


def _dtype(wanted: Dtype, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype, and why it is that one."""
    if wanted is Dtype.auto:
        dtype, reason = auto_dtype(device)
        return dtype, f"auto: {reason}"
    return getattr(torch, wanted.value), "as set"


def _bitsandbytes(quantization: QuantizationConfig, device: torch.device) -> Any:
    from transformers import BitsAndBytesConfig

    if quantization.name == "none":
        return None
    upstream = {
        key: value
        for key, value in asdict(quantization).items()
        if not key.startswith("dequantize")
    }
    if quantization.load_in_4bit:
        quantize_quickly()
    upstream["bnb_4bit_compute_dtype"], _ = _dtype(quantization.bnb_4bit_compute_dtype, device)
    return BitsAndBytesConfig(**upstream)


def _skeleton(config: ModelConfig, dtype: torch.dtype | None = None) -> Any:
    """The model without its numbers, which are not pickled ones; in the dtype of its config, or another."""
    import transformers

    source, common = _source(config)
    architecture = transformers.AutoConfig.from_pretrained(source, **common)
    _weight_files(config, architecture)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(
            architecture,
            attn_implementation=config.attn_implementation,
            dtype=dtype or architecture.dtype,
        )


def _check_weights(config: ModelConfig, model: Any, skeleton: Any, missing: Iterable[str]) -> None:
    """Refuse weights that are not those of the config: transformers makes up what is missing, and says so in a log."""
    # of the layers as quantized: GPT-2's lie transposed until then
    shapes = {
        name: tuple(published_shape(parameter)) for name, parameter in skeleton.named_parameters()
    }
    wrong = [f"{name} is not in them" for name in sorted(missing)]
    wrong += [
        f"{name} is {tuple(published_shape(parameter))} and should be {shapes[name]}"
        for name, parameter in model.named_parameters()
        if shapes.get(name, tuple(published_shape(parameter))) != tuple(published_shape(parameter))
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise SlimdownError(
            f"{config.named}: the weights are not those that its config.json describes: {'; '.join(wrong[:3])}"
            f"{more}; get the model again, or correct its config.json"
        )


_SMALLER = "choose a smaller model, quantization=nf4, or a machine with more memory"


def _check_memory(
    config: ModelConfig, quantization: QuantizationConfig, outline: Outline, quantized: Any
) -> None:
    """Refuse a model whose weights alone exceed the memory that is free, before anything is downloaded."""
    free = free_bytes(outline.device)
    needed = weight_sizes(quantized).held
    if needed > free:
        others = (
            name
            for name in ("nf4", "int8")
            if weight_sizes(outline.quantized(quantization, name)).held < free
        )
        fitting = next(others, None)
        way_out = f"quantization={fitting} would fit" if fitting else _SMALLER
        raise SlimdownError(
            f"{config.named} needs {needed / 2**30:.1f} GiB for its weights with quantization={quantization.name}, and "
            f"{free / 2**30:.1f} GiB are free on {outline.device.type}; {way_out}"
        )


def _weight_files(config: ModelConfig, architecture: Any) -> list[str]:
    """The files that the index of the weights names; none where there is no index.

    Raises:
        SlimdownError: they are pickled: transformers reads what an index names whatever `use_safetensors` says (5.20 to
            5.24); to be deleted when it refuses.
    """
    from transformers.utils import cached_file

    index = cached_file(
        str(config.folder or config.id),
        "model.safetensors.index.json",
        revision=config.revision,
        _commit_hash=getattr(
            architecture, "_commit_hash", None
        ),  # spares the second run the question
        _raise_exceptions_for_missing_entries=False,
    )
    named = (
        set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
        if index
        else set()
    )
    if pickled := sorted(name for name in named if not name.endswith(".safetensors")):
        raise SlimdownError(
            f"{config.named}: its index names {pickled[0]}, and pickled weights can run code when they are read; "
            "choose a revision or a copy of the model with .safetensors files"
        )
    return sorted(named)


def resolved_revision(source: str, revision: str) -> str:
    """The hub's commit, which names the cache folder that the files lie in; for a local folder a digest."""
    if Path(source).is_dir():
        return f"sha256:{folder_digest(Path(source))}"
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else revision


def _explain(config: ModelConfig, error: Exception) -> str:
    """What a loading error means to the user, and what to do; loading wraps the hub's own errors several deep."""
    from huggingface_hub import errors as hub

    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    text = " ".join(str(link) for link in chain)
    page = f"https://huggingface.co/{config.id}"
    if any(isinstance(link, hub.GatedRepoError) for link in chain) or "access a gated repo" in text:
        return (
            f"{config.named} is gated: accept its licence at {page}, then log in with `hf auth login` "
            "(or set HF_TOKEN); or try an open one, e.g. model=smollm2"
        )
    if any(isinstance(link, hub.RevisionNotFoundError) for link in chain):
        return f"{config.named} has no such branch, tag or commit as {config.revision}; see {page}"
    if any(isinstance(link, hub.RepositoryNotFoundError) for link in chain):
        return (
            f"{config.named}: there is no such model on the hub, nor a local folder of that name; check the "
            "spelling, or log in with `hf auth login` if it is private"
        )
    if "No space left" in text:
        return (
            f"{config.named}: no space left on the disk that holds the hub's cache; free some, or point "
            "HF_HOME to a larger disk"
        )
    if any(type(link).__name__ == "SafetensorError" for link in chain):
        return (
            f"{config.named}: a .safetensors file is damaged or cut short ({error}); get it again"
        )
    if "safetensors" in text:
        return (
            f"{config.named} has no safetensors weights, and pickled ones can run code when they are read; "
            "choose a revision or a copy of the model with .safetensors files"
        )
    if isinstance(error, (KeyError, ValueError)) and "trust_remote_code" in text:
        return f"{config.named} needs code of its own, which is not run here; choose a model of transformers"
    if any(
        type(link).__module__.split(".")[0] in ("httpx", "httpx2", "requests") for link in chain
    ) or any(
        isinstance(
            link, (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, hub.HfHubHTTPError)
        )
        for link in chain
    ):
        return (
            f"{config.named} cannot be reached: the hub does not answer and the model is not in the local cache; "
            "check the network and HF_ENDPOINT, or run the embedded world, which needs none: python -m slimdown.run"
        )
    return f"{config.named} cannot be loaded: {' '.join(str(error).split())[:400]}"
