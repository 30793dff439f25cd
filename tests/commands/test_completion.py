"""The scripts of `slimdown completion` complete verbs, options and settings in a real shell."""

import subprocess
import sys

import pytest

from slimdown.commands import completion


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("slimdown ver", "verdict"),
        ("slimdown check --max-l", "--max-loss"),
        ("slimdown run lora.lora_d", "lora.lora_dropout="),
        ("slimdown run model=smol", "model=smollm2"),
    ],
)
def test_bash_completes(words: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert completion.main(["bash"]) == 0
    script = capsys.readouterr().out
    script += f"\nCOMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _slimdown\n"
    script += 'echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == [expected]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_another_shells_script_names_verbs_and_settings(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert completion.main([shell]) == 0
    out = capsys.readouterr().out
    assert "verdict" in out
    assert "lora.r=" in out


def test_a_closed_output_is_no_error() -> None:
    command = f"{sys.executable} -m slimdown completion bash >&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
