"""The questions of a file as a task of the harness, which asks and scores them as any other."""

from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from slimdown.config.question_files import QuestionRows


class QuestionTask(ConfigurableTask):  # type: ignore[misc]  # lm_eval is untyped
    """A task of the rows that `read_questions` returns.

    The prompt is the question as it stands. A generated answer ends at a line feed where every
    right answer is one line, and it must equal the right one but for spaces around it.
    """

    def __init__(self, name: str, rows: QuestionRows, takes_numbers: bool) -> None:
        """Build the task.

        Args:
            name: What samples call it.
            rows: All of one kind.
            takes_numbers: Whether the last number of an answer counts, too; then an answer may
                have several lines, and it ends at an empty one.
        """
        self._rows = rows
        mean = {"aggregation": "mean", "higher_is_better": True}
        config: dict[str, Any] = {"task": name, "test_split": "test", "num_fewshot": 0}
        config |= {"doc_to_text": "question", "doc_to_target": "answer", "metadata": {"version": 1}}
        if "choices" in rows[0]:
            config |= {"output_type": "multiple_choice", "doc_to_choice": "choices"}
            config["metric_list"] = [{"metric": "acc", **mean}, {"metric": "acc_norm", **mean}]
        else:
            ends = ["\n\n"] if takes_numbers else ["\n", "\n\n"]
            ends = [end for end in ends if not any(end in row["answer"] for row in rows)]
            whole = {"function": "regex", "regex_pattern": "(?s).*"}  # and strips what it finds
            config |= {
                "output_type": "generate_until",
                "generation_kwargs": {"until": ends[:1], "do_sample": False},
                "filter_list": [{"name": "strip", "filter": [whole, {"function": "take_first"}]}],
                "metric_list": [{"metric": "exact_match", **mean}],
            }
        super().__init__(config=config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Take the rows; the harness calls this."""
        self.dataset = {"test": Dataset.from_list(list(self._rows))}
