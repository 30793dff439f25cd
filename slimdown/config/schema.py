"""The typed configuration: what can be set, what each setting means, and every check on it.

Hydra composes the YAML files of `conf/`, and `load_config` turns the result into a `RunConfig`.
Each value is set in one place. If the YAML sets it, it is `MISSING` here, so that a forgotten key
fails by name; if no file of `conf/` sets it, it is set here. Nothing here imports torch, so a
mistake is reported in well under a second.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from slimdown import pocket
from slimdown.config.benchmark_config import BenchmarkConfig, Until
from slimdown.config.dataset_config import HUB_ID, DatasetConfig
from slimdown.config.engines import ENGINES, Backend, Engine
from slimdown.config.fields import (
    COUNT,
    FILLED,
    NONNEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    TRAINING,
    Range,
    setting,
)
from slimdown.config.methods import MethodConfig
from slimdown.config.mitigation import Mitigation
from slimdown.config.search_config import SearchConfig
from slimdown.config.tracking_config import TrackingConfig
from slimdown.utils.extras import name_install
from slimdown.utils.hashing import hash_file, hash_folder, hash_json

_FOLDER = Range("must be a folder that exists", os.path.isdir)
_STEPS = Range("must be at least 1, or -1 for whole epochs", lambda n: n == -1 or n >= 1)
_WARMUP = Range("must be a share below 1, or whole steps", lambda n: 0 <= n < 1 or n == int(n) > 0)
# fmt: off
_RENDERED = frozenset([  # arguments of `apply_chat_template` and of our own rendering
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "messages",
    "self", "tokenize", "tokenizer",
])
# fmt: on

_NAME = Range(
    "must be one line of 1 to 100 printable characters",
    lambda text: 0 < len(text) <= 100 and text.isprintable() and text.strip() == text,
)
_NOTE = Range(
    "must be one line of at most 500 printable characters",
    lambda text: len(text) <= 500 and text.isprintable(),
)


MOST_ANSWER_MEGABYTES = 10
"""The size of the longest answer of a server, unpacked."""

# auto: CUDA, then MPS, then CPU
Device = StrEnum("Device", "auto cpu cuda mps")
# auto: bfloat16 where it is faster than float32; float16 on a GPU without it
Dtype = StrEnum("Dtype", "auto float32 bfloat16 float16")
QuantType = StrEnum("QuantType", "nf4 fp4")


@dataclass
class ModelConfig:
    """The base model, its dtype and its device."""

    id: str = setting("a hub id, a local folder, or pocket:model (the pocket world)")
    revision: str = setting("a branch, tag or commit of the hub", default="main")
    dtype: Dtype = setting(
        "the data type of everything that is not quantized; auto: a fast one for this machine"
    )
    device: Device = setting("cpu, cuda or mps; auto: the best of this machine")
    args: dict[str, Any] = setting("other options of transformers' from_pretrained", default={})
    allow_kernels: bool = setting("allow compiled code from the hub to run", default=False)

    @property
    def named(self) -> str:
        """The setting that names the model, for a message."""
        revision = f" model.revision={self.revision}" if self.revision != "main" else ""
        return f"model.id={self.id}{revision}"

    @property
    def gguf_args(self) -> dict[str, str]:
        """The argument of transformers that names a GGUF file; empty if the settings name none."""
        return {name: file for name, file in self.args.items() if name == "gguf_file"}

    @property
    def folder(self) -> Path | None:
        """The local folder behind `id`, or None where it names a model of the hub."""
        is_pocket = self.id == "pocket:model"
        folder = pocket.MODEL_DIR if is_pocket else Path(os.path.expanduser(self.id))
        return folder if self.id and os.path.isdir(folder) else None

    def hash_files(self) -> str:
        """Return 16 hex digits for the content of a local model: of its folder and its GGUF file.

        Raises:
            OSError: A file cannot be read.
        """
        assert self.folder is not None
        content = hash_folder(self.folder)
        if file := self.gguf_args.get("gguf_file"):
            return hash_json([content, hash_file(self.folder / file)])[:16]
        return content

    def problems(self) -> Iterator[str]:
        if self.folder and (self.folder / "adapter_config.json").is_file():
            # transformers would load the adapter, whatever its base
            yield f"id={self.id} holds an adapter; name its base here, and tuned={self.id}"

    def source_problems(self) -> Iterator[str]:
        """Say what is wrong with the source of the model, with the setting's whole name."""
        if re.match("https?://", self.id):
            advice = "a base model is loaded here, and only tuned= takes an address"
            yield f"{self.named} is an address; {advice} (docs/serving.md)"
        elif self.folder and self.revision != "main":
            yield f"{self.named} is a folder and has no revisions; leave out {self.revision!r}"
        elif not self.folder:
            is_hub_id = HUB_ID.fullmatch(self.id) and self.revision.strip()
            if os.path.exists(self.id) or not is_hub_id:
                forms = "OWNER/NAME, and behind tuned= OWNER/NAME@REVISION, too"
                yield f"{self.named}: there is no such folder, and a hub id is {forms}"
        if not self.folder:
            return
        # The names of all that is not a folder; none if the folder cannot be listed.
        _, _, names = next(os.walk(self.folder), ("", [], []))
        for name in names:
            file = self.folder / name
            if file.exists() and not file.is_file():  # such as a pipe, which waits for a writer
                yield f"{self.named} contains {name}, which is no readable file; remove it"


@dataclass
class TunedModelConfig(ModelConfig):
    """An adapter of PEFT or a whole model made elsewhere; its dtype and device are the base's."""

    @property
    def named(self) -> str:
        revision = f"@{self.revision}" if self.revision != "main" else ""
        return f"tuned={self.id}{revision}"

    @property
    def gguf(self) -> Path | None:
        """The local GGUF file that holds the whole model, or None where `id` names no file."""
        file = Path(os.path.expanduser(self.id))
        return file.absolute() if self.id and os.path.isfile(file) else None

    @property
    def folder(self) -> Path | None:
        return self.gguf.parent if self.gguf else super().folder

    def hash_files(self) -> str:
        return hash_file(self.gguf)[:16] if self.gguf else super().hash_files()

    def source_problems(self) -> Iterator[str]:
        """Say why `tuned` names no adapter, no model and no GGUF file."""
        if self.gguf or self.id.endswith(".gguf"):
            yield from self._file_problems()
            return
        yield from super().source_problems()
        kinds = {"adapter_config.json": "adapter", "config.json": "model"}
        if not self.folder or any((self.folder / name).is_file() for name in kinds):
            return
        checkpoints = {file.parent for name in kinds for file in self.folder.glob(f"*/{name}")}
        if checkpoints:
            # checkpoint-50 is older than checkpoint-100, which has the longer name.
            newest = max(checkpoints, key=lambda path: (len(path.name), path.name))
            advice = f"type tuned={Path(os.path.expanduser(self.id)) / newest.name}"
        elif (self.folder / "adapter_model.safetensors").is_file():
            advice = "adapter_model.safetensors is there; copy adapter_config.json beside it"
        else:
            advice = f"your trainer writes one by trainer.save_model({self.id!r})"
        lacking = " and no ".join(f"{kind} ({name})" for name, kind in kinds.items())
        yield f"{self.named} holds no {lacking}; {advice}"

    def _file_problems(self) -> Iterator[str]:
        """Say why a file cannot be read as a GGUF, as far as its name and beginning tell it."""
        if self.gguf is None:
            yield f"{self.named}: there is no such file here (none is fetched); check its path"
            return
        with self.gguf.open("rb") as content:
            begin = content.read(4)
        if begin != b"GGUF":
            problem = f"is no GGUF file: it begins with {begin!r}, and those begin with b'GGUF'"
            yield f"{self.named} {problem}; name a .gguf file, or a model's folder"
        elif part := re.search(r"-\d{5}-of-(\d{5})\.gguf$", self.gguf.name):
            advice = "join them by llama.cpp: llama-gguf-split --merge FIRST.gguf WHOLE.gguf"
            yield f"{self.named} is one of {int(part[1])} parts of a model; {advice}"
        elif (self.gguf.parent / "adapter_config.json").is_file():
            # transformers would load that adapter, whatever the file holds
            problem = "lies beside adapter_config.json, which transformers would load"
            yield f"{self.named} {problem}; move the file to a folder of its own"
        elif find_spec("gguf") is None:
            yield f"{self.named} needs the package gguf; {name_install('gguf')}"


@dataclass
class QuantizationConfig:
    """How the base is quantized; the fields are those of transformers' `BitsAndBytesConfig`."""

    load_in_4bit: bool = setting("store linear layers in 4 bits")
    load_in_8bit: bool = setting("store linear layers in 8 bits")
    bnb_4bit_quant_type: QuantType = setting("the 4-bit data type, nf4 or fp4")
    bnb_4bit_use_double_quant: bool = setting("also quantize the scales of the blocks")
    bnb_4bit_compute_dtype: Dtype = setting("the data type in which products are computed")

    @property
    def name(self) -> str:
        """The quantization's name in tables and keys: nf4, fp4, int8 or none."""
        if self.load_in_4bit:
            return self.bnb_4bit_quant_type.value
        return "int8" if self.load_in_8bit else "none"


@dataclass
class LoraConfig:
    """The adapter; the fields are those of PEFT's `LoraConfig`."""

    r: int = setting("rank of the LoRA matrices", COUNT)
    lora_alpha: int = setting("lora_alpha / r scales what the adapter adds", COUNT)
    lora_dropout: float = setting(
        "dropout: the share of inputs that are set to 0 during training", SHARE
    )
    target_modules: list[str] = setting(
        "names of the layers that get a LoRA; [all-linear]: all linear layers but the head"
    )
    args: dict[str, Any] = setting("other options of PEFT's LoraConfig", default={})

    @property
    def is_everywhere(self) -> bool:
        """Whether every linear layer but the head is adapted."""
        return list(self.target_modules) == ["all-linear"]

    def problems(self) -> Iterator[str]:
        if not all(isinstance(n, str) and n.strip() for n in self.target_modules or [""]):
            yield "target_modules is empty, or holds no names; write e.g. [q_proj,k_proj,v_proj]"


@dataclass
class TrainConfig:
    """Fine-tuning; most fields are those of TRL's `SFTConfig`."""

    engine: Engine = setting("the library that trains")
    num_train_epochs: float = setting("number of passes over the rows", POSITIVE)
    max_steps: int = setting("training steps; -1: use num_train_epochs", _STEPS)
    per_device_train_batch_size: int = setting(
        "rows per forward pass; if the memory is too small, they are split into several passes",
        COUNT,
    )
    gradient_accumulation_steps: int = setting("number of forward passes per step", COUNT)
    per_device_eval_batch_size: int = setting("held-out rows per forward pass", COUNT)
    learning_rate: float = setting("highest learning rate of the schedule", POSITIVE)
    lr_scheduler_type: str = setting("how the learning rate changes during training")
    warmup_steps: float = setting(
        "steps in which the learning rate rises, or their share of all steps", _WARMUP
    )
    weight_decay: float = setting("weight decay of the optimizer", NONNEGATIVE)
    max_grad_norm: float = setting("gradients with a larger norm are scaled down to it", POSITIVE)
    optim: str = setting("the optimizer")
    max_length: int = setting(
        "tokens per row; longer rows are cut at the end",
        Range("must be at least 8 tokens", lambda n: n >= 8),
    )
    completion_only_loss: bool = setting("train on the completion only, if rows have one")
    assistant_only_loss: bool | str = setting(
        "train on the assistant's tokens only, in conversations; auto: if the template marks them",
        Range("must be auto, true or false", lambda value: value in (True, False, "auto")),
    )
    gradient_checkpointing: bool | None = setting(
        "compute activations again instead of storing them; null: only if memory is short"
    )
    checkpoint_minutes: float | None = setting(
        "minutes between two checkpoints; 0: write none", NONNEGATIVE
    )
    stop_on_forgetting: bool = setting(
        "stop the training when a loss is proven to exceed its budget", default=False
    )
    look_steps: int = setting("stop_on_forgetting: number of steps between two looks", COUNT, 50)
    look_questions: int = setting(
        "stop_on_forgetting: number of questions per benchmark at a look (always the first ones)",
        COUNT,
        100,
    )
    args: dict[str, Any] = setting("other options of TRL's SFTConfig", default={})


@dataclass
class EvaluationConfig:
    """How base and tuned model are measured; the same for both."""

    batch_size: int | None = setting(
        "number of questions that are asked at once; null: chosen to fit the device", COUNT
    )
    apply_chat_template: bool | str = setting(
        "whether prompts use the chat template; auto: for generated answers, if the rows are "
        "conversations or `tuned` has a template",
        Range("must be auto, true or false", lambda value: value in (True, False, "auto")),
    )
    system_instruction: str | None = setting("a system prompt for all benchmarks", FILLED, None)
    chat_template_args: dict[str, Any] = setting("more variables for the chat template", default={})
    enable_thinking: bool | None = setting("the chat template's switch for thinking", default=None)
    think_end_token: str | None = setting(
        "the text that ends the thinking, such as </think>; the thinking is cut off before scoring",
        FILLED,
        None,
    )
    holdout: float = setting(
        "share of held-out questions; they are not used to choose a run, but to confirm it", SHARE
    )
    until: Until = setting(
        "when to stop asking: all, decided, budget; decided: when each verdict is certain; budget: "
        "when each budget is decided"
    )
    limit: int | None = setting(
        "the most questions of any benchmark, for a quick try; of a group such as mmlu, the most "
        "of each subject; null: as each benchmark says",
        COUNT,
        None,
    )
    include_path: str | None = setting("a folder with task files of your own", _FOLDER, None)
    backend: Backend = setting("the library that generates answers", default=Backend.hf)

    def problems(self) -> Iterator[str]:
        args = self.chat_template_args
        for name in args if isinstance(args, dict) else ():
            if name in _RENDERED or type(name) is not str:
                yield f"chat_template_args.{name} is no variable, or slimdown sets it; leave it out"
        is_idle = not self.chat_template_args and not self.enable_thinking
        if self.apply_chat_template is False and not is_idle:
            variables = "chat_template_args and enable_thinking are for the chat template"
            yield f"apply_chat_template=false: {variables}; set it to true, or leave them out"
        if self.enable_thinking and not self.think_end_token:
            yield "enable_thinking=true needs think_end_token, the end of the thinking: </think>"
        if str(self.think_end_token).isdigit():  # the harness takes it for a token's number
            yield f"think_end_token={self.think_end_token} must be a text, such as </think>"

    def narrow(self, generates: bool) -> "EvaluationConfig":
        """Return the settings for one benchmark: with `auto` decided, without what has no effect.

        Args:
            generates: Whether the benchmark's answers are generated. If not, the likelihoods of
                given answers are compared.
        """
        choice = self.apply_chat_template
        uses_template = generates if choice == "auto" else choice is True
        enable_thinking = self.enable_thinking if uses_template else None
        # A given answer is scored directly after the prompt, without any thinking. None stays None,
        # which leaves the switch to the template.
        if enable_thinking and not generates:
            enable_thinking = False
        return replace(
            self,
            apply_chat_template=uses_template,
            chat_template_args=self.chat_template_args if uses_template else {},
            enable_thinking=enable_thinking,
            think_end_token=self.think_end_token if generates else None,
        )


@dataclass
class ContaminationConfig:
    """How many of the questions may stand in the training rows."""

    max_share: float = setting(
        "largest share of a benchmark's questions that may occur in the rows",
        Range("must be from 0 to 1", lambda share: 0 <= share <= 1),
    )


@dataclass
class BaselineConfig:
    """Whether a base that was measured before is measured again."""

    reuse: bool = setting("reuse an equal measurement of the base model from the record")


@dataclass
class ServedConfig:
    """How a server is asked, if `tuned` is its address."""

    model: str | None = setting(
        "the server's name of the tuned model; null: the only one that it serves", FILLED, None
    )
    version: str | None = setting(
        "your name for what is served now; a finished run of the same version is not repeated; "
        "null: each command asks the server again",
        FILLED,
        None,
    )
    concurrency: int = setting("number of requests that the server gets at once", COUNT, 1)
    timeout: int = setting(
        "seconds to wait for one answer of the server, with all repeated requests; an answer may "
        f"have {MOST_ANSWER_MEGABYTES} MB",
        COUNT,
        300,
    )


@dataclass
class RunConfig:
    """Everything one run needs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    dataset: dict[str, DatasetConfig] = field(default_factory=dict)
    method: MethodConfig = field(default_factory=MethodConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    keep: Mitigation = field(default_factory=Mitigation)
    train: TrainConfig = field(default_factory=TrainConfig)
    benchmark: dict[str, BenchmarkConfig] = field(default_factory=dict)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    contamination: ContaminationConfig = field(default_factory=ContaminationConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    served: ServedConfig = field(default_factory=ServedConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    tuned: str | None = setting(
        "measure this tuned model, do not train; a folder, a GGUF file, HUB_ID[@REVISION], or the "
        "address of a server: http://HOST:PORT/v1",
        default=None,
    )
    suite: str | None = setting("the suite that chose the benchmarks", default=None)
    seed: int = setting(
        "seed of all random numbers; of the initial weights, the rows and their order", SEED
    )
    rerun: bool = setting("repeat a run that is already finished; otherwise it is skipped")
    name: str | None = setting("name of the run; null: made from model and settings", _NAME, None)
    note: str | None = setting("a note about the run, for yourself", _NOTE, None)

    @property
    def idle_sections(self) -> tuple[str, ...]:
        """The sections that this run does not read."""
        if self.tuned is not None:
            return TRAINING
        return () if self.method.facts.reads_lora else ("lora",)

    @property
    def trains_beside_base(self) -> bool:
        """Whether the base stays available in the training, because an adapter is trained."""
        keeps_base = ENGINES[self.train.engine].keeps_base
        return keeps_base and not self.method.facts.trains_weights

    @property
    def may_hold_conversations(self) -> bool:
        """Whether `apply_chat_template=auto` may find a reason for the template."""
        datasets = self.dataset.values()
        return self.tuned is not None or any(part.may_hold_conversations for part in datasets)

    @property
    def address(self) -> str:
        """The address of the server that `tuned` names, such as http://localhost:8080/v1."""
        if not re.match("https?://", self.tuned or ""):
            return ""
        address = str(self.tuned).rstrip("/").removesuffix("/chat/completions")
        return address if re.match("https?://[^/?#]*/", address) else f"{address}/v1"

    @property
    def tuned_model(self) -> TunedModelConfig | None:
        """The adapter or model that `tuned` names; None for a server, see `address`."""
        if self.tuned is None or self.address:
            return None
        model_id, at, revision = self.tuned.rpartition("@")
        if not at or os.path.exists(os.path.expanduser(self.tuned)):
            model_id, revision = self.tuned, "main"
        args = {name: self.model.args[name] for name in self.model.args if name != "gguf_file"}
        values = vars(self.model) | {"id": model_id, "revision": revision, "args": args}
        tuned = TunedModelConfig(**values)
        if tuned.gguf:
            args["gguf_file"] = tuned.gguf.name
        return tuned
