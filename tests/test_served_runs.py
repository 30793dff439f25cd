"""A run measures a tuned model as the base is asked, and once more as its files have it served."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands_and_runs import (
    Result,
    call_verb,
    find_page,
    find_run_id,
    find_runs,
    read_findings,
    succeed,
)
from mlflow import MlflowClient
from record_builders import Compose, copy_store
from tiny_models import load_in_4bit
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.write_gguf import write_gguf
from slimdown.config.tracking_config import TrackingConfig
from slimdown.evaluation.backend import BackendOptions, open_lm
from slimdown.evaluation.evaluator import Evaluator
from slimdown.evaluation.results import Evaluation, Sample
from slimdown.evaluation.served_evaluation import evaluate_as_served
from slimdown.models.base_model import LoadedModel, load_base_model
from slimdown.pocket import MODEL_DIR
from slimdown.runs.inputs import read_inputs
from slimdown.tracking.run_reader import find_run, read_evaluations, read_served

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}\nAnswer:{% endif %}"
)
OTHER = TEMPLATE.replace("Answer:", "Say:")
FEW = ["benchmark=[pocket_math,pocket_cs]", "benchmark.pocket_math.limit=6"]
FEW += ["benchmark.pocket_cs.limit=6", "quantization=none", "model.dtype=float32"]


@pytest.fixture(scope="module")
def folder(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a chat template, and models with its weights that are served otherwise."""
    folder = copy_store(migrated_store, tmp_path_factory.mktemp("served"))
    shutil.copytree(MODEL_DIR, folder / "base")
    (folder / "base" / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    write_gguf(model, tokenizer, folder / "same.gguf")
    write_gguf(model, tokenizer, folder / "twice.gguf", puts_bos=True)
    tokenizer.chat_template = OTHER
    write_gguf(model, tokenizer, folder / "template.gguf")
    shutil.copytree(folder / "base", folder / "endless")
    for name, key in (("generation_config", "eos_token_id"), ("config", "eos_token_id")):
        edit(folder / "endless" / f"{name}.json", key, None)
    edit(folder / "endless" / "tokenizer_config.json", "eos_token", None)
    shutil.copytree(folder / "base", folder / "penalty")
    edit(folder / "penalty" / "generation_config.json", "repetition_penalty", 3.0)
    digits = tokenizer.convert_tokens_to_ids([*"0123456789"])
    edit(folder / "penalty" / "generation_config.json", "suppress_tokens", digits)
    return folder


def edit(file: Path, key: str, value: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))


def measure(
    composed: Compose, folder: Path, name: str, *settings: str
) -> tuple[LoadedModel, Evaluation, Evaluation, Any]:
    """Measure a model both ways; also return what was asked once more."""
    models = [f"tuned={folder / name}", f"model.id={folder / 'base'}"]
    inputs = read_inputs(composed(*models, *FEW, *settings))
    config, external = inputs.config, inputs.external
    assert external
    base = load_base_model(config.model, config.quantization, inputs.tokenizer)
    evaluator = Evaluator(inputs.tasks, config.evaluation)
    evaluator.evaluate(base)
    external = replace(external, base=base)
    tuned = external.load()
    evaluation = evaluator.evaluate(tuned)
    assert evaluator.backend
    model = external.serve(tuned)
    served = evaluate_as_served(
        inputs.served, config.evaluation, evaluator.backend, model, evaluation
    )
    return model, evaluation, served, inputs.served


def pair_samples(
    first: Evaluation, second: Evaluation, benchmark: str
) -> list[tuple[Sample, Sample]]:
    samples = [evaluation.benchmarks[benchmark].samples for evaluation in (first, second)]
    return list(zip(*samples, strict=True))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("template.gguf", "chat template: another one"),
        ("twice.gguf", "puts <|bos|> before a prompt that begins with <|bos|> already: twice"),
        ("endless", "ends an answer at no token; the base at <|eos|>"),
        ("penalty", "generates with repetition_penalty=3.0; the base with none"),
    ],
)
def test_a_run_names_the_difference_before_a_question_is_asked(
    name: str, line: str, folder: Path
) -> None:
    settings = ["model=pocket", "model.id=base", *FEW, f"tuned={name}"]
    difference = f"The tuned model is served differently: {line}"
    planned = succeed(folder, "run", *settings, "--plan")
    assert difference in " ".join(planned.stdout.split())
    done = succeed(folder, "run", *settings)
    shown = " ".join((done.stdout + done.stderr).split())
    assert difference in shown.partition("measuring the base")[0]
    assert difference in " ".join(done.stdout.split()).rpartition("change")[2]
    page = find_page(folder, done)
    assert "served differently: " in page.read_text()
    steps = [row.split()[:2] for row in done.stdout.splitlines() if row.startswith("pocket_math ")]
    assert [step[1:] for step in steps[1:]] == [["base"], ["weights"], ["served"], ["in"]]
    recorded = read_findings(folder, done)["serving"]
    assert [text for text in recorded if text.startswith(line)]

    tracking = TrackingConfig(f"sqlite:///{folder}/mlruns/mlflow.db", "slimdown")
    run = find_run(tracking, page.parts[-3])
    base, tuned = read_evaluations(tracking, run)
    served = read_served(tracking, run, tuned)
    assert served
    for benchmark, served_answers in served.benchmarks.items():
        tuned_answers = tuned.benchmarks[benchmark]
        pairs = list(zip(served_answers.samples, tuned_answers.samples, strict=True))
        assert all((a.doc_hash, a.target) == (b.doc_hash, b.target) for a, b in pairs)
        # Choices are asked plainly, so only another rule of BOS changes them.
        is_alike = benchmark == "pocket_cs" and name != "twice.gguf"
        assert (served_answers is tuned_answers) == is_alike
    assert base.benchmarks["pocket_math"].score == tuned.benchmarks["pocket_math"].score
    chain = succeed(folder, "compare", run.run_id, "--chain", "--format", "json")
    rows = [row for row in json.loads(chain.stdout)["rows"] if row["benchmark"] == "pocket_math"]
    names = ["base", name, f"{name}, as served"]
    assert [row["stage"] for row in rows] == [*names, names[-1]]
    assert rows[2]["score"] == served.benchmarks["pocket_math"].score.value


def test_a_gate_judges_a_model_as_it_is_served(folder: Path) -> None:
    settings = ["model=pocket", "model.id=base", "benchmark=[pocket_math]", *FEW[3:]]
    settings.append("benchmark.pocket_math.limit=40")

    def run(*tuned: str) -> Result:
        return succeed(folder, "run", *settings, *tuned)

    for name, code, line in (
        ("same.gguf", 0, ""),
        ("template.gguf", 1, "chat template: "),
        ("penalty", 1, "generates with repetition_penalty=3.0"),
    ):
        run_id = find_run_id(folder, run(f"tuned={name}"))
        checked = call_verb(folder, "check", run_id, "--max-loss", "0.1")
        assert checked.returncode == code, checked.stdout + checked.stderr
        shown = " ".join(checked.stdout.split())
        assert ("as it is served" in shown) is bool(code)
        assert line in shown
    overall = call_verb(folder, "check", run_id, "--max-loss", "0.9", "--overall")
    assert overall.returncode == 1, overall.stdout + overall.stderr
    limited = run("tuned=template.gguf", "benchmark.pocket_math.max_loss=0.1")
    assert "\nFAILED: pocket_math" in limited.stdout
    run_id = find_run_id(folder, run("tuned=template.gguf", "evaluation.holdout=0.5"))
    checked = call_verb(folder, "check", run_id, "--max-loss", "0.01")
    assert checked.returncode in (1, 2)
    assert "held-out questions" in " ".join(checked.stdout.split())


def test_a_file_that_is_served_alike_is_measured_once(folder: Path) -> None:
    done = succeed(folder, "run", "model=pocket", "model.id=base", *FEW, "tuned=same.gguf")
    shown = " ".join((done.stdout + done.stderr).split())
    assert "same.gguf (F32)" in shown
    assert "served" not in shown
    assert not list(find_page(folder, done).parent.glob("samples/served-*"))


def test_its_own_template_asks(composed: Compose, folder: Path) -> None:
    _, tuned, served, _ = measure(composed, folder, "template.gguf")
    for before, after in pair_samples(tuned, served, "pocket_math"):
        assert after.prompt == before.prompt.removesuffix("Answer:") + "Say:"
        assert after.prompt_hash != before.prompt_hash
    assert served.benchmarks["pocket_cs"] is tuned.benchmarks["pocket_cs"]


def test_a_doubled_bos_stands_before_the_prompt(composed: Compose, folder: Path) -> None:
    model, tuned, served, tasks = measure(composed, folder, "twice.gguf")
    assert list(tasks) == ["pocket_math", "pocket_cs"]
    bos = model.tokenizer.bos_token_id
    samples = served.benchmarks["pocket_math"].samples
    settings = composed("evaluation.apply_chat_template=true").evaluation
    lm = open_lm(model, settings, BackendOptions(True, 2, 2))
    prompts = [sample.prompt for sample in samples]
    batch = lm.tok_batch_encode(prompts)[0].tolist()
    for sample, padded in zip(samples, batch, strict=True):
        own = model.tokenizer(sample.prompt, add_special_tokens=False)["input_ids"]
        assert own[0] == bos
        assert lm.tok_encode(sample.prompt) == [bos, *own]
        assert padded[-1 - len(own) :] == [bos, *own]
        assert sample.response == answer(model, [bos, *own], "Question:")
    assert lm.tok_batch_encode(prompts, left_truncate_len=7)[0].tolist() == [
        row[-7:] for row in batch
    ]
    pairs = pair_samples(tuned, served, "pocket_cs")
    assert all(before.log_likelihoods != after.log_likelihoods for before, after in pairs)


def test_an_answer_ends_at_its_own_stops_alone(composed: Compose, folder: Path) -> None:
    stop = "benchmark.pocket_math.stop=['@@','<|eos|>']"
    model, tuned, served, tasks = measure(composed, folder, "endless", stop)
    assert list(tasks) == ["pocket_math"]
    for sample in served.benchmarks["pocket_math"].samples:
        own = model.tokenizer(sample.prompt, add_special_tokens=False)["input_ids"]
        assert sample.response == answer(model, own, "@@", eos_token_id=[2048])
    pairs = pair_samples(tuned, served, "pocket_math")
    assert all(after.response.startswith(before.response) for before, after in pairs)
    assert {sample.ran_out for sample in served.benchmarks["pocket_math"].samples} == {True}
    assert {sample.ran_out for sample in tuned.benchmarks["pocket_math"].samples} != {True}


def answer(model: LoadedModel, tokens: list[int], stop: str, **settings: Any) -> str:
    """What transformers itself writes after these tokens, cut where the task ends an answer."""
    ids = torch.tensor([tokens])
    with torch.no_grad():
        out = model.model.generate(
            ids, max_new_tokens=48, do_sample=False, pad_token_id=0, **settings
        )
    text = model.tokenizer.decode(out[0, len(tokens) :], skip_special_tokens=True)
    return str(text).partition(stop)[0]


def test_a_folder_that_is_quantized_already_is_measured(folder: Path) -> None:
    load_in_4bit(MODEL_DIR).save_pretrained(folder / "nf4")
    succeed(folder, "run", "model=pocket", "model.id=base", *FEW, "tuned=nf4")
    runs = find_runs(MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db"))
    [run] = [run for run in runs if run.data.tags["slimdown.origin"].startswith("nf4@")]
    assert run.info.status == "FINISHED"
