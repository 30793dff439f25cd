"""What runs cost when there are many: sweeps of 1, 10 and 100, and the next run's start beside all of them.

    python -m bench.many_runs
    python -m bench.many_runs --runs 1 10 100 1000

Small runs of the embedded world in one store, so that what grows with the store shows. The next run is a command of its
own, with another seed. CPU seconds are of all its processes, and say more than seconds on a busy machine. Exit code 1
where the last one takes more than 1.2 times those of the first.
"""

import argparse
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from slimdown.tracking.provenance import environment

SETTINGS = [
    "train.max_steps=2",
    "benchmark=[pocket_cs]",
    "benchmark.pocket_cs.limit=8",
    "dataset.pocket_instructions.max_examples=32",
    "dataset.pocket_instructions.validation_examples=8",
]
MOST = 1.2


def timed(folder: Path, *arguments: str) -> tuple[float, float, float]:
    """A command: its seconds, its CPU seconds, and when it began."""
    began, wall, before = (
        time.time(),
        time.perf_counter(),
        resource.getrusage(resource.RUSAGE_CHILDREN),
    )
    command = [sys.executable, "-m", "slimdown.run", *arguments, *SETTINGS]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - wall, cpu, began


def first_step(folder: Path, seed: int) -> float:
    """When the run of this seed ended its first step, in seconds since 1970."""
    with sqlite3.connect(folder / "mlruns" / "mlflow.db") as store:
        [(at,)] = store.execute(
            "SELECT min(m.timestamp) FROM metrics m JOIN params p ON p.run_uuid = m.run_uuid "
            "WHERE m.key = 'train/loss' AND p.key = 'seed' AND p.value = ?",
            (str(seed),),
        )
    return float(at) / 1000


def main() -> None:
    """Fill the store, and time the next run at each size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=int, nargs="+", default=[1, 10, 100], help="in the store when a run is timed"
    )
    parser.add_argument("--trials", type=int, default=3, help="runs that are timed at each size")
    options = parser.parse_args()
    machine = environment()
    print(
        f"{machine['processor']}, {machine['cores']} cores, load {os.getloadavg()[0]:.1f} at the start\n"
    )
    print(
        "| runs in the store | sweep to here, s (CPU s) | a run of it | next run | to its first step | MB |"
    )
    print("|---:|---:|---:|---:|---:|---:|", flush=True)
    starts: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder, held, next_seed = Path(name), 0, 1_000_000
        for n in sorted(options.runs):
            seconds, cpu, _ = timed(folder, "-m", f"seed=range({held},{n})")
            made, held = n - held, n
            tries = []
            for seed in range(next_seed, next_seed + options.trials):
                wall, own, began = timed(folder, f"seed={seed}")
                tries.append((wall, own, first_step(folder, seed) - began))
            next_seed += options.trials
            wall, own, start = (median(values) for values in zip(*tries, strict=True))
            starts.append(own)
            size = (
                sum(
                    file.stat().st_size for file in (folder / "mlruns").rglob("*") if file.is_file()
                )
                / 1e6
            )
            print(
                f"| {n} | {seconds:.0f} ({cpu:.0f}) | {seconds / made:.1f} ({cpu / made:.1f}) | {wall:.1f} ({own:.1f}) "
                f"| {start:.1f} | {size:.0f} |",
                flush=True,
            )
    slower = starts[-1] / starts[0]
    print(
        f"\nthe next run beside {max(options.runs)} takes {slower:.2f} times the CPU seconds of that beside the first"
    )
    sys.exit(slower > MOST)


if __name__ == "__main__":
    main()
