"""Store what a checkout of slimdown answers, so that a later one can be compared with it.

    python tests/golden/make.py --checkout /path/to/old        every case of the pocket world
    HF_ENDPOINT=... python tests/golden/make.py --checkout /path/to/old smollm2    needs the hub

It calls public commands only (`python -m slimdown.run ...`, `python -m slimdown compare ...`), in
folders of its own, and reads samples and findings among the artifacts of their MLflow runs.
`CASES` names the cases. `tests/test_golden.py` runs them on today's code and compares. Commit
b655a84 wrote the files that lie here.

A file `CASE.json.xz` holds the answers of the base and, by run, those of the tuned model: by
benchmark and question (task and document hash) the score of each metric, the log-likelihoods
(nats, four decimals) and the generated text. It also holds each run's findings (verdict, counts,
p-values, interval of the primary metric) and validation losses. `adapters/` holds adapters that
b655a84 trained. `lm_eval.tar.xz` holds what `lm_eval --log_samples` wrote about the pocket model
and the adapter `pocket`.
"""

import argparse
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from mlflow import MlflowClient

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
"""The arguments of `python -m slimdown.run` by case; `verdict` is the one case without a run."""


def call(
    module: str, arguments: Sequence[str], folder: Path, checkout: Path
) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS` with the checkout's code, in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "TQDM_DISABLE": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    if "HF_ENDPOINT" not in environment:
        environment["HF_HUB_OFFLINE"] = "1"
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True)


def run_case(case: str, folder: Path, checkout: Path) -> dict[str, Any]:
    """Run one case in `folder` and read what its runs recorded."""
    if case == "verdict":
        return {"verdict": judge_logs(folder, checkout)}
    if case == "six":
        write_scaled_adapters(folder)
    done = call("slimdown.run", CASES[case], folder, checkout)
    if done.returncode:
        raise SystemExit(f"case {case} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    results = read_runs(folder)
    if case == "six":
        results["compare"] = compare_runs(folder, checkout)
        results["check"] = {
            name: check_run(run["id"], folder, checkout) for name, run in results["runs"].items()
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
            runs[name] = {
                "id": run.info.run_id,
                "tuned": samples["tuned"],
                "findings": read_findings(run, artifacts),
                "training": read_training(run, artifacts),
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


def read_findings(run: Any, artifacts: Path) -> dict[str, dict[str, Any]]:
    """Read verdict, counts, p-values and interval of each benchmark's primary metric.

    Today's runs keep them in `findings.json`; b655a84 kept them in metrics and tags.
    """
    file = artifacts / "findings.json"
    if file.is_file():
        recorded = json.loads(file.read_text())["benchmarks"]
        return {name: flatten_change(change) for name, change in recorded.items()}
    found: dict[str, dict[str, Any]] = {}
    for key, value in run.data.metrics.items():
        group, _, rest = key.partition("/")
        name, _, quantity = rest.partition("/")
        if group == "forgetting" and quantity:
            found.setdefault(name, {})[quantity] = value
    for name, values in found.items():
        values["verdict"] = run.data.tags.get(f"slimdown.verdict.{name}", "")
        values["mcnemar_p_value"] = values.get("p_value_raw")
    return found


def flatten_change(change: dict[str, Any]) -> dict[str, Any]:
    """Name the numbers of one benchmark of `findings.json` as b655a84 named its metrics."""
    primary = change["changes"][change["metric"]]
    difference, counts = primary["difference"], primary["counts"] or {}
    return {
        "verdict": change["verdict"],
        "n": change["n"],
        "change": difference["value"],
        "change_low": difference["low"],
        "change_high": difference["high"],
        "p_value": change["p_value"],
        "equivalence_p_value": change["equivalence_p_value"],
        "mcnemar_p_value": difference.get("mcnemar_p_value"),
        **({"kept": counts["still_right"]} if counts else {}),
        **{key: counts[key] for key in ("lost", "gained", "missed") if key in counts},
    }


def read_training(run: Any, artifacts: Path) -> dict[str, float]:
    """Read what training recorded, as far as another code must agree with it."""
    file = artifacts / "findings.json"
    if file.is_file():
        recorded = json.loads(file.read_text())["training"] or {}
    else:
        recorded = {key.removeprefix("train/"): value for key, value in run.data.metrics.items()}
    keys = ("validation_loss_before", "validation_loss_after", "n_trainable")
    return {key: recorded[key] for key in keys if key in recorded}


def call_verb(
    verb: str, arguments: Sequence[str], folder: Path, checkout: Path
) -> subprocess.CompletedProcess[str]:
    """Run `python -m slimdown VERB ...`; b655a84 spelled it `python -m slimdown.VERB ...`."""
    if (checkout / "slimdown" / "__main__.py").is_file():
        return call("slimdown", [verb, *arguments], folder, checkout)
    return call(f"slimdown.{verb}", arguments, folder, checkout)


def compare_runs(folder: Path, checkout: Path) -> Any:
    """Return the rows of `compare --format json`."""
    done = call_verb("compare", ["--format", "json"], folder, checkout)
    if done.returncode:
        raise SystemExit(f"compare failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout)


def check_run(run_id: str, folder: Path, checkout: Path) -> dict[str, Any]:
    """Return the exit code and the words of `check RUN --max-loss ...`."""
    done = call_verb("check", [run_id, *BUDGETS], folder, checkout)
    return {"exit": done.returncode, "output": done.stdout}


def judge_logs(folder: Path, checkout: Path) -> dict[str, Any]:
    """Return the exit code and the rows of `verdict BASE TUNED` on the stored logs."""
    with tarfile.open(HERE / "lm_eval.tar.xz") as logs:
        logs.extractall(folder, filter="data")
    arguments = ["base", "tuned", "--format", "json", *BUDGETS]
    done = call_verb("verdict", arguments, folder, checkout)
    if not done.stdout:
        raise SystemExit(f"verdict failed:\n{done.stderr[-3000:]}")
    return {"exit": done.returncode, "rows": json.loads(done.stdout)}


def store_adapter(name: str, overrides: Sequence[str], checkout: Path) -> None:
    """Train an adapter and keep its folder as `adapters/NAME`."""
    with tempfile.TemporaryDirectory() as folder:
        done = call("slimdown.run", overrides, Path(folder), checkout)
        if done.returncode:
            raise SystemExit(
                f"training {name} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            )
        (config,) = Path(folder).glob("mlruns/**/adapter_config.json")
        (ADAPTERS / name).mkdir(parents=True, exist_ok=True)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(config.parent / file, ADAPTERS / name / file)


def store_logs(checkout: Path) -> None:
    """Keep what `lm_eval --log_samples` writes about the pocket model and the adapter `pocket`."""
    model = checkout / "slimdown" / "pocket" / "model"
    tasks = checkout / "slimdown" / "pocket" / "tasks"
    with tempfile.TemporaryDirectory() as folder:
        for name, peft in (("base", ""), ("tuned", f",peft={ADAPTERS / 'pocket'}")):
            arguments = [
                "run",
                "--model",
                "hf",
                "--tasks",
                *POCKET[1:],
                "--include_path",
                str(tasks),
            ]
            arguments += ["--model_args", f"pretrained={model},dtype=float32{peft}"]
            arguments += ["--device", "cpu", "--batch_size", "16", "--limit", "40"]
            arguments += ["--log_samples", "--output_path", name]
            done = call("lm_eval", arguments, Path(folder), checkout)
            if done.returncode:
                raise SystemExit(f"lm_eval failed:\n{done.stderr[-3000:]}")
        with tarfile.open(HERE / "lm_eval.tar.xz", "w:xz") as logs:
            for name in ("base", "tuned"):
                logs.add(Path(folder, name), name)


def write(case: str, results: dict[str, Any]) -> None:
    """Write one case without prompts and run ids, which no comparison reads."""
    for answers in (
        results.get("base", {}),
        *(run["tuned"] for run in results.get("runs", {}).values()),
    ):
        for documents in answers.values():
            for answer in documents.values():
                del answer["prompt"]
    for run in results.get("runs", {}).values():
        del run["id"]
    text = json.dumps(results, ensure_ascii=False, separators=(",", ":"))
    (HERE / f"{case}.json.xz").write_bytes(lzma.compress(text.encode()))


def main() -> None:
    """Store the cases named on the command line, or all that need no hub."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help=f"adapters, logs, verdict, {', '.join(CASES)}"
    )
    parser.add_argument("--checkout", type=Path, default=HERE.parent.parent)
    options = parser.parse_args()
    checkout = options.checkout.resolve()
    for case in options.cases or [
        "adapters",
        "logs",
        "verdict",
        *(c for c in CASES if c != "smollm2"),
    ]:
        if case == "adapters":
            store_adapter("pocket", [], checkout)
            for method in GIVEN:
                size = ["lora.r=2"] if method in ("rslora", "dora") else []
                store_adapter(method, [f"method={method}", *size, *SHORT], checkout)
        elif case == "smollm2_adapter":
            store_adapter("smollm2", SMOLLM2_TRAINING, checkout)
        elif case == "logs":
            store_logs(checkout)
        else:
            with tempfile.TemporaryDirectory() as folder:
                write(case, run_case(case, Path(folder), checkout))
        print(f"stored {case}", flush=True)


if __name__ == "__main__":
    main()
