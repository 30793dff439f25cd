"""`python -m slimdown.compare`: recorded runs side by side, what differs between them, what each learned and lost.

Imports neither torch nor transformers, and of a local store not even MLflow is needed.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slimdown.config.arguments import (
    Parser,
    add_output,
    add_store,
    format_of,
    options_given,
    store_to_read,
)
from slimdown.config.keys import nearest
from slimdown.config.schema import TrackingConfig
from slimdown.report.comparison import (
    comparison_page,
    comparison_table,
    figures,
    noise_table,
    table_page,
)
from slimdown.report.files import images, put
from slimdown.report.findings import Pair, pairs_table
from slimdown.report.table import FORMATS, Table
from slimdown.stats.comparison import Comparison, compare, counted
from slimdown.stats.holdout import held_out_part, open_part
from slimdown.stats.runs import RecordedRun
from slimdown.stats.sorting import by, ordered
from slimdown.tracking.owner import is_gone, owner_of
from slimdown.tracking.read import (
    FILTER_EXAMPLE,
    experiment_names,
    find_runs,
    read_evaluation,
    read_run,
    refuse_unfinished,
)
from slimdown.tracking.tags import Tag
from slimdown.utils.errors import SlimdownError
from slimdown.utils.redaction import public_uri

if TYPE_CHECKING:
    from slimdown.evaluation.answers import Evaluation
    from slimdown.stats.findings import Findings

_DEFAULT_EXPERIMENT = (
    "slimdown"  # conf/config.yaml, which takes longer to compose than the runs to read
)
_STATES = {
    "RUNNING": "still going or killed outright",
    "SCHEDULED": "not begun",
    "FAILED": "failed",
    "KILLED": "stopped",
    "FINISHED": "finished without a change on record",
}
_MODES = {  # what is shown instead of a row a run
    "paired": "two RUNs: both tuned models' answers, one by one",
    "noise": "of several seeds: the noise of questions and of training, from every answer",
    "confirm": "RUNs chosen among others, on the questions that evaluation.holdout kept from choosing",
}
_EPILOG = """\
examples
  python -m slimdown.compare                                        the finished runs of experiment slimdown
  python -m slimdown.compare --sweep 2025-06-01_12-00-00-000000     the runs that one command started
  python -m slimdown.compare --sort -gsm8k --rows 10                the ten that kept or gained most of gsm8k
  python -m slimdown.compare --by lora.r --format html -o ranks.html
  python -m slimdown.compare --filter "params.`lora.r` = '8'" --format csv
  python -m slimdown.compare 3f2a 91bc --paired                     two tuned models, question by question
  python -m slimdown.compare 3f2a --confirm                         the chosen one, on questions that did not choose it
"""


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = Parser(
        prog="python -m slimdown.compare",
        description="Lay recorded runs side by side: what differs between them, what each learned and lost.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="only these: ids, beginnings of ids, or names"
    )
    which = parser.add_argument_group("which runs")
    add_store(which)
    otherwise = f"(default: {_DEFAULT_EXPERIMENT}; with --sweep: all)"
    experiment = f"an MLflow experiment; can be repeated {otherwise}"
    which.add_argument("--experiment", action="append", metavar="NAME", help=experiment)
    which.add_argument("--sweep", metavar="NAME", help="the runs that one command started")
    which.add_argument(
        "--tag",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an MLflow tag; can be repeated",
    )
    which.add_argument(
        "--filter", default="", metavar="FILTER", help="a filter in MLflow's language"
    )
    _add_looks(parser.add_argument_group("how they are shown"))
    options = parser.parse_args(_joined(given))
    if options.rows < 0:
        parser.error(f"--rows must be 0 or more, got {options.rows}")
    unused = sorted(options_given(options) & {"--sort", "--by", "--rows", "--plots"})
    unused += [] if options.group_seeds else ["--no-group-seeds"]
    for mode in _MODES:
        if getattr(options, mode) and unused:
            parser.error(
                f"--{mode} has rows of its own, which {' and '.join(unused)} cannot change; leave one out"
            )
    if options.filter and not _compares(options.filter):
        parser.error(f"--filter {options.filter!r} compares nothing with nothing; {FILTER_EXAMPLE}")
    options.format = format_of(options)
    return options


def _add_looks(how: argparse._ArgumentGroup) -> None:
    key = "a benchmark, setting, metric, or retained, target, name, started; -KEY: down"
    seeds = (
        "one row for runs that differ only in their seed: mean and standard deviation (default: on)"
    )
    how.add_argument("--sort", metavar="KEY", help=key)
    how.add_argument(
        "--by", metavar="PARAM", help="a setting: sort by it, and plot every benchmark over it"
    )
    how.add_argument(
        "--group-seeds", action=argparse.BooleanOptionalAction, default=True, help=seeds
    )
    other = how.add_mutually_exclusive_group()
    for mode, meaning in _MODES.items():
        other.add_argument(f"--{mode}", action="store_true", help=meaning)
    rows = "at most so many in the table, 0: all (default: 100)"
    how.add_argument("--rows", type=int, default=100, metavar="N", help=rows)
    add_output(how, FORMATS)
    how.add_argument(
        "--plots", type=Path, metavar="FOLDER", help="also write the plots, as SVG and PNG"
    )


def select(
    options: argparse.Namespace, store: TrackingConfig
) -> tuple[list[RecordedRun], str, list[str]]:
    """The finished runs that are asked for, newest first, which ones they are, and what was left out.

    Raises:
        SlimdownError: there are none, or something named is not there.
    """
    if options.runs:
        return _named(options, store)
    experiments = options.experiment or ([] if options.sweep else [_DEFAULT_EXPERIMENT])
    tags = dict(_tag(text) for text in options.tag)
    if options.sweep:
        tags[Tag.sweep] = options.sweep
    if (
        not options.experiment
        and not options.sweep
        and _DEFAULT_EXPERIMENT not in (known := experiment_names(store))
    ):
        raise SlimdownError(
            f"there is no experiment {_DEFAULT_EXPERIMENT} in {public_uri(store.uri)}; name one with --experiment: "
            + ", ".join(known)
        )
    runs = find_runs(store, experiments, options.filter, tags=tags)
    complete = [run for run in runs if run.status == "FINISHED" and run.changes.benchmarks]
    where = f"{'experiment ' + ', '.join(experiments) if experiments else 'all experiments'} in {public_uri(store.uri)}"
    others = [run for run in runs if run.status != "FINISHED" or not run.changes.benchmarks]
    states = Counter(_state(run) for run in others)
    left_out = ", ".join(f"{count:,} {state}" for state, count in states.items())
    if not complete:
        raise SlimdownError(_nothing(options, store, experiments, where, left_out, tags))
    chosen = [f"sweep {options.sweep}"] if options.sweep else []
    chosen += [f"tag {text}" for text in options.tag] + (
        [f"filter {options.filter}"] if options.filter else []
    )
    n = len(complete)
    title = f"{n:,} finished {'run' if n == 1 else 'runs'} of {', '.join([*chosen, where])}"
    return (
        complete,
        title,
        [f"{counted(states.total(), 'run')} left out: {left_out}."] if left_out else [],
    )


def _state(run: RecordedRun) -> str:
    pruned = run.status == "KILLED" and Tag.pruned in run.tags
    if run.status == "RUNNING" and owner_of(run.tags):
        return "gone without an end" if is_gone(run.tags) else "still going"
    return "pruned by a search" if pruned else _STATES.get(run.status, run.status.lower())


def pair(runs: Sequence[RecordedRun], store: TrackingConfig) -> Pair:
    """Two tuned models, question by question; of these only what both leave open.

    Raises:
        SlimdownError: samples that are gone, or evaluations that are not alike; names the first difference.
    """
    from slimdown.stats.common import common_part
    from slimdown.stats.findings import judge  # scipy, which runs side by side do without

    share = max(run.holdout for run in runs)
    before, after = (open_part(read_evaluation(store, run, "tuned"), share) for run in runs)
    try:
        found = judge(*common_part(before, after))
        notes = (*_unlike((before, after), found), *_rounded(runs, (before, after)))
        return Pair(_called(runs[0]), _called(runs[1]), found, notes=notes)
    except SlimdownError as error:
        difference = str(error).replace(
            "base and tuned cannot be compared", "the two runs cannot be paired"
        )
        raise SlimdownError(
            f"{difference}; --paired needs two runs that were asked the same questions in the same way, "
            "without it they are laid side by side"
        ) from None


def _unlike(asked: "tuple[Evaluation, Evaluation]", found: "Findings") -> Iterator[str]:
    """How many questions each of two runs was asked, in a sentence, where one was asked more than the other."""
    counts = [
        {name: len(one.samples) for name, one in report.benchmarks.items()} for report in asked
    ]
    unlike = [name for name in found.changes.benchmarks if counts[0][name] != counts[1][name]]
    first, second = (", ".join(f"{of[name]:,} of {name}" for name in unlike) for of in counts)
    if unlike:
        yield f"Paired on the questions that both were asked; the first was asked {first}, the second {second}."


def _rounded(runs: Sequence[RecordedRun], asked: "tuple[Evaluation, Evaluation]") -> Iterator[str]:
    """That of two runs in half precision one was asked in stages, in a sentence."""
    first, second = (any(one.stages for one in report.benchmarks.values()) for report in asked)
    dtypes = {run.tags.get(tag, "") for run in runs for tag in (Tag.dtype, Tag.compute_dtype)}
    if first != second and (half := sorted(dtypes & {"bfloat16", "float16"})):
        yield (
            f"One was asked in stages and the other all at once, so that {half[0]} rounded what was computed side by "
            "side otherwise: some answers may differ by that alone."
        )


def confirm(runs: Sequence[RecordedRun], store: TrackingConfig) -> list[Pair]:
    """Each run's base and tuned model on the questions that did not choose it, corrected for as many runs.

    Raises:
        SlimdownError: a run that held no questions out, or whose samples are gone.
    """
    from slimdown.stats.findings import judge

    pairs = []
    for run in runs:
        if not run.holdout:
            is_whole = run.params.get("evaluation.until", "all") == "all"
            besides = (
                " (the base's answers are taken from the record)"
                if is_whole
                else " and evaluation.until=all"
            )
            raise SlimdownError(
                f"run {run.run_id} ({run.name}) held no question out (evaluation.holdout is 0): what chose it cannot "
                f"confirm it. Run the candidates again with evaluation.holdout=0.5{besides}, choose among those, and "
                "confirm the chosen one"
            )
        base, tuned = (
            held_out_part(read_evaluation(store, run, model), run.holdout)
            for model in ("base", "tuned")
        )
        pairs.append(Pair("base", _called(run), judge(base, tuned, n_reports=len(runs)), len(runs)))
    return pairs


def _called(run: RecordedRun) -> str:
    return f"{run.name} ({run.run_id[:8]})"


def main() -> None:
    """Show what the command line asks for; a user's mistake ends in one message and exit code 1."""
    options = arguments(sys.argv[1:])
    make = (
        _pairs if options.paired or options.confirm else _noise if options.noise else _side_by_side
    )
    try:
        table, page = make(options, store_to_read(options.tracking_uri))
        put(table, page, options.format, options.output)
    except SlimdownError as error:
        sys.exit(f"These runs cannot be compared:\n  {error}")
    except KeyboardInterrupt:
        sys.exit(130)


_Shown = tuple[Table, Callable[[], str]]  # a table and what makes its page


def _side_by_side(options: argparse.Namespace, store: TrackingConfig) -> _Shown:
    runs, title, notes = select(options, store)
    comparison = compare(runs, options.group_seeds)
    if options.by:
        comparison = by(comparison, options.by)
    if options.sort:
        comparison = ordered(comparison, options.sort)
    table = comparison_table(
        comparison, title, notes, options.rows if options.format == "table" else 0
    )
    if options.plots:
        _write_plots(options, comparison)
    return table, lambda: comparison_page(comparison, table, options.by)


def _pairs(options: argparse.Namespace, store: TrackingConfig) -> _Shown:
    if options.confirm and not options.runs:
        raise SlimdownError(
            "--confirm judges runs that were chosen; name one or more: their ids, or beginnings of ids"
        )
    if options.paired and len(options.runs) != 2:
        raise SlimdownError(
            f"--paired compares exactly two runs, got {len(options.runs)}; give the ids or names of two, e.g. "
            "python -m slimdown.compare 3f2a 91bc --paired"
        )
    runs, _, _ = _named(options, store, fewest=1 if options.confirm else 2)
    table = pairs_table(confirm(runs, store) if options.confirm else [pair(runs, store)])
    return table, lambda: table_page(table, "--confirm" if options.confirm else "--paired")


def _noise(options: argparse.Namespace, store: TrackingConfig) -> _Shown:
    from slimdown.tracking.read import read_seeds

    runs, _, _ = select(options, store)
    comparison = compare(runs, group_seeds=True)
    several = [row for row in comparison.rows if len(row.runs) > 1]
    if not several:
        raise SlimdownError(
            f"--noise needs runs that differ only in their seed, and of these {len(runs)} none do; "
            "make some with -m seed=0,1,2"
        )
    changes = {}
    for row in several:
        settings = [
            f"{key}={row.settings[key]}" for key in comparison.params if key in row.settings
        ]
        name = " ".join([row.name, *(setting for setting in settings if setting not in row.name)])
        changes[name] = read_seeds(store, row.runs)
    table = noise_table(changes)
    return table, lambda: table_page(table, "--noise")


def _named(
    options: argparse.Namespace, store: TrackingConfig, fewest: int = 2
) -> tuple[list[RecordedRun], str, list[str]]:
    if options.experiment or options.sweep or options.tag or options.filter:
        raise SlimdownError(
            "runs are named, and --experiment, --sweep, --tag or --filter looks for others; leave one of the two out"
        )
    runs = list(
        {run.run_id: run for run in (read_run(store, text) for text in options.runs)}.values()
    )
    if len(runs) < fewest:
        given = (
            "the same run more than once" if len(options.runs) > 1 else f"only {options.runs[0]}"
        )
        raise SlimdownError(
            f"a comparison needs two runs or more, got {given}; name another, or none for all"
        )
    for run in runs:
        refuse_unfinished(run)
        if not run.changes.benchmarks:
            raise SlimdownError(
                f"run {run.run_id} ({run.name}) is finished, but no change was recorded; leave it out"
            )
    return runs, f"{len(runs)} runs of {public_uri(store.uri)}", []


def _nothing(
    options: argparse.Namespace,
    store: TrackingConfig,
    experiments: Sequence[str],
    where: str,
    left_out: str,
    tags: dict[str, str],
) -> str:
    """Why there is nothing to show, and what there is."""
    if left_out:
        return f"no run of {where} can be shown ({left_out}); wait for one, or start one with python -m slimdown.run"
    every = find_runs(store, experiments)
    if not every:
        filled = Counter(run.experiment for run in find_runs(store))
        others = ", ".join(f"{name} ({count:,})" for name, count in filled.most_common())
        advice = (
            f"name another with --experiment: {others}"
            if others
            else "python -m slimdown.run makes one"
        )
        return f"there is no run in {where}; {advice}"
    for key, value in tags.items():
        if not any(run.tags.get(key) == value for run in every):
            what = f"no sweep {value}" if key == Tag.sweep else f"no run with the tag {key}={value}"
            known = sorted({run.tags[key] for run in every if key in run.tags})
            if not known and key != Tag.sweep:
                keys = sorted({name for run in every for name in run.tags})
                return f"there is {what} in {where}, nor any with such a tag{nearest(key, keys)}"
            return f"there is {what} in {where}" + (
                nearest(value, known[-20:]) if known else "; no run is of a sweep"
            )
    limits = [f"filter {options.filter!r}"] if options.filter else []
    limits += [f"{key}={value}" for key, value in tags.items()]
    return f"none of the {len(every):,} runs in {where} passes {' and '.join(limits)}; loosen it"


def _tag(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise SlimdownError(
            f"--tag {text}: write KEY=VALUE, e.g. --tag slimdown.model=HuggingFaceTB/SmolLM2-135M"
        )
    return key, value


def _compares(text: str) -> bool:
    """Whether a filter may be one; what it means is for MLflow to say, whose import takes longer than a typo may."""
    unquoted = re.sub(r"`[^`]*`|'[^']*'|\"[^\"]*\"", " quoted ", text)
    return bool(re.search(r"(?i)[=<>]|\b(I?LIKE|IN|IS)\b", unquoted)) and not re.search(
        "[`'\"]", unquoted
    )


def _joined(given: Sequence[str]) -> list[str]:
    """`--sort -gsm8k` as `--sort=-gsm8k`: argparse takes the value for an option."""
    joined: list[str] = []
    for text in given:
        if joined and joined[-1] == "--sort" and not text.startswith("--"):
            joined[-1] = f"--sort={text}"
        else:
            joined.append(text)
    return joined


def _write_plots(options: argparse.Namespace, comparison: Comparison) -> None:
    files = {
        options.plots / name: content
        for name, content in images(figures(comparison, options.by)).items()
    }
    try:
        options.plots.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            file.write_bytes(content)
    except OSError as error:
        raise SlimdownError(
            f"--plots {options.plots} cannot be written: {error.strerror}; choose another folder"
        ) from None
    if not comparison.has_target:
        sys.stderr.write(
            "no target task was measured in these runs, so learning against forgetting is not drawn\n"
        )
    sys.stderr.write(
        "".join(f"wrote {file}\n" for file in files)
        or "nothing to draw; --by SETTING plots over one\n"
    )


if __name__ == "__main__":
    main()
