"""The real loading code on real models and data: run with `make test-hub`, against the hub or a mirror of it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from peft import LoraConfig

pytestmark = pytest.mark.hub

ENTRY = [sys.executable, "-m", "slimdown.run"]
STORIES = [
    "model=smollm2",
    "model.id=local/stories260K",
    "train.max_length=256",
    "benchmark.mmlu_cs.num_fewshot=0",
]
TINY = [
    "dataset.alpaca.max_examples=32",
    "dataset.alpaca.validation_examples=8",
    "benchmark.hellaswag.limit=8",
    "benchmark.gsm8k.limit=2",
    "benchmark.gsm8k.num_fewshot=1",
    "benchmark.mmlu_cs.limit=8",
]


def start(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*ENTRY, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, **environment},
    )


def tuned_run(client: MlflowClient) -> Run:
    """The one run of a tuned model; a base's evaluations lie in a run of their own."""
    experiments = [e.experiment_id for e in client.search_experiments()]
    [run] = client.search_runs(experiments, "tags.`slimdown.kind` = 'tuned'")
    return run


@pytest.fixture(scope="module")
def smollm2(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run of SmolLM2 on Alpaca rows and the paper's three benchmarks; the folder it was made in."""
    folder = tmp_path_factory.mktemp("smollm2")
    (folder / "mlruns").mkdir()
    (folder / "mlruns" / "mlflow.db").write_bytes(migrated_store.read_bytes())
    done = start(folder, "model=smollm2", *TINY)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_real_model_is_trained_and_measured(smollm2: Path) -> None:
    client = MlflowClient(f"sqlite:///{smollm2}/mlruns/mlflow.db")
    run = tuned_run(client)
    metrics, tags = run.data.metrics, run.data.tags
    assert metrics["train/validation_loss_after"] < metrics["train/validation_loss_before"]
    assert {
        "base/hellaswag/acc_norm",
        "tuned/gsm8k/flexible_accuracy",
        "forgetting/mmlu_cs/knowledge_loss",
    } <= set(metrics)
    assert re.fullmatch("[0-9a-f]{40}", tags["slimdown.model_revision"])
    # 30 layers, r 8: queries 576 -> 576, keys and values 576 -> 192
    assert metrics["train/n_trainable"] == 30 * 8 * ((576 + 576) + 2 * (576 + 192))


def test_base_scores_are_those_of_the_stock_harness(smollm2: Path, tmp_path: Path) -> None:
    """The same weights, values and questions, asked by `lm_eval` itself in a process of its own."""
    client = MlflowClient(f"sqlite:///{smollm2}/mlruns/mlflow.db")
    run = tuned_run(client)
    script = (
        "import lm_eval, torch, transformers\n"
        "from lm_eval.models.huggingface import HFLM\n"
        "quantization = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4',\n"
        "    bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=getattr(torch, DTYPE))\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(\n"
        "    'HuggingFaceTB/SmolLM2-135M-Instruct', quantization_config=quantization, dtype=getattr(torch, DTYPE),\n"
        "    device_map='cpu')\n"
        "for module in model.modules():\n"
        "    if hasattr(module, 'support_avx512bf16_for_cpu'): module.support_avx512bf16_for_cpu = False\n"
        "lm = HFLM(pretrained=model, tokenizer='HuggingFaceTB/SmolLM2-135M-Instruct', batch_size=16)\n"
        "for task, shots, metric in (('hellaswag', 0, 'acc_norm'), ('mmlu_college_computer_science', 5, 'acc')):\n"
        "    found = lm_eval.simple_evaluate(model=lm, tasks=[task], num_fewshot=shots, limit=8)\n"
        "    print('SCORE', task, found['results'][task][metric + ',none'])\n"
    ).replace("DTYPE", repr(run.data.tags["slimdown.dtype"]))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    scores = dict(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("SCORE"))
    assert float(scores["hellaswag"]) == run.data.metrics["base/hellaswag/acc_norm"]
    assert float(scores["mmlu_college_computer_science"]) == run.data.metrics["base/mmlu_cs/acc"]


LOAD = """
import sys
import mlflow
uri = f"runs:/{sys.argv[1]}/adapter"
ask = ["The capital of France is"]
as_measured = mlflow.pyfunc.load_model(uri).predict(ask, params={"max_new_tokens": 8})
unquantized = mlflow.transformers.load_model(uri)(ask, max_new_tokens=8, do_sample=False)
print("ANSWERS", "Paris" in as_measured[0], "Paris" in unquantized[0][0]["generated_text"])
"""


def test_mlflow_loads_the_adapter_on_its_base_of_the_hub(smollm2: Path) -> None:
    run = tuned_run(MlflowClient(f"sqlite:///{smollm2}/mlruns/mlflow.db"))
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{smollm2}/mlruns/mlflow.db"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, run.info.run_id], cwd=smollm2, env={**os.environ, **store}, capture_output=True,
        text=True, timeout=600,
    )  # fmt: skip
    assert "ANSWERS True True" in done.stdout, done.stderr


def test_merged_it_is_as_large_as_published_and_its_card_names_base_data_and_licence(
    smollm2: Path, tmp_path: Path
) -> None:
    from huggingface_hub import ModelCard, hf_hub_download
    from transformers import AutoModelForCausalLM

    run = tuned_run(MlflowClient(f"sqlite:///{smollm2}/mlruns/mlflow.db"))
    merge = [
        sys.executable,
        "-m",
        "slimdown.merge",
        run.info.run_id,
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(merge, cwd=smollm2, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    data = ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()
    assert data["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data["base_model_relation"] == "finetune"
    assert data["datasets"] == ["tatsu-lab/alpaca"]
    assert data["license"] == "apache-2.0"
    [adapters] = (smollm2 / "mlruns").rglob("README.md")
    measured = ModelCard.load(adapters).data.to_dict()["model-index"][0]["results"]
    datasets = {result["dataset"]["type"] for result in measured}
    assert datasets == {"Rowan/hellaswag", "openai/gsm8k", "cais/mmlu"}
    published = Path(hf_hub_download(data["base_model"], "model.safetensors")).stat().st_size
    assert abs((tmp_path / "out" / "model.safetensors").stat().st_size - published) < 10_000
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.tie_word_embeddings


def test_any_causal_model_and_dataset_of_the_hub_will_do(
    store: MlflowClient, tmp_path: Path
) -> None:
    arguments = [
        *STORIES, "dataset=[dolly,gsm8k_train]", "benchmark=[mmlu_cs]", "benchmark.mmlu_cs.limit=8",
        "dataset.dolly.max_examples=16", "dataset.gsm8k_train.max_examples=16",
    ]  # fmt: skip
    done = start(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    run = tuned_run(store)
    for environment in (
        {},
        {"HF_HUB_OFFLINE": "1"},
    ):  # known by its commits, as the hub or its cache says
        assert (
            f"finished before: run {run.info.run_id}"
            in start(tmp_path, *arguments, **environment).stdout
        )
    assert {d.dataset.name for d in run.inputs.dataset_inputs} == {"dolly", "gsm8k_train"}
    assert run.data.metrics["train/n_train"] == 32


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["model=llama32"], "is gated: accept its licence at https://huggingface.co/meta-llama/Llama-3.2-1B"),
        (["model=smollm2", "model.id=nobody/no-such-model"], "there is no such model on the hub"),
        ([*STORIES, "model.revision=v9"], "has no such branch, tag or commit"),
        ([*STORIES, "dataset=[alpaca]", "dataset.alpaca.path=nobody/no-rows"], "there is no dataset nobody/no-rows"),
        ([*STORIES, "dataset.alpaca.output=answer"], "there is no column answer; there are instruction, input, output"),
        ([*STORIES[:2], "train.max_length=4096"], "train.max_length=4096 is beyond the 512 tokens"),
        ([*STORIES, "dataset.alpaca.template=chat"], "this model's tokenizer has no chat template"),
        ([*STORIES, "benchmark=[gsm8k,mmlu_cs]", "benchmark.gsm8k.limit=20"],
         "num_fewshot=5: the longest prompt of gsm8k has"),
        (["model=smollm2", "tuned=nobody/no-adapter"], "tuned=nobody/no-adapter: there is no such model on the hub"),
        (["model=smollm2", "tuned=meta-llama/Llama-3.2-1B"], "tuned=meta-llama/Llama-3.2-1B is gated"),
        (["model=smollm2", "tuned=local/stories260K"], "has another tokenizer than HuggingFaceTB/SmolLM2-135M-"),
        (["model=smollm2", "tuned=local/stories260K@v9"], "local/stories260K has no such branch, tag or commit as v9"),
    ],
)  # fmt: skip
def test_the_hubs_refusals_say_what_to_do(
    arguments: list[str], answer: str, store: MlflowClient, tmp_path: Path
) -> None:
    done = start(tmp_path, *arguments)
    assert done.returncode == 1
    assert answer in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    run = tuned_run(store)
    assert run.info.status == "FAILED"


def test_a_model_of_the_hub_against_itself_has_not_changed(
    store: MlflowClient, tmp_path: Path
) -> None:
    same = "HuggingFaceTB/SmolLM2-135M-Instruct"
    done = start(tmp_path, "model=smollm2", f"tuned={same}@main", *TINY[2:])
    assert done.returncode == 0, done.stderr
    run = tuned_run(store)
    assert run.data.tags["slimdown.origin"] == f"{same}@{run.data.tags['slimdown.model_revision']}"
    changes = {key: value for key, value in run.data.metrics.items() if key.endswith("/change")}
    assert set(changes.values()) == {0.0}
    assert len(changes) == 3


@pytest.mark.parametrize(
    ("made_on", "answer"),
    [
        (
            "meta-llama/Llama-3.2-1B",
            "was made on meta-llama/Llama-3.2-1B, and the base is HuggingFaceTB/SmolLM2-135M-",
        ),
        ("runs/mine", "a .safetensors file is damaged or cut short"),  # no id: by its weights then
    ],
)
def test_an_adapter_for_another_base_is_refused_by_that_bases_id(
    made_on: str, answer: str, store: MlflowClient, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    LoraConfig(base_model_name_or_path=made_on, target_modules=["q_proj"]).save_pretrained(folder)
    (folder / "adapter_model.safetensors").write_text("")
    done = start(tmp_path, "model=smollm2", "tuned=adapter", "benchmark=[mmlu_cs]")
    assert done.returncode == 1
    assert answer in " ".join(done.stderr.split())
    assert not any(key.startswith("base/") for key in tuned_run(store).data.metrics)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["benchmark=[pocket_math]"], "cannot be reached"),  # the model
        ([], "the data of hellaswag cannot be had"),
    ],
)
def test_a_hub_that_does_not_answer_is_named(
    arguments: list[str], answer: str, store: MlflowClient, tmp_path: Path
) -> None:
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "empty")}
    done = start(tmp_path, "model=smollm2", *arguments, **nowhere)
    assert done.returncode == 1
    assert answer in done.stderr
    assert "the embedded world, which needs none: python -m slimdown.run" in " ".join(
        done.stderr.split()
    )
    assert "Traceback" not in done.stderr


def test_the_harness_own_logs_of_a_runs_two_models_are_judged_as_the_run_is(
    store: MlflowClient, tmp_path: Path
) -> None:
    tasks = {"hellaswag": "hellaswag", "gsm8k": "gsm8k", "mmlu_cs": "mmlu_college_computer_science"}
    asked = [f"benchmark.{name}.{key}" for name in tasks for key in ("limit=16", "num_fewshot=0")]
    done = start(
        tmp_path,
        *STORIES[:3],
        *TINY[:2],
        *asked,
        "quantization=none",
        "model.dtype=float32",
        "model.device=cpu",
    )
    assert done.returncode == 0, done.stderr
    run = tuned_run(store)
    (adapter,) = tmp_path.glob("mlruns/**/adapter_config.json")
    model = "pretrained=local/stories260K,dtype=float32"
    for name, arguments in (("base", model), ("tuned", f"{model},peft={adapter.parent}")):
        subprocess.run(
            [
                *(
                    sys.executable,
                    "-m",
                    "lm_eval",
                    "run",
                    "--model",
                    "hf",
                    "--model_args",
                    arguments,
                ),
                *(
                    "--tasks",
                    ",".join(tasks.values()),
                    "--num_fewshot",
                    "0",
                    "--limit",
                    "16",
                    "--batch_size",
                    "8",
                ),
                *("--device", "cpu", "--log_samples", "--output_path", name),
            ],
            cwd=tmp_path,
            check=True,
            timeout=900,
        )
    command = [sys.executable, "-m", "slimdown.verdict", "base", "tuned", "--format", "json"]
    judged = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = {
        row["benchmark"]: row for row in json.loads(judged.stdout)["benchmarks"] if row["verdict"]
    }
    kept = {
        "change": "change",
        "change_low": "change_low",
        "change_high": "change_high",
        "p_value": "p_value",
    }
    kept |= {
        "equivalence_p_value": "equivalence_p_value",
        "lost": "lost",
        "gained": "gained",
        "n": "n",
    }
    kept |= {"forgetting_rate": "forgetting_rate_above_chance"}
    for name, task in tasks.items():
        recorded = {
            key: run.data.metrics.get(f"forgetting/{name}/{of}") for key, of in kept.items()
        }
        assert {key: rows[task][key] for key in kept} == recorded
        assert rows[task]["verdict"] == run.data.tags[f"slimdown.verdict.{name}"]
        for model in ("base", "tuned"):
            assert rows[task][model] == run.data.metrics[f"{model}/{name}/{rows[task]['metric']}"]
