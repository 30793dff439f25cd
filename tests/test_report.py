"""What a person reads says what it means."""

from collections.abc import Callable

from slimdown import report
from slimdown.config import RunConfig


def test_brackets_of_a_run_name_are_shown(composed: Callable[..., RunConfig]) -> None:
    with report.console.capture() as shown:
        report.show_plan(composed("lora.target_modules=[q_proj]"), "pocket lora.target_modules=[q_proj]")
    assert "pocket lora.target_modules=[q_proj]" in shown.get()
    assert "r 8, alpha 16, q_proj" in shown.get()
