"""Find the settings in which runs were made to differ."""

from collections.abc import Mapping, Sequence

FOLLOWERS = frozenset({"lora.lora_alpha"})  # twice the rank, unless it is set


def find_varied(names: Sequence[str], settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Find the settings in which runs were made to differ, without the seed.

    A run is named by what its command line set. Another setting counts only if those before do not
    tell its value, as the rank tells `lora.lora_alpha` and `keep=replay` what its file holds.

    Args:
        names: The runs' names.
        settings: Their settings by dotted keys.

    >>> ranks = [{"lora.r": "4", "lora.lora_alpha": "8"}, {"lora.r": "8", "lora.lora_alpha": "16"}]
    >>> find_varied(["pocket lora.r=4", "pocket lora.r=8"], ranks)
    ['lora.r']
    """
    keys = {key for run_settings in settings for key in run_settings} - {"seed", "verdict"}

    def rank(key: str) -> tuple[bool, bool, bool, bool, int, str]:
        """Put those that names hold first, in their order, then those of a file that names hold."""
        section, _, field = key.partition(".")
        places = [name.find(f" {key}=") for name in names if f" {key}=" in name]
        has_chosen_file = any(f" {section}=" in name for name in names)
        names_the_file = field in ("name", "id")
        first_place = min(places, default=0)
        is_follower = key in FOLLOWERS
        return not places, not has_chosen_file, is_follower, not names_the_file, first_place, key

    varied: list[str] = []
    for key in sorted(keys, key=rank):
        values = [run_settings.get(key) for run_settings in settings]
        known = [tuple(map(run_settings.get, varied)) for run_settings in settings]
        is_named = any(f" {key}=" in name for name in names)
        tells_more = len(set(zip(known, values, strict=True))) > len(set(known))
        if len(set(values)) > 1 and (is_named or tells_more):
            varied.append(key)
    return varied
