"""The settings of a benchmark: all that judging knows of a run's settings.

Logs of other tools are judged by them, too, so nothing here knows a run.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from slimdown.config.fields import COUNT, FILLED, LOSS, NONNEGATIVE, POSITIVE, SHARE, Range, setting
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
    metric: str | None = setting(
        "the metric to judge by; a filter follows after a dot", FILLED, None
    )
    num_fewshot: int | None = setting("number of worked examples in the prompt", NONNEGATIVE, None)
    chance: float | None = setting("the score of random guessing, as a share", SHARE, None)
    role: Role = setting(
        "target: trained for; retained: should not change; watched: reported without a verdict",
        default=Role.retained,
    )
    paper_metric: PaperMetric | None = setting(
        "which metric of the paper is computed from it", default=None
    )
    numeric_tolerance: float | None = setting(
        "flexible_accuracy counts an answer as right if it is this near to the target",
        POSITIVE,
        None,
    )
    limit: int | None = setting("ask only the first questions; null: all", _QUESTIONS, None)
    max_gen_toks: int | None = setting(
        "most tokens of a generated answer, including thinking", COUNT, None
    )
    stop: list[str] | None = setting(
        "texts that end a generated answer; lm-eval calls them `until`", _TEXTS, None
    )
    temperature: float | None = setting(
        "temperature at which answers are sampled; null: greedy decoding", POSITIVE, None
    )
    repeats: int | None = setting(
        "number of answers per question; their mean is the score", COUNT, None
    )
    margin: float = setting(
        "the largest change that still counts as retained, as a share", _MARGIN, 0.02
    )
    max_loss: float | None = setting(
        "the largest loss you allow, as a share; 0.02 is two points; null: a retained one's margin",
        LOSS,
        None,
    )
    scale: float | None = setting(
        "the number by which scores are divided that are not between 0 and 1", POSITIVE, None
    )
    cluster: str | None = setting(
        "a field of the questions, such as a passage; questions with the same value count once",
        FILLED,
        None,
    )
    score: str = setting(
        "how the written answers to a file of questions are judged right", _SCORES, EXACT
    )
    refusal_phrases: list[str] | None = setting(
        "more phrases that count as a refusal", _TEXTS, None
    )

    def problems(self) -> Iterator[str]:
        if self.path is None and self.score != EXACT:
            yield f"score={self.score} is only for a file of your own questions; set path"
        if not self.task.strip() and self.path is None:
            yield "task must be set (a task of the harness), or path (a file of your own questions)"
        if self.repeats not in (None, 1) and self.temperature is None:
            advice = "set a temperature, such as 0.7; without one, every answer is the same"
            yield f"repeats={self.repeats} needs sampled answers; {advice}"
        if self.path is not None and self.num_fewshot:
            advice = "questions of a file have no worked examples; set num_fewshot to 0"
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
