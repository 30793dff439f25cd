"""A sweep that is killed again and again ends as the same sweep undisturbed.

    python -m bench.survive --kills 20
    python -m bench.survive --kills 20 hydra/launcher=joblib hydra.launcher.n_jobs=2

Six runs of the pocket world, once in peace and once with SIGKILL to all processes at random
moments. Each job must have one finished run whose answers agree within rounding with those of the
undisturbed sweep. Exit code 1 where anything differs.
"""

import argparse
import os
import random
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


def main() -> None:
    """Run both sweeps and print what differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options, arguments = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as name:
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
    print("\n".join(wrong) or "nothing differs, each job was finished once")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
