"""The settings of a run as commands read them back: `settings.json`, whole and typed.

MLflow shows the same settings as params, for people; those are cut and nothing is read from them.
"""

import json
from dataclasses import dataclass

from slimdown.config.naming import NOT_IN_KEY, flatten
from slimdown.config.schema import RunConfig
from slimdown.judging.serialization import from_plain, to_plain
from slimdown.utils.errors import ConfigError, SlimdownError, describe_error
from slimdown.utils.files import FORMAT, check_format
from slimdown.utils.hashing import hash_json
from slimdown.utils.secrets import redact_leaves

FILE = "settings.json"


@dataclass(frozen=True)
class RecordedSettings:
    """What a run recorded of its settings.

    Attributes:
        config: The settings.
        hidden: The dotted keys of the settings that held a secret, which the record shows as `***`.
            A run with such settings cannot be repeated from its record.
    """

    config: RunConfig
    hidden: tuple[str, ...]


def write_settings(config: RunConfig) -> str:
    """Return settings as a text that `read_settings` restores, without secrets."""
    plain = to_plain(config)
    del plain["tracking"]["uri"]  # whoever reads the record knows where it is
    del plain["name"], plain["note"]  # they can change later, so the run's tags have them
    settings, hidden = redact_leaves(_drop_missing(plain))
    recorded = {"format": FORMAT, "settings": settings, "hidden": hidden}
    return json.dumps(recorded, indent=1, ensure_ascii=False)


def _drop_missing(node: object) -> object:
    """Return a tree without the settings that nothing set; they have no type yet."""
    if isinstance(node, dict):
        return {key: _drop_missing(value) for key, value in node.items() if value != "???"}
    return node


def flatten_settings(config: RunConfig) -> dict[str, str]:
    """Return each setting that a result depends on as a text, by dotted key."""
    texts = {}
    for key, value in flatten(config).items():
        if value == "???" or key.startswith(NOT_IN_KEY):
            continue
        texts[key] = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return texts


def digest_settings(text: str) -> str:
    """Return the digest of a file of settings, for the run's tag."""
    return hash_json(text)


def read_settings(text: str, digest: str, place: str) -> RecordedSettings:
    """Restore the settings that `write_settings` wrote.

    Args:
        text: The content of the file.
        digest: The digest that was recorded for the text, in the run's tag.
        place: What a message calls the file.

    Returns:
        The settings, and the keys of those whose value the record left out as a secret.

    Raises:
        ConfigError: The file is of another format, was changed, or holds values that this version
            does not know.
    """
    try:
        recorded = json.loads(text)
        check_format(recorded.get("format"))
        if digest_settings(text) != digest:
            raise ConfigError("it is not what the run wrote; make the run again with rerun=true")
        config: RunConfig = from_plain(RunConfig, recorded["settings"])
        # Commands use this share without completing the settings, which would check every value.
        holdout = config.evaluation.holdout
        if not isinstance(holdout, float) or not 0 <= holdout < 1:
            problem = f"evaluation.holdout is {holdout!r:.40}, and a share below 1 is right"
            raise ConfigError(problem)
        return RecordedSettings(config, tuple(recorded["hidden"]))
    except Exception as error:  # the file may hold anything; the errors above get the place, too
        reason = str(error) if isinstance(error, SlimdownError) else describe_error(error)
        raise ConfigError(f"{place} cannot be read: {reason}") from None
