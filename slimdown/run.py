"""`python -m slimdown.run`: compose a run, measure the base, fine-tune, measure again, record what changed."""

import os
import sys
import traceback

from slimdown.guarding import interruption

if __name__ == "__main__":
    interruption.end_at_once_when_interrupted()  # before the imports, which take a third of a second

from contextlib import ExitStack
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from slimdown.guarding.errors import ConfigError, UserError
from slimdown.guarding.hiding import blank_secrets, without_secrets
from slimdown.guarding.redaction import public_uri, redact
from slimdown.recording.connection import check_store
from slimdown.settings.commandline import check_command_line, read_command_line, swept_keys
from slimdown.settings.files import CONF_DIR
from slimdown.settings.load import load_config
from slimdown.settings.naming import base_settings, flatten, run_name
from slimdown.settings.schema import RunConfig


def run(
    config: RunConfig, name: str, config_yaml: str, overrides: list[str], folder: Path, sweep: str | None = None
) -> float:
    """Measure what fine-tuning taught a model and what it made it forget.

    Args:
        config: the checked settings; each step below takes its own section.
        name: what the run is called in MLflow.
        config_yaml: the composed config, for the record.
        overrides: what the command line changed, for the record.
        folder: scratch space of this run.
        sweep: what the runs that one command started have in common; None for a run by itself.

    Returns:
        The mean change of the retained benchmarks' primary metrics, for a sweeper to maximize.

    Raises:
        UserError: something that the user can mend.
    """
    check_store(config.tracking)
    # Imported here: torch and its kin take seconds, and a typo or a silent store should not wait for them.
    from slimdown.judging.anatomy import anatomy
    from slimdown.judging.changes import changes_between
    from slimdown.judging.holdout import open_part
    from slimdown.measuring.evaluate import choose_scoring, load_tasks
    from slimdown.measuring.measure import measure, measure_loss
    from slimdown.preparing.data import load_data
    from slimdown.preparing.model import load_model
    from slimdown.recording.provenance import environment, git_commit
    from slimdown.recording.write import EvaluationRecord, TrackedRun, base_record
    from slimdown.showing import report
    from slimdown.showing.page import html_report
    from slimdown.showing.plots import plot_files
    from slimdown.training.train import adapter_config, check_rows, check_settings, fine_tune, peak_memory_bytes

    report.show_plan(config, name)
    commit = git_commit() or "none"
    tags = {
        "slimdown.seed": str(config.seed),
        "slimdown.git_commit": commit,
        "mlflow.source.name": "slimdown.run",  # the columns that MLflow's pages have for them
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit,
        **({"slimdown.sweep": sweep} if sweep else {}),
    }
    with ExitStack() as until_closed:
        with interruption.undisturbed():  # a run that is opened is closed, whatever comes in between
            with report.doing("opening the record"):
                tracked = TrackedRun(config.tracking, name, kind="tuned", tags=tags)
            until_closed.enter_context(tracked)
        settings, machine = flatten(config), environment()
        tracked.log_settings(settings, config_yaml, overrides, machine)

        with report.doing("reading the benchmarks"):
            tasks = load_tasks(config.benchmark)
        with report.doing(f"loading {config.model.id}"):
            base = load_model(config.model, config.quantization)
        interruption.stop_between_forwards(base.model)
        check_settings(base, config.lora, config.train)
        tracked.log_model(base)

        dequantize = config.quantization.dequantize_for_evaluation
        adapter = adapter_config(config.lora)
        scoring = choose_scoring(base, tasks, config.benchmark, config.evaluation, dequantize, adapter)
        with report.doing("preparing the rows"):
            data = load_data(config.dataset, config.seed, base.tokenizer)
            cut = check_rows(base, data, config.train)
        if cut.n_cut:
            report.show_note(str(cut))
        tracked.log_data(data)

        with (
            report.progress_bar("measuring the base") as bar,
            base_record(
                config.tracking, base, tracked, config.baseline.reuse, base_settings(config), report.show_note
            ) as record,
        ):
            before = measure(base, tasks, config.benchmark, config.evaluation, scoring, record, bar)
            unpack = config.quantization.dequantize_for_training
            loss = measure_loss(base, data.validation, config.train, unpack, record)
        before = open_part(before, config.evaluation.holdout)  # what is held out is no finding of this run
        tracked.log_scores("base", before.benchmarks)
        tracked.log_baselines(record.sources)
        tracked.log_measuring(before)

        with report.progress_bar("training") as bar:
            tuned = fine_tune(
                base, data, config.lora, config.train, config.seed, folder, unpack, loss, tracked.log_step, bar
            )
        tracked.log_training(tuned.result)

        with report.progress_bar("measuring the tuned model") as bar:
            record = EvaluationRecord(
                config.tracking, "tuned", tracked, config.baseline.reuse, lambda: tracked, report.show_note
            )
            after = measure(tuned.loaded, tasks, config.benchmark, config.evaluation, scoring, record, bar)

        after = open_part(after, config.evaluation.holdout)
        tracked.log_scores("tuned", after.benchmarks)
        changed = changes_between(before, after)
        lost = {name: anatomy(before.benchmarks[name], after.benchmarks[name]) for name in changed.benchmarks}
        costs = {
            "base_evaluation_seconds": before.seconds,
            "tuned_evaluation_seconds": after.seconds,
            "peak_memory_bytes": float(peak_memory_bytes()),
        }
        tracked.log_forgetting(changed, lost)
        tracked.log_costs(costs)
        page = html_report(name, tracked.run_id, changed, lost, tuned.result, settings, machine, costs)
        files = {"report.html": page, **plot_files(changed, tuned.result)}
        tracked.log_report(report.markdown_report(name, changed, lost, tuned.result, costs), files)
        tracked.log_adapter_model(tuned.loaded, tuned.result, changed)

    report.show_results(changed, lost, tuned.result)
    report.show_where(tracked.run_id, public_uri(tracked.store_uri), tracked.artifact_uri, tracked.undelivered)
    return changed.mean_retained_change.value


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def job(composed: DictConfig) -> float:
    """One run, as Hydra starts it."""
    settings = HydraConfig.get()
    overrides = list(settings.overrides.task)
    shown = OmegaConf.create(OmegaConf.to_container(composed, resolve=True, enum_to_str=True))
    blank_secrets(shown)
    try:
        with interruption.listening():  # in the process of a launcher too
            return run(
                load_config(composed),
                name=redact(run_name(settings.runtime.choices["model"], overrides, swept_keys(sys.argv[1:]))),
                config_yaml=OmegaConf.to_yaml(shown),
                overrides=overrides,
                folder=Path(settings.runtime.output_dir),
                sweep=Path(settings.sweep.dir).name if settings.mode is RunMode.MULTIRUN else None,
            )
    except UserError as error:
        if settings.mode is RunMode.MULTIRUN:
            raise  # Hydra marks this job as failed and goes on with the next; an exit would end the sweep
        sys.exit(_said("This run cannot go on:", error))


def main() -> None:
    """Run what the command line asks for; a user's mistake ends in one message and exit code 1."""
    # Hydra prints its own shortened traceback and exits; we decide here what a person sees.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    os.environ.setdefault("TQDM_DISABLE", "1")  # the harness's small bars would tear our one
    try:
        with interruption.listening():
            sys.argv[1:] = without_secrets(read_command_line(sys.argv[1:]).arguments)
            check_command_line(sys.argv[1:])
            job()
    except KeyboardInterrupt as error:
        notes = getattr(error, "__notes__", ["No run was open: nothing is lost."])
        sys.stderr.write(f"Interrupted. {notes[-1]}\n")
        # One that was raised inside an exec'd text, as dataclasses are made with, marks the process as killed by
        # SIGINT, whatever its exit code (CPython, run_eval_code_obj); the next such text takes that back.
        exec("")
        sys.exit(interruption.EXIT_CODE)
    except (ConfigError, HydraException) as error:
        sys.exit(_said("This run cannot start:", error))
    except UserError as error:
        sys.exit(_said("This run cannot go on:", error))
    except Exception as error:
        if not isinstance(error, OSError) or error.filename is None or hasattr(error, "__notes__"):
            sys.exit(redact(traceback.format_exc()))  # what nobody thought of may hold an address too
        sys.exit(  # the folder that Hydra makes for a run before it calls us
            f"This run cannot start:\n  its folder {error.filename} cannot be made ({error.strerror}); "
            "hydra.run.dir=FOLDER (of a sweep hydra.sweep.dir=FOLDER) puts it where there is room and you may write"
        )


def _said(what: str, error: Exception) -> str:
    lines = [*str(error).splitlines(), *getattr(error, "__notes__", [])]
    return redact("\n  ".join([what, *lines]))


if __name__ == "__main__":
    main()
