"""What can be set composes to what the paper and the files of `conf/` say."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import pytest
from builders import Compose

from slimdown.config.benchmark_config import BenchmarkConfig, PaperMetric
from slimdown.config.benchmarks import read_benchmarks
from slimdown.config.dataset_config import DatasetConfig
from slimdown.config.fields import build_choice
from slimdown.config.naming import base_settings, flatten
from slimdown.config.paths import list_group_choices
from slimdown.config.schema import RunConfig
from slimdown.utils.errors import ConfigError

PLAIN = ["any", "llama32", "llama32_instruct", "smollm2", "tinyllama"]


@pytest.mark.parametrize("model", [m for m in list_group_choices("model") if m != "pocket"])
def test_every_other_model_gets_the_papers_settings(model: str, composed: Compose) -> None:
    config = composed(f"model={model}", *(["model.id=you/yours"] if model == "any" else []))
    assert list(config.dataset) == ["alpaca" if model in PLAIN else "alpaca_chat"]
    assert list(config.benchmark) == ["hellaswag", "gsm8k", "mmlu_cs"]
    assert config.train.learning_rate == 2e-4
    assert {b.paper_metric for b in config.benchmark.values()} == set(PaperMetric)
    lora = config.lora
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (8, 16, 0.0)
    attention = ["q_proj", "k_proj", "v_proj"]
    assert lora.target_modules == (attention if model in PLAIN else ["all-linear"])


@pytest.mark.parametrize("paper", ["paper_llama32", "paper_tinyllama"])
def test_the_papers_presets_keep_what_it_trained(paper: str, composed: Compose) -> None:
    config = composed(f"experiment={paper}")
    assert config.lora.target_modules == ["q_proj", "k_proj", "v_proj"]
    assert (config.train.assistant_only_loss, config.train.completion_only_loss) == (False, False)
    chosen = composed(f"experiment={paper}", "lora=mlp", "train.assistant_only_loss=auto")
    assert chosen.lora.target_modules[0] == "gate_proj"
    assert chosen.train.assistant_only_loss == "auto"


GROUPS = ["quantization", "dataset", "method", "lora", "train", "benchmark", "experiment"]


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_of_every_group_composes(group: str, composed: Compose) -> None:
    choices = set(list_group_choices(group)) - {"file", "questions"}  # these need a path
    if group in ("dataset", "benchmark"):  # a run may have all of them
        choices = {f"[{','.join(sorted(choices))}]"}
    model = [] if group == "experiment" else ["model=smollm2"]
    model += ["quantization=none"] if group == "method" else []  # which some need
    for choice in choices:
        assert isinstance(composed(*model, f"{group}={choice}"), RunConfig), choice


def test_a_choice_on_the_command_line_beats_what_the_pocket_model_brings(composed: Compose) -> None:
    config = composed("dataset=[pocket_replay]", "benchmark=[pocket_math]", "train=quick")
    assert list(config.dataset) == ["pocket_replay"]
    assert list(config.benchmark) == ["pocket_math"]
    assert config.train.max_steps == 4


def test_a_preset_holds_only_differences(composed: Compose) -> None:
    plain, preset = composed("model=tinyllama"), composed("experiment=paper_tinyllama")
    plain.dataset["alpaca"].max_examples = 50_000
    plain.evaluation.apply_chat_template = False
    plain.train.assistant_only_loss = False
    assert preset == plain


def test_the_ranks_of_an_ablation_have_one_scale(composed: Compose) -> None:
    for setting in ("experiment=rank", "lora=qkv", "lora=mlp", "lora=all_linear"):
        loras = [composed(setting, f"lora.r={r}").lora for r in (2, 8, 64)]
        assert [(lora.r, lora.lora_alpha) for lora in loras] == [(2, 4), (8, 16), (64, 128)]
    assert composed("lora.r=4", "lora.lora_alpha=16").lora.lora_alpha == 16
    assert composed("experiment=paper_llama32").lora == composed("lora.r=8").lora


def test_what_is_given_is_measured_in_16_bit_unless_quantization_is_set(composed: Compose) -> None:
    assert composed().quantization.name == "nf4"
    tuned = ["model=smollm2", "tuned=me/mine"]
    assert composed(*tuned).quantization.name == "none"
    for chosen, name in (("quantization=nf4", "nf4"), ("quantization.load_in_8bit=true", "int8")):
        assert composed(chosen).quantization.name == name
        assert composed(*tuned, chosen).quantization.name == name


def test_a_tuned_model_has_the_numbers_of_its_base(composed: Compose) -> None:
    tuned = composed("model=smollm2", "tuned=me/mine@v2", "model.dtype=bfloat16").tuned_model
    assert (tuned.id, tuned.revision, tuned.dtype) == ("me/mine", "v2", "bfloat16")
    assert composed().tuned_model is None


def test_an_option_is_a_setting_and_none_is_not(composed: Compose) -> None:
    plain = flatten(composed())
    chosen = flatten(composed("train.args.packing=true", "lora.args.rank_pattern.q_proj=2"))
    options = {"train.args.packing": True, "lora.args.rank_pattern": {"q_proj": 2}}
    assert chosen == plain | options
    assert not any("args" in key for key in plain)


def test_settings_that_are_idle_do_not_count(composed: Compose) -> None:
    assert "lora.r" in flatten(composed())
    assert "lora.r" not in flatten(composed("method=ia3"))
    tuned = flatten(composed("model=smollm2", "tuned=me/mine"))
    assert not any(key.startswith(("dataset.", "train.", "seed")) for key in tuned)
    plain, trained = composed(), composed("lora.r=4", "evaluation.holdout=0.5", "seed=3")
    assert base_settings(plain) == base_settings(trained)
    assert base_settings(plain) != base_settings(composed("evaluation.batch_size=4"))


@pytest.mark.parametrize("file", ["a.jsonl", "a.CSV", "a.parquet", "~/a.json"])
def test_a_file_is_known_by_its_ending(file: str) -> None:
    assert DatasetConfig(path=file).file is not None
    assert DatasetConfig(path="tatsu-lab/alpaca").file is None


def test_benchmarks_are_read_by_name_with_settings_above() -> None:
    benchmarks = read_benchmarks(["gsm8k", {"task": "arc_easy", "metric": "acc"}], limit=8)
    assert benchmarks["gsm8k"].num_fewshot == 5
    assert benchmarks["arc_easy"].metric == "acc"
    assert {benchmark.limit for benchmark in benchmarks.values()} == {8}


@pytest.mark.parametrize("more", ["", "chance: null\nnum_fewshot: null\nmetric: null\n"])
def test_an_own_benchmark_needs_only_a_task(more: str, composed: Compose, tmp_path: Path) -> None:
    (tmp_path / "benchmark").mkdir()
    text = f"# @package benchmark.mine\ntask: piqa\n{more}"
    (tmp_path / "benchmark" / "mine.yaml").write_text(text)
    config = composed("benchmark=[mine]", f"hydra.searchpath=[file://{tmp_path}]")
    assert config.benchmark == {"mine": BenchmarkConfig("piqa", None, None, None, None)}


@pytest.mark.parametrize(
    ("names", "settings", "answer"),
    [
        ([], {}, "no benchmark is named; name one of arc_challenge, arc_easy"),
        ([3], {}, "3 names no benchmark"),
        (None, {}, "None names no benchmark"),
        ("questions", {}, "questions: task must be set"),
        ({"task": "mine", "path": "x"}, {}, "path=x: there is no such file; a relative path"),
        (["gsm8k", "gsm8k"], {}, "gsm8k is named twice"),
        ("gsm8k", {"limt": 3}, "gsm8k: .*limt is not a setting; did you mean limit?"),
        ("gsm8k", {"limit": 0}, "gsm8k: limit must be from 1 to 1,000,000,000, got 0"),
    ],
)
def test_a_wrong_benchmark_is_answered(names: object, settings: dict, answer: str) -> None:
    with pytest.raises(ConfigError, match=answer):
        read_benchmarks(names, **settings)


def test_numbers_of_numpy_and_tuples_are_settings() -> None:
    numpy = {"limit": np.int64(5), "margin": np.float64(0.05), "temperature": np.float32(0.5)}
    plain = {"limit": 5, "margin": 0.05, "temperature": 0.5}
    assert read_benchmarks("gsm8k", **numpy) == read_benchmarks("gsm8k", **plain)
    whole = read_benchmarks("gsm8k", temperature=1, stop=("a", "b"))["gsm8k"]
    assert (repr(whole.temperature), whole.stop) == ("1.0", ["a", "b"])


def test_one_limit_for_all_benchmarks_is_the_limit_of_each(composed: Compose) -> None:
    limited = composed("evaluation.limit=7", "benchmark.pocket_math.limit=3")
    limits = {name: benchmark.limit for name, benchmark in limited.benchmark.items()}
    assert limits == {name: 3 if name == "pocket_math" else 7 for name in limits}
    by_hand = [f"benchmark.{name}.limit={limit}" for name, limit in limits.items()]
    assert flatten(limited) == flatten(composed(*by_hand))
    with pytest.raises(ConfigError, match=r"evaluation\.limit must be at least 1"):
        composed("evaluation.limit=0")


Speed = StrEnum("Speed", "slow fast")


@dataclass
class HurriedSettings:
    name: str
    speed: Speed = Speed.slow
    fallback: Speed | None = None


def test_a_choice_may_have_an_enumeration_that_may_be_null() -> None:
    kinds = {"hurried": HurriedSettings}
    settings = build_choice("keep", kinds, {"name": "hurried", "fallback": "fast"})
    assert (settings.speed, settings.fallback) == (Speed.slow, Speed.fast)
    with pytest.raises(ConfigError, match="fallback='best' must be one of slow, fast"):
        build_choice("keep", kinds, {"name": "hurried", "fallback": "best"})
