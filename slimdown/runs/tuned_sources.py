"""The two sources of a tuned model: a training here, and files that somebody else made.

Both have the same verbs. `begin` comes before the base is loaded, `check` before it is measured;
`make` turns the base into the tuned model, and `describe` completes what the run leaves.
"""

from dataclasses import replace
from typing import Any, Protocol

import torch

from slimdown.data.contamination import find_contamination
from slimdown.data.training_data import TrainingData
from slimdown.evaluation.evaluator import Evaluator
from slimdown.evaluation.results import Evaluation
from slimdown.evaluation.served_evaluation import evaluate_as_served
from slimdown.judging.findings import Findings
from slimdown.models.base_model import LoadedModel
from slimdown.models.device_memory import card_memory
from slimdown.models.external import ExternalModel
from slimdown.models.shared_base import SharedBase
from slimdown.report.console import RunProgress, progress_bar, show_notes
from slimdown.runs.forgetting_watcher import build_watcher
from slimdown.runs.inputs import RunInputs
from slimdown.tracking.run_files import render_model_card
from slimdown.tracking.run_writer import TrackedRun
from slimdown.training.fine_tuning import fine_tune, prepare_training
from slimdown.training.result import TrainingResult
from slimdown.training.step_splits import choose_forwards, keep_forwards
from slimdown.training.tokenizing import TokenizedRows


class TunedSource(Protocol):
    """Where the tuned model of a run comes from.

    Attributes:
        training: What a training did, once it is made; None where nothing is trained here.
    """

    training: TrainingResult | None

    def begin(self) -> None:
        """Record what the model is made from, and refuse what cannot be judged.

        Raises:
            DataError: The rows hold too many of the questions.
        """

    def check(self, base: LoadedModel, progress: RunProgress) -> None:
        """Check, before hours go into measuring the base, that the model can be made.

        Raises:
            SlimdownError: It cannot.
        """

    def make(self, base: LoadedModel, progress: RunProgress) -> LoadedModel:
        """Make the tuned model; the base is not usable any more."""

    def ask_as_served(
        self, tuned: LoadedModel, evaluator: Evaluator, asked: Evaluation, progress: RunProgress
    ) -> Evaluation | None:
        """Ask the model as its own files have it served; None where that is as the base is asked.

        Args:
            tuned: The model.
            evaluator: The one that asked both models.
            asked: The model's answers, asked as the base was.
            progress: Shows the stage.
        """

    def release(self, tuned: LoadedModel, shared_base: SharedBase) -> None:
        """Give the base back for the next run of this process, where it is still the base."""

    def describe(self, findings: Findings, base: LoadedModel) -> tuple[Findings, dict[str, str]]:
        """Add what is known of the model to the findings; return also the files of the model.

        Args:
            findings: What was judged.
            base: The base without its weights.
        """


class Training:
    """A fine-tuning of the base by rows."""

    def __init__(self, inputs: RunInputs, data: TrainingData, run: TrackedRun) -> None:
        """Take what was read, and the run that is recorded."""
        self._inputs, self._data, self._run = inputs, data, run
        self._rows: TokenizedRows | None = None
        self.training: TrainingResult | None = None

    def begin(self) -> None:
        """Record the rows, and which questions stand in them."""
        config, tasks = self._inputs.config, self._inputs.tasks
        questions = {name: task.questions() for name, task in tasks.items()}
        contamination = find_contamination(self._data, questions, config.keep.read_prompts())
        self._run.log_data(self._data, contamination)
        contamination.check(config.contamination.max_share)
        show_notes(contamination.notes)

    def check(self, base: LoadedModel, progress: RunProgress) -> None:
        """Tokenize the rows, and try one small batch."""
        config = self._inputs.config
        doing = ", ".join(filter(None, ("preparing the training", config.keep.preparation)))
        with progress.show(doing):
            self._rows = prepare_training(base, self._data, config)
        self._run.log_written(self._rows.written)
        show_notes(self._rows.notes)

    def make(self, base: LoadedModel, progress: RunProgress) -> LoadedModel:
        """Train, with looks at the benchmarks where they may end the training."""
        config, run, watcher = self._inputs.config, self._run, None
        assert self._rows  # `check` came before
        if config.train.stop_on_forgetting:
            watcher = build_watcher(config)
            with progress_bar("asking what each look asks"):
                watcher.measure_base(base)
        self._split_steps(base)
        with progress.show("training", "steps", "train") as on_progress:
            about = config, run.checkpoint_dir, run.log_step, on_progress, watcher
            tuned, self.training = fine_tune(base, self._rows, *about)
        return tuned

    def _split_steps(self, base: LoadedModel) -> None:
        """Fit the forwards of a step to the card, and say how, where they are not as set."""
        assert self._rows  # `check` came before
        inputs, train = self._inputs, self._inputs.config.train
        dtype, on_card = getattr(torch, base.dtype), card_memory(torch.device(base.device))
        about = inputs.config, inputs.outline, dtype, self._rows
        forwards = keep_forwards(self._run.checkpoint_dir, lambda: choose_forwards(*about, on_card))
        if forwards.differ_from(train):
            show_notes([f"Each step is taken as {forwards.describe()}, as this card has room for."])

    def ask_as_served(self, *_: Any) -> None:
        """A model that is trained here has its base's tokenizer and template."""

    def release(self, *_: Any) -> None:
        """The trained base is not the base any more."""

    def describe(self, findings: Findings, base: LoadedModel) -> tuple[Findings, dict[str, str]]:
        """Write the model's card, and the template with which `tuned=ADAPTER` is asked alike."""
        files = {"README.md": render_model_card(findings, self._inputs.config, base)}
        if self._data.holds_conversations:
            files["chat_template.jinja"] = base.tokenizer.chat_template
        return findings, files


class MadeElsewhere:
    """A model that somebody else tuned: an adapter for the base, or a whole model."""

    def __init__(self, inputs: RunInputs, external: ExternalModel, run: TrackedRun) -> None:
        """Take what was read, and the run that is recorded."""
        self._inputs, self._external, self._run = inputs, external, run
        self.training: TrainingResult | None = None

    def begin(self) -> None:
        """Nobody knows its rows."""

    def check(self, base: LoadedModel, progress: RunProgress) -> None:
        """Its files were checked when they were read."""
        self._external = replace(self._external, base=base)

    def make(self, base: LoadedModel, progress: RunProgress) -> LoadedModel:
        """Put the adapter on the base, or the whole model in its place."""
        with progress.show(f"loading {self._inputs.config.tuned}"):
            return self._external.load()

    def ask_as_served(
        self, tuned: LoadedModel, evaluator: Evaluator, asked: Evaluation, progress: RunProgress
    ) -> Evaluation | None:
        """Ask once more what template, BOS or stop tokens of its own files change."""
        served, backend = self._inputs.served, evaluator.backend
        if not served or backend is None:
            return None
        label = "measuring the tuned model as it is served"
        with progress.show(label, "questions", "served") as on_progress:
            model, cache = self._external.serve(tuned), self._run.served_cache
            about = served, self._inputs.config.evaluation, backend, model, asked
            return evaluate_as_served(*about, cache, on_progress)

    def release(self, tuned: LoadedModel, shared_base: SharedBase) -> None:
        """An adapter comes off its base; a whole model has taken its place."""
        if self._external.folder:
            shared_base.take_back(tuned)

    def describe(self, findings: Findings, base: LoadedModel) -> tuple[Findings, dict[str, str]]:
        """Say how it is served otherwise than the base; its files are where they were."""
        return replace(findings, serving=tuple(self._external.differences)), {}


def open_source(inputs: RunInputs, run: TrackedRun) -> TunedSource:
    """Return the source of a run's tuned model.

    Args:
        inputs: What the run read.
        run: The run in the record.
    """
    if inputs.external:
        return MadeElsewhere(inputs, inputs.external, run)
    assert inputs.train_data  # without `tuned` there are rows
    return Training(inputs, inputs.train_data, run)
