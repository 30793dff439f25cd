"""The run's page: what must be on it, what must never be, and that it needs nothing else."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import pytest
from builders import Compose, stop_early
from report_builders import Pair, chosen, judge_pairs, make_usual, written

from slimdown.judging.budgets import Gate, check_budgets
from slimdown.report.run_page import RunDescription, render_page
from slimdown.report.text import describe_outcome
from slimdown.tracking.run_files import render_run_files

VOID = {"meta", "br", "hr", "img", "link", "input", "wbr"}


class Reader(HTMLParser):
    """What a browser makes of a page: tags, their attributes, and text without the style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.parts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.parts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.parts.append(data)


def read_page(pairs: dict[str, Pair], name: str = "a run", **description: Any) -> Reader:
    return Reader(
        render_page(judge_pairs(pairs), name, RunDescription(**description), run_id="run-id")
    )


@pytest.fixture(scope="module")
def usual() -> Reader:
    return read_page(make_usual(), environment={"torch": "2.9"})


def test_each_verdict_and_what_the_training_left_out_are_there(usual: Reader) -> None:
    left_out = ("train.max_length: 50 rows", "2 rows had no token left")
    for expected in ("↑ improved", "= retained", *left_out, "torch 2.9"):
        assert expected.replace(" ", "") in usual.text.replace(" ", ""), expected


def test_the_papers_columns_stand_only_beside_its_benchmarks(usual: Reader) -> None:
    plain = {name: pair for name, pair in make_usual().items() if name in ("calm", "skill")}
    page = read_page(plain)
    for heading in ("exact McNemar", "Unpaired:", "unpaired", "Paper’s metric", "paper’s metric"):
        assert heading in usual.text
        assert heading not in page.text
    assert "forgetting rate" in page.text


@pytest.mark.heavy
def test_the_head_names_model_rows_method_and_date(composed: Compose) -> None:
    config, findings = composed("lora.target_modules=[q_proj]"), judge_pairs(make_usual())
    info = SimpleNamespace(name="a run", environment={"torch": "2.9"})
    gate = Gate(tuple(check_budgets(findings, {"maths": 0.02})))
    files = render_run_files(findings, config, info, "run-id", gate)
    assert 'href="answers.html"' in files["report.html"]
    assert 'href="report.html"' in files["answers.html"]
    head = Reader(files["report.html"]).text.partition("Results")[0]
    outcome, method = describe_outcome(gate), "r 8, alpha 16, q_proj"
    for expected in ("pocket:model, nf4", "rows of pocket_instructions", method, outcome):
        assert expected in head
    assert re.search(r"date ?20\d\d-\d\d-\d\d", head)
    first, _, heading, _, row, *_ = files["report.md"].splitlines()
    assert first == f"**{outcome}**"
    assert files["report.md"].count(outcome) == 1
    assert heading.split(" | ")[:4] == ["| benchmark", "n", "base", "tuned"]
    assert row.split(" | ")[:4] == ["| maths", "80", "100.0", "50.0"]


def test_the_page_loads_nothing(usual: Reader) -> None:
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in usual.tags}
    for tag, attributes in usual.tags:
        for attribute, value in attributes.items():
            if attribute in ("src", "href", "xlink:href", "srcset", "action", "data"):
                assert (value or "").startswith("#"), (tag, attribute, value)
            assert not attribute.startswith("on"), (tag, attribute)
    ids = [attributes["id"] for _, attributes in usual.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0


def test_a_models_markup_is_shown_and_not_run() -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)></pre>"
    base = written([1.0] * 8, ["it is four"] * 8, prompt=f"say {evil}")
    tuned = written([0.0] * 8, [evil] * 8, prompt=f"say {evil}")
    page = read_page({"a<b>&'c'": (base, tuned)}, f"run {evil}", environment={evil: evil})
    assert not {"script", "img", "b"} & {tag for tag, _ in page.tags}
    assert page.text.count("<script>alert(1)</script>") >= 5
    assert "a<b>&'c'" in page.text


def test_control_characters_of_an_answer_are_visible() -> None:
    base, tuned = written([1.0] * 8, ["four"] * 8), written([0.0] * 8, ["\n  x\x00y\x1b\ud800"] * 8)
    html = render_page(judge_pairs({"a": (base, tuned)}), "a run")
    assert "\n  x␀y␛\N{REPLACEMENT CHARACTER}" in html
    html.encode()  # a file can hold it


@pytest.mark.parametrize(
    "pair",
    [
        (written([1.0] * 6), written([1.0] * 6)),
        (written([0.0] * 6), written([0.0] * 6)),
        (written([1.0]), written([0.0])),
        (written([0.5, 0.25, 0.75]), written([0.25, 0.25, 0.5])),
        (chosen([0, 1, 2, 3] * 9, 3), chosen([0, 1, 2, 2] * 9, 3)),
        (stop_early(written([1.0] * 900), 45), stop_early(written([0.0] * 900), 45)),
    ],
)
def test_no_undefined_number_is_printed_as_nan(pair: Pair) -> None:
    text = read_page({"only": pair}).text
    assert re.findall(r"\b(?:nan|NaN|inf|Infinity|None(?! of))\b", text) == []


def test_the_page_says_whose_base_it_is_and_which_subjects() -> None:
    base, tuned = (chosen([0, 1, 2, i % 4] * 30, 3) for i in (3, 2))
    origin = "run 3f2a91bc by ann, 2026-11-20"
    text = read_page({"colors": (replace(base, origin=origin), tuned)}).text
    assert origin in text
    assert "these 3 subjects" in text
    assert "colors by subject" in text


@pytest.mark.parametrize(("n_subjects", "n_shown"), [(14, 14), (30, 6)])
def test_a_page_names_few_subjects_or_the_extremes_of_many(n_subjects: int, n_shown: int) -> None:
    positions = [i % 4 for i in range(n_subjects * 40)]
    pair = chosen(positions, n_subjects), chosen(positions[::-1], n_subjects)
    text = read_page({"mmlu": pair}).text
    assert len(re.findall(r"subject\d+ ?[+−]?[\d.]+ points", text)) == n_shown


def test_small_p_values_of_subjects_are_never_zero() -> None:
    fell = [(i + 1) % 4 if i % 2 else i % 4 for i in range(80)]
    pair = chosen([i % 4 for i in range(80)], n_subjects=2), chosen(fell, n_subjects=2)
    text = read_page({"colors": pair}).text
    assert "p < 0.001" in text
    assert "p = 0.000" not in text
