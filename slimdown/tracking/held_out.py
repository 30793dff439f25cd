"""Give held-out questions away, and count the models that were judged on them.

Each model that is judged on the same held-out questions may pass by luck. So every command takes
these questions from here, and hears how many models were judged on them before.
"""

from contextlib import suppress
from dataclasses import dataclass

from slimdown.comparison.run_records import RunRecord
from slimdown.config.tracking_config import TrackingConfig
from slimdown.evaluation.results import Evaluation
from slimdown.judging.holdout import held_part
from slimdown.tracking import store
from slimdown.tracking.metrics_and_tags import Tag
from slimdown.tracking.run_reader import find_runs


@dataclass(frozen=True)
class HeldOutAnswers:
    """The answers to a run's held-out questions.

    Attributes:
        base: Those of the base.
        tuned: Those of the model that is judged.
        n_models: The models of the run's sweep, or of the run where it has none, that were judged
            on these questions so far, with this one.
    """

    base: Evaluation
    tuned: Evaluation
    n_models: int

    def pair(self) -> tuple[Evaluation, Evaluation]:
        """Return the answers of base and tuned model."""
        return self.base, self.tuned

    def explain_looks(self, n_corrected: int = 1) -> list[str]:
        """Say that these questions judged more models than the verdicts are corrected for."""
        if self.n_models <= n_corrected:
            return []
        return [
            f"The held-out questions have judged {self.n_models} models by now. Each of them may "
            "pass by chance in 5 % of cases. So choose one model on the other questions, or "
            "correct for the number of models with slimdown compare RUN RUN --confirm."
        ]


def take_held_out(
    tracking: TrackingConfig,
    run: RunRecord,
    evaluations: tuple[Evaluation, Evaluation],
    share: float,
    label: str = "1",
) -> HeldOutAnswers:
    """Return the answers to a run's held-out questions, and count the model that is judged on them.

    The count covers all runs of the run's sweep, because the best of them is chosen. A tag of each
    run holds the labels of what was judged, and a label counts as one model. If the store is
    read-only, the new label is counted now but not kept.

    Args:
        tracking: The store.
        run: The run.
        evaluations: All answers of the base, and all of the model that is judged.
        share: The share of the questions that was held out.
        label: Names what is judged. "1" is the run's own model, at its full scale. "0.5" is that
            model scaled by 0.5. "0.8+0.5" are two scales that are tested one after the other in a
            fixed order, so that together they pass by chance no more often than one model does, see
            `choose_scale`. What is judged again under the same label is counted once.

    Raises:
        DataError: There are too few questions, or a benchmark stopped early; see `held_part`.
        TrackingError: The runs of the sweep cannot be read.
    """
    base, tuned = (held_part(evaluation, share) for evaluation in evaluations)
    judged_runs = [run]
    if sweep := run.tags.get(Tag.sweep):
        has_labels = f"tags.`{Tag.checked}` LIKE '%'"
        # If `run` is among them, too, the dictionary below takes this record, whose tags are newer.
        judged_runs += find_runs(tracking, sweep=sweep, filter_string=has_labels)
    labels_by_run = {judged.run_id: _read_labels(judged) for judged in judged_runs}
    labels_by_run[run.run_id].add(label)
    with suppress(Exception):  # the store may be read-only
        client = store.open_store(tracking, must_exist=True)
        client.set_tag(run.run_id, Tag.checked, ",".join(sorted(labels_by_run[run.run_id])))
    return HeldOutAnswers(base, tuned, n_models=sum(map(len, labels_by_run.values())))


def _read_labels(run: RunRecord) -> set[str]:
    """Return the labels of the models that were judged on a run's held-out questions."""
    return set(filter(None, run.tags.get(Tag.checked, "").split(",")))
