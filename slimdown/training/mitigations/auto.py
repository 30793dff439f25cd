"""`keep=auto`: general rows of the dataset that you name for it, or rows that the base writes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from slimdown.config.fields import FILE, setting
from slimdown.config.mitigation import Mitigation, list_mitigations
from slimdown.config.paths import read_group
from slimdown.training.general_rows import ADDED_SHARE, GeneralRows
from slimdown.training.mitigations.dialogues import Dialogues
from slimdown.training.mitigations.replay import Replay
from slimdown.training.mitigations.self_replay import SelfReplay

if TYPE_CHECKING:
    from slimdown.config.schema import RunConfig
    from slimdown.data.training_data import DatasetPart, TrainingData

_SHORT_ROWS = {"share": 0.05, "max_tokens": 64}  # docs/studies/keeping.md


@dataclass
class Auto(Mitigation):
    """Becomes replay, dialogues or self-replay, with a KL penalty, and is recorded as that."""

    share: float | None = setting("share of general rows among all rows", ADDED_SHARE, None)
    dataset: str | None = setting("the chosen dataset whose rows are replayed", default=None)
    prompts: str | None = setting("a JSONL file of user messages (`prompt`)", FILE, None)

    description: ClassVar[str] = "general rows are mixed into the training"
    is_advised: ClassVar[bool] = True

    @property
    def added_share(self) -> float:
        """The share of general rows; if none is set, that of dialogues, which is the largest."""
        return self._become(Dialogues).added_share

    def find_conflicts(self, config: "RunConfig") -> Iterator[str]:
        """Find that the named dataset is not chosen, or that messages are named as well."""
        if self.dataset:
            yield from self._become(Replay, dataset=self.dataset).find_conflicts(config)
            if self.prompts:
                yield f"keep.prompts={self.prompts} and keep.dataset: set only one of the two"

    def find_file_problems(self) -> Iterator[str]:
        """Find a message that cannot be read."""
        return self._become(Dialogues, prompts=self.prompts).find_file_problems()

    def list_files(self) -> dict[str, Path]:
        """Return the file of the messages."""
        return self._become(Dialogues, prompts=self.prompts).list_files()

    def choose_parts(self, parts: Sequence["DatasetPart"]) -> tuple[list["DatasetPart"], list[str]]:
        """Cut the dataset that is replayed, if one is named."""
        if not self.dataset:
            return super().choose_parts(parts)
        return self._become(Replay, dataset=self.dataset).choose_parts(parts)

    def adapt_to(self, tokenizer: Any, rows: "TrainingData", config: "RunConfig") -> Mitigation:
        """Return the mitigation that it becomes with these rows."""
        weight = 1.0 if config.trains_beside_base else None
        if self.dataset:
            return self._become(Replay, dataset=self.dataset, weight=weight)
        if self.prompts or rows.holds_conversations:
            answers = self._become(Dialogues, prompts=self.prompts, weight=weight)
            return answers.adapt_to(tokenizer, rows, config)
        return self._become(SelfReplay, **_SHORT_ROWS, weight=weight)

    def _become(self, kind: type[GeneralRows], **settings: Any) -> GeneralRows:
        """Build one of the three from its file, overridden by `settings` and by a share if set."""
        names = {mitigation: name for name, mitigation in list_mitigations().items()}
        settings = read_group("keep")[names[kind]] | settings
        if self.share is not None:
            settings["share"] = self.share
        return kind(**settings)
