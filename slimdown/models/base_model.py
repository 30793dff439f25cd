"""Load a base model: quantized as set, on its device, with its tokenizer."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, snapshot_download
from transformers.utils.hub import cached_file

from slimdown.config.schema import Device, Dtype, ModelConfig, QuantizationConfig, RunConfig
from slimdown.models.device_memory import free_memory
from slimdown.models.identity import describe_computation, hash_tokenizer
from slimdown.models.memory_estimates import estimate_weight_bytes
from slimdown.models.quiet import quiet_libraries
from slimdown.models.server import Server
from slimdown.models.weight_files import refuse_missing
from slimdown.utils.distributed import local_rank, process_count
from slimdown.utils.errors import ModelError
from slimdown.utils.hub import explain_hub_errors

MODEL_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]  # all but weights and card
_MOST_LAYERS = 1_000  # or experts; the largest models that are published have 126, and 512
# Implementations of attention and of experts that are part of torch and transformers.
_BUILT_IN = frozenset([None, "eager", "sdpa", "flex_attention", "grouped_mm", "batched_mm"])


@dataclass(frozen=True)
class AskingRules:
    """How a model is asked, beside what its tokenizer and its settings of generation say.

    Attributes:
        stops: The ids of tokens that end an answer. If there are none, the settings of generation
            decide, or with `stops_alone` no token ends one.
        stops_alone: Whether no other token ends one, whatever a task or the harness asks for.
        doubles_bos: Whether BOS is put before a prompt that begins with it already.
        generation: Settings of generation that take the place of the model's, by name; a value of
            None switches a setting off.
    """

    stops: tuple[int, ...] = ()
    stops_alone: bool = False
    doubles_bos: bool = False
    generation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model and its tokenizer, ready to be measured or trained."""

    model: Any  # transformers' PreTrainedModel, or PEFT's PeftModel around it
    tokenizer: Any
    id: str
    dtype: str
    revision: str = ""  # the hub's commit, or sha256:DIGEST of a local folder
    quantization: str = "none"  # nf4, fp4, int8, none, or the method by which its publisher did it
    device: str = "cpu"
    n_parameters: int = 0
    memory_bytes: int = 0  # of weights and buffers
    identity: Mapping[str, Any] = field(default_factory=dict)  # what the answers depend on
    license: str = ""
    files: str = ""  # the folder of its files
    adapter: str = ""  # the folder of the adapter on it
    outline: Any = field(default=None, repr=False, compare=False)  # see `load_outline`
    rules: AskingRules = AskingRules()
    server: Server | None = None  # answers in the place of `model`, which is the base's outline

    @classmethod
    def without_loading(cls, outline: Any, tokenizer: Any, model_id: str) -> "LoadedModel":
        """Return a model whose weights are not loaded, for checks that need only its modules.

        Args:
            outline: Its modules without their weights, see `load_outline`.
            tokenizer: Its tokenizer.
            model_id: Its name.
        """
        return cls(outline, tokenizer, model_id, dtype="", outline=outline)

    def without_weights(self) -> "LoadedModel":
        """Return what is known of the model, with its outline in the place of its weights."""
        return replace(self, model=self.outline)

    def with_rules(self, rules: AskingRules, tokenizer: Any) -> "LoadedModel":
        """Return the model as it answers by these rules, with this tokenizer."""
        identity = {**self.identity, "tokenizer": hash_tokenizer(tokenizer)}
        if rules != AskingRules():
            identity["rules"] = asdict(rules)
        return replace(self, tokenizer=tokenizer, rules=rules, identity=identity)


def load_base_model(
    config: ModelConfig,
    quantization: QuantizationConfig,
    tokenizer: Any = None,
    outline: Any = None,
) -> LoadedModel:
    """Load a model in evaluation mode. Nothing is changed but the quantization.

    Args:
        config: Which model, its dtype and device. A whole tuned model is loaded like a base.
        quantization: How bitsandbytes stores its linear layers.
        tokenizer: Used instead of the model's own; it has padded nothing yet. None: the model's
            own is loaded.
        outline: What `load_outline` returned; None: it is called here.

    Returns:
        The model, with the facts that are recorded about it.

    Raises:
        ModelError: The model cannot be fetched or read, does not fit in memory, or computes NaN.
    """
    import transformers

    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    source = str(config.folder or config.id)
    with quiet_libraries(), explain_hub_errors(config.named):
        outline = outline or load_outline(config, quantization.name)
        _check_memory(config, quantization, outline)
        tokenizer = tokenizer or load_base_tokenizer(config)
        # The empty name stands for the whole model: all of it gets onto one device.
        settings: dict[str, Any] = {"dtype": dtype, "device_map": {"": str(device)}}
        # From 5.25 on, transformers would run compiled code from the hub on a GPU by default.
        settings |= {"use_kernels": False, **config.args}
        # The setting is left out otherwise: None would drop its publisher's quantization.
        if conversion := _build_conversion(config, quantization, device):
            settings["quantization_config"] = conversion
        settings |= {"revision": config.revision, "trust_remote_code": False}
        settings |= {"use_safetensors": True, "output_loading_info": True}
        loader: Any = transformers.AutoModelForCausalLM
        model, loading_info = loader.from_pretrained(source, **settings)
    refuse_missing(config, loading_info)
    # On a CPU with AVX512-BF16 the first inference forward of a 4-bit layer repacks its weights for
    # a kernel without a gradient: training after a measurement would silently train nothing.
    # bitsandbytes 0.49 to 0.50; to be deleted when the packed kernel has a backward pass.
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    check_numbers(config.named, model.eval())
    described = describe_base_model(config, quantization, tokenizer, outline)
    # What was estimated from the outline is known now.
    return replace(
        described,
        model=model,
        memory_bytes=model.get_memory_footprint(),
        identity={**described.identity, "attention": model.config._attn_implementation},
        license=_read_license(source, config.revision),
    )


def _check_memory(config: ModelConfig, quantization: QuantizationConfig, outline: Any) -> None:
    """Refuse a model whose weights do not fit in memory."""
    device = pick_device(config.device)
    # A model whose publisher quantized it counts as one in 4 bits, the least that it may need.
    is_quantized = bool(getattr(outline.config, "quantization_config", None))
    stored = replace(quantization, load_in_4bit=is_quantized or quantization.load_in_4bit)
    needed = estimate_weight_bytes(outline, stored, pick_dtype(config.dtype, device))
    if needed > (free := free_memory(device)):
        raise ModelError(
            f"{config.named} needs {needed / 2**30:.1f} GiB for its weights with "
            f"quantization={quantization.name}, and {free / 2**30:.1f} GiB are free on "
            f"{device.type}; choose a smaller model, quantization=nf4, or another machine"
        )


def _read_license(source: str, revision: str) -> str:
    """Read the license from a model's card; empty where there is no card, or no hub."""
    with suppress(Exception):  # nothing depends on it
        card = ModelCard.load(str(cached_file(source, "README.md", revision=revision)))
        return str(card.data.get("license") or "")
    return ""


def describe_base_model(
    config: ModelConfig, quantization: QuantizationConfig, tokenizer: Any, outline: Any
) -> LoadedModel:
    """Describe a model before its weights are loaded; `model` is the outline.

    Args:
        config, quantization: As for `load_base_model`.
        tokenizer: The one that the model is asked with; it has padded nothing yet.
        outline: What `load_outline` returned.

    Returns:
        The facts that are recorded, all but the license. The memory is an estimate.
    """
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    files = find_files(config)
    # In the hub's cache, the folder has the name of the commit.
    revision = f"sha256:{config.hash_files()}" if config.folder else files.name
    conversion = _build_conversion(config, quantization, device)
    quantization_name = quantization.name
    publisher_quantization = getattr(outline.config, "quantization_config", None)
    if publisher_quantization:  # then this run quantizes nothing
        quantization_name = str(publisher_quantization.get("quant_method", "own"))
    # A local GGUF file counts by its content, which the revision has, and not by its name.
    args = {k: v for k, v in config.args.items() if not (config.folder and k == "gguf_file")}
    identity = {
        "weights": revision if config.folder else f"{config.id}@{revision}",
        "quantization": str(conversion.to_dict() if conversion else None),
        "dtype": str(dtype),
        "attention": outline.config._attn_implementation,
        "tokenizer": hash_tokenizer(tokenizer),
        **describe_computation(device),
        **({"args": args} if args else {}),
    }
    return LoadedModel(
        model=outline,
        tokenizer=tokenizer,
        id=config.id,
        dtype=str(dtype).removeprefix("torch."),
        revision=revision,
        quantization=quantization_name,
        device=device.type,
        n_parameters=sum(parameter.numel() for parameter in outline.parameters()),
        memory_bytes=estimate_weight_bytes(outline, quantization, dtype),
        identity=identity,
        files=str(files),
        outline=outline,
    )


def find_files(config: ModelConfig) -> Path:
    """Return the folder that holds a model's settings, here or in the hub's cache."""
    source, file = str(config.folder or config.id), config.args.get("gguf_file", "config.json")
    # The file is downloaded if the cache lacks it.
    return Path(str(cached_file(source, file, revision=config.revision))).parent


def _build_conversion(
    config: ModelConfig, quantization: QuantizationConfig, device: torch.device
) -> Any:
    """Build transformers' `quantization_config`: how loading quantizes the weights or unpacks them.

    It is None if the weights stay as the files have them.
    """
    import transformers

    if quantization.name != "none":
        compute_dtype = pick_dtype(quantization.bnb_4bit_compute_dtype, device)
        settings = asdict(quantization) | {"bnb_4bit_compute_dtype": compute_dtype}
        return transformers.BitsAndBytesConfig(**settings)
    if config.gguf_args:  # a GGUF file that stays packed could neither be trained nor saved
        return transformers.GgufConfig(dequantize=True)
    return None


def load_outline(config: ModelConfig, quantization: str = "none") -> Any:
    """Build the model on torch's meta device; its weights are neither fetched nor in memory.

    Args:
        config: Which model.
        quantization: The name of the quantization that this run gives its weights, for a check.

    Returns:
        The model of transformers; its parameters have shapes and dtypes, and no values.

    Raises:
        ModelError: It cannot be fetched, is no causal language model of transformers, or is
            quantized already and should be quantized again.
    """
    import transformers
    from transformers.quantizers.auto import AutoQuantizationConfig

    source = str(config.folder or config.id)
    # Those of attention and experts; all other options are of loading weights.
    implementations = {k: v for k, v in config.args.items() if k.endswith("_implementation")}
    with explain_hub_errors(config.named):
        architecture = transformers.AutoConfig.from_pretrained(
            source, revision=config.revision, trust_remote_code=False, **config.gguf_args
        )
        _check_architecture(config, architecture)
        publisher_quantization = getattr(architecture, "quantization_config", None)
        # A GGUF file counts as quantized, too.
        if quantization != "none" and (publisher_quantization or config.gguf_args):
            raise ModelError(
                f"{config.named} is quantized already, and quantization={quantization} would "
                "round its weights a second time; set quantization=none"
            )
        if publisher_quantization and not config.gguf_args:
            # A check: it raises for an unknown quantization, which `from_config` would ignore.
            AutoQuantizationConfig.from_dict(publisher_quantization)
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(
                architecture, dtype=architecture.dtype, **implementations
            )


def _check_architecture(config: ModelConfig, architecture: Any) -> None:
    """Refuse a config.json that asks for compiled code from the hub, or for too many layers.

    Args:
        config: Which model; its `args` come before what the file asks for.
        architecture: The content of config.json as transformers reads it, or a part of it.
    """
    for kind in ("attn_implementation", "experts_implementation"):
        name = config.args.get(kind) or getattr(architecture, f"_{kind}")
        # If flash_attn is not installed, transformers takes a kernel of the hub instead.
        is_flash = str(name).startswith("flash_attention")
        is_installed = is_flash and any(map(find_spec, ("flash_attn", "flash_attn_interface")))
        is_from_hub = name not in _BUILT_IN and not is_installed
        if is_from_hub and not config.allow_kernels:
            raise ModelError(
                f"{config.named} asks for {kind}={name}, which is compiled code from the hub; read "
                f"it, and set model.allow_kernels=true, or set model.args.{kind}=eager"
            )
    # A damaged or malicious number would make transformers build layers until the memory is full.
    for name, value in vars(architecture).items():
        is_count = isinstance(value, int) and re.fullmatch(r"(n|num)_.*(layers?|experts)", name)
        if is_count and value > _MOST_LAYERS:
            raise ModelError(
                f"{config.named}: its config.json has {name}={value:,}, and slimdown builds "
                f"{_MOST_LAYERS:,} at most; get it again, or choose another model"
            )
    for name in architecture.sub_configs:  # such as those of text and vision
        if (part := getattr(architecture, name, None)) is not None:
            _check_architecture(config, part)


def load_tokenizer(source: str | Path, **options: Any) -> Any:
    """Load a tokenizer as its files say, with a padding token as the harness would choose it.

    Args:
        source: A folder, or a name on the hub.
        options: Those of `AutoTokenizer.from_pretrained`.
    """
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def load_base_tokenizer(config: ModelConfig) -> Any:
    """Load a model's tokenizer without its weights.

    Args:
        config: Which model; its tokenizer may be in files of its own or in its GGUF file.

    Raises:
        ModelError: It cannot be fetched.
    """
    with quiet_libraries(), explain_hub_errors(config.named):
        source, revision = config.folder or config.id, config.revision
        if not config.folder:
            # If the hub fails to send the chat template, transformers goes on as if the model had
            # none. So all small files are fetched first, where a failure is an error.
            snapshot_download(
                config.id, revision=revision, allow_patterns=MODEL_FILES, ignore_patterns="*/*"
            )
        tokenizer = load_tokenizer(source, revision=revision, **config.gguf_args)
        # With a GGUF file, transformers skips part of a tokenizer's own files if there are any.
        # The missing EOS token shows that; then the tokenizer is read from its own files alone.
        if config.gguf_args and tokenizer.eos_token is None:
            return load_tokenizer(source, revision=revision)
        return tokenizer


def check_numbers(setting: str, model: Any) -> None:
    """Refuse a model that computes NaN: try one forward pass of a few tokens.

    Args:
        setting: The setting that names the model, for a message.
        model: The model in evaluation mode, with its weights in memory.

    Raises:
        ModelError: A logit is NaN, or becomes NaN in a softmax.
    """
    n_tokens = min(16, model.get_input_embeddings().weight.shape[0])
    with torch.no_grad():
        tokens = torch.arange(n_tokens, device=model.device)[None]
        logits = model(input_ids=tokens, use_cache=False).logits
    if logits.float().log_softmax(-1).isnan().any():
        raise ModelError(
            f"{setting} computes no numbers in {model.dtype}: its weights hold NaN or infinity, or "
            "overflow; download it again, choose another revision, or set model.dtype=float32"
        )


def pick_dtype(wanted: Dtype, device: torch.device) -> torch.dtype:
    """Choose the dtype: `auto` is bfloat16 where the device computes it fast, else float32.

    The choice depends on the device alone, so the same command finds the same base again. It is
    float16 on a GPU that has no bfloat16.
    """
    if wanted is not Dtype.auto:
        return getattr(torch, wanted.value)  # type: ignore[no-any-return]
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float16
    is_fast = device.type == "cpu" and has_fast_bfloat16(_read_processor())
    return torch.bfloat16 if is_fast else torch.float32


def fix_dtypes(config: RunConfig) -> RunConfig:
    """Return the settings with `auto` replaced by the dtypes that this machine computes in."""
    device = pick_device(config.model.device)

    def pick(wanted: Dtype) -> Dtype:
        return Dtype(str(pick_dtype(wanted, device)).removeprefix("torch."))

    compute_dtype = pick(config.quantization.bnb_4bit_compute_dtype)
    return replace(
        config,
        model=replace(config.model, dtype=pick(config.model.dtype)),
        quantization=replace(config.quantization, bnb_4bit_compute_dtype=compute_dtype),
    )


def has_fast_bfloat16(processor: str) -> bool:
    r"""Return whether a processor computes products in bfloat16 clearly faster than in float32.

    Products of a layer's size were timed on processors of each kind (`python -m bench.machine`).
    Where it was faster, it was at least twice as fast:

    | processor | instructions for bfloat16 | faster |
    |---|---|---|
    | Intel | amx_bf16 | yes |
    | AMD | avx512_bf16 | yes |
    | Intel | avx512_bf16 without amx_bf16 | no, half as fast |
    | any | none | no |

    Args:
        processor: What Linux writes into /proc/cpuinfo; empty on other systems.

    >>> has_fast_bfloat16("vendor_id : AuthenticAMD\nflags : avx512f avx512_bf16")
    True
    >>> has_fast_bfloat16("vendor_id : GenuineIntel\nflags : avx512f avx512_bf16")
    False
    """
    words = set(processor.split())
    return "amx_bf16" in words or {"AuthenticAMD", "avx512_bf16"} <= words


@cache
def _read_processor() -> str:
    with suppress(OSError):  # another system than Linux
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    return ""


def pick_device(wanted: Device) -> torch.device:
    """Choose the device: `auto` is CUDA, else Apple's MPS, else the CPU.

    If several processes share a run, each gets a GPU of its own, as far as there are enough.

    Raises:
        ModelError: This machine does not have the wanted device.
    """
    present = ["cpu"]  # what this machine has, the best first
    # Before torch 2.13, padded rows attend to padding on Apple's MPS:
    # https://github.com/pytorch/pytorch/pull/184180. `__version__` compares as a version.
    if torch.backends.mps.is_available() and torch.__version__ >= "2.13":
        present.insert(0, "mps")
    if torch.cuda.is_available():
        present.insert(0, "cuda")
    name = present[0] if wanted is Device.auto else wanted.value
    if name not in present:
        older = ", or its torch is older than 2.13" if name == "mps" else ""
        raise ModelError(
            f"model.device={name}: this machine has none{older}; it has {', '.join(present)}"
        )
    if name != "cuda" or process_count() == 1:
        return torch.device(name)
    # From now on, `cuda` means this process's card.
    torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    return torch.device(name, torch.cuda.current_device())
