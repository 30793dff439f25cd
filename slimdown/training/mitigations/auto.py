"""`keep=auto`: general rows of the best kind that there is here."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from slimdown.config.fields import FILE, setting
from slimdown.config.mitigation import Mitigation
from slimdown.config.paths import read_group
from slimdown.training.mitigations.dialogues import Dialogues
from slimdown.training.mitigations.replay import Replay
from slimdown.training.mitigations.self_replay import SelfReplay
from slimdown.training.written_rows import WrittenRows
from slimdown.utils.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from slimdown.config.schema import RunConfig


@dataclass
class Auto(WrittenRows):
    """Becomes replay of a named dataset, else dialogues, else rows from the start token.

    It is recorded so. Whether a base writes dialogues is known with its chat template.
    """

    prompts: str | None = setting(
        "a JSONL file of texts (`prompt`) that the base continues", FILE, None
    )
    dataset: str | None = setting("the chosen dataset that is replayed", default=None)

    about: ClassVar[str] = "general rows are mixed in"
    is_advised: ClassVar[bool] = True

    def resolve(self, config: "RunConfig") -> Mitigation:
        """Return the one that it is here, without the distance where no base is beside it."""
        kind: Any = Replay if self.dataset else SelfReplay if self.prompts else Auto
        name = {Replay: "replay", SelfReplay: "self_replay", Auto: self.name}[kind]
        kept = {one.name for one in fields(kind)}
        meant = f"keep={self.name} is {name} here" if kind is not Auto else f"keep={self.name} has"
        if not config.trains_beside_base:
            kept -= {"weight"}
            meant += ", no base beside it" if kind is not Auto else " no base beside it here"
        default, problems = read_group("keep")[self.name], []
        for key in sorted({one.name for one in fields(self)} - kept):
            if (value := getattr(self, key)) not in (None, default[key]):
                problems.append(f"keep.{key}={value} would do nothing: {meant}; leave it out")
        if problems:
            raise ConfigError("\n".join(problems))
        mitigation: Mitigation = kind(**{key: getattr(self, key) for key in kept} | {"name": name})
        return mitigation

    def choose_for(self, tokenizer: Any) -> Mitigation:
        """Return dialogues where the base has a chat template, else rows from its start token."""
        shared = {one.name: getattr(self, one.name) for one in fields(WrittenRows)}
        try:
            return Dialogues(**shared | {"name": "dialogues"}).choose_for(tokenizer)
        except ModelError:
            return SelfReplay(**shared | {"name": "self_replay"})

    def prepare_rows(self, base: Any, rows: Any, config: "RunConfig") -> Any:
        """Prepare those that it is for this base."""
        return self.choose_for(base.tokenizer).prepare_rows(base, rows, config)
