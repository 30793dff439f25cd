"""Bad luck inside a run: signals at any moment, a disk that fills up. `python -m bench.attack` runs these.

A run is a fork of this process, which has imported everything: it lasts seconds, and hundreds can be tried.
"""

import contextlib
import importlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from slimdown import run
from slimdown.utils import interruption

QUICK = [
    "dataset.pocket_instructions.max_examples=32",
    "dataset.pocket_instructions.validation_examples=8",
    "train.max_steps=3",
    "benchmark=[pocket_math,pocket_cs]",
    "benchmark.pocket_math.limit=2",
    "benchmark.pocket_cs.limit=2",
]
"""The pocket run, cut to what still goes through every step."""


class Count(NamedTuple):
    """How often something was tried, and how often it ended as it should."""

    what: str
    tried: int
    held: int


def show(*counts: Count) -> bool:
    """Print the counts as a table; whether all held."""
    print("| what | tried | held |\n|---|---:|---:|")
    for count in counts:
        print(f"| {count.what} | {count.tried} | {count.held} |")
    return all(count.held == count.tried for count in counts)


class Ended(NamedTuple):
    """How a run ended: its exit code, what it said, and the runs in the store, kind and id and status."""

    code: int
    said: str
    runs: list[tuple[str, str, str]]

    def status(self, kind: str = "tuned") -> str | None:
        return next((status for found, _, status in self.runs if found == kind), None)


# --- runs in children of a process that has imported everything -------------------------------------


def warm() -> None:
    """Import what a run imports, so that a fork of this process starts its run at once."""
    os.environ["TQDM_DISABLE"] = "1"  # as run.py does; read when tqdm is imported
    for name in ("slimdown.experiment", "slimdown.evaluation.engine.scoring", "bitsandbytes",
                 "mlflow.store.tracking.sqlalchemy_store", "transformers.models.llama.modeling_llama",
                 "matplotlib.backends.backend_svg", "trl.trainer.sft_trainer", "lm_eval.tasks"):  # fmt: skip
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)  # a pool of threads does not survive a fork


def start(folder: Path, arguments: list[str], prepare: Callable[[], None] = lambda: None) -> int:
    """Fork a child that does what `python -m slimdown.run ARGUMENTS` does in `folder`; returns its process id."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the child has its handlers
    if child := os.fork():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return child
    code = 1
    try:
        os.chdir(folder)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(
                os.open(folder.parent / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o666), number
            )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        interruption.end_at_once_when_interrupted()  # as run.py does before its imports
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        sys.argv[:] = ["slimdown.run", *arguments]
        prepare()
        run.main()
        code = 0
    except SystemExit as stop:
        if isinstance(stop.code, str):
            sys.stderr.write(f"{stop.code}\n")
        else:
            code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(code)


def wait(child: int, folder: Path, seconds: float = 120) -> Ended:
    """How the child ended; one that does not is killed and counts as code -9."""
    deadline = time.monotonic() + seconds
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return Ended(
        os.waitstatus_to_exitcode(done[1]), (folder.parent / "stderr").read_text(), runs_of(folder)
    )


def runs_of(folder: Path) -> list[tuple[str, str, str]]:
    """Kind, id and status of the runs in a folder's store, newest first."""
    file = folder / "mlruns" / "mlflow.db"
    if not file.is_file():
        return []
    with contextlib.closing(sqlite3.connect(file)) as store:
        if not store.execute("SELECT 1 FROM sqlite_master WHERE name = 'tags'").fetchone():
            return []  # a store that is half made
        return store.execute(
            "SELECT t.value, r.run_uuid, r.status FROM runs r JOIN tags t USING (run_uuid) "
            "WHERE t.key = 'slimdown.kind' ORDER BY r.start_time DESC"
        ).fetchall()


@contextlib.contextmanager
def scratch(store: Path | None = None) -> Iterator[Path]:
    """A folder to run in, with a copy of `store` as its own."""
    with tempfile.TemporaryDirectory() as outer:  # what a run says is kept there, beside its folder
        folder = Path(outer) / "work"
        folder.mkdir()
        if store:
            (folder / "mlruns").mkdir()
            shutil.copy(store, folder / "mlruns" / "mlflow.db")
        yield folder


@contextlib.contextmanager
def fresh_store() -> Iterator[Path]:
    """An empty store to copy: MLflow takes seconds to make one. Made in another process, for MLflow remembers."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mlflow.db"
        script = f"import mlflow; mlflow.MlflowClient('sqlite:///{file}').search_experiments(max_results=1)"
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
        yield file


# --- signals ------------------------------------------------------------------------------------------


def signals(trials: int, seed: int = 0) -> bool:
    """SIGINT or SIGTERM at a random moment: the run is KILLED, or was not open, and says so; exit code 130."""
    chance = random.Random(seed)
    few = max(1, trials // 25)
    warm()
    with fresh_store() as store:
        with scratch(store) as folder:
            begun = time.monotonic()
            assert wait(start(folder, QUICK), folder).code == 0
            seconds = time.monotonic() - begun
        print(f"an undisturbed run takes {seconds:.1f} s", flush=True)
        ends = [
            at_a_moment(store, chance.uniform(0, 1.02 * seconds), chance.choice(SIGNALS))
            for _ in range(trials)
        ]
        lost = [swallowed(store, chance.choice(STEPS), chance.choice(SIGNALS)) for _ in range(few)]
        starts = [
            while_starting(store, chance.uniform(0.1, 4), chance.choice(SIGNALS))
            for _ in range(few)
        ]
    return show(
        Count("a signal at a random moment of a quick run", len(ends), sum(map(bool, ends))),
        *(Count(f"of these: {end}", ends.count(end), ends.count(end)) for end in ENDS),
        Count("a signal swallowed in a weakref callback: KILLED", len(lost), lost.count("KILLED")),
        Count("a signal while a process starts", len(starts), sum(map(bool, starts))),
    )


SIGNALS = (signal.SIGINT, signal.SIGTERM)
STEPS = ("log_settings", "log_data", "log_base", "log_step", "log_tuned")  # of TrackedRun
ENDS = ("KILLED", "no run yet", "after FINISHED")


def at_a_moment(store: Path, seconds: float, number: signal.Signals) -> str | None:
    """How a run ends that gets a signal after so many seconds; None where something is wrong with that."""
    with scratch(store) as folder:
        child = start(folder, QUICK)
        time.sleep(seconds)
        os.kill(child, number)
        return told_right(wait(child, folder), f"{number.name} after {seconds:.2f} s")


def swallowed(store: Path, step: str, number: signal.Signals) -> str | None:
    """How a run ends that gets a signal in a weakref callback, out of which Python lets no exception."""
    with scratch(store) as folder:
        child = start(folder, QUICK, lambda: lose_a_signal_in(step, number))
        return told_right(wait(child, folder), f"{number.name} lost in {step}")


def while_starting(store: Path, seconds: float, number: signal.Signals) -> str | None:
    """How a process of its own ends that gets a signal after so many seconds, during its imports or later."""
    with scratch(store) as folder, open(folder.parent / "stderr", "w") as errors:
        command = [sys.executable, "-m", "slimdown.run", *QUICK]
        job = subprocess.Popen(command, cwd=folder, stderr=errors, stdout=subprocess.DEVNULL)
        time.sleep(seconds)
        os.kill(job.pid, number)
        code = job.wait(timeout=120)
        ended = Ended(code, (folder.parent / "stderr").read_text(), runs_of(folder))
        return told_right(ended, f"{number.name} to a process of {seconds:.2f} s")


def told_right(ended: Ended, trial: str) -> str | None:
    """How an interrupted run ended, if its code, its record and its last line agree; None and a line otherwise."""
    status = ended.status()
    none_running = all(status != "RUNNING" for _, _, status in ended.runs)
    clean = none_running and "Traceback" not in ended.said and "Exception ignored" not in ended.said
    if clean and status == "KILLED" and ended.code == 130 and "is marked KILLED" in ended.said:
        return "KILLED"
    if clean and status is None and ended.code == 130 and "o run was open" in ended.said:
        return "no run yet"
    if (
        clean
        and status == "FINISHED"
        and (ended.code == 0 or (ended.code == 130 and "o run was open" in ended.said))
    ):
        return "after FINISHED"
    print(f"{trial}: exit code {ended.code}, runs {ended.runs}\n{ended.said}", flush=True)
    return None


def lose_a_signal_in(step: str, number: signal.Signals) -> None:
    """Make a step of the record deliver a signal inside a weakref callback."""
    from slimdown.tracking.write import TrackedRun

    original = getattr(TrackedRun, step)

    def patched(self: Any, *arguments: Any, **named: Any) -> Any:
        class Thing:
            pass

        thing = Thing()
        reference = weakref.ref(thing, lambda _: signal.raise_signal(number))
        del thing
        assert reference() is None
        return original(self, *arguments, **named)

    setattr(TrackedRun, step, patched)


# --- a full disk --------------------------------------------------------------------------------------

MEGABYTES = 30


def disk(trials: int) -> bool:
    """A disk of 30 MB that fills up at five moments: one clear line, a whole record, and the next run goes on."""
    warm()
    counts = []
    for moment in ("start", "opening the record", "measuring the base", "training", "report"):
        held = 0
        for i in range(trials):
            left = [0, 4_096, 40_000, 150_000, 400_000][i % 5]  # bytes: what fails first differs
            with small_disk() as folder:
                held += survives(folder, moment, left)
        counts.append(Count(f"a disk full at: {moment}", trials, held))
    return show(*counts)


def survives(folder: Path, moment: str, left: int) -> bool:
    """Whether a run on a disk that fills up says so, harms nothing, and can be repeated when there is room."""
    if moment in ("start", "opening the record"):
        fill(folder, left if moment == "start" else left + 100_000)
    ended = wait(start(folder, QUICK, lambda: fill_at(moment, folder, left)), folder)
    (folder / "ballast").unlink(missing_ok=True)
    again = wait(start(folder, QUICK), folder)
    problems = {
        "exit code": ended.code != 1,
        "no clear line": "the disk takes no more" not in ended.said,
        "traceback": "Traceback" in ended.said,
        "a run stays RUNNING in silence": any(s == "RUNNING" for _, _, s in ended.runs)
        and "could not be marked" not in ended.said,
        "the next run": again.code != 0 or again.status() != "FINISHED",
        "the store": not whole(folder),
    }
    wrong = [problem for problem, there in problems.items() if there]
    if wrong:
        print(
            f"{moment}, {left} bytes left: {', '.join(wrong)}: exit {ended.code}\n{ended.said}\n{again.said}"
        )
    return not wrong


def whole(folder: Path) -> bool:
    """Whether there is a store and SQLite finds it sound."""
    if not (folder / "mlruns" / "mlflow.db").is_file():
        return False
    with contextlib.closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as store:
        return bool(store.execute("PRAGMA integrity_check").fetchone() == ("ok",))


def fill(folder: Path, left: int) -> None:
    """Write a file that leaves so many bytes of a disk."""
    with (folder / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with (folder / "ballast").open("r+b") as file:
        file.truncate(max(0, file.seek(0, os.SEEK_END) - left))


def fill_at(moment: str, folder: Path, left: int) -> None:
    """Fill the disk when a run comes to what it calls `moment`."""
    from slimdown import experiment
    from slimdown.report import console

    place, name = (experiment, "files_of") if moment == "report" else (console, "progress_bar")
    original = getattr(place, name)

    def patched(*arguments: Any) -> Any:
        if moment in ("report", arguments[0]):
            fill(folder, left)
        return original(*arguments)

    setattr(place, name, patched)


@contextlib.contextmanager
def small_disk() -> Iterator[Path]:
    """A folder that is a disk of its own, in memory."""
    with scratch() as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", folder], check=False
        )
        if mounted.returncode:
            sys.exit(
                "only root may mount a small disk; in a namespace everybody is: unshare -rm python -m bench.attack"
            )
        try:
            yield folder
        finally:
            subprocess.run(["umount", folder], check=True)
