"""The typed configuration: what can be set, what each setting means, and every check on it.

Hydra composes the YAML files of `conf/`, and `load_config` turns the result into a `RunConfig`.
Each value is set in one place: in the YAML, with `MISSING` here, so that a forgotten key fails by
name; or here, where no file of `conf/` sets it. Nothing here imports torch: a mistake is answered
in well under a second.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from slimdown import pocket
from slimdown.config.dataset_config import HUB_ID, DatasetConfig
from slimdown.config.fields import (
    COUNT,
    MISSING,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    Range,
    ranged,
)
from slimdown.config.keep_config import KeepConfig
from slimdown.config.method_config import MethodConfig
from slimdown.config.search_config import SearchConfig

_FILLED = Range("must not be empty", str.strip)
_FOLDER = Range("must be a folder that is there", os.path.isdir)
_MARGIN = Range("must be above 0 and below 1 (0.02 is two points)", lambda share: 0 < share < 1)
_STEPS = Range("must be at least 1, or -1 for whole epochs", lambda n: n == -1 or n >= 1)
_WARMUP = Range("must be a share below 1, or whole steps", lambda n: 0 <= n < 1 or n == int(n) > 0)
TRAINING = ("dataset", "method", "lora", "keep", "train", "seed", "contamination", "search")
"""The sections that are read where something is trained, and idle with `tuned`."""
MAX_VLLM_RANK = 64  # vLLM's max_lora_rank, equal for all runs so that they share a base

OnProgress = Callable[[int, int, str], None]
"""Gets how much is done, of how much, and a few words to show beside it."""

DEFAULT_STORE = "sqlite:///mlruns/mlflow.db"
_SERVERS = r"(https?|postgresql|mysql|mssql|databricks)(\+\w+)?://.*[^/].*"
_STORE = Range(
    f"must be a database or a server, such as {DEFAULT_STORE} or http://localhost:5000",
    re.compile(rf"sqlite(\+\w+)?:///+[^/:].*[^/]|databricks|{_SERVERS}").fullmatch,
)
_EXPERIMENT = Range("must have 1 to 500 characters", lambda name: 0 < len(name.strip()) <= 500)


def default_store(otherwise: str = DEFAULT_STORE) -> str:
    """Return the store that MLFLOW_TRACKING_URI names, or a local file where it is empty."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").strip() or otherwise


class Device(StrEnum):
    auto = "auto"  # CUDA, then MPS, then CPU
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Dtype(StrEnum):
    auto = "auto"  # bfloat16 where it is faster than float32; float16 on a GPU without it
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class QuantType(StrEnum):
    nf4 = "nf4"
    fp4 = "fp4"


class Engine(StrEnum):
    """Whose trainer takes the steps."""

    trl = "trl"
    unsloth = "unsloth"  # FastLanguageModel under TRL's trainer, in a process of its own


# What generates answers, alike for base and tuned model: transformers, or vLLM in a process of its
# own. Likelihoods are always computed by slimdown.
Backend = StrEnum("Backend", "hf vllm")


class Role(StrEnum):
    target = "target"  # what the fine-tuning is meant to teach
    retained = "retained"  # everything else the model should still be able to do


class Until(StrEnum):
    """When an evaluation of the tuned model ends."""

    all = "all"  # when all questions are asked
    decided = "decided"  # as soon as the verdict on a benchmark is certain
    budget = "budget"  # as soon as its loss is shown to be within its budget, or beyond


class PaperMetric(StrEnum):
    ability_augmentation = "ability_augmentation"
    forgetting_rate = "forgetting_rate"
    knowledge_loss = "knowledge_loss"


@dataclass
class ModelConfig:
    """Which base model, and how its numbers are held."""

    id: str = MISSING  # a hub id, a local folder, or pocket:model (the embedded world)
    revision: str = "main"  # a branch, tag or commit of the hub
    dtype: Dtype = MISSING  # of everything that is not quantized
    device: Device = MISSING
    # what transformers' from_pretrained is given besides; `options.yaml` has the names
    args: dict[str, Any] = field(default_factory=dict)
    allow_kernels: bool = False  # run compiled code from the hub, where `args` names some

    @property
    def named(self) -> str:
        """The setting that names the model, for a message."""
        return f"model.id={self.id}" + f" model.revision={self.revision}" * (
            self.revision != "main"
        )

    @property
    def file(self) -> dict[str, str]:
        """The GGUF file that holds everything, where one is named."""
        return {name: file for name, file in self.args.items() if name == "gguf_file"}

    @property
    def folder(self) -> Path | None:
        """The local folder behind `id`, or None where it names a model of the hub."""
        is_pocket = self.id == "pocket:model"
        folder = pocket.MODEL_DIR if is_pocket else Path(os.path.expanduser(self.id))
        return folder if self.id and os.path.isdir(folder) else None

    def problems(self) -> Iterator[str]:
        if self.folder and (self.folder / "adapter_config.json").is_file():
            # transformers would put the adapter on, whatever its base
            yield f"id={self.id} holds an adapter; name its base here, and tuned={self.id}"

    def source_problems(self) -> Iterator[str]:
        """Say what is wrong with where the model comes from, with the setting's whole name."""
        if self.folder and self.revision != "main":
            yield f"{self.named} is a folder and has no revisions; leave out {self.revision!r}"
        elif not self.folder and (
            os.path.exists(self.id) or not (HUB_ID.fullmatch(self.id) and self.revision.strip())
        ):
            forms = "OWNER/NAME, and behind tuned= OWNER/NAME@REVISION, too"
            yield f"{self.named}: there is no such folder, and a hub id is {forms}"


@dataclass
class TunedModelConfig(ModelConfig):
    """A PEFT adapter or a whole model made elsewhere; its numbers are held as the base's are."""

    @property
    def named(self) -> str:
        return f"tuned={self.id}" + f"@{self.revision}" * (self.revision != "main")


@dataclass
class QuantizationConfig:
    """How the base is quantized; the fields are those of transformers' `BitsAndBytesConfig`."""

    load_in_4bit: bool = MISSING
    load_in_8bit: bool = MISSING
    bnb_4bit_quant_type: QuantType = MISSING
    bnb_4bit_use_double_quant: bool = MISSING
    bnb_4bit_compute_dtype: Dtype = MISSING

    @property
    def name(self) -> str:
        """The quantization's name in tables and keys: nf4, fp4, int8 or none."""
        if self.load_in_4bit:
            return self.bnb_4bit_quant_type.value
        return "int8" if self.load_in_8bit else "none"


@dataclass
class LoraConfig:
    """The adapter; the fields are those of PEFT's `LoraConfig`."""

    r: int = ranged(COUNT)
    lora_alpha: int = ranged(COUNT)
    lora_dropout: float = ranged(SHARE)
    # module names; [all-linear] for every linear layer but the head
    target_modules: list[str] = MISSING
    # what else PEFT's LoraConfig has, where `options.yaml` says nothing against it
    args: dict[str, Any] = field(default_factory=dict)

    @property
    def is_everywhere(self) -> bool:
        """Whether every linear layer but the head is adapted."""
        return list(self.target_modules) == ["all-linear"]

    def problems(self) -> Iterator[str]:
        if not all(name.strip() for name in self.target_modules or [""]):
            yield "target_modules is empty; name at least one, e.g. [q_proj,k_proj,v_proj]"


@dataclass
class TrainConfig:
    """Fine-tuning; most fields are those of TRL's `SFTConfig`."""

    engine: Engine = MISSING
    num_train_epochs: float = ranged(POSITIVE)
    max_steps: int = ranged(_STEPS)
    per_device_train_batch_size: int = ranged(COUNT)
    gradient_accumulation_steps: int = ranged(COUNT)
    per_device_eval_batch_size: int = ranged(COUNT)
    learning_rate: float = ranged(POSITIVE)
    lr_scheduler_type: str = MISSING
    warmup_steps: float = ranged(_WARMUP)
    weight_decay: float = ranged(NOT_NEGATIVE)
    max_grad_norm: float = ranged(POSITIVE)
    optim: str = MISSING
    # longer examples are cut at the end
    max_length: int = ranged(Range("must be at least 8 tokens", lambda n: n >= 8))
    # false: the loss is over prompt and completion, as in the paper
    completion_only_loss: bool = MISSING
    assistant_only_loss: bool = MISSING  # of messages: the loss is over the assistant's turns
    gradient_checkpointing: bool = MISSING
    # minutes between two checkpoints, for a killed run to go on from; 0: none are written
    checkpoint_minutes: float | None = ranged(NOT_NEGATIVE)
    # end where a retained benchmark is shown to be beyond its budget, at the last look within all
    stop_on_forgetting: bool = False
    look_steps: int = ranged(COUNT, 50)  # between two looks
    look_questions: int = ranged(COUNT, 100)  # the first ones of each benchmark, at every look
    # what else TRL's SFTConfig has, where `options.yaml` says nothing against it
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class BenchmarkConfig:
    """One benchmark: a task of lm-evaluation-harness and how to read it."""

    task: str = ranged(_FILLED)  # the harness's task name
    # a file of questions of your own instead (docs/benchmarks.md); null: a task of the harness
    path: str | None = None
    # the primary one; filters after a dot: exact_match.flexible-extract
    metric: str = ranged(_FILLED)
    num_fewshot: int = ranged(NOT_NEGATIVE)
    chance: float = ranged(SHARE)  # what guessing scores on the primary metric
    role: Role = Role.retained
    paper_metric: PaperMetric | None = None  # which of the paper's metrics it feeds
    # null: none, else also flexible_accuracy: |answer - target| is below this
    numeric_tolerance: float | None = ranged(POSITIVE, None)
    # the first questions alone
    limit: int | None = ranged(COUNT, None, "; leave it out for all questions")
    # a change shown to be smaller than this, either way, counts as retained
    margin: float = ranged(_MARGIN, 0.02)
    # share that may be lost, for evaluation.until=budget; null: the margin of a retained benchmark
    max_loss: float | None = ranged(SHARE, None, "; 0.02 is two points")
    # what divides the scores of the primary metric, e.g. 100; null: they lie between 0 and 1
    scale: float | None = ranged(POSITIVE, None)

    def problems(self) -> Iterator[str]:
        if self.path is not None and self.num_fewshot not in (0, MISSING):
            advice = "the questions of a file have no worked examples; set it to 0"
            yield f"num_fewshot={self.num_fewshot}: {advice}"


@dataclass
class EvaluationConfig:
    """How base and tuned model are measured; the same for both."""

    batch_size: int | None = ranged(COUNT)  # null: chosen once, from the device
    apply_chat_template: bool = MISSING  # ask through the tokenizer's chat template
    # share of each benchmark's questions kept from choosing between runs; 0: none
    holdout: float = ranged(SHARE)
    until: Until = MISSING  # when to stop asking
    include_path: str | None = ranged(_FOLDER, None)  # with task files of your own
    backend: Backend = Backend.hf  # what generates answers


@dataclass
class ContaminationConfig:
    """How much of what is asked may be trained on."""

    # of each benchmark's questions, that may stand in the training rows; 1: all
    max_share: float = ranged(Range("must be from 0 to 1", lambda share: 0 <= share <= 1))


@dataclass
class BaselineConfig:
    """Whether a base that was measured before is measured again."""

    reuse: bool = MISSING  # take the scores of an equal evaluation from the record


@dataclass
class TrackingConfig:
    """Where the record goes."""

    uri: str = ranged(_STORE)  # an MLflow tracking URI
    experiment: str = ranged(_EXPERIMENT)  # the MLflow experiment


@dataclass
class RunConfig:
    """Everything one run needs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    dataset: dict[str, DatasetConfig] = field(default_factory=dict)
    method: MethodConfig = field(default_factory=MethodConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    keep: KeepConfig = field(default_factory=KeepConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    benchmark: dict[str, BenchmarkConfig] = field(default_factory=dict)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    contamination: ContaminationConfig = field(default_factory=ContaminationConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    # an adapter or a model made elsewhere: a folder, or a hub id[@revision]; nothing is trained
    tuned: str | None = None
    seed: int = ranged(SEED)
    rerun: bool = MISSING  # make a run again that is finished

    @property
    def idle_sections(self) -> tuple[str, ...]:
        """The sections that this run does not read."""
        if self.tuned is not None:
            return TRAINING
        return () if self.method.facts.reads_lora else ("lora",)

    @property
    def tuned_model(self) -> TunedModelConfig | None:
        """The adapter or model that `tuned` names."""
        if self.tuned is None:
            return None
        id_, at, revision = self.tuned.rpartition("@")
        if not at or os.path.exists(os.path.expanduser(self.tuned)):
            id_, revision = self.tuned, "main"
        args = {name: self.model.args[name] for name in self.model.args if name != "gguf_file"}
        own = {"id": id_, "revision": revision, "args": args}
        return TunedModelConfig(**vars(self.model) | own)
