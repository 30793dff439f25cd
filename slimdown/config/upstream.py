"""Options of other libraries that a section hands on by name: which there are, and of what type.

Both are read from the installed source: nothing is imported, and a mistake is answered at once.
"""

import ast
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from slimdown.config.fields import nearest
from slimdown.utils.secrets import redact_uri

_KINDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a text"}
_KINDS |= {"list": "a list", "dict": "a mapping", "None": "null"}


@cache
def read_class(package: str, file: str, name: str) -> dict[str, str]:
    """Return what a class declares: the types of its fields or, of an enumeration, its values.

    Args:
        package: It is not imported.
        file: A path in the package's folder.
        name: The class.

    Returns:
        Source text by name; nothing where the installed version has no such class.
    """
    spec = find_spec(package)
    source = Path(spec.origin).parent / file if spec and spec.origin else Path()
    classes = ast.parse(source.read_bytes()).body if source.is_file() else []
    body = next((c.body for c in classes if isinstance(c, ast.ClassDef) and c.name == name), [])
    fields = {ast.unparse(s.target): s.annotation for s in body if isinstance(s, ast.AnnAssign)}
    values = {ast.unparse(s.targets[0]): s.value for s in body if isinstance(s, ast.Assign)}
    return {name: ast.unparse(text) for name, text in (fields or values).items()}


@dataclass(frozen=True)
class Options:
    """What can be handed on to a class of another library.

    Attributes:
        owner: The class and its library.
        refused: Why an option is not handed on, by a pattern of its name.
        classes: Where its options are declared, for `read_class`.
        declared: Options besides, or narrowed, with their types.
    """

    owner: str
    refused: dict[str, str]
    classes: tuple[tuple[str, str, str], ...] = ()
    declared: dict[str, str] = field(default_factory=dict)

    def accepted(self, own: Collection[str]) -> dict[str, str]:
        """Return the types of the options that are handed on; `own` are settings by themselves."""
        types: dict[str, str] = {}
        for place in self.classes:
            types |= read_class(*place)
        types |= self.declared
        return {k: t for k, t in types.items() if k not in own and not self.explain_refused(k)}

    def explain_refused(self, name: str) -> str | None:
        """Say why an option is not handed on; None where it is, or where there is none."""
        return next((why for names, why in self.refused.items() if re.fullmatch(names, name)), None)

    def find_problems(self, values: dict[str, Any], own: Collection[str]) -> Iterator[str]:
        """Say what is wrong with options, each with its name first."""
        accepted = self.accepted(own)
        for name, value in values.items():
            if name in own:
                yield f"{name} is a setting of its own: leave `args.` out"
            elif reason := self.explain_refused(name):
                yield f"{name} is not handed on: {reason}"
            elif (kind := accepted.get(name)) is None:
                yield f"{name} is no option of {self.owner}{nearest(name, list(accepted))}"
            elif not _holds(kind, value):
                words = _list_words(kind)
                right = [said for word, said in _KINDS.items() if word in words]
                right += [word for word in words if word.startswith("'")]
                shown = redact_uri(repr(value))[:80]
                yield f"{name} must be {', '.join(right)}, got {shown}"


MODEL_OPTIONS = Options(
    "AutoModelForCausalLM.from_pretrained that slimdown hands on",
    {
        "(torch_)?dtype": "set model.dtype",
        "revision": "set model.revision",
        "device_.*|max_memory|offload.*|tp_.*|distributed.*": "set model.device, which holds all",
        "quantization_config|load_in_.*": "choose quantization=...",
        ".*remote_code|code_revision": "slimdown runs no code that comes with a model",
        "use_safetensors|weights_only": "slimdown reads safetensors alone",
        "token": "log in with `hf auth login`, or set HF_TOKEN",
    },
    declared=dict.fromkeys(("attn_implementation", "experts_implementation"), "str | None")
    | {"gguf_file": "str", "use_kernels": "bool"},
)
LORA_OPTIONS = Options(
    "PEFT's LoraConfig",
    {
        "use_dora": "choose method=dora",
        "bias|layer_replication|kasa_config": "it changes the base, which has to stay as it is",
        "(eva|corda|lora_ga|loftq)_config": "lora.args.init_lora_weights says why",
        "alora_.*": "rows without padding hide where each begins",
        "arrow_config": "it wants other adapters beside this one",
        "monteclora_config": "it wants a loss of its own",
        "use_bdlora|(use_)?qalora.*": "PEFT reads it for some kinds of layers, silent elsewhere",
        "fan_in_fan_out": "PEFT sees it by itself",
        "megatron_.*": "slimdown trains without Megatron",
        "runtime_config|(task|peft)_.*|inference_mode|base_.*|revision|auto_.*": "slimdown sets it",
    },
    (("peft", "config.py", "PeftConfig"), ("peft", "tuners/lora/config.py", "LoraConfig")),
    {"init_lora_weights": "bool | Literal['gaussian', 'orthogonal', 'mica']"},
)
TRAIN_OPTIONS = Options(
    "TRL's SFTConfig",
    {
        "output_dir|report_to|run_name|project|trackio_.*|log_.*|logging_.*|disable_tqdm|skip_memory"
        "_metrics|include_num_.*": "slimdown itself records each step, in MLflow",
        "push_to_hub|hub_.*": "slimdown uploads nothing",
        "save_.*|ignore_.*|restore_.*|enable_jit_.*|resume_.*": "set train.checkpoint_minutes",
        "eval_.*|do_.*|prediction_loss_only|include_for_.*|batch_eval_.*|metric_.*|greater_is_better"
        "|load_best_.*": "the held-out rows are asked before and after the training",
        "bf16.*|fp16.*": "nothing is computed by autocast; set model.dtype",
        "tf32|full_determinism": "it changes how the whole process computes, and so measures",
        "use_liger.*|liger_.*": "its kernels stay, and the tuned model would be measured by others "
        "than the base; model.args.use_kernels=true gives both the same",
        "dataset_.*|.*_token|truncation_.*|shuffle_.*|packing_.*|chat_.*|label_names|remove_.*"
        "|length_.*": "slimdown reads, tokenizes and cuts the rows (dataset.*)",
        "padding_free": "padding is left out wherever a trial gives the same loss",
        "train_sampling_strategy": "rows come in random order",
        "dataloader_drop_last": "it would leave out held-out rows, too",
        "label_smoothing_.*|router_.*|average_.*|use_cache": "slimdown computes the loss itself",
        "auto_find_.*": "results would depend on what memory is free",
        "activation_checkpointing": "set train.gradient_checkpointing",
        "fsdp.*|deepspeed|parallelism_config|local_rank": "each process holds the whole model",
        "debug": "a loss or gradient that is no number ends the training anyway",
        "use_cpu": "set model.device",
        "seed|data_seed": "set seed",
        "model_init_kwargs": "set model.args",
        "trust_remote_code": "slimdown runs no code that comes with a model",
    },
    (
        ("transformers", "training_args.py", "TrainingArguments"),
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("trl", "trainer/sft_config.py", "SFTConfig"),
    ),
)


def _list_words(kind: str) -> list[str]:
    """Return the words of an annotation: names of types, and quoted texts that are allowed."""
    kind = kind.replace("Optional[", "None|").replace("Config", "|dict")  # of a class: its fields
    while (outer := re.sub(r"(list|dict)\[[^][]*\]", r"\1", kind)) != kind:
        kind = outer
    return re.findall(r"'[^']*'|\w+", kind)


def _holds(kind: str, value: Any) -> bool:
    """Whether a value is of a type, as far as YAML can tell."""
    words, own = _list_words(kind), type(value).__name__.removesuffix("Type")
    if isinstance(value, list) and (inner := re.findall(r"list\[([^][]*)\]", kind)):
        return "list" in words and all(_holds("|".join(inner), each) for each in value)
    return own in words or repr(value) in words or (own == "int" and "float" in words)
