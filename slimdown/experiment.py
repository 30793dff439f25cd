"""The page that everything else hangs on: one run, from its settings to its findings."""

from functools import partial

from slimdown.config.schema import RunConfig
from slimdown.evaluation.questions import tasks_of
from slimdown.evaluation.turns import Asking
from slimdown.models.kept import base_of
from slimdown.report import card, console, files
from slimdown.stats.findings import Findings, judge
from slimdown.stats.holdout import open_part
from slimdown.stats.stopping import open_benchmarks
from slimdown.tracking.evaluations import base_records, tuned_record
from slimdown.tracking.provenance import About, peak_memory_bytes
from slimdown.tracking.runs import opened_run
from slimdown.training.tuning import way_to_tuned
from slimdown.utils.interruption import stop_between_forwards


def experiment(config: RunConfig, about: About) -> Findings:
    """What fine-tuning taught a model and what it made it forget.

    Args:
        config: the checked settings; each step below takes its own section.
        about: what the run is called and how it came about, for the record.

    Raises:
        SlimdownError: something that the user can mend.
    """
    note, holdout = (
        console.show_note,
        config.evaluation.holdout,
    )  # what is held out is no finding of this run
    with opened_run(config, about, console.doing("opening the record"), note) as tracked:
        progress_bar = partial(console.progress_bar, tell=tracked.heartbeat.is_at)
        with console.doing("reading the benchmarks"):
            tasks = tasks_of(config.benchmark)
        with console.doing(f"loading {config.model.id}"):
            base = base_of(config.model, config.quantization)
        stop_between_forwards(base.model, tracked.heartbeat.stop_if_taken)
        tracked.log_model(base)
        with console.doing("preparing"):
            way = way_to_tuned(base, config, tasks, tracked.log_contamination)
        console.show_notes(way.notes)
        tracked.log_data(way.data, way.estimates)
        asking, base_record = (
            Asking.alike(base, tasks, config, way.adapter),
            base_records(config, base, tracked, note),
        )
        with progress_bar("measuring the base") as bar, base_record() as record:
            before = asking.base(base, record, bar, way.keeps_base)
            way.measure_base(record)
        tracked.log_base(open_part(before, holdout))
        with progress_bar(way.doing) as bar:
            tuned = way.obtain(about.folder, tracked.log_step, bar, tracked.interim, about.watch)
        tracked.log_tuned(tuned)
        with progress_bar("measuring the tuned model") as bar, base_record() as record:
            own = tuned_record(config, tracked, note)
            both = asking.both(before, base, tuned.model, (record, own), open_benchmarks, bar)
        before, after = (open_part(one, holdout) for one in both)
        findings = judge(before, after, tuned.training, peak_memory_bytes() | way.estimates)
        tracked.keep(
            findings,
            files.files_of(findings, about.name, tracked.run_id, config, about.environment),
        )
        tracked.log_card(partial(card.model_card, findings=findings))
    console.show_findings(findings)
    console.show_where(tracked.run_id, tracked.store_uri, tracked.artifact_uri, tracked.undelivered)
    return findings
