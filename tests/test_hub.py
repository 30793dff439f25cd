"""The real loading code on real models and data: `make test-hub`, against the hub or a mirror."""

import json
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pandas as pd
import pytest
import torch
import torch.nn.functional as functional
from commands_and_runs import (
    call_verb,
    find_run_id,
    find_runs,
    find_trained,
    read_findings,
    run_command,
    succeed,
)
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from mlflow import MlflowClient
from mlflow.entities import Run
from peft import LoraConfig, get_peft_model
from record_builders import Capture, compose_config, copy_store
from stock_harness import ask_harness, run_lm_eval
from tiny_models import load_in_4bit
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.write_gguf import write_gguf
from slimdown.commands import doctor
from slimdown.models.base_model import load_base_model
from slimdown.models.external import open_tuned_model

pytestmark = pytest.mark.hub

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
STORIES = [
    "model=smollm2",
    "model.id=local/stories260K",
    "train.max_length=256",
    "benchmark.mmlu_cs.num_fewshot=0",
]
TINY = [
    "dataset.alpaca.max_examples=32",
    "dataset.alpaca.validation_examples=3",
    "benchmark.hellaswag.limit=8",
    "benchmark.gsm8k.limit=2",
    "benchmark.gsm8k.num_fewshot=1",
    "benchmark.mmlu_cs.limit=8",
]


def find_run(client: MlflowClient) -> Run:
    [run] = find_runs(client)
    return run


@pytest.fixture(scope="module")
def smollm2(
    migrated_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The folder and the findings of a run of SmolLM2 on Alpaca and the paper's benchmarks.

    It takes a minute: the tests that read it are a group, which one process of xdist runs.
    """
    folder = copy_store(migrated_store, tmp_path_factory.mktemp("smollm2"))
    done = run_command(folder, "slimdown.run", "model=smollm2", *TINY)
    assert done.returncode == 0, done.stderr
    return folder, read_findings(folder, done)


@pytest.fixture
def smollm2_run(smollm2: tuple[Path, dict[str, Any]]) -> Run:
    return find_run(MlflowClient(f"sqlite:///{smollm2[0]}/mlruns/mlflow.db"))


@pytest.mark.xdist_group("smollm2")
def test_a_real_model_is_trained_and_measured(smollm2: tuple[Path, dict[str, Any]]) -> None:
    _, findings = smollm2
    training = findings["training"]
    assert training["validation_loss_after"] < training["validation_loss_before"]
    assert set(findings["benchmarks"]) == {"hellaswag", "gsm8k", "mmlu_cs"}
    # 30 layers, rank 8: queries 576 -> 576, keys and values 576 -> 192
    assert training["n_trainable"] == 30 * 8 * ((576 + 576) + 2 * (576 + 192))


@pytest.mark.xdist_group("smollm2")
def test_base_answers_are_those_of_the_stock_harness(
    smollm2: tuple[Path, dict[str, Any]], smollm2_run: Run
) -> None:
    """The same weights and questions, asked by lm_eval itself.

    Where a processor computes in bfloat16, a near tie can fall either way: the likelihoods of the
    answers are compared within its rounding there, and the scores only in float32.
    """
    dtype = smollm2_run.data.tags["slimdown.model"].split()[-1]
    model = load_in_4bit(SMOLLM2, getattr(torch, dtype), device_map="cpu")
    lm = HFLM(pretrained=model, tokenizer=SMOLLM2, batch_size=16, softmax_dtype="float32")
    harness = Path(lm_eval.tasks.__file__).parent
    include: list[str | Path] = [harness / "hellaswag", harness / "mmlu" / "default"]
    manager = TaskManager(include_path=include, include_defaults=False)
    samples = Path(smollm2_run.info.artifact_uri.removeprefix("file://")) / "samples"
    relative, absolute = (0.02, 0.25) if dtype == "bfloat16" else (1e-4, 0)
    for benchmark, task, n_shots, metric in [
        ("hellaswag", "hellaswag", 0, "acc_norm"),
        ("mmlu_cs", "mmlu_college_computer_science", 5, "acc"),
    ]:
        stock = ask_harness(
            model=lm, tasks=[task], num_fewshot=n_shots, limit=8, task_manager=manager
        )
        table = pd.read_parquet(samples / f"base-{benchmark}.parquet")
        ours = table.query("metric == @metric").set_index("doc_id").log_likelihoods
        assert sorted(ours.index) == list(range(8))
        for sample in stock["samples"][task]:
            answers = [answer[0][0] for answer in sample["resps"]]
            assert answers == pytest.approx(list(ours[sample["doc_id"]]), relative, absolute)
        if dtype == "float32":
            changes = smollm2[1]["benchmarks"][benchmark]["changes"]
            base = changes[metric]["base"]["value"]
            assert stock["results"][task][f"{metric},none"] == pytest.approx(base)


@pytest.mark.xdist_group("smollm2")
def test_a_merged_model_is_as_large_as_published_and_has_a_card(
    smollm2: tuple[Path, dict[str, Any]], smollm2_run: Run, tmp_path: Path
) -> None:
    from huggingface_hub import ModelCard, hf_hub_download

    out = tmp_path / "out"
    merge = [smollm2_run.info.run_id, "--dtype", "bfloat16"]  # a run's depends on the processor
    succeed(smollm2[0], "merge", *merge, "--out", str(out))
    data = ModelCard.load(out / "README.md").data.to_dict()
    assert data["base_model"] == SMOLLM2
    assert data["datasets"] == ["tatsu-lab/alpaca"]
    assert data["license"] == "apache-2.0"
    published = Path(hf_hub_download(SMOLLM2, "model.safetensors")).stat().st_size
    assert abs((out / "model.safetensors").stat().st_size - published) < 10_000
    assert AutoModelForCausalLM.from_pretrained(out).config.tie_word_embeddings


def test_a_recipe_trains_on_conversations_and_asks_through_the_template(
    store: MlflowClient, tmp_path: Path
) -> None:
    """One of Alpaca's first rows by this seed has an empty answer."""
    arguments = ["model=gemma3_1b", f"model.id={SMOLLM2}", "quantization=none"]
    rows = ["max_examples=24", "validation_examples=3"]
    arguments += [f"dataset.alpaca_chat.{setting}" for setting in rows]
    gsm8k = ["limit=2", "num_fewshot=1", "max_gen_toks=24"]
    arguments += ["benchmark=[gsm8k]", *(f"benchmark.gsm8k.{setting}" for setting in gsm8k)]
    done = succeed(tmp_path, "run", *arguments)
    assert "skipped: 1" in done.stdout
    template = find_trained(store, find_run_id(tmp_path, done)) / "chat_template.jinja"
    assert "<|im_start|>assistant" in template.read_text()
    assert read_findings(tmp_path, done)["conditions"]["gsm8k.apply_chat_template"] == "True"


def test_any_causal_model_and_dataset_of_the_hub_will_do(
    store: MlflowClient, tmp_path: Path
) -> None:
    arguments = [
        *STORIES,
        "dataset=[dolly,gsm8k_train]",
        "benchmark=[mmlu_cs]",
        "benchmark.mmlu_cs.limit=8",
        "dataset.dolly.max_examples=16",
        "dataset.gsm8k_train.max_examples=16",
    ]
    succeed(tmp_path, "run", *arguments)
    run = find_run(store)
    offline = run_command(tmp_path, "slimdown.run", *arguments, HF_HUB_OFFLINE="1")
    for again in (call_verb(tmp_path, "run", *arguments), offline):
        assert run.info.run_id in again.stdout
    assert find_run(store).info.run_id == run.info.run_id


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=llama32"], "https://huggingface.co/meta-llama/Llama-3.2-1B"),
        (["-m", "model=llama32,smollm2", "dataset.alpaca.path=no/rows"], "no/rows is not on"),
        (["model=smollm2", "model.id=nobody/no-model"], "nobody/no-model is not on the hub"),
        ([*STORIES, "model.revision=v9"], "revision=v9 has no such branch"),
        ([*STORIES, "dataset=[alpaca]", "dataset.alpaca.path=nobody/no-rows"], "is not on the hub"),
        ([*STORIES, "dataset.alpaca.output=answer"], "answer"),
        ([*STORIES, "dataset.alpaca.template=chat"], "chat template"),
        (
            [*STORIES[:3], "benchmark=[gsm8k]", "benchmark.gsm8k.limit=20"],
            "fewer examples (num_fewshot)",
        ),
        ([f"tuned={SMOLLM2}"], f"tuned={SMOLLM2} names no base"),
        (["model=smollm2", "tuned=nobody/no-adapter"], "no-adapter is not on the hub"),
        (["tuned=nobody/no-adapter@v1"], "tuned=nobody/no-adapter@v1 is not on the hub"),
        (["tuned=meta-llama/Llama-3.2-1B"], "gated"),
        (["model=smollm2", "tuned=meta-llama/Llama-3.2-1B"], "gated"),
        (["model=smollm2", "tuned=local/stories260K"], "tokenizer"),
        (["model=smollm2", "tuned=local/stories260K@v9"], "stories260K@v9 has no such branch"),
    ],
)
def test_a_refusal_of_the_hub_says_what_to_do(
    arguments: list[str], message: str, store: MlflowClient, tmp_path: Path
) -> None:
    done = call_verb(tmp_path, "run", *arguments)
    assert done.returncode == 1
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_the_doctor_says_which_models_can_be_read(tmp_path: Path, capsys: Capture) -> None:
    assert doctor.main(["--tracking-uri", f"sqlite:///{tmp_path}/new.db"]) == 0
    shown = capsys.readouterr().out
    assert f"model=smollm2: {SMOLLM2} can be read" in shown
    assert "model=qwen3_0.6b: " in shown
    assert "https://huggingface.co/meta-llama/Llama-3.2-1B" in shown


def test_a_model_of_the_hub_has_not_changed_from_itself(
    store: MlflowClient, tmp_path: Path
) -> None:
    done = succeed(tmp_path, "run", "model=smollm2", f"tuned={SMOLLM2}@main", *TINY[2:])
    benchmarks = read_findings(tmp_path, done)["benchmarks"]
    differences = [b["changes"][b["metric"]]["difference"]["value"] for b in benchmarks.values()]
    assert differences == [0, 0, 0]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained-looking LoRA of SmolLM2 by plain PEFT, with what PEFT writes beside it."""
    folder = tmp_path_factory.mktemp("plain") / "adapter"
    model = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype="float32")
    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    get_peft_model(model, config).save_pretrained(folder)
    return folder


def test_an_adapter_by_plain_peft_is_measured_on_its_base(
    adapter: Path, store: MlflowClient, tmp_path: Path
) -> None:
    settings = [f"tuned={adapter}", "benchmark=[arc_challenge,piqa]", "quantization=none"]
    settings += ["benchmark.arc_challenge.limit=8", "benchmark.piqa.limit=8", "model.dtype=float32"]
    done = succeed(tmp_path, "run", *settings)
    run = find_run(store)
    assert run.data.params["model.id"] == SMOLLM2
    assert run.info.run_name.startswith("SmolLM2-135M-Instruct tuned=")
    recorded = read_findings(tmp_path, done)["benchmarks"]
    for side, stock_adapter in (("base", None), ("tuned", str(adapter))):
        run_lm_eval(
            tmp_path / side,
            list(recorded),
            model=SMOLLM2,
            adapter=stock_adapter,
            topics=["arc", "piqa"],
            limit=8,
        )
        [file] = (tmp_path / side).rglob("results_*.json")
        results = json.loads(file.read_text())["results"]
        for name in recorded:
            score = recorded[name]["changes"]["acc_norm"][side]["value"]
            assert score == pytest.approx(results[name]["acc_norm,none"]), (name, side)


def test_a_gguf_file_of_a_real_model_computes_what_its_folder_does(tmp_path: Path) -> None:
    stock = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    text = "The capital of France is Paris. The capital of Italy is"
    tokens = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = stock(tokens).logits
        for kind in ("F32", "Q8_0", "Q4_0"):
            file = write_gguf(stock, tokenizer, tmp_path / f"{kind}.gguf", kind, pre="smollm")
            config = compose_config(f"tuned={file}", "model=smollm2", "model.dtype=float32")
            base = load_base_model(config.model, config.quantization)
            external = open_tuned_model(config, base)
            assert external.differences == []
            logits = external.load().model(tokens).logits
            assert (kind != "F32") or (logits - expected).abs().max() < 1e-4
            after, before = logits[0].log_softmax(-1), expected[0].log_softmax(-1)
            divergence = functional.kl_div(after, before, log_target=True, reduction="batchmean")
            # Without importance weights, four bits cost a small model much: 0.88 on the mirror.
            assert divergence < {"F32": 1e-6, "Q8_0": 0.05, "Q4_0": 2.0}[kind]
            file.unlink()


def test_ifeval_is_asked_by_its_name(adapter: Path, store: MlflowClient, tmp_path: Path) -> None:
    settings = [f"tuned={adapter}", "benchmark=[ifeval]", "benchmark.ifeval.limit=2"]
    settings.append("benchmark.ifeval.max_gen_toks=16")  # the task's own are 1,280
    done = succeed(tmp_path, "run", *settings)
    ifeval = read_findings(tmp_path, done)["benchmarks"]["ifeval"]
    assert (ifeval["metric"], ifeval["n"]) == ("prompt_level_strict_acc", 2)
