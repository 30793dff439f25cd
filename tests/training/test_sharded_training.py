"""What `trl sft` trains under FSDP or DeepSpeed, in two processes on a CPU, `tuned=` measures.

DeepSpeed is not among the development packages: `pip install deepspeed`, with a C++ compiler,
then `python -m pytest -m slow tests/training/test_sharded_training.py`.
"""

import os
import sys
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import trl
from commands_and_runs import find_runs, run_command
from mlflow import MlflowClient
from peft import PeftModel
from record_builders import compose_config
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.scripts.sft import main, make_parser

import slimdown
from slimdown.models.base_model import load_base_model
from slimdown.pocket import DATA_DIR, MODEL_DIR

pytestmark = pytest.mark.slow
DEEPSPEED = pytest.mark.skipif(not find_spec("deepspeed"), reason="pip install deepspeed")

# What `trl sft` starts. On a CPU accelerate does not read that it shall shard with FSDP: it is told
# here what it takes from the same settings on a GPU.
SCRIPT = """
import os
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState
from accelerate.state import AcceleratorState
from torch.distributed.fsdp import FSDPModule
from trl.scripts.sft import main, make_parser

arguments = make_parser().parse_args_and_config()
fsdp = "ACCELERATE_USE_FSDP" in os.environ
if fsdp:
    state = Accelerator().state
    state.fsdp_plugin = FullyShardedDataParallelPlugin()
    state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
main(*arguments)
if fsdp:
    assert FSDPModule.__subclasses__(), "no module was sharded"
else:
    assert AcceleratorState().deepspeed_plugin.zero_stage == 3
"""
LORA = ["--use_peft", "--lora_dropout", "0"]
# The packed weights go from process to process as numbers of the precision that is computed in.
LORA_4BIT = [*LORA, "--load_in_4bit", "--use_bnb_nested_quant"]
LORA_4BIT += ["--bnb_4bit_quant_storage", "float32"]


def write_arguments(folder: Path, *settings: str) -> list[str]:
    """Write 32 rows, and say how to fine-tune the pocket model on them into `folder`/tuned."""
    (folder / "rows").mkdir(parents=True)
    with (DATA_DIR / "pocket_instructions_train.jsonl").open() as rows:
        (folder / "rows" / "train.jsonl").write_text("".join(islice(rows, 32)))
    arguments = ["--model_name_or_path", str(MODEL_DIR), "--dataset_name", str(folder / "rows")]
    arguments += ["--output_dir", str(folder / "tuned"), "--max_steps", "4", "--bf16", "False"]
    arguments += ["--per_device_train_batch_size", "4", "--learning_rate", "4e-3"]
    return [*arguments, "--save_strategy", "no", "--report_to", "none", *settings]


def train_in_shards(folder: Path, sharding: str, *settings: str) -> Path:
    arguments = write_arguments(folder, "--ddp_backend", "gloo", *settings)
    (folder / "script.py").write_text(SCRIPT)
    config = Path(trl.__file__).parent / "accelerate_configs" / f"{sharding}.yaml"
    launcher = ["--config_file", str(config), "--num_processes", "2", "--main_process_port", "0"]
    launcher += ["--mixed_precision", "no"]  # the Trainer takes no bfloat16 from a CPU here
    done = run_command(
        folder,
        *["accelerate.commands.launch", *launcher, "script.py", *arguments],
        OMP_NUM_THREADS="1",
        CUDA_VISIBLE_DEVICES="",
        DS_ACCELERATOR="cpu",
        PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # ninja
    )
    assert done.returncode == 0, done.stderr
    return folder / "tuned"


def train_alone(folder: Path, *settings: str) -> Path:
    twice = ["--gradient_accumulation_steps", "2", "--use_cpu"]
    main(*make_parser().parse_args_and_config(write_arguments(folder, *twice, *settings)))
    return folder / "tuned"


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    [file] = folder.glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize(
    ("sharding", "settings", "quantization"),
    [
        ("fsdp2", [], "none"),
        ("fsdp2", LORA, "none"),
        ("fsdp2", LORA_4BIT, "nf4"),
        pytest.param("zero3", [], "none", marks=DEEPSPEED),
        pytest.param("zero3", LORA, "none", marks=DEEPSPEED),
    ],
    ids=["fsdp2-whole", "fsdp2-lora", "fsdp2-4bit", "zero3-whole", "zero3-lora"],
)
def test_a_model_trained_in_shards_is_measured_as_one_trained_alone(
    sharding: str, settings: list[str], quantization: str, *, store: MlflowClient, tmp_path: Path
) -> None:
    tuned = train_in_shards(tmp_path / "sharded", sharding, *settings)
    alone = train_alone(tmp_path / "alone", *settings)
    weights = load_weights(tuned)
    for name, expected in load_weights(alone).items():
        torch.testing.assert_close(weights[name], expected, atol=1e-3, rtol=0)

    command = ["slimdown.run", f"tuned={tuned}", f"quantization={quantization}"]
    command += ["benchmark=[pocket_cs]", "benchmark.pocket_cs.limit=8"]
    if not settings:  # an adapter names its base, and a whole model does not
        command.append("model=pocket")
    done = run_command(tmp_path, *command)
    assert done.returncode == 0, done.stderr
    [run] = find_runs(store)
    samples = pd.read_parquet(store.download_artifacts(run.info.run_id, "samples"))
    base, measured = (
        np.stack(samples.query(f"model == '{model}' and metric == 'acc'").log_likelihoods)
        for model in ("base", "tuned")
    )

    config = compose_config(f"quantization={quantization}")
    if settings:
        plain = load_base_model(config.model, config.quantization).model
        plain = PeftModel.from_pretrained(plain, str(tuned)).eval()
    else:
        plain = AutoModelForCausalLM.from_pretrained(tuned, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tuned)
    evaluation = slimdown.measure(plain, tokenizer, "pocket_cs", limit=8)
    expected = [sample.log_likelihoods for sample in evaluation.benchmarks["pocket_cs"].samples]
    np.testing.assert_allclose(measured, expected, atol=1e-4)
    assert np.abs(measured - base).max() > 0.1
