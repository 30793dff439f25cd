"""`python -m slimdown.merge RUN --out DIR`: a run's adapter and its base as one model, with a card of what it lost."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimdown.config.arguments import Parser, add_store, store_to_read
from slimdown.config.method import WHOLE, Method
from slimdown.config.naming import section
from slimdown.config.schema import (
    TRAINING,
    BaselineConfig,
    BenchmarkConfig,
    Dtype,
    EvaluationConfig,
    RunConfig,
    TrackingConfig,
    TrainConfig,
)
from slimdown.stats.runs import Making, RecordedRun
from slimdown.tracking.names import making
from slimdown.tracking.read import fetch_tuned, read_evaluation, read_run, refuse_unfinished
from slimdown.tracking.tags import Tag
from slimdown.utils import interruption
from slimdown.utils.disk import disk_full, whole_file, whole_folder
from slimdown.utils.errors import SlimdownError
from slimdown.utils.redaction import redact

if TYPE_CHECKING:
    from slimdown.report.card import Merged
    from slimdown.stats.findings import Findings

_NO_WEIGHTS = {  # methods whose work no weights of a base could do
    Method.prefix: "it puts virtual tokens before every layer's own",
    Method.prompt: "it puts virtual tokens before the prompt",
    Method.bottleneck: "it puts layers of its own between those of the base",
}
_EPILOG = """\
examples
  python -m slimdown.merge 3f2a --out tuned                   into the values that the run's 4-bit weights stand for
  python -m slimdown.merge 3f2a --out tuned --evaluate        and measured: what it lost, and what merging changed
  python -m slimdown.merge 3f2a --out tuned --onto original   into the weights as published
"""

_EARLIER = {
    "evaluation.holdout": "0.0",
    "evaluation.until": "all",
}  # of runs whose records know of neither


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = Parser(
        prog="python -m slimdown.merge",
        description=(__doc__ or "").partition(": ")[2],
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="a run's id, the beginning of it, or its name")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="a folder that is not there, or empty",
    )
    dtypes = [dtype.value for dtype in Dtype if dtype is not Dtype.auto]
    parser.add_argument(
        "--dtype", choices=dtypes, help="of the merged weights (default: that of the base's files)"
    )
    onto = "what the adapter was trained on (default), or the base as published"
    parser.add_argument(
        "--onto", choices=("dequantized", "original"), default="dequantized", help=onto
    )
    evaluate = "measure it, as a run of its own: against the base as published, and against the run's tuned model"
    parser.add_argument("--evaluate", action="store_true", help=evaluate)
    add_store(parser)
    options = parser.parse_args(given)
    options.out, options.done = options.out.expanduser().absolute(), False
    return options


def main(given: Sequence[str] | None = None) -> None:
    """Write the merged model; a user's mistake ends in one message and exit code 1."""
    options = arguments(sys.argv[1:] if given is None else given)
    os.environ.setdefault("TQDM_DISABLE", "1")  # the harness's small bars would tear our one
    try:
        with interruption.listening():
            _merge(options)
    except SlimdownError as error:
        notes = getattr(error, "__notes__", [])
        what = (
            "The run is merged, and measuring it ends here:"
            if options.done
            else "This run cannot be merged:"
        )
        sys.exit("\n  ".join([what, redact(str(error)), *notes]))
    except KeyboardInterrupt as error:
        sys.stderr.write(
            f"Interrupted. {getattr(error, '__notes__', ['No half of a model is left.'])[-1]}\n"
        )
        sys.exit(interruption.EXIT_CODE)


def _merge(options: argparse.Namespace) -> None:
    store = store_to_read(options.tracking_uri)
    run = read_run(store, options.run)
    refuse_unfinished(run)
    method = Method(run.params.get("method.name", Method.lora))  # older runs know of no other
    if reason := _NO_WEIGHTS.get(method):
        raise SlimdownError(
            f"run {run.run_id} ({run.name}) was trained with method={method}: {reason}, and no weights can hold that; "
            "its adapter is loaded beside the base, as its card says"
        )
    if method in WHOLE and options.onto == "original":
        raise SlimdownError(
            f"--onto original: method={method} trained the weights themselves; leave it out"
        )
    _check_folder(options.out)
    from slimdown.report.console import console, show_pair
    from slimdown.stats.common import common_part
    from slimdown.stats.findings import judge  # what merges takes seconds to import
    from slimdown.stats.holdout import open_part

    with tempfile.TemporaryDirectory() as scratch:
        folder = fetch_tuned(store, run, Path(scratch))
        base, tuned = (
            open_part(read_evaluation(store, run, model), run.holdout)
            for model in ("base", "tuned")
        )
        made = making(run)
        merged = _write(options, made, judge(base, tuned), folder)
        options.done = True
        size = sum(file.stat().st_size for file in options.out.iterdir()) / 1e6
        console.print(
            f"{run.name}, merged, {merged.dtype}, {size:,.1f} MB: {options.out}",
            soft_wrap=True,
            markup=False,
        )
        if options.evaluate:
            found = _measure(options.out, run, store, merged, Path(scratch))
            # Of unpacked 4-bit weights the way is that of plain ones, and so are the sums.
            unpacked = replace(tuned, scoring_path=tuned.scoring_path.replace("-dequantized", ""))
            _write_card(options.out, made, found, measured := replace(merged, is_measured=True))
            try:
                changed = judge(*common_part(unpacked, found.after))
            except (
                SlimdownError
            ) as error:  # int8 rounds what it multiplies, and is asked another way
                console.print(
                    f"What merging changed cannot be told: {error}", soft_wrap=True, markup=False
                )
                return
            _write_card(options.out, made, found, replace(measured, before=changed))
            show_pair(run.name, options.out.name, changed)


def _check_folder(folder: Path) -> None:
    """Refuse a place that holds something, or where nothing can be written.

    Raises:
        SlimdownError: it is a file, a folder that is not empty, or lies where nobody may write.
    """
    if folder.is_dir() and (folder == Path.cwd() or any(folder.iterdir())):
        raise SlimdownError(
            f"--out {folder} is a folder in use; name one that is not there, or empty it"
        )
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir():
        raise SlimdownError(f"--out {folder}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SlimdownError(f"--out {folder}: {there} is not yours to write; name another folder")


def _write(
    options: argparse.Namespace, made: Making, findings: "Findings", folder: Path
) -> "Merged":
    """Make the model and put it with its card where it is asked for, whole or not at all.

    Raises:
        SlimdownError: the base is not to be had or another by now, the adapter cannot be merged, or the disk is full.
    """
    from slimdown.report.card import Merged
    from slimdown.report.console import doing
    from slimdown.training.saved import export, recorded_base

    config, quantization = recorded_base(
        made.run.params, made.dtype, made.compute_dtype, made.revision
    )
    if options.onto == "original":
        config = replace(config, dtype=Dtype.float32)  # nothing is rounded before the sum is
        quantization = replace(quantization, load_in_4bit=False, load_in_8bit=False)
    try:
        with whole_folder(options.out) as draft:
            with doing(f"merging into {config.id}"):
                dtype = export(config, quantization, made.revision, folder, options.dtype, draft)
            merged = Merged(options.out.name, dtype, options.onto == "original")
            _write_card(draft, made, findings, merged)
    except SlimdownError:
        raise
    except Exception as error:  # the system's, or safetensors' around it
        advice = "Nothing is left of it. Make room, or name a folder on another disk"
        full = disk_full(error, options.out.parent, advice=advice)
        if full is None and not isinstance(error, OSError):
            raise
        raise full or SlimdownError(f"--out {options.out} cannot be written: {error}") from None
    return merged


def _write_card(folder: Path, made: Making, findings: "Findings", merged: "Merged") -> None:
    from slimdown.report.card import model_card

    with whole_file(folder / "README.md") as file:
        file.write(redact(model_card(made, findings, merged)).encode())


def _measure(
    folder: Path, run: RecordedRun, store: TrackingConfig, merged: "Merged", scratch: Path
) -> "Findings":
    """What the merged model learned and lost, as `tuned=DIR quantization=none` finds it: a run of its own.

    Its base is the one as published, since that is what somebody would use otherwise.
    """
    from omegaconf import OmegaConf

    from slimdown.experiment import experiment
    from slimdown.tracking.provenance import About
    from slimdown.training.saved import recorded_base

    model, quantization = recorded_base(
        run.params, run.tags[Tag.dtype], "", run.tags[Tag.model_revision]
    )
    config = RunConfig(
        model=replace(model, dtype=Dtype(merged.dtype)),
        quantization=replace(quantization, load_in_4bit=False, load_in_8bit=False),
        benchmark={
            name: section(run.params, f"benchmark.{name}", BenchmarkConfig)
            for name in run.benchmarks
        },
        evaluation=section(_EARLIER | run.params, "evaluation", EvaluationConfig),
        baseline=BaselineConfig(reuse=True),
        train=TrainConfig(
            checkpoint_minutes=None
        ),  # of which nothing is kept: to go on is to merge again
        tracking=replace(store, experiment=run.experiment),
        tuned=str(folder),
    )
    container: dict[str, Any] = OmegaConf.to_container(
        OmegaConf.structured(config), enum_to_str=True
    )  # type: ignore[assignment]
    shown = OmegaConf.create({key: container[key] for key in container if key not in TRAINING})
    overrides = [f"tuned={folder}", "quantization=none", f"model.dtype={merged.dtype}"]
    about = About(
        f"{run.name} merged",
        OmegaConf.to_yaml(shown),
        overrides,
        scratch,
        tags={Tag.merged: run.run_id},
    )
    return experiment(config, about)


if __name__ == "__main__":
    main()
