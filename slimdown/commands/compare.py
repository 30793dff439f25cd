"""`slimdown compare`: show what recorded runs learned and forgot, and which settings differ.

Examples:
  slimdown compare                                        the newest sweep; if runs were made after
                                                          it, all of experiment slimdown
  slimdown compare --no-group-seeds                       each run, and no means over seeds
  slimdown compare --sweep 2025-06-01_12-00-00            the runs that one command started
  slimdown compare --sort -gsm8k --rows 10                the ten runs with the best change of gsm8k
  slimdown compare --by lora.r -o ranks.html              a page with each benchmark by rank
  slimdown compare --by keep.name --against none          each mitigation against none only
  slimdown compare --filter "params.`lora.r` = '8'" --format csv
  slimdown compare 3f2a --all                             one run, with every metric and column
  slimdown compare 3f2a 91bc --paired                     two tuned models, question by question
  slimdown compare 3f2a --confirm                         confirm a choice on held-out questions
  slimdown compare 3f2a 91bc 77d0 --chain                 which stage of a chain lost what
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from urllib.parse import urlsplit

from slimdown.commands.arguments import (
    CommandParser,
    put_report,
    put_table,
    run_command,
    write_notes,
)
from slimdown.comparison import run_order
from slimdown.comparison.run_comparison import (
    check_prompts,
    compare_runs,
    describe_model_differences,
)
from slimdown.comparison.run_records import RunRecord
from slimdown.config.tracking_config import TrackingConfig
from slimdown.evaluation.results import Evaluation
from slimdown.judging.common_questions import take_common
from slimdown.judging.findings import judge, judge_pair
from slimdown.judging.holdout import open_part
from slimdown.judging.stages import Step, judge_stages
from slimdown.report import comparison_page as page
from slimdown.report.brief_comparison import describe_claims, list_tested, order_by_settings
from slimdown.report.console import show_comparison, show_findings
from slimdown.report.findings_report import pairs_table
from slimdown.report.formatting import pluralize
from slimdown.report.pages import render_table_page
from slimdown.report.stages_report import render_stages_page, stages_table
from slimdown.report.text import describe_serving
from slimdown.tracking import run_reader
from slimdown.tracking.held_out import take_held_out
from slimdown.tracking.metrics_and_tags import Tag
from slimdown.utils.errors import ConfigError, TrackingError
from slimdown.utils.secrets import redact_uri

_MOST_CLAIMED = 100  # differences in a file
_DEFAULT_EXPERIMENT = "slimdown"  # that of conf/config.yaml
_NO_SWEEP = "no sweep"


def main(argv: list[str]) -> int:
    """Compare recorded runs.

    Args:
        argv: The arguments after `compare`.

    Returns:
        The exit code.
    """
    parser = CommandParser("compare", __doc__)
    runs_help = "only these runs: ids, beginnings of ids, or names"
    parser.add_argument("runs", nargs="*", metavar="RUN", help=runs_help)
    parser.add_list(
        "--experiment",
        "NAME",
        f"runs of this experiment (default: {_DEFAULT_EXPERIMENT}; with --sweep: all)",
    )
    parser.add_text("--sweep", "NAME", "only the runs that one command started")
    parser.add_text("--filter", "FILTER", "only runs that fit a filter in MLflow's language")
    for option, metavar, text in (
        ("--sort", "KEY", "a benchmark, a setting, learned or kept; -KEY sorts downwards"),
        ("--by", "SETTING", "sort by this setting, and test its values against each other"),
        ("--against", "VALUE", "with --by: compare only this value with each of the others"),
    ):
        parser.add_text(option, metavar, text, default=None)
    text = "show runs that differ only in their seed as one row (default)"
    on_or_off = argparse.BooleanOptionalAction  # it adds --no-group-seeds, too
    parser.add_argument("--group-seeds", action=on_or_off, default=True, help=text)
    parser.add_rows("show at most this many rows")
    modes = parser.add_mutually_exclusive_group()
    for mode, text in (
        ("paired", "compare the tuned models of two RUNs question by question"),
        ("confirm", "judge the RUNs you chose on their held-out questions"),
        ("chain", "compare stages of one model: the base of the first RUN, then each tuned model"),
    ):
        modes.add_argument(f"--{mode}", action="store_const", const=mode, dest="mode", help=text)
    parser.add_list("--only", "NAME", "with --paired, --confirm or --chain: only this benchmark")
    parser.add_output()
    if "--sort" in argv[:-1]:  # as --sort=-KEY, because argparse takes -KEY alone for an option
        i = argv.index("--sort")
        argv = [*argv[:i], f"--sort={argv[i + 1]}", *argv[i + 2 :]]
    options = parser.parse(argv)
    _check_options(parser, options)
    return run_command(lambda: _compare(options), "These runs cannot be compared:", error_code=1)


def _check_options(parser: CommandParser, options: argparse.Namespace) -> None:
    """End the process with exit code 2 and one line if options contradict each other.

    Args:
        parser: Shows the line.
        options: As parsed; `mode` is "paired", "confirm", "chain" or None.
    """
    if options.mode and (options.sort or options.by or options.against or not options.group_seeds):
        parser.error(f"--{options.mode} takes no --sort, --by, --against or --no-group-seeds")
    if options.runs and (options.experiment or options.sweep or options.filter):
        parser.error("you named runs: leave out --experiment, --sweep and --filter")
    if options.only and not options.mode:
        parser.error("--only NAME goes with --paired, --confirm or --chain; add one of these")
    if options.by == "seed":
        advice = "--no-group-seeds --sort seed lists the seeds, --all says how much they vary"
        parser.error(f"--by seed: values of other settings are compared over the seeds; {advice}")
    if options.mode == "paired" and len(options.runs) != 2:
        parser.error(f"--paired compares two runs, but got {len(options.runs)}; name two")
    if options.mode == "confirm" and not options.runs:
        parser.error("--confirm judges the runs you chose; name one or more")
    if options.mode == "chain" and not options.runs:
        parser.error("--chain takes the runs of a model's stages; name them in their order")


def _compare(options: argparse.Namespace) -> int:
    """Compare the runs that the options choose, and return the exit code.

    There are four forms. --chain shows the stages of one model, --paired and --confirm judge pairs
    of models, a single named run is shown as its own report shows it, and otherwise each run is a
    row of a table.

    Raises:
        ConfigError: The runs cannot be compared, or an option names nothing that they have.
        DataError: The models' answers cannot be compared, or there are too few questions.
        TrackingError: There is no such run, or it is not finished.
    """
    runs, title, notes = _select_runs(options)
    if options.mode == "chain":
        return _compare_stages(runs, options)
    if options.mode:
        judge_pairs = _confirm if options.mode == "confirm" else _judge_two_models
        pairs, notes = judge_pairs(runs, options)
        table = pairs_table(pairs)
        table = replace(table, notes=(*notes, *table.notes))
        command = f"compare --{options.mode}"
        return put_table(table, options, lambda: render_table_page(table, command))
    run = runs[0]
    if run.findings and len(options.runs) == 1 and not (options.by or options.sort):
        if options.format in (None, "table") or options.output:
            show_findings(run.findings, run.name, with_details=options.all)
        if options.format:
            put_report(run.findings, run.name, gate=None, options=options, run_id=run.run_id)
        return 0
    return _compare_settings(runs, title, notes, options)


def _compare_settings(
    runs: list[RunRecord], title: str, notes: list[str], options: argparse.Namespace
) -> int:
    """Show a table with a row for each run, or for all seeds of a configuration.

    Args:
        runs: The finished runs, newest first.
        title: What the runs are: "8 finished runs of sweep s".
        notes: Sentences for the user on how the runs were chosen.
        options: Those of the command line.

    Returns:
        0, the exit code.

    Raises:
        ConfigError: The runs were asked differently, or an option names nothing that they have.
    """
    try:
        check_prompts(runs)
    except ConfigError as error:
        error.add_note(_describe_sweeps(_count_by_sweep(runs)))
        raise
    comparison = compare_runs(runs, options.group_seeds)
    by = options.by
    if by is not None:
        comparison = run_order.sort_by_setting(comparison, by)
        title = f"By {by}: {title}"
    if options.sort is not None:
        comparison = run_order.sort_rows(comparison, options.sort)
    else:
        comparison = order_by_settings(comparison, by)
    # --against names the reference: the value with which the others are compared.
    _check_reference(options.against, list_tested(comparison, by))
    comparison = replace(comparison, reference=options.against)
    show_brief = partial(show_comparison, comparison, title, notes, options.rows, by)
    is_text = options.format in (None, "table")
    if is_text and not options.all and not options.output:
        show_brief()  # without the table of all columns, which takes longer
        return 0
    # 0 stands for all rows: programs read the other formats.
    table = page.comparison_table(comparison, title, notes, options.rows if is_text else 0)
    # The HTML page names the significant differences by itself; tables need them as notes.
    render_page = partial(page.render_comparison_page, table, comparison, by)
    claims = tuple(describe_claims(comparison, by, most=_MOST_CLAIMED))
    table_with_claims = replace(table, notes=(*claims, *table.notes))
    return put_table(table_with_claims, options, render_page, show_brief)


def _compare_stages(runs: list[RunRecord], options: argparse.Namespace) -> int:
    """Compare the stages of one model, and return the exit code."""
    evaluations, notes = take_common(_read_stages(runs, options.tracking), options.only)
    stages = judge_stages(evaluations)
    for run in runs:
        if run.findings and run.findings.served_by:
            notes = [*notes, *describe_serving(run.findings)]
    write_notes(notes)
    table = stages_table(stages, " → ".join(evaluations))
    render_page = partial(render_stages_page, table, stages, "compare --chain")
    return put_table(table, options, render_page)


def _check_reference(value: str | None, tested: Sequence[str]) -> None:
    """Refuse a reference value where it is not clear of which setting it is one."""
    if value is not None and len(tested) != 1:
        settings = f": {', '.join(tested)}" if tested else ""
        problem = f"--against {value} is a value of one setting"
        raise ConfigError(f"{problem}; name the setting with --by{settings}")


def _judge_two_models(
    runs: list[RunRecord], options: argparse.Namespace
) -> tuple[list[Step], list[str]]:
    """Judge two tuned models against each other, on held-out questions where there are any.

    Held-out questions are those by which no run was chosen, see `evaluation.holdout`.

    Args:
        runs: The two runs, finished.
        options: Those of the command line, with `tracking` and `only`.

    Returns:
        The pair in a list. And notes for the user: how the two models differ, what is left out, and
        how many models these questions have judged.

    Raises:
        ConfigError: --only names a benchmark that a run lacks.
        DataError: The answers cannot be compared, or there are too few held-out questions.
        TrackingError: The answers are gone or damaged.
    """
    first_run, second_run = runs
    first_name = _name_beside(first_run, partner=second_run)
    second_name = _name_beside(second_run, partner=first_run)
    notes = describe_model_differences(runs)
    evaluations = [run_reader.read_evaluations(options.tracking, run) for run in runs]
    tuned = [tuned_evaluation for _, tuned_evaluation in evaluations]
    count_notes = list[str]()
    # Each run holds out a share of the questions, or none (0). There are three cases:
    # - both do: the larger part includes the smaller one, so the smaller one chose neither run;
    # - only one does: its part is used, but these questions may have chosen the other run;
    # - none does: all questions are used, and they may have chosen both runs.
    smaller_share, larger_share = sorted(run.holdout for run in runs)
    share = smaller_share or larger_share
    if share:
        # Each call counts one model more that was judged on these questions. So only the count of
        # the second call includes both models.
        held_out = []
        for run, answers in zip(runs, evaluations, strict=True):
            held_out.append(take_held_out(options.tracking, run, answers, share))
        tuned = [answers.tuned for answers in held_out]
        # A warning if the questions have judged more models than these two.
        count_notes = held_out[-1].explain_looks(n_corrected=len(runs))
    taken, left_out = take_common({first_name: tuned[0], second_name: tuned[1]}, options.only)
    first, second = taken.values()
    # Unless both hold questions out, `judge_pair` warns that the questions may have chosen a run.
    findings = judge(first, second) if smaller_share else judge_pair(first, second)
    return [Step(first_name, second_name, findings)], [*notes, *left_out, *count_notes]


def _confirm(runs: list[RunRecord], options: argparse.Namespace) -> tuple[list[Step], list[str]]:
    """Judge chosen runs, each against its base, on questions that did not choose them.

    Args:
        runs: The runs that were chosen, finished.
        options: Those of the command line, with `tracking` and `only`.

    Returns:
        The pairs of base and tuned model. And notes for the user: what is left out, and how many
        models these questions have judged.

    Raises:
        ConfigError: A run has no held-out questions, or --only names a benchmark that it lacks.
        DataError: The answers cannot be compared, or there are too few held-out questions.
        TrackingError: The answers are gone or damaged.
    """
    for run in runs:
        if not run.holdout:
            raise ConfigError(
                f"run {_name(run)} has no held-out questions (evaluation.holdout is 0). Questions "
                "that were used to choose a run cannot confirm it. Run the candidates again with "
                "evaluation.holdout=0.5, choose one of them, and confirm it"
            )
    pairs = list[Step]()
    notes, count_notes = list[str](), list[str]()
    for run in runs:
        evaluations = run_reader.read_evaluations(options.tracking, run)
        held_out = take_held_out(options.tracking, run, evaluations, run.holdout)
        name = _name(run)
        taken, left_out = take_common({"base": held_out.base, name: held_out.tuned}, options.only)
        base, tuned = taken.values()
        # The p-values are corrected for all runs that this command judges.
        pairs.append(Step("base", name, judge(base, tuned, n_reports=len(runs))))
        notes += left_out
        # Each run counts its own model, so only the last count includes all of them.
        count_notes = held_out.explain_looks(n_corrected=len(runs))
    return pairs, [*notes, *count_notes]


def _read_stages(runs: list[RunRecord], tracking: TrackingConfig) -> dict[str, Evaluation]:
    """Return the answers of each stage of a model, by the stage's name.

    The stages are the first run's base model, then each run's tuned model. If the last run also
    asked its model in the way in which it is served, for example with the chat template of its
    server, these answers are one more stage. Held-out questions are left out.

    Args:
        runs: The runs in the order of the stages.
        tracking: The store.

    Raises:
        DataError: There are too few questions to leave the held-out ones out.
        TrackingError: The answers are gone or damaged.
    """
    stages = dict[str, Evaluation]()
    for run in runs:
        base, tuned = run_reader.read_evaluations(tracking, run)
        stages.setdefault("base", open_part(base, run.holdout))
        # The setting `tuned` is the folder or address of a model made elsewhere; it is empty if
        # the run trained the model. A folder gives the stage its last part as a name.
        tuned_setting = run.params.get("tuned", "")
        origin = tuned_setting.rstrip("/").rpartition("/")[2]
        if tuned.served_by:  # a server answered, and the setting is its address
            origin = f"served by {urlsplit(tuned_setting).netloc}"
        name = run.given_name or origin or "trained"
        if name in stages:
            name = f"{name} {run.run_id[:8]}"
        stages[name] = open_part(tuned, run.holdout)
        if run is runs[-1] and (served := run_reader.read_served(tracking, run, tuned)):
            stages[f"{name}, as served"] = open_part(served, run.holdout)
    return stages


def _name(run: RunRecord) -> str:
    return f"{run.name} ({run.run_id[:8]})"


def _name_beside(run: RunRecord, partner: RunRecord) -> str:
    """Name a run as it was named, or by the settings that its partner lacks."""
    if run.given_name and run.given_name != partner.given_name:
        return f"{run.given_name} ({run.run_id[:8]})"
    settings = " ".join(f"{k}={v}" for k, v in run.params.items() if partner.params.get(k) != v)
    return f"{settings[:80] or run.name} ({run.run_id[:8]})"


def _select_runs(options: argparse.Namespace) -> tuple[list[RunRecord], str, list[str]]:
    """Return the finished runs that a command line asks for, a title, and notes.

    If the options name no runs, no sweep and no filter, these are the runs of the newest sweep
    alone in two cases: --by tests the values of a setting, or no run was made after that sweep and
    neither --experiment nor --sort asks for more.

    Returns:
        The runs, newest first or as they were named; a title; and notes for the user.

    Raises:
        ConfigError: The same run was named twice.
        TrackingError: There are none, or a named one does not exist or is not finished.
    """
    if options.runs:
        named = [run_reader.find_run(options.tracking, text) for text in options.runs]
        for run in named:
            run_reader.check_finished(run)
        chosen = {run.run_id: run for run in named}
        if len(chosen) < 2 <= len(options.runs) and options.mode != "confirm":
            raise ConfigError("a comparison needs two different runs; name another")
        return list(chosen.values()), f"{len(chosen)} chosen runs", []
    runs, source, notes = _find_finished(options)
    sweeps = _count_by_sweep(runs)
    # A sweep of a single run leaves nothing to compare, so it does not count here.
    newest_sweep = next((name for name in sweeps if sweeps[name] > 1 and name != _NO_SWEEP), "")
    if newest_sweep and not (options.sweep or options.filter):
        has_newest_run = runs[0].tags.get(Tag.sweep) == newest_sweep
        if options.by or (has_newest_run and not (options.experiment or options.sort)):
            # Runs of other sweeps may differ in more than the varied settings.
            runs = [run for run in runs if run.tags.get(Tag.sweep) == newest_sweep]
            source = f"the newest sweep, {newest_sweep}"
    # The user may not know which sweeps there are, unless one was named or none was made.
    if not options.sweep and (len(sweeps) > 1 or _NO_SWEEP not in sweeps):
        notes.append(_describe_sweeps(sweeps))
    return runs, f"{pluralize(len(runs), 'finished run')} of {source}", notes


def _count_by_sweep(runs: Sequence[RunRecord]) -> Counter[str]:
    """Count runs by the name of their sweep, the newest first."""
    return Counter(run.tags.get(Tag.sweep) or _NO_SWEEP for run in runs)


def _describe_sweeps(sweeps: Mapping[str, int]) -> str:
    """Name sweeps with their numbers of runs, and say how to see one of them."""
    if [*sweeps] == [_NO_SWEEP]:
        return "No run belongs to a sweep."
    counts = ", ".join(f"{name} ({count:,})" for name, count in list(sweeps.items())[:5])
    more = f" and {len(sweeps) - 5:,} more" if len(sweeps) > 5 else ""
    return (
        f"Runs by sweep: {counts}{more}. Add --sweep NAME to see one sweep, or --experiment NAME "
        "to see all runs of an experiment."
    )


def _find_finished(options: argparse.Namespace) -> tuple[list[RunRecord], str, list[str]]:
    """Find the finished runs of experiments, a sweep, or a filter.

    Returns:
        The runs, newest first; where they come from, in words; and a list with one note if
        unfinished runs are left out, otherwise empty.

    Raises:
        TrackingError: There are none.
    """
    experiments = options.experiment or ([] if options.sweep else [_DEFAULT_EXPERIMENT])
    runs = run_reader.find_runs(
        options.tracking, experiments, options.sweep, options.filter, with_findings=True
    )
    finished = [run for run in runs if run.findings]
    states = Counter(run.status.lower() for run in runs if not run.findings)
    left_out = ", ".join(f"{count:,} {state}" for state, count in states.items())
    # What the user chose the runs by, for messages: "sweep s, experiment a".
    chosen = {"sweep": options.sweep, "filter": options.filter, "experiment": " ".join(experiments)}
    source = ", ".join(f"{name} {text}" for name, text in chosen.items() if text)
    if not finished:
        reason = f"left out: {left_out}" if left_out else "make one with slimdown run"
        uri = redact_uri(options.tracking.uri)
        error = TrackingError(f"there is no finished run of {source} in {uri}; {reason}")
        if options.sweep:
            # Perhaps the name has a typing error: list the sweeps that there are.
            sweeps = _count_by_sweep(run_reader.find_runs(options.tracking, options.experiment))
            error.add_note(_describe_sweeps(sweeps) if sweeps else "There are no runs at all.")
        raise error
    return finished, source, [f"Left out: {left_out}."] if left_out else []
