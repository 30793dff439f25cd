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
from slimdown.report.brief_comparison import describe_briefly, order_by_settings
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
@pytest.mark.parametrize("n_settings", [0, 1, 2, 3])
def test_every_line_fits_and_no_number_is_cut(n_settings: int, n_seeds: int) -> None:
    for n_benchmarks, width in ((1, 80), (2, 80), (5, 80), (6, 80), (12, 80), (5, 100), (12, 140)):
        comparison = compare(n_settings, n_seeds, n_benchmarks)
        brief = describe_briefly(comparison, width)
        lines = [line for block in brief.blocks for line in block.lines]
        assert max(map(cell_len, [*lines, *brief.headings])) <= width
        text = "\n".join(lines)
        n_means = (n_benchmarks > 2) * len(comparison.rows)
        numbers = re.findall(r"(?<!\S)[+−]?\d+\.\d [↓↑=?](?!\S)", text)
        assert len(numbers) == n_benchmarks * len(comparison.rows) + n_means
        for rank in SETTINGS["lora.r"][: 3 * bool(n_settings)]:
            assert re.search(rf"(?<!\S){rank}(?!\S)", text)
        assert "lora_alpha" not in text  # it follows from the rank


def test_control_characters_of_names_widen_no_column() -> None:
    comparison = compare(2, 1, 4)
    rows = tuple(
        replace(row, settings={k: v.replace("-", "\x1b[2J\a") for k, v in row.settings.items()})
        for row in comparison.rows
    )
    [block] = describe_briefly(replace(comparison, rows=rows), 120).blocks
    text = "\n".join(block.lines)
    assert "␛[2J" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)
    assert len({cell_len(line) for line in block.lines[1:]}) == 1


def test_a_line_is_a_value_with_its_mean_its_verdict_and_what_was_learned_and_kept() -> None:
    brief = describe_briefly(compare(1, 2, 4), 80)
    assert brief.headings == [
        "lora.r, mean of 2 seeds; points against the base, verdicts over the seeds"
    ]
    [block] = brief.blocks
    heads, *lines = [line.split() for line in block.lines]
    assert heads == ["lora.r", "learned", "commonsense", "cs", "math", "kept"]
    assert [line[0] for line in lines] == ["4", "8", "16"]
    assert lines[2][-1] == "↓"
    rows = compare(1, 2, 4).rows
    assert float(lines[0][-2].replace("−", "-")) == pytest.approx(
        100 * rows[0].retained.value, abs=0.051
    )


def test_many_benchmarks_stand_one_below_the_other() -> None:
    [block] = describe_briefly(compare(1, 2, 12), 80).blocks
    assert block.lines[0].split() == ["lora.r", "4", "8", "16"]
    assert len(block.lines) == 14
    assert block.lines[1].startswith(" learned ")
    assert block.lines[-1].startswith(" kept ")


def test_many_values_of_many_benchmarks_stand_in_blocks() -> None:
    brief = describe_briefly(order_by_settings(compare(2, 1, 12)), 40)
    assert len(brief.blocks) > 1
    ranks = [block.lines[1].split()[1:] for block in brief.blocks]
    assert [rank for of_block in ranks for rank in of_block] == ["4", "8", "16"] * 2
    assert all(len(block.lines) == 15 for block in brief.blocks)
    assert describe_briefly(compare(2, 1, 12), 10).blocks[0].lines  # wider than it should be


def test_learned_and_kept_stand_only_where_they_say_more_than_a_benchmark() -> None:
    one, two = (describe_briefly(compare(1, 1, n, has_target=False), 80) for n in (1, 2))
    assert one.blocks[0].lines[0].split() == ["lora.r", "pocket_math"]
    assert two.blocks[0].lines[0].split() == ["lora.r", "cs", "math", "kept"]


def test_what_differs_is_said_with_its_p_value_and_the_rest_in_one_line() -> None:
    brief = describe_briefly(compare(1, 3, 4), 80)
    shown = brief.notes[0].removeprefix("Shown for other seeds and questions: ")
    assert re.match(r"16 lies \d+\.\d points below 4 on \w+ \(corrected p (<|=) 0\.\d+\)", shown)
    assert brief.notes[0].endswith(" The rest is not shown.")
    assert describe_briefly(compare(1, 1, 4), 80).notes[0].endswith("lets them be tested.")
    two = compare(2, 3, 4)
    assert re.match(
        r"Shown for other seeds and questions: (lora.r=16 lies|model.id=)",
        describe_briefly(two, 80).notes[0],
    )
    assert "model.id=" in describe_briefly(two, 80, by="lora.r").notes[0]


def test_runs_that_were_not_varied_have_a_line_each() -> None:
    runs = [make_run(make_findings(3, 0.05, seed), seed) for seed in (0, 0)]
    comparison = compare_runs(runs, group_seeds=False)
    [block] = describe_briefly(comparison, 80).blocks
    assert block.lines[0].split()[:2] == ["run", "name"]
    assert len(block.lines) == 3


def test_it_is_printed_as_it_is_laid_out(capsys: Capture) -> None:
    show_comparison(compare(3, 2, 12), "runs", ["Left out: 1 failed."])
    text = capsys.readouterr().out
    assert max(map(cell_len, text.splitlines())) <= 80
    assert text.startswith("runs\n")
    assert text.endswith("Left out: 1 failed.\n")
