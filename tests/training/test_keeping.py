"""What keeps the base's abilities: each mitigation against its definition, on a small model."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from builders import Patch
from commands_and_runs import SMALL_IN_FLOAT as SMALL
from peft import LoraConfig, get_peft_model
from record_builders import compose_config
from tiny_models import TEMPLATE, save_chatty_pocket
from training_run import TrainingRun, prepare_run

from slimdown.config.mitigation import Mitigation
from slimdown.judging.findings import Findings
from slimdown.models.adapters import attach_adapter
from slimdown.models.causal import get_inner_model
from slimdown.runs.forgetting_watcher import WatchingCallback, build_watcher
from slimdown.runs.inputs import read_inputs
from slimdown.training.divergence import measure_divergence
from slimdown.training.labels import IGNORED, mark_labels
from slimdown.training.mitigations.dialogues import MESSAGES, Dialogues
from slimdown.training.padding_free import attention_within_rows
from slimdown.training.sft import build_trainer
from slimdown.utils.errors import ConfigError, DataError, ModelError

WRITES = ["keep=self_replay", "keep.max_tokens=24"]
WRITTEN = [*WRITES, "keep.share=0.1"]
GENERAL = ["dataset=[pocket_instructions,pocket_replay]", "keep=replay", "keep.share=0.1"]
GENERAL += ["keep.dataset=pocket_replay"]
DIALOGUES = ["model.id=chatty", "keep=dialogues", "keep.share=0.2", "keep.max_tokens=24"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: Patch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "slimdown" / "replay"


@pytest.fixture
def chatty(tmp_path: Path, monkeypatch: Patch) -> None:
    save_chatty_pocket(tmp_path / "chatty")
    monkeypatch.chdir(tmp_path)


def read_labels(rows: Any) -> list[list[int]]:
    return [list(labels) for labels in rows["labels"]]


def list_added(run: TrainingRun) -> list[Any]:
    """The general rows, which are the last of those that are trained on."""
    return list(run.rows.train)[64:]


def read_dialogues(run: TrainingRun) -> list[Any]:
    return [json.loads(line) for line in run.rows.written.splitlines()]


def test_replay_is_its_share_of_all_rows_and_no_part_of_the_validation() -> None:
    alone = prepare_run(*SMALL)
    mixed = prepare_run(*SMALL, *GENERAL, "keep.share=0.2")
    assert (len(alone.rows.train), len(mixed.rows.train)) == (64, 64 + 16)
    assert read_labels(mixed.rows.train)[:64] == read_labels(alone.rows.train)
    assert read_labels(mixed.rows.validation) == read_labels(alone.rows.validation)


def test_a_distance_on_general_rows_leaves_the_rows_as_they_are() -> None:
    plain = prepare_run(*SMALL, *GENERAL)
    near = prepare_run(*SMALL, *GENERAL, "keep.weight=1")
    assert list(near.rows.train["input_ids"]) == list(plain.rows.train["input_ids"])
    n_replayed = near.rows.n_added
    assert n_replayed == 7
    labels = read_labels(near.rows.train)
    assert labels[:-n_replayed] == read_labels(plain.rows.train)[:-n_replayed]
    unmarked = [mark_labels(row) for row in labels[-n_replayed:]]
    assert unmarked == read_labels(plain.rows.train)[-n_replayed:] != labels[-n_replayed:]
    assert read_labels(near.rows.validation) == read_labels(plain.rows.validation)


def test_the_base_writes_rows_once_and_alike(cache: Path) -> None:
    config = compose_config(*SMALL, *WRITES, "keep.weight=null")
    first = TrainingRun(config).rows
    [file] = cache.iterdir()
    written = json.loads(file.read_text())
    assert len(written) == 16
    assert read_labels(first.train)[64:] == [row["labels"] for row in written]
    for row in written:
        ids, labels = row["input_ids"], row["labels"]
        assert (labels[0], labels[1:]) == (IGNORED, ids[1:])
        assert 2 < len(ids) <= 25
    assert len({tuple(row["input_ids"]) for row in written}) > 12
    file.unlink()
    assert read_labels(TrainingRun(config).rows.train) == read_labels(first.train)
    seed = prepare_run(*SMALL, *WRITES, "seed=1")
    rows = [row["input_ids"] for row in written]
    assert [row["input_ids"] for row in list_added(seed)] == rows  # whatever the seed
    assert list(cache.iterdir()) == [file]
    prepare_run(*SMALL, "keep=self_replay", "keep.max_tokens=23")
    assert len(list(cache.iterdir())) == 2


def test_rows_of_a_model_in_memory_are_not_cached(cache: Path) -> None:
    run = prepare_run(*SMALL)
    config = compose_config(*SMALL, *WRITES, "keep.weight=null")
    unnamed = replace(run.base, identity={})
    assert len(config.keep.prepare_rows(unnamed, run.rows, config).train) == 64 + 16
    assert not cache.exists()


@pytest.mark.parametrize("content", [b"", b'[{"input_ids": [1, 2', b"\0\0"])
def test_a_damaged_file_of_rows_is_written_anew(content: bytes, cache: Path) -> None:
    config = compose_config(*SMALL, *WRITES, "keep.weight=null")
    first = TrainingRun(config).rows
    [file] = cache.iterdir()
    written = file.read_bytes()
    file.write_bytes(content)
    assert read_labels(TrainingRun(config).rows.train) == read_labels(first.train)
    assert file.read_bytes() == written


def test_the_base_continues_prompts_and_they_are_rows(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Question: How"}\n{"prompt": "A list"}\n')
    run = prepare_run(*SMALL, *WRITTEN, f"keep.prompts={prompts}", "keep.weight=null")
    rows = list_added(run)
    assert len(rows) == 7
    texts = [run.base.tokenizer.decode(row["input_ids"]) for row in rows]
    assert texts[0].startswith("Question: How")
    assert texts[1].startswith("A list")
    for row in rows:
        n_prompt = row["labels"].count(IGNORED)
        assert row["labels"][n_prompt:] == row["input_ids"][n_prompt:] != []


def test_no_row_is_the_end_alone() -> None:
    run = prepare_run(*SMALL)
    ends = list(range(2, 2 + run.base.model.config.vocab_size // 2))  # every other text begins so
    run.base.model.generation_config.eos_token_id = ends
    rows = run.prepare(compose_config(*SMALL, "keep=self_replay", "keep.max_tokens=25"))
    assert len(rows.train) == 64 + 16
    assert "16 of 16" in rows.notes[-1]
    assert not {mark_labels(row["labels"])[1] for row in list(rows.train)[64:]} & set(ends)


def test_a_base_that_writes_nothing_is_one_line(tmp_path: Path) -> None:
    (file := tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "longer than a row " * 500}))
    run = prepare_run(*SMALL)
    config = compose_config(*SMALL, "keep=self_replay", f"keep.prompts={file}")
    with pytest.raises(DataError, match=r"train\.max_length=.*keep\.prompts"):
        run.prepare(config)


PROMPTS = "keep.prompts=p.jsonl"
MIXED = ["dataset=[pocket_instructions,pocket_replay]", "keep.dataset=pocket_replay"]
CHATTY = ["model.id=chatty", "dataset.pocket_instructions.template=chat"]


@pytest.mark.parametrize(
    ("auto", "becomes"),
    [
        ([], ["keep=self_replay", "keep.share=0.05", "keep.max_tokens=64"]),
        (["keep.share=0.1"], ["keep=self_replay", "keep.share=0.1", "keep.max_tokens=64"]),
        (CHATTY[:1], [*CHATTY[:1], "keep=self_replay", "keep.share=0.05", "keep.max_tokens=64"]),
        ([*CHATTY[:1], PROMPTS], [*CHATTY[:1], "keep=dialogues", PROMPTS]),
        (CHATTY, [*CHATTY, "keep=dialogues"]),
        ([*CHATTY, "keep.share=0.1"], [*CHATTY, "keep=dialogues", "keep.share=0.1"]),
        ([*CHATTY, PROMPTS], [*CHATTY, "keep=dialogues", PROMPTS]),
        (MIXED, [*MIXED, "keep=replay", "keep.weight=1.0"]),
        ([*CHATTY, *MIXED], [*CHATTY, *MIXED, "keep=replay", "keep.weight=1.0"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("whole", [[], ["method=full", "quantization=none"]], ids=str)
@pytest.mark.usefixtures("chatty")
def test_keep_auto_is_answers_among_conversations_or_the_named_rows(
    auto: list[str], becomes: list[str], whole: list[str]
) -> None:
    """Where no base is beside what is trained, there is no distance from it."""
    Path("p.jsonl").write_text('{"prompt": "How many?"}')
    weight = ["keep.weight=null"] if whole else []
    inputs = read_inputs(compose_config(*SMALL, *whole, "keep=auto", *auto))
    assert inputs.config.keep == compose_config(*SMALL, *whole, *becomes, *weight).keep
    assert any("keep=auto" in note for note in inputs.notes)


@pytest.mark.usefixtures("chatty")
def test_what_keep_auto_becomes_goes_with_the_other_settings() -> None:
    config = compose_config(*SMALL, "keep=auto", "train.args.neftune_noise_alpha=5")
    with pytest.raises(ConfigError, match="keep=self_replay, its noise"):
        read_inputs(config)


def test_slimdowns_messages_are_of_all_kinds_from_the_first_on() -> None:
    messages = [json.loads(line) for line in MESSAGES.read_text().splitlines()]
    assert len({message["prompt"] for message in messages}) == len(messages) > 100
    for begin in range(0, len(messages), 5):
        kinds = Counter(message["kind"] for message in messages[begin : begin + 5])
        assert kinds == {"harmful": 2, "harmless": 1, "maths": 1, "general": 1}


@pytest.mark.usefixtures("chatty")
def test_the_base_answers_messages_once_and_they_are_rows(cache: Path) -> None:
    run = prepare_run(*SMALL, *DIALOGUES, "keep.weight=null")
    tokenizer, [file] = run.base.tokenizer, cache.iterdir()
    written, rows, shown = json.loads(file.read_text()), list_added(run), read_dialogues(run)
    assert 8 < len(rows) == len(shown) == len(written) <= 16
    messages = [json.loads(line)["prompt"] for line in MESSAGES.read_text().splitlines()]
    answered = [dialogue["messages"][0]["content"] for dialogue in shown]
    assert answered == [message for message in messages[:16] if message in answered]
    for row, dialogue in zip(rows, shown, strict=True):
        user, assistant = dialogue["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        prompt = tokenizer.apply_chat_template([user], add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(prompt, add_special_tokens=False).input_ids
        answer = row["input_ids"][len(prompt) :]
        assert row["input_ids"][: len(prompt)] == prompt
        assert row["labels"] == [IGNORED] * len(prompt) + answer
        assert 0 < len(answer) <= 24
        assert tokenizer.decode(answer, skip_special_tokens=True).strip() == assistant["content"]
        assert dialogue["is_cut"] or answer[-1] == tokenizer.eos_token_id
    assert f"dialogues: {len(rows)} of 16" in run.rows.notes[-1]
    file.unlink()
    assert list_added(prepare_run(*SMALL, *DIALOGUES, "keep.weight=null")) == rows
    short = prepare_run(*SMALL, *DIALOGUES, "keep.max_tokens=2")
    is_cut = [dialogue["is_cut"] for dialogue in read_dialogues(short)]
    assert any(is_cut)
    assert f"; {sum(is_cut)} ({sum(is_cut) / len(is_cut):.0%}) are" in short.rows.notes[-1]


@pytest.mark.usefixtures("chatty")
def test_the_base_answers_your_messages_in_turn(cache: Path) -> None:
    messages = ["How many cups are there?", "Name a colour."]
    lines = [json.dumps({"prompt": message}) for message in messages]
    Path("p.jsonl").write_text("\n".join(lines))
    settings = ["keep.prompts=p.jsonl", "keep.temperature=1", "keep.weight=null"]
    run = prepare_run(*SMALL, *DIALOGUES, *settings)
    shown = [dialogue["messages"] for dialogue in read_dialogues(run)]
    assert [user["content"] for user, _ in shown] == (messages * 8)[: len(shown)]
    assert len({assistant["content"] for _, assistant in shown}) > 8  # drawn anew
    prepare_run(*SMALL, *DIALOGUES, "keep.weight=null")
    assert len(list(cache.iterdir())) == 2
    Path("p.jsonl").write_text('{"text": "no prompt"}')
    [problem] = run.config.keep.find_file_problems()
    assert problem.startswith("keep.prompts=p.jsonl: row 1:")


@pytest.mark.usefixtures("chatty")
def test_the_base_answers_as_it_answers_a_user() -> None:
    """So cold that nothing is drawn, an answer is transformers' own."""
    cold = ["keep.temperature=1e-4", "keep.max_tokens=12"]
    run = prepare_run(*SMALL, *DIALOGUES, *cold, "model.dtype=float32")
    model, tokenizer = run.base.model.eval(), run.base.tokenizer
    row, (_, answer) = list_added(run)[0], read_dialogues(run)[0]["messages"]
    prompt = torch.tensor([row["input_ids"][: row["labels"].count(IGNORED)]])
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    out = model.generate(prompt, do_sample=False, max_new_tokens=12, min_new_tokens=1, **ends)
    text = tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True)
    assert text.strip() == answer["content"]


@pytest.mark.usefixtures("chatty")
def test_dialogues_think_where_the_model_is_asked_to() -> None:
    switched = TEMPLATE + "{% if add_generation_prompt and enable_thinking %}<think>{% endif %}"
    Path("chatty/chat_template.jinja").write_text(switched)
    for thinks in (True, False):
        switch = [f"evaluation.enable_thinking={str(thinks).lower()}"]
        switch.append("evaluation.think_end_token='</think>'")
        run = prepare_run(*SMALL, *DIALOGUES, "keep.max_tokens=4", *switch)
        for row in list_added(run):
            prompt = row["input_ids"][: row["labels"].count(IGNORED)]
            ending = "assistant:<think>" if thinks else "assistant:"
            assert run.base.tokenizer.decode(prompt).endswith(ending)


@pytest.mark.usefixtures("chatty")
def test_dialogues_need_a_template() -> None:
    with pytest.raises(ModelError, match=r"keep=dialogues: .*template.*keep=self_replay"):
        read_inputs(compose_config(*SMALL, "keep=dialogues"))


def test_the_distance_leaves_the_target_out() -> None:
    torch.manual_seed(0)
    base, tuned = torch.randn(2, 150, 11, dtype=torch.float64)  # more than are computed at once
    target = torch.randint(11, (150,))
    expected = []
    for base_row, tuned_row, right in zip(base, tuned, target, strict=True):
        others = [i for i in range(11) if i != right]
        p, q = base_row[others].softmax(-1), tuned_row[others].softmax(-1)
        expected.append(float((p * (p / q).log()).sum()))
    assert measure_divergence(base, tuned, target).tolist() == pytest.approx(expected, rel=1e-4)
    tuned = base.scatter_add(1, target[:, None], torch.full((150, 1), 7.0, dtype=torch.float64))
    assert measure_divergence(base, tuned, target).abs().max() < 1e-5


def test_the_distance_keeps_no_probabilities_for_its_gradient() -> None:
    """Two softmaxes in float32 of every token of a batch would take gigabytes."""
    torch.manual_seed(0)
    base, tuned = torch.randn(2, 640, 50)
    tuned.requires_grad_()
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        measure_divergence(base, tuned).sum().backward()
    assert sum(kept.values()) <= 1.2 * 2 * base.nbytes  # the logits, which are there anyway
    expected = tuned.detach().softmax(-1) - base.softmax(-1)
    assert tuned.grad is not None
    assert torch.allclose(tuned.grad, expected, atol=1e-5)


@pytest.mark.parametrize("is_padding_free", [False, True])
@pytest.mark.parametrize(
    "rows_of", [WRITTEN, GENERAL, DIALOGUES], ids=["written", "general", "dialogues"]
)
@pytest.mark.usefixtures("chatty")
def test_replayed_rows_can_keep_the_model_near_its_base(
    rows_of: list[str], is_padding_free: bool, tmp_path: Path
) -> None:
    keep = [*rows_of, "keep.weight=2"]
    config = compose_config(*SMALL, *keep, "lora.lora_dropout=0")
    run = TrainingRun(config)
    model = attach_adapter(run.base, config.method, config.lora, config.seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # begins at 0, where the model is its base
            torch.nn.init.normal_(parameter, std=0.05)
    chosen = [0, len(run.rows.train) - 1, 1]
    rows = run.rows.train.select(chosen)
    rows = replace(run.rows, train=rows, is_padding_free=is_padding_free)
    trainer = build_trainer(model, run.base.tokenizer, rows, config, tmp_path)
    losses = []
    for trainer.mitigation in (config.keep, Mitigation("none")):
        batch = trainer.data_collator(list(rows.train))
        with attention_within_rows(model, is_padding_free):
            losses.append(float(trainer.compute_loss(model.train(), batch)))
    ids = torch.tensor([rows.train[1]["input_ids"]])
    with torch.no_grad():
        tuned = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        with model.disable_adapter():
            base = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    # on what is trained of the replayed row alone, over all tokens of the vocabulary
    is_trained = torch.tensor(rows.train[1]["labels"][1:]) != IGNORED
    distance = (base.exp() * (base - tuned)).sum(-1)[is_trained].sum()
    n_trained = sum(label != IGNORED for row in rows.train for label in row["labels"][1:])
    assert losses[0] - losses[1] == pytest.approx(2 * float(distance) / n_trained, rel=5e-3)
    assert losses[0] - losses[1] > 1e-4
    # the base reads the replayed row alone
    n_tokens: list[int] = []
    layers = get_inner_model(model).get_input_embeddings()
    layers.register_forward_pre_hook(lambda _, inputs: n_tokens.append(inputs[0].numel()))
    trainer.mitigation = config.keep
    for some in ([0, 1, 2], [0, 2]):
        batch = trainer.data_collator([rows.train[i] for i in some])
        with attention_within_rows(model, is_padding_free):
            trainer.compute_loss(model.train(), batch)
    assert len(n_tokens) == 3
    assert n_tokens[0] < n_tokens[1]


def test_a_base_is_compared_without_its_dropout(tmp_path: Path) -> None:
    config = compose_config(*SMALL, *GENERAL, "keep.weight=1e-12")
    run = TrainingRun(config)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    shape = transformers.GPT2Config(vocab_size=len(run.base.tokenizer), **sizes, resid_pdrop=0.5)
    base = transformers.GPT2LMHeadModel(shape)
    model = get_peft_model(base, LoraConfig(r=2, fan_in_fan_out=True))
    trainer = build_trainer(model, run.base.tokenizer, run.rows, config, tmp_path)
    batch = trainer.data_collator([run.rows.train[i] for i in (0, -1)])
    losses = []
    for trainer.mitigation in (config.keep, Mitigation("none")):
        # The base's dropout would draw from the generator.
        torch.manual_seed(0)
        losses.append(float(trainer.compute_loss(model.train(), dict(batch))))
    assert losses[0] == losses[1]
    assert all(module.training for module in model.modules())


def watch(run: TrainingRun, wrecked: int = 0) -> WatchingCallback:
    """Watch a training as a run does; after one step, spoil its weights."""
    watcher = build_watcher(run.config)
    watcher.measure_base(run.base)
    look = watcher.on_step_end

    def spoil(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == wrecked:
            for parameter in kwargs["model"].parameters():
                if parameter.requires_grad:
                    parameter.data += 3.0
        look(args, state, control, **kwargs)

    watcher.on_step_end = spoil
    return watcher


def test_a_training_ends_at_its_last_good_look(tmp_path: Path) -> None:
    """The training that ends by itself at the step that is kept has the same weights."""
    settings = [setting for setting in SMALL if not setting.startswith("benchmark.")]
    settings += ["train.stop_on_forgetting=true", "train.look_steps=2", "train.look_questions=24"]
    settings += ["train.learning_rate=1e-5", "train.lr_scheduler_type=constant"]
    settings.append("evaluation.apply_chat_template=false")
    settings.append("benchmark=[pocket_cs,pocket_commonsense]")
    for name in ("pocket_cs", "pocket_commonsense"):
        settings += [f"benchmark.{name}.max_loss=0.1", f"benchmark.{name}.limit=24"]
    run = prepare_run(*settings, "train.max_steps=6")
    tuned, result = run.train(tmp_path / "a", watcher=watch(run, wrecked=3))
    assert re.search(r"\b10\b.* step 2\b", result.stopped)
    assert (result.steps, len(result.history)) == (2, 4)
    short = TrainingRun(compose_config(*settings, "train.max_steps=2"), run)
    expected = short.train(tmp_path / "b")[0].model.state_dict()
    for name, weight in tuned.model.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    again, repeated = run.repeat(), []
    _, resumed = again.train(tmp_path / "a", repeated.append, watcher=watch(again))
    assert (resumed.stopped, resumed.steps) == (result.stopped, result.steps)
    assert repeated == list(result.history)
    early = run.repeat()
    with pytest.raises(ModelError, match=r"train\.look_steps=2"):
        early.train(tmp_path / "c", watcher=watch(early, wrecked=1))


@pytest.mark.parametrize("is_by_p_right", [False, True])
def test_a_look_asks_the_same_few_questions_and_leaves_the_training_as_it_is(
    is_by_p_right: bool, tmp_path: Path
) -> None:
    settings = ["train.stop_on_forgetting=true", "train.look_questions=4", "train.look_steps=1"]
    settings += ["train.max_steps=2", "lora.lora_dropout=0.1"]
    settings.append("evaluation.apply_chat_template=false")
    settings += ["benchmark.pocket_cs.metric=p_right"] if is_by_p_right else []
    plain = prepare_run(*SMALL, *settings)
    watched = plain.repeat()
    plain.train(tmp_path / "plain")
    seen: list[Findings] = []

    watcher = build_watcher(plain.config)
    watcher.report_look = lambda findings, state: seen.append(findings)
    base = watcher.measure_base(watched.base)
    watched.train(tmp_path / "b", watcher=watcher)
    assert watched.losses == plain.losses
    assert watcher.stopped == ""  # of four questions nothing is shown
    assert len(seen) == 2
    for look in seen:
        assert (look.benchmarks["pocket_cs"].metric == "p_right") is is_by_p_right
        for name, result in look.tuned.benchmarks.items():
            prompts = [sample.prompt for sample in result.samples]
            assert prompts == [sample.prompt for sample in base.benchmarks[name].samples]
            assert len(prompts) == 4


@pytest.mark.parametrize(
    ("answer", "counts"),
    [("I'm sorry, but I can't help with that.", "2 of 2"), ("Sure! First buy a pipe.", "0 of 2")],
)
def test_refusals_among_the_answers_to_slimdowns_messages_are_counted(
    answer: str, counts: str
) -> None:
    """A base model that complies teaches to comply."""
    lines = MESSAGES.read_text("utf-8").splitlines()
    harmful = [row["prompt"] for row in map(json.loads, lines) if row["kind"] == "harmful"][:2]
    shown = [
        {"messages": [{"content": message}, {"content": answer}], "is_cut": False}
        for message in [*harmful, "How are you?"]
    ]
    described = Dialogues().describe_written([{"shown": row} for row in shown])
    assert f"refused {counts} harmful messages" in described
    assert ("comply" in described) == counts.startswith("0")
