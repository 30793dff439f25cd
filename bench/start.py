"""Where the time goes from a command to the first training step, benchmarks found in the record.

    python -m bench.start model=smollm2 dataset.alpaca.max_examples=32 benchmark.hellaswag.limit=20 \
        benchmark.gsm8k.limit=4 benchmark.mmlu_cs.limit=10

The settings are those of `python -m slimdown.run`; without any it is the embedded world. A first run, in a folder that
is thrown away, measures the base and fills the caches of files; each of the others is a process of its own that ends
where its first step would begin. The quickest of them is shown: phases as the console names them, with what lies
before, between and behind them.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple


class Mark(NamedTuple):
    """A place that a run came to."""

    what: str  # begins here
    at: float  # seconds since the command
    cpu_seconds: float  # of all threads and processes until then


def marked(began: float, file: Path) -> None:
    """Run the command line as `slimdown.run` does, up to its first step; the marks are left in `file`."""
    from slimdown import run
    from slimdown.report import console

    marks: list[Mark] = [Mark("reading the command line", 0.0, 0.0)]

    def mark(what: str) -> None:
        used = [
            resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        marks.append(
            Mark(what, time.time() - began, sum(one.ru_utime + one.ru_stime for one in used))
        )

    def around(
        shown: Callable[..., AbstractContextManager[Any]],
    ) -> Callable[..., AbstractContextManager[Any]]:
        @contextmanager
        def timed(what: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
            mark(what)
            if what == "training":
                end_at_first_step()
            with shown(what, *args, **kwargs) as bar:
                yield bar
            mark(f"after {what}")

        return timed

    def end_at_first_step() -> None:
        from transformers import DefaultFlowCallback

        def end(*args: Any, **kwargs: Any) -> None:
            mark("first step")
            file.write_text(json.dumps(marks))
            os._exit(0)  # neither the record nor the next run needs what is left

        DefaultFlowCallback.on_step_begin = end

    plan = console.show_plan

    def show_plan(*args: Any) -> None:
        mark("after the plan")
        plan(*args)

    console.doing, console.progress_bar, console.show_plan = (
        around(console.doing),
        around(console.progress_bar),
        show_plan,
    )
    mark("looking for the run, imports")
    run.main()


def main() -> None:
    if sys.argv[1:2] == ["--marked"]:
        began, file, *settings = sys.argv[2:]
        sys.argv[1:] = settings
        return marked(float(began), Path(file))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    args, settings = parser.parse_known_args()
    from slimdown.tracking.provenance import (
        environment,  # torch is no part of what is timed in the other processes
    )

    machine = environment()
    print(
        f"{machine['processor']}, {machine['cores']} cores, load {os.getloadavg()[0]:.1f} at the start\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        within = {"capture_output": True, "text": True, "cwd": folder}
        done = subprocess.run(
            [sys.executable, "-m", "slimdown.run", *settings, "train.max_steps=1"], **within
        )
        rounds, file = [], Path(folder, "marks.json")
        for _ in range(args.rounds if done.returncode == 0 else 0):
            command = [sys.executable, "-m", "bench.start", "--marked", str(time.time()), str(file)]
            done = subprocess.run(
                [*command, *settings, "train.max_steps=1", "rerun=true"], **within
            )
            if done.returncode == 0:
                rounds.append([Mark(*mark) for mark in json.loads(file.read_text())])
        if done.returncode:
            sys.exit(done.stderr[-3000:])
    print("| from | at, seconds | seconds | CPU seconds |\n|---|---:|---:|---:|")
    quickest = min(rounds, key=lambda marks: marks[-1].at)
    for this, following in pairwise(quickest):
        print(
            f"| {this.what} | {this.at:.2f} | {following.at - this.at:.2f} | "
            f"{following.cpu_seconds - this.cpu_seconds:.2f} |"
        )
    last = quickest[-1]
    print(f"| **{last.what}** | **{last.at:.2f}** | | **{last.cpu_seconds:.2f}** in all |")
    print(f"\nall rounds: {', '.join(f'{marks[-1].at:.2f} s' for marks in rounds)}")


if __name__ == "__main__":
    main()
