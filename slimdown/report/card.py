"""A tuned model's card: the README.md beside its weights, its first lines as the hub reads them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimdown import __version__
from slimdown.config.dataset import DatasetConfig
from slimdown.config.method import WHOLE, Method
from slimdown.config.schema import TRAINING
from slimdown.config.task_files import task_dataset
from slimdown.evaluation.answers import BenchmarkEvaluation
from slimdown.report import numbers, words
from slimdown.report.findings import Pair, findings_table, pairs_table
from slimdown.report.table import in_markdown, write
from slimdown.stats.findings import Findings
from slimdown.stats.runs import Making

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_WHERE = ("path", "name", "split", "revision")  # of a dataset


@dataclass(frozen=True)
class Merged:
    """A model that an adapter was merged into, and what that changed."""

    name: str
    dtype: str
    onto_original: (
        bool  # merged into the unquantized weights, and not into those that it was trained on
    )
    is_measured: bool = False  # itself, and not only what it was merged of
    before: Findings | None = (
        None  # from the base and the adapter to this model, where the two can be compared
    )


def model_card(made: Making, findings: Findings, merged: Merged | None = None) -> str:
    """The card of what a run tuned, or of the model that it was merged into.

    Args:
        made: how it came about.
        findings: what it learned and lost; of a merged model that was measured, its own.
        merged: the merged model; None for what the run left itself.
    """
    name = merged.name if merged else made.run.name
    lines = [
        f"# {in_markdown(name)}",
        "",
        _what(made, merged),
        "",
        "## What it learned and what it lost",
        "",
        _measured(made, merged),
        "",
        write(findings_table(findings), "markdown"),
        *(f"- {in_markdown(sentence)}" for sentence in words.found(findings)),
        "",
        *(_merging(made, merged.name, merged.before) if merged and merged.before else ()),
        "## How to load it",
        "",
        "```python",
        *_loading(made, merged),
        "```",
        "",
        "## How it was made",
        "",
        *_making(made),
        "",
        "## How it was measured",
        "",
        *_questions(made, findings, merged),
        "",
    ]
    return "\n".join(["---", _metadata(made, findings, merged, name), "---", "", *lines])


def _metadata(made: Making, findings: Findings, merged: Merged | None, name: str) -> str:
    from huggingface_hub import ModelCardData  # for half a second

    is_adapter = not merged and not _is_whole(made)
    said = zip(
        ("license", "license_name", "license_link"), made.licence.split(maxsplit=2), strict=False
    )
    licence: dict[str, Any] = dict(said)
    data = ModelCardData(
        base_model=made.base if made.is_of_hub else None,
        base_model_relation=("adapter" if is_adapter else "finetune") if made.is_of_hub else None,
        datasets=[d.path for _, d in _datasets(made) if _is_of_hub(d)] or None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["slimdown", _method(made)],
        model_name=name,
        # of the model that lies here, or none
        eval_results=None if merged and not merged.is_measured else list(_results(findings)),
        **licence,
    )
    text: str = data.to_yaml()
    return text


def _results(findings: Findings) -> "Iterator[EvalResult]":
    """Every score of the tuned model as `model-index` holds them: shares in percent, others as they are."""
    from huggingface_hub import EvalResult

    for name, report in findings.after.benchmarks.items():
        tasks = {sample.task for sample in report.samples}
        path, config = task_dataset(min(tasks)) or (report.benchmark.task, None)
        asked = (
            {"questions": numbers.asked(len(report.samples), report.n_available)}
            if report.stages
            else {}
        )
        for metric, score in report.scores.items():
            if isfinite(score.value):
                is_share = all(0 <= sample.scores.get(metric, -1) <= 1 for sample in report.samples)
                yield EvalResult(
                    task_type="text-generation",
                    dataset_type=path,
                    dataset_name=name,
                    dataset_config=config if len(tasks) == 1 else None,
                    dataset_args={"num_fewshot": report.benchmark.num_fewshot, **asked},
                    metric_type=metric.partition(".")[0],
                    metric_name=f"{metric}, %" if is_share else metric,
                    metric_value=round((100 if is_share else 1) * score.value, 2),
                )


def _what(made: Making, merged: Merged | None) -> str:
    """What lies beside the card, in a sentence or two."""
    base = (
        f"[{made.base}](https://huggingface.co/{made.base})"
        if made.is_of_hub
        else f"`{_local(made)}`"
    )
    quantized = f", held in {made.quantization}," if made.quantization != "none" else ""
    if not merged:
        kind = (
            f"{base}{quantized} fine-tuned by"
            if _is_whole(made)
            else f"An adapter for {base}{quantized} trained by"
        )
        return f"{kind} the method `{_method(made)}`, and measured before and after."
    if _is_whole(made):
        return f"{base} fine-tuned by the method `{_method(made)}`; in {merged.dtype}."
    if not quantized:
        onto = "its weights"
    elif merged.onto_original:
        onto = f"its weights as published, although it was trained on what {made.quantization} made of them"
    else:
        onto = f"the values that its {made.quantization} weights stand for, on which it was trained"
    return f"{base} fine-tuned by the method `{_method(made)}`, the adapter merged into {onto}; in {merged.dtype}."


def _measured(made: Making, merged: Merged | None) -> str:
    """Which two models the table is about."""
    if merged and merged.is_measured:
        return (
            f"The base as published, in {merged.dtype}, and this model as it lies here: the change is all that differs "
            "between the two, what quantizing the base lost included."
        )
    held = f"in {made.quantization}" if made.quantization != "none" else f"in {made.dtype}"
    both = f"The base, held {held}, and the same with what was trained"
    return f"{both}; measured before it was merged, and not again." if merged else f"{both}."


def _merging(made: Making, name: str, before: Findings) -> list[str]:
    """What merging changed, as a verdict."""
    table = write(pairs_table([Pair(made.run.name, name, before)]), "markdown")
    first = (
        "First: the base with the adapter beside it, as trained and measured. Second: this model."
    )
    return ["## What merging changed", "", first, "", table, ""]


def _loading(made: Making, merged: Merged | None) -> list[str]:
    """Python that loads it."""
    if merged or _is_whole(made):
        folder = merged.name if merged else "FOLDER"
        return [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"model = AutoModelForCausalLM.from_pretrained({folder!r})",
            f"tokenizer = AutoTokenizer.from_pretrained({folder!r})",
        ]
    method = _method(made)
    if method in (Method.prefix, Method.prompt):
        return [
            "import mlflow",
            "",
            "# PEFT's own generate misplaces virtual tokens (peft 0.21 with transformers 5.24)",
            "model = mlflow.pyfunc.load_model('FOLDER')  # the one that this card lies in",
            "model.predict(['...'])",
        ]
    is_pocket, is_quantized = made.base == "pocket:model", made.quantization != "none"
    id_ = "MODEL_DIR" if is_pocket else repr(made.base if made.is_of_hub else _local(made))
    options = [f"revision={made.revision!r}"] if made.is_of_hub else []
    options += ["quantization_config=BitsAndBytesConfig(**quantization)"] if is_quantized else []
    return [
        "from peft import PeftModel",
        *(["import slimdown  # teaches PEFT this method"] if method == Method.bottleneck else []),
        *(["from slimdown.pocket import MODEL_DIR"] if is_pocket else []),
        f"from transformers import AutoModelForCausalLM{', BitsAndBytesConfig' if is_quantized else ''}",
        "",
        *([f"quantization = {_quantization(made)}"] if is_quantized else []),
        f"base = AutoModelForCausalLM.from_pretrained({', '.join([id_, *options])}, dtype={made.dtype!r})",
        "model = PeftModel.from_pretrained(base, 'FOLDER')  # the one that this card lies in",
    ]


def _quantization(made: Making) -> dict[str, object]:
    """As transformers' BitsAndBytesConfig takes it."""
    if made.quantization == "int8":
        return {"load_in_8bit": True}
    double = made.run.params.get("quantization.bnb_4bit_use_double_quant") == "True"
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": made.quantization,
        "bnb_4bit_use_double_quant": double,
        "bnb_4bit_compute_dtype": made.compute_dtype,
    }


def _making(made: Making) -> list[str]:
    """Base, data and settings."""
    lines = [f"- Base: `{made.base if made.is_of_hub else _local(made)}` at `{made.revision}`."]
    for name, dataset in _datasets(made):
        link = f"[{dataset.path}](https://huggingface.co/datasets/{dataset.path})"
        where = (
            link
            if _is_of_hub(dataset)
            else f"`{dataset.path if ':' in dataset.path else Path(dataset.path).name}`"
        )
        parts = [
            f"{key} `{value}`"
            for key in ("name", "split", "revision")
            if (value := getattr(dataset, key))
        ]
        lines.append(
            f"- Rows of `{name}`: {where}{', ' + ', '.join(parts) if _is_of_hub(dataset) else ''}."
        )
    settings = [
        f"{key}: {' '.join(value.split())}"
        for key, value in sorted(made.run.params.items())
        if key.partition(".")[0] in TRAINING and value != "None"
        if not (key.startswith("dataset.") and key.rpartition(".")[2] in _WHERE)
    ]
    return [
        *lines,
        f"- Digest of their text: `{made.data_fingerprint}`.",
        f"- {words.learned_on(made)}",
        "",
        "```yaml",
        *settings,
        "```",
    ]


def _questions(made: Making, findings: Findings, merged: Merged | None) -> Iterator[str]:
    """What was asked, and how."""
    for name, report in findings.after.benchmarks.items():
        b = report.benchmark
        asked = f"{b.num_fewshot}-shot, {_n_asked(report)}, judged by `{b.metric}`"
        yield f"- {in_markdown(name)}: the harness's task `{b.task}`, version {report.task_version}, {asked}."
    run = (
        "a run of its own"
        if merged and merged.is_measured
        else f"run `{made.run.run_id}`, on {made.device},"
    )
    yield (
        f"- By lm-evaluation-harness {findings.after.harness_version}, {run} of slimdown {__version__}: both models "
        "were asked the same questions in the same way, and are compared question by question."
    )


def _n_asked(report: BenchmarkEvaluation) -> str:
    n = len(report.samples)
    return f"{numbers.asked(n, report.n_available)} question{'' if n == 1 else 's'}"


def _datasets(made: Making) -> Iterator[tuple[str, DatasetConfig]]:
    """Where the rows lay, by the datasets' names."""
    params = made.run.params
    for name in dict.fromkeys(key.split(".")[1] for key in params if key.startswith("dataset.")):
        told: dict[str, Any] = {key: params.get(f"dataset.{name}.{key}", "None") for key in _WHERE}
        yield name, DatasetConfig(**{key: value for key, value in told.items() if value != "None"})


def _is_of_hub(dataset: DatasetConfig) -> bool:
    return ":" not in dataset.path and dataset.file is None


def _local(made: Making) -> str:
    """A base that is a folder, without the way to it on one machine."""
    return made.base if ":" in made.base else re.split(r"[/\\]", made.base.rstrip("/\\"))[-1]


def _method(made: Making) -> str:
    return made.run.params.get("method.name", "lora")


def _is_whole(made: Making) -> bool:
    return _method(made) in WHOLE
