"""The card of a tuned model: valid for the hub, loadable as it says, without secrets."""

import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard
from record_builders import Compose
from report_builders import judge_pairs, make_usual

from slimdown.config.schema import RunConfig
from slimdown.judging.findings import Findings
from slimdown.tracking.run_files import MergedModel, render_model_card

BASE: dict[str, Any] = {"id": "org/model", "revision": "a" * 40, "license": "other llama LINK"}
BASE |= {"quantization": "nf4", "dtype": "float32"}


@pytest.fixture
def run(composed: Compose) -> tuple[Findings, RunConfig]:
    """Findings, and settings with the benchmarks that they are of."""
    findings = judge_pairs(make_usual())
    evaluations = findings.base.benchmarks.items()
    benchmarks = {name: copy.copy(evaluated.benchmark) for name, evaluated in evaluations}
    return findings, replace(composed(), benchmark=benchmarks)


@pytest.mark.parametrize(
    ("change", "is_listed"),
    [
        (lambda config: None, True),
        (lambda config: setattr(config.benchmark["maths"], "limit", 80), False),
        (lambda config: setattr(config.benchmark["maths"], "path", "mine.jsonl"), False),
        (lambda config: setattr(config.evaluation, "holdout", 0.5), False),
        (lambda config: setattr(config.evaluation, "include_path", "tasks"), False),
    ],
)
def test_the_hub_gets_scores_of_whole_benchmarks_and_of_no_others(
    change: Callable[[Any], None], is_listed: bool, run: tuple[Findings, RunConfig]
) -> None:
    findings, config = run
    change(config)
    data = ModelCard(render_model_card(findings, config, SimpleNamespace(**BASE))).data
    listed = {result.dataset_name: result for result in data.eval_results or []}
    assert ("maths" in listed) is is_listed
    if is_listed:
        assert listed["maths"].metric_value == 0.5
        assert listed["maths"].metric_name.startswith(listed["maths"].metric_type)
    for other in (
        {"merged": MergedModel("merged", "bfloat16", True)},
        {"note": "It adds 1.", "is_adapter": True},
    ):
        text = render_model_card(findings, config, SimpleNamespace(**BASE), **other)
        assert not ModelCard(text).data.eval_results


@pytest.mark.parametrize("merged", [None, MergedModel("merged", "bfloat16", True)])
def test_a_card_is_valid(run: tuple[Findings, RunConfig], merged: MergedModel | None) -> None:
    text = render_model_card(*run, SimpleNamespace(**BASE), merged)
    card = ModelCard(text)
    assert card.data.base_model == "org/model"
    assert (card.data.license, card.data.license_name) == ("other", "llama")
    assert card.data.library_name == ("transformers" if merged else "peft")
    rows = [line.split(" | ")[:5] for line in text.splitlines()]
    assert ["| maths", "flexible", "80", "100.0", "50.0"] in rows
    code = text.partition("```python\n")[2].partition("```")[0]
    compile(code, "card", "exec")
    assert ("PeftModel" in code) == (merged is None)
    assert "0-shot, 80 questions" in text


def test_a_card_names_a_folder_of_the_base_without_its_place(
    run: tuple[Findings, RunConfig],
) -> None:
    base = BASE | {"id": "private/place/own-base/", "revision": f"sha256:{'0' * 64}"}
    text = render_model_card(*run, SimpleNamespace(**base))
    assert "own-base" in text
    assert "private" not in text
