"""What a GPU is to do as a CPU does: each body runs here on the CPU, and on CUDA with `-m gpu` (`make gpu-check`)."""

import copy
import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import peft
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from test_scoring import (
    PROMPTS,
    WINDOW,
    ShortOfMemory,
    assert_same_scores,
    llama,
    questions,
    to_generate,
    with_lora,
    with_virtual_tokens,
)
from trl import SFTTrainer

from bench import gpu
from bench.families import byte_tokenizer
from slimdown.config.schema import RunConfig
from slimdown.data.loading import load_data
from slimdown.evaluation.engine.scoring import SharedWorkLM
from slimdown.evaluation.harness import evaluate, generators_kept
from slimdown.evaluation.questions import load_tasks
from slimdown.evaluation.rows_apart import tells_rows_apart
from slimdown.models.dequantize import dequantized, free_bytes, is_4bit
from slimdown.models.dtype import WORTHWHILE_SPEEDUP, auto_dtype, bfloat16_speedup
from slimdown.models.identity import weights_digest
from slimdown.models.memory import LIBRARY_BYTES, is_out_of_memory, peak_memory
from slimdown.models.model import LoadedModel, load_model, outline_of
from slimdown.training import steps
from slimdown.training.fine_tune import fine_tune
from slimdown.training.footprint import footprint
from slimdown.training.lean import trainer_class
from slimdown.training.rows import prepare_rows
from slimdown.training.steps import trainer_for
from slimdown.utils.errors import SlimdownError

Composed = Callable[..., RunConfig]

# peft 0.21 asks transformers 5.24 for attributes that it renamed; delete when peft asks for the new.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*past_key_values` is deprecated:FutureWarning"),
]
ON_GPU = pytest.param("cuda", marks=pytest.mark.gpu)
FEW = [
    "train.max_steps=2",
    "dataset.pocket_instructions.max_examples=16",
    "dataset.pocket_instructions.validation_examples=8",
    "benchmark=[pocket_cs]",
    "benchmark.pocket_cs.limit=8",
]


@pytest.fixture(params=["cpu", ON_GPU])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU: torch sees no CUDA device")
    return str(request.param)


@contextmanager
def deterministic() -> Iterator[None]:
    """CUDA adds in the order in which threads come, unless told otherwise."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def windowed() -> Any:
    from bench.families import tiny

    return tiny("mistral", max_position_embeddings=WINDOW, sliding_window=48).eval()


@pytest.mark.parametrize("kind", ["plain", "lora", "prefix", "windowed"])
def test_shared_and_decoded_answers_are_the_harnesss(kind: str, device: str) -> None:
    makes: dict[str, Callable[[], Any]] = {
        "plain": llama,
        "lora": lambda: with_lora(llama()),
        "prefix": lambda: with_virtual_tokens("prefix"),
        "windowed": windowed,
    }
    model, tokenizer = makes[kind]().to(device), byte_tokenizer()
    requests = [request for request in questions() if len("".join(request.args)) < WINDOW - 10]
    lm = SharedWorkLM(model, tokenizer, max_length=WINDOW)
    assert lm.scoring.shares
    assert lm.scoring.merges is (device == "cpu")
    stock = HFLM(pretrained=model, tokenizer=tokenizer, max_length=WINDOW, batch_size=4)
    assert_same_scores(stock.loglikelihood(requests, True), lm.loglikelihood(requests, True))
    if kind != "prefix":  # whose PEFT's own generate misplaces
        prompts = to_generate(PROMPTS[:6])
        assert stock.generate_until(prompts, True) == lm.generate_until(prompts, True)


def test_the_dtype_is_the_one_that_the_device_has(device: str) -> None:
    dtype, _ = auto_dtype(torch.device(device))
    if device == "cuda":
        assert dtype == (
            torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16
        )
    else:
        assert dtype == (
            torch.bfloat16 if bfloat16_speedup() >= WORTHWHILE_SPEEDUP else torch.float32
        )
    model, ids = llama().to(device), torch.arange(2, 40, device=device)[None]
    exact = model(input_ids=ids).logits
    rounded = model.to(dtype)(input_ids=ids).logits
    assert (rounded.float() - exact).abs().mean() < 0.1 * exact.std()


@pytest.fixture
def loaded(device: str, composed: Composed) -> LoadedModel:
    config = composed(*FEW, f"model.device={device}")
    return load_model(config.model, config.quantization)


def gradients(base: LoadedModel) -> list[torch.Tensor]:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(base.model, config).train()
    tokens = torch.arange(3, 60, device=base.device)[None]
    with deterministic():
        wrapped(input_ids=tokens, labels=tokens).loss.backward()
    return [p.grad for p in wrapped.parameters() if p.grad is not None]


def test_measuring_changes_no_weight_no_generator_and_no_gradient(
    loaded: LoadedModel, device: str, composed: Composed
) -> None:
    fresh, config = copy.deepcopy(loaded), composed(*FEW)
    drawn = torch.rand(3, device=device)  # wakes the device's generator
    torch.manual_seed(7)
    drawn = torch.rand(3, device=device)
    torch.manual_seed(7)
    evaluate(loaded, load_tasks(config.benchmark), config.benchmark, config.evaluation)
    assert torch.equal(torch.rand(3, device=device), drawn)
    assert weights_digest(loaded.model) == weights_digest(fresh.model)
    after, without = gradients(loaded), gradients(fresh)
    assert len(after) == len(without) == 4 * loaded.model.config.num_hidden_layers
    assert all(torch.equal(one, other) for one, other in zip(after, without, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in after)


def test_4_bit_layers_and_their_values_compute_alike(loaded: LoadedModel, device: str) -> None:
    ids = torch.arange(2, 60, device=device).reshape(2, 29)
    layers = [layer for layer in loaded.model.modules() if is_4bit(layer)]
    packed = [layer.weight.data.clone() for layer in layers]

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return loaded.model(input_ids=ids).logits

    expected = logits()
    with dequantized(loaded.model):
        torch.testing.assert_close(
            logits(), expected, rtol=1e-4, atol=1e-3
        )  # on CUDA another kernel multiplies
    assert torch.equal(logits(), expected)
    assert layers
    assert all(
        torch.equal(layer.weight.data, data) for layer, data in zip(layers, packed, strict=True)
    )


def test_only_a_cpu_is_given_what_is_made_for_one(loaded: LoadedModel, device: str) -> None:
    is_cpu = device == "cpu"
    assert tells_rows_apart(loaded) is is_cpu
    assert (trainer_class(loaded, loaded.model) is not SFTTrainer) is is_cpu


@pytest.mark.parametrize("device", [ON_GPU], indirect=True)  # on a CPU: test_train.py
def test_adapters_are_the_same_to_the_byte_measured_before_or_not(
    device: str, composed: Composed, tmp_path: Path
) -> None:
    config = composed(*FEW, f"model.device={device}")

    def trained(folder: Path, measured: bool) -> str:
        base = load_model(config.model, config.quantization)
        rows = prepare_rows(
            base, load_data(config.dataset, config.seed, base.tokenizer), config.train
        )
        if measured:
            evaluate(base, load_tasks(config.benchmark), config.benchmark, config.evaluation)
        with deterministic():
            tuned = fine_tune(
                base, rows, config.method, config.lora, config.train, config.seed, folder
            )
        assert tuned.training is not None
        return hashlib.sha256(
            (tuned.training.adapter_dir / "adapter_model.safetensors").read_bytes()
        ).hexdigest()

    assert trained(tmp_path / "one", False) == trained(tmp_path / "two", True)


@contextmanager
def little_memory(model: Any, device: str) -> Iterator[None]:
    """Inside, not more than 24 MB can be allocated on a GPU, or a forward of 1,100 tokens on a CPU."""
    if device == "cpu":
        model.limit_tokens = 1100
        yield
        return
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 24 * 2**20) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_where_memory_ends_the_batch_is_halved_and_no_answer_lost(device: str) -> None:
    wide = {"intermediate_size": 1024, "hidden_size": 256} if device == "cuda" else {}
    model = ShortOfMemory(llama(**wide).config).eval()
    model.load_state_dict(llama(**wide).state_dict())
    model.to(device)
    requests, tokenizer = questions(), byte_tokenizer()
    expected = SharedWorkLM(model, tokenizer, token_budget=512).loglikelihood(requests, True)
    lm = SharedWorkLM(model, tokenizer, token_budget=8000)
    assert lm.scoring.shares
    with little_memory(model, device):
        assert_same_scores(expected, lm.loglikelihood(requests, True))
    assert lm.token_budget is not None
    assert lm.token_budget < 8000


def test_memory_is_counted_as_it_is_taken_and_given_back(device: str) -> None:
    n_bytes = 2**28
    with peak_memory(device) as peak:
        before = free_bytes(torch.device(device))
        held = torch.ones(n_bytes // 4, device=device)
        assert before - free_bytes(torch.device(device)) > n_bytes / 2
        del held
        assert peak() >= n_bytes
    if device == "cuda":  # of a machine's memory others take their share
        assert abs(free_bytes(torch.device(device)) - before) < n_bytes / 4


@pytest.mark.parametrize("device", [ON_GPU], indirect=True)  # on a CPU: test_run.py
def test_a_whole_run(device: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "slimdown.run",
        *FEW,
        f"model.device={device}",
        "model.dtype=auto",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("device", [ON_GPU], indirect=True)  # on CPUs: test_processes.py
def test_a_run_of_two_gpus(device: str, tmp_path: Path) -> None:
    if (n := torch.cuda.device_count()) < 2:
        pytest.skip(f"two GPUs are needed, and there is {n}")
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "-m",
        "slimdown.run",
    ]
    done = subprocess.run(
        [*launch, *FEW, f"model.device={device}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# What a CPU can hold of the branches for GPUs


def rows(n: int = 8) -> Any:
    made = [[3 + (7 * i + 31 * k) % 500 for k in range(40)] for i in range(n)]
    return datasets.Dataset.from_dict({"input_ids": made, "labels": made})


def trained_gradients(
    base: LoadedModel, model: Any, config: RunConfig, folder: Path
) -> torch.Tensor:
    """Of one batch of a step of 65,536 tokens, as the trainer's loss gives them, in one row."""
    torch.manual_seed(0)
    shape = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    trainer = trainer_for(
        peft.get_peft_model(model, shape).train(),
        base.tokenizer,
        rows(),
        config.train,
        0,
        folder,
        "cpu",
        SFTTrainer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(2**16)).backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


def test_gradients_in_float16_are_those_of_float32(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed("model.dtype=float16", "quantization=none")
    base = load_model(config.model, config.quantization)
    exact = trained_gradients(base, copy.deepcopy(base.model).float(), config, tmp_path)
    found = trained_gradients(base, copy.deepcopy(base.model), config, tmp_path)
    assert (found - exact).norm() < 0.01 * exact.norm()
    monkeypatch.setattr(steps, "GRADIENT_SCALE", 1.0)
    as_they_are = trained_gradients(base, base.model, config, tmp_path)
    assert (as_they_are - exact).norm() > 0.1 * exact.norm()


def test_a_process_trains_on_one_gpu_of_several(
    composed: Composed, pocket: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    shape = peft.LoraConfig(r=4, target_modules=["q_proj"])
    train = composed("train.per_device_train_batch_size=4").train
    model = peft.get_peft_model(pocket.model, shape)
    trainer = trainer_for(model, pocket.tokenizer, rows(), train, 0, tmp_path, "cuda", SFTTrainer)
    assert (trainer.args.train_batch_size, trainer.args.n_gpu) == (4, 1)
    assert len(trainer.get_train_dataloader()) == 2


def test_memory_that_ends_is_a_sentence_in_training_and_measuring(
    composed: Composed, pocket: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError(
            "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"
        )

    config = composed(*FEW, "evaluation.token_budget=256")
    monkeypatch.setattr("slimdown.evaluation.engine.scoring.packed_logits", fails)
    monkeypatch.setattr(
        "slimdown.evaluation.engine.scoring.release_memory", lambda: None
    )  # 0.3 s each
    with pytest.raises(
        SlimdownError, match=r"benchmark\.pocket_cs does not fit in the memory that is free"
    ):
        evaluate(pocket, load_tasks(config.benchmark), config.benchmark, config.evaluation)
    monkeypatch.setattr("slimdown.training.lean.SummedLoss.apply", fails)
    prepared = prepare_rows(
        pocket, load_data(config.dataset, config.seed, pocket.tokenizer), config.train
    )
    with pytest.raises(SlimdownError, match="training does not fit in the memory of cpu: halve train"):
        fine_tune(
            pocket, prepared, config.method, config.lora, config.train, 0, tmp_path, before=1.0
        )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"
        ),
    ],
    ids=["torch", "driver", "cuBLAS", "CPU"],
)
def test_a_lack_of_memory_is_known_whoever_tells_it(error: RuntimeError) -> None:
    assert is_out_of_memory(error)


def test_what_is_no_lack_of_memory_is_none() -> None:
    assert not is_out_of_memory(
        RuntimeError("CUDA error: an illegal memory access was encountered")
    )
    assert not is_out_of_memory(ValueError("CUDA error: out of memory"))


def test_what_training_holds_on_a_gpu_is_counted_before_it_begins(
    composed: Composed, pocket: LoadedModel
) -> None:
    config = composed("train.per_device_train_batch_size=4")
    outlines = {
        name: replace(outline_of(pocket), device=torch.device(name)) for name in ("cpu", "cuda")
    }
    found = {
        name: footprint(one.loaded(config.quantization), config, 1000)
        for name, one in outlines.items()
    }
    assert found["cuda"].reason == ""
    assert found["cuda"].training is not None
    assert found["cpu"].training is not None
    # No pages of files and no libraries; of rows that are padded nothing but the mask besides.
    rest = found["cpu"].training - found["cpu"].mapped - LIBRARY_BYTES["cpu"]
    assert found["cuda"].training == pytest.approx(rest, rel=0.5)


def test_what_torch_keeps_for_later_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [3]
    monkeypatch.setattr(torch.cuda, "empty_cache", kept.clear)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 - sum(kept), 16))
    assert free_bytes(torch.device("cuda")) == 8


def test_a_gpu_that_nobody_uses_is_not_woken_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with (
        generators_kept()
    ):  # torch.cuda.get_rng_state_all() would initialize it, which on a CPU's torch fails
        torch.rand(1)


SHAPE = {
    "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True,
}  # fmt: skip


def test_the_check_does_the_work_that_it_expects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, n in {
        "ROWS": 4,
        "BEHIND": 16,
        "NEW": 4,
        "BATCH": 2,
        "LENGTH": 64,
        "STEPS": 3,
    }.items():
        monkeypatch.setattr(gpu, name, n)
    scoring, decoding, training = gpu.expected(SHAPE)
    inner = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)  # parameters of the layers
    attention = 4 * 2 * 64 * 512 * 512 * 32  # 32 rows of 512 tokens, whole squares
    assert scoring.flops == pytest.approx(2 * 16384 * (inner + 64 * 2048) + attention, rel=0.01)
    assert decoding.flops == pytest.approx(2 * 4 * (inner + 64 * 2048), rel=0.05)
    assert 1.9 < training.flops / (2 * 128 * (inner + 64 * 2048)) < 2.4
    assert gpu.check(SHAPE, "cpu")
    told = capsys.readouterr().out
    assert all(f"| {work.name} | " in told for work in (scoring, decoding, training))


def test_without_a_gpu_the_check_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"\Ano GPU: torch sees no CUDA device here; .*\Z"):
        gpu.main([])
