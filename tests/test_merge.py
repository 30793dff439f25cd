"""An adapter and its base as one model: the same answers, as large as the base, with a card, whole or not at all."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from conftest import SMALL
from hydra import compose, initialize_config_dir
from made_up import evaluation, stopped, written
from mlflow import MlflowClient
from mlflow.entities import Run
from recorded import record, right
from safetensors.torch import load_file, save_file

from bench.families import byte_tokenizer, tiny
from bench.servers import MlflowServer
from slimdown import merge
from slimdown.config.files import CONF_DIR
from slimdown.config.loader import load_config
from slimdown.config.naming import flatten
from slimdown.config.schema import ModelConfig, QuantizationConfig, RunConfig
from slimdown.experiment import experiment
from slimdown.models.model import load_model
from slimdown.pocket import MODEL_DIR
from slimdown.report import card
from slimdown.stats.findings import judge
from slimdown.stats.runs import RecordedRun
from slimdown.tracking.names import making
from slimdown.tracking.provenance import About
from slimdown.training.saved import export, load_tuned, recorded_base
from slimdown.utils.disk import whole_folder
from slimdown.utils.errors import SlimdownError

Composed = Callable[..., RunConfig]
FEW = [
    "benchmark=[pocket_math,pocket_cs]",
    *SMALL[:2],
    "benchmark.pocket_math.limit=8",
    "benchmark.pocket_cs.limit=8",
]
TOKENS = torch.arange(5, 40)[None]
ALL = {"task_type": "CAUSAL_LM", "target_modules": "all-linear"}
KINDS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(**ALL),
    "dora": lambda: peft.LoraConfig(use_dora=True, **ALL),
    "rslora": lambda: peft.LoraConfig(use_rslora=True, **ALL),
    "ia3": lambda: peft.IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["k_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    ),
    "on the head": lambda: peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=["lm_head", "q_proj"]
    ),
    "pissa": lambda: peft.LoraConfig(init_lora_weights="pissa", **ALL),
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=TOKENS, use_cache=False).logits.float()
    return found


def adapter_on(model: Any, config: Any, folder: Path) -> Path:
    """The files of an adapter, every number moved as if it had been trained."""
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn_like(parameter)
    adapted.save_pretrained(folder)
    return folder


def in_float32(config: RunConfig) -> tuple[ModelConfig, QuantizationConfig]:
    return config.model, config.quantization


# --- weights --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # PEFT's own, of tied weights and of what PiSSA changes
@pytest.mark.parametrize(
    ("quantization", "kind"),
    [
        *(("nf4", kind) for kind in KINDS if kind != "pissa"),
        ("none", "pissa"),
        ("none", "lora"),
        ("fp4", "lora"),
    ],
)
def test_merged_it_answers_as_the_base_and_the_adapter_do(
    quantization: str, kind: str, composed: Composed, tmp_path: Path
) -> None:
    model, held = in_float32(composed(f"quantization={quantization}"))
    adapter = adapter_on(load_model(model, held).model, KINDS[kind](), tmp_path / "adapter")
    base = load_model(model, held)
    plain, expected = logits(base.model), logits(load_tuned(base, adapter))
    (tmp_path / "out").mkdir()
    assert export(model, held, base.revision, adapter, "float32", tmp_path / "out") == "float32"
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (logits(merged) - expected).abs().max() < 1e-4
    assert (expected - plain).abs().max() > 0.1  # the adapter does something
    assert merged.config.tie_word_embeddings == (kind != "on the head")


def test_each_weight_is_rounded_once(composed: Composed, tmp_path: Path) -> None:
    model, held = in_float32(composed())
    adapter = adapter_on(load_model(model, held).model, KINDS["lora"](), tmp_path / "adapter")
    for dtype in ("float32", "bfloat16"):
        (tmp_path / dtype).mkdir()
        export(model, held, load_model(model, held).revision, adapter, dtype, tmp_path / dtype)
    whole, narrow = (
        load_file(tmp_path / dtype / "model.safetensors") for dtype in ("float32", "bfloat16")
    )
    assert all(torch.equal(whole[name].bfloat16(), narrow[name]) for name in whole)


def test_8_bit_weights_become_the_values_they_stand_for(composed: Composed, tmp_path: Path) -> None:
    """The products of 8 bits round what goes in as well, which no weights can do: their answers are only near."""
    model, held = in_float32(composed("quantization=int8"))
    adapter = adapter_on(load_model(model, held).model, KINDS["lora"](), tmp_path / "adapter")
    base = load_model(model, held)
    layer = base.model.model.layers[0].self_attn.q_proj
    scales = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB
    values = layer.weight.data.float() * scales[:, None] / 127
    (tmp_path / "out").mkdir()
    expected = logits(load_tuned(load_model(model, held), adapter))
    export(model, held, base.revision, adapter, "float32", tmp_path / "out")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (logits(merged) - expected).abs().max() < 1
    lora = {name.split("q_proj.")[1]: w for name, w in load_file(adapter / "adapter_model.safetensors").items()
            if "layers.0.self_attn.q_proj" in name}  # fmt: skip
    delta = lora["lora_B.weight"] @ lora["lora_A.weight"]  # alpha is r in PEFT's default
    torch.testing.assert_close(merged.model.layers[0].self_attn.q_proj.weight.data, values + delta)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt2", {}),
        ("phi3", {}),
        ("llama", {"tie_word_embeddings": False}),
        ("qwen2", {"tie_word_embeddings": True}),
    ],
)
def test_any_family_merges_and_is_as_large_as_it_was(
    family: str, changes: dict[str, Any], composed: Composed, tmp_path: Path
) -> None:
    """Layers that lie transposed, fused projections, a head of its own or the embeddings'."""
    tiny(family, **changes).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    model, held = in_float32(composed(f"model.id={tmp_path}/base"))
    adapter = adapter_on(load_model(model, held).model, KINDS["lora"](), tmp_path / "adapter")
    base = load_model(model, held)
    (tmp_path / "out").mkdir()
    expected = logits(load_tuned(base, adapter))
    assert export(model, held, base.revision, adapter, None, tmp_path / "out") == "float32"
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (logits(merged) - expected).abs().max() < 1e-4
    sizes = [(tmp_path / folder / "model.safetensors").stat().st_size for folder in ("base", "out")]
    assert abs(sizes[1] - sizes[0]) < 1000
    assert (
        transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("the").input_ids
        == base.tokenizer("the").input_ids
    )


def test_an_adapter_that_peft_cannot_merge_is_refused_in_a_line(
    composed: Composed, tmp_path: Path
) -> None:
    model, held = in_float32(composed())
    mixed = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    adapter = adapter_on(load_model(model, held).model, mixed, tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    with pytest.raises(
        SlimdownError, match="this adapter cannot be merged into pocket:model: "
    ) as caught:
        export(model, held, load_model(model, held).revision, adapter, None, tmp_path / "out")
    assert "\n" not in str(caught.value)


# --- a folder, whole or not at all ------------------------------------------------------------------------


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom slimdown.utils.disk import whole_folder\n"
        "with whole_folder(Path('out')) as draft:\n    (draft / 'half').write_text('x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.unfinished" / "half").exists()
    with whole_folder(tmp_path / "out") as draft:
        (draft / "whole").write_text("x")
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["whole"]


def test_an_error_leaves_nothing_and_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "out") as draft:
        (draft / "half").write_text("x")
        raise RuntimeError
    assert [
        [file.name for file in folder.iterdir()] for folder in (tmp_path, tmp_path / "out")
    ] == [["out"], []]
    with whole_folder(tmp_path / "out") as draft:
        (draft / "whole").write_text("x")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["whole"]


def test_two_at_once_do_not_write_one_folder(tmp_path: Path) -> None:
    script = (
        "import time\nfrom pathlib import Path\nfrom slimdown.utils.disk import whole_folder\n"
        "with whole_folder(Path('out')) as draft:\n    print('in', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        other.stdout.readline()
        with (
            pytest.raises(SlimdownError, match="another process is writing"),
            whole_folder(tmp_path / "out"),
        ):
            pass
        assert (tmp_path / ".out.unfinished").is_dir()  # the other's
        other.kill()


# --- the command --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a record of one run, whose base lies in it as a folder."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "mlruns").mkdir()
    shutil.copy(migrated_store, folder / "mlruns" / "mlflow.db")
    shutil.copytree(MODEL_DIR, folder / "base")
    store = f"sqlite:///{folder}/mlruns/mlflow.db"
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        overrides = [
            *FEW,
            f"model.id={folder}/base",
            "model.dtype=float32",
            f"tracking.uri={store}",
        ]
        config = load_config(compose("config", overrides=overrides))
    experiment(config, About("a small run", "", [], folder / "scratch"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", store)
        yield folder


def client_of(world: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{world}/mlruns/mlflow.db")


def runs_of(client: MlflowClient, kind: str = "tuned") -> list[Run]:
    experiments = [e.experiment_id for e in client.search_experiments()]
    return list(
        client.search_runs(
            experiments, f"tags.`slimdown.kind` = '{kind}'", order_by=["attributes.start_time"]
        )
    )


def adapter_of(world: Path) -> Path:
    [logged] = client_of(world).search_logged_models(
        [e.experiment_id for e in client_of(world).search_experiments()]
    )
    return Path(logged.artifact_location.removeprefix("file://"))


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        merge.main(arguments)
    said = str(stopped.value.code)
    assert said.startswith("This run cannot be merged:\n  ")
    assert said.count("\n") == 1
    return said


@pytest.fixture(scope="module")
def out(world: Path) -> Path:
    """The run, merged as the command does without a wish of its own."""
    merge.main(["a small run", "--out", str(world / "out")])
    return world / "out"


def test_what_is_written_is_a_model_as_large_as_the_original_and_says_nothing_of_this_machine(
    world: Path, out: Path
) -> None:
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
    } <= {file.name for file in out.iterdir()}
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (world / "base", out)]
    assert abs(sizes[1] - sizes[0]) < 1000
    assert (
        transformers.AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16
    )  # as the original
    assert not any(str(world).encode() in file.read_bytes() for file in out.iterdir())
    assert not [file.name for file in world.iterdir() if file.name.startswith(".")]


def test_the_cards_are_read_by_the_hubs_own_library(world: Path, out: Path) -> None:
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard_data import model_index_to_eval_results

    [run] = runs_of(client_of(world))[:1]
    for folder, library in ((out, "transformers"), (adapter_of(world), "peft")):
        card = ModelCard.load(folder / "README.md")
        data = card.data.to_dict()
        assert data["library_name"] == library
        assert "base_model" not in data  # a folder is none for the hub
        if folder == out:
            assert "model-index" not in data  # what was measured is another model
            assert "measured before it was merged, and not again" in card.text
            continue
        _, results = model_index_to_eval_results(data["model-index"])
        values = {(r.dataset_name, r.metric_name): r.metric_value for r in results}
        assert values["pocket_cs", "acc, %"] == pytest.approx(
            100 * run.data.metrics["tuned/pocket_cs/acc"]
        )
        assert f"run `{run.info.run_id}`" in card.text
        assert "| pocket_math | strict-match | 8 |" in card.text
        assert f"Digest of their text: `{run.data.tags['slimdown.data_fingerprint']}`" in card.text
        assert f"`base` at `{run.data.tags['slimdown.model_revision']}`" in card.text
        assert "lora.r: 8" in card.text


def test_4_bit_weights_are_unpacked_to_what_the_run_unpacked_them_to(
    composed: Callable[..., RunConfig],
) -> None:
    """`auto` is this machine's choice, and goes by the device and not by `model.dtype`."""
    settings = flatten(composed("model.dtype=float32", "quantization.bnb_4bit_compute_dtype=auto"))
    for computed in ("bfloat16", "float32"):
        model, quantization = recorded_base(settings, "float32", computed, "main")
        assert (model.dtype, quantization.bnb_4bit_compute_dtype) == ("float32", computed)


def test_a_score_that_is_no_share_is_not_told_in_percent() -> None:
    before, after = (
        evaluation(p=written(scores)) for scores in ([12.5, 13.5, 11.0], [14.0, 13.0, 12.0])
    )
    values = {
        result.metric_name: result.metric_value for result in card._results(judge(before, after))
    }
    assert values == {"match.flexible": 13.0, "match.strict, %": 0.0}


def test_a_card_says_of_how_many_questions_its_scores_are() -> None:
    early = [evaluation(p=stopped(written([score] * 1319), 45)) for score in (1.0, 0.0)]
    found = judge(*early)
    assert [one.dataset_args for one in card._results(found)] == [
        {"num_fewshot": 0, "questions": "45 of 1,319"}
    ] * 2
    asked = "\n".join(
        card._questions(making(RecordedRun("id", "", "", "", datetime.now(UTC))), found, None)
    )
    assert "0-shot, 45 of 1,319 questions, judged by" in asked


def test_the_python_of_a_card_loads_what_lies_beside_it(world: Path, out: Path) -> None:
    answers = []
    for folder in (out, adapter_of(world)):
        code = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
        names: dict[str, Any] = {}
        code = code.replace("'FOLDER'", repr(str(folder))).replace("'out'", repr(str(out)))
        exec(code.replace("'base'", repr(str(world / "base"))), names)
        answers.append(logits(names["model"]))
    assert (answers[0] - answers[1]).abs().max() < 0.5  # bfloat16 and float32
    assert (
        answers[0] - logits(transformers.AutoModelForCausalLM.from_pretrained(world / "base"))
    ).abs().max() > 1


def test_onto_the_original_nothing_of_the_quantization_is_left(world: Path, out: Path) -> None:
    merge.main(
        ["a small run", "--out", str(world / "onto"), "--onto", "original", "--dtype", "float32"]
    )
    published, onto, default = (
        load_file(f / "model.safetensors") for f in (world / "base", world / "onto", out)
    )
    untouched = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(onto[untouched], published[untouched].float())
    assert not torch.equal(default[untouched], published[untouched])
    assert (
        "its weights as published, although it was trained on what nf4"
        in (world / "onto" / "README.md").read_text()
    )


def test_measured_it_is_a_run_of_its_own_and_its_card_says_what_merging_changed(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {run.info.run_id for run in runs_of(client_of(world))}
    merge.main(
        ["a small run", "--out", str(world / "measured"), "--dtype", "float32", "--evaluate"]
    )
    [made] = [run for run in runs_of(client_of(world)) if run.info.run_id not in before]
    assert made.info.status == "FINISHED"
    assert made.data.tags["slimdown.merged"] in before
    assert made.data.tags["slimdown.quantization"] == "none"
    assert made.data.tags["slimdown.dtype"] == "float32"
    assert made.data.tags["slimdown.origin"].startswith(f"{world}/measured@sha256:")
    [first] = [
        run
        for run in runs_of(client_of(world))
        if run.info.run_id == made.data.tags["slimdown.merged"]
    ]
    for benchmark in (
        "pocket_math/exact_match.strict-match",
        "pocket_cs/acc",
    ):  # float32 throughout: the same answers
        assert made.data.metrics[f"tuned/{benchmark}"] == first.data.metrics[f"tuned/{benchmark}"]
    card = (world / "measured" / "README.md").read_text()
    assert "model-index:" in card
    assert "## What merging changed" in card
    assert "The base as published, in float32, and this model as it lies here" in card
    shown = capsys.readouterr().out
    assert "first" in shown
    assert "second" in shown
    client_of(world).delete_run(made.info.run_id)


def test_a_run_that_has_nothing_to_merge_is_refused_with_the_reason(
    store: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, params, answer in (
        (
            "prefix",
            {"method.name": "prefix"},
            "method=prefix: it puts virtual tokens before every layer's own",
        ),
        (
            "bottleneck",
            {"method.name": "bottleneck"},
            "method=bottleneck: it puts layers of its own between",
        ),
        ("given", {"tuned": "you/yours"}, "trained nothing: it measured you/yours, made elsewhere"),
        ("lost", {}, "has lost what it trained"),
        (
            "whole",
            {"method.name": "full"},
            "--onto original: method=full trained the weights themselves",
        ),
    ):
        record(name, params, {"a": right(8, 10)}, {"a": right(6, 10)})
        onto = ["--onto", "original"] if name == "whole" else []
        assert answer in refused([name, "--out", str(tmp_path / "out"), *onto], capsys)
    assert "there is no run nope" in refused(["nope", "--out", str(tmp_path / "out")], capsys)
    broken = record("broken", {}, {"a": right(8, 10)}, {"a": right(6, 10)})
    store.set_terminated(broken, "FAILED")
    assert "failed" in refused([broken, "--out", str(tmp_path / "out")], capsys)
    assert not (tmp_path / "out").exists()


def test_a_base_run_is_refused(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [baseline, *_] = runs_of(client_of(world), "baseline")
    said = refused([baseline.info.run_id, "--out", str(world / "no")], capsys)
    assert "is the measurement of a base" in said


def test_a_place_that_holds_something_or_can_hold_nothing_is_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    for out, answer in (
        (tmp_path / "full", "is a folder in use; name one that is not there, or empty it"),
        (Path.cwd(), "is a folder in use"),
        (tmp_path / "file", "is a file; name a folder"),
        (tmp_path / "file" / "in", "is a file; name a folder"),
    ):
        assert answer in refused(["a small run", "--out", str(out)], capsys)
    assert (tmp_path / "full" / "mine").read_text() == "x"


def test_another_base_is_refused_and_nothing_is_left(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(world / "base" / "model.safetensors")
    kept = (world / "base" / "model.safetensors").read_bytes()
    try:
        changed = {name: weight + 0.01 for name, weight in weights.items()}
        save_file(changed, world / "base" / "model.safetensors", {"format": "pt"})
        said = refused(["a small run", "--out", str(world / "no")], capsys)
        assert "is another base by now: this folder is sha256:" in said
        assert "put those back" in said
        (world / "base").rename(world / "away")
        said = refused(["a small run", "--out", str(world / "no")], capsys)
        assert f"model.id={world}/base" in said
    finally:
        if (world / "away").is_dir():
            (world / "away").rename(world / "base")
        (world / "base" / "model.safetensors").write_bytes(kept)
    assert not [file.name for file in world.iterdir() if "no" in file.name.split(".")]


def test_a_disk_that_takes_no_more_is_named_and_no_half_is_left(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        said = refused(["a small run", "--out", str(world / "no")], capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "the disk takes no more" in said
    assert "Nothing is left of it. Make room, or name a folder on another disk" in said
    assert not [file.name for file in world.iterdir() if "no" in file.name.split(".")]


def test_a_disk_without_room_is_refused_before_anything_is_written(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(world)._replace(free=3_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    said = refused(["a small run", "--out", str(world / "no")], capsys)
    assert "3.9 MB are needed for 1,967,808 parameters in bfloat16, and 3.0 MB are free" in said


# --- MLflow ---------------------------------------------------------------------------------------------------

ASK = """
import json, sys
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
asked = json.loads(sys.argv[2])
print("ANSWER" + json.dumps([model.predict(asked), model.predict(asked, params={"max_new_tokens": 3})]))
"""


def test_through_a_server_mlflow_loads_it_as_measured_and_it_is_merged(
    migrated_store: Path, tmp_path: Path, composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(migrated_store, tmp_path / "server.db")
    with MlflowServer(tmp_path) as server:
        experiment(
            composed(*FEW, f"tracking.uri={server.uri}"),
            About("served", "", [], tmp_path / "scratch"),
        )
        [run] = runs_of(MlflowClient(server.uri))
        prompts = ["Question: Tom has 3 apples and buys 4 more. How many has he?\nAnswer:", "Once"]
        done = subprocess.run(
            [sys.executable, "-c", ASK, f"runs:/{run.info.run_id}/adapter", json.dumps(prompts)], cwd=tmp_path,
            env={**os.environ, "MLFLOW_TRACKING_URI": server.uri}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        [line] = [line for line in done.stdout.splitlines() if line.startswith("ANSWER")]
        merge.main([run.info.run_id, "--out", str(tmp_path / "out"), "--tracking-uri", server.uri])
    answers, short = json.loads(line.removeprefix("ANSWER"))
    config = composed()
    base = load_model(config.model, config.quantization)
    for prompt, answer, beginning in zip(prompts, answers, short, strict=True):
        tuned = load_tuned(base, tmp_path / "scratch" / "adapter")
        asked = base.tokenizer(prompt, return_tensors="pt")
        tokens = tuned.generate(**asked, max_new_tokens=128, do_sample=False)[
            0, asked.input_ids.shape[1] :
        ]
        assert answer == base.tokenizer.decode(tokens, skip_special_tokens=True)
        assert answer.startswith(beginning)
        base = load_model(config.model, config.quantization)
    assert (tmp_path / "out" / "README.md").is_file()
