"""The table of methods: settings and properties of each, and what makes and loads its weights.

To add a method, write a row here and a file in `conf/method/`; one with settings of its own has a
class here. A method that PEFT does not have also needs a module of its own. Nothing else names a
method. Another package adds one by an entry point (docs/extend.md).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

from slimdown.config.fields import COUNT, FILLED_LIST, Range, build_choice, read_choice, setting
from slimdown.utils.extensions import add_extensions

GROUP = "slimdown.methods"
_TOKENS = Range("must be from 1 to 4,096", lambda n: 1 <= n <= 4096)


@dataclass
class MethodConfig:
    """The settings of a method. Those of one with more are a subclass, named as PEFT's fields."""

    name: str = setting("the method of fine-tuning")

    @staticmethod
    def list_kinds() -> dict[str, type["MethodConfig"]]:
        """Return the class of each method's settings."""
        return {name: facts.settings for name, facts in list_all_methods().items()}

    @staticmethod
    def read_plain(values: Mapping[str, Any]) -> "MethodConfig":
        """Restore recorded settings, also those of a method that is not installed here."""
        return read_choice(MethodConfig, MethodConfig.list_kinds(), values)

    @property
    def facts(self) -> "MethodFacts":
        """The properties of the method."""
        return find_method(self.name)

    @property
    def layers(self) -> list[str]:
        """The layers that are changed, where the method's own settings name them."""
        return list(getattr(self, "target_modules", ()))


@dataclass
class VirtualTokens(MethodConfig):
    """Settings of methods that learn tokens."""

    num_virtual_tokens: int = setting("number of trained tokens before every prompt", _TOKENS)


@dataclass
class Ia3(MethodConfig):
    """Settings of IA3."""

    target_modules: list[str] = setting("the layers that are trained", FILLED_LIST)
    feedforward_modules: list[str] = setting("the layers whose input is scaled", FILLED_LIST)


@dataclass
class Shira(MethodConfig):
    """Settings of SHiRA."""

    r: int = setting("trains as many values as a LoRA of this rank", COUNT)
    target_modules: list[str] = setting("the layers that are trained", FILLED_LIST)


@dataclass
class Oft(MethodConfig):
    """Settings of OFT."""

    oft_block_size: int = setting("number of inputs that are rotated together", COUNT)
    target_modules: list[str] = setting("the layers that are trained", FILLED_LIST)


@dataclass
class Bottleneck(MethodConfig):
    """Settings of bottleneck adapters."""

    target_modules: list[str] = setting("the layers that are trained", FILLED_LIST)
    bottleneck_dim: int = setting("width of the added layers", COUNT)


@dataclass
class LastLayer(MethodConfig):
    """Settings of training the last block."""

    lm_head: bool = setting("also train the head, not only the last block")


@dataclass(frozen=True)
class MethodFacts:
    """The properties of a method.

    Attributes:
        reads_lora: Whether the section `lora` sets its shape.
        module: Its function `attach` makes what is trained. For a method that PEFT does not have,
            its `load` puts a saved adapter on the base.
        peft_config: The class of PEFT's config, where PEFT has the method.
        peft_options: Options that this config gets besides the settings.
        peft_type: Its name in a saved adapter, where PEFT does not have it.
        trains_weights: Whether weights of the base are trained, and a whole model is saved.
        takes_quantized: Whether it can train on a base that is quantized.
        learns_prompt: Whether virtual tokens stand before every prompt.
        start: The function of its module that initializes what is trained from the text of rows.
        takes_checkpointing: Whether gradient checkpointing works with it.
        scales: Whether the model at scale 0 is its base.
        merges: Whether it can be merged into weights of the base's shape.
        resumes: Whether a training can resume from a checkpoint.
        is_plain_lora: Whether it adds two matrices alone, which other engines and backends know.
        settings: The class of its settings: `MethodConfig`, or a subclass with more fields. Those
            of another package's method have defaults, which stand for a file of `conf/method/`.
    """

    reads_lora: bool = False
    module: str = "slimdown.models.peft_adapters"
    peft_config: str = ""
    peft_options: dict[str, Any] = field(default_factory=dict)
    peft_type: str = ""
    trains_weights: bool = False
    takes_quantized: bool = True
    learns_prompt: bool = False
    start: str = ""
    takes_checkpointing: bool = True
    scales: bool = False
    merges: bool = True
    resumes: bool = True
    is_plain_lora: bool = False
    settings: type[MethodConfig] = MethodConfig

    def find_function(self, name: str) -> Callable[..., Any]:
        """Return a function of the method's module, which may import torch."""
        function: Callable[..., Any] = getattr(import_module(self.module), name)
        return function


_LORA: dict[str, Any] = {"reads_lora": True, "peft_config": "LoraConfig"}
_PROMPT: dict[str, Any] = {"learns_prompt": True, "merges": False, "settings": VirtualTokens}
_WEIGHTS: dict[str, Any] = {
    "module": "slimdown.models.trained_weights",
    "trains_weights": True,
    "takes_quantized": False,
    "scales": True,
}
_OWN: dict[str, MethodFacts] = {
    # low-rank matrices beside the base's (Hu et al. 2021)
    "lora": MethodFacts(**_LORA, scales=True, is_plain_lora=True),
    # LoRA scaled by the root of its rank (Kalajdzievski 2023)
    "rslora": MethodFacts(
        **_LORA, peft_options={"use_rslora": True}, scales=True, is_plain_lora=True
    ),
    # LoRA of the weights' directions, their lengths beside it (Liu et al. 2024)
    "dora": MethodFacts(**_LORA, peft_options={"use_dora": True}),
    # keys and values before every layer's own (Li and Liang 2021)
    "prefix": MethodFacts(
        **_PROMPT,
        peft_config="PrefixTuningConfig",
        start="start_prefix_with_text",
        takes_checkpointing=False,
    ),
    # embeddings before the prompt's own (Lester et al. 2021); PEFT's default start is noise, far
    # from any embedding
    "prompt": MethodFacts(
        **_PROMPT,
        peft_config="PromptTuningConfig",
        peft_options={"prompt_tuning_init": "SAMPLE_VOCAB"},
    ),
    # factors of keys, values and feed-forward activations (Liu et al. 2022)
    "ia3": MethodFacts(peft_config="IA3Config", settings=Ia3),
    # a sparse set of the weights (Bhardwaj et al. 2024)
    "shira": MethodFacts(peft_config="ShiraConfig", takes_quantized=False, settings=Shira),
    # rotations of the weights (Qiu et al. 2023)
    "oft": MethodFacts(peft_config="OFTConfig", settings=Oft),
    # small layers after attention and feed-forward (Houlsby et al. 2019)
    "bottleneck": MethodFacts(
        module="slimdown.models.bottleneck",
        peft_type="BOTTLENECK",
        merges=False,
        resumes=False,
        settings=Bottleneck,
    ),
    # the last block and the norm behind it
    "last_layer": MethodFacts(**_WEIGHTS, settings=LastLayer),
    # every weight
    "full": MethodFacts(**_WEIGHTS),
}


@cache
def list_all_methods() -> dict[str, MethodFacts]:
    """Return every method by name, those of other packages, too.

    Raises:
        ConfigError: An extension is broken.
    """
    demand = "a slimdown.config.methods.MethodFacts"
    return add_extensions(GROUP, _OWN, lambda added: isinstance(added, MethodFacts), demand)


def find_method(name: str) -> MethodFacts:
    """Return the properties of a method; one that is not installed here can do nothing."""
    return list_all_methods().get(name, MethodFacts(module="", merges=False, resumes=False))


def find_own_type(peft_type: str) -> MethodFacts | None:
    """Return the method of an adapter type that PEFT does not know; None for any other type."""
    own = (facts for facts in list_all_methods().values() if facts.peft_type)
    return next((facts for facts in own if facts.peft_type == peft_type), None)


def list_methods(is_meant: Callable[[MethodFacts], bool]) -> str:
    """List the methods that meet a condition, for a message."""
    return ", ".join(method for method, facts in list_all_methods().items() if is_meant(facts))


def build_method(values: Mapping[str, Any]) -> MethodConfig:
    """Build the settings of the method that composed settings choose.

    Raises:
        ConfigError: Lists what is wrong with them, one a line.
    """
    return build_choice("method", MethodConfig.list_kinds(), values)
