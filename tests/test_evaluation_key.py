"""Whatever an answer can depend on, changed alone, gives another key; what may share a key says why."""

import ast
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import slimdown
from slimdown.config.schema import (
    TRAINING,
    BenchmarkConfig,
    EvaluationConfig,
    ModelConfig,
    QuantizationConfig,
    RunConfig,
)
from slimdown.evaluation import measure as baseline
from slimdown.evaluation.harness import Evaluator, choose_scoring
from slimdown.evaluation.measure import MEASURING, READ_ONLY, evaluation_key
from slimdown.evaluation.questions import load_tasks
from slimdown.models import identity
from slimdown.models.identity import identify
from slimdown.models.model import LoadedModel, load_model
from slimdown.pocket import MODEL_DIR

Composed = Callable[..., RunConfig]
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The embedded model as a local folder, with a chat template."""
    copied = Path(shutil.copytree(MODEL_DIR, tmp_path / "model"))
    (copied / "chat_template.jinja").write_text(CHAT)
    return copied


@pytest.fixture
def settings(composed: Composed, folder: Path) -> Callable[..., RunConfig]:
    """The settings that every key here is compared with, and what is to differ."""
    fixed = [
        "benchmark=[pocket_math]",
        "benchmark.pocket_math.limit=4",
        "model.dtype=float32",
        f"model.id={folder}",
    ]
    fixed += ["quantization.bnb_4bit_compute_dtype=float32"]
    return lambda *overrides: composed(*fixed, *overrides)


def key_of(config: RunConfig, tasks: Any = None, loaded: LoadedModel | None = None) -> str:
    """The key that a run of these settings looks for."""
    loaded = loaded or load_model(config.model, config.quantization)
    [(name, benchmark)] = config.benchmark.items()
    tasks = tasks or load_tasks(config.benchmark)
    dequantize = config.quantization.dequantize_for_evaluation
    scoring = choose_scoring(loaded, tasks, config.benchmark, config.evaluation, dequantize)
    with Evaluator(loaded, config.evaluation, scoring) as evaluator:
        questions = evaluator.questions_hash(tasks[name], benchmark)
        return evaluation_key(loaded, scoring.path, questions, benchmark, config.evaluation)


_PLAIN: list[str] = []


@pytest.fixture
def plain(settings: Callable[..., RunConfig]) -> str:
    """The key that the others are compared with, made once: where the folder lies is not in it."""
    if not _PLAIN:
        _PLAIN.append(key_of(settings()))
    return _PLAIN[0]


# --- settings: every field of these, now and tomorrow --------------------------------------------------

OVERRIDES = {
    "model.dtype": "model.dtype=bfloat16",
    "model.attn_implementation": "model.attn_implementation=eager",
    "quantization.load_in_4bit": "quantization=none",
    "quantization.load_in_8bit": "quantization=int8",
    "quantization.bnb_4bit_quant_type": "quantization=fp4",
    "quantization.bnb_4bit_use_double_quant": "quantization.bnb_4bit_use_double_quant=false",
    "quantization.bnb_4bit_compute_dtype": "quantization.bnb_4bit_compute_dtype=bfloat16",
    "quantization.dequantize_for_evaluation": "quantization.dequantize_for_evaluation=false",
    "benchmark.task": "benchmark.pocket_math.task=pocket_math_dev",
    "benchmark.limit": "benchmark.pocket_math.limit=5",
    "benchmark.numeric_tolerance": "benchmark.pocket_math.numeric_tolerance=0.5",
    "evaluation.token_budget": "evaluation.token_budget=4096",
    "evaluation.batch_size": "evaluation.batch_size=3",
    "evaluation.apply_chat_template": "evaluation.apply_chat_template=true",
}
SHARED = {
    "quantization.dequantize_for_training": (
        "quantization.dequantize_for_training=false",
        "how training computes; the adapter that comes of it is in by its content",
    ),
    "benchmark.metric": (
        "benchmark.pocket_math.metric=exact_match.strict-match",
        READ_ONLY["benchmark"]["metric"],
    ),
    "benchmark.chance": ("benchmark.pocket_math.chance=0.3", READ_ONLY["benchmark"]["chance"]),
    "benchmark.role": ("benchmark.pocket_math.role=target", READ_ONLY["benchmark"]["role"]),
    "benchmark.paper_metric": (
        "benchmark.pocket_math.paper_metric=knowledge_loss",
        READ_ONLY["benchmark"]["paper_metric"],
    ),
    "benchmark.margin": ("benchmark.pocket_math.margin=0.1", READ_ONLY["benchmark"]["margin"]),
    "benchmark.max_loss": (
        "benchmark.pocket_math.max_loss=0.1",
        READ_ONLY["benchmark"]["max_loss"],
    ),
    "evaluation.holdout": ("evaluation.holdout=0.5", READ_ONLY["evaluation"]["holdout"]),
    "evaluation.until": ("evaluation.until=decided", READ_ONLY["evaluation"]["until"]),
}
ELSEWHERE = {
    "model.id": "test_the_same_content_elsewhere_has_the_same_key",
    "model.revision": "test_the_same_content_elsewhere_has_the_same_key",
    "model.device": "test_another_arithmetic_has_another_key",
    "benchmark.num_fewshot": "test_shots_have_another_key",
}
SECTIONS = {
    "model": ModelConfig,
    "quantization": QuantizationConfig,
    "benchmark": BenchmarkConfig,
    "evaluation": EvaluationConfig,
}
APART = {
    **dict.fromkeys(TRAINING, "what is made of the base, which is in by its weights"),
    "contamination": "which rows are refused",
    "tuned": "what is made of the base, by somebody else",
    "baseline": "whether the record is looked at",
    "tracking": "where the record is",
    "rerun": "whether what is finished is made again",
}
FIELDS = [
    f"{section}.{field.name}" for section, schema in SECTIONS.items() for field in fields(schema)
]


def test_every_setting_is_classified() -> None:
    """Does a new setting change answers? Then it is in OVERRIDES; if not, in SHARED with the reason."""
    assert sorted([*OVERRIDES, *SHARED, *ELSEWHERE]) == sorted(FIELDS)
    assert all(name in globals() for name in ELSEWHERE.values())
    assert {field.name for field in fields(RunConfig)} == {*SECTIONS, *APART}
    assert {f"{part}.{name}" for part, names in READ_ONLY.items() for name in names} <= set(SHARED)


@pytest.mark.parametrize("field", OVERRIDES)
def test_a_setting_that_changes_answers_has_another_key(
    field: str, settings: Composed, plain: str
) -> None:
    assert key_of(settings(OVERRIDES[field])) != plain


@pytest.mark.parametrize("field", SHARED)
def test_a_setting_that_does_not_has_the_same_key(
    field: str, settings: Composed, plain: str
) -> None:
    override, reason = SHARED[field]
    assert reason
    assert key_of(settings(override)) == plain


def test_shots_have_another_key(settings: Composed) -> None:
    config = settings()
    tasks, loaded = load_tasks(config.benchmark), load_model(config.model, config.quantization)
    more = replace(
        config, benchmark={"pocket_math": replace(config.benchmark["pocket_math"], num_fewshot=1)}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "questions_hash", lambda *asked: "the same")
        assert key_of(more, tasks, loaded) != key_of(config, tasks, loaded)


# --- the model's files: every one of them ---------------------------------------------------------------


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def swap_two_tokens(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    one, other = list(vocabulary)[300:302]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]


def nudge(file: Path) -> None:
    """Move one weight by the least that its type can tell apart."""
    tensors = load_file(file)
    first = tensors[next(iter(tensors))].view(-1)
    first[0] = torch.nextafter(first[0], torch.tensor(torch.inf, dtype=first.dtype))
    save_file(tensors, file, {"format": "pt"})


EDITS: dict[str, Callable[[Path], None]] = {
    "tokenizer.json": lambda file: edit(file, swap_two_tokens),
    "tokenizer_config.json": lambda file: edit(file, lambda c: c.update(model_max_length=256)),
    "chat_template.jinja": lambda file: file.write_text(CHAT + "assistant:"),
    "generation_config.json": lambda file: edit(file, lambda c: c.update(max_new_tokens=3)),
    "config.json": lambda file: edit(file, lambda c: c.update(rms_norm_eps=1e-5)),
    "model.safetensors": nudge,
}


@pytest.mark.parametrize("name", sorted({*EDITS, *(file.name for file in MODEL_DIR.iterdir())}))
def test_an_edited_file_of_a_model_has_another_key(
    name: str, settings: Composed, folder: Path, plain: str
) -> None:
    EDITS[name](folder / name)
    assert key_of(settings()) != plain


def test_the_same_content_elsewhere_has_the_same_key(
    settings: Composed, folder: Path, plain: str
) -> None:
    moved = folder.rename(folder.with_name("moved"))
    (moved / "README.md").write_text("no answer depends on it")
    config = settings(f"model.id={moved}")
    assert key_of(config) == plain
    assert key_of(replace(config, model=replace(config.model, revision="another"))) == plain


# --- an adapter's ------------------------------------------------------------------------------------------

ADAPTER_EDITS: dict[str, Callable[[Path], None]] = {
    "weights": lambda folder: nudge(folder / "adapter_model.safetensors"),
    "lora_alpha": lambda folder: edit(
        folder / "adapter_config.json", lambda c: c.update(lora_alpha=32)
    ),
    "use_rslora": lambda folder: edit(
        folder / "adapter_config.json", lambda c: c.update(use_rslora=True)
    ),
    "alpha_pattern": lambda folder: edit(
        folder / "adapter_config.json", lambda c: c.update(alpha_pattern={"q_proj": 3})
    ),
}


@pytest.mark.parametrize("edited", ADAPTER_EDITS)
def test_an_edited_adapter_is_another_model(
    edited: str, pocket: LoadedModel, composed: Composed, tmp_path: Path
) -> None:
    import peft

    def digest() -> str:
        config = composed()
        base = load_model(config.model, config.quantization)
        tuned = peft.PeftModel.from_pretrained(base.model, tmp_path / "adapter")
        assert identity.digest(identify(tuned, base.tokenizer)) != base.digest
        return identity.digest(identify(tuned, base.tokenizer))

    shape = peft.LoraConfig(
        r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    peft.get_peft_model(pocket.model, shape).save_pretrained(tmp_path / "adapter")
    before = digest()
    ADAPTER_EDITS[edited](tmp_path / "adapter")
    assert digest() != before


# --- what computes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "package", ["torch", "transformers", "tokenizers", "bitsandbytes", "lm-eval"]
)
def test_another_version_has_another_key(
    package: str, settings: Composed, plain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = identity.version
    for module in (identity, baseline):
        monkeypatch.setattr(
            module, "version", lambda name: "other" if name == package else installed(name)
        )
    assert key_of(settings()) != plain


def test_another_version_of_peft_is_another_tuned_model(
    pocket: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peft

    tuned = peft.get_peft_model(
        pocket.model, peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    before, installed = identify(tuned, pocket.tokenizer, "weights"), identity.version
    monkeypatch.setattr(
        identity, "version", lambda name: "other" if name == "peft" else installed(name)
    )
    assert identify(tuned, pocket.tokenizer, "weights") != before


def test_another_arithmetic_has_another_key(
    settings: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(
        settings("quantization=none").model, settings("quantization=none").quantization
    )
    found = [identify(loaded.model, loaded.tokenizer, "weights")]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        found.append(identify(loaded.model, loaded.tokenizer, "weights"))
    finally:
        torch.set_num_threads(threads)
    with monkeypatch.context() as patch:  # of which bfloat16 products have other kernels
        patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        found.append(identify(loaded.model, loaded.tokenizer, "weights"))
    with monkeypatch.context() as patch:
        patch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "other")
        found.append(identify(loaded.model, loaded.tokenizer, "weights"))
    with monkeypatch.context() as patch:
        patch.setattr("torch.get_float32_matmul_precision", lambda: "medium")
        found.append(identify(loaded.model, loaded.tokenizer, "weights"))
    found.append(
        identify(loaded.model.to("meta"), loaded.tokenizer, "weights")
    )  # a device that every machine has
    assert len({identity.digest(one) for one in found}) == 6


def test_another_way_of_measuring_has_another_key(
    settings: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings()
    loaded, benchmark = (
        load_model(config.model, config.quantization),
        config.benchmark["pocket_math"],
    )

    def key(path: str = "shared") -> str:
        return evaluation_key(loaded, path, "questions", benchmark, config.evaluation)

    before = key()
    assert key("stock") != before
    monkeypatch.setattr(baseline, "code_digest", lambda: "other")
    assert key() != before


NO_ANSWERS = {
    "guarding/errors.py": "what goes wrong",
    "measuring/engine/__init__.py": "the door",
    "measuring/engine/progress.py": "counts what is done",
    "measuring/answers.py": "holds what was answered",
    "pocket/__init__.py": "rows and tasks, which are in by what is asked",
    "preparing/chat.py": "whether a template can be used; what it makes of a prompt is in by what is asked",
    "preparing/digests.py": "makes the key",
    "preparing/dtype.py": "what dtype `auto` stands for, which is in as resolved",
    "preparing/hub.py": "what an error of the hub means",
    "preparing/identity.py": "makes the key",
    "preparing/memory.py": "counts bytes, and frees them",
    "preparing/processes.py": "who asks what; where that moves an answer, how many ask is in",
    "preparing/quantize.py": "makes weights, which are in by their digest",
    "preparing/sizes.py": "counts bytes and parameters",
    "settings/schema.py": "settings, which are in by their values",
    "settings/task_files.py": "finds tasks, which are in by what is asked",
}


def imported_files(root: Path, file: str) -> Iterator[str]:
    """The files of slimdown that one of them imports from, below `root`."""
    for node in ast.walk(ast.parse((root / file).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("slimdown"):
            place = Path(*str(node.module).split(".")[1:])
            for name in (alias.name for alias in node.names):
                choices = (
                    place / f"{name}.py",
                    place.with_suffix(".py") if place.name else place,
                    place / "__init__.py",
                )
                yield next(str(c) for c in choices if (root / c).is_file())


def test_every_module_that_answers_come_from_is_in_the_key() -> None:
    """Follows the imports from the harness's side; a new module is named in MEASURING, or here with the reason."""
    root = Path(slimdown.__file__).parent
    waiting, seen = ["measuring/harness.py"], set()
    while waiting:
        if (file := waiting.pop()) in seen:
            continue
        seen.add(file)
        if file in MEASURING:
            waiting += imported_files(root, file)
    assert seen - set(NO_ANSWERS) == set(MEASURING)


# --- what is asked ---------------------------------------------------------------------------------------------


def newer_version(task: Any) -> None:
    task.config.metadata = {"version": 2.0}


def another_filter(task: Any) -> None:
    task.config.filter_list = task.config.filter_list[:1]


def another_length(task: Any) -> None:
    task.config.generation_kwargs["max_gen_toks"] = 5


def another_prompt(task: Any) -> None:
    task.config.doc_to_text = "{{question}}"


def another_right_answer(task: Any) -> None:
    task.dataset["test"] = task.dataset["test"].map(lambda row: {"answer": row["answer"] + "0"})


@pytest.mark.parametrize(
    "change", [newer_version, another_filter, another_length, another_prompt, another_right_answer]
)
def test_another_task_has_another_key(change: Callable[[Any], None], settings: Composed) -> None:
    config = settings()
    loaded = load_model(config.model, config.quantization)
    before = key_of(config, loaded=loaded)
    tasks = load_tasks(config.benchmark)
    change(tasks["pocket_math"]["tasks"]["pocket_math"])
    assert key_of(config, tasks, loaded) != before
    assert key_of(config, load_tasks(config.benchmark), loaded) == before
