"""The typed configuration: what can be set, what each setting means, and every check on it.

Hydra composes the YAML files of `conf/`; `load_config` turns the result into a `RunConfig`. A value stands in
one place: in the YAML, with `MISSING` here, so that a forgotten key fails by name; or here, for what no file of `conf/`
sets. Nothing here imports torch: a mistake answers in well under a second.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from slimdown import pocket
from slimdown.config.dataset import DatasetConfig, mixture_problem
from slimdown.config.files import group_choices, transformers_names, tuned_problem
from slimdown.config.keys import (
    COUNT,
    HUB_ID,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Range,
    nearest,
    ranged,
)
from slimdown.config.method import MethodConfig
from slimdown.config.search import SearchConfig
from slimdown.utils.redaction import public_uri

_RULE = Range("must be auto, true or false", lambda text: text.lower() in ("auto", "true", "false"))
_LOSS = Range("must be a share from 0 up to, not including, 1 (0.02 is two points)", SHARE.holds)
_MARGIN = Range("must be above 0 and below 1 (0.02 is two points)", lambda share: 0 < share < 1)
TRAINING = (
    "dataset",
    "method",
    "lora",
    "train",
    "seed",
    "contamination",
    "search",
)  # what is read where something is trained, and not with `tuned`
_NAME = re.compile(
    r"[\w-]+", re.ASCII
)  # of a dataset or benchmark: part of metric keys, file names and dotted keys

OnProgress = Callable[[int, int, str], None]
"""Told how much is done, of how much, with a few words to show beside it."""


DEFAULT_STORE = "sqlite:///mlruns/mlflow.db"


def default_store(otherwise: str = DEFAULT_STORE) -> str:
    """Where the record goes if nothing else is said: MLFLOW_TRACKING_URI, or where that is empty a local file."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").strip() or otherwise


OmegaConf.register_new_resolver(
    "default_store", default_store, replace=True
)  # conf/config.yaml names it
OmegaConf.register_new_resolver(
    "twice", lambda number: 2 * number, replace=True
)  # conf/experiment/rank.yaml does


class Device(StrEnum):
    auto = "auto"  # CUDA, then MPS, then CPU
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Dtype(StrEnum):
    auto = "auto"  # bfloat16 where it is measured to be faster than float32; float16 on a GPU without it
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


class Role(StrEnum):
    target = "target"  # what the fine-tuning is meant to teach
    retained = "retained"  # everything else the model should still be able to do


class Until(StrEnum):
    """When asking questions ends."""

    all = "all"  # when all are asked
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
    attn_implementation: str | None = None  # null: the best that transformers finds for the device

    @property
    def named(self) -> str:
        """The setting that it comes from, for a message."""
        return f"model.id={self.id}"

    @property
    def folder(self) -> Path | None:
        """The local folder behind `id`, or None where it names a model of the hub."""
        folder = (
            pocket.MODEL_DIR if self.id == "pocket:model" else Path(os.path.expanduser(self.id))
        )
        return folder if os.path.isdir(folder) else None

    def problems(self) -> Iterator[str]:
        if not self.id.strip():
            yield "id is empty; give a hub id such as HuggingFaceTB/SmolLM2-135M-Instruct"
        elif self.folder:
            if self.revision != "main":
                yield f"revision={self.revision}: {self.id} is a folder and has no revisions; leave it out"
            if (
                self.folder / "adapter_config.json"
            ).is_file():  # which transformers would put on, whatever the base
                yield f"id={self.id} holds an adapter; name its base here, and itself as tuned={self.id}"
        elif self.id.startswith("pocket:"):
            yield f"id={self.id}: the embedded world has one model, pocket:model"
        elif self.id.startswith((".", "/", "~")) or self.id.count("/") > 1:
            yield f"id: there is no folder {self.id}; give a local folder or a hub id"
        elif not HUB_ID.fullmatch(self.id):
            yield f"id={self.id} is neither a hub id such as HuggingFaceTB/SmolLM2-135M-Instruct nor a folder"

    @property
    def widest(self) -> int | None:
        """The most rows or columns of a layer's matrices, where a local config.json says it."""
        try:
            shape = json.loads((self.folder / "config.json").read_bytes()) if self.folder else None
            return (
                max(int(shape["hidden_size"]), int(shape["intermediate_size"])) if shape else None
            )
        except (OSError, ValueError, TypeError, LookupError):
            return None  # another family, or no config at all: loading says so


@dataclass
class TunedConfig(ModelConfig):
    """A PEFT adapter or a whole model that somebody else made; its numbers are held as the base's are."""

    @property
    def named(self) -> str:
        return f"tuned={self.id}"

    def problems(self) -> Iterator[str]:
        if self.id.strip() and self.folder:
            if self.revision != "main":
                yield f"{self.named} is a folder and has no revisions; leave out @{self.revision}"
            elif problem := tuned_problem(self.folder):
                yield f"{self.named}: {problem}"
        elif os.path.isfile(os.path.expanduser(self.id)):
            yield f"{self.named} is a file; give the folder that it lies in"
        elif not HUB_ID.fullmatch(self.id) or self.id.startswith(".") or not self.revision.strip():
            yield f"tuned={self.id!r}: there is no such folder, and a hub id is OWNER/NAME or OWNER/NAME@REVISION"


@dataclass
class QuantizationConfig:
    """How the base is quantized; the fields are those of transformers' `BitsAndBytesConfig`."""

    load_in_4bit: bool = MISSING
    load_in_8bit: bool = MISSING
    bnb_4bit_quant_type: QuantType = MISSING
    bnb_4bit_use_double_quant: bool = MISSING
    bnb_4bit_compute_dtype: Dtype = MISSING
    dequantize_for_evaluation: str = ranged(_RULE)  # auto: where memory allows
    dequantize_for_training: str = ranged(_RULE)  # auto: on CPUs where memory allows

    @property
    def name(self) -> str:
        """What this quantization is called in tables and keys: nf4, fp4, int8 or none."""
        if self.load_in_4bit:
            return self.bnb_4bit_quant_type.value
        return "int8" if self.load_in_8bit else "none"

    def problems(self) -> Iterator[str]:
        if self.load_in_4bit and self.load_in_8bit:
            yield "load_in_4bit and load_in_8bit are both true; choose one"


@dataclass
class LoraConfig:
    """The adapter; the fields are those of PEFT's `LoraConfig`."""

    r: int = ranged(COUNT)
    lora_alpha: int = ranged(COUNT)
    lora_dropout: float = ranged(SHARE)
    target_modules: list[str] = (
        MISSING  # module names; [all-linear] for every linear layer but the head
    )

    @property
    def is_everywhere(self) -> bool:
        """Whether every linear layer but the head is adapted."""
        return list(self.target_modules) == ["all-linear"]

    def problems(self) -> Iterator[str]:
        if not all(name.strip() for name in self.target_modules or [""]):
            yield "target_modules is empty; name at least one, e.g. [q_proj,k_proj,v_proj]"


@dataclass
class TrainConfig:
    """Fine-tuning; the fields but the first and the last are those of TRL's `SFTConfig`."""

    engine: Engine = MISSING
    num_train_epochs: float = ranged(POSITIVE)
    max_steps: int = ranged(
        Range("must be at least 1, or -1 for whole epochs", lambda n: n == -1 or n >= 1)
    )
    per_device_train_batch_size: int = ranged(COUNT)
    gradient_accumulation_steps: int = ranged(COUNT)
    per_device_eval_batch_size: int = ranged(COUNT)
    learning_rate: float = ranged(POSITIVE)
    lr_scheduler_type: str = MISSING
    warmup_steps: float = ranged(NOT_NEGATIVE)  # below 1: a share of all steps
    weight_decay: float = ranged(NOT_NEGATIVE)
    max_grad_norm: float = ranged(POSITIVE)
    optim: str = MISSING
    max_length: int = ranged(
        Range("must be at least 8 tokens", lambda n: n >= 8)
    )  # longer examples are cut at the end
    completion_only_loss: bool = (
        MISSING  # false: the loss is over prompt and completion, as in the paper
    )
    assistant_only_loss: bool = MISSING  # of messages: the loss is over what the assistant says
    gradient_checkpointing: bool = MISSING
    # after so many minutes what is done is kept on disk, for a killed run to go on from, of measuring too; 0: never
    checkpoint_minutes: float | None = ranged(NOT_NEGATIVE)

    def problems(self) -> Iterator[str]:
        for name, file, enum in (
            ("lr_scheduler_type", "trainer_utils.py", "SchedulerType"),
            ("optim", "training_args.py", "OptimizerNames"),
        ):
            if (value := getattr(self, name)) not in (known := transformers_names(file, enum)):
                yield f"{name}={value}: there is none such{nearest(value, known)}"


@dataclass
class BenchmarkConfig:
    """One benchmark: a task of lm-evaluation-harness and how to read it."""

    task: str = MISSING  # the harness's task name
    metric: str = MISSING  # the primary one; filters after a dot: exact_match.flexible-extract
    num_fewshot: int = ranged(NOT_NEGATIVE)
    chance: float = ranged(SHARE)  # what guessing scores on the primary metric
    role: Role = Role.retained
    paper_metric: PaperMetric | None = None  # which of the paper's metrics it feeds
    numeric_tolerance: float | None = ranged(
        POSITIVE, None
    )  # also flexible_accuracy, |answer - target| below this
    limit: int | None = ranged(
        COUNT, None, "; leave it out for all questions"
    )  # only the first so many questions
    margin: float = ranged(
        _MARGIN, 0.02
    )  # a change shown to be smaller than this, either way, counts as retained
    # share that may be lost, for evaluation.until=budget; null: its margin if it is to be retained, else no matter
    max_loss: float | None = ranged(_LOSS, None)

    def problems(self) -> Iterator[str]:
        for name in ("task", "metric"):
            if not getattr(self, name).strip():
                yield f"{name} is empty; give the harness's name of one"


@dataclass
class EvaluationConfig:
    """How base and tuned model are measured; the same for both."""

    token_budget: int | None = ranged(COUNT)  # tokens of one forward; null: what suits the device
    batch_size: int = ranged(
        COUNT
    )  # questions run together, where a model cannot share work between them
    apply_chat_template: bool = MISSING  # ask through the tokenizer's chat template
    holdout: float = ranged(
        SHARE
    )  # share of each benchmark's questions kept from choosing between runs; 0: none
    until: Until = MISSING  # when to stop asking


@dataclass
class ContaminationConfig:
    """How much of what is asked may be trained on."""

    # of each benchmark's questions, that may stand in the training rows; 1: all
    max_share: float = ranged(Range("must be from 0 to 1", lambda share: 0 <= share <= 1))


@dataclass
class BaselineConfig:
    """Whether what was measured before is measured again."""

    reuse: bool = MISSING  # take the scores of an equal evaluation from the record


@dataclass
class TrackingConfig:
    """Where the record goes."""

    uri: str = MISSING  # an MLflow tracking URI
    experiment: str = MISSING  # the MLflow experiment
    wait: float = ranged(
        NOT_NEGATIVE, 300.0
    )  # seconds a server may be silent in a run, before results go to disk

    def problems(self) -> Iterator[str]:
        if not self.experiment.strip():
            yield "experiment is empty; give the experiment a name"
        if problem := self.uri_problem():
            yield problem

    def uri_problem(self) -> str | None:
        """Say why the address can hold no record; None where it may."""
        scheme, separator, place = self.uri.partition("://")
        dialect = scheme.partition("+")[0]
        if dialect == "sqlite" and separator:
            file = place.partition("?")[0]
            if (
                file.strip("/")
                and not file.endswith("/")
                and file.startswith("/")
                and ":memory:" not in self.uri
            ):
                return None
            return (
                f"uri={self.uri} names no file, so that the record would be gone with the process; "
                f"name one after three slashes, e.g. {DEFAULT_STORE}"
            )
        servers = ("http", "https", "postgresql", "mysql", "mssql", "databricks")
        if self.uri == "databricks" or (dialect in servers and place.strip("/")):
            return None
        address = public_uri(self.uri)
        return f"uri must be a database or a server, got {address!r}; for example {DEFAULT_STORE} or http://localhost:5000"


@dataclass
class RunConfig:
    """Everything one run needs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    dataset: dict[str, DatasetConfig] = field(default_factory=dict)
    method: MethodConfig = field(default_factory=MethodConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    benchmark: dict[str, BenchmarkConfig] = field(default_factory=dict)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    contamination: ContaminationConfig = field(default_factory=ContaminationConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    # what somebody else made of the base: a folder, or a hub id[@revision]; then nothing is trained
    tuned: str | None = None
    seed: int = ranged(NOT_NEGATIVE)
    rerun: bool = MISSING  # make a run again that is finished

    @property
    def given(self) -> TunedConfig | None:
        """The adapter or model that `tuned` names."""
        if self.tuned is None:
            return None
        whole, (id_, at, revision) = self.tuned, self.tuned.rpartition("@")
        if not at or os.path.exists(os.path.expanduser(whole)):
            id_, revision = whole, "main"
        return TunedConfig(**{**vars(self.model), "id": id_, "revision": revision})

    def problems(self) -> Iterator[str]:
        for group, chosen in (("dataset", self.dataset), ("benchmark", self.benchmark)):
            if not chosen and (self.tuned is None or group not in TRAINING):
                known = ", ".join(group_choices(group))
                yield f"no {group} is chosen; choose one or more of {known}, e.g. {group}=[...]"
            for name in chosen:
                if not _NAME.fullmatch(name):
                    yield f"{group}.{name}: a name is made of letters, digits, _ and -, or MLflow refuses its metrics"
        if mixture := mixture_problem(self.dataset):
            yield mixture
        rank, widest = self.lora.r, self.model.widest
        if self.given:
            yield from self.given.problems()
        elif self.method.is_lora and widest and widest < rank < 2**32:
            no_matrix = f"no matrix of {self.model.id} has more than {widest} rows or columns"
            yield f"lora.r={rank}: {no_matrix}, and a higher rank adds nothing"
        if self.tuned is None:
            yield from self.method.at_odds(
                self.quantization.name, self.train.gradient_checkpointing
            )


ConfigStore.instance().store(name="schema", node=RunConfig)
