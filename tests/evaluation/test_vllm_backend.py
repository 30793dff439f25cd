"""Answers that vLLM generates, from a stand-in for it: alike for base and tuned, or refused."""

import json
import multiprocessing
import shutil
from dataclasses import replace
from importlib.util import find_spec
from operator import eq
from pathlib import Path

import pytest
import vllm_stand_in
from builders import Compose, Patch
from mlflow import MlflowClient
from tiny_benchmarks import make_prompts

from slimdown import pocket
from slimdown.evaluation.vllm_backend import check_tuned, open_generator
from slimdown.judging.findings import Findings
from slimdown.models.base_model import LoadedModel, load_base_model
from slimdown.runs.experiment import run_experiment
from slimdown.runs.planning import plan_run
from slimdown.tracking.provenance import RunInfo
from slimdown.utils.devices import count_gpus
from slimdown.utils.errors import ConfigError, ModelError

ADAPTER = Path(__file__).parents[1] / "golden" / "adapters" / "pocket"
VLLM = ["evaluation.backend=vllm", "model.device=auto", "quantization=none"]
FEW = ["benchmark=[pocket_instructions,pocket_cs]"]
FEW += ["benchmark.pocket_instructions.limit=4", "benchmark.pocket_cs.limit=4"]


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: Patch) -> Patch:
    """A machine with vLLM and a GPU, as far as slimdown asks."""
    vllm_stand_in.write_packages(tmp_path / "packages")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (8, 10))
    return monkeypatch


@pytest.fixture
def quick(vllm: Patch) -> None:
    """Processes that find what they import; spawned ones take five seconds each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["slimdown.evaluation.vllm_backend", "vllm_stand_in", "peft"])
    vllm.setattr("slimdown.evaluation.vllm_backend.get_context", lambda kind: context)


@pytest.fixture
def base(vllm: Patch, composed: Compose) -> LoadedModel:
    config = composed(*VLLM)
    return load_base_model(config.model, config.quantization)


def read_responses(findings: Findings) -> list[list[str]]:
    """The responses of the base and of the tuned model to the first benchmark."""
    pair = [next(iter(e.benchmarks.values())) for e in (findings.base, findings.tuned) if e]
    return [[sample.response for sample in benchmark.samples] for benchmark in pair]


@pytest.mark.usefixtures("quick")
def test_a_run_gets_the_answers_of_transformers(store: MlflowClient, composed: Compose) -> None:
    settings = [*VLLM, *FEW, f"tuned={ADAPTER}"]
    findings = run_experiment(composed(*settings), RunInfo("vllm"))
    expected = run_experiment(composed(*settings, "evaluation.backend=hf"), RunInfo("hf"))
    base, tuned = read_responses(findings)
    assert [base, tuned] == read_responses(expected)
    assert base != tuned
    assert "vllm 0.99, " in findings.conditions["backend"]
    assert "vllm-bnb-plugin 0.1" in findings.conditions["backend"]
    assert "vllm" not in expected.conditions["backend"]
    benchmarks = expected.base.benchmarks
    assert benchmarks["pocket_instructions"].origin == ""  # asked anew
    assert benchmarks["pocket_cs"].origin  # a likelihood does not depend on what generates


@pytest.mark.usefixtures("quick")
def test_a_plan_finds_in_the_record_what_vllm_answered(
    store: MlflowClient, composed: Compose
) -> None:
    settings = [*VLLM, *FEW, f"tuned={ADAPTER}"]
    run_experiment(composed(*settings), RunInfo("vllm"))
    for backend, is_recorded in (("vllm", True), ("hf", False)):
        plan = plan_run(composed(*settings, f"evaluation.backend={backend}"), "run")
        by_benchmark = {
            part.cost.name: part.is_recorded for part in plan.parts if part.part == "base"
        }
        assert by_benchmark == {"pocket_instructions": is_recorded, "pocket_cs": True}


@pytest.mark.usefixtures("quick")
def test_a_long_window_needs_no_more_room_than_the_longest_question(
    store: MlflowClient, composed: Compose, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(pocket.MODEL_DIR, tmp_path / "model"))
    file = folder / "config.json"
    settings = json.loads(file.read_text()) | {"max_position_embeddings": 131_072}
    file.write_text(json.dumps(settings))
    chosen = [*VLLM, f"model.id={folder}", f"tuned={folder}", *FEW[:2]]
    config = composed(*chosen, "benchmark.pocket_cs.limit=1")
    findings = run_experiment(config, RunInfo("long"))
    base, tuned = read_responses(findings)
    assert len(base) == 4
    assert base == tuned


@pytest.mark.usefixtures("quick")
def test_a_failure_of_vllm_is_one_line(base: LoadedModel, vllm: Patch) -> None:
    vllm.setattr("torch.cuda.mem_get_info", lambda: (8, 1))
    reason = r"vLLM fails on pocket:model \(ValueError: Free memory is less than desired\)"
    with open_generator(base, lambda: 0) as generate, pytest.raises(ModelError, match=reason):
        generate(make_prompts(["Question:"]))


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"r": 65}, "r=65"),
        ({"bias": "lora_only"}, "bias=lora_only"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern={'q_proj': 4}"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
        ({"peft_type": "IA3", "feedforward_modules": ["down_proj"]}, "peft_type=IA3;"),
    ],
)
@pytest.mark.usefixtures("vllm")
def test_an_adapter_that_vllm_would_read_otherwise_is_refused(
    settings: dict[str, object], found: str, composed: Compose, tmp_path: Path
) -> None:
    known = json.loads((ADAPTER / "adapter_config.json").read_text())
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(known | settings))
    with pytest.raises(ModelError) as error:
        check_tuned(composed(*VLLM, f"tuned={tmp_path / 'adapter'}"))
    assert found in str(error.value)
    assert "set evaluation.backend=hf" in str(error.value)


def test_weights_that_vllm_would_quantize_otherwise_are_refused(base: LoadedModel) -> None:
    rounded = replace(base, quantization="nf4", dtype="bfloat16")
    with open_generator(rounded, lambda: 0):
        pass  # pocket:model is stored in bfloat16
    for odd in (replace(rounded, dtype="float16"), replace(rounded, quantization="gptq")):
        with pytest.raises(ModelError, match="would quantize"), open_generator(odd, lambda: 0):
            pass


def test_a_missing_vllm_is_told_with_the_command(composed: Compose, monkeypatch: Patch) -> None:
    monkeypatch.setattr("slimdown.evaluation.vllm_backend.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed; .*'\.\[vllm\]'"):
        composed(*VLLM)


@pytest.mark.skipif(not (find_spec("vllm") and count_gpus()), reason="needs vLLM and a GPU")
def test_vllm_itself_answers_nearly_as_transformers(store: MlflowClient, composed: Compose) -> None:
    settings = ["model.device=auto", "model.dtype=bfloat16", f"tuned={ADAPTER}"]
    settings += ["quantization.bnb_4bit_compute_dtype=bfloat16"]
    settings += ["benchmark=[pocket_math]", "benchmark.pocket_math.limit=40"]
    backends = [
        read_responses(run_experiment(composed(*settings, setting), RunInfo("one")))
        for setting in ("evaluation.backend=vllm", "evaluation.backend=hf")
    ]
    for by_vllm, expected in zip(*backends, strict=True):
        assert sum(map(eq, by_vllm, expected)) >= 30  # bfloat16 rounds
    assert backends[0][0] != backends[0][1]


def test_a_gpu_is_seen_on_linux_and_under_wsl(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert count_gpus(tmp_path) == 0
    for name in ("dev/dxg", "usr/lib/wsl/lib/libdxcore.so"):  # a GPU of another maker
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert count_gpus(tmp_path) == 0
    (tmp_path / "usr/lib/wsl/lib/libcuda.so.1").touch()
    assert count_gpus(tmp_path) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert count_gpus(tmp_path) == 0
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (tmp_path / "dev/dxg").unlink()
    assert count_gpus(tmp_path) == 0
    (tmp_path / "dev/nvidia0").touch()
    assert count_gpus(tmp_path) == 1
