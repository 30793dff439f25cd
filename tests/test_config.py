"""What can be set composes; what is wrong is named, with what would be right."""

import shlex
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hydra import compose
from omegaconf import OmegaConf
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from slimdown.config.commandline import check_command_line, read_command_line
from slimdown.config.files import CONF_DIR, group_choices, transformers_names
from slimdown.config.loader import load_config
from slimdown.config.schema import PaperMetric, RunConfig
from slimdown.data.row_files import records
from slimdown.utils.errors import ConfigError

Composed = Callable[..., RunConfig]


def refused(*arguments: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_command_line(list(arguments))
    return str(caught.value).splitlines()


def test_the_default_is_the_pocket_world(composed: Composed) -> None:
    config = composed()
    assert config.model.id == "pocket:model"
    assert list(config.dataset) == ["pocket_instructions"]
    assert list(config.benchmark) == [
        "pocket_instructions",
        "pocket_math",
        "pocket_commonsense",
        "pocket_cs",
    ]


@pytest.mark.parametrize("model", [m for m in group_choices("model") if m != "pocket"])
def test_every_other_model_gets_the_papers_data_and_benchmarks(
    model: str, composed: Composed
) -> None:
    config = composed(f"model={model}")
    assert list(config.dataset) == ["alpaca"]
    assert list(config.benchmark) == ["hellaswag", "gsm8k", "mmlu_cs"]
    assert config.train.learning_rate == 2e-4
    assert {b.paper_metric for b in config.benchmark.values()} == set(PaperMetric)


@pytest.mark.parametrize(
    "group", ["quantization", "dataset", "method", "lora", "train", "benchmark", "experiment"]
)
def test_every_choice_of_every_group_composes(group: str, composed: Composed) -> None:
    for choice in group_choices(group):
        if choice == "file":
            continue  # needs a path
        value = f"[{choice}]" if group in ("dataset", "benchmark") else choice
        model = [] if group == "experiment" else ["model=smollm2"]
        model += ["quantization=none"] if group == "method" else []  # which some need
        assert isinstance(composed(*model, f"{group}={value}"), RunConfig), choice


def test_the_papers_adapter_is_the_default(composed: Composed) -> None:
    lora = composed("model=llama32").lora
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (8, 16, 0.0)
    assert lora.target_modules == ["q_proj", "k_proj", "v_proj"]


def test_a_choice_on_the_command_line_beats_what_the_pocket_model_brings(
    composed: Composed,
) -> None:
    config = composed("dataset=[pocket_replay]", "benchmark=[pocket_math]", "train=quick")
    assert list(config.dataset) == ["pocket_replay"]
    assert list(config.benchmark) == ["pocket_math"]
    assert config.train.max_steps == 4


def test_a_preset_holds_only_differences(composed: Composed) -> None:
    plain, preset = composed("model=tinyllama"), composed("experiment=paper_tinyllama")
    assert preset.dataset["alpaca"].max_examples == 50_000
    preset.dataset["alpaca"].max_examples = plain.dataset["alpaca"].max_examples
    assert preset == plain


@pytest.mark.parametrize("preset", group_choices("experiment"))
def test_a_preset_begins_with_its_question_and_its_command(preset: str, composed: Composed) -> None:
    header, question, command, *_ = (
        (CONF_DIR / "experiment" / f"{preset}.yaml").read_text().splitlines()
    )
    assert header == "# @package _global_"
    assert question.endswith("?")
    assert command.startswith("# python -m slimdown.run ")
    arguments = shlex.split(command)[4:]
    assert f"experiment={preset}" in arguments
    check_command_line(arguments)
    if not preset.startswith(("paper_", "pocket_")):  # which are about one model
        for model in ("smollm2", "llama32"):
            assert isinstance(composed(f"model={model}", f"experiment={preset}"), RunConfig)


def test_the_ranks_of_an_ablation_have_one_scale(composed: Composed) -> None:
    loras = [composed("experiment=rank", f"lora.r={r}").lora for r in (2, 64)]
    assert [(lora.r, lora.lora_alpha) for lora in loras] == [(2, 4), (64, 128)]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["model=llama32"],
        ["-m", "model=llama32,tinyllama", "lora.r=8,16"],
        ["model=smollm2", "dataset.alpaca.max_examples=500", "benchmark=[hellaswag,mmlu_cs]",
         "benchmark.hellaswag.limit=500"],
        ["experiment=paper_llama32,paper_tinyllama", "-m"],
        ["model=smollm2", "model.revision=abc123", "tracking.uri=http://localhost:5000", "tracking.experiment=ranks",
         "seed=3", "lora.target_modules=[q_proj]", "train.max_steps=10", "benchmark.gsm8k.num_fewshot=2"],
    ],
)  # fmt: skip
def test_the_commands_that_must_work_are_accepted(arguments: list[str]) -> None:
    check_command_line(arguments)


def test_four_runs_of_the_cards_sweep_compose(composed: Composed) -> None:
    runs = {
        (composed(f"model={m}", f"lora.r={r}").model.id, r)
        for m in ("llama32", "tinyllama")
        for r in (8, 16)
    }
    assert len(runs) == 4


def test_a_typo_is_named_with_the_setting_it_resembles() -> None:
    assert refused("train.learning_rat=1") == [
        "train.learning_rat is not a setting; did you mean train.learning_rate or train.max_length?"
    ]


def test_a_typo_behind_a_plus_is_named_too() -> None:
    assert "did you mean train.learning_rate" in refused("+train.learning_rat=1")[0]


def test_a_setting_without_its_section_is_found() -> None:
    assert refused("learning_rate=1e-3") == [
        "learning_rate is not a setting; did you mean train.learning_rate?"
    ]


@pytest.mark.parametrize(
    ("argument", "answer"),
    [
        ("model=llama3", "model=llama3: there is no such model; did you mean llama32 or tinyllama?"),
        ("dataset=[alpacca]", "dataset=alpacca: there is no such dataset; did you mean alpaca?"),
        ("benchmark=[hellaswg]", "benchmark=hellaswg: there is no such benchmark; did you mean hellaswag?"),
        ("quantization=nf5", "quantization=nf5: there is no such quantization; did you mean nf4?"),
        ("lora.r=abc", "lora.r=abc: Value 'abc' of type 'str' could not be converted to Integer"),
        ("lora.r=2.5", "lora.r=2.5: Value '2.5' of type 'float' could not be converted to Integer"),
        ("lora.r=0", "lora.r must be at least 1, got 0"),
        ("seed=-1", "seed must not be negative, got -1"),
        ("train.learning_rate=0", "train.learning_rate must be above 0, got 0.0"),
        ("train.max_steps=0", "train.max_steps must be at least 1, or -1 for whole epochs, got 0"),
        ("dataset.pocket_instructions.max_examples=0",
         "dataset.pocket_instructions.max_examples must be at least 1, got 0"),
        ("benchmark.pocket_cs.limit=0",
         "benchmark.pocket_cs.limit must be at least 1, got 0; leave it out for all questions"),
        ("benchmark.pocket_cs.num_fewshot=-1", "benchmark.pocket_cs.num_fewshot must not be negative, got -1"),
        ("lora.target_modules=[]", "lora.target_modules is empty; name at least one, e.g. [q_proj,k_proj,v_proj]"),
        ("dataset.alpaca.max_examples=9",
         "dataset.alpaca.max_examples: dataset.alpaca is not chosen; add it with dataset=[pocket_instructions,alpaca], "
         "or set one of pocket_instructions"),
        ("tracking.uri=mlruns",
         "tracking.uri must be a database or a server, got 'mlruns'; for example sqlite:///mlruns/mlflow.db "
         "or http://localhost:5000"),
        ("model.id=./nowhere", "model.id: there is no folder ./nowhere; give a local folder or a hub id"),
        ("model.dtype=half",
         "model.dtype=half: Invalid value 'half', expected one of [auto, float32, bfloat16, float16]"),
        ("lora", "'lora' is not setting=value: missing EQUAL at '<EOF>'"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_with_what_would_be_right(argument: str, answer: str) -> None:
    assert refused(argument) == [answer]


def test_no_dataset_and_no_benchmark_are_refused() -> None:
    answers = refused("dataset=[]", "benchmark=[]")
    assert [a.split(";")[0] for a in answers] == ["no dataset is chosen", "no benchmark is chosen"]


def test_several_mistakes_are_listed_together() -> None:
    answers = refused(
        "model=llama3", "lora.r=0", "train.max_length=1", "benchmark.pocket_cs.limit=0", "foo=1"
    )
    assert [a.split()[0].split("=")[0] for a in answers] == [
        "model", "foo", "lora.r", "train.max_length", "benchmark.pocket_cs.limit",
    ]  # fmt: skip


def test_a_bad_value_in_a_sweep_is_found_before_any_run_starts() -> None:
    assert refused("-m", "lora.r=8,0", "seed=0,1") == ["lora.r must be at least 1, got 0"]


def test_ones_own_file_needs_its_path(composed: Composed, tmp_path: Path) -> None:
    assert refused("dataset=[file]") == ["dataset.file.path must be set"]
    file = tmp_path / "rows.jsonl"
    file.write_text('{"instruction": "a", "output": "b"}\n' * 3)
    check_command_line(["dataset=[file]", f"dataset.file.path={file}"])


def test_a_setting_of_a_dataset_that_does_not_exist_is_named() -> None:
    assert refused("+dataset.alpacca.max_examples=3") == [
        "+dataset.alpacca.max_examples: there is no dataset alpacca; did you mean alpaca?"
    ]


def test_a_folder_of_ones_own_adds_choices(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nlora: {r: 2}\n")
    check_command_line(["--config-dir", str(tmp_path), "experiment=mine"])
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nlora: {r: 0}\n")
    assert refused("--config-dir", str(tmp_path), "experiment=mine") == [
        "lora.r must be at least 1, got 0"
    ]


def test_a_value_that_a_file_sets_is_no_default_of_the_schema_too() -> None:
    """One place a value: a YAML file repeats no default of the dataclasses, which would then stand in two."""
    repeated, compared = [], 0
    for file in CONF_DIR.rglob("*.yaml"):
        content = OmegaConf.to_container(OmegaConf.load(file))
        group = file.parent.name
        sections = (
            content
            if "@package _global_" in file.read_text() or file.stem == "config"
            else {group: content}
        )
        for section, settings in sections.items():
            kind = get_type_hints(RunConfig).get(section)
            kind = get_args(kind)[1] if get_origin(kind) is dict else kind
            if not is_dataclass(kind) or not isinstance(settings, dict):
                continue
            for field in fields(kind):
                compared += field.name in settings
                if field.name in settings and settings[field.name] == field.default:
                    repeated.append(f"{file.relative_to(CONF_DIR)}: {field.name}")
    assert compared > 100
    assert repeated == ["dataset/file.yaml: path"]  # which says by itself that it must be set


def test_the_names_of_transformers_are_read_as_it_has_them() -> None:
    assert transformers_names("training_args.py", "OptimizerNames") == [
        name.value for name in OptimizerNames
    ]
    assert transformers_names("trainer_utils.py", "SchedulerType") == [
        name.value for name in SchedulerType
    ]


def test_settings_may_come_before_the_flag_of_a_sweep() -> None:
    line = read_command_line(["lora.r=4", "-m", "seed=1,2", "--config-dir", "mine", "lora=qkv"])
    assert line.arguments == ["-m", "--config-dir", "mine", "lora.r=4", "seed=1,2", "lora=qkv"]
    assert line.is_sweep
    check_command_line(["lora.r=4", "-m", "seed=1,2"])


def test_a_long_sweep_is_checked_by_the_ends_of_its_ranges_and_composed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    composings: list[Any] = []
    monkeypatch.setattr(
        "slimdown.config.commandline.compose",
        lambda *a, **k: composings.append(a) or compose(*a, **k),
    )
    check_command_line(
        ["-m", "seed=range(0,100)", "lora.r=2,4,8", "train.learning_rate=1e-3,2e-3,3e-3"]
    )
    assert len(composings) == 1
    assert refused("-m", "seed=range(4294967000,4294967400)") == [
        "seed must be a whole number of at most 4294967295, got 4294967399"
    ]


def test_a_file_that_a_sweep_names_often_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"instruction": "a", "output": "b"}\n' * 3)
    opened: list[Path] = []
    monkeypatch.setattr(
        "slimdown.data.rows.records", lambda path, columns: opened.append(path) or records(path)
    )
    check_command_line(
        ["-m", "dataset=[file]", f"dataset.file.path={file}", "seed=range(0,9)", "lora.r=1,2,3"]
    )
    assert opened == [file]


def test_what_is_checked_is_what_hydra_composes(
    composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[RunConfig] = []
    monkeypatch.setattr(
        "slimdown.config.commandline.load_config",
        lambda c: found.append(load_config(c)) or found[-1],
    )
    arguments = [
        "model=smollm2",
        "dataset.alpaca.max_examples=5",
        "lora.lora_alpha=${lora.r}",
        "++lora.r=3",
        "seed=7",
    ]
    check_command_line(arguments)
    assert found == [composed(*arguments)]
    assert (found[0].lora.lora_alpha, found[0].seed) == (3, 7)
