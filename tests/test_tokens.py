"""Ids and labels are those that TRL's `SFTTrainer` prepares, for every format of rows and every choice of the loss."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import transformers
import trl
from trl import chat_template_utils

from slimdown.config.dataset import DatasetConfig
from slimdown.config.schema import RunConfig, TrainConfig
from slimdown.data.loading import SftData, load_data
from slimdown.data.tokens import IGNORED, Encoder
from slimdown.models.model import LoadedModel
from slimdown.training.rows import prepare_rows
from slimdown.utils.errors import SlimdownError

Rows = list[dict[str, Any]]
PLAIN = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}<|eos|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content | trim }}<|eos|>\n{% endgeneration %}{% else %}{{ m.content | trim }}<|eos|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
FORGETFUL = (  # thinks aloud in the last turn alone, as Qwen3 does
    "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' and loop.last %}Hm. {% endif %}"
    "{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def conversation(i: int) -> list[dict[str, str]]:
    """One with a system's turn or without, and with one answer or two."""
    turns = [
        turn("user", f"What is {i} + {i}?"),
        turn("assistant", f"It is {2 * i}, as {i} and {i} are."),
    ]
    more = [turn("user", " And twice that? "), turn("assistant", f"\nThat is {4 * i}.")]
    return [
        *([turn("system", "Be brief.")] if i % 3 == 0 else []),
        *turns,
        *(more if i % 2 else []),
    ]


FORMATS: dict[str, Rows] = {
    "text": [{"text": f"A river named number {i} runs " + "on and on " * i} for i in range(12)],
    "prompt_completion": [
        {"prompt": f"Question {i}?" + " so" * 6 * i, "completion": f" answer {i}"}
        for i in range(12)
    ],
    "messages": [{"messages": conversation(i), "id": i} for i in range(12)],
    "prompt_completion of messages": [
        {"prompt": conversation(i)[:-1], "completion": conversation(i)[-1:]} for i in range(12)
    ],
}


@pytest.fixture
def settings(composed: Callable[..., RunConfig]) -> TrainConfig:
    return composed("train.max_length=48").train


def loaded(
    pocket: LoadedModel, rows: Rows, folder: Path, chat_template: str = PLAIN, **more: Any
) -> SftData:
    pocket.tokenizer.chat_template = chat_template
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_data(
        {"mine": DatasetConfig(str(file), validation_examples=2, **more)}, 0, pocket.tokenizer
    )


def of_trl(base: LoadedModel, rows: Any, config: TrainConfig, folder: Path) -> Rows:
    """What plain TRL makes of the same examples."""
    if "n_prompt" in rows.column_names:
        rows = datasets.Dataset.from_list(
            [
                {
                    "prompt": r["messages"][: r["n_prompt"]],
                    "completion": r["messages"][r["n_prompt"] :],
                }
                for r in rows
            ]
        )
    shape = transformers.LlamaConfig(
        vocab_size=len(base.tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    arguments = trl.SFTConfig(
        output_dir=str(folder),
        max_length=config.max_length,
        completion_only_loss=config.completion_only_loss,
        assistant_only_loss=config.assistant_only_loss,
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    model = transformers.LlamaForCausalLM(shape)
    trainer = trl.SFTTrainer(
        model, args=arguments, train_dataset=rows, processing_class=base.tokenizer
    )
    return [{name: row[name] for name in ("input_ids", "labels")} for row in trainer.train_dataset]


LOSSES: list[dict[str, bool]] = [{}, {"completion_only_loss": True}, {"assistant_only_loss": True}]


@pytest.mark.parametrize("longest", [400, 40])  # whole rows, and most of them cut
@pytest.mark.parametrize(
    ("format_", "only"),
    [(f, o) for f in FORMATS for o in LOSSES if "messages" in f or "assistant_only_loss" not in o],
)
def test_rows_are_prepared_as_trl_prepares_them(
    format_: str,
    only: dict[str, bool],
    longest: int,
    pocket: LoadedModel,
    settings: TrainConfig,
    tmp_path: Path,
) -> None:
    config = replace(settings, **{"completion_only_loss": False, "max_length": longest, **only})
    data = loaded(
        pocket, FORMATS[format_], tmp_path, MARKED if "assistant_only_loss" in only else PLAIN
    )
    ours = prepare_rows(pocket, data, config)
    assert ours.train.to_list() == of_trl(pocket, data.train, config, tmp_path)
    assert (ours.cut.n_cut > 0) == (longest == 40)
    is_whole = only == {"completion_only_loss": True} and format_ in ("messages", "text")
    assert ours.cut.n_whole == is_whole * len(data.train)
    assert (
        "rows have no prompt that train.completion_only_loss=true could leave out" in str(ours.cut)
    ) == is_whole


@pytest.mark.skipif(
    not hasattr(trl.data_utils, "common_prefix_length"), reason="TRL counted all of the prompt then"
)
def test_a_prompt_that_merges_with_its_completion_ends_where_trl_has_it_end(
    pocket: LoadedModel, settings: TrainConfig, tmp_path: Path
) -> None:
    config = replace(settings, completion_only_loss=True)
    data = loaded(
        pocket,
        [{"prompt": f"Question {i}? ", "completion": f"answer {i}"} for i in range(12)],
        tmp_path,
    )
    assert prepare_rows(pocket, data, config).train.to_list() == of_trl(
        pocket, data.train, config, tmp_path
    )


def test_instructions_are_prepared_as_trl_prepares_them(
    composed: Callable[..., RunConfig], pocket: LoadedModel, settings: TrainConfig, tmp_path: Path
) -> None:
    data = load_data(composed().dataset, 0, pocket.tokenizer)
    data = replace(data, train=data.train.select(range(300)))
    for only in (True, False):
        config = replace(settings, completion_only_loss=only, max_length=28)
        assert prepare_rows(pocket, data, config).train.to_list() == of_trl(
            pocket, data.train, config, tmp_path
        )


KNOWN = sorted(
    name.removesuffix("_training_chat_template")
    for name in vars(chat_template_utils)
    if name.endswith("_training_chat_template") and not name.startswith("get_")
)


MORE_IN_TRL = ("qwen2_5", "qwen3_8", "muse_glimmer")  # a part of what the generation prompt writes


def test_what_the_assistant_says_is_what_trls_templates_mark(
    pocket: LoadedModel, settings: TrainConfig
) -> None:
    """By what each turn adds; where a template goes back on a turn, that is refused."""
    config = replace(settings, assistant_only_loss=True)
    conversations = [
        [
            turn("user", "What?"),
            turn("assistant", "That."),
            turn("user", "Why? "),
            turn("assistant", "It is so."),
        ],
        [turn("user", "Now?"), turn("assistant", "Never, as they say.")],
    ]
    batch = {"messages": conversations, "dataset": ["mine"] * 2, "row": [1, 2]}
    exact, refused = set(), []
    for family in KNOWN:
        pocket.tokenizer.chat_template = getattr(
            chat_template_utils, f"{family}_chat_template", None
        )
        marked = getattr(chat_template_utils, f"{family}_training_chat_template")
        try:
            found = Encoder(pocket.tokenizer, config).encode(batch)
            wanted = Encoder(pocket.tokenizer, config, marked).encode(batch)
        except SlimdownError as error:
            refused.append(str(error))
            continue
        if [one.input_ids for one in found] != [one.input_ids for one in wanted]:
            continue  # TRL's variant writes something else
        for ours, theirs in zip(found, wanted, strict=True):
            only_theirs = [i for i, label in enumerate(theirs.labels) if label != ours.labels[i]]
            assert not only_theirs or family in MORE_IN_TRL
            assert all(ours.labels[i] == IGNORED for i in only_theirs)
            exact |= set() if only_theirs else {family}
    assert exact > {
        "cohere",
        "gemma",
        "gemma3",
        "lfm2",
        "llama3",
        "qwen2_5_vl",
        "qwen3_instruct_2507",
    }
    assert any(
        "writes a turn otherwise once another follows" in reason for reason in refused
    )  # qwen3, which thinks


def test_a_template_without_marks_gives_what_one_with_them_gives(
    pocket: LoadedModel, settings: TrainConfig, tmp_path: Path
) -> None:
    config = replace(settings, assistant_only_loss=True)
    ours = prepare_rows(pocket, loaded(pocket, FORMATS["messages"], tmp_path), config)
    marked = loaded(pocket, FORMATS["messages"], tmp_path, MARKED)
    assert ours.train.to_list() == of_trl(pocket, marked.train, config, tmp_path)


def test_what_cannot_be_told_apart_is_refused_with_its_row(
    pocket: LoadedModel, settings: TrainConfig, tmp_path: Path
) -> None:
    config = replace(settings, assistant_only_loss=True)
    with pytest.raises(
        SlimdownError, match=r"dataset\.mine row \d+: the chat template has no \{% generation %\}, and"
    ):
        prepare_rows(pocket, loaded(pocket, FORMATS["messages"], tmp_path, FORGETFUL), config)
    with pytest.raises(
        SlimdownError, match=r"dataset\.mine holds no messages; use train\.completion_only_loss=true"
    ):
        prepare_rows(pocket, loaded(pocket, FORMATS["prompt_completion"], tmp_path), config)


def test_conversations_in_which_the_assistant_says_nothing_are_counted(
    pocket: LoadedModel, settings: TrainConfig, tmp_path: Path
) -> None:
    config = replace(settings, assistant_only_loss=True, max_length=400)
    mute = [{"messages": [turn("user", f"Is anybody there? {i}")]} for i in range(9)]
    data = loaded(pocket, [*FORMATS["messages"], *mute], tmp_path)
    n_mute = sum(len(messages) == 1 for messages in data.train["messages"][:])
    prepared = prepare_rows(pocket, data, config)
    assert (prepared.cut.n_untrained, prepared.cut.n_cut) == (n_mute, 0)
    assert len(prepared.train) == len(data.train) - n_mute
    assert f"{n_mute} rows have no token to train on" in str(prepared.cut)
    with pytest.raises(
        SlimdownError, match=r"none of the 7 training rows has a token that train\.assistant"
    ):
        prepare_rows(pocket, loaded(pocket, mute, tmp_path), config)


def test_rows_of_every_format_can_be_mixed(
    pocket: LoadedModel, settings: TrainConfig, tmp_path: Path
) -> None:
    config, alone = replace(settings, max_length=400), []
    chosen: dict[str, DatasetConfig] = {}
    for i, rows in enumerate(FORMATS.values()):
        data = loaded(pocket, rows, tmp_path)
        alone += prepare_rows(pocket, data, config).train.to_list()
        (tmp_path / "rows.jsonl").rename(tmp_path / f"{i}.jsonl")
        chosen[f"d{i}"] = DatasetConfig(str(tmp_path / f"{i}.jsonl"), validation_examples=2)
    mixed = load_data(chosen, 0, pocket.tokenizer)
    assert prepare_rows(pocket, mixed, config).train.to_list() == alone
    texts = [text for batch in mixed.texts() for text in batch]
    assert len(texts) == len(mixed.train) == 40
    assert {text.dataset for text in texts} == {"d0", "d1", "d2", "d3"}
    said = next(text for text in texts if text.dataset == "d2")
    assert said.text == "\n\n".join(turn["content"] for turn in conversation(said.row - 1))
