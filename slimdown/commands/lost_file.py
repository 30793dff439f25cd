"""The option --lost of `check` and `verdict`: it writes the lost questions, to ask them again."""

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from slimdown.commands.arguments import CommandParser
from slimdown.judging.lost_questions import BY_LENGTH, UNCUT, LostQuestions, collect_lost_questions
from slimdown.judging.pairing import Pair
from slimdown.report.formatting import pluralize
from slimdown.utils.files import write_atomically


def add_lost_option(parser: CommandParser) -> None:
    """Add --lost."""
    text = "write the questions that the model lost to a file that slimdown run can ask again"
    parser.add_argument("--lost", type=_read_place, metavar="FILE.jsonl", help=text)


def _read_place(text: str) -> Path:
    file = Path(text)
    if file.suffix != ".jsonl" or file.is_dir():
        raise argparse.ArgumentTypeError(f"{text} must be a file that ends in .jsonl")
    if not file.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {file.parent}; make it first")
    return file


def write_lost_questions(
    file: Path,
    pairs: Mapping[str, Pair],
    conditions: Mapping[str, str],
    *,
    is_chat: bool,
    model_settings: Sequence[str],
) -> list[str]:
    """Write the lost questions: those that the base model answered correctly, and the tuned not.

    A file holds questions of one kind, such as choices or written answers, because one setting
    says how all its answers are scored. If no question was lost, nothing is written.

    Args:
        file: The file of the first kind; the files of other kinds lie beside it.
        pairs: Both models' answers by benchmark, to questions that are not held out.
        conditions: Those under which the base model was asked.
        is_chat: Whether the prompts went through a chat template.
        model_settings: The settings of `slimdown run` that name the tuned model.

    Returns:
        Lines for the user: how many questions were lost, which are left out, and the command that
        asks them again.
    """
    lost = collect_lost_questions(pairs, conditions, is_chat)
    files = {
        kind: file if i == 0 else file.with_suffix(f".{kind}.jsonl")
        for i, kind in enumerate(lost.rows)
    }
    for kind, rows in lost.rows.items():
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        write_atomically(files[kind], "".join(f"{line}\n" for line in lines))
    counts = [f"{pluralize(len(lost.rows[kind]), 'question')} in {files[kind]}" for kind in files]
    left_out = ", ".join(f"{count:,} of {name}" for name, count in lost.left_out.items())
    line = f"lost: {', '.join(counts) or f'no question, so {file} was not written'}"
    if left_out:
        line += f"; left out, because a file of questions cannot score them alike: {left_out}"
    return [line, _write_command(lost, files, model_settings)] if files else [line]


def _write_command(lost: LostQuestions, files: dict[str, Path], settings: Sequence[str]) -> str:
    """Write the command that asks a model the questions of these files again."""
    names = dict.fromkeys(files, "questions") if len(files) == 1 else {kind: kind for kind in files}
    words = [*settings, f"benchmark=[{','.join(names.values())}]"]
    for kind, name in names.items():
        words.append(f"benchmark.{name}.path={files[kind]}")
        if kind.startswith(BY_LENGTH):
            words.append(f"benchmark.{name}.metric=acc_norm")
        if kind.endswith(UNCUT):  # the model itself ends its answer
            words.append(f'benchmark.{name}.stop=["[END]"]')
    return f"again: slimdown run {' '.join(map(shlex.quote, words))}"
