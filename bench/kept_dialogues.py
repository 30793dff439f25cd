"""Compare what keeps a chat model's abilities: one arm at a time, and a table of the finished ones.

    python -m bench.instruct study XSTEST && cd study     # the questions; see bench/instruct.py
    python -m bench.kept_dialogues list                   # every arm of every task
    python -m bench.kept_dialogues run narrow plain 0     # task, arm, seed; a finished one is kept
    python -m bench.kept_dialogues table narrow --half held
    python -m bench.kept_dialogues table qwen --figure qwen.png

`run` calls `slimdown run` with the settings that `list` shows, in the record of the folder, and
prints the arm's row; `scale` needs the finished `plain` of its seed. The tasks `narrow` and
`alpaca` choose on one half of the questions (`--half open`, the default); `others` chooses for
`qwen` on other prompts; and `plain_rows` has the rows of `qwen` as plain text. `assistant` and
`assistant_qwen` ask the questions of `suite=assistant_full`.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from shlex import join

from slimdown.commands import scale
from slimdown.commands.run import main as run_slimdown
from slimdown.comparison.run_records import RunRecord
from slimdown.config.benchmark_config import Role
from slimdown.config.tracking_config import TrackingConfig, default_store
from slimdown.judging.findings import Findings, judge
from slimdown.judging.holdout import held_part
from slimdown.judging.verdicts import Verdict
from slimdown.report.formatting import format_points
from slimdown.report.tables import make_table, write_table
from slimdown.tracking.run_reader import find_runs, read_evaluations
from slimdown.tracking.store import open_store

_REFUSALS, _OTHERS = (
    [
        f"benchmark.{name}.{setting}"
        for name in ("harmful", "harmless")
        for setting in (f"path={kind}{name}.jsonl", "score=refusal", "max_gen_toks=64")
    ]
    for kind in ("", "other_")
)
_INSTRUCT = [
    "model=any", "model.id=Qwen/Qwen2.5-Coder-0.5B-Instruct", "model.dtype=bfloat16",
    "quantization=none", "evaluation.batch_size=25", "lora=all_linear",
]  # fmt: skip
_ALPACA = [
    "dataset.alpaca_chat.max_examples=400", "dataset.alpaca_chat.validation_examples=40",
]  # fmt: skip
_QWEN = [*_INSTRUCT, *_ALPACA]
_SMOLLM2_MODEL = [
    "model=smollm2", "model.dtype=bfloat16", "quantization=none", "evaluation.batch_size=25",
    "lora=all_linear", "train.max_length=512",
]  # fmt: skip
_SMOLLM2 = [
    *_SMOLLM2_MODEL, "evaluation.holdout=0.5", "benchmark.hellaswag.limit=1000",
    "benchmark.arc_easy.limit=1000", *_REFUSALS,
]  # fmt: skip
TASKS: dict[str, list[str]] = {
    "narrow": [
        *_SMOLLM2, "benchmark=[pocket_instructions,hellaswag,arc_easy,harmful,harmless]",
        "benchmark.pocket_instructions.limit=100", "train.learning_rate=4e-3",
        "dataset.pocket_instructions.max_examples=400",
        "dataset.pocket_instructions.validation_examples=20",
    ],
    "alpaca": [
        *_SMOLLM2, "benchmark=[hellaswag,arc_easy,harmful,harmless]", "train.learning_rate=1e-3",
        *_ALPACA,
    ],
    "assistant": [
        *_SMOLLM2_MODEL, *_ALPACA, "suite=assistant_full", "train.learning_rate=1e-3",
    ],
    "assistant_qwen": [*_QWEN, "suite=assistant_full"],
    "qwen": [
        *_QWEN, *_REFUSALS, "benchmark=[gsm8k,hellaswag,harmful,harmless]",
        "benchmark.gsm8k.limit=100", "benchmark.gsm8k.num_fewshot=0",
        "benchmark.gsm8k.max_gen_toks=256", "benchmark.hellaswag.limit=200",
    ],
    "others": [*_QWEN, *_OTHERS, "benchmark=[harmful,harmless]"],
    "plain_rows": [
        *_INSTRUCT, *_REFUSALS, "benchmark=[harmful,harmless]", "dataset.alpaca.max_examples=400",
        "dataset.alpaca.validation_examples=40",
    ],
}  # fmt: skip

ARMS: dict[str, list[str]] = {
    "plain": [],
    "rows": ["keep=self_replay", "keep.share=0.05", "keep.weight=1", "keep.max_tokens=64"],
    "messages": ["keep=dialogues"],
    "fewer": ["keep=dialogues", "keep.share=0.1", "keep.max_tokens=64"],
    "shorter": ["keep=dialogues", "keep.max_tokens=64"],
    "drawn": ["keep=dialogues", "keep.temperature=1"],
    "prompts": ["keep=dialogues", "keep.temperature=1", "keep.prompts=prompts.jsonl"],
    "kl": ["keep=kl", "keep.weight=1"],
    "dolly": [
        "keep=replay", "keep.dataset=dolly", "keep.share=0.05", "keep.weight=1",
        "dataset.dolly.template=chat", "dataset.dolly.skip_bad_rows=true",
        "dataset.dolly.max_examples=60", "dataset.dolly.validation_examples=4",
    ],
}  # fmt: skip
SCALES = "0.5,0.75"


def list_settings(task: str, arm: str, seed: int) -> list[str]:
    """Return what `slimdown run` gets for an arm."""
    rows = {"narrow": "pocket_instructions", "plain_rows": "alpaca"}.get(task, "alpaca_chat")
    if arm == "dolly":
        rows += ",dolly"
    own = [f"dataset=[{rows}]", f"seed={seed}", f"tracking.experiment={task}", f"name={arm}"]
    if task == "narrow" and arm == "dolly":  # its conversations would bring the chat template
        own.append("evaluation.apply_chat_template=false")
    return [*TASKS[task], *ARMS[arm], *own]


def run_arm(task: str, arm: str, seed: int) -> int:
    """Run an arm, or find it finished; returns the exit code."""
    if arm != "scale":
        return run_slimdown(list_settings(task, arm, seed))
    plain = [run for run in read_runs(task) if (name_arm(run), read_seed(run)) == ("plain", seed)]
    if not plain:
        raise SystemExit(f"run {task} plain {seed} first")
    return scale.main([plain[0].run_id, "--scales", SCALES])


def read_runs(task: str) -> list[RunRecord]:
    """Return the finished runs of a task, the newest of each arm and seed."""
    tracking = TrackingConfig(uri=default_store(), experiment=task)
    runs = find_runs(tracking, [task], with_findings=True)
    newest = {(name_arm(run), read_seed(run)): run for run in reversed(runs) if run.findings}
    return list(newest.values())


def name_arm(run: RunRecord) -> str:
    """Return the arm that a run was named after."""
    return run.given_name or run.name


def read_seed(run: RunRecord) -> int:
    """Return a run's seed."""
    return int(run.params["seed"])


def judge_half(task: str, run: RunRecord, half: str) -> Findings:
    """Judge a run by the open half, the held-out half or all of its questions."""
    assert run.findings
    if half == "open" or not run.holdout:
        return run.findings
    base, tuned = read_evaluations(TrackingConfig(uri=default_store(), experiment=task), run)
    if half == "held":
        base, tuned = (held_part(answers, run.holdout) for answers in (base, tuned))
    return judge(base, tuned, run.findings.training)


def describe(name: str, seed: int, findings: Findings) -> dict[str, object]:
    """Return the row of an arm: what it learned, what changed of each benchmark, and its cost."""
    training, row = findings.training, {"arm": name, "seed": seed}
    for benchmark, change in findings.benchmarks.items():
        primary = change.primary
        scores = f"{100 * primary.base.value:.1f} → {100 * primary.tuned.value:.1f}"
        value, interval = format_points(primary.difference)
        shown = {Verdict.forgotten: " ↓", Verdict.improved: " ↑"}
        sign = shown.get(change.verdict, "") if change.verdict else ""
        row[f"{benchmark} ({change.n})"] = f"{scores}: {value} {interval}{sign}"
    row["mean of retained"] = " ".join(format_points(findings.mean_change(Role.retained)))
    row |= dict.fromkeys(("held-out loss", "tokens", "steps, s"))  # a scale has none
    if training:
        before, after = training.validation_loss_before, training.validation_loss_after
        row["held-out loss"] = f"{before:.3f} → {after:.3f}"
        row["tokens"] = f"{training.tokens:,}"
        row["steps, s"] = f"{training.runtime_seconds:.0f}"
    return row


def list_rows(task: str, half: str) -> Iterator[dict[str, object]]:
    """Yield a row of each finished arm, and of each scale of it; these are of the open half."""
    client = open_store(TrackingConfig(uri=default_store(), experiment=task), must_exist=True)
    for run in sorted(read_runs(task), key=lambda run: (read_seed(run), name_arm(run))):
        yield describe(name_arm(run), read_seed(run), judge_half(task, run, half))
        for file in client.list_artifacts(run.run_id, "scales") if half == "open" else ():
            plain = json.loads(Path(client.download_artifacts(run.run_id, file.path)).read_text())
            name = f"{name_arm(run)}, scale {Path(file.path).stem}"
            yield describe(name, read_seed(run), Findings.from_dict(plain))


def draw(task: str, half: str, file: str) -> None:
    """Draw each benchmark's changes with their intervals: a panel each, a line for each run."""
    from matplotlib.figure import Figure

    arms = list(ARMS)
    runs = [run for run in read_runs(task) if name_arm(run) in arms]  # not those of older arms
    runs.sort(key=lambda run: (arms.index(name_arm(run)), read_seed(run)))
    judged = [judge_half(task, run, half) for run in runs]
    benchmarks = list(judged[0].benchmarks)
    size = (2.2 * len(benchmarks) + 1.6, 0.32 * len(runs) + 1.2)
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    panels = figure.subplots(1, len(benchmarks), sharey=True, squeeze=False)[0]
    heights = range(len(runs), 0, -1)
    for axes, name in zip(panels, benchmarks, strict=True):
        axes.axvline(0, color="#8c8c8c", linewidth=1)
        for height, run, findings in zip(heights, runs, judged, strict=True):
            change, colour = findings.benchmarks[name].shown_change, f"C{arms.index(name_arm(run))}"
            axes.plot([100 * change.low, 100 * change.high], [height] * 2, color=colour)
            axes.plot(100 * change.value, height, "o", color=colour)
        base = judged[0].benchmarks[name].primary.base.value
        axes.set_title(f"{name.replace('_', ' ')} ({100 * base:.0f} %)", fontsize=10)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)
    panels[0].set_yticks(heights, [f"{name_arm(run)}, seed {read_seed(run)}" for run in runs])
    figure.supxlabel("change against the base, points, with its interval", fontsize=9)
    figure.savefig(file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list")
    run = verbs.add_parser("run")
    run.add_argument("task", choices=TASKS)
    run.add_argument("arm", choices=[*ARMS, "scale"])
    run.add_argument("seed", type=int)
    table = verbs.add_parser("table")
    table.add_argument("task", choices=TASKS)
    table.add_argument("--figure", metavar="FILE.png")
    for verb in (run, table):
        verb.add_argument("--half", choices=["open", "held", "all"], default="open")
    options = parser.parse_args()
    if options.verb == "list":
        for task in TASKS:
            for arm in ARMS:
                print(f"# {task} {arm}\nslimdown run {join(list_settings(task, arm, 0))}")
        return 0
    if options.verb == "run" and (code := run_arm(options.task, options.arm, options.seed)):
        return code
    rows = list(list_rows(options.task, options.half))
    if options.verb == "run":
        arm = "plain, scale" if options.arm == "scale" else options.arm
        rows = [row for row in rows if row["seed"] == options.seed]
        rows = [row for row in rows if str(row["arm"]).startswith(arm)]
    print(write_table(make_table("", rows), "markdown") if rows else "")
    if options.verb == "table" and options.figure:
        draw(options.task, options.half, options.figure)
    missing = ARMS.keys() - {row["arm"] for row in rows if row["seed"] == 0}
    if options.verb == "table" and missing:
        print(f"Missing with seed 0: {', '.join(sorted(missing))}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
