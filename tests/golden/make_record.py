"""Store a record and the defaults that its keys leave out, so that later commits can be held to it.

    python tests/golden/make_record.py
    python tests/golden/make_record.py --defaults     the defaults alone, after a new setting

It makes small runs of the pocket world by the public commands and keeps the folder `mlruns` as it
lies, with what the commands then said of it (`answers.json`) and what the keys of the base's
evaluations were made of (`keys.jsonl`). `tests/tracking/test_stored_record.py` reads them. Two
things are rewritten, so that nothing of the machine remains: the folder, to /records, and names.
"""

import json
import os
import platform
import socket
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from key_defaults import check_defaults, read_key_defaults
from safetensors.numpy import load_file

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
DEFAULTS, RECORD = HERE / "key_defaults.json", HERE / "record.tar.xz"
ROOT = "/records"
FEW_QUESTIONS = [
    "benchmark=[pocket_instructions,pocket_math,pocket_cs]",
    *(f"benchmark.pocket_{name}.limit=12" for name in ("instructions", "math", "cs")),
]
FEW_STEPS = [
    "dataset.pocket_instructions.max_examples=32",
    "dataset.pocket_instructions.validation_examples=4",
    "train.max_steps=12",
]
RUNS = {
    "lora": ["lora.r=2", *FEW_STEPS],
    "sweep": ["-m", "lora.r=1,2", "lora.target_modules=[v_proj]", *FEW_STEPS],
    "ia3": ["method=ia3", *FEW_STEPS],
    "tuned": ["tuned=adapter"],
}
"""What `python -m slimdown.run` got besides `FEW_QUESTIONS`."""
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
)
"""The tables and columns of the store that hold places."""
CHECK = ["--max-loss=0.5"]
SCALE = ["--scales=0.5,1", "--format=json"]
# Appends the parts of each key of an evaluation to keys.jsonl.
RUN_AND_KEEP_KEYS = """
import json, sys
from slimdown.evaluation import evaluation_cache
hash_json = evaluation_cache.hash_json
def hash_and_keep(parts):
    with open("keys.jsonl", "a") as file:
        file.write(json.dumps([hash_json(parts), *parts]) + "\\n")
    return hash_json(parts)
evaluation_cache.hash_json = hash_and_keep
from slimdown.run import main
sys.exit(main(sys.argv[1:]))
"""


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with this checkout's code in a folder, as a user called somebody."""
    own = {"PYTHONPATH": str(CHECKOUT), "XDG_CACHE_HOME": str(folder / "cache")}
    own |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "LOGNAME": "somebody", "COLUMNS": "200"}
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | own
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True)


def call_verb(folder: Path, *arguments: str) -> Any:
    """Return the exit code of `slimdown ...` and what it said: read, where it is JSON."""
    done = call(folder, "-m", "slimdown", *arguments)
    is_json = any("json" in argument for argument in arguments) and done.stdout
    output = json.loads(done.stdout) if is_json else done.stdout
    return {"exit": done.returncode, "says": output, "stderr": done.stderr}


def read_answers(folder: Path) -> dict[str, Any]:
    """Ask the verbs that read a record; `scale` adds its curve to the record."""
    with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as store:
        ids = dict(store.execute("SELECT name, run_uuid FROM runs"))
    trained = {
        name.partition(" dataset")[0]: id_ for name, id_ in ids.items() if "pocket" in name[:6]
    }
    answers: dict[str, Any] = {"ids": trained, "check": {}, "merge": {}}
    lora = trained["pocket lora.r=2"]
    answers["scale"] = call_verb(folder, "scale", lora, *SCALE)
    for name, id_ in trained.items():
        answers["check"][name] = call_verb(folder, "check", id_, *CHECK)
        answers["merge"][name] = merge(folder, id_)
    answers["compare"] = call_verb(folder, "compare", "--format=json", "--all")
    answers["status"] = call_verb(folder, "status", "--format=json")
    return answers


def merge(folder: Path, run_id: str) -> dict[str, float] | str:
    """Return the sum of squares of each merged tensor, or why there is none."""
    out = folder / f"merged-{run_id}"
    answer = call_verb(folder, "merge", run_id, f"--out={out}")
    if answer["exit"]:
        return str(answer["stderr"])
    tensors = load_file(out / "model.safetensors")
    return {name: float((value.astype("f8") ** 2).sum()) for name, value in tensors.items()}


def forget_machine(folder: Path) -> None:
    """Rewrite folder, host name and system in the store and the text files of its runs."""
    with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as store:
        for table, column in PLACES:
            text = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
            store.execute(text, (str(folder), ROOT))
        where = "UPDATE tags SET value = 'workstation' WHERE value = ?"
        store.execute(where, (socket.gethostname(),))
        store.commit()
        store.execute("VACUUM")
    names = {str(folder): ROOT, platform.platform(): platform.system()}
    for file in [*folder.glob("*.json*"), *folder.rglob("mlruns/artifacts/**/*.*")]:
        if file.suffix in (".json", ".jsonl", ".yaml", ".txt", ".md", ".html"):
            text = file.read_text("utf-8")
            for name, instead in names.items():
                text = text.replace(name, instead)
            file.write_text(text, "utf-8")


def main() -> None:
    """Make the record, and pack it with the defaults; `--defaults`: store these alone."""
    if problem := check_defaults(json.loads(DEFAULTS.read_text())):
        raise SystemExit(problem)
    if sys.argv[1:] == ["--defaults"]:
        DEFAULTS.write_text(json.dumps(read_key_defaults(), indent=1) + "\n")
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve()
        adapter = folder / "adapter"
        adapter.symlink_to(HERE / "adapters" / "dora")
        for name, arguments in RUNS.items():
            command = ["-c", RUN_AND_KEEP_KEYS, *arguments, *FEW_QUESTIONS]
            done = call(folder, *command)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        answers = read_answers(folder)
        (folder / "answers.json").write_text(json.dumps(answers, indent=1))
        forget_machine(folder)
        with tarfile.open(RECORD, "w:xz") as archive:
            for path in ("answers.json", "keys.jsonl", "mlruns/mlflow.db", "mlruns/artifacts"):
                archive.add(folder / path, path, filter=forget_owner)
    DEFAULTS.write_text(json.dumps(read_key_defaults(), indent=1) + "\n")
    print(f"stored {RECORD}, {RECORD.stat().st_size:,} bytes, and {DEFAULTS}")


def forget_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out who made a file."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main()
