"""Why slimdown does not hand on some options of PEFT, TRL and transformers.

Refused is what would change the base that is measured, make results incomparable, run code from
outside, upload something, or break the record. A reason is the end of a sentence. Names and types
are the library's own, see `training/options.py`.
"""

import re
from collections.abc import Iterator

from slimdown.config.engines import BACKENDS, ENGINES
from slimdown.config.fields import explain_type, nearest
from slimdown.config.schema import RunConfig
from slimdown.utils.secrets import redact_uri

SECTIONS = ("model", "lora", "train")
"""The sections that hand on options, in `args`."""
_MODEL_OPTIONS = {
    "attn_implementation": "str | None",
    "experts_implementation": "str | None",
    "gguf_file": "str",
    "use_kernels": "bool",
}
_STARTS = "True|False|gaussian|orthogonal|mica"
_REFUSED = {  # by section: a regular expression for NAME or NAME=VALUE, and why it is refused
    "model": {"gguf_file=[/~.].*": "give its name inside the model's folder or repository"},
    "lora": {
        "use_dora": "choose method=dora",
        "bias|layer_replication|kasa_config": "it changes the base model, which must stay as it is "
        "measured",
        rf"init_lora_weights=(?!({_STARTS})$).*": "it must be true, false, gaussian, orthogonal or "
        "mica; the others change the base model, which must stay as it is measured, or need rows",
        "alora_.*": "it needs to know where a row begins, which rows without padding hide",
        "(task|peft|auto|base)_.*|inference_mode|revision|runtime_config": "slimdown sets it",
    },
    "train": {
        "output_dir|report_to|run_name|project|log(ging)?_.*": "slimdown records each step in "
        "MLflow by itself",
        "push_to_hub|hub_.*|trackio_.*": "slimdown uploads nothing",
        ".*remote_code": "slimdown runs no code that comes with a model",
        "save_.*|ignore_.*|restore_.*|enable_jit_.*|resume_.*": "set train.checkpoint_minutes",
        "seed|data_seed": "set seed",
        "bf16.*|fp16.*": "slimdown does not use autocast; set model.dtype",
        "tf32|full_determinism": "it would change how the whole process computes",
        "use_liger.*|liger_.*": "only the tuned model would be measured with Liger's kernels; "
        "with model.args.use_kernels=true both models use the same kernels",
        "chat_.*|.*_token|remove_.*": "slimdown reads, tokenizes and cuts the rows (dataset.*)",
        "padding_free|dataset_kwargs|include_num_.*|disable_tqdm|use_cpu|train_sampling_.*|"
        "router_.*": "slimdown sets it",
        "auto_find_.*": "results would depend on the free memory",
        "fsdp.*|deepspeed|parallelism_config|accelerator_config|local_rank": "each process of "
        "slimdown holds the whole model",
        "neftune_noise_alpha=-.*": "it must not be negative",
    },
}


def find_option_problems(root: RunConfig) -> Iterator[str]:
    """Find the options in `model.args`, `lora.args` and `train.args` that are not passed on.

    These options are for the libraries: transformers, PEFT and TRL.

    Args:
        root: All settings.

    Yields:
        One line per option, with the reason.
    """
    for section in SECTIONS:
        if section in root.idle_sections:
            continue
        settings = getattr(root, section)
        for name, value in settings.args.items():
            key = f"{section}.args.{name}"
            option = f"{name}={redact_uri(str(value))[:80]}"
            if name in vars(settings):
                yield f"{key} is a setting of slimdown; leave out `args.`"
            elif section == "model" and name not in _MODEL_OPTIONS:
                receiver = "from_pretrained that slimdown passes on"
                yield f"{key} is no option of {receiver}{nearest(name, list(_MODEL_OPTIONS))}"
            elif section == "model" and (demand := explain_type(_MODEL_OPTIONS[name], value)):
                yield f"{key} {demand}, got {redact_uri(repr(value))[:80]}"
            elif reason := _find_refusal(section, name, option):
                yield f"{section}.args.{option} is not passed on: {reason}"
            elif clash := _find_clash(root, section, option):
                yield f"{section}.args.{option}: {clash}"


def _find_refusal(section: str, name: str, option: str) -> str:
    """Say why an option is refused, whatever the settings are; empty where it is not."""
    for pattern, reason in _REFUSED[section].items():
        if re.fullmatch(pattern, name) or re.fullmatch(pattern, option):
            return reason
    return ""


def _find_clash(root: RunConfig, section: str, option: str) -> str:
    """Say why an option does not go together with a setting; empty if it does.

    Args:
        root: All settings.
        section: The section whose `args` hold the option: model, lora or train.
        option: The option as NAME=VALUE.
    """
    engine = ENGINES[root.train.engine]
    backend = BACKENDS[root.evaluation.backend]
    if engine.refuses_options and root.tuned is None:
        return f"{engine.refuses_options}; set train.engine=trl"
    if backend.refuses_options and section != "train":
        return f"{backend.refuses_options}; set evaluation.backend=hf"
    is_kernel = re.fullmatch("attn_implementation=.*/.*|use_kernels=True", option)
    if section == "model" and is_kernel and not root.model.allow_kernels:
        return "it is compiled code from the hub; read it, and set model.allow_kernels=true"
    if section == "lora" and option.partition("=")[0] in root.method.facts.peft_options:
        return f"method={root.method.name} sets it already; leave out one of the two"
    # NEFTune adds random noise to a row's embeddings. A KL penalty would compare a base and a tuned
    # model that saw different noise.
    adds_noise = re.fullmatch("neftune_noise_alpha=[^N].*", option)  # with a value, not None
    if adds_noise and root.keep.compares_with_base:
        return f"with keep={root.keep.name}, its noise would differ for both models; set only one"
    return ""


def needs_libraries(config: RunConfig) -> bool:
    """Return whether `training/options.py`, which imports torch, has something to check."""
    train, lora = config.train, config.lora
    chosen = train.args or lora.args or train.optim != "adamw_torch"
    is_usual = train.lr_scheduler_type in ("linear", "cosine", "constant", "constant_with_warmup")
    return config.tuned is None and bool(chosen or not is_usual)
