"""What was varied, and what only followed from it."""

import pytest

from slimdown.comparison.varied_settings import find_varied

KEEP = [
    {"keep.name": "none", "train.max_steps": "5"},
    {"keep.name": "replay", "keep.share": "0.1", "train.max_steps": "5"},
]


@pytest.mark.parametrize(
    ("names", "settings", "varied"),
    [
        (["m keep=none", "m keep=replay"], KEEP, ["keep.name"]),
        # Both are named, although one tells the other.
        (["m b=1 a=2", "m b=2 a=3"], [{"a": "2", "b": "1"}, {"a": "3", "b": "2"}], ["b", "a"]),
        # Their order is that of the names, also where one belongs to a file that was chosen.
        (
            ["m lora.r=4 keep=replay keep.share=0.1", "m lora.r=8 keep=replay keep.share=0.2"],
            [{"keep.share": "0.1", "lora.r": "4"}, {"keep.share": "0.2", "lora.r": "8"}],
            ["lora.r", "keep.share"],
        ),
        # Runs may be named by people.
        (["small", "large"], [{"lora.r": r, "lora.lora_alpha": 2 * r} for r in "48"], ["lora.r"]),
        (["m seed=0", "m seed=1"], [{"seed": "0"}, {"seed": "1"}], []),
        (["m"], [{"a": "1", "verdict": "x"}], []),
        ([], [], []),
    ],
)
def test_what_follows_from_a_setting_was_not_varied(
    names: list[str], settings: list[dict[str, str]], varied: list[str]
) -> None:
    assert find_varied(names, settings) == varied
