"""Turns a file's questions or texts into a task of the harness, which asks and scores it."""

import json
from collections.abc import Mapping, Sequence
from math import exp
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from slimdown.config.benchmark_config import BYTE_PROBABILITY, BenchmarkConfig
from slimdown.data.chat_templates import ChatPrompt, render_chat
from slimdown.scoring.question_files import QuestionRows, list_used_scores, name_score
from slimdown.scoring.score import EXACT
from slimdown.scoring.scores import is_right, read_answer
from slimdown.utils.errors import DataError
from slimdown.utils.extensions import find_packages

# The key of an evaluation contains these versions. If answers or texts are scored in another way,
# raise the version, so that stored evaluations are not reused.
_VERSION = 4
_TEXT_VERSION = 3


def make_file_task(benchmark: BenchmarkConfig, rows: QuestionRows) -> ConfigurableTask:
    """Make the harness's task for the rows of a file: questions, or documents to read."""
    if "text" in rows[0]:  # all rows of a file are of one kind
        return TextTask(benchmark.task, rows)
    takes_numbers = benchmark.numeric_tolerance is not None
    return QuestionTask(benchmark.task, rows, takes_numbers, benchmark.refusal_phrases or ())


class TextTask(ConfigurableTask):  # type: ignore[misc]  # lm_eval is untyped
    """A task of documents, each read as it is, in the harness's rolling windows.

    A document's score is the geometric mean of the probabilities of its UTF-8 bytes. It lies
    between 0 and 1, and models with different tokenizers can be compared by it.
    """

    def __init__(self, name: str, rows: QuestionRows) -> None:
        """Build the task.

        Args:
            name: What samples call it.
            rows: Each has `text`.
        """
        self._rows = rows  # `download` takes them; the harness's constructor calls it
        mean = {"aggregation": "mean", "higher_is_better": True}
        config: dict[str, Any] = {"task": name, "test_split": "test", "num_fewshot": 0}
        config |= {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": _read_text,
            "process_results": _score_text,
            "metric_list": [{"metric": BYTE_PROBABILITY, **mean}],
            "metadata": {"version": _TEXT_VERSION},
        }
        super().__init__(config=config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Take the rows, of equal texts only the first; the harness calls this."""
        first_rows: dict[str, Any] = {}  # by text
        for row in self._rows:
            first_rows.setdefault(row["text"], row)
        self.dataset = {"test": Dataset.from_list([*first_rows.values()])}


# The harness writes the source of `_read_text`, `_score_text` and `QuestionTask._score_answer` into
# a task's settings, of which the key of an evaluation is made. So whoever changes a word in these
# functions, a comment included, has every stored evaluation of files measured again.
def _read_text(doc: dict[str, Any]) -> str:
    """Return a document as it is; by the name of its column the harness would read a template."""
    return str(doc["text"])


def _score_text(doc: dict[str, Any], results: Sequence[float]) -> dict[str, float]:
    # In this order, nan stays nan; a rounded sum may lie above 0.
    log_likelihood = min(results[0], 0.0)
    return {BYTE_PROBABILITY: exp(log_likelihood / len(doc["text"].encode()))}


class QuestionTask(ConfigurableTask):  # type: ignore[misc]  # lm_eval is untyped
    """A task of the questions that `read_questions` returns.

    The prompt is the question as it is, or messages that the chat template has rendered. A row's
    `rule` says how a generated answer is judged right. By the usual rule, `exact`, it must equal
    the right answer except for spaces around it. `_choose_ends` decides where an answer ends.

    Attributes:
        tokenizer: The model's, for messages. `BenchmarkTask` sets it with each model that it asks.
        template_args: The variables of the chat template, which are set together with `tokenizer`.
        has_messages: Whether the questions are messages.
        has_tools: Whether a question has tools that the model may call.
        compares_whole_messages: Whether the answer to a message must equal the right one.
    """

    tokenizer: Any = None
    template_args: dict[str, Any]

    def __init__(
        self, name: str, rows: QuestionRows, takes_numbers: bool, phrases: Sequence[str] = ()
    ) -> None:
        """Build the task.

        Args:
            name: What samples call it.
            rows: All of one kind: with choices or without, with messages or without.
            takes_numbers: Whether the benchmark also counts an answer as right by its last number.
                Then an answer may have several lines, and it ends at an empty one.
            phrases: The phrases of refusals that the user adds.
        """
        # The harness's constructor comes last: it calls `download`, which takes the rows.
        self._rows = rows
        self._phrases = phrases
        self.has_messages = "conversation" in rows[0]
        is_exact = "choices" not in rows[0] and EXACT in list_used_scores(rows)
        self.compares_whole_messages = self.has_messages and is_exact
        chats = [json.loads(row["conversation"]) for row in rows if self.has_messages]
        self.has_tools = any(chat["tools"] for chat in chats)
        mean = {"aggregation": "mean", "higher_is_better": True}
        config: dict[str, Any] = {"task": name, "test_split": "test", "num_fewshot": 0}
        config |= {"doc_to_text": "question", "doc_to_target": "answer"}
        config["metadata"] = {"version": _VERSION}
        if "choices" in rows[0]:
            config |= {"output_type": "multiple_choice", "doc_to_choice": "choices"}
            config["metric_list"] = [{"metric": "acc", **mean}, {"metric": "acc_norm", **mean}]
        else:
            config |= {"output_type": "generate_until", "process_results": self._score_answer}
            ends = self._choose_ends(takes_numbers)  # it reads `_rows` and `has_messages`
            config["generation_kwargs"] = {"until": ends, "do_sample": False}
            self._filter_name = "none"  # the harness's own name for no filter
            metric = name_score(rows)  # EXACT only if no row has another score
            if metric == EXACT:
                metric = "exact_match"
                # This filter makes the metric's name exact_match.strip, and does nothing else:
                # `apply_filters` reads the answers itself.
                self._filter_name = "strip"
                strip = {"name": "strip", "filter": [{"function": "take_first"}]}
                config["filter_list"] = [strip]
            config["metric_list"] = [{"metric": metric, **mean}]
            # Another version of a package may score answers differently. The evaluation's key is
            # made of this metadata, too.
            if packages := find_packages("score", list_used_scores(rows)):
                config["metadata"]["scores"] = packages
        super().__init__(config=config)

    def _choose_ends(self, takes_numbers: bool) -> list[str]:
        """Return the text at which an answer ends, as a list of one; empty: the model ends it."""
        if self.has_messages:
            return []
        if name_score(self._rows) != EXACT:
            return ["\n\n"]
        ends = ["\n\n"] if takes_numbers else ["\n", "\n\n"]
        for end in ends:
            if not any(end in row["answer"] for row in self._rows):  # it would cut a right answer
                return [end]
        return []

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Take the rows; the harness calls this."""
        self.dataset = {"test": Dataset.from_list(list(self._rows))}

    def fewshot_context(self, doc: dict[str, Any], *args: Any, **settings: Any) -> Any:
        """Write the prompt; messages go through the chat template with their tools.

        The arguments are the harness's. Of these, messages use only `doc`, the question's row, and
        the system instruction.

        Raises:
            DataError: The template fails, or drops a turn or a tool.
        """
        if not self.has_messages:
            return super().fewshot_context(doc, *args, **settings)
        system = settings["system_instruction"]
        return self._write_prompt(doc, self.tokenizer, self.template_args, system)

    def check_prompts(
        self, tokenizer: Any, variables: Mapping[str, Any], system: str | None, limit: int | None
    ) -> None:
        """Check that a chat template takes the messages and tools of all questions.

        Args:
            tokenizer: Has the template.
            variables: The template's variables.
            system: What a system turn says if the question has none of its own.
            limit: How many of the questions are asked; None: all.

        Raises:
            DataError: The template fails, or drops a turn or a tool.
        """
        for row in self._rows[:limit] if self.has_messages else ():
            self._write_prompt(row, tokenizer, variables, system)  # raises the error

    def _write_prompt(
        self, doc: dict[str, Any], tokenizer: Any, variables: Mapping[str, Any], system: str | None
    ) -> ChatPrompt:
        """Render a question's messages; arguments and errors are those of `check_prompts`."""
        chat = json.loads(doc["conversation"])
        messages, tools = chat["messages"], chat["tools"]  # `tools` is None if there are none
        if messages[0]["role"] != "system" and system:
            messages.insert(0, {"role": "system", "content": system})
        options = {"tools": tools, "add_generation_prompt": True, **variables}
        prompt = render_chat(tokenizer, messages, **options)
        # All that the user and the system say must be in the prompt, and each tool. Turns of the
        # assistant need not be in it word for word: some templates drop the thinking in them.
        texts = [turn["content"].strip() for turn in messages if turn["role"] != "assistant"]
        tool_names = [tool.get("function", tool)["name"] for tool in tools or ()]
        if dropped := next((text for text in (*texts, *tool_names) if text not in prompt), ""):
            kind = "tools" if dropped in tool_names else "a turn"
            raise DataError(
                f"benchmark.{self.config.task}: the model's chat template leaves out {kind} of a "
                f"question ({dropped[:60]!r}), so this model cannot be asked it"
            )
        return prompt

    def apply_filters(self) -> Any:
        """Read each generated answer by its question's rule; the harness calls this.

        For questions with choices, the harness's own filters are applied.
        """
        if "choices" in self._rows[0]:
            return super().apply_filters()
        for request in self.instances:  # each has one response
            rule = json.loads(request.doc["rule"])
            read = read_answer(rule, request.resps[0], self._phrases, self.tokenizer)
            request.filtered_resps[self._filter_name] = read
        return self.instances

    def _score_answer(self, doc: dict[str, Any], results: Any) -> Any:
        metrics = [metric["metric"] for metric in self.config.metric_list]
        return dict.fromkeys(metrics, float(is_right(json.loads(doc["rule"]), results[0])))
