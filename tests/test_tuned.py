"""What somebody else tuned: loaded as its makers load it, measured as a run measures its own, or refused in a line."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from conftest import SMALL
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file
from test_run import adapter_of as stored_adapter, runs_in

from slimdown.config.schema import RunConfig
from slimdown.experiment import experiment
from slimdown.models.identity import weights_digest
from slimdown.models.model import LoadedModel, load_model
from slimdown.pocket import MODEL_DIR
from slimdown.stats.findings import Findings
from slimdown.tracking.provenance import About
from slimdown.training.given import GivenAdapter, GivenModel
from slimdown.training.tuning import way_to_tuned
from slimdown.utils.errors import SlimdownError

Composed = Callable[..., RunConfig]
FEW = [
    "benchmark=[pocket_math,pocket_cs]",
    "benchmark.pocket_math.limit=8",
    "benchmark.pocket_cs.limit=8",
]
TOKENS = torch.arange(5, 17)[None]
LAYERS = {"target_modules": ["q_proj", "v_proj"]}
KINDS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(task_type="CAUSAL_LM", **LAYERS),
    "dora": lambda: peft.LoraConfig(
        task_type="CAUSAL_LM", use_dora=True, use_rslora=True, **LAYERS
    ),
    "lora without a task": lambda: peft.LoraConfig(target_modules="all-linear"),
    "saved embeddings": lambda: peft.LoraConfig(
        modules_to_save=["embed_tokens"], task_type="CAUSAL_LM", **LAYERS
    ),
    "trained tokens": lambda: peft.LoraConfig(
        trainable_token_indices=[5, 6], task_type="CAUSAL_LM", **LAYERS
    ),
    "ia3": lambda: peft.IA3Config(task_type="CAUSAL_LM", feedforward_modules=[], **LAYERS),
    "adalora": lambda: peft.AdaLoraConfig(
        task_type="CAUSAL_LM", total_step=9, tinit=1, tfinal=1, **LAYERS
    ),
    "vera": lambda: peft.VeraConfig(
        task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "o_proj"]
    ),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
}


def plain_model() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL_DIR)


def shaken(model: Any) -> Any:
    """As if it had been trained: every trainable number moved."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def adapter_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with an adapter of a kind for the embedded model, made with PEFT alone."""
    folder = tmp_path_factory.mktemp("adapters")

    def make(kind: str) -> Path:
        if not (folder / kind).is_dir():
            shaken(peft.get_peft_model(plain_model(), KINDS[kind]())).save_pretrained(folder / kind)
        return folder / kind

    return make


@pytest.fixture
def lora(adapter_of: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the LoRA adapter, to be damaged."""
    return Path(shutil.copytree(adapter_of("lora"), tmp_path / "adapter"))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=TOKENS, use_cache=False).logits
    return found


@pytest.mark.filterwarnings("ignore")  # PEFT's own
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_answers_as_peft_loads_it_and_leaves_the_base_alone(
    kind: str, adapter_of: Callable[[str], Path], pocket: LoadedModel, composed: Composed
) -> None:
    config = composed(f"tuned='{adapter_of(kind)}'")
    before, weights = logits(pocket.model), weights_digest(pocket.model)
    if kind == "vera" and tuple(map(int, version("peft").split(".")[:2])) < (0, 21):
        with pytest.raises(
            SlimdownError, match="vera_A"
        ):  # PEFT leaves the saved projections out and draws others
            way_to_tuned(pocket, config)
        return
    way = way_to_tuned(pocket, config)
    assert isinstance(way, GivenAdapter)
    given = way.obtain(Path("unused"), print, print)
    assert given.training is None
    expected = peft.PeftModel.from_pretrained(
        load_model(config.model, config.quantization).model, adapter_of(kind)
    )
    assert torch.equal(logits(given.model.model), logits(expected.eval()))
    assert not torch.equal(logits(given.model.model)[:, -12:], before)
    assert torch.equal(logits(pocket.model), before)
    assert weights_digest(pocket.model) == weights
    assert given.model.digest != pocket.digest
    assert way.notes == []
    ours = {tensor.data_ptr() for tensor in given.model.model.parameters()}
    n_shared = sum(tensor.data_ptr() in ours for tensor in pocket.model.parameters())
    assert n_shared >= len(list(pocket.model.parameters())) - 1  # memory for one model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_the_base_stays_itself_whatever_beginning_an_adapter_has_and_however_it_is_held(
    quantization: str, tmp_path: Path, composed: Composed
) -> None:
    start = "pissa" if quantization == "none" else True  # which changes the base's weights
    wanted = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=start, **LAYERS)
    shaken(peft.get_peft_model(plain_model(), wanted)).save_pretrained(tmp_path)
    config = composed(f"tuned='{tmp_path}'", f"quantization={quantization}")
    base = load_model(config.model, config.quantization)
    weights = weights_digest(base.model)
    given = way_to_tuned(base, config).obtain(tmp_path, print, print)
    expected = peft.PeftModel.from_pretrained(
        load_model(config.model, config.quantization).model, tmp_path
    )
    assert torch.equal(logits(given.model.model), logits(expected.eval()))
    assert weights_digest(base.model) == weights


def add_tokens(folder: Path) -> Any:
    """A tokenizer of two tokens more, and the embedded model with room for them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_DIR)
    tokenizer.add_tokens(["<a>", "<b>"])
    tokenizer.save_pretrained(folder)
    model = plain_model()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("whole", [False, True])
def test_added_tokens_are_allowed_and_told(
    whole: bool, tmp_path: Path, pocket: LoadedModel, composed: Composed
) -> None:
    model = add_tokens(tmp_path)
    if not whole:
        model = peft.get_peft_model(model, KINDS["saved embeddings"]())
    shaken(model).save_pretrained(tmp_path)
    way = way_to_tuned(pocket, composed(f"tuned='{tmp_path}'"))
    assert isinstance(way, GivenModel if whole else GivenAdapter)
    assert way.notes == [f"tuned={tmp_path} adds 2 to the tokens of pocket:model: <a>, <b>"]
    tuned = way.obtain(tmp_path, print, print).model
    if not whole:
        expected = load_model(composed().model, composed().quantization).model
        expected.resize_token_embeddings(len(tuned.tokenizer), mean_resizing=False)
        assert torch.equal(
            logits(tuned.model), logits(peft.PeftModel.from_pretrained(expected, tmp_path).eval())
        )
    assert tuned.tokenizer("<b>").input_ids[-1] == len(tuned.tokenizer) - 1
    embeddings = tuned.model.get_input_embeddings()(torch.tensor([len(tuned.tokenizer) - 1]))
    saved = load_file(next(tmp_path.glob("*.safetensors")))
    last = next(value[-1:] for key, value in saved.items() if key.endswith("embed_tokens.weight"))
    assert torch.equal(embeddings, last)


def test_a_tokenizer_whose_new_tokens_have_no_embeddings_is_not_used(
    lora: Path, pocket: LoadedModel, composed: Composed
) -> None:
    add_tokens(lora)
    way = way_to_tuned(pocket, composed(f"tuned='{lora}'"))
    assert "without embeddings of the tokens that its tokenizer adds" in way.notes[0]
    assert way.obtain(lora, print, print).model.tokenizer is pocket.tokenizer


def edit(file: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    change(weights)
    save_file(weights, folder / "adapter_model.safetensors")


def set_config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "adapter_config.json", lambda config: config.update(values))


def for_other_widths(folder: Path) -> None:
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        vocab_size=64,
    )
    peft.get_peft_model(transformers.LlamaForCausalLM(config), KINDS["lora"]()).save_pretrained(
        folder
    )


def for_more_layers(folder: Path) -> None:
    edit_weights(
        folder,
        lambda weights: weights.update(
            {next(iter(weights)).replace("layers.0", "layers.9"): torch.ones(8, 192)}
        ),
    )


def with_another_tokenizer(folder: Path) -> None:
    for file in MODEL_DIR.glob("token*.json"):
        shutil.copy(file, folder)

    def swap(content: Any) -> None:
        vocabulary = content["model"]["vocab"]
        first, second = list(vocabulary)[40:42]
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]

    edit(folder / "tokenizer.json", swap)


def that_cuts_otherwise(folder: Path) -> None:
    for file in MODEL_DIR.glob("token*.json"):
        shutil.copy(file, folder)
    edit(
        folder / "tokenizer.json", lambda content: content.update(normalizer={"type": "Lowercase"})
    )


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "other widths": (
        for_other_widths,
        "it was made on another base, or is of a kind that needs quantization=none (Err",
    ),
    "other modules": (
        set_config(target_modules=["c_attn"]),
        "does not fit on pocket:model: it was made on another base",
    ),
    "more layers": (
        for_more_layers,
        "1 of its weights are missing or find no place, base_model.model.model.layers.9",
    ),
    "a weight less": (
        lambda f: edit_weights(f, lambda w: w.pop(sorted(w)[3])),
        "1 of its weights are missing",
    ),
    "nan": (
        lambda f: edit_weights(f, lambda w: [t.fill_(torch.nan) for t in w.values()]),
        "computes no numbers",
    ),
    "another task": (
        set_config(task_type="SEQ_CLS"),
        "is an adapter for SEQ_CLS; only CAUSAL_LM can be asked",
    ),
    "an unknown kind": (set_config(peft_type="NOPE"), "cannot be loaded: "),
    "another tokenizer": (with_another_tokenizer, "has another tokenizer than pocket:model: 2 of "),
    "another normalizer": (
        that_cuts_otherwise,
        "has another tokenizer than pocket:model: it cuts ",
    ),
    "cut short": (
        lambda f: (f / "adapter_model.safetensors").write_bytes(
            (f / "adapter_model.safetensors").read_bytes()[:-9]
        ),
        "a .safetensors file is damaged or cut short",
    ),
    "no JSON": (lambda f: (f / "adapter_config.json").write_text("{"), "cannot be loaded: "),
    "a list": (lambda f: (f / "adapter_config.json").write_text("[1]"), "cannot be loaded: "),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", DAMAGE)
def test_an_adapter_that_is_not_the_bases_is_refused_in_a_line_before_anything_is_measured(
    what: str, lora: Path, pocket: LoadedModel, composed: Composed
) -> None:
    damage, answer = DAMAGE[what]
    damage(lora)
    with pytest.raises(SlimdownError) as caught:
        way_to_tuned(pocket, composed(f"tuned='{lora}'"))
    assert str(caught.value).startswith(f"tuned={lora}")
    assert answer in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "answer"),
    [
        (
            lambda f: (f / "model.safetensors").write_bytes(
                (f / "model.safetensors").read_bytes()[:-9]
            ),
            "cut short",
        ),
        (with_another_tokenizer, "has another tokenizer than pocket:model"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be loaded: "),
        (
            lambda f: edit(
                f / "config.json",
                lambda c: c.update(auto_map={"AutoConfig": "evil.C"}, model_type="evil"),
            ),
            "needs code of its own",
        ),
    ],
)
def test_a_model_that_cannot_be_asked_alike_is_refused_before_anything_is_measured(
    damage: Callable[[Path], object],
    answer: str,
    tmp_path: Path,
    pocket: LoadedModel,
    composed: Composed,
) -> None:
    shutil.copytree(MODEL_DIR, tmp_path / "model")
    (tmp_path / "model" / "evil.py").write_text("raise SystemExit('run')")
    damage(tmp_path / "model")
    with pytest.raises(SlimdownError, match=answer) as caught:
        way_to_tuned(pocket, composed(f"tuned='{tmp_path}/model'"))
    assert str(caught.value).startswith(f"tuned={tmp_path}/model")


def run(config: RunConfig, folder: Path) -> Findings:
    return experiment(config, About("given", "", [], folder))


@pytest.fixture
def here(store: MlflowClient, tmp_path: Path) -> str:
    return f"tracking.uri=sqlite:///{tmp_path}/mlruns/mlflow.db"


def answers(findings: Findings) -> list[Any]:
    return [
        (s.doc_hash, s.log_likelihoods, s.scores)
        for r in findings.after.benchmarks.values()
        for s in r.samples
    ]


def test_the_adapter_of_a_run_has_that_runs_scores_and_finds_its_evaluations(
    composed: Composed, here: str, store: MlflowClient, tmp_path: Path
) -> None:
    trained = run(composed(*SMALL[:2], *FEW, here, "train.max_steps=3"), tmp_path)
    [made] = runs_in(store)
    adapter = stored_adapter(store, made).artifact_location.removeprefix("file://")
    given = [*FEW, here, f"tuned='{adapter}'"]
    anew = run(composed(*given, "baseline.reuse=false"), tmp_path)
    assert answers(anew) == answers(trained)
    assert anew.training is None
    found = run(composed(*given), tmp_path)
    assert answers(found) == answers(trained)
    seconds = [
        [report.seconds for report in one.after.benchmarks.values()] for one in (found, anew)
    ]
    assert seconds[0] == seconds[1]  # nothing was asked


def test_a_model_is_measured_against_itself_without_change_and_takes_the_bases_room(
    composed: Composed, here: str, tmp_path: Path, pocket: LoadedModel
) -> None:
    same = shutil.copytree(MODEL_DIR, tmp_path / "a@b")
    findings = run(composed(*FEW, here, f"tuned='{same}'"), tmp_path)
    assert [c.primary.difference.value for c in findings.changes.benchmarks.values()] == [0.0, 0.0]
    way_to_tuned(pocket, composed(f"tuned='{same}'")).obtain(tmp_path, print, print)
    assert sum(t.numel() for t in chain(pocket.model.parameters(), pocket.model.buffers())) == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_both_are_asked_in_the_room_that_virtual_tokens_leave(
    kind: str, adapter_of: Callable[[str], Path], composed: Composed, here: str, tmp_path: Path
) -> None:
    findings = run(composed(*FEW, here, f"tuned='{adapter_of(kind)}'"), tmp_path)
    window = plain_model().config.max_position_embeddings
    assert (
        findings.before.scoring_path
        == findings.after.scoring_path
        == f"shared-merging-dequantized-window_{window - 4}"
    )
    assert answers(findings)


@pytest.mark.parametrize("longer", [True, False])
def test_two_windows_are_asked_in_the_shorter_one(
    longer: bool, composed: Composed, here: str, tmp_path: Path
) -> None:
    shutil.copytree(MODEL_DIR, tmp_path / "model")
    window = plain_model().config.max_position_embeddings
    other = 2 * window if longer else window // 2
    edit(
        tmp_path / "model" / "config.json",
        lambda config: config.update(max_position_embeddings=other),
    )
    findings = run(composed(*FEW, here, f"tuned='{tmp_path}/model'"), tmp_path)
    assert findings.before.scoring_path.endswith(f"-window_{min(window, other)}")
    assert findings.after.scoring_path == findings.before.scoring_path
    assert [c.primary.difference.value for c in findings.changes.benchmarks.values()] == [0.0, 0.0]


@pytest.mark.filterwarnings("ignore")
def test_a_sweep_measures_the_base_once_and_says_where_each_came_from(
    adapter_of: Callable[[str], Path], store: MlflowClient, tmp_path: Path
) -> None:
    folders = [
        shutil.copytree(adapter_of(kind), tmp_path / "made" / kind) for kind in ("dora", "ia3")
    ]
    merged = tmp_path / "made" / "merged"
    whole = peft.PeftModel.from_pretrained(plain_model(), folders[0]).merge_and_unload()
    whole.save_pretrained(merged)
    transformers.AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(merged)
    chosen = ",".join(f"made/{folder.name}" for folder in (*map(Path, folders), merged))
    command = [sys.executable, "-m", "slimdown.run", "-m", f"tuned={chosen}", *FEW]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    runs = runs_in(store)
    assert [run.info.run_name for run in runs] == [
        f"pocket tuned=made/{kind}" for kind in ("dora", "ia3", "merged")
    ]
    assert len(runs_in(store, "baseline")) == 1
    for made in runs:
        assert made.data.tags["slimdown.origin"].startswith(f"{made.data.params['tuned']}@sha256:")
        assert "slimdown.dataset" not in made.data.tags
        assert not [
            key for key in made.data.params if key.startswith(("dataset", "lora", "train", "seed"))
        ]
        assert made.inputs.dataset_inputs == []
        assert "forgetting/pocket_cs/change" in made.data.metrics
        config = Path(store.download_artifacts(made.info.run_id, "config.yaml")).read_text()
        assert "learning_rate" not in config
        assert "seed" not in config
        page = Path(store.download_artifacts(made.info.run_id, "report.html")).read_text()
        assert made.data.params["tuned"] in page
    compared = subprocess.run(
        [sys.executable, "-m", "slimdown.compare", "--format", "csv"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "made/ia3" in compared.stdout, compared.stderr
