"""Every method trains, leaves what its ecosystem loads, and answers there as it was measured."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import SMALL
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient
from test_until import Memory

from bench.families import tiny
from slimdown.config.commandline import check_command_line
from slimdown.config.files import CONF_DIR
from slimdown.config.loader import load_config
from slimdown.config.method import WHOLE, Method
from slimdown.config.schema import RunConfig
from slimdown.data.loading import load_data
from slimdown.evaluation.harness import choose_scoring, evaluate
from slimdown.evaluation.questions import load_tasks
from slimdown.evaluation.results import first_stages
from slimdown.evaluation.turns import Asking
from slimdown.evaluation.validation import validation_loss
from slimdown.models.identity import weights_digest
from slimdown.models.model import LoadedModel, load_model
from slimdown.tracking.pyfunc import Completing
from slimdown.training.fine_tune import Tuned, fine_tune
from slimdown.training.rows import prepare_rows
from slimdown.training.tuning import way_to_tuned
from slimdown.training.whole import trained_modules
from slimdown.utils.errors import ConfigError, SlimdownError

Composed = Callable[..., RunConfig]
UNQUANTIZED = {Method.pissa, Method.last_layer, Method.full}
SIZES = {  # of the embedded model: 4 layers of 192, 64 of them keys, 512 between the feed-forward layers
    Method.lora: 4 * 8 * (3 * 192 + 192 + 2 * 64),
    Method.rslora: 4 * 8 * (3 * 192 + 192 + 2 * 64),
    Method.dora: 4 * (8 * (3 * 192 + 192 + 2 * 64) + 192 + 2 * 64),
    Method.pissa: 4 * 8 * (3 * 192 + 192 + 2 * 64),
    Method.prefix: 20 * 4 * 2 * 64,
    Method.prompt: 20 * 192,
    Method.ia3: 4 * (64 + 64 + 512),
    Method.bottleneck: 4 * 2 * (16 * 2 * 192 + 16 + 192),
}
TOKENS = list(range(5, 60))

pytestmark = pytest.mark.filterwarnings("ignore:.*past_key_values` is deprecated:FutureWarning")


def settings_of(method: Method, *more: str) -> RunConfig:
    unquantized = ["quantization=none"] if method in UNQUANTIZED else []
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return load_config(
            compose("config", overrides=[*SMALL, f"method={method}", *unquantized, *more])
        )


def train(config: RunConfig, folder: Path, base: LoadedModel | None = None) -> Tuned:
    base = base or load_model(config.model, config.quantization)
    return way_to_tuned(base, config).obtain(
        folder, lambda record: None, lambda done, total, note: None
    )


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([TOKENS]), use_cache=False).logits
    return found[:, -len(TOKENS) :]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[Method, Tuned]:
    return {
        method: train(settings_of(method), tmp_path_factory.mktemp(method)) for method in Method
    }


@pytest.mark.parametrize("method", Method)
def test_a_method_learns_and_counts_what_it_trains(
    method: Method, trained: dict[Method, Tuned]
) -> None:
    result = trained[method].training
    assert result.steps == 8
    assert result.validation_loss_after < result.validation_loss_before
    whole = trained[method].model.n_parameters
    if method is Method.last_layer:
        assert (
            0.15 * whole < result.n_trainable < 0.25 * whole
        )  # one of four blocks, less the embeddings
    else:
        assert result.n_trainable == SIZES.get(method, whole)
    assert result.trainable_percent == pytest.approx(100 * result.n_trainable / whole)
    loss = [step.values["loss"] for step in result.history]
    assert min(loss[1:]) < loss[0]


RELOAD = """
import json, sys, torch, transformers, peft
import slimdown
from slimdown.models.model import load_model
from slimdown.config.schema import Device, Dtype, ModelConfig, QuantizationConfig, QuantType
float32, found = Dtype.float32, {}
for name, (folder, in_4bit) in json.load(sys.stdin).items():
    if name in ("full", "last_layer"):
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(folder)
        transformers.GenerationConfig.from_pretrained(folder)
    else:
        held = QuantizationConfig(in_4bit, False, QuantType.nf4, True, float32, "auto", "auto")
        base = load_model(ModelConfig("pocket:model", "main", float32, Device.cpu), held)
        loaded = peft.PeftModel.from_pretrained(base.model, folder)
    tokens = torch.tensor([%r])
    with torch.no_grad():
        logits = loaded.eval()(input_ids=tokens, use_cache=False).logits[:, -tokens.shape[1]:]
    found[name] = logits.double().flatten().tolist()
json.dump(found, sys.stdout)
"""


def test_what_is_saved_gives_the_same_logits_in_a_process_that_only_loads_it(
    trained: dict[Method, Tuned],
) -> None:
    asked = {
        m: (str(tuned.training.adapter_dir), m not in UNQUANTIZED) for m, tuned in trained.items()
    }
    threads = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"  # which decide how sums are rounded
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", threads + RELOAD % TOKENS],
        input=json.dumps(asked), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for method, tuned in trained.items():
        assert torch.equal(
            torch.tensor(found[method]), logits(tuned.model.model).double().flatten()
        ), method


@pytest.mark.parametrize(
    "method", [Method.prefix, Method.prompt, Method.pissa, Method.bottleneck, Method.last_layer]
)
def test_tuned_loads_what_was_saved_and_leaves_its_base_alone(
    method: Method, trained: dict[Method, Tuned], composed: Composed
) -> None:
    folder = trained[method].training.adapter_dir
    held = ["quantization=none"] if method in UNQUANTIZED else []
    config = composed(f"tuned='{folder}'", *held)
    base = load_model(config.model, config.quantization)
    weights = weights_digest(base.model)
    way = way_to_tuned(base, config)
    if method is not Method.last_layer:  # which takes the base's place
        assert weights_digest(base.model) == weights
    given = way.obtain(folder, print, print)
    assert torch.equal(logits(given.model.model), logits(trained[method].model.model))


@pytest.mark.parametrize(
    "method", [Method.lora, Method.dora, Method.pissa, Method.prefix, Method.ia3, Method.bottleneck]
)
def test_the_base_of_an_adapter_is_as_it_was(method: Method, trained: dict[Method, Tuned]) -> None:
    config = settings_of(method)
    fresh = load_model(config.model, config.quantization).model
    with trained[method].model.model.disable_adapter():
        assert torch.equal(logits(trained[method].model.model), logits(fresh))


def test_every_tuned_model_has_an_identity_of_its_own(
    trained: dict[Method, Tuned], tmp_path: Path
) -> None:
    assert len({tuned.model.digest for tuned in trained.values()}) == len(trained)
    again = train(settings_of(Method.full), tmp_path)
    assert again.model.digest == trained[Method.full].model.digest
    other = train(settings_of(Method.full, "seed=1"), tmp_path / "other")
    assert other.model.digest != again.model.digest


@pytest.mark.parametrize("method", Method)
def test_base_and_tuned_are_asked_alike_on_the_shared_path(
    method: Method, trained: dict[Method, Tuned]
) -> None:
    config = settings_of(method)
    chosen = {name: config.benchmark[name] for name in ("pocket_math", "pocket_cs")}
    base, tasks = load_model(config.model, config.quantization), load_tasks(chosen)
    way = way_to_tuned(base, config)
    scoring = choose_scoring(base, tasks, chosen, config.evaluation, tuned=way.adapter)
    assert scoring.shares
    assert scoring.decodes
    found = evaluate(trained[method].model, tasks, chosen, config.evaluation, scoring)
    by_stock = replace(scoring, shares=False, merges=False, decodes=False)
    stock = evaluate(
        trained[method].model,
        tasks,
        {"pocket_cs": chosen["pocket_cs"]},
        config.evaluation,
        by_stock,
    )
    pairs = zip(
        found.benchmarks["pocket_cs"].samples, stock.benchmarks["pocket_cs"].samples, strict=True
    )
    for sample, expected in pairs:
        assert sample.log_likelihoods == pytest.approx(expected.log_likelihoods, abs=1e-3)


@pytest.mark.parametrize("method", [method for method in Method if method not in WHOLE])
def test_with_the_adapter_off_the_base_answers_as_it_did_alone_to_the_bit(
    method: Method, trained: dict[Method, Tuned], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slimdown.evaluation.order.FIRST", 4)
    config = settings_of(method, "evaluation.until=decided")
    written = ["pocket_math"] if method in (Method.lora, Method.prefix) else []
    config.benchmark = {
        name: replace(config.benchmark[name], limit=6) for name in ("pocket_cs", *written)
    }
    alone, tuned = load_model(config.model, config.quantization), trained[method].model
    asking = Asking.alike(
        alone, load_tasks(config.benchmark), config, way_to_tuned(alone, config).adapter
    )
    told: Any = lambda done, total, note: None  # noqa: E731
    expected = asking.base(alone, Memory(), told, stays=False)
    first = {name: first_stages(report, 1) for name, report in expected.benchmarks.items()}
    before, base = (
        replace(expected, benchmarks=first),
        replace(alone, model=tuned.model.get_base_model()),
    )
    found, after = asking.both(
        before, base, tuned, (Memory(), Memory()), lambda *looked: {*config.benchmark}, told
    )
    for name, report in expected.benchmarks.items():
        assert report.stages == (4, 6)
        assert found.benchmarks[name].samples == report.samples
    assert after.benchmarks["pocket_cs"].samples != expected.benchmarks["pocket_cs"].samples


@pytest.mark.parametrize("method", [Method.prefix, Method.prompt])
def test_the_validation_loss_behind_virtual_tokens_is_that_of_each_row_alone(
    method: Method, trained: dict[Method, Tuned]
) -> None:
    config, tuned = settings_of(method), trained[method].model
    rows = prepare_rows(
        tuned, load_data(config.dataset, 0, tuned.tokenizer), config.train
    ).validation
    losses = []
    for row in rows:
        labels = torch.tensor(row["labels"][1:])
        with torch.no_grad():
            scores = tuned.model(input_ids=torch.tensor([row["input_ids"]])).logits[
                0, -len(labels) - 1 : -1
            ]
        counted = labels != -100
        losses.append(
            (
                torch.nn.functional.cross_entropy(
                    scores[counted], labels[counted], reduction="sum"
                ),
                counted.sum(),
            )
        )
    expected = sum(loss for loss, _ in losses) / sum(n for _, n in losses)
    assert validation_loss(tuned, tuned.model, rows, config.train) == pytest.approx(
        float(expected), rel=1e-4
    )


@pytest.mark.parametrize("method", [Method.prompt, Method.prefix, Method.lora])
def test_a_step_is_over_the_tokens_that_validation_scores(method: Method, tmp_path: Path) -> None:
    """Behind virtual tokens the first token of a row could be scored as well, and nowhere else."""
    still = ["train.learning_rate=1e-12", "train.warmup_steps=0", "train.max_steps=1"]
    rows_of_one_batch = [
        "dataset.pocket_instructions.max_examples=8",
        "train.per_device_train_batch_size=8",
    ]
    config = settings_of(
        method, "train.completion_only_loss=false", "quantization=none", *still, *rows_of_one_batch
    )
    base = load_model(config.model, config.quantization)
    rows = prepare_rows(base, load_data(config.dataset, 0, base.tokenizer), config.train)
    tuned = fine_tune(base, rows, config.method, config.lora, config.train, 0, tmp_path)
    assert tuned.training
    loss = validation_loss(base, tuned.model.model, rows.train, config.train)
    assert tuned.training.history[0].values["loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("method", [Method.prefix, Method.prompt, Method.bottleneck])
def test_what_mlflow_loads_completes_a_prompt_as_plain_forwards_do(
    method: Method, trained: dict[Method, Tuned]
) -> None:
    tuned = trained[method].model
    tokens = start = torch.tensor([tuned.tokenizer("Question: 3 + 4 =").input_ids])
    for _ in range(12):
        with torch.no_grad():
            best = (
                tuned.model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
                .logits[:, -1:]
                .argmax(-1)
            )
        tokens = torch.cat([tokens, best], dim=1)
        if best == tuned.tokenizer.eos_token_id:  # the generation config may hold a list of them
            break
    expected = tuned.tokenizer.decode(tokens[0, start.shape[1] :], skip_special_tokens=True)
    assert Completing(tuned).predict(["Question: 3 + 4 ="], {"max_new_tokens": 12}) == [expected]


def test_full_and_last_layer_have_the_losses_of_plain_trl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trl

    lean = {
        m: train(settings_of(m), tmp_path / m).training.history
        for m in (Method.full, Method.last_layer)
    }
    monkeypatch.setattr(
        "slimdown.training.fine_tune.trainer_class", lambda base, model: trl.SFTTrainer
    )
    monkeypatch.setattr(
        "slimdown.evaluation.rows_apart.tells_rows_apart", lambda base, model=None: False
    )
    for method, history in lean.items():
        plain = train(settings_of(method), tmp_path / f"plain {method}").training.history
        for name in ("loss", "grad_norm"):
            ours = [record.values[name] for record in history]
            assert ours == pytest.approx([record.values[name] for record in plain], rel=2e-3), (
                method,
                name,
            )


def test_only_the_last_block_and_norm_change(trained: dict[Method, Tuned]) -> None:
    fresh = load_model(settings_of(Method.full).model, settings_of(Method.full).quantization).model
    before = dict(fresh.named_parameters())
    changed = {
        n
        for n, p in trained[Method.last_layer].model.model.named_parameters()
        if not torch.equal(p, before[n])
    }
    assert changed
    assert all(name.startswith(("model.layers.3.", "model.norm.")) for name in changed)
    everything = {
        n
        for n, p in trained[Method.full].model.model.named_parameters()
        if not torch.equal(p, before[n])
    }
    assert everything == before.keys()


def test_a_model_in_half_precision_is_trained_in_float32_and_kept_as_it_came(
    tmp_path: Path,
) -> None:
    tuned = train(settings_of(Method.last_layer, "model.dtype=bfloat16"), tmp_path)
    assert {p.dtype for p in tuned.model.model.parameters()} == {torch.bfloat16}
    saved = transformers.AutoModelForCausalLM.from_pretrained(
        tuned.training.adapter_dir, dtype="auto"
    )
    assert saved.dtype == torch.bfloat16
    assert torch.equal(logits(saved), logits(tuned.model.model))


def test_a_bottleneck_cannot_be_merged(trained: dict[Method, Tuned]) -> None:
    for merge in (
        trained[Method.bottleneck].model.model.merge_and_unload,
        trained[Method.bottleneck].model.model.merge_adapter,
    ):
        with pytest.raises(ValueError, match="not linear and cannot be merged"):
            merge()


# --- refused early ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (
            "-m lora.r=8,16 method=ia3",
            "lora.r=16: method=ia3 reads no settings of lora, and it has no size",
        ),
        (
            "-m lora.r=8,16 method=lora,prefix",
            "method=prefix reads no settings of lora, and its size is method.num_v",
        ),
        (
            "lora=mlp method=bottleneck",
            "lora=mlp: method=bottleneck reads no settings of lora, and its size is",
        ),
        (
            "-m method.num_virtual_tokens=4,8 method=ia3",
            "method=ia3 has none such; it is a setting of prefix, prompt",
        ),
        ("method.bottleneck_dim=4", "method=lora has none such; it is a setting of bottleneck"),
        (
            "method=prefix method.num_virtual_tokens=0",
            "method.num_virtual_tokens must be at least 1, got 0",
        ),
        (
            "method=prefix method.num_virtual_tokens=null",
            "must be set for method=prefix; choosing method=prefix sets",
        ),
        (
            "method.name=full",
            "method=full trains the weights themselves, which those of quantization=nf4 cannot be",
        ),
        ("method=last_layer", "set quantization=none"),
        ("method=pissa", "set quantization=none"),
        (
            "method=pissa method.init_lora_weights=olora quantization=none",
            "must be pissa or pissa_niter_16, got olora",
        ),
        (
            "method=pissa method.init_lora_weights=pissa_niter_0 quantization=none",
            "pissa_niter_16, got pissa_niter_0",
        ),
        (
            "method=prefix train.gradient_checkpointing=true",
            "which train.gradient_checkpointing=true drops",
        ),
        (
            "method=ia3 method.feedforward_modules=[up_proj]",
            "feedforward_modules=up_proj must be among target_modules",
        ),
        ("method=prefx", "there is no such method; did you mean prefix?"),
        ("tuned=pocket:model method=ia3", "nothing is trained: leave out method=ia3"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_anything_is_loaded(
    arguments: str, answer: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        check_command_line(arguments.split())
    assert answer in str(refused.value)


@pytest.mark.parametrize("method", Method)
def test_the_defaults_of_lora_are_in_nobodys_way(method: Method) -> None:
    check_command_line([f"method={method}", "quantization=none"])


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        (
            "method=prompt method.num_virtual_tokens=512",
            "=512 is beyond the 512 tokens that pocket:model was made for",
        ),
        (
            "method=prefix method.num_virtual_tokens=400",
            "with method.num_virtual_tokens=400 before each; set train.max",
        ),
        (
            "method=ia3 method.target_modules=[k_prj] method.feedforward_modules=[]",
            r"no k_prj \(did you mean k_proj\?\)",
        ),
        (
            "method=bottleneck method.target_modules=[c_proj,o_proj]",
            r"method.target_modules: pocket:model has no c_proj",
        ),
        (
            "method=lora lora.target_modules=[q_proj,lm_head]",
            "lm_head is the head of pocket:model, and TRL trains no adapter",
        ),
        (
            "method=bottleneck method.bottleneck_dim=100000",
            "the largest that is smaller has method.bottleneck_dim=",
        ),
        ("method=ia3 model.dtype=bfloat16", "set quantization=none or model.dtype=float32"),
        (
            "method=lora lora.target_modules=[q_porj]",
            r"has no q_porj \(did you mean q_proj\?\); its linear layers are",
        ),
        (
            "method=pissa quantization=none lora.r=65",
            "layers.0.self_attn.k_proj .* a rank of at most 64, .* lora.r=64",
        ),
        (
            "method=dora lora.r=193",
            "a rank of at most 192, and a higher one adds nothing; set lora.r=192 or less",
        ),
        (
            "method=last_layer quantization=none method.lm_head=true",
            "the head of pocket:model is its embeddings",
        ),
    ],
)
def test_what_the_model_cannot_take_is_refused_before_the_base_is_measured(
    settings: str, answer: str, composed: Composed
) -> None:
    config = composed(*SMALL, *settings.split())
    with pytest.raises(SlimdownError, match=answer):
        way_to_tuned(load_model(config.model, config.quantization), config)


# --- other families ------------------------------------------------------------------------------------

TARGETS = {
    "gpt2": ("[c_attn]", "[c_attn,mlp.c_proj]", "[mlp.c_proj]", "[c_proj]"),
    "gpt_neox": (
        "[query_key_value]",
        "[query_key_value,dense_4h_to_h]",
        "[dense_4h_to_h]",
        "[dense,dense_4h_to_h]",
    ),
}


def of_family(family: str, pocket: LoadedModel) -> LoadedModel:
    """A tiny random model of another family that knows the embedded world's tokens."""
    model = tiny(family, vocab_size=len(pocket.tokenizer), max_position_embeddings=512)
    return replace(
        pocket,
        model=model.eval(),
        id=f"tiny/{family}",
        quantization="none",
        n_parameters=model.num_parameters(),
    )


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_other_families_are_trained_too(
    family: str, method: Method, pocket: LoadedModel, tmp_path: Path
) -> None:
    lora, ia3, feedforward, bottleneck = TARGETS[family]
    own = {
        Method.ia3: [f"method.target_modules={ia3}", f"method.feedforward_modules={feedforward}"],
        Method.bottleneck: [f"method.target_modules={bottleneck}"],
    }
    few = ["train.max_steps=2", "train.max_length=64"]
    config = settings_of(
        method, *few, *own.get(method, [f"lora.target_modules={lora}", "lora.r=2"])
    )
    base = of_family(family, pocket)
    before = logits(base.model)
    tuned = train(config, tmp_path, base)
    assert tuned.training.steps == 2
    assert not torch.equal(logits(tuned.model.model), before)


def test_a_family_that_keeps_no_keys_and_values_takes_no_prefix(pocket: LoadedModel) -> None:
    base = of_family("mamba", pocket)
    with pytest.raises(
        SlimdownError,
        match=r"an adapter of kind prefix_tuning does not fit on tiny/mamba: .*; choose another method",
    ):
        way_to_tuned(base, settings_of(Method.prefix, "quantization=none"))


def test_the_last_block_of_other_families_is_found(pocket: LoadedModel) -> None:
    for family, norm in (
        ("gpt2", "ln_f"),
        ("gpt_neox", "final_layer_norm"),
        ("opt", "final_layer_norm"),
    ):
        base = of_family(family, pocket)
        names = {id(m): name for name, m in base.model.named_modules()}
        found = [names[id(m)] for m in trained_modules(base, settings_of(Method.last_layer).method)]
        assert found[0].endswith(".1"), found
        assert [name.rsplit(".", 1)[-1] for name in found[1:]] == [norm]


# --- a run -----------------------------------------------------------------------------------------------


def test_runs_of_several_methods_are_recorded_and_compared(
    store: MlflowClient, tmp_path: Path
) -> None:
    few = [
        "benchmark=[pocket_math,pocket_cs]",
        *SMALL[:3],
        *SMALL[4:5],
        *SMALL[6:],
        "train.max_steps=2",
    ]
    command = [
        sys.executable,
        "-m",
        "slimdown.run",
        "-m",
        "experiment=methods",
        "method=lora,prompt,full",
        *few,
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    runs = {
        run.data.params["method.name"]: run
        for run in store.search_runs(["1"], "tags.`slimdown.kind` = 'tuned'")
    }
    assert runs.keys() == {"lora", "prompt", "full"}
    assert runs["lora"].data.params["lora.r"] == "4"
    assert not [key for key in runs["full"].data.params if key.startswith("lora.")]
    assert runs["prompt"].data.params["method.num_virtual_tokens"] == "75"
    assert {k for k in runs["prompt"].data.params if k.startswith("method.")} == {
        "method.name",
        "method.num_virtual_tokens",
    }
    rates = {name: float(run.data.params["train.learning_rate"]) for name, run in runs.items()}
    assert rates["prompt"] > rates["lora"] > rates["full"]
    sizes = {name: run.data.metrics["train/n_trainable"] for name, run in runs.items()}
    assert sizes["prompt"] == pytest.approx(sizes["lora"], rel=0.05)
    for name, kind in (("lora", "adapter"), ("prompt", "adapter"), ("full", "model")):
        [output] = runs[name].outputs.model_outputs
        assert store.get_logged_model(output.model_id).name == kind
    assert not any(
        tuned.data.tags["slimdown.scoring_path"].startswith("stock") for tuned in runs.values()
    )


@pytest.mark.parametrize("method", [m for m in SIZES if m is not Method.ia3])
def test_the_sweep_over_methods_trains_equally_many_parameters(method: Method) -> None:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = load_config(
            compose("config", overrides=["experiment=methods", f"method={method}"])
        )
    size = {
        Method.prefix: (config.method.num_virtual_tokens or 0) * 4 * 2 * 64,
        Method.prompt: (config.method.num_virtual_tokens or 0) * 192,
        Method.bottleneck: 4 * 2 * ((config.method.bottleneck_dim or 0) * (2 * 192 + 1) + 192),
    }.get(method, SIZES[method] // 2)
    assert config.lora.r == 4
    assert size == pytest.approx(SIZES[Method.lora] / 2, rel=0.05)
