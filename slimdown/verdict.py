"""`python -m slimdown.verdict BASE TUNED`: what a fine-tuning taught and what it lost, from the harness's own logs.

Each is what `lm_eval --log_samples --output_path FOLDER` left of one model. Imports neither torch nor the harness.

Exit code with --max-loss, as that of `slimdown.check`: 0 within every budget, 1 beyond one, 2 the data cannot tell.
3: the logs cannot be judged. Without a budget 0.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from slimdown.config.arguments import (
    Parser,
    add_budgets,
    add_output,
    add_store,
    exit_with,
    format_of,
    store_to_read,
)
from slimdown.config.schema import TrackingConfig
from slimdown.report.table import FORMATS
from slimdown.stats.budget import Judgement, Outcome, hold_to_budgets, overall, read_budgets
from slimdown.utils.errors import SlimdownError
from slimdown.utils.redaction import public_uri

if TYPE_CHECKING:
    from slimdown.stats.findings import Findings


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = Parser(
        exit_code=Outcome.unasked,  # argparse's own 2 means here that data cannot tell
        prog="python -m slimdown.verdict",
        description="What a fine-tuning taught and what it lost, from the logs of lm_eval --log_samples --output_path.",
        epilog="exit code with --max-loss: 0 within every budget, 1 beyond one, 2 the data cannot tell, 3 not judged",
    )
    of = "the folder that --output_path named, the model's folder in it, or one results file"
    parser.add_argument("base", type=Path, metavar="BASE", help=f"logs of the model before: {of}")
    parser.add_argument(
        "tuned",
        type=Path,
        metavar="TUNED",
        help="logs of the model after, asked the same questions",
    )
    parser.add_argument(
        "--metric", metavar="TASK=METRIC", nargs="+", action="extend", default=[],
        help="what a task is judged by: gsm8k=exact_match.strict-match",
    )  # fmt: skip
    parser.add_argument(
        "--target",
        metavar="TASK",
        nargs="+",
        action="extend",
        default=[],
        help="tasks that were meant to be learned",
    )
    add_budgets(parser, otherwise="nothing is held to a budget")
    add_output(parser, FORMATS)
    parser.add_argument("--track", action="store_true", help="also record it as a run in MLflow")
    add_store(parser)
    options = parser.parse_args(given)
    options.format = format_of(options)
    return options


def main(given: Sequence[str] | None = None) -> NoReturn:
    """Answer on the console or in a file, and by the exit code."""
    options = arguments(sys.argv[1:] if given is None else given)
    exit_with(lambda: _answer(options), "These logs cannot be judged:", Outcome.unasked)


def _answer(options: argparse.Namespace) -> Outcome:
    from slimdown.evaluation.logs import read_lm_eval, results_files
    from slimdown.stats.findings import judge  # what reads and judges takes a third of a second

    budgets, metrics = read_budgets(options.max_loss), _metrics(options.metric)
    store = store_to_read(options.tracking_uri) if options.track else None
    folders = (options.base, options.tuned)
    if results_files(options.base.resolve()) == results_files(options.tuned.resolve()):
        raise SlimdownError(f"BASE and TUNED are the same logs, {options.base}")
    notes: list[str] = []
    before, after = (
        read_lm_eval(folder, metrics, options.target, tell=notes.append) for folder in folders
    )
    findings = judge(before, after)
    if before.harness_version != after.harness_version:
        versions = f"{before.harness_version} and {after.harness_version}"
        notes.append(
            f"made by lm_eval {versions}; the tasks' settings, questions and prompts are the same"
        )
    if all(
        report.samples == after.benchmarks[name].samples
        for name, report in before.benchmarks.items()
    ):
        notes.append(
            "every answer is the same to the last digit; lm_eval's --use_cache hands one model another's"
        )
    judgements = hold_to_budgets(findings.changes, budgets) if budgets else []
    _show(findings, judgements, list(dict.fromkeys(notes)), options, store)
    return overall(judgements) if judgements else Outcome.within


def _metrics(given: Sequence[str]) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for text in given:
        name, _, metric = text.partition("=")
        if not name or not metric or name in chosen:
            raise SlimdownError(
                f"--metric {text}: name one metric a task, e.g. gsm8k=exact_match.strict-match"
            )
        chosen[name] = metric
    return chosen


def _show(
    findings: "Findings",
    judgements: list[Judgement],
    notes: list[str],
    options: argparse.Namespace,
    store: TrackingConfig | None,
) -> None:
    from rich.console import Console

    from slimdown.report.console import console, show_findings, show_judgements
    from slimdown.report.files import files_of, put
    from slimdown.report.findings import findings_table

    title, aside = (
        f"{options.base} → {options.tuned}",
        Console(stderr=True, highlight=False, soft_wrap=True),
    )
    settings = _settings(findings, options)

    def as_page() -> str:
        from slimdown.report.page import page  # matplotlib, which takes a third of a second

        return page(findings, title, settings=settings)

    for note in notes:
        aside.print(note, style="yellow", markup=False)
    if options.format == "table" and not options.output:
        aside = console
        console.print(title, style="bold", markup=False, soft_wrap=True)
        show_findings(findings)
    else:
        put(findings_table(findings, title), as_page, options.format, options.output)
    if store:
        from slimdown.tracking.runs import record_findings  # mlflow, which takes a second
        from slimdown.tracking.tags import Tag

        run = record_findings(
            store,
            f"verdict {options.tuned}",
            settings,
            findings,
            lambda run_id: files_of(findings, title, run_id, settings, {}),
            {str(Tag.model): str(options.base), str(Tag.origin): str(options.tuned)},
        )
        sys.stderr.write(
            f"run {run.run_id} in {public_uri(run.store_uri)} {run.undelivered}".rstrip() + "\n"
        )
    if judgements:
        show_judgements(judgements, aside)


def _settings(findings: "Findings", options: argparse.Namespace) -> dict[str, object]:
    """What was compared and how it was asked, by dotted keys as a run has them."""
    conditions, reports = findings.after.conditions.items(), findings.after.benchmarks.items()
    return {
        "model.id": str(options.base),
        "tuned": str(options.tuned),
        "lm_eval.version": findings.after.harness_version,
        **{f"lm_eval.{key}": value for key, value in conditions if "." not in key},
        **{
            f"benchmark.{name}.{key}": value
            for name, r in reports
            for key, value in asdict(r.benchmark).items()
        },
    }


if __name__ == "__main__":
    main()
