"""Evaluations in the record: each is stored once, in a run that holds it, and found by its key."""

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mlflow.exceptions import MlflowException

from slimdown.config.naming import base_settings
from slimdown.config.schema import BenchmarkConfig, RunConfig, TrackingConfig
from slimdown.evaluation.answers import (
    BenchmarkEvaluation,
    DamagedSamples,
    Evaluation,
    read_samples,
)
from slimdown.evaluation.parts import Parts
from slimdown.tracking.connection import search
from slimdown.tracking.locks import saving_work
from slimdown.tracking.outage import StoreGone
from slimdown.tracking.tags import Tag
from slimdown.tracking.write import TrackedRun
from slimdown.utils import distributed as processes
from slimdown.utils.interruption import undisturbed

if TYPE_CHECKING:  # it would bring torch along
    from slimdown.models.model import LoadedModel

# What a store says where a run, or an artifact of it, is gone.
GONE = (MlflowException, OSError)


def holders(client: Any, key: str, first: str = "") -> Iterator[tuple[str, str]]:
    """Run and file of each evaluation of this key, the newest first, and before them that of the run `first`.

    That one may lie in MLflow's bin, which is searched for nothing else.
    """
    tag = f"{Tag.evaluation}{key}"
    if first:
        with suppress(MlflowException):
            if file := client.get_run(first).data.tags.get(tag):
                yield first, file
    for run in search(client, f"tags.`{tag}` LIKE '%'"):
        if run.info.run_id != first:
            yield run.info.run_id, run.data.tags[tag]


def read_file(
    client: Any, run_id: str, file: str, benchmark: BenchmarkConfig
) -> BenchmarkEvaluation:
    """The evaluation that lies in a file among a run's samples, read as `benchmark` says.

    Raises:
        MlflowException, OSError: run or file is gone, see `GONE`.
        DamagedSamples: the file is cut short, changed, or not one of samples.
    """
    with tempfile.TemporaryDirectory() as folder:
        return read_samples(
            Path(client.download_artifacts(run_id, f"samples/{file}.parquet", folder)), benchmark
        )


class EvaluationRecord:
    """Finished evaluations in MLflow, found by key across runs, processes and machines that share the store.

    Those of a base are held by a run of kind `baseline`, to which the run at hand is linked; those of a tuned model by
    the run at hand. `tell` is told in a line of what is there and is not used.
    """

    def __init__(
        self,
        config: TrackingConfig,
        model: str,
        at_hand: TrackedRun,
        reuse: bool,
        holder: Callable[[], TrackedRun] | None = None,
        tell: Callable[[str], None] = lambda line: None,
        told: set[str] | None = None,
    ) -> None:
        """Open nothing yet.

        Args:
            config: the store.
            model: base or tuned.
            at_hand: the run that the evaluations are for.
            reuse: whether any is looked for.
            holder: opens the run that holds what is made, once; without it the run at hand does.
            tell: takes a line for a person.
            told: what is not told again: of a benchmark, by its name, why it is not found; empty, that one waits.
        """
        self._client, self._config = at_hand._client, config
        self._model, self._at_hand, self._reuse, self._holder = model, at_hand, reuse, holder
        self._tell = tell
        self._stage = ""  # of whole evaluations: none
        self._told = set() if told is None else told
        self.sources: dict[str, str] = {}  # by benchmark: the run that holds the evaluation

    def lock(self, key: str) -> AbstractContextManager[None]:
        """Held while an evaluation is looked up or made; freed when its owner dies."""
        return saving_work(self._config, key, self._waits, self._client)

    def _waits(self) -> None:
        if "" not in self._told:  # stages are many
            self._tell(
                "Another process measures what is needed next just now, which is waited for."
            )
        self._told.add("")

    def find(self, name: str, key: str, benchmark: BenchmarkConfig) -> BenchmarkEvaluation | None:
        """The evaluation of this key, read as `benchmark` says, or None where there is none."""
        if not self._reuse or (self._stage and not self._holder):
            return None
        try:
            return self._found(name, key, benchmark)
        except StoreGone:
            return None  # made again; a run that cannot ask goes on

    def _found(self, name: str, key: str, benchmark: BenchmarkConfig) -> BenchmarkEvaluation | None:
        damaged = ""
        for run_id, file in holders(self._client, key):
            try:
                report = read_file(self._client, run_id, file, benchmark)
            except DamagedSamples as error:
                damaged = (
                    f"{name} is measured again: its samples in run {run_id} are damaged ({error})"
                )
            except GONE:
                pass  # the run is there, its artifact was deleted
            else:
                if self._holder:
                    self._link(name, key, report, run_id)
                else:
                    self.keep(
                        name, key, report
                    )  # a tuned model's answers lie in its own run, whatever else does
                return report
        if damaged:
            self._tell(damaged)
        elif name not in self._told and (outdated := self._outdated(name)):
            self._tell(outdated)
        self._told.add(name)  # of a later stage it would be the same
        return None

    def _outdated(self, name: str) -> str:
        """Say that there are evaluations with the same settings under other keys; empty where that is not so."""
        at_hand = self._client.get_run(self._at_hand.run_id).data
        sections = ("model.", "quantization.", "evaluation.", f"benchmark.{name}.")
        for run in search(self._client, f"tags.`{Tag.kind}` = 'baseline'"):
            settings = {
                key: value for key, value in run.data.params.items() if key.startswith(sections)
            }
            # A setting that one of them does not know came later.
            alike = all(at_hand.params.get(key, value) == value for key, value in settings.items())
            if (
                alike
                and run.data.tags.get(Tag.model) == at_hand.tags.get(Tag.model)
                and f"{self._model}-{name}{self._stage}"
                in (v for k, v in run.data.tags.items() if k.startswith(Tag.evaluation))
            ):
                return (
                    f"{name} is measured anew: the record's evaluation of it with these settings, in run "
                    f"{run.info.run_id}, was made by another version of slimdown or its libraries, of other files, on "
                    "another processor, or scored otherwise"
                )
        return ""

    def keep(self, name: str, key: str, report: BenchmarkEvaluation) -> None:
        """Keep a finished evaluation, so that it can be found from now on.

        Of a stage of a tuned model the parts are kept until its run is finished, which then holds all that was asked.
        """
        if self._stage and not self._holder:
            return
        holder = self._opened()
        holder.log_evaluation(self._model, name, report, key, self._stage)
        self._link(name, key, report, holder.run_id)

    def parts(self, key: str) -> Parts:
        """What is kept of the evaluation of this key while it is made: of a base where another run finds it, too."""
        if not (self._reuse and (interim := self._at_hand.interim)):
            return Parts()
        folder = interim.folder.parent / "evaluations" if self._holder else interim.folder
        stays = bool(self._stage) and not self._holder
        return Parts(folder / f"{key}{processes.suffix()}.jsonl", interim.seconds, stays)

    def of_stage(self, n: int) -> "EvaluationRecord":
        """The record of stages of evaluations, after which `n` questions have been asked."""
        record = copy.copy(self)
        record._stage = f"-to-{n}"
        return record

    def keep_asked(self, evaluation: Evaluation) -> None:
        """Keep what was asked in stages in the run at hand, whose own it is: how far each went is its alone."""
        for name, report in evaluation.benchmarks.items():
            self._at_hand.log_evaluation(self._model, name, report)
        if self._model == "base":  # whose scores were those of fewer questions
            self._at_hand.log_base(evaluation)

    def _opened(self) -> TrackedRun:
        return self._holder() if self._holder else self._at_hand

    def _link(self, name: str, key: str, report: BenchmarkEvaluation, run_id: str) -> None:
        if self._holder and not self._stage:  # a run keeps what was asked in stages itself
            self._at_hand.log_link(name, run_id, key, report)
        self.sources[name] = run_id

    def find_loss(self, key: str) -> float | None:
        """The validation loss of this key, or None where there is none."""
        if not self._reuse:
            return None
        try:
            runs = search(self._client, f"tags.`{Tag.validation_loss}{key}` LIKE '%'")
        except StoreGone:
            return None
        return next((float(run.data.tags[f"{Tag.validation_loss}{key}"]) for run in runs), None)

    def keep_loss(self, key: str, loss: float) -> None:
        """Keep a validation loss, so that it can be found from now on."""
        self._opened().log_base_loss(key, loss)


def base_records(
    config: RunConfig,
    base: "LoadedModel",
    at_hand: TrackedRun,
    tell: Callable[[str], None] = lambda line: None,
) -> Callable[[], AbstractContextManager[EvaluationRecord]]:
    """What opens the record of a base's evaluations, before a training and after it.

    A run of kind `baseline` is opened when the first evaluation has to be made. It ends with that opening, and takes
    what is made in later ones all the same.
    """
    runs: list[TrackedRun] = []
    told: set[str] = set()

    @contextmanager
    def opened() -> Iterator[EvaluationRecord]:
        with ExitStack() as stack:

            def holder() -> TrackedRun:
                if not runs:
                    name = f"base {base.id} {base.quantization}"
                    with undisturbed():  # no signal between opening the run and seeing to its end
                        runs.append(stack.enter_context(at_hand.sibling(name, kind="baseline")))
                    runs[0].log_settings(base_settings(config))
                    runs[0].log_model(base)
                return runs[0]

            reuse = config.baseline.reuse
            yield _for_all(
                EvaluationRecord(config.tracking, "base", at_hand, reuse, holder, tell, told)
            )

    return opened


def tuned_record(
    config: RunConfig, at_hand: TrackedRun, tell: Callable[[str], None] = lambda line: None
) -> EvaluationRecord:
    """The record of a tuned model's evaluations, which its own run holds."""
    return _for_all(
        EvaluationRecord(config.tracking, "tuned", at_hand, config.baseline.reuse, tell=tell)
    )


def _for_all(record: EvaluationRecord) -> EvaluationRecord:
    return cast("EvaluationRecord", _ForAll(record)) if processes.count() > 1 else record


class _ForAll:
    """A record that the first of several processes keeps, and all of them are told what it finds."""

    def __init__(self, record: EvaluationRecord) -> None:
        self._record = record

    def lock(self, key: str) -> AbstractContextManager[None]:
        return self._record.lock(key) if processes.is_first() else nullcontext()

    def parts(self, key: str) -> Parts:
        return self._record.parts(key)  # of what each is asked

    def of_stage(self, n: int) -> "_ForAll":
        return _ForAll(self._record.of_stage(n))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._record, name)
        return lambda *args: processes.from_first(method(*args) if processes.is_first() else None)
