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
    *,
    model_uri: str = "",
) -> dict[str, str]:
    """Render the pages that a run leaves for people to read.

    Args:
        findings: What the run found.
        config: Its settings.
        info: The `RunInfo`; its `name` and `environment` (versions and machine) are shown.
        run_id: MLflow's id of the run.
        gate: The outcome of the budgets that the settings name; None if they name none.
        model_uri: The folder of what the run trained; empty if it trained nothing.

    Returns:
        The contents by path: report.html and report.md; also answers.html if the findings hold the
        answers. Findings that were read from a record hold none.
    """
    table = findings_report.findings_table(findings, gate=gate)
    title = config.name or info.name
    facts = describe_run(config)
    if len(title) > _LONGEST_TITLE:  # it names many settings, and goes among the facts
        facts = {"run": title} | facts
        title = f"{config.model.id} → {config.tuned or 'tuned'}"
    if model_uri:
        trained = "model" if config.method.facts.trains_weights else "adapter"
        facts[f"trained {trained}"] = describe_model_place(model_uri, run_id)
    description = RunDescription(facts, flatten(config), info.environment)
    # The model's own files may ask for other prompts than the base had. This table compares both.
    served = served_table(findings)
    markdown = pages.render(
        "report.md.j2",
        brief=tables.write_table(table.brief, "markdown"),
        note=redact_leaf(config.note or ""),
        # The brief table, which has fewer columns, shows the legend and the outcome above this one.
        table=tables.write_table(replace(table, legend="", outcome=""), "markdown"),
        served=tables.write_table(served, "markdown") if served else "",
        # The table shows the verdicts already.
        sentences=text.describe_findings(findings, with_verdicts=False, gate=gate),
        costs=format_all(findings.costs),
    )
    page = render_page(
        findings, title, description, run_id=run_id, gate=gate, answers="answers.html"
    )
    files = {"report.html": page, "report.md": markdown}
    if findings.base and findings.tuned:
        # Both are links on the page: to the report, and to the folder of the Parquet files.
        answers_page = render_answers_page(findings, title, "report.html", "samples/")
        files["answers.html"] = answers_page
    return files


def describe_run(config: RunConfig) -> dict[str, str]:
    """Describe a run in a few facts, each under a heading such as `model` or `benchmarks`.

    A run that trains has its rows, method and mitigation (`keep`) among them. One that measures a
    model or an adapter has the place of that instead.
    """
    facts = {"model": describe_model(config)}
    if config.tuned is not None:
        facts["tuned"] = config.tuned
    else:
        sizes = {name: dataset.max_examples or "all" for name, dataset in config.dataset.items()}
        facts["rows"] = " + ".join(f"{size} rows of {name}" for name, size in sizes.items())
        method = [config.method.name]
        if config.method.facts.reads_lora:
            lora = config.lora
            method += [f"r {lora.r}", f"alpha {lora.lora_alpha}", *lora.target_modules]
        facts["method"] = ", ".join(method)
        if keep := config.keep.describe():
            facts["keep"] = keep
    facts["benchmarks"] = ", ".join(
        f"{name} ({_describe_benchmark(benchmark)})" for name, benchmark in config.benchmark.items()
    )
    facts["prompts"] = describe_prompts(config.evaluation)
    if config.note:
        facts["note"] = config.note
    return facts


def _describe_benchmark(benchmark: BenchmarkConfig) -> str:
    """Describe how a benchmark is asked and scored, where it is not as usual."""
    n_answers, stops = benchmark.repeats or 1, ", ".join(map(repr, benchmark.stop or ()))
    is_shown = {
        _describe_shots(benchmark): True,
        f"first {benchmark.limit}": bool(benchmark.limit),
        benchmark.score: benchmark.score != "exact",
        f"{benchmark.max_gen_toks} tokens": bool(benchmark.max_gen_toks),
        f"stops at {stops}": bool(benchmark.stop),
        f"{n_answers} drawn at temperature {benchmark.temperature}": bool(benchmark.temperature),
    }
    return ", ".join(text for text in is_shown if is_shown[text])


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
    ways = {
        True: "through the chat template",
        False: "plain",
        "auto": "the chat template for generated answers, if the model or the rows have one",
    }
    parts = [ways[evaluation.apply_chat_template]]
    if system := evaluation.system_instruction:
        parts.append(f"system prompt {shorten(system, 40, placeholder='…')!r}")
    parts += [f"{name}={value}" for name, value in evaluation.chat_template_args.items()]
    if (thinking := evaluation.enable_thinking) is not None:
        parts.append("thinking" if thinking else "no thinking")
    if evaluation.think_end_token:  # only what an answer says after this token is scored
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
    *,
    note: str = "",
) -> str:
    """Render the card of what a run tuned, or of the model that it was merged into.

    The card has scores for the hub's leaderboards only if it is that of an adapter for a base on
    the hub, as a run trained it. A merged model was not measured itself, and only a part of the
    questions judged a scaled one.

    Args:
        findings: What the model learned and lost.
        config: The run's settings.
        base: The `LoadedModel`: id, revision, license, quantization, dtype.
        merged: The merged model; None if the card is that of the run's own model.
        is_adapter: Whether the model is an adapter. If it is None, a merged model is none, and
            neither is one whose method trains all weights.
        note: A sentence on how the model was made from the run's model, such as by scaling it;
            empty for the run's own model.

    Returns:
        Markdown with a YAML head that `huggingface_hub.ModelCard` validates.
    """
    from huggingface_hub import ModelCardData  # the import takes half a second

    # Not on the hub: a folder, whose revision is a digest, and slimdown's own model `pocket:model`.
    is_of_hub = ":" not in base.id and not base.revision.startswith("sha256:")
    if is_adapter is None:
        is_adapter = not merged and not config.method.facts.trains_weights
    # The place of a local folder is private, so the card shows only the folder's own name.
    base_name = base.id if is_of_hub else re.split(r"[/\\]", base.id.rstrip("/\\"))[-1]
    method = "tuned" if config.tuned else config.method.name
    # The name has no organisation, as in Qwen/Qwen2.5-0.5B, and no prefix, as in pocket:model.
    name = merged.name if merged else f"{re.split('[/:]', base_name)[-1]}-{method}"
    # The license is a text such as "mit", or "other NAME LINK". What it does not give is None.
    license_words = (base.license or "").split(maxsplit=2)
    license_id, license_name, license_link = [*license_words, None, None, None][:3]
    has_scores = is_of_hub and is_adapter and not note  # a merged model is no adapter
    relation = "adapter" if is_adapter else "finetune"
    head = ModelCardData(
        base_model=base.id if is_of_hub else None,
        base_model_relation=relation if is_of_hub else None,
        datasets=[redact_leaf(d.path) for d in config.dataset.values() if d.file is None] or None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["slimdown", method],
        model_name=name,
        eval_results=_list_results(findings, config) if has_scores else None,
        license=license_id,
        license_name=license_name,
        license_link=license_link,
    )
    return pages.render(
        "model_card.md.j2",
        name=name,
        base=base,
        base_name=base_name,
        is_of_hub=is_of_hub,
        is_adapter=is_adapter,
        config=config,
        merged=merged,
        note=note,
        head=head.to_yaml(),
        settings=_write_settings(config),
        table=tables.write_table(findings_report.findings_table(findings), "markdown"),
        findings=findings,
        version=OWN_VERSION,
    )


def _write_settings(config: RunConfig) -> str:
    """Return the settings that shaped a model as YAML, without secrets."""
    # Where the model was tuned elsewhere, the settings of training did not shape it.
    sections = ("quantization.",) if config.tuned else _SECTIONS
    flat = flatten(config).items()
    settings = {k: v for k, v in flat if k.startswith(sections) and v is not None}
    redacted, _ = redact_leaves(to_plain(settings))
    return str(yaml.safe_dump(redacted, sort_keys=False, allow_unicode=True))


def _list_results(findings: Findings, config: RunConfig) -> list[Any] | None:
    """List scores for the card's `model-index`, which the hub reads; None if there is none.

    The hub compares scores of many models, so it gets only those of whole benchmarks that the
    harness defines: not of a part of the questions, and not of your own questions or task files.
    """
    from huggingface_hub import EvalResult

    results = []
    for name, benchmark in findings.benchmarks.items():
        settings = config.benchmark[name]
        is_part = settings.limit or benchmark.is_stopped or config.evaluation.holdout
        is_own_benchmark = settings.path or config.evaluation.include_path
        if is_part or is_own_benchmark:
            continue
        n_shots = settings.num_fewshot
        shots = "" if n_shots is None else f", {n_shots}-shot"
        metric, _, _filter = benchmark.metric.partition(".")  # such as exact_match.strict-match
        result = EvalResult(
            task_type="text-generation",
            dataset_type=settings.task,
            dataset_name=name,
            metric_type=metric,
            metric_value=round(benchmark.primary.tuned.value, 4),
            metric_name=f"{benchmark.metric}{shots}",
        )
        results.append(result)
    return results or None
