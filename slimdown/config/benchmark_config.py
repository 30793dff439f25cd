"""The settings of a benchmark: all that judging knows of a run's settings.

Logs of other tools are judged by them, too, so nothing here knows a run.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from slimdown.config.fields import (
    COUNT,
    FILLED,
    LOSS,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Range,
    setting,
)
from slimdown.scoring.score import EXACT
from slimdown.scoring.scores import name_scores

_MARGIN = Range("must be above 0 and below 1 (0.02 is two points)", lambda share: 0 < share < 1)
_QUESTIONS = Range("must be from 1 to 1,000,000,000", lambda n: 1 <= n <= 10**9)
_SCORES = Range(f"must be one of {', '.join(name_scores())}", lambda name: name in name_scores())
_TEXTS = Range("must be a list of texts", lambda texts: all(t and type(t) is str for t in texts))

PROMPT_SETTINGS = (
    "apply_chat_template",
    "system_instruction",
    "chat_template_args",
    "enable_thinking",
    "think_end_token",
)
"""The settings of the evaluation that say how a benchmark is asked."""

BYTE_PROBABILITY = "byte_probability"
"""The metric of a document: the geometric mean of the probabilities of its UTF-8 bytes."""

CHOICE_PROBABILITY = "p_right"
"""The metric of choices that is the probability of the right one: evaluation/right_choice.py."""

PaperMetric = StrEnum("PaperMetric", "ability_augmentation forgetting_rate knowledge_loss")


class Role(StrEnum):
    target = "target"  # what the fine-tuning is meant to teach
    retained = "retained"  # everything else the model should still be able to do
    watched = "watched"  # its change is shown, and nothing is claimed about it


class Until(StrEnum):
    """When an evaluation of the tuned model ends."""

    all = "all"  # when all questions are asked
    decided = "decided"  # as soon as the verdict on a benchmark is certain
    budget = "budget"  # as soon as its loss is shown to be within its budget, or beyond


@dataclass
class BenchmarkConfig:
    """One benchmark as you set it; null takes the value of the task, or of the file."""

    task: str = setting("the name of a task of lm-evaluation-harness", default="")
    path: str | None = setting(
        "a file of your own questions instead of a task, or assistant:NAME", default=None
    )
    metric: str | None = setting("the primary metric, its filter after a dot", FILLED, None)
    num_fewshot: int | None = setting("worked examples in the prompt", NOT_NEGATIVE, None)
    chance: float | None = setting("what guessing scores, a share", SHARE, None)
    role: Role = setting(
        "target: is to be learned; retained: is to be kept; watched: is shown without a verdict",
        default=Role.retained,
    )
    paper_metric: PaperMetric | None = setting(
        "which of the paper's metrics it feeds", default=None
    )
    numeric_tolerance: float | None = setting(
        "answers this near to the target count in flexible_accuracy", POSITIVE, None
    )
    limit: int | None = setting("the first questions alone; null: all", _QUESTIONS, None)
    max_gen_toks: int | None = setting(
        "tokens of a generated answer, thinking included", COUNT, None
    )
    stop: list[str] | None = setting(
        "texts at which a generated answer ends, lm-eval's `until`", _TEXTS, None
    )
    temperature: float | None = setting("answers are drawn at it; null: greedy", POSITIVE, None)
    repeats: int | None = setting("answers to each question, scored by their mean", COUNT, None)
    margin: float = setting("a change shown to be smaller is retained; a share", _MARGIN, 0.02)
    max_loss: float | None = setting(
        "share that may be lost; null: a retained one's margin", LOSS, None
    )
    scale: float | None = setting(
        "what divides scores that do not lie between 0 and 1", POSITIVE, None
    )
    cluster: str | None = setting(
        "a field of the task's documents, such as a passage; questions that share it count as one",
        FILLED,
        None,
    )
    score: str = setting("how written answers to a file are scored", _SCORES, EXACT)
    refusal_phrases: list[str] | None = setting("further texts that refuse", _TEXTS, None)

    def problems(self) -> Iterator[str]:
        if self.path is None and self.score != EXACT:
            yield f"score={self.score} is for a file of your own questions; set path"
        if not self.task.strip() and self.path is None:
            yield "task must be set, one of the harness, or path, a file of your own questions"
        if self.repeats not in (None, 1) and self.temperature is None:
            advice = "set temperature, such as 0.7: the likeliest answer is the same each time"
            yield f"repeats={self.repeats} draws answers; {advice}"
        if self.path is not None and self.num_fewshot:
            advice = "the questions of a file have no worked examples; set it to 0"
            yield f"num_fewshot={self.num_fewshot}: {advice}"


@dataclass
class ResolvedBenchmark(BenchmarkConfig):
    """One benchmark as it is run; `num_fewshot` is null where the tasks of a group differ."""

    metric: str = ""
    chance: float = 0.0

    @classmethod
    def of(cls, benchmark: BenchmarkConfig, **values: Any) -> "ResolvedBenchmark":
        """Return a benchmark with values that fill its open settings or replace its own."""
        chosen = {name: value for name, value in vars(benchmark).items() if value is not None}
        return cls(**{**chosen, **values})
