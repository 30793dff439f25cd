"""What is done so that a fine-tuning keeps what the base can do, and the settings it has."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from os.path import expanduser, isfile

from slimdown.config.fields import (
    COUNT,
    MISSING,
    POSITIVE,
    SHARE,
    Range,
    check_own_settings,
    ranged,
)

_ABOVE_ONE = Range("must be above 1, the perplexity of a token that is certain", lambda x: x > 1)

_FILE = Range("must be a file that is there", lambda path: isfile(expanduser(path)))


class Keep(StrEnum):
    """A means against forgetting; each is a file of `conf/keep/`."""

    none = "none"
    replay = "replay"  # general rows in the mix
    self_replay = "self_replay"  # rows that the base writes itself (arXiv 2505.13811)
    mask = "mask"  # tokens that surprise the base carry no loss (arXiv 2501.14315)
    kl = "kl"  # the distance from the base's distribution is part of the loss (arXiv 2605.29498)


_OWN: dict[Keep, tuple[str, ...]] = {  # the settings that a means has of its own
    Keep.replay: ("share", "dataset"),
    Keep.self_replay: ("share", "max_tokens", "temperature", "prompts", "weight"),
    Keep.mask: ("max_perplexity", "random"),
    Keep.kl: ("weight",),
}
_OPTIONAL = {  # the whole run's check says what is wrong with a dataset
    Keep.replay: ("dataset",),
    Keep.self_replay: ("prompts", "weight"),
}


@dataclass
class KeepConfig:
    """The means; its other fields are null where it has none of them."""

    name: Keep = MISSING
    # of all rows that are trained on, those that are replayed
    share: float | None = ranged(SHARE, None)
    dataset: str | None = None  # which of the chosen datasets holds the general rows
    max_tokens: int | None = ranged(COUNT, None)  # of a row that the base writes
    temperature: float | None = ranged(POSITIVE, None)  # at which it is drawn
    # a JSONL file of texts (`prompt`) that the base continues; null: it writes from nothing
    prompts: str | None = ranged(_FILE, None)
    # tokens whose perplexity under the base is above carry no loss
    max_perplexity: float | None = ranged(_ABOVE_ONE, None)
    random: bool | None = None  # the control: as many tokens are masked, drawn by chance
    # of the distance, in nats, beside the loss; of self_replay: on the rows that the base wrote
    weight: float | None = ranged(POSITIVE, None)

    def problems(self) -> Iterator[str]:
        return check_own_settings("keep", self, _OWN, _OPTIONAL.get(self.name, ()))
