"""What a run leaves for people to read: its page, its Markdown, the card of its model."""

import re
from dataclasses import dataclass, replace
from textwrap import shorten
from typing import Any

import yaml

from slimdown.config.benchmark_config import BYTE_PROBABILITY, BenchmarkConfig
from slimdown.config.naming import flatten
from slimdown.config.schema import Dtype, EvaluationConfig, RunConfig
from slimdown.judging.budgets import Gate
from slimdown.judging.findings import Findings
from slimdown.judging.serialization import to_plain
from slimdown.report import findings_report, pages, tables, text
from slimdown.report.answers_page import render_answers_page
from slimdown.report.formatting import describe_model_place
from slimdown.report.run_page import RunDescription, format_all, render_page
from slimdown.report.stages_report import served_table
from slimdown.utils.secrets import redact_leaf, redact_leaves
from slimdown.utils.versions import OWN_VERSION

_LONGEST_TITLE = 60  # characters of a page's heading
_SECTIONS = ("dataset.", "keep.", "lora.", "method.", "quantization.", "train.", "seed")


def render_run_files(
    findings: Findings,
    config: RunConfig,
    info: Any,
    run_id: str,
    gate: Gate | None = None,
    model_uri: str = "",
) -> dict[str, str]:
    """Render what a run leaves for people to read.

    Args:
        findings: What the run found.
        config: Its settings.
        info: Its `name` and `environment` (versions and machine).
        run_id: The record's id.
        gate: Of the budgets that the settings name.
        model_uri: The folder of what the run trained; empty where it trained nothing.

    Returns:
        The contents by path: report.html, report.md, and answers.html where the findings hold the
        answers; findings that were read from a record do not.
    """
    table = findings_report.findings_table(findings, gate=gate)
    title = config.name or info.name
    facts = describe_run(config)
    if len(title) > _LONGEST_TITLE:  # a whole command: it stands among the facts
        facts = {"run": title} | facts
        title = f"{config.model.id} → {config.tuned or 'tuned'}"
    if model_uri:
        trained = "model" if config.method.facts.trains_weights else "adapter"
        facts[f"trained {trained}"] = describe_model_place(model_uri, run_id)
    description = RunDescription(facts, flatten(config), info.environment)
    answers, served = {}, served_table(findings)
    if findings.base and findings.tuned:
        page = render_answers_page(findings, title, "report.html", "samples/")
        answers["answers.html"] = page
    return answers | {
        "report.html": render_page(findings, title, description, run_id, gate, "answers.html"),
        "report.md": pages.render(
            "report.md.j2",
            brief=tables.write_table(table.brief, "markdown"),
            note=redact_leaf(config.note or ""),
            table=tables.write_table(replace(table, legend="", outcome=""), "markdown"),
            served=tables.write_table(served, "markdown") if served else "",
            sentences=text.describe_findings(findings, False, gate),
            costs=format_all(findings.costs),
        ),
    }


def describe_run(config: RunConfig) -> dict[str, str]:
    """Describe a run: its model, rows or tuned model, method, benchmarks."""
    about = {"model": describe_model(config)}
    if config.tuned is not None:
        about["tuned"] = config.tuned
    else:
        sizes = {name: d.max_examples or "all" for name, d in config.dataset.items()}
        about["rows"] = " + ".join(f"{n} rows of {name}" for name, n in sizes.items())
        method = [config.method.name]
        if config.method.facts.reads_lora:
            lora = config.lora
            method += [f"r {lora.r}", f"alpha {lora.lora_alpha}", *lora.target_modules]
        about["method"] = ", ".join(method)
        if keep := config.keep.describe():
            about["keep"] = keep
    parts = [
        f"{name} ({_describe_shots(b)}"
        + f", first {b.limit}" * bool(b.limit)
        + f", {b.score}" * (b.score != "exact")
        + f", {b.max_gen_toks} tokens" * bool(b.max_gen_toks)
        + f", stops at {', '.join(map(repr, b.stop or ()))}" * bool(b.stop)
        + f", {b.repeats or 1} drawn at temperature {b.temperature}" * bool(b.temperature)
        + ")"
        for name, b in config.benchmark.items()
    ]
    about["benchmarks"] = ", ".join(parts)
    about["prompts"] = describe_prompts(config.evaluation)
    return about | ({"note": config.note} if config.note else {})


def describe_model(config: RunConfig) -> str:
    """Describe the base model: its id, how it is quantized, and its dtype once that is known."""
    name = config.quantization.name
    parts = [config.model.id, "not quantized" if name == "none" else name]
    if config.model.dtype is not Dtype.auto:
        parts.append(config.model.dtype.value)
    return ", ".join(parts)


def _describe_shots(benchmark: BenchmarkConfig) -> str:
    if benchmark.metric == BYTE_PROBABILITY:
        return "texts"
    n_shots = benchmark.num_fewshot
    return "own shots" if n_shots is None else f"{n_shots}-shot"


def describe_prompts(evaluation: EvaluationConfig) -> str:
    """Describe how benchmarks are asked: plainly or through the chat template, and its settings."""
    auto = "written answers through the chat template where the model or the rows have one"
    ways = {True: "through the chat template", False: "plain", "auto": auto}
    parts = [ways[evaluation.apply_chat_template]]
    if system := evaluation.system_instruction:
        parts.append(f"system prompt {shorten(system, 40, placeholder='…')!r}")
    parts += [f"{name}={value}" for name, value in evaluation.chat_template_args.items()]
    if (thinking := evaluation.enable_thinking) is not None:
        parts.append("thinking" if thinking else "no thinking")
    if evaluation.think_end_token:
        parts.append(f"cut after {evaluation.think_end_token}")
    return ", ".join(parts)


@dataclass(frozen=True)
class MergedModel:
    """A model that an adapter was merged into."""

    name: str
    dtype: str
    onto_original: bool  # merged into the unquantized weights, not into those it was trained on


def render_model_card(
    findings: Findings,
    config: RunConfig,
    base: Any,
    merged: MergedModel | None = None,
    is_adapter: bool | None = None,
    note: str = "",
) -> str:
    """Render the card of what a run tuned, or of the model that it was merged into.

    Args:
        findings: What the model learned and lost.
        config: The run's settings.
        base: The `LoadedModel`: id, revision, license, quantization, dtype.
        merged: The merged model; None for what the run left itself.
        is_adapter: Whether the model is an adapter; None: as the run trained it.
        note: How the model was made from what was trained; only a part of the questions judged it.

    Returns:
        Markdown with a YAML head that `huggingface_hub.ModelCard` validates.
    """
    from huggingface_hub import ModelCardData  # takes half a second

    is_of_hub = ":" not in base.id and not base.revision.startswith("sha256:")
    if is_adapter is None:
        is_adapter = not merged and not config.method.facts.trains_weights
    base_name = base.id if is_of_hub else re.split(r"[/\\]", base.id.rstrip("/\\"))[-1]
    method = "tuned" if config.tuned else config.method.name
    sections = ("quantization.",) if config.tuned else _SECTIONS  # other settings did not shape it
    name = merged.name if merged else f"{re.split('[/:]', base_name)[-1]}-{method}"
    flat = flatten(config).items()
    settings = {k: v for k, v in flat if k.startswith(sections) and v is not None}
    licenses = (base.license or "").split(maxsplit=2)
    head = ModelCardData(
        base_model=base.id if is_of_hub else None,
        base_model_relation=("adapter" if is_adapter else "finetune") if is_of_hub else None,
        datasets=[redact_leaf(d.path) for d in config.dataset.values() if d.file is None] or None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["slimdown", method],
        model_name=name,
        eval_results=_list_results(findings, config)
        if is_of_hub and is_adapter and not note
        else None,
        **dict(zip(("license", "license_name", "license_link"), licenses, strict=False)),
    )
    values = {"name": name, "base": base, "base_name": base_name, "is_of_hub": is_of_hub}
    values |= {"is_adapter": is_adapter, "config": config, "merged": merged, "note": note}
    written, _ = redact_leaves(to_plain(settings))
    return pages.render(
        "model_card.md.j2",
        **values,
        head=head.to_yaml(),
        settings=yaml.safe_dump(written, sort_keys=False, allow_unicode=True),
        table=tables.write_table(findings_report.findings_table(findings), "markdown"),
        findings=findings,
        version=OWN_VERSION,
    )


def _list_results(findings: Findings, config: RunConfig) -> list[Any] | None:
    """List scores for the hub's `model-index`: only those of the harness's whole benchmarks."""
    from huggingface_hub import EvalResult

    results = []
    for name, benchmark in findings.benchmarks.items():
        settings = config.benchmark[name]
        is_part = settings.limit or benchmark.is_stopped or config.evaluation.holdout
        if is_part or settings.path or config.evaluation.include_path:
            continue
        result = EvalResult(
            task_type="text-generation",
            dataset_type=settings.task,
            dataset_name=name,
            metric_type=benchmark.metric.partition(".")[0],
            metric_value=round(benchmark.primary.tuned.value, 4),
            metric_name=benchmark.metric
            + (f", {settings.num_fewshot}-shot" if settings.num_fewshot is not None else ""),
        )
        results.append(result)
    return results or None
