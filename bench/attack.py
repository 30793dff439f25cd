"""Bad luck and bad will, many times over: what takes too long for the tests.

    python -m bench.attack hub --mirror SERVE.PY
    python -m bench.attack signals
    python -m bench.attack disk
    python -m bench.attack stores
    python -m bench.attack locks

Each attack prints what became of its tries, and ends with exit code 1 where one of them did harm.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.faults import disk, signals
from bench.locks import locks
from bench.stores import stores

QUICK = [
    "model=smollm2", "model.id=local/stories260K", "train.max_length=256", "benchmark=[hellaswag,mmlu_cs]",
    "benchmark.mmlu_cs.num_fewshot=0", "dataset.alpaca.max_examples=32", "dataset.alpaca.validation_examples=8",
    "benchmark.hellaswag.limit=8", "benchmark.mmlu_cs.limit=8",
]  # fmt: skip
"""A run of a small real model on the hub's data, a few seconds long."""


def hub(mirror: Path, times: int) -> bool:
    """Runs on a hub that refuses three requests in ten, and on one that falls silent at different moments.

    mirror: a server of the hub's files that takes `--flaky P`, `--fail-after N`, `--seed S` and `-- COMMAND`, which it
    runs with HF_ENDPOINT and an empty HF_HOME.
    """

    def run(*faults: object) -> tuple[int, str, float]:
        started = time.monotonic()
        command = [
            sys.executable,
            mirror,
            *map(str, faults),
            "--",
            sys.executable,
            "-m",
            "slimdown.run",
            *QUICK,
        ]
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
        return done.returncode, " ".join(done.stderr.split()), time.monotonic() - started

    finished = 0
    for seed in range(times):
        code, said, seconds = run("--flaky", 0.3, "--seed", seed)
        finished += code == 0
        print(
            f"three in ten refused, draw {seed}: exit {code} after {seconds:.0f} s {said if code else ''}",
            flush=True,
        )
    named = 0
    silences = (0, 1, 5, 10, 20, 30, 40)
    for n in silences:
        code, said, seconds = run("--fail-after", n)
        named += (
            code == 1
            and "the hub stopped answering" in said
            and "Traceback" not in said
            and seconds < 60
        )
        print(f"silent after {n} requests: exit {code} after {seconds:.0f} s: {said}", flush=True)
    print(
        f"{finished} of {times} finished; {named} of {len(silences)} silences named within a minute"
    )
    return finished == times and named == len(silences)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    attacks = parser.add_subparsers(dest="attack", required=True)
    attack = attacks.add_parser("hub", help="a hub that fails now and then, or for good")
    attack.add_argument("--mirror", type=Path, required=True, help="a server of the hub's files")
    attack.add_argument("--times", type=int, default=20)
    for fault, trials in ((signals, 500), (disk, 5), (stores, 5), (locks, 1)):
        attack = attacks.add_parser(fault.__name__, help=(fault.__doc__ or "").splitlines()[0])
        attack.add_argument("--trials", type=int, default=trials)
        if fault is signals:
            attack.add_argument("--seed", type=int, default=0, help="of the moments")
    args = vars(parser.parse_args())
    sys.exit(not globals()[args.pop("attack")](**args))


if __name__ == "__main__":
    main()
