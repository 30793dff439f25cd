"""The page of all changed answers: what is on it, and that all that models wrote is text."""

import json
import re
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from builders import add_p_right, make_benchmark, make_choice, make_evaluation, make_sample
from report_builders import Pair, chosen, judge_pairs, make_usual, written
from test_run_page import Reader

from slimdown.evaluation.results import BenchmarkEvaluation
from slimdown.judging.findings import judge
from slimdown.judging.holdout import held_part, open_part
from slimdown.report.answers_page import MOST_SHOWN, mark_difference, render_answers_page

EVIL = (
    "<script>document.title='run'</script><img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "]]>'\"`${alert(1)}{{ 7 * 7 }}{% raw %}",
    "\u202egnp.exe\u202c \u2066a\u2028b\u2029c\x00\x1b[2J\ud800",
    "</pre></style></title><svg onload=alert(1)>",
    "&lt;b&gt;&amp;",
    "x" * 3000,
    "\U0001f600 " * 500,
)


class Page:
    """A page, as a browser reads it, and the answers that its script shows."""

    def __init__(self, pairs: dict[str, Pair], name: str = "a run") -> None:
        self.html = render_answers_page(judge_pairs(pairs), name, "report.html", "samples/")
        self.read = Reader(self.html)
        [packed] = re.findall(r'<script type="application/json" id="data">(.*)</script>', self.html)
        self.packed, self.data = packed, json.loads(packed)
        self.answers: list[dict[str, Any]] = self.data["answers"]
        self.by_key = {answer["key"]: answer for answer in self.answers}


@cache
def read_usual() -> Page:
    return Page(make_usual())


def test_every_lost_and_gained_answer_is_there_once() -> None:
    page, usual = read_usual(), make_usual()
    for name, (base, tuned) in usual.items():
        metric = base.benchmark.metric
        pairs = zip(base.scores_of(metric), tuned.scores_of(metric), strict=True)
        expected = {
            f"{name}-{i}": before > after
            for i, (before, after) in enumerate(pairs)
            if before != after
        }
        shown = {k: a["lost"] for k, a in page.by_key.items() if k.rpartition("-")[0] == name}
        assert shown == expected
    assert len(page.by_key) == len(page.answers)
    assert [a["lost"] for a in page.answers] == sorted(
        (a["lost"] for a in page.answers), reverse=True
    )
    causes = {answer["cause"] for answer in page.answers if answer["key"].startswith("maths")}
    assert causes == {"empty", "stopped_early", "wrong_result"}
    assert all(answer["cause"] in {"", *page.data["causes"]} for answer in page.answers)
    assert "maths4" in page.read.text.replace(" ", "")  # the counts, where no script is run
    assert "JavaScript" in page.read.text


def test_choices_have_probabilities_and_the_clearest_losses_come_first() -> None:
    base = [make_choice(i % 4, i) for i in range(40)]
    gaps = np.random.default_rng(0).uniform(0.1, 5, 40)
    tuned = [
        replace(
            make_choice((i + 1) % 4, i), log_likelihoods=tuple(np.roll([-1 - gap, -1, -9, -9], i))
        )
        for i, gap in enumerate(gaps)
    ]
    pair = (make_benchmark([*map(add_p_right, samples)]) for samples in (base, tuned))
    page = Page({"a": tuple(pair)})
    assert [a["key"] for a in page.answers] == [f"a-{i}" for i in np.argsort(-gaps)]
    answer, gap = page.by_key["a-5"], gaps[5]
    shares = np.exp([-1 - gap, -1, -9, -9])
    assert [choice[3] for choice in answer["choices"]] == pytest.approx(
        np.roll(100 * shares / shares.sum(), 5), abs=0.06
    )
    assert (answer["right_choice"], answer["taken"]) == (1, [1, 2])
    before = 1 / (1 + 3 * np.exp(-2))
    assert answer["fall"] == pytest.approx(before - (shares / shares.sum())[0])


def test_the_longest_bar_is_the_choice_that_the_metric_takes() -> None:
    """By length the long choice wins, though the short one is likelier."""
    choices = ("ab", "a much longer text")
    sides = []
    for taken, likelihoods in zip(choices, ((-1.0, -60.0), (-4.0, -9.0)), strict=True):
        fields = {"choices": choices, "target": "ab", "answers": {"acc_norm": taken}}
        score = {"acc_norm": float(taken == "ab")}
        sample = make_sample(score, response="", log_likelihoods=likelihoods, **fields)
        sides.append(make_benchmark([sample]))
    [answer] = Page({"a": tuple(sides)}).answers
    before, after = ([choice[side] for choice in answer["choices"]] for side in (2, 3))
    assert answer["taken"] == [before.index(max(before)), after.index(max(after))] == [0, 1]


def test_a_link_tells_tasks_apart_and_subjects_can_be_chosen() -> None:
    page = Page({"colors": (chosen([0, 1, 2, 3] * 9, 3), chosen([0, 0, 0, 0] * 9, 3))})
    assert page.by_key["colors-subject1-1"]["subject"] == "subject1"
    assert {answer["subject"] for answer in page.answers} == {"subject0", "subject1", "subject2"}


def make_hostile(score: float, n: int) -> BenchmarkEvaluation:
    """Answers that are all right or all wrong; the first wrong one is long."""
    samples = []
    for i in range(n):
        prompt, target, answer = (EVIL[(i * step) % len(EVIL)] for step in (1, 5, 7))
        fields: dict[str, Any] = {"prompt": prompt * 3, "target": target, "category": EVIL[i % 7]}
        response = f"{answer if score else prompt} {i}" if score or i else "y" * 1_000_000
        fields |= {"response": response, "answers": {"match": response}}
        samples.append(make_sample({"match": score}, i, EVIL[0], **fields))
    return make_benchmark(samples, chance=0.0)


def test_what_a_model_writes_is_text_and_never_markup() -> None:
    n, plain = 1000, (written([1.0] * 6), written([0.0] * 6))
    hostile = make_hostile(1.0, n), make_hostile(0.0, n)
    page = Page({f"a{EVIL[0]}": hostile, EVIL[1]: plain}, EVIL[0])
    tags = {tag for tag, _ in page.read.tags}
    assert not tags & {"img", "svg", "b", "iframe", "link", "object", "form", "base"}
    assert [tag for tag, _ in page.read.tags].count("script") == 2
    for tag, attributes in page.read.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("href", "src"):
            assert attributes.get(name) in (None, "report.html")
    assert not set("<>&\u2028\u2029") & set(page.packed)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b\ud800-\udfff]", page.html)
    assert len(page.answers) == n + 6
    for part in (EVIL[0], EVIL[1], EVIL[3], EVIL[6]):
        assert any(part in "".join(answer["texts"][1]) for answer in page.answers)
    [cut] = [answer for answer in page.answers if answer["more"][1] > 900_000]
    assert cut["more"][1] + len("".join(cut["texts"][1])) == 1_000_000
    assert len(page.html.encode()) < 5_000_000
    assert "Texts are cut at" in page.read.text


def test_the_script_can_set_nothing_but_text_and_asks_no_network() -> None:
    script = read_usual().html.rpartition("<script>")[2]
    ways = ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "srcdoc", "eval(")
    ways += ("Function(", "fetch(", "XMLHttp", "import(", "Storage", "http", "setAttribute(name")
    assert [way for way in ways if way in script] == []
    assert len(script) > 1000


def test_a_page_stays_below_its_size_and_counts_what_it_leaves_out() -> None:
    n, long = MOST_SHOWN + 500, "word " * 2000
    lost = written([1.0] * n, prompt=long), written([0.0] * n, prompt=long)
    page = Page(dict.fromkeys(("first", "second"), lost))
    assert len(page.html.encode()) < 5_000_000
    counts = [sum(a["benchmark"] == i for a in page.answers) for i in (0, 1)]
    assert counts[0] - 1 <= counts[1] <= counts[0] <= MOST_SHOWN
    assert all(f"2,500 {n_shown:,} shown" in page.read.text for n_shown in counts)
    assert f"{sum(counts):,} of 5,000 " in page.read.text
    prompt, n_before = page.answers[0]["prompt"]
    assert n_before + len(prompt) == len(long)


def test_held_out_questions_are_not_on_it() -> None:
    base, tuned = (make_evaluation(a=[score] * 60) for score in (1.0, 0.0))
    findings = judge(open_part(base, 0.5), open_part(tuned, 0.5))
    html = render_answers_page(findings, "a run", "report.html", "samples/")
    keys = set(re.findall(r'"key":"(a-\d+)"', html))
    held = {f"a-{s.doc_id}" for s in held_part(base, 0.5).benchmarks["a"].samples}
    assert len(keys) + len(held) == 60
    assert not keys & held
    assert "not held out" in html


def test_marked_texts_are_the_texts_and_differ_only_where_they_are_marked() -> None:
    draw = np.random.default_rng(0)
    words = ["the", "pens", "18", "24", "=", "+", ".", "\n", "boxes", "  ", "東京", "é"]
    pairs = [("", ""), ("", "a"), ("a b", ""), *((a, b) for a in EVIL for b in EVIL)]
    for _ in range(200):
        base = list(draw.choice(words, draw.integers(1, 60)))
        tuned = [word for word in base if draw.random() < 0.8]
        tuned.insert(int(draw.integers(0, len(tuned) + 1)), "new")
        pairs.append((" ".join(base), " ".join(tuned)))
    n_marked = 0
    for base, tuned in pairs:
        before, after = mark_difference(base, tuned)
        assert ("".join(before), "".join(after)) == (base, tuned)
        assert len(before) == len(after)
        if len(before) > 1:
            assert before[::2] == after[::2]
            n_marked += 1
    assert n_marked > 150
