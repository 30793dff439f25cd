"""The sources of a tuned model: a training here, files that somebody else made, and a server.

All have the same methods, which `run_experiment` calls in this order:

- `begin` before the base is loaded, and `check` before the base is measured;
- `make` to turn the base into the tuned model, and `ask_as_served` once that is measured;
- `release` when no model is needed any more, and `describe` to complete what the run records.
"""

from abc import ABC, abstractmethod
from dataclasses import replace

import torch

from slimdown.data.training_data import TrainingData
from slimdown.evaluation.evaluator import Evaluator
from slimdown.evaluation.results import Evaluation
from slimdown.evaluation.served_evaluation import evaluate_as_served
from slimdown.judging.findings import Findings
from slimdown.models.base_model import LoadedModel
from slimdown.models.device_memory import card_memory, release_weights
from slimdown.models.server import Server
from slimdown.models.shared_base import SharedBase
from slimdown.report.console import RunProgress, progress_bar, show_notes
from slimdown.runs.forgetting_watcher import build_watcher
from slimdown.runs.inputs import RunInputs
from slimdown.tracking.run_files import render_model_card
from slimdown.tracking.run_writer import TrackedRun
from slimdown.training.fine_tuning import fine_tune, prepare_training
from slimdown.training.result import TrainingResult
from slimdown.training.step_splits import choose_forwards
from slimdown.training.tokenizing import TokenizedRows


class TunedSource(ABC):
    """Where the tuned model of a run comes from.

    Attributes:
        training: What the training did, once `make` has trained; None where nothing is trained.
    """

    training: TrainingResult | None = None

    def __init__(self, inputs: RunInputs, run: TrackedRun, progress: RunProgress) -> None:
        """Take what was read, the run that is recorded, and the screen that shows its stages."""
        self._inputs, self._run, self._progress = inputs, run, progress

    def begin(self) -> None:
        """Record what the model is made from, and refuse what cannot be judged.

        Raises:
            DataError: The rows hold too many of the questions.
        """
        return

    @abstractmethod
    def check(self, base: LoadedModel) -> None:
        """Check, before hours go into measuring the base, that the model can be made.

        Raises:
            SlimdownError: It cannot.
        """

    @abstractmethod
    def make(self, base: LoadedModel) -> LoadedModel:
        """Turn the base into the tuned model; `base.model` is not the base's any more.

        Raises:
            SlimdownError: It cannot be made.
        """

    def ask_as_served(
        self, tuned: LoadedModel, evaluator: Evaluator, evaluation: Evaluation
    ) -> Evaluation | None:
        """Ask the tuned model once more, as a server would that follows the model's own files.

        Args:
            tuned: The model.
            evaluator: The one that asked both models.
            evaluation: The model's answers when it was asked as the base was.

        Returns:
            Its answers on all benchmarks: those of `evaluation` where nothing changes. None if its
            files change nothing at all, or if it cannot be asked that way.
        """
        return None

    def release(self, tuned: LoadedModel, shared_base: SharedBase) -> None:
        """Give the base back for the next run of this process, if the weights are unchanged.

        Args:
            tuned: What `make` returned.
            shared_base: Keeps the base for the next run.
        """
        return

    @abstractmethod
    def describe(self, findings: Findings, base: LoadedModel) -> tuple[Findings, dict[str, str]]:
        """Add to the findings how the model is served otherwise than the base, and describe it.

        Args:
            findings: What was judged.
            base: The base without its weights.

        Returns:
            The findings; and texts by file name that go beside the weights that this run trained.
        """


class TrainingSource(TunedSource):
    """A tuned model that this run makes: it trains the base on rows.

    Such a model has its base's tokenizer and template, so it is served as the base is asked.
    """

    _rows: TokenizedRows | None = None  # None until `check`

    @property
    def _data(self) -> TrainingData:
        assert self._inputs.train_data  # without `tuned` there are rows
        return self._inputs.train_data

    def begin(self) -> None:
        """Record the rows, and which questions of the benchmarks they hold.

        Raises:
            DataError: They hold more of the questions than `contamination.max_share`.
        """
        config = self._inputs.config
        contamination = self._inputs.find_contamination()
        self._run.log_data(self._data, contamination)
        contamination.check(config.contamination.max_share)
        show_notes(contamination.notes)

    def check(self, base: LoadedModel) -> None:
        """Tokenize the rows, and try one small batch."""
        config = self._inputs.config
        title = "preparing the training"
        if config.keep.preparation:  # such as rows that the base writes, which may take long
            title += f", {config.keep.preparation}"
        with self._progress.show(title):
            self._rows = prepare_training(base, self._data, config)
        self._run.log_written(self._rows.written)
        show_notes(self._rows.notes)

    def make(self, base: LoadedModel) -> LoadedModel:
        """Train the base, and return the tuned model.

        With `train.stop_on_forgetting`, benchmarks are asked between the steps, and the training
        ends as soon as one of them is proven to have lost more than its budget.
        """
        config = self._inputs.config
        watcher = None
        assert self._rows  # `check` came before
        if config.train.stop_on_forgetting:
            watcher = build_watcher(config)
            with progress_bar("asking the base the questions of each look"):
                watcher.measure_base(base)
        # Divide each step into forward passes that fit into the card's memory.
        dtype, card_bytes = getattr(torch, base.dtype), card_memory(torch.device(base.device))
        forwards = choose_forwards(config, self._inputs.outline, dtype, self._rows, card_bytes)
        if forwards.differ_from(config.train):
            show_notes([f"Each step is taken as {forwards.describe()}, as this card has room for."])
        with self._progress.show("training", "steps", "train") as on_progress:
            tuned, self.training = fine_tune(
                base,
                self._rows,
                config,
                self._run.checkpoint_dir,
                on_log=self._run.log_step,
                on_progress=on_progress,
                forwards=forwards,
                watcher=watcher,
            )
        return tuned

    def describe(self, findings: Findings, base: LoadedModel) -> tuple[Findings, dict[str, str]]:
        """Write the model's card; and for conversations, the chat template.

        With the template beside it, `tuned=ADAPTER` asks the adapter in the same way as this run.
        """
        files = {"README.md": render_model_card(findings, self._inputs.config, base)}
        if self._data.holds_conversations:
            files["chat_template.jinja"] = base.tokenizer.chat_template
        return findings, files


class ExternalSource(TunedSource):
    """A model that was tuned elsewhere: an adapter for the base, or a whole model.

    Its rows are not known, so there is nothing to record in `begin`.
    """

    def check(self, base: LoadedModel) -> None:
        """Take the base; `read_inputs` has checked the model's files."""
        assert self._inputs.external
        self._external = replace(self._inputs.external, base=base)

    def make(self, base: LoadedModel) -> LoadedModel:
        """Put the adapter on the base, or the whole model in its place."""
        with self._progress.show(f"loading {self._inputs.config.tuned}"):
            return self._external.load()

    def ask_as_served(
        self, tuned: LoadedModel, evaluator: Evaluator, evaluation: Evaluation
    ) -> Evaluation | None:
        """Ask again the benchmarks that template, BOS or stop tokens of its own files change."""
        served, backend = self._inputs.served, evaluator.backend
        if not served or backend is None:  # `backend` is known once a model was measured
            return None
        title = "measuring the tuned model as it is served"
        with self._progress.show(title, "questions", "served") as on_progress:
            model, config = self._external.serve(tuned), self._inputs.config.evaluation
            cache = self._run.served_cache
            return evaluate_as_served(
                served, config, backend, model, evaluation, cache=cache, on_progress=on_progress
            )

    def release(self, tuned: LoadedModel, shared_base: SharedBase) -> None:
        """Take an adapter off its base. After a whole model, no base is left to give back."""
        if self._external.folder:  # it is an adapter
            shared_base.keep_base_of(tuned)

    def describe(self, findings: Findings, base: LoadedModel) -> tuple[Findings, dict[str, str]]:
        """Say how it is served otherwise than the base. No files: it has its own."""
        return replace(findings, serving=tuple(self._external.differences)), {}


class ServedSource(TunedSource):
    """A model that a server answers for, whose weights are not here."""

    @property
    def _server(self) -> Server:
        assert self._inputs.server
        return self._inputs.server

    def check(self, base: LoadedModel) -> None:
        """Do nothing: `read_inputs` has asked the server."""

    def make(self, base: LoadedModel) -> LoadedModel:
        """Free the base's memory, and return a description of the model on the server."""
        release_weights(base.model)
        return replace(
            base.without_weights(),
            id=self._server.address,
            revision=str(self._server),
            identity=self._server.identity,
            server=self._server,
        )

    def describe(self, findings: Findings, base: LoadedModel) -> tuple[Findings, dict[str, str]]:
        """Say how the server's chat template differs from the base's."""
        return replace(findings, serving=tuple(self._inputs.server_differences)), {}


def open_source(inputs: RunInputs, run: TrackedRun, progress: RunProgress) -> TunedSource:
    """Return the source of a run's tuned model.

    Args:
        inputs: What the run read.
        run: The run in the record.
        progress: Shows the stages of the run.
    """
    kind: type[TunedSource] = ExternalSource if inputs.external else TrainingSource
    if inputs.server:
        kind = ServedSource
    return kind(inputs, run, progress)
