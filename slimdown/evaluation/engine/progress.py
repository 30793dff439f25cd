"""How far a benchmark is: requests in, questions done out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

Progress = Callable[[str, int, int], None]  # benchmark, questions done, questions in all


class ProgressBars:
    """Counts questions, of which a request is a part: one report, or one bar, per benchmark.

    requests: the harness's, of which `task_name` and `doc_id` are read.
    """

    def __init__(
        self, requests: Sequence[Any], progress: Progress | None, disable_tqdm: bool
    ) -> None:
        self.question_of = [(str(r.task_name), r.doc_id) for r in requests]
        self.open_requests = Counter(self.question_of)
        self.n_questions = Counter(task for task, _ in self.open_requests)
        self.n_done: Counter[str] = Counter()
        self.progress = progress
        self.bars: dict[str, tqdm[Any]] = {}
        self.silence = (
            {"disable": True} if disable_tqdm or progress is not None else {}
        )  # else as TQDM_DISABLE says

    def done(self, requests: Iterable[int]) -> None:
        """Count the requests of these indices as done."""
        moved: Counter[str] = Counter()
        for i in requests:
            question = self.question_of[i]
            self.open_requests[question] -= 1
            if not self.open_requests[question]:
                moved[question[0]] += 1
        for task, n in moved.items():
            self.n_done[task] += n
            if self.progress is not None:
                self.progress(task, self.n_done[task], self.n_questions[task])
            if task not in self.bars:
                self.bars[task] = tqdm(
                    total=self.n_questions[task], desc=task, unit="question", **self.silence
                )
            self.bars[task].update(n)

    def close(self) -> None:
        """Leave the bars as they are and free the terminal."""
        for bar in self.bars.values():
            bar.close()
