"""Find the settings in which runs were made to differ."""

from collections.abc import Mapping, Sequence

FOLLOWERS = frozenset({"lora.lora_alpha"})  # twice the rank, unless it is set


def find_varied(names: Sequence[str], settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Find the settings in which runs were made to differ, without the seed.

    A run's name holds what its command line set: these settings count if they differ. Other
    settings often follow from them: `lora.lora_alpha` from the rank, and all that a file holds from
    `keep=replay`. So another one counts only if its value does not follow from those found before.

    Args:
        names: The runs' names.
        settings: Their settings by dotted keys, in the same order.

    >>> ranks = [{"lora.r": "4", "lora.lora_alpha": "8"}, {"lora.r": "8", "lora.lora_alpha": "16"}]
    >>> find_varied(["pocket lora.r=4", "pocket lora.r=8"], ranks)
    ['lora.r']
    """
    keys = {key for run_settings in settings for key in run_settings} - {"seed", "verdict"}

    def rank(key: str) -> tuple[bool, bool, bool, bool, int, str]:
        """Return the sort key of a setting; of two settings, the one with False comes first.

        The order decides which of two settings that vary together is found: the one that a command
        line set, then one of a file that it chose (`keep=replay`), and of these first the name or
        id in that file.
        """
        section, _, field = key.partition(".")
        places = [name.find(f" {key}=") for name in names if f" {key}=" in name]
        has_chosen_file = any(f" {section}=" in name for name in names)
        is_follower = key in FOLLOWERS
        names_the_file = field in ("name", "id")
        first_place = min(places, default=0)
        return not places, not has_chosen_file, is_follower, not names_the_file, first_place, key

    varied: list[str] = []
    for key in sorted(keys, key=rank):
        values = [run_settings.get(key) for run_settings in settings]
        varied_values = [tuple(map(run_settings.get, varied)) for run_settings in settings]
        is_in_names = any(f" {key}=" in name for name in names)
        # If this setting tells more runs apart than those found before, it does not follow from
        # them.
        tells_more = len(set(zip(varied_values, values, strict=True))) > len(set(varied_values))
        if len(set(values)) > 1 and (is_in_names or tells_more):
            varied.append(key)
    return varied
