"""The table of `compare` on a console: what it says, and that it fits."""

import re
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
from builders import Capture, make_benchmark, make_evaluation, make_run
from rich.cells import cell_len

from slimdown.comparison.run_comparison import Comparison, compare_runs
from slimdown.config.benchmark_config import Role
from slimdown.judging.findings import Findings, judge
from slimdown.report.brief_comparison import describe_briefly, head_columns
from slimdown.report.console import show_comparison

SETTINGS = {
    "lora.r": ("4", "8", "16"),
    "model.id": ("meta-llama/Llama-3.2-1B-Instruct", "Qwen/Qwen2.5-Coder-0.5B-Instruct"),
    "train.learning_rate": ("0.0001", "0.00002"),
}
NAMES = ("skill", "math", "cs", "commonsense", "college_computer_science", "gsm8k", "law", "arc")
NAMES += ("hellaswag", "history", "grammar", "winogrande", "truthfulqa")


@cache
def make_findings(n_benchmarks: int, loss: float, seed: int, has_target: bool = True) -> Findings:
    draw, names = np.random.default_rng(seed), NAMES[not has_target :][:n_benchmarks]
    base, tuned = {}, {}
    for name in names:
        before = (draw.random(150) < 0.6) * 1.0
        role = Role.target if name == "skill" else Role.retained
        lost = draw.random(150) < (0.01 if name == "skill" else loss) / 0.6
        base[f"pocket_{name}"] = make_benchmark(before, role=role)
        tuned[f"pocket_{name}"] = make_benchmark(before * ~lost, role=role)
    return judge(make_evaluation(**base), make_evaluation(**tuned))


@cache
def compare(
    n_settings: int, n_seeds: int, n_benchmarks: int, has_target: bool = True
) -> Comparison:
    chosen = dict(list(SETTINGS.items())[:n_settings])
    runs = []
    for values in product(*chosen.values()):
        for seed in range(n_seeds):
            params = {k.replace(".", "__"): v for k, v in zip(chosen, values, strict=True)}
            rank = int(values[0]) if values else 4
            params |= {"lora__lora_alpha": str(2 * rank), "seed": str(seed)}
            findings = make_findings(n_benchmarks, 0.01 * rank, seed, has_target)
            text = "".join(f" {k}={v}" for k, v in zip(chosen, values, strict=True))
            run = make_run(findings, len(runs), **params)
            runs.append(replace(run, name=f"base alpaca{text} seed={seed}"))
    return compare_runs(runs)


@pytest.mark.parametrize("n_seeds", [1, 2])
@pytest.mark.parametrize("n_settings", [0, 1, 3])
def test_lines_fit_and_no_number_is_cut(n_settings: int, n_seeds: int, capsys: Capture) -> None:
    for n_benchmarks in (1, 2, 5, 6, 12):
        comparison = compare(n_settings, n_seeds, n_benchmarks)
        show_comparison(comparison, "runs", ["a note"])
        text = capsys.readouterr().out
        lines = text.splitlines()
        assert (lines[0], lines[-1]) == ("runs", "a note")
        assert max(map(cell_len, lines)) <= 80
        numbers = re.findall(r"(?<!\S)[+−]?\d+\.\d [↓↑=?](?!\S)", text)
        names = list(head_columns(comparison).values())
        [left_out] = re.findall(
            r"left out, .*?: (.*?)\. +Add", " ".join(map(str.strip, lines))
        ) or [""]
        n_left_out = len(set(left_out.split(", ")) & set(names))
        assert len(numbers) == (len(names) - n_left_out) * len(comparison.rows)
        assert "kept" not in left_out
        for rank in SETTINGS["lora.r"][: 3 * bool(n_settings)]:
            assert re.search(rf"(?<!\S){rank}(?!\S)", text)
        assert "lora_alpha" not in text  # it follows from the rank


def test_control_characters_of_names_widen_no_column(capsys: Capture) -> None:
    comparison = compare(2, 1, 4)
    rows = tuple(
        replace(row, settings={k: v.replace("meta", "\x1b[2J\a") for k, v in row.settings.items()})
        for row in comparison.rows
    )
    show_comparison(replace(comparison, rows=rows), "runs", [])
    text = capsys.readouterr().out
    assert "␛[2J" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)
    assert max(map(cell_len, text.splitlines())) <= 80


def test_a_line_is_a_value_with_its_mean_its_verdict_and_what_was_learned_and_kept() -> None:
    _, table = describe_briefly(compare(1, 2, 4))
    columns = table.columns
    heads = [column.heading for column in columns]
    assert heads == ["run", "lora.r", "learned", "commonsense", "cs", "math", "kept"]
    base, *rows = table.rows
    assert str(base[columns[0]]) == "base"
    assert [str(row[columns[1]]) for row in rows] == ["4", "8", "16"]
    assert str(rows[2][columns[-1]]).endswith(" ↓")
    kept = float(rows[0][columns[-1]].text.replace("−", "-"))
    assert kept == pytest.approx(100 * compare(1, 2, 4).rows[0].retained.value, abs=0.051)


def test_learned_and_kept_stand_only_where_they_say_more_than_a_benchmark() -> None:
    headings = {1: ["run", "lora.r", "pocket_math"], 2: ["run", "lora.r", "cs", "math", "kept"]}
    for n_benchmarks, expected in headings.items():
        table = describe_briefly(compare(1, 1, n_benchmarks, has_target=False))[1]
        assert [column.heading for column in table.columns] == expected


def test_what_differs_is_said_with_its_p_value_and_the_rest_in_one_line() -> None:
    _, table = describe_briefly(compare(1, 3, 4))
    claims = re.findall(r"(\d+) is \d+\.\d points below (\d+) on (\w+)", table.notes[0])
    assert claims == [("16", "4", "commonsense"), ("16", "4", "kept"), ("16", "8", "commonsense")]
    assert re.search(r"p (<|=) 0\.\d+\)", table.notes[0])
    assert "-m seed=0,1,2" in describe_briefly(compare(1, 1, 4))[1].notes[0]
    two = compare(2, 3, 4)
    assert re.search(r": (lora.r=16 is|model.id=)", describe_briefly(two)[1].notes[0])
    assert "model.id=" in describe_briefly(two, by="lora.r")[1].notes[0]


def test_runs_that_were_not_varied_have_a_line_each() -> None:
    runs = [make_run(make_findings(3, 0.05, seed), seed) for seed in (0, 0)]
    table = describe_briefly(compare_runs(runs, group_seeds=False))[1]
    assert [column.heading for column in table.columns][:2] == ["run", "name"]
    assert len(table.rows) == 3  # with the base
