"""`slimdown merge RUN --out DIR`: write a run's adapter and its base as one model, with a card.

Examples:
  slimdown merge 3f2a --out tuned                  into the values of the run's 4-bit weights
  slimdown merge 3f2a --out tuned --onto original  into the weights as published

Then, to measure what it lost and what merging changed:
  slimdown run tuned=tuned quantization=none ...   with the run's base and benchmarks
  slimdown compare 3f2a RUN --chain                with the id of that run
"""

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from slimdown.commands import arguments
from slimdown.config.schema import Device, Dtype, RunConfig
from slimdown.utils.errors import ModelError, TrackingError
from slimdown.utils.files import write_atomically


def main(argv: list[str]) -> int:
    """Merge the adapter of a recorded run.

    Args:
        argv: The arguments after `merge`.

    Returns:
        The exit code.
    """
    parser = arguments.CommandParser("merge", __doc__)
    add = parser.add_argument
    add("run", metavar="RUN", help=arguments.RUN_HELP)
    add("--out", type=Path, required=True, metavar="DIR", help="a new folder, or an empty one")
    text = "the data type of the merged weights (default: that of the run)"
    add("--dtype", choices=("float32", "bfloat16", "float16"), help=text)
    text = "the weights that the adapter was trained on (default), or the original ones"
    add("--onto", choices=("dequantized", "original"), default="dequantized", help=text)
    text = (
        "the device that merges in float32, 4 bytes per parameter (default: auto, a GPU if present)"
    )
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help=text)
    options = parser.parse(argv)
    refusal = "This run cannot be merged:"
    return arguments.run_command(lambda: _merge(options), refusal, error_code=1)


def _merge(options: argparse.Namespace) -> int:
    """Write the merged model and its card, note it in the record, and return the exit code.

    Raises:
        ConfigError: The folder is not empty, or the run's settings do not hold here.
        ModelError: The run's method cannot be merged, or the base model cannot be loaded.
        TrackingError: There is no such finished run, it trained nothing, or its files are gone.
    """
    from slimdown.tracking.derived_models import record_merged
    from slimdown.tracking.metrics_and_tags import Tag
    from slimdown.tracking.run_reader import check_finished, download_tuned, find_run, read_config

    out = options.out.expanduser().absolute()
    run = find_run(options.tracking, options.run)
    findings = check_finished(run)
    if origin := run.tags.get(Tag.origin):
        raise TrackingError(
            f"run {run.run_id} ({run.name}) trained nothing: it measured {origin}. If that is an "
            "adapter, merge it with PEFT: PeftModel.from_pretrained(base, folder)"
            ".merge_and_unload()"
        )
    config = read_config(options.tracking, run)
    method = config.method
    if not method.facts.merges:
        raise ModelError(
            f"run {run.run_id} ({run.name}) was trained with method={method.name}, which no "
            "weights of the base can hold; load its adapter beside the base, as its card says"
        )
    from slimdown.models.base_model import load_base_model  # torch
    from slimdown.models.merging import merge_adapter
    from slimdown.report import console
    from slimdown.tracking.run_files import MergedModel, render_model_card

    base_config = _choose_model(config, options)
    with (
        arguments.make_folder(options.tracking, "--out", out) as draft,
        tempfile.TemporaryDirectory() as scratch,
    ):
        trained = download_tuned(options.tracking, run, Path(scratch))
        with console.progress_bar(f"merging into {config.model.id}"):
            # The model card needs it in any case.
            base = load_base_model(base_config.model, base_config.quantization)
            if method.facts.trains_weights:  # there is no adapter to merge, only a whole model
                # It is copied unchanged, whatever --dtype says: the run saved it in the base's
                # dtype, and `_choose_model` keeps this dtype.
                shutil.copytree(trained, draft, dirs_exist_ok=True)
                dtype = base.dtype
            else:
                dtype = merge_adapter(base, trained, draft, options.dtype)
        merged = MergedModel(out.name, dtype, onto_original=options.onto == "original")
        card = render_model_card(findings, config, base, merged=merged)
        write_atomically(draft / "README.md", card)
    try:
        record_merged(options.tracking, run, out, {"dtype": str(dtype), "onto": options.onto})
    except TrackingError as error:
        arguments.write_notes([f"The model could not be written to the record: {error}"])
    size = sum(file.stat().st_size for file in out.iterdir() if file.is_file()) / 1e6
    console.show_line(f"{run.name}, merged, {dtype}, {size:,.1f} MB: {out}")
    return 0


def _choose_model(config: RunConfig, options: argparse.Namespace) -> RunConfig:
    """Return a run's settings, in which model and quantization are those that merging loads.

    The adapter may have been trained on weights of 4 or 8 bits. By default, it is merged into these
    weights, dequantized, because they are what it corrects. A run that trained a whole model has no
    adapter to merge: its base keeps the dtype of the run, also with --onto original.

    Args:
        config: The settings of the run.
        options: Those of the command line, with `device` and `onto`.
    """
    model, quantization = replace(config.model, device=Device(options.device)), config.quantization
    if options.onto == "original" and not config.method.facts.trains_weights:
        # They are loaded in float32, so that only the sum of weights and adapter is rounded.
        model = replace(model, dtype=Dtype.float32)
        quantization = replace(quantization, load_in_4bit=False, load_in_8bit=False)
    return replace(config, model=model, quantization=quantization)
