"""What `import slimdown` offers, and what docs/python.md says of it."""

import re
import subprocess
import sys
from pathlib import Path

import slimdown

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
PUBLIC = {
    "measure", "judge", "read_logs", "read_lm_eval", "Evaluation", "Findings",
    "ForgettingCallback", "SlimdownError", "ConfigError", "DataError", "ModelError",
    "TrackingError",
}  # fmt: skip
LIGHT = """
import sys
from slimdown import ConfigError, DataError, Evaluation, Findings, SlimdownError, judge, read_logs
assert not {"torch", "transformers", "mlflow", "hydra", "lm_eval"} & set(sys.modules)
try:
    read_logs(sys.argv[1])
except DataError as error:
    assert isinstance(error, SlimdownError), error
    print(error)
try:
    judge(None, None)
except DataError as error:
    print(error)
assert not {"torch", "transformers", "mlflow", "hydra", "lm_eval"} & set(sys.modules)
"""


def test_every_public_name_is_there_and_stands_on_the_page() -> None:
    assert set(dir(slimdown)) >= PUBLIC
    assert set(re.findall(r"`(\w+)", PAGE.read_text())) >= PUBLIC
    assert slimdown.read_logs is slimdown.read_lm_eval
    for name in PUBLIC:
        assert getattr(slimdown, name).__doc__
    for kind in (name for name in PUBLIC if name.endswith("Error")):
        assert issubclass(getattr(slimdown, kind), slimdown.SlimdownError)


def test_logs_are_read_and_judged_without_a_library_that_trains(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert str(tmp_path) in first
    assert "NoneType" in second
