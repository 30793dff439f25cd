"""`slimdown export RUN DIR`: copy the adapter or model that a run trained into a folder.

An adapter is written in PEFT's format, with the tokenizer and a card that names the base model to
load it on. A run of method=full or last_layer is written as a whole model. This also works if the
record is on a server.

Examples:
  slimdown export 3f2a my-adapter
  slimdown run tuned=my-adapter suite=quick
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from slimdown.commands import arguments
from slimdown.config.schema import ModelConfig
from slimdown.utils.errors import ModelError


def main(argv: list[str]) -> int:
    """Copy what a recorded run trained into a folder.

    Args:
        argv: The arguments after `export`.

    Returns:
        The exit code.
    """
    parser = arguments.CommandParser("export", __doc__)
    parser.add_argument("run", metavar="RUN", help=arguments.RUN_HELP)
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new folder, or an empty one")
    options = parser.parse(argv)
    refusal = "This run cannot be exported:"
    return arguments.run_command(lambda: _export(options), refusal, error_code=1)


def _export(options: argparse.Namespace) -> int:
    """Copy what the run trained, with a tokenizer, and return the exit code.

    Raises:
        ConfigError: The folder is not empty.
        TrackingError: There is no such finished run, it trained nothing, or its files are gone.
    """
    from slimdown.report.console import show_places
    from slimdown.tracking.run_reader import check_finished, download_tuned, find_run, read_config

    folder = options.folder.expanduser().absolute()
    run = find_run(options.tracking, options.run)
    check_finished(run)
    with (
        arguments.make_folder(options.tracking, "DIR", folder) as draft,
        tempfile.TemporaryDirectory() as scratch,
    ):
        trained = download_tuned(options.tracking, run, Path(scratch))
        shutil.copytree(trained, draft, dirs_exist_ok=True)
        if not (draft / "tokenizer_config.json").is_file():
            _add_tokenizer(read_config(options.tracking, run).model, draft)
    # By now `make_folder` has given the draft the folder's name.
    is_adapter = (folder / "adapter_config.json").is_file()
    show_places({"adapter" if is_adapter else "model": str(options.folder)})
    return 0


def _add_tokenizer(model: ModelConfig, folder: Path) -> None:
    """Write the base model's tokenizer beside an adapter, with the chat template it was given."""
    from slimdown.models.base_model import load_base_tokenizer

    try:
        tokenizer = load_base_tokenizer(model)
    except ModelError as error:
        arguments.write_notes([f"The tokenizer is left out: {error}"])
        return
    template = folder / "chat_template.jinja"
    if template.is_file():
        tokenizer.chat_template = template.read_text("utf-8")
    tokenizer.save_pretrained(folder)
