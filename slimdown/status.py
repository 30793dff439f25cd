"""`python -m slimdown.status`: what is running where and how far, from the store alone, for any machine that shares it.

Imports neither torch nor transformers, and of a local store not even MLflow is needed.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from slimdown.config.arguments import Parser, add_output, add_store, format_of, store_to_read
from slimdown.report.files import put
from slimdown.report.status import Standing, Whereabouts, status_table
from slimdown.report.table import FORMATS, write
from slimdown.stats.runs import RecordedRun
from slimdown.tracking.owner import heard_of, is_gone, owner_of
from slimdown.tracking.read import find_runs
from slimdown.tracking.sweeps import PARENT
from slimdown.tracking.tags import Tag
from slimdown.tracking.unfinished import kept_bytes
from slimdown.utils.errors import SlimdownError
from slimdown.utils.redaction import public_uri

_ENDED = {"FINISHED": Standing.finished, "KILLED": Standing.stopped, "FAILED": Standing.failed}


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = Parser(
        prog="python -m slimdown.status",
        description="What runs where, and how far it is; what is gone.",
    )
    add_store(parser)
    parser.add_argument(
        "--experiment", action="append", metavar="NAME", help="an MLflow experiment (default: all)"
    )
    parser.add_argument("--sweep", metavar="NAME", help="the runs that one command started")
    add_output(parser, FORMATS)
    options = parser.parse_args(given)
    options.format = format_of(options)
    return options


def whereabouts(run: RecordedRun) -> Whereabouts:
    """Where a run is, by its status and its tags."""
    owner, tags = owner_of(run.tags), run.tags
    if run.status == "RUNNING":
        standing = (
            Standing.unknown
            if owner is None
            else Standing.gone
            if is_gone(tags)
            else Standing.going
        )
    else:
        standing = (
            Standing.pruned if Tag.pruned in tags else _ENDED.get(run.status, Standing.unknown)
        )
    at, why = tags.get(Tag.at, ""), tags.get(Tag.error, "")
    return Whereabouts(run, standing, owner.host if owner else "", at, heard_of(tags), why)


def in_order(runs: Sequence[RecordedRun], sweeps: Sequence[RecordedRun]) -> list[Whereabouts]:
    """Sweeps that are not finished, each before its runs, and runs of no such sweep: first what goes on."""
    finished = {
        run.tags[Tag.run_key]
        for run in runs
        if run.status == "FINISHED" and Tag.run_key in run.tags
    }
    heads = {
        sweep.run_id: replace(whereabouts(sweep), is_sweep=True)
        for sweep in sweeps
        if sweep.status != "FINISHED"
    }
    found = [
        replace(whereabouts(run), sweep=run.tags[PARENT] if run.tags.get(PARENT) in heads else "")
        for run in runs
        # What was made anew meanwhile is no longer unfinished.
        if run.status in ("FINISHED", "RUNNING") or run.tags.get(Tag.run_key) not in finished
    ]
    order = list(Standing)

    def place(one: Whereabouts) -> tuple[object, ...]:
        head = heads.get(one.sweep, one)
        newest = -head.run.started.timestamp()
        return (
            order.index(head.standing),
            newest,
            head.run.run_id,
            one is not head,
            order.index(one.standing),
        )

    return sorted([*heads.values(), *found], key=place)


def main() -> None:
    """Show where runs are; a user's mistake ends in one message and exit code 1."""
    options = arguments(sys.argv[1:])
    try:
        store = store_to_read(options.tracking_uri)
        tags: dict[str, str] = {Tag.sweep: options.sweep} if options.sweep else {}
        runs, sweeps = (
            find_runs(store, options.experiment or [], tags={**tags, Tag.kind: kind})
            for kind in ("tuned", "sweep")
        )
        table = status_table(in_order(runs, sweeps), public_uri(store.uri), kept_bytes(store))
        put(table, lambda: write(table, "html"), options.format, options.output)
    except SlimdownError as error:
        sys.exit(f"Where runs are cannot be told:\n  {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
