"""Store what slimdown answers, so that a later commit can be compared with it.

    PYTHONPATH=.:tests python -m golden.make CASE ...

A case is `adapters`, `logs`, `verdict`, or a name in `CASES`. Put an older checkout in the place of
`.` to store what that one answers. `tests/test_golden.py` runs the cases on today's code and
compares. Commit b655a84 wrote the files that lie here; commit 65973894 has what stored them.

A file `CASE.json.xz` holds the answers of the base and, by run, those of the tuned model: by
benchmark and question (task and document hash) the score of each metric, the log-likelihoods
(nats, four decimals) and the generated text. It also holds each run's findings (verdict, counts,
change of the primary metric) and validation losses. `adapters/` holds adapters that b655a84
trained. `lm_eval.tar.xz` holds what `lm_eval --log_samples` wrote about the pocket model and the
adapter `pocket`.
"""

import json
import lzma
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from builders import unpack_logs
from commands_and_runs import call_verb, succeed
from mlflow import MlflowClient
from stock_harness import run_lm_eval

HERE = Path(__file__).parent
ADAPTERS = HERE / "adapters"
POCKET = ("pocket_instructions", "pocket_math", "pocket_commonsense", "pocket_cs")
FIRST_40 = [f"benchmark.{name}.limit=40" for name in POCKET]
SHORT = ["train.max_steps=30", *FIRST_40]
GIVEN = ("rslora", "dora", "prefix", "prompt", "ia3")  # methods whose trained adapters are kept
# `pocket` with its alpha of 16 lowered: six models between base and tuned
ALPHAS = (2, 4, 6, 8, 10, 12)
RETAINED = ("pocket_math", "pocket_commonsense", "pocket_cs")
NF4 = "quantization=nf4"  # that the adapters were trained on
BUDGETS = [f"--max-loss={name}=0.1" for name in RETAINED]
SMOLLM2 = [
    "model=smollm2",
    "model.dtype=float32",
    "quantization.bnb_4bit_compute_dtype=float32",
    "benchmark=[hellaswag,mmlu_cs,gsm8k]",
    "benchmark.hellaswag.limit=40",
    "benchmark.mmlu_cs.limit=40",
    "benchmark.gsm8k.limit=8",
]
SMOLLM2_TRAINING = [
    "model=smollm2",
    "model.dtype=float32",
    "benchmark=[mmlu_cs]",
    "benchmark.mmlu_cs.limit=1",
    "lora.r=1",
    "lora.target_modules=[v_proj]",
    "train.max_steps=12",
    "train.learning_rate=5e-3",
    "dataset.alpaca.max_examples=120",
    "dataset.alpaca.validation_examples=4",
]
CASES: dict[str, list[str]] = {
    "pocket": [],
    "methods": ["-m", "method=lora,rslora,dora,prefix,prompt,ia3,bottleneck", *SHORT],
    "weights": ["-m", "method=last_layer,full", "quantization=none", *SHORT],
    "tuned": [f"tuned={ADAPTERS / 'pocket'}", NF4],
    "given": ["-m", "tuned=" + ",".join(str(ADAPTERS / name) for name in GIVEN), NF4, *FIRST_40],
    "decided": [f"tuned={ADAPTERS / 'pocket'}", NF4, "evaluation.until=decided"],
    "six": ["-m", "tuned=" + ",".join(f"alpha_{n}" for n in ALPHAS), NF4]
    + [f"benchmark.{name}.limit=100" for name in POCKET],
    "smollm2": [f"tuned={ADAPTERS / 'smollm2'}", NF4, *SMOLLM2],
}
"""The arguments of `slimdown run` by case; `verdict` is the one case without a run."""


TRAINING = ("validation_loss_before", "validation_loss_after", "n_trainable")
"""Of what a training recorded, that which another code must agree with."""


def run_case(case: str, folder: Path, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Run one case in `folder`, by default with its arguments in `CASES`; read what it recorded."""
    if case == "verdict":
        return {"verdict": judge_logs(folder)}
    if case == "six":
        write_scaled_adapters(folder)
    succeed(folder, "run", *(arguments or CASES[case]))
    results = read_runs(folder)
    if case == "six":
        compared = succeed(folder, "compare", "--format", "json")
        results["compare"] = json.loads(compared.stdout)
        results["check"] = {
            name: {"exit": call_verb(folder, "check", run["id"], *BUDGETS).returncode}
            for name, run in results["runs"].items()
        }
    return results


def write_scaled_adapters(folder: Path) -> None:
    """Write `pocket` with each lower alpha: models that lose more and more of the base."""
    config = json.loads((ADAPTERS / "pocket" / "adapter_config.json").read_text())
    for alpha in ALPHAS:
        scaled = folder / f"alpha_{alpha}"
        shutil.copytree(ADAPTERS / "pocket", scaled)
        (scaled / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": alpha}))


def read_runs(folder: Path) -> dict[str, Any]:
    """Read base answers and, by tuned run, id, answers and findings from the store in `folder`."""
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    base: dict[str, Any] = {}
    runs: dict[str, Any] = {}
    for run in client.search_runs(experiments):
        artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
        samples = read_samples(artifacts)
        base |= samples["base"]
        if samples["tuned"]:
            config = json.loads((artifacts / "settings.json").read_text())["settings"]
            name = Path(config["tuned"]).name if config["tuned"] else config["method"]["name"]
            findings = json.loads((artifacts / "findings.json").read_text())
            training = findings["training"] or {}
            changes = findings["benchmarks"].items()
            runs[name] = {
                "id": run.info.run_id,
                "tuned": samples["tuned"],
                "findings": {benchmark: flatten_change(change) for benchmark, change in changes},
                "training": {key: training[key] for key in TRAINING if key in training},
            }
    return {"base": base, "runs": runs}


def read_samples(artifacts: Path) -> dict[str, Any]:
    """Read `samples/*.parquet`: by model and benchmark, what was answered to each document."""
    answers: dict[str, Any] = {"base": {}, "tuned": {}}
    for file in sorted(artifacts.glob("samples/*.parquet")):
        for row in pq.read_table(file).to_pylist():
            documents = answers[row["model"]].setdefault(row["benchmark"], {})
            answer = documents.setdefault(
                f"{row['task']}:{row['doc_hash'][:16]}",
                {
                    "log_likelihoods": [round(value, 4) for value in row["log_likelihoods"]],
                    "text": row["response"],
                    "scores": {},
                    "prompt": row["prompt"],
                },
            )
            answer["scores"][row["metric"]] = row["score"]
    return answers


def flatten_change(change: dict[str, Any]) -> dict[str, Any]:
    """Name the numbers of one benchmark of `findings.json` as b655a84 named its metrics."""
    primary = change["changes"][change["metric"]]
    counts = primary["counts"] or {
        "still_right": None,
        "lost": None,
        "gained": None,
        "missed": None,
    }
    return {
        "verdict": change["verdict"],
        "n": change["n"],
        "change": primary["difference"]["value"],
        "mcnemar_p_value": primary["difference"].get("mcnemar_p_value"),
        "kept": counts["still_right"],
        **{key: counts[key] for key in ("lost", "gained", "missed")},
    }


def judge_logs(folder: Path) -> dict[str, Any]:
    """Return the exit code and the rows of `verdict BASE TUNED` on the stored logs."""
    done = call_verb(folder, "verdict", *unpack_logs(folder), "--format", "json", *BUDGETS)
    return {"exit": done.returncode, "rows": json.loads(done.stdout)}


def store_adapter(name: str, overrides: Sequence[str]) -> None:
    """Train an adapter and keep its folder as `adapters/NAME`."""
    with tempfile.TemporaryDirectory() as folder:
        succeed(Path(folder), "run", *overrides)
        (config,) = Path(folder).glob("mlruns/**/adapter_config.json")
        (ADAPTERS / name).mkdir(parents=True, exist_ok=True)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(config.parent / file, ADAPTERS / name / file)


def store_logs() -> None:
    """Keep what `lm_eval --log_samples` writes about the pocket model and the adapter `pocket`."""
    archive = HERE / "lm_eval.tar.xz"
    with tempfile.TemporaryDirectory() as folder, tarfile.open(archive, "w:xz") as logs:
        for name, adapter in (("base", None), ("tuned", str(ADAPTERS / "pocket"))):
            run_lm_eval(Path(folder, name), list(POCKET[1:]), adapter=adapter, limit=40)
            logs.add(Path(folder, name), name)


def write(case: str, results: dict[str, Any]) -> None:
    """Write one case without prompts and run ids, which no comparison reads."""
    runs = results.get("runs", {}).values()
    for answers in (results.get("base", {}), *(run["tuned"] for run in runs)):
        for documents in answers.values():
            for answer in documents.values():
                del answer["prompt"]
    for run in runs:
        del run["id"]
    text = json.dumps(results, ensure_ascii=False, separators=(",", ":"))
    (HERE / f"{case}.json.xz").write_bytes(lzma.compress(text.encode()))


def main() -> None:
    """Store the cases named on the command line."""
    for case in sys.argv[1:]:
        if case == "adapters":
            store_adapter("pocket", [])
            for method in GIVEN:
                size = ["lora.r=2"] if method in ("rslora", "dora") else []
                store_adapter(method, [f"method={method}", *size, *SHORT])
        elif case == "smollm2_adapter":
            store_adapter("smollm2", SMOLLM2_TRAINING)
        elif case == "logs":
            store_logs()
        else:
            with tempfile.TemporaryDirectory() as folder:
                write(case, run_case(case, Path(folder)))
        print(f"stored {case}", flush=True)


if __name__ == "__main__":
    main()
