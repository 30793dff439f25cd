"""`slimdown merge RUN --out DIR`: a run's adapter and its base as one model, with a card."""

import argparse
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from slimdown.commands.arguments import RUN_HELP, CommandParser, open_tracking, run_command
from slimdown.utils.errors import ConfigError, ModelError, SlimdownError
from slimdown.utils.files import raise_if_disk_full, write_atomically, write_folder_atomically

if TYPE_CHECKING:
    from slimdown.config.schema import RunConfig
    from slimdown.stats.findings import Findings
    from slimdown.stats.run_records import RunRecord

_EPILOG = """\
examples
  slimdown merge 3f2a --out tuned                  into the values of the run's 4-bit weights
  slimdown merge 3f2a --out tuned --evaluate       and measured: what it lost by merging
  slimdown merge 3f2a --out tuned --onto original  into the weights as published
"""


def main(argv: list[str]) -> int:
    """Merge the adapter of a recorded run.

    Args:
        argv: The arguments after `merge`.

    Returns:
        The exit code.
    """
    parser = CommandParser("merge", description=__doc__, epilog=_EPILOG)
    add = parser.add_argument
    add("run", metavar="RUN", help=RUN_HELP)
    add("--out", type=Path, required=True, metavar="DIR", help="a new folder, or an empty one")
    dtypes = ("float32", "bfloat16", "float16")
    add("--dtype", choices=dtypes, help="of the merged weights (default: that of the run)")
    bases = ("dequantized", "original")
    text = "what the adapter was trained on (default), or the base as published"
    add("--onto", choices=bases, default=bases[0], help=text)
    text = "measure it in a run of its own, against the base and the run's tuned model"
    add("--evaluate", action="store_true", help=text)
    parser.add_store()
    options = parser.parse_args(argv)
    options.out = options.out.expanduser().absolute()
    return run_command(lambda: _merge(options), "This run cannot be merged:", 1)


def _merge(options: argparse.Namespace) -> int:
    from slimdown.config.method_config import Method
    from slimdown.tracking.run_reader import check_finished, find_run, read_config

    tracking = open_tracking(options)
    run = find_run(tracking, options.run)
    findings = check_finished(run)
    config = read_config(tracking, run)
    config = replace(config, tracking=replace(tracking, experiment=run.experiment))
    method = config.method
    if method.learns_prompt or method.name is Method.bottleneck:
        raise ModelError(
            f"run {run.run_id} ({run.name}) was trained with method={method.name.value}, which no "
            "weights of the base can hold; load its adapter beside the base, as its card says"
        )
    if method.trains_weights and (options.dtype or options.onto == "original"):
        raise ModelError(
            f"method={method.name.value} trained the weights: leave --dtype, --onto out"
        )
    out: Path = options.out
    if out.is_dir() and (out == Path.cwd() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is in use; name a new folder, or empty it")
    parent = next(folder for folder in (out, *out.parents) if folder.exists())
    if not parent.is_dir():
        raise ConfigError(f"--out {out}: {parent} is a file; name a folder")
    if not os.access(parent, os.W_OK | os.X_OK) or out.is_relative_to("/proc"):
        raise ConfigError(f"--out {out}: you cannot write there; name another folder")
    try:
        _write_merged(options, run, config, findings)
    except OSError as error:
        raise_if_disk_full(error, out.parent, advice="Nothing is left of it. Make room")
        raise ConfigError(f"--out {out} cannot be written: {error}") from None
    return 0


def _write_merged(
    options: argparse.Namespace, run: "RunRecord", config: "RunConfig", findings: "Findings"
) -> None:
    from slimdown.config.schema import Dtype
    from slimdown.models.base_model import load_base_model
    from slimdown.models.merging import merge_adapter
    from slimdown.report import console
    from slimdown.report.findings_report import ModelPair, pairs_table
    from slimdown.report.model_card import MergedModel, render_model_card
    from slimdown.stats.findings import judge_pair
    from slimdown.tracking.run_reader import download_tuned, read_evaluations

    out, is_original = options.out, options.onto == "original"
    plain = replace(config.quantization, load_in_4bit=False, load_in_8bit=False)
    model, quantization = config.model, plain if is_original else config.quantization
    if is_original:  # nothing is rounded before the sum is
        model = replace(model, dtype=Dtype.float32)
    with tempfile.TemporaryDirectory() as scratch, write_folder_atomically(out) as draft:
        trained = download_tuned(config.tracking, run, Path(scratch))
        with console.status(f"merging into {model.id}"):
            base = load_base_model(model, quantization)
            if config.method.trains_weights:
                shutil.copytree(trained, draft, dirs_exist_ok=True)
                dtype = base.dtype
            else:
                dtype = merge_adapter(base, trained, draft, options.dtype)
        merged = MergedModel(out.name, dtype, is_original)
        card = render_model_card(findings, config, base, merged=merged)
        write_atomically(draft / "README.md", card)
    size = sum(file.stat().st_size for file in out.iterdir() if file.is_file()) / 1e6
    console.show_line(f"{run.name}, merged, {dtype}, {size:,.1f} MB: {out}")
    if not options.evaluate:
        return
    base = replace(base, model=None)  # makes room
    model = replace(config.model, dtype=Dtype(dtype))
    measured = replace(config, model=model, quantization=plain, tuned=str(out))
    found = _evaluate(measured, run)
    change = None
    try:
        _, tuned = read_evaluations(config.tracking, run)
        assert found.tuned is not None
        change = judge_pair(tuned, found.tuned, config.evaluation.holdout)
        console.show_table(pairs_table([ModelPair(run.name, out.name, change)]))
    except SlimdownError as error:
        console.show_line(f"What merging changed cannot be judged: {error}")
    merged = replace(merged, is_measured=True, before=change)
    write_atomically(out / "README.md", render_model_card(found, config, base, merged=merged))


def _evaluate(config: "RunConfig", run: "RunRecord") -> "Findings":
    """Measure the merged model as `tuned=DIR quantization=none` does."""
    from omegaconf import OmegaConf

    from slimdown.config.schema import TRAINING
    from slimdown.experiment import run_experiment
    from slimdown.tracking.metric_names import Tag
    from slimdown.tracking.provenance import RunInfo

    sections = OmegaConf.structured(config)
    shown = OmegaConf.masked_copy(sections, [key for key in sections if key not in TRAINING])
    overrides = [f"tuned={config.tuned}", "quantization=none"]
    tags = {str(Tag.merged): run.run_id}
    info = RunInfo(f"{run.name} merged", OmegaConf.to_yaml(shown), overrides, tags=tags)
    return run_experiment(config, info)
