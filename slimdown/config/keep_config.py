"""What is done so that a fine-tuning keeps what the base can do, and the settings it has."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from os.path import expanduser, isfile

from slimdown.config.fields import (
    POSITIVE,
    SHARE,
    Range,
    check_own_settings,
    setting,
)

_ABOVE_ONE = Range("must be above 1, the perplexity of a token that is certain", lambda x: x > 1)

_LENGTH = Range("must be from 1 to 8,192", lambda n: 1 <= n <= 8192)
_FILE = Range("must be a file that is there", lambda path: isfile(expanduser(path)))


class Keep(StrEnum):
    """A means against forgetting; each is a file of `conf/keep/`."""

    none = "none"
    replay = "replay"  # general rows in the mix
    self_replay = "self_replay"  # rows that the base writes itself (arXiv 2505.13811)
    mask = "mask"  # tokens that surprise the base carry no loss (arXiv 2501.14315)
    kl = "kl"  # the distance from the base's distribution is part of the loss (arXiv 2605.29498)


_OWN: dict[Keep, tuple[str, ...]] = {  # the settings that a means has of its own
    Keep.replay: ("share", "dataset", "weight"),
    Keep.self_replay: ("share", "max_tokens", "temperature", "prompts", "weight"),
    Keep.mask: ("max_perplexity", "random"),
    Keep.kl: ("weight",),
}
_OPTIONAL = {  # the whole run's check says what is wrong with a dataset
    Keep.replay: ("dataset", "weight"),
    Keep.self_replay: ("prompts", "weight"),
}


@dataclass
class KeepConfig:
    """The means; its other fields are null where it has none of them."""

    name: Keep = setting("what is done so that a fine-tuning keeps what the base can do")
    share: float | None = setting("share of replayed rows among all", SHARE, None)
    dataset: str | None = setting("the chosen dataset that is replayed", default=None)
    max_tokens: int | None = setting("tokens of a row that the base writes", _LENGTH, None)
    temperature: float | None = setting("at which the base writes rows", POSITIVE, None)
    prompts: str | None = setting(
        "a JSONL file of texts (`prompt`) that the base continues", _FILE, None
    )
    max_perplexity: float | None = setting(
        "tokens above it, under the base, carry no loss", _ABOVE_ONE, None
    )
    random: bool | None = setting("control: mask as many tokens by chance", default=None)
    weight: float | None = setting(
        "KL coefficient; of replay and self_replay: on replayed rows alone", POSITIVE, None
    )

    def problems(self) -> Iterator[str]:
        return check_own_settings("keep", self, _OWN, _OPTIONAL.get(self.name, ()))
