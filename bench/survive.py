"""A sweep that is killed again and again ends as the same sweep undisturbed.

    python -m bench.survive --kills 20
    python -m bench.survive --kills 20 hydra/launcher=joblib hydra.launcher.n_jobs=2
    python -m bench.survive --stages

Six runs of the pocket world, once in peace and once with SIGKILL to all processes at random
moments. Each job must have one finished run whose answers agree within rounding with those of the
undisturbed sweep. Exit code 1 where anything differs.

With --stages: one run that SIGKILL, SIGTERM and Ctrl-C end in each of its stages, then its scale
and its merge. No training step may be taken twice after a stage that keeps it, and nothing may lie
beside what is merged or saved.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
from mlflow import MlflowClient

SWEEP = [
    "-m", "lora.r=2,4,8", "seed=0,1", "train.max_steps=12", "lora.lora_dropout=0.1",
    "benchmark=[pocket_math,pocket_cs]", "benchmark.pocket_math.limit=40",
    "benchmark.pocket_cs.limit=40", "dataset.pocket_instructions.max_examples=96",
    "dataset.pocket_instructions.validation_examples=8", "train.checkpoint_minutes=1e-6",
]  # fmt: skip
NEAR = 1e-3  # nats
ONE = [word for word in SWEEP if word not in ("-m", "lora.r=2,4,8", "seed=0,1")] + ["lora.r=4"]
STAGES = ["loading", "measuring the base", "training", "measuring the tuned model"]
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]


def start(folder: Path, arguments: list[str]) -> "subprocess.Popen[bytes]":
    """Start the sweep in a process group of its own, which writes to `log`."""
    command = [sys.executable, "-m", "slimdown.run", *SWEEP, *arguments]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def run_through_kills(
    folder: Path, arguments: list[str], n_kills: int, moments: random.Random, seconds: float
) -> int:
    """Run the sweep to its end through the kills, and return how many it took."""
    n = 0
    while n < n_kills:
        process = start(folder, arguments)
        try:
            process.wait(1 + moments.uniform(0, max(10.0, seconds / 4)))
        except subprocess.TimeoutExpired:
            workers = psutil.Process(process.pid).children(recursive=True)
            os.killpg(process.pid, signal.SIGKILL)
            for worker in workers:  # some have left the group
                if worker.is_running():
                    worker.kill()
            process.wait()
            n += 1
        else:
            return n
    if start(folder, arguments).wait():
        sys.exit(f"the last try failed:\n{(folder / 'log').read_text()[-3000:]}")
    return n


def read_answers(folder: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Read each job's answers, and say what is wrong with the record."""
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    jobs: dict[str, dict[str, Any]] = {}
    wrong: list[str] = []
    for run in client.search_runs(experiments):
        if run.info.status == "RUNNING":
            wrong.append(f"run {run.info.run_id} stays RUNNING")
        artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
        files = sorted(artifacts.glob("samples/tuned-*.parquet"))
        if run.info.status != "FINISHED" or not files:
            continue
        if run.info.run_name in jobs:
            wrong.append(f"{run.info.run_name} has two finished runs")
        rows = [row for file in files for row in pq.read_table(file).to_pylist()]
        jobs[run.info.run_name] = {
            f"{row['benchmark']} {row['doc_hash']} {row['metric']}": row for row in rows
        }
    return jobs, wrong


def stop_at(
    folder: Path, arguments: list[str], word: str, number: signal.Signals, seconds: float
) -> str:
    """Start a command, end it by a signal some time after a word is printed; return its output."""

    def heed_interrupts() -> None:  # which a shell ignores for what it starts with &
        signal.signal(signal.SIGINT, signal.default_int_handler)

    out = folder / "one"
    with out.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=folder, stdout=log, stderr=log,
            preexec_fn=heed_interrupts,
        )  # fmt: skip
        while process.poll() is None and f"] {word}" not in out.read_text() and word:
            time.sleep(0.05)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        process.wait()
    return out.read_text()


def check_stages(folder: Path, moments: random.Random) -> list[str]:
    """End a run, its scale and its merge in each stage by each signal; say what is wrong."""
    calm, wrong = folder / "calm", []
    calm.mkdir()
    stop_at(calm, ["slimdown.run", *ONE], "", signal.SIGKILL, 9999)
    for number in SIGNALS:
        stormy = folder / number.name
        stormy.mkdir()
        kept = ""
        for stage in [*STAGES, ""]:
            out = stop_at(stormy, ["slimdown.run", *ONE], stage, number, 9999 if not stage else
                          moments.uniform(0, 1.5))  # fmt: skip
            taken = next((line for line in out.splitlines() if line.startswith("taken:")), "")
            print(f"{number.name} in {stage or 'no stage'}: {taken}", flush=True)
            if kept and kept not in taken:
                wrong.append(f"{number.name}: after {kept} was kept, the next command has: {taken}")
            if stage == STAGES[2] and number is not signal.SIGKILL:
                kept = "training"
            elif stage == STAGES[3]:
                kept = "the whole training"
            if "Traceback" in out:
                wrong.append(out)
        (expected, _), (jobs, more) = read_answers(calm), read_answers(stormy)
        wrong += more + compare_answers(expected, jobs)
        for verb, *options in (
            ["merge", "--out", "made/model"],
            ["scale", "--scales", "0.5,1", "--max-loss", "0.5", "--save", "made/model"],
        ):
            command = ["slimdown", verb, next(iter(jobs)), *options]
            for seconds in (2.0, 8.0, moments.uniform(2, 20), 9999):
                out = stop_at(stormy, command, "", number, seconds)
            left = sorted(path.name for path in (stormy / "made").iterdir())
            print(f"{number.name} in {verb}: {left}", flush=True)
            if left != ["model"] or "Traceback" in out:
                wrong.append(f"{verb} left {left}:\n{out}")
            shutil.rmtree(stormy / "made")
    return wrong


def compare_answers(
    expected: dict[str, dict[str, Any]], jobs: dict[str, dict[str, Any]]
) -> list[str]:
    """Print and return which jobs are missing or have other answers."""
    wrong = []
    if jobs.keys() != expected.keys():
        wrong.append(f"finished {sorted(jobs)} instead of {sorted(expected)}")
    for job in jobs.keys() & expected.keys():
        pairs = [(row, jobs[job].get(key)) for key, row in expected[job].items()]
        differing = sum(
            other is None
            or row["response"] != other["response"]
            or any(
                abs(a - b) > NEAR
                for a, b in zip(row["log_likelihoods"], other["log_likelihoods"], strict=True)
            )
            for row, other in pairs
        )
        print(f"{job}: {differing} of {len(pairs)} answers differ")
        wrong += [f"{job} differs"] if differing else []
    return wrong


def main() -> None:
    """Run both sweeps and print what differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--stages", action="store_true", help="one run, its scale and its merge")
    options, arguments = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as name:
        if options.stages:
            wrong = check_stages(Path(name), random.Random(options.seed))
            print("\n".join(wrong) or "nothing differs, nothing was made twice")
            sys.exit(bool(wrong))
        calm, stormy = Path(name, "calm"), Path(name, "stormy")
        calm.mkdir()
        stormy.mkdir()
        began = time.monotonic()
        if code := start(calm, arguments).wait():
            log = (calm / "log").read_text()
            sys.exit(f"the undisturbed sweep ended with {code}:\n{log[-3000:]}")
        seconds, moments = time.monotonic() - began, random.Random(options.seed)
        n = run_through_kills(stormy, arguments, options.kills, moments, seconds)
        print(f"{seconds:.0f} s undisturbed; killed {n} times", flush=True)
        (expected, _), (jobs, wrong) = read_answers(calm), read_answers(stormy)
    wrong += compare_answers(expected, jobs)
    print("\n".join(wrong) or "nothing differs, each job was finished once")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
