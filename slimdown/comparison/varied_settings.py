"""Find the settings in which runs were made to differ."""

from collections.abc import Mapping, Sequence

_FOLLOWERS = frozenset({"lora.lora_alpha"})  # twice the rank, unless it is set


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
    keys = {key for of_run in settings for key in of_run} - {"seed", "verdict"}

    def rank(key: str) -> tuple[bool, bool, bool, bool, int, str]:
        section, _, name = key.partition(".")
        places = [text.find(f" {key}=") for text in names if f" {key}=" in text]
        is_chosen = any(f" {section}=" in text for text in names)
        is_late = not is_chosen, key in _FOLLOWERS, name not in ("name", "id")
        return not places, *is_late, min(places, default=0), key

    varied: list[str] = []
    for key in sorted(keys, key=rank):
        before = [tuple(of_run.get(one) for one in varied) for of_run in settings]
        pairs = zip(before, (of_run.get(key) for of_run in settings), strict=True)
        is_named = any(f" {key}=" in text for text in names)
        n_values = len({of_run.get(key) for of_run in settings})
        if n_values > 1 and (is_named or len(set(pairs)) > len(set(before))):
            varied.append(key)
    return varied
