"""`keep=auto`: replay where a dataset is named for it, else rows that the base writes."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from slimdown.config.fields import setting
from slimdown.config.paths import read_group
from slimdown.training.mitigations.replay import Replay
from slimdown.training.mitigations.self_replay import SelfReplay
from slimdown.utils.errors import ConfigError

if TYPE_CHECKING:
    from slimdown.config.mitigation import Mitigation
    from slimdown.config.schema import RunConfig


@dataclass
class Auto(SelfReplay):
    """Becomes one of the two, and is recorded so."""

    dataset: str | None = setting("the chosen dataset that is replayed", default=None)

    about: ClassVar[str] = "general rows are mixed in"
    is_advised: ClassVar[bool] = True

    def resolve(self, config: "RunConfig") -> "Mitigation":
        """Return the one that it is here, without the distance where no base is beside it."""
        kind: Any = Replay if self.dataset else SelfReplay
        name, has_base = "replay" if self.dataset else "self_replay", config.trains_beside_base
        kept = {one.name for one in fields(kind)} - ({"weight"} if not has_base else set())
        default, problems = read_group("keep")[self.name], []
        for key in sorted({one.name for one in fields(self)} - kept):
            if (value := getattr(self, key)) not in (None, default[key]):
                meant = f"keep={self.name} is {name} here"
                meant += "" if has_base else ", no base beside it"
                problems.append(f"keep.{key}={value} would do nothing: {meant}; leave it out")
        if problems:
            raise ConfigError("\n".join(problems))
        mitigation: Mitigation = kind(**{key: getattr(self, key) for key in kept} | {"name": name})
        return mitigation
