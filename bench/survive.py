"""A sweep that is killed again and again ends as the same sweep undisturbed, bit for bit, with nothing made twice.

    python -m bench.survive --kills 20
    python -m bench.survive --kills 20 --launcher joblib hydra.launcher.n_jobs=2
    python -m bench.survive --kills 20 --launcher ray --one-worker

Six runs of the embedded world, once in peace and once with SIGKILL at random moments: to all of its processes, or with
--one-worker to one that a launcher started. Exit code 1 where anything differs.
"""

import argparse
import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq

SWEEP = ["-m", "lora.r=2,4,8", "seed=0,1"]
SETTINGS = [
    "train.max_steps=12",
    "benchmark=[pocket_math,pocket_cs]",
    "benchmark.pocket_math.limit=40",
    "benchmark.pocket_cs.limit=40",
    "evaluation.token_budget=192",  # a few questions a forward, so a few parts
    "dataset.pocket_instructions.max_examples=96",
    "dataset.pocket_instructions.validation_examples=8",
    "lora.lora_dropout=0.1",
    "train.checkpoint_minutes=1e-6",
]
LEAST = 1.0  # seconds that a process is left alone


def start(folder: Path, arguments: list[str]) -> "subprocess.Popen[bytes]":
    """The sweep in a process group of its own, which writes to `log`."""
    command = [sys.executable, "-m", "slimdown.run", *SWEEP, *SETTINGS, *arguments]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def kill(process: "subprocess.Popen[bytes]", one_worker: bool, moments: random.Random) -> None:
    """End all of its processes as a loss of power does, or one that it has started."""
    below = psutil.Process(process.pid).children(recursive=True)
    if one_worker:
        jobs = [
            one for one in below if one.cpu_times().user > 1
        ]  # a worker, and not what watches over them
        victims = [moments.choice(jobs)] if jobs else []
    else:
        os.killpg(process.pid, signal.SIGKILL)
        victims = below  # some have left the group
    for victim in victims:
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            continue
    if not one_worker:
        process.wait()


def disturbed(folder: Path, arguments: list[str], options: argparse.Namespace, peace: float) -> int:
    """Run the sweep to its end through the kills; how many it took."""
    moments, n_kills, n_starts = random.Random(options.seed), 0, 0
    process = start(folder, arguments)
    while n_kills < options.kills:
        n_starts += 1
        try:
            process.wait(LEAST + moments.uniform(0, max(10.0, 1.5 * peace / 6)))
            break  # finished, before as many kills as were asked for
        except subprocess.TimeoutExpired:
            kill(process, options.one_worker, moments)
            n_kills += 1
        if process.poll() is not None:
            process = start(folder, arguments)
    process.wait()
    for _ in range(
        3
    ):  # a launcher whose worker was killed may have failed a job, which is made by the same command
        if process.returncode == 0:
            break
        process = start(folder, arguments)
        process.wait()
    return n_kills


def described(folder: Path) -> tuple[dict[str, dict[str, object]], list[str]]:
    """Of each job what it ended with, and what is wrong with the record."""
    with sqlite3.connect(folder / "mlruns" / "mlflow.db") as store:
        ask = store.execute
        wrong = [
            f"integrity_check: {row[0]}" for row in ask("PRAGMA integrity_check") if row[0] != "ok"
        ]
        params = {
            key: dict(ask("SELECT key, value FROM params WHERE run_uuid = ?", (key,)))
            for (key,) in _runs(ask)
        }
        kinds = dict(ask("SELECT run_uuid, value FROM tags WHERE key = 'slimdown.kind'"))
        status = dict(ask("SELECT run_uuid, status FROM runs"))
        metrics = ask("SELECT run_uuid, key, value FROM latest_metrics").fetchall()
        steps = ask("SELECT run_uuid, key, step FROM metrics WHERE key LIKE 'train/%'").fetchall()
        keys = ask(
            "SELECT key, run_uuid FROM tags WHERE key LIKE 'slimdown.evaluation.%'"
        ).fetchall()
        models = dict(ask("SELECT source_run_id, artifact_location FROM logged_models"))
    wrong += [f"run {run} stays {state}" for run, state in status.items() if state == "RUNNING"]
    twice = [one for one, n in Counter(steps).items() if n > 1]
    wrong += [f"{len(twice)} entries of training are there twice, e.g. {twice[0]}"] if twice else []
    measured = [key for key, n in Counter(key for key, _ in keys).items() if n > 1]
    wrong += [f"{key} was measured twice" for key in measured]
    jobs: dict[str, dict[str, object]] = {}
    for run in (run for run, kind in kinds.items() if kind == "tuned"):
        name = f"r {params[run].get('lora.r')} seed {params[run].get('seed')}"
        wrong += [f"{name} has two runs"] if name in jobs else []
        adapter = (
            Path(str(models.get(run, "")).removeprefix("file://")) / "adapter_model.safetensors"
        )
        files = sorted(
            (folder / "mlruns" / "artifacts" / run / "artifacts" / "samples").glob(
                "tuned-*.parquet"
            )
        )
        jobs[name] = {
            "status": status[run],
            "adapter": hashlib.sha256(adapter.read_bytes()).hexdigest()
            if adapter.is_file()
            else "none",
            **{file.stem: pq.read_table(file).replace_schema_metadata() for file in files},
            **{
                key: value
                for of, key, value in metrics
                if of == run and not key.startswith("cost/")
            },
            "steps": sum(1 for of, key, _ in steps if (of, key) == (run, "train/loss")),
        }
    left = [str(file) for file in (folder / "mlruns" / "checkpoints").rglob("*") if file.is_file()]
    return jobs, wrong + (
        [f"{len(left)} files are left in checkpoints, e.g. {left[0]}"] if left else []
    )


def _runs(ask: "object") -> list[tuple[str]]:
    return ask("SELECT run_uuid FROM runs").fetchall()  # type: ignore[operator,no-any-return]


def _lines(file: Path) -> list[str]:
    return file.read_text(errors="replace").splitlines()


def main() -> None:
    """Both sweeps, and what differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--launcher", default="", help="one of Hydra's: joblib, ray")
    parser.add_argument(
        "--one-worker", action="store_true", help="kill one worker at a time, and not everything"
    )
    options, arguments = parser.parse_known_args()
    arguments += [f"hydra/launcher={options.launcher}"] if options.launcher else []
    with tempfile.TemporaryDirectory() as folder:
        calm, stormy = Path(folder, "calm"), Path(folder, "stormy")
        calm.mkdir()
        stormy.mkdir()
        began = time.monotonic()
        if code := start(calm, arguments).wait():
            sys.exit(
                f"the undisturbed sweep ended with {code}:\n{(calm / 'log').read_text()[-3000:]}"
            )
        peace = time.monotonic() - began
        print(f"undisturbed: {peace:.0f} s", flush=True)
        n_kills = disturbed(stormy, arguments, options, peace)
        print(f"killed {n_kills} times: {time.monotonic() - began - peace:.0f} s", flush=True)
        (first, wrong_first), (second, wrong) = described(calm), described(stormy)
        wrong += [f"undisturbed: {what}" for what in wrong_first]
        for name in sorted(first.keys() | second.keys()):
            one, other = first.get(name, {}), second.get(name, {})
            differ = sorted(
                key for key in one.keys() | other.keys() if one.get(key) != other.get(key)
            )
            told = f"{len(differ)} differ: {differ[:5]}" if differ else "all equal"
            print(f"{name}: {len(one)} things compared, {told}")
            wrong += [f"{name} differs: {', '.join(differ)}"] if differ else []
        log = (stormy / "log").read_text().splitlines()
        of_jobs = [
            line
            for file in stormy.glob("outputs/**/*log*")
            if file.is_file()
            for line in _lines(file)
        ]
        resumed = [line for line in log + of_jobs if line.startswith("goes on in run")]
        print(
            f"went on {len(resumed)} times, {sum('from step' in line for line in resumed)} of them from a checkpoint"
        )
        print("\n".join(wrong) or "nothing differs, nothing was made twice, the store is whole")
        if wrong:
            print("\n".join(log[-40:]))
        sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
