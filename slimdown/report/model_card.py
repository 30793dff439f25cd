"""A tuned model's card: the README.md beside its weights, with the head that the hub reads."""

import re
from dataclasses import dataclass
from typing import Any

import yaml

from slimdown import __version__
from slimdown.config.naming import flatten
from slimdown.config.schema import RunConfig
from slimdown.judging.findings import Findings
from slimdown.judging.serialization import to_plain
from slimdown.report import findings_report, pages, tables
from slimdown.utils.secrets import redact_leaf, redact_leaves

_SECTIONS = ("dataset.", "keep.", "lora.", "method.", "quantization.", "train.", "seed")


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
        version=__version__,
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
