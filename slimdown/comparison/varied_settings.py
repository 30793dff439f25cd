"""Find the settings in which runs were made to differ."""

from collections.abc import Mapping, Sequence
from math import inf

FOLLOWERS = frozenset({"lora.lora_alpha"})  # twice the rank, unless it is set


def find_varied(names: Sequence[str], settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Find the settings in which runs were made to differ, without the seed.

    If a setting that a command line set differs, it was varied. The run's name holds it
    (`pocket lora.r=4`). Other settings often follow from a varied one: `lora.lora_alpha` follows
    from the rank, and all that the file of `keep=replay` sets follows from `keep`. So another
    setting only counts as varied if it tells more runs apart than those found before.

    Args:
        names: The runs' names.
        settings: Their settings by dotted keys, in the same order.

    Returns:
        The keys of the varied settings. First those that a name holds, by their place in it.

    >>> ranks = [{"lora.r": "4", "lora.lora_alpha": "8"}, {"lora.r": "8", "lora.lora_alpha": "16"}]
    >>> find_varied(["pocket lora.r=4", "pocket lora.r=8"], ranks)
    ['lora.r']
    """
    # Earlier versions recorded a run's verdict among its settings, where it is not one.
    keys = {key for run_settings in settings for key in run_settings} - {"seed", "verdict"}

    def find_place(key: str) -> float:
        """Return the first place where a name holds a setting; inf if no command line set it."""
        return min((name.find(f" {key}=") for name in names if f" {key}=" in name), default=inf)

    def rank(key: str) -> tuple[float, bool, bool, bool, str]:
        """Return the sort key of a setting: of those that vary together, only the first is found.

        The order is: what a command line set, by its place in a name; what belongs to a file that a
        command line chose (`keep=replay`); the rest. A follower comes behind others of its group,
        and what names a chosen file before what else the file sets.
        """
        section, _, field = key.partition(".")
        in_chosen_file = any(f" {section}=" in name for name in names)
        names_file = field in ("name", "id")
        # False is sorted before True, so `not` puts those first that have a property.
        return find_place(key), not in_chosen_file, key in FOLLOWERS, not names_file, key

    def count_distinct(keys: Sequence[str]) -> int:
        """Count how many different values runs have in these settings together."""
        return len({tuple(map(run_settings.get, keys)) for run_settings in settings})

    varied: list[str] = []
    for key in sorted(keys, key=rank):
        is_set_and_differs = find_place(key) < inf and count_distinct([key]) > 1
        # A setting that follows from those found before tells no more runs apart than they do.
        if is_set_and_differs or count_distinct([*varied, key]) > count_distinct(varied):
            varied.append(key)
    return varied
