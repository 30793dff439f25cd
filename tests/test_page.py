"""The report as a page: what must be on it, what must never be, and that it needs nothing else."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError
from made_up import chosen, evaluation, stopped, written

from slimdown.config.schema import PaperMetric, Role
from slimdown.evaluation.answers import BenchmarkEvaluation, Sample
from slimdown.report import page as showing
from slimdown.report.page import LONGEST
from slimdown.report.pages import render
from slimdown.stats.anatomy import EXPLANATIONS, Anatomy
from slimdown.stats.findings import judge
from slimdown.training.fine_tune import CutRows, StepRecord, TrainResult

TRAINING = TrainResult(
    adapter_dir=Path("adapter"),
    steps=2,
    tokens=1000,
    train_loss=1.5,
    validation_loss_before=2.5,
    validation_loss_after=1.25,
    n_trainable=12_345,
    trainable_percent=0.5,
    runtime_seconds=130.0,
    tokens_per_second=7.7,
    history=(StepRecord(1, {"loss": 2.0}), StepRecord(2, {"loss": 1.0})),
    cut=CutRows(max_length=64, n_rows=200, n_cut=50, n_lost=2, longest=99),
)
SETTINGS: dict[str, object] = {
    "model.id": "org/model",
    "lora.r": 8,
    "lora.target_modules": ["q_proj", "v_proj"],
    "evaluation.token_budget": None,
    "seed": 7,
}
VOID = {"meta", "br", "hr", "img", "link", "input", "path", "use", "rect", "line"}


def page(
    pairs: dict[str, tuple[BenchmarkEvaluation, BenchmarkEvaluation]],
    training: TrainResult | None = TRAINING,
    anatomies: dict[str, Anatomy] | None = None,
    name: str = "a run",
    **others: Any,
) -> str:
    base = evaluation(**{name: pair[0] for name, pair in pairs.items()})
    tuned = evaluation(**{name: pair[1] for name, pair in pairs.items()})
    findings = judge(base, tuned, training, others.pop("costs", None))
    findings = findings if anatomies is None else replace(findings, anatomies=anatomies)
    given: dict[str, Any] = {"settings": SETTINGS, "environment": {"torch": "2.9"}} | others
    return showing.page(findings, name, "run-id", **given)


class Reader(HTMLParser):
    """What a browser would make of a page: its tags, their attributes, and its text outside of the style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def usual() -> dict[str, tuple[BenchmarkEvaluation, BenchmarkEvaluation]]:
    right = ["it is surely four"] * 80
    lost = ["", "no", "it is surely five", "it is surely five"] * 10 + right[40:]
    return {
        "maths": (
            written([1.0] * 80, right, paper_metric=PaperMetric.forgetting_rate),
            written([0.0] * 40 + [1.0] * 40, lost, paper_metric=PaperMetric.forgetting_rate),
        ),
        "skill": (
            written([0.0] * 40, role=Role.target),
            written([1.0] * 30 + [0.0] * 10, role=Role.target),
        ),
        "colours": (
            chosen([i % 4 for i in range(60)], PaperMetric.knowledge_loss),
            chosen([i % 4 if i < 40 else 0 for i in range(60)], PaperMetric.knowledge_loss),
        ),
        "calm": (written([1.0, 0.0] * 10), written([1.0, 0.0] * 10)),
    }


def test_every_benchmark_verdict_cause_and_setting_is_there() -> None:
    text = Reader(page(usual())).text
    for expected in (
        "maths", "skill *", "colours", "calm",
        "↓ forgotten", "↑ improved", "? undecided",
        "empty nothing was written", "stopped early", "wrong result", "clearly behind",
        "Of 80 answers that were right before, 40 were lost (50.0 %).",
        "None of 10 right answers was lost.",
        "FR 50.0 %", "ΔK",
        "org/model", "q_proj, v_proj", "evaluation.token_budget", "12,345 (0.50 %)", "2 min 10 s",
        "train.max_length=64 cuts 50 of 200 rows (2 of them lose their whole answer); the longest has 99 tokens",
        "2.500 → 1.250", "run-id", "exact McNemar",
    ):  # fmt: skip
        assert expected in text, expected


def test_each_lost_cause_and_each_gain_has_both_answers_side_by_side() -> None:
    html = page(usual())
    text = Reader(html).text
    assert {cause for cause in EXPLANATIONS if f"Lost, {EXPLANATIONS[cause].split(':')[0]}" in text} == {
        "empty", "stopped_early", "wrong_result", "clearly_behind",
    }  # fmt: skip
    assert "Gained in skill *" in text
    assert "(nothing)" in text  # what an empty answer looks like
    assert len(re.findall('<article class="example">', html)) == 5
    assert len(re.findall('<div class="sides">', html)) == 5


def test_the_page_is_well_formed_and_loads_nothing() -> None:
    read = Reader(page(usual()))
    assert read.open == []
    names = [tag for tag, _ in read.tags]
    assert not {"script", "link", "img", "iframe", "object"} & set(names)
    for tag, attributes in read.tags:
        for attribute, value in attributes.items():
            if attribute in ("src", "href", "xlink:href", "srcset", "action", "data"):
                assert (value or "").startswith("#"), (tag, attribute, value)
            assert not attribute.startswith("on"), (tag, attribute)
    assert "@import" not in page(usual())
    assert not re.findall(r"url\((?!#)", page(usual()))


def test_the_page_of_what_was_stopped_says_so_and_prints_nothing_that_is_not_known() -> None:
    rate = PaperMetric.forgetting_rate
    early = tuple(
        stopped(written(scores, paper_metric=rate), 45) for scores in ([1.0] * 1319, [0.0] * 1319)
    )
    reader = Reader(page({"maths": early, "calm": usual()["calm"]}))  # type: ignore[dict-item]
    assert "Forgotten: maths (−100.0 points after 45 of 1,319 questions)" in reader.text
    assert (
        "Questions askedQuestions were asked until enough was known, or all were."
        in reader.text.replace("asked Q", "askedQ")
    )
    assert "questions asked 65" in reader.text.replace("asked65", "asked 65")
    assert not re.search(r"\bnan\b", reader.text)


def test_ids_are_unique_over_the_page() -> None:
    ids = [attributes["id"] for _, attributes in Reader(page(usual())).tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0


def test_a_models_markup_is_shown_and_not_run() -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)></pre>"
    base = written([1.0, 1.0], ["it is four", evil], prompt=f"say {evil}")
    tuned = written([0.0, 0.0], [evil, "no"], prompt=f"say {evil}")
    read = Reader(
        page(
            {"a<b>&'c'": (base, tuned)},
            name=f"run {evil}",
            settings={evil: evil},
            environment={evil: evil},
            costs={f"{evil}_seconds": 1.0},
        )
    )
    assert read.open == []
    assert not {"script", "img", "b"} & {tag for tag, _ in read.tags}
    assert read.text.count("<script>alert(1)</script>") >= 5
    assert "a<b>&'c'" in read.text


def test_a_password_in_an_address_is_left_out() -> None:
    address = "https://me:hunter2@example.org/rows"
    html = page(usual(), name=f"dataset.x.path={address}", settings={"tracking.uri": address})
    assert "hunter2" not in html
    assert html.count("https://***@example.org/rows") >= 3


def test_a_long_text_is_cut_and_says_so() -> None:
    long = "word " * 1000 + "END"
    base, tuned = written([1.0], ["four"], prompt=long), written([0.0], [long], prompt=long)
    html = page({"a": (base, tuned)})
    assert f"{len(long) - LONGEST:,} more characters are in samples/" in html
    assert f"{len(long) - LONGEST:,} characters before this are in samples/" in html
    assert (
        html.count("word END") == 1
    )  # the end of the prompt is kept, the end of the answer is not


def test_control_characters_and_layout_of_an_answer_are_kept_visible() -> None:
    html = page({"a": (written([1.0], ["four"]), written([0.0], ["\n  x\x00y\x1b\ud800"]))})
    assert '<pre class="text wrong">\n\n  x␀y␛?</pre>' in html
    html.encode()  # a file can hold it


def graded(values: list[float]) -> BenchmarkEvaluation:
    return written(values, [f"answer {i}" for i in range(len(values))])


@pytest.mark.parametrize(
    "pair",
    [
        (written([1.0] * 6), written([1.0] * 6)),
        (written([0.0] * 6), written([0.0] * 6)),
        (written([1.0] * 6), written([0.0] * 6)),
        (written([1.0]), written([0.0])),
        (graded([0.5]), graded([0.25])),
        (graded([0.5, 0.25, 0.75]), graded([0.25, 0.25, 0.5])),
        (written([1.0, 0.0, 0.0, 0.0], chance=0.25), written([0.0, 0.0, 0.0, 1.0], chance=0.25)),
        (chosen([0, 1, 2, 3]), chosen([0, 1, 2, 3])),
        (chosen([1, 2, 3, 0]), chosen([1, 2, 3, 0])),
        (chosen([0]), chosen([1])),
    ],
    ids=[
        "all right",
        "all wrong",
        "all lost",
        "one",
        "one graded",
        "graded",
        "chance",
        "kept",
        "never",
        "one choice",
    ],
)
def test_no_undefined_number_is_printed_as_nan(
    pair: tuple[BenchmarkEvaluation, BenchmarkEvaluation],
) -> None:
    text = Reader(page({"only": pair})).text
    assert re.findall(r"\b(?:nan|NaN|inf|Infinity|None(?! of))\b", text) == []
    assert "only" in text


def test_undefined_rates_say_why() -> None:
    at_chance = (written([1.0, 0.0, 0.0, 0.0], chance=0.25), written([0.0] * 4, chance=0.25))
    at_zero = (written([0.0] * 4), written([0.0] * 4))
    assert "any possible base not shown above chance" in Reader(page({"a": at_chance})).text
    fallen = (
        written([1.0] * 27 + [0.0] * 73, chance=0.25),
        written([1.0] * 5 + [0.0] * 95, chance=0.25),
    )
    assert "at least 266.1 % base not shown above chance" in Reader(page({"a": fallen})).text
    assert "any possible base not shown above 0" in Reader(page({"a": at_zero})).text


def test_a_run_whose_training_diverged_has_a_page() -> None:
    diverged = replace(
        TRAINING,
        validation_loss_after=nan,
        train_loss=inf,
        tokens_per_second=nan,
        history=(),
        runtime_seconds=nan,
    )
    text = Reader(
        page(
            usual(), diverged, costs={"base_evaluation_seconds": nan, "peak_memory_bytes": 2.0**31}
        )
    ).text
    assert "2.500 → undefined" in text
    assert (
        "base evaluation undefined" in text.replace("\n", " ") or "base evaluationundefined" in text
    )
    assert "2.00 GiB" in text
    assert not re.search(r"\b(nan|inf)\b", text)


def test_answers_that_nobody_sorted_are_said_to_be_unsorted() -> None:
    several = Anatomy(n_lost=2, n_right=3, causes=(), choices=None, gained=None)
    text = Reader(page({"a": usual()["calm"]}, anatomies={"a": several})).text
    assert "Why is not known" in text
    assert (
        "Nothing is known of single answers."
        in Reader(page({"a": usual()["calm"]}, anatomies={})).text
    )


def test_a_choice_without_likelihoods_is_shown_by_its_text() -> None:
    def stripped(report: BenchmarkEvaluation) -> BenchmarkEvaluation:
        samples: list[Sample] = [
            replace(sample, choices=(), log_likelihoods=()) for sample in report.samples
        ]
        return replace(report, samples=tuple(samples))

    text = Reader(page({"a": (stripped(chosen([0, 1])), stripped(chosen([1, 1])))})).text
    assert "read as “red”, right" in text
    assert "read as “green”, wrong" in text


def test_a_template_that_misses_a_value_fails_loudly() -> None:
    with pytest.raises(UndefinedError):
        render("report.html.j2", name="x")
