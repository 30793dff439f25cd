"""Houlsby's adapters as a method of PEFT: a small layer behind each attention and each feed-forward (2019).

Importing this makes PEFT know them: `get_peft_model`, `PeftModel.from_pretrained`, `disable_adapter` and the rest work
as with its own. Written here since PEFT (0.18 to 0.21) has none and `adapters` 1.3 needs transformers 4.57; to be
deleted when one of them serves. A bottleneck is not linear, so there is nothing to merge.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType, register_peft_method
from torch import nn
from torch.nn import functional


def _peft_type(name: str) -> Any:
    """A new member of PEFT's enum of methods, which is all that it saves, loads and registers."""
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    setattr(PeftType, name, member)  # before it is a member: those cannot be set
    PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
    PeftType._member_names_.append(name)
    return member


BOTTLENECK = _peft_type("BOTTLENECK")


@dataclass
class BottleneckConfig(PeftConfig):  # type: ignore[misc]  # Any, as all of PEFT
    """What PEFT saves of it as `adapter_config.json`."""

    target_modules: Any = None  # names of the layers that write into the residual stream
    exclude_modules: Any = None
    bottleneck_dim: int = field(default=16)
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = BOTTLENECK
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # as PEFT's own


class BottleneckLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A layer, and behind it for each adapter `x + up(gelu(down(x)))`; `up` starts at zero, so nothing is changed."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    base_layer: Any
    bottleneck_down: Any  # nn.ModuleDict, an adapter each
    bottleneck_up: Any

    def __init__(self, base_layer: Any, adapter_name: str, config: BottleneckConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict(), nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add an adapter; its weights are float32 until PEFT casts them."""
        width = (
            getattr(self.base_layer, "nf", None) or self.base_layer.out_features
        )  # `nf` of GPT-2's Conv1D
        self.bottleneck_down[adapter_name] = nn.Linear(width, config.bottleneck_dim)
        self.bottleneck_up[adapter_name] = up = nn.Linear(config.bottleneck_dim, width)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        self._move_adapter_to_device_of_base_layer(adapter_name)  # type: ignore[operator]
        self.set_adapter(self.active_adapters)  # type: ignore[operator]

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return result
        for name in self.active_adapters:  # type: ignore[union-attr]
            if name in self.bottleneck_down:
                down, up = self.bottleneck_down[name], self.bottleneck_up[name]
                result = result + up(functional.gelu(down(result.to(down.weight.dtype)))).to(
                    result.dtype
                )
        return result


class BottleneckModel(BaseTuner):  # type: ignore[misc]
    """The model with bottlenecks in it."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, Any] = {}  # noqa: RUF012 - as PEFT declares it; names must be given

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        **_: Any,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
            return
        self._replace_module(
            parent, target_name, BottleneckLayer(target, adapter_name, peft_config), target
        )

    def _check_merge_allowed(self) -> None:
        raise ValueError(
            "bottlenecks are not linear and cannot be merged into the weights; keep them as an adapter"
        )


register_peft_method(name="bottleneck", config_cls=BottleneckConfig, model_cls=BottleneckModel)
