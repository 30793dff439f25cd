"""Unsloth trains what TRL trains, and what is measured never meets it."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch
from conftest import SMALL, metrics_of
from mlflow import MlflowClient
from safetensors.torch import load_file
from test_run import runs_in, start

from slimdown.config.schema import Engine, RunConfig
from slimdown.data.loading import load_data
from slimdown.models.model import load_model
from slimdown.training.adapters import adapter_config
from slimdown.training.checks import check_settings
from slimdown.training.fine_tune import Tuned, fine_tune
from slimdown.training.rows import prepare_rows
from slimdown.training.unsloth import UnslothProcess
from slimdown.utils.errors import ConfigError, SlimdownError

Composed = Callable[..., RunConfig]
QUICK = [*SMALL, "train.max_steps=8", "benchmark=[pocket_math,pocket_cs]"]
QUICK = [
    setting
    for setting in QUICK
    if "pocket_instructions.limit" not in setting and "commonsense" not in setting
]


def trained(config: RunConfig, folder: Path) -> Tuned:
    base = load_model(config.model, config.quantization)
    data = load_data(config.dataset, config.seed, base.tokenizer)
    rows = prepare_rows(base, data, config.train)
    return fine_tune(base, rows, config.method, config.lora, config.train, config.seed, folder)


def children() -> list[psutil.Process]:
    return [
        p
        for p in psutil.Process().children(recursive=True)
        if "unsloth_process" in " ".join(p.cmdline())
    ]


@pytest.mark.skipif(find_spec("unsloth") is not None, reason="Unsloth is installed")
def test_where_unsloth_is_not_installed_that_is_said_at_once(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = start(tmp_path, "train.engine=unsloth")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    assert done.returncode == 1
    assert done.stderr.endswith(
        "Unsloth is not installed; pip install 'slimdown[unsloth]', or train.engine=trl\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_installation_that_does_not_load_is_told_in_one_line(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unsloth.py").write_text("raise ImportError('it wants\\nanother torch')")
    monkeypatch.syspath_prepend(tmp_path)  # of this process, and of the other
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    config = composed(*SMALL, "train.engine=unsloth")
    base = load_model(config.model, config.quantization)
    rows = prepare_rows(base, load_data(config.dataset, config.seed, base.tokenizer), config.train)
    with pytest.raises(SlimdownError) as refused:
        UnslothProcess(
            base,
            adapter_config(config.method, config.lora, base),
            rows.train,
            config.train,
            config.seed,
        )
    assert str(refused.value) == (
        "train.engine=unsloth: Unsloth cannot train anything here (ImportError: it wants another torch); "
        "set train.engine=trl"
    )
    assert children() == []


@pytest.mark.unsloth
@pytest.mark.parametrize(
    ("setting", "answer"),
    [
        ("method=dora", "method=dora; it trains method=lora and method=rslora"),
        (
            "quantization=int8",
            "quantization=int8; it trains on quantization=nf4 and quantization=none",
        ),
        ("quantization=fp4", "quantization=fp4"),
        (
            "quantization.bnb_4bit_use_double_quant=false",
            "set quantization.bnb_4bit_use_double_quant=true",
        ),
        ("model.dtype=bfloat16", "compute in another dtype; set model.dtype=float32"),
        (
            "quantization.dequantize_for_training=true",
            "leave out quantization.dequantize_for_training=true",
        ),
        ("lora.target_modules=[q_proj,lm_head]", "leave it out of lora.target_modules"),
    ],
)
def test_what_it_cannot_train_is_said_before_anything_is_loaded(
    setting: str, answer: str, composed: Composed
) -> None:
    composed(setting)
    with pytest.raises(
        ConfigError, match=r"^train.engine=unsloth: Unsloth cannot train"
    ) as refused:
        composed("train.engine=unsloth", setting)
    assert answer in str(refused.value)
    assert str(refused.value).count("\n") == 0


@pytest.mark.unsloth
@pytest.mark.parametrize(
    ("setting", "answer"),
    [
        (
            "model.dtype=float16",
            "are other weights than those that are measured; set train.engine=trl",
        ),  # bfloat16
        (
            "train.optim=adamw_8bit",
            "train.optim=adamw_8bit: Unsloth takes adamw_torch_fused in its place here",
        ),
    ],
)
def test_what_it_would_do_otherwise_is_refused_before_the_base_is_measured(
    setting: str, answer: str, composed: Composed
) -> None:
    config = composed(*SMALL, "quantization=none", "train.engine=unsloth", setting)
    base = load_model(config.model, config.quantization)
    rows = prepare_rows(base, load_data(config.dataset, config.seed, base.tokenizer), config.train)
    with pytest.raises(SlimdownError) as refused:
        UnslothProcess(
            base,
            adapter_config(config.method, config.lora, base),
            rows.train,
            config.train,
            config.seed,
        )
    assert answer in str(refused.value)
    assert children() == []


@pytest.mark.unsloth
@pytest.mark.skipif(version("trl") != "1.15.0", reason="others compute their loss on a CPU")
def test_what_the_trl_that_comes_with_it_cannot_train_on_a_cpu_is_refused(
    composed: Composed,
) -> None:
    config = composed("model.device=cpu")
    base = load_model(config.model, config.quantization)
    check_settings(base, config.method, config.lora, config.train)
    base.model.config.final_logit_softcapping = 30.0  # as Gemma 2 has it
    with pytest.raises(
        SlimdownError,
        match=r"trl 1\.15\.0 cannot train pocket:model by method=lora on a CPU.*pip install 'trl!=1\.15\.0'",
    ):
        check_settings(base, config.method, config.lora, config.train)
    check_settings(base, config.method, config.lora, replace(config.train, engine=Engine.unsloth))


@pytest.mark.unsloth
@pytest.mark.parametrize(
    "settings",
    [
        [],
        [
            "quantization=none",
            "method=rslora",
            "lora=all_linear",
            "train.completion_only_loss=false",
        ],
        [
            "train.gradient_accumulation_steps=2",
            "train.gradient_checkpointing=true",
            "lora.lora_dropout=0",
        ],
    ],
    ids=["default", "16 bits", "less memory"],
)
def test_the_steps_are_those_of_trl(
    settings: list[str], composed: Composed, tmp_path: Path
) -> None:
    ours = trained(composed(*QUICK, *settings), tmp_path / "trl")
    theirs = trained(composed(*QUICK, *settings, "train.engine=unsloth"), tmp_path / "unsloth")
    assert ours.training
    assert theirs.training
    for name in ("loss", "grad_norm", "learning_rate", "num_tokens"):
        steps = [
            [record.values[name] for record in one.training.history]
            for one in (ours, theirs)
            if one.training
        ]
        assert steps[0] == pytest.approx(steps[1], rel=1e-4), name
    for name in ("steps", "tokens", "n_trainable", "trainable_percent", "cut"):
        assert getattr(ours.training, name) == getattr(theirs.training, name), name
    for name in ("train_loss", "validation_loss_before", "validation_loss_after"):
        assert getattr(ours.training, name) == pytest.approx(
            getattr(theirs.training, name), rel=1e-4
        ), name
    one, other = (
        load_file(t.training.adapter_dir / "adapter_model.safetensors")
        for t in (ours, theirs)
        if t.training
    )
    assert one.keys() == other.keys()
    assert all(
        torch.allclose(one[key], other[key], atol=2e-3) and one[key].dtype == other[key].dtype
        for key in one
    )
    assert (
        ours.model.model.peft_config["default"].to_dict()
        == theirs.model.model.peft_config["default"].to_dict()
    )
    assert theirs.model.identity["adapters"] == ours.model.identity["adapters"]
    assert "unsloth" not in sys.modules
    assert children() == []


@pytest.fixture(scope="module")
def both(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep over the two, as one would type it."""
    folder = tmp_path_factory.mktemp("both")
    (folder / "mlruns").mkdir()
    (folder / "mlruns" / "mlflow.db").write_bytes(migrated_store.read_bytes())
    done = start(folder, "-m", "train.engine=trl,unsloth", *QUICK)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr


@pytest.mark.unsloth
def test_a_run_is_measured_and_recorded_as_any_other(both: tuple[Path, str]) -> None:
    client = MlflowClient(f"sqlite:///{both[0]}/mlruns/mlflow.db")
    trl, unsloth = runs_in(client)
    assert [run.data.params["train.engine"] for run in (trl, unsloth)] == ["trl", "unsloth"]
    ours, theirs = (metrics_of(client, run.info.run_id) for run in (trl, unsloth))
    lacking = {
        "train/mean_token_accuracy",  # Unsloth leaves it out
        "cost/training_peak_bytes",  # of another process
        "cost/base_evaluation_peak_bytes",  # of a base that was found in the record
        "cost/base_accepted_draft_share",  # likewise
    }
    assert theirs.keys() == ours.keys() - lacking
    scores = [key for key in ours if key.startswith(("base/", "tuned/", "change/"))]
    assert scores
    assert {key: theirs[key] for key in scores} == pytest.approx(
        {key: ours[key] for key in scores}, abs=0.05
    )
    environment = json.loads(
        Path(client.download_artifacts(unsloth.info.run_id, "environment.json")).read_text()
    )
    assert environment["unsloth"] == version("unsloth")


@pytest.mark.unsloth
def test_nothing_that_it_prints_or_writes_is_left(both: tuple[Path, str]) -> None:
    folder, said = both
    assert sorted(path.name for path in folder.iterdir()) == ["mlruns", "outputs"]
    for word in ("Unsloth", "torchao", "Warning", "register_constant"):
        assert word not in said.replace("by Unsloth", "")


@pytest.mark.unsloth
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_run(number: int, store: MlflowClient, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "slimdown.run",
        "train.engine=unsloth",
        *SMALL,
        "train.max_steps=100000",
    ]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as run:
        while not (runs := runs_in(store)) or "train/loss" not in runs[0].data.metrics:
            assert run.poll() is None
            time.sleep(0.2)
        (other,) = children()
        os.kill(run.pid, number)
        _, said = run.communicate(timeout=120)
    gone, still = psutil.wait_procs([other], timeout=20)
    assert still == []
    assert len(gone) == 1
    if number is signal.SIGTERM:
        assert "marked KILLED" in said
        assert run.returncode == 130


@pytest.mark.unsloth
def test_its_own_end_is_told_in_one_line(composed: Composed, tmp_path: Path) -> None:
    config = composed(*SMALL, "train.engine=unsloth", "train.max_steps=100000")
    with pytest.raises(
        SlimdownError,
        match=r"the process in which Unsloth trains pocket:model was ended by SIGKILL; there",
    ):
        base = load_model(config.model, config.quantization)
        rows = prepare_rows(
            base, load_data(config.dataset, config.seed, base.tokenizer), config.train
        )
        fine_tune(
            base,
            rows,
            config.method,
            config.lora,
            config.train,
            0,
            tmp_path,
            on_step=lambda _: children()[0].kill(),
        )
    assert children() == []


MEASURED = """
import sys
if sys.argv[1] == "unsloth":
    from unsloth import FastLanguageModel
import slimdown, torch
from slimdown.pocket import MODEL_DIR
from transformers import AutoModelForCausalLM, AutoTokenizer
if sys.argv[1] == "unsloth":
    model, _ = FastLanguageModel.from_pretrained(str(MODEL_DIR), dtype=torch.float32, load_in_4bit=False)
else:
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
for one in (model, AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)):
    for stock in (False, True):
        asked = slimdown.measure(one, AutoTokenizer.from_pretrained(MODEL_DIR), ["pocket_math", "pocket_cs"],
                                 limit=16, stock=stock)
        for name, report in asked.benchmarks.items():
            answers = [(s.scores, s.response, s.log_likelihoods) for s in report.samples]
            print(asked.scoring_path, name, answers, file=sys.stderr)
"""


@pytest.mark.unsloth
def test_a_model_is_measured_alike_where_unsloth_was_imported_first(tmp_path: Path) -> None:
    """As in a notebook that trains with it."""
    command = [sys.executable, "-W", "ignore", "-c", MEASURED]
    answers = [
        subprocess.run([*command, name], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        for name in ("plain", "unsloth")
    ]
    assert [done.returncode for done in answers] == [0, 0], answers[1].stderr
    plain, patched = (
        [line for line in done.stderr.splitlines() if "pocket_" in line] for done in answers
    )
    assert len(plain) == 8
    assert plain == patched
