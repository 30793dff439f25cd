"""A search: batches of trials for a launcher, each proposed when the one before has ended; and what was found."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property, partial

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, open_dict

from slimdown.config.loader import load_config
from slimdown.config.schema import Engine, Role
from slimdown.config.search import searched
from slimdown.report import console
from slimdown.report.comparison import comparison_page, search_table
from slimdown.report.findings import Pair, pairs_table
from slimdown.report.sweep import State, Sweep
from slimdown.report.table import Table, show
from slimdown.stats.budget import hold_to_budgets
from slimdown.stats.comparison import Comparison, compare
from slimdown.stats.findings import judge
from slimdown.stats.holdout import held_out_part
from slimdown.stats.runs import RecordedRun
from slimdown.tracking.connection import check_store
from slimdown.tracking.locks import saving_work
from slimdown.tracking.read import read_evaluation, read_run
from slimdown.tracking.study import Study
from slimdown.utils.digests import digest


class Search:
    """The trials of one command, and those before it in the same study."""

    def __init__(self, composed: DictConfig, overrides: Sequence[Override], jobs: Sweep) -> None:
        """Open the study, or make it.

        Args:
            composed: the settings of every trial, but for what is searched.
            overrides: of the command line.
            jobs: told of each trial as it is proposed.

        Raises:
            SlimdownError: a store or a study's database that cannot be used.
        """
        n_jobs, composed = composed.hydra.launcher.get("n_jobs"), composed.copy()
        with open_dict(composed):
            del composed["hydra"]
        self._config = load_config(composed)
        self.store = self._config.tracking
        check_store(self.store)
        space = searched(self._config.search.space, overrides)
        self._fixed = [o.input_line or "" for o in overrides if o.key_or_group not in space]
        self._study = Study(self._config, space)
        self._jobs = jobs
        jobs.name, jobs.key = self._study.name, digest(["search", self._study.name])
        self._keys = list(space)
        self._at_once = self._config.search.n_jobs or n_jobs or 1

    def batches(self) -> Iterator[list[list[str]]]:
        """What each trial of a batch sets; before the next one is asked for, `jobs` holds what became of it.

        Another process at the same search is waited for: what is open in the study is then nobody's.
        """
        waiting = partial(
            console.show_note, "Another process is at this search just now, which is waited for."
        )
        if self._config.search.prune and self._config.train.engine is Engine.unsloth:
            console.show_note(
                "train.engine=unsloth trains in a process of its own: no trial is pruned there."
            )
        with saving_work(self.store, f"search-{self._study.name}", waiting):
            self._jobs.before = set(self._study.run_ids.values())
            self._jobs.plan([[]] * self._study.n_left, self._keys)
            first = 0
            while trials := self._study.ask(self._at_once):
                values = [
                    [f"{key}={value}" for key, value in trial.values.items()] for trial in trials
                ]
                jobs = self._jobs.jobs[first : first + len(trials)]
                for job, own in zip(jobs, values, strict=True):
                    job.name = " ".join(own)
                study = f"search.study={Override._get_value_element_as_str(self._study.name)}"
                yield [
                    [*self._fixed, *own, study, f"search.trial={trial.number}"]
                    for own, trial in zip(values, trials, strict=True)
                ]
                for number, trial in enumerate(trials, start=first):
                    job = self._jobs.jobs[number]  # a launcher brings back another object
                    if job.state in (State.finished, State.skipped, State.pruned):
                        self._study.tell(trial.number, self._run(job.run_id))
                first += len(trials)

    def _run(self, run_id: str) -> RecordedRun:
        return read_run(self.store, run_id)

    @cached_property
    def _found(self) -> tuple[list[RecordedRun], Comparison, Table] | None:
        """The finished trials, the best within the budget first, once no more are made; None where none is."""
        runs = {run_id: self._run(run_id) for run_id in self._study.run_ids.values()}
        finished = [run for run in runs.values() if run.status == "FINISHED"]
        if not finished:
            return None
        outcomes = {run.run_id: self._study.outcome(run) for run in finished}
        finished.sort(key=lambda run: outcomes[run.run_id].order)
        comparison = compare(finished, group_seeds=False)
        return (
            finished,
            comparison,
            search_table(comparison, outcomes, self._study.name, len(runs) - len(finished)),
        )

    def page(self) -> Iterator[tuple[str, str]]:
        """The page of all trials under its name; nothing where none is finished."""
        if self._found:
            _, comparison, table = self._found
            yield "search.html", comparison_page(comparison, table, None)

    def show(self) -> None:
        """Print the trials, the best within the budget first, and what the questions held out say of that one."""
        if not self._found:
            return
        show(self._found[2], console.console)
        with suppress(OSError):
            for name, text in self.page():
                (page := self._jobs.folder / name).write_text(text, encoding="utf-8")
                console.show_note(f"open {page.absolute()}")
        self._confirm(self._found[0][0])

    def _confirm(self, best: RecordedRun) -> None:
        """The best of many is a lucky one: what the questions say that did not choose it."""
        if not best.holdout:
            return
        store, budget = self.store, self._config.search.max_loss
        base, tuned = (
            held_out_part(read_evaluation(store, best, m), best.holdout) for m in ("base", "tuned")
        )
        findings = judge(base, tuned)
        show(
            pairs_table([Pair("base", f"{best.name} ({best.run_id[:8]})", findings, 1)]),
            console.console,
        )
        retained = [
            name for name, b in findings.changes.benchmarks.items() if b.role is Role.retained
        ]
        budgets = {} if budget is None else dict.fromkeys(retained, budget)
        console.show_judgements(hold_to_budgets(findings.changes, budgets), console.console)
