"""What `import slimdown` offers, and what docs/python.md says of it."""

import re
from pathlib import Path

import slimdown

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
PUBLIC = {
    "measure", "judge", "read_logs", "Evaluation", "Findings",
    "ForgettingCallback", "SlimdownError", "ConfigError", "DataError", "ModelError",
    "TrackingError",
}  # fmt: skip


def test_every_public_name_is_there_and_stands_on_the_page() -> None:
    assert set(dir(slimdown)) >= PUBLIC
    assert set(re.findall(r"`(\w+)", PAGE.read_text())) >= PUBLIC
    for name in PUBLIC:
        assert getattr(slimdown, name).__doc__
    for kind in (name for name in PUBLIC if name.endswith("Error")):
        assert issubclass(getattr(slimdown, kind), slimdown.SlimdownError)
