"""The mitigations of forgetting, by which a fine-tuning keeps what the base can do."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from os.path import expanduser, isfile

from slimdown.config.fields import POSITIVE, Range, check_own_settings, setting
from slimdown.config.paths import read_group
from slimdown.utils.errors import ConfigError

_LENGTH = Range("must be from 2 to 8,192", lambda n: 2 <= n <= 8192)  # a text, and its end
_SHARE = Range(
    "must be from 0 to 0.9 (nine replayed rows beside each of yours)", lambda x: 0 <= x <= 0.9
)
_FILE = Range("must be a file that is there", lambda path: isfile(expanduser(path)))


class Keep(StrEnum):
    """A mitigation of forgetting; each is a file of `conf/keep/`."""

    none = "none"
    auto = "auto"  # replay where a dataset is named for it, else self_replay
    replay = "replay"  # general rows in the mix
    self_replay = "self_replay"  # rows that the base writes itself (arXiv 2505.13811)
    kl = "kl"  # the distance from the base's distribution is part of the loss (arXiv 2605.29498)


@dataclass
class KeepConfig:
    """The chosen mitigation; a field that it does not have is null."""

    name: Keep = setting("what is done so that a fine-tuning keeps what the base can do")
    share: float | None = setting("share of replayed rows among all", _SHARE, None)
    dataset: str | None = setting("the chosen dataset that is replayed", default=None)
    max_tokens: int | None = setting("tokens of a row that the base writes", _LENGTH, None)
    temperature: float | None = setting("at which the base writes rows", POSITIVE, None)
    prompts: str | None = setting(
        "a JSONL file of texts (`prompt`) that the base continues", _FILE, None
    )
    weight: float | None = setting(
        "KL coefficient; of replay and self_replay: on replayed rows alone", POSITIVE, None
    )

    def resolve(self, has_base: bool) -> "KeepConfig":
        """Return the mitigation that `keep=auto` stands for, and any other one as it is.

        Args:
            has_base: Whether the base is available in the training, to compute the distance to it.

        Raises:
            ConfigError: A setting is missing, or one that was chosen would do nothing.
        """
        if self.name is not Keep.auto:
            return self
        choices, name = read_group("keep"), Keep.replay if self.dataset else Keep.self_replay
        default = choices[Keep.auto]
        idle = [*(default.keys() - choices[name].keys()), *([] if has_base else ["weight"])]
        problems = list(check_own_settings("keep", self, ("weight",)))
        for key in sorted(idle):
            if (value := getattr(self, key)) not in (None, default[key]):
                meant = f"keep=auto is {name} here" + ("" if has_base else ", no base beside it")
                problems.append(f"{key}={value} would do nothing: {meant}; leave it out")
        if problems:
            raise ConfigError("\n".join(f"keep.{problem}" for problem in problems))
        return replace(self, name=name, **dict.fromkeys(idle))

    def problems(self) -> Iterator[str]:
        optional = ("weight",) if self.name is Keep.self_replay else ()
        return check_own_settings("keep", self, optional)
