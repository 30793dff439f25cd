"""`slimdown run ... --plan`: what a run will do and how long it takes, before any of it is done.

Benchmarks, rows and the tokenizer are read as the run reads them, and no weights. The time comes
from runs of this model on this machine; `--plan=try` loads the weights and tries one batch of each
kind of work instead. Nothing is left in the record.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from math import ceil, nan
from operator import attrgetter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import torch
from huggingface_hub import snapshot_download

from slimdown.config.engines import ENGINES
from slimdown.config.schema import RunConfig
from slimdown.evaluation.evaluator import count_costs, try_costs
from slimdown.evaluation.results import Cost, Work
from slimdown.models.base_model import (
    MODEL_FILES,
    LoadedModel,
    describe_base_model,
    load_base_model,
)
from slimdown.models.device_memory import card_memory, free_memory
from slimdown.models.training_estimate import estimate_training
from slimdown.report import console
from slimdown.report.formatting import format_bytes, pluralize
from slimdown.report.run_plan import PlannedPart, RunPlan
from slimdown.runs.inputs import RunInputs, read_inputs
from slimdown.tracking import store
from slimdown.tracking.base_evaluations import open_base_cache
from slimdown.tracking.costs import Rates, estimate_seconds, find_rates
from slimdown.tracking.run_files import describe_model, describe_prompts
from slimdown.training.fine_tuning import pack_rows, prepare_training, try_steps
from slimdown.training.labels import IGNORED
from slimdown.training.step_splits import choose_forwards
from slimdown.training.tokenizing import TokenizedRows, tokenize_rows
from slimdown.utils.distributed import process_count
from slimdown.utils.errors import TrackingError

_TOKENS = ("prompt_tokens", "new_tokens")  # of a `Cost`
_TRIED_STEPS = 2
_TRIED_SECONDS = 30.0  # after these, only kinds of work are tried that were not tried before


def plan_run(config: RunConfig, title: str, tries: bool = False, n_equal: int = 1) -> RunPlan:
    """Plan a run: read what it reads, count what it asks, and say how long that takes.

    Args:
        config: The checked settings.
        title: What stands above the plan.
        tries: Load the weights, and try one batch of each kind of work.
        n_equal: How many runs of a sweep have this same plan.

    Returns:
        The parts of the run with their times, and sentences on how it asks and trains.

    Raises:
        SlimdownError: Something that you can mend, as the run itself would say it.
    """
    with console.progress_bar("reading benchmarks and rows", "benchmarks") as on_progress:
        inputs = read_inputs(config, on_progress)
        inputs.find_contamination().check(config.contamination.max_share)  # raises above it
        base = describe_base(inputs)
        counted = _count_costs(inputs, base)  # costs, each with whether the record has the answers
        rows = _tokenize(inputs, base)
    rates = find_rates(inputs.config, base.device)
    if tries:
        rates = _try_work(inputs, rows, rates)
    return RunPlan(
        title,
        parts=list(_list_parts(inputs, counted, rows, rates)),
        facts=[
            *_describe_requests(inputs, [cost for cost, _ in counted]),
            *_describe(inputs, base, rows),
        ],
        rates=rates.source,
        n_equal=n_equal,
        on_cpu=base.device == "cpu",
    )


def describe_base(inputs: RunInputs) -> LoadedModel:
    """Describe the base of a run before its weights are loaded, see `describe_base_model`."""
    config = inputs.config
    return describe_base_model(config.model, config.quantization, inputs.tokenizer, inputs.outline)


def _count_costs(inputs: RunInputs, base: LoadedModel) -> list[tuple[Cost, bool]]:
    """Return what each benchmark costs, and whether the base's answers are in the record."""
    return count_costs(
        inputs.tasks,
        inputs.config.evaluation,
        base,
        _open_record(inputs.config),
        share_prefixes=not inputs.learns_prompt,
    )


def estimate_run(inputs: RunInputs, base: LoadedModel, rates: Rates) -> dict[str, float]:
    """Estimate the seconds of each part of a run by what such work took before.

    Rows are not tokenized for it: each step of the training is taken to cost what one did before.

    Args:
        inputs: What the run reads.
        base: The base without its weights.
        rates: What runs like it cost on this machine.

    Returns:
        The seconds of `base`, `train`, `tuned` and `served`; nan where such work is not known.
    """
    seconds = dict.fromkeys(("base", "train", "tuned", "served"), 0.0)
    # Without tokenized rows, no part of this list is the training: its steps are counted below.
    for planned in _list_parts(inputs, _count_costs(inputs, base), rows=None, rates=rates):
        if planned.part in seconds and not planned.is_recorded:  # "rest" is left out
            seconds[planned.part] += planned.cost.seconds
    if inputs.train_data:
        n_rows = sum(len(dataset.train) for dataset in inputs.train_data.parts)
        _, n_steps = _count_steps(inputs.config, n_rows)
        a_step = Cost("", Work.steps, n=1, prompt_tokens=0, new_tokens=0)
        # What is found for a step is a whole training, with the number of its steps in `n`.
        training = rates.find(a_step)
        seconds["train"] = training.seconds / training.n * n_steps if training else nan
    return seconds


def _describe_requests(inputs: RunInputs, costs: Sequence[Cost]) -> Iterator[str]:
    """If a server answers, say which host receives the questions, in how many requests and tokens.

    Args:
        inputs: What the run reads.
        costs: What each benchmark costs. Only the tuned model is asked through the server, and only
            once, so it receives these tokens once.
    """
    if inputs.server:
        n_read, n_written = (sum(map(attrgetter(name), costs)) for name in _TOKENS)
        n_requests = sum(task.count_requests() for task in inputs.tasks.values())
        host = urlsplit(inputs.server.address).netloc
        yield (
            f"{host} will receive {pluralize(n_requests, 'request')}: about {n_read:,} tokens of "
            f"prompts, and at most {n_written:,} tokens of answers."
        )


def _open_record(config: RunConfig) -> Callable[[str, str], bool]:
    """Return a function that says whether a base's answers are in the record.

    It takes a benchmark's `BenchmarkRun.key` and name. If there is no record yet, none is made.
    """
    try:
        store.open_store(config.tracking, must_exist=True)
    except TrackingError:  # there is no record yet
        return lambda key, name: False
    return open_base_cache(config).is_recorded


def _tokenize(inputs: RunInputs, base: LoadedModel) -> TokenizedRows | None:
    """Tokenize the rows, and pack them if the settings say so; None where nothing is trained."""
    if inputs.train_data is None:
        return None
    config = inputs.config
    rows = tokenize_rows(
        inputs.train_data, inputs.tokenizer, config.train, base.device == "cpu", config.seed
    )
    if config.train.args.get("packing"):
        rows = replace(rows, train=pack_rows(rows.train, config.train))
    return rows


def _list_parts(
    inputs: RunInputs,
    counted: Sequence[tuple[Cost, bool]],
    rows: TokenizedRows | None,
    rates: Rates,
) -> Iterator[PlannedPart]:
    """Yield the parts of a run in their order, each with the seconds that it may take.

    Args:
        inputs: What the run reads.
        counted: What each benchmark costs, and whether the base's answers are in the record.
        rows: The tokenized rows; None: no training is listed.
        rates: What such work took before. The seconds of work that is not in them are nan.
    """

    def estimate(cost: Cost) -> Cost:
        """Return a cost with its seconds."""
        return replace(cost, seconds=estimate_seconds(cost, rates.find(cost)))

    texts = {cost.name: _describe_questions(inputs, cost) for cost, _ in counted}
    for cost, is_recorded in counted:  # a plan skips what is recorded, and shows it as such
        n_tasks = len(inputs.tasks[cost.name].tasks)
        yield PlannedPart("base", estimate(cost), texts[cost.name], is_recorded, n_tasks)
    if rows:
        steps = estimate(count_steps(inputs.config, rows))
        yield PlannedPart("train", steps, _describe_rows(inputs.config, rows))
    for cost, _ in counted:
        tuned_cost = replace(cost, work=Work.server) if inputs.server else cost
        yield PlannedPart("tuned", estimate(tuned_cost), texts[cost.name])
    # Here the model is asked once more with its own chat template and settings, on no server.
    for cost, _ in counted:
        if cost.name in inputs.served:
            yield PlannedPart("served", estimate(cost), texts[cost.name])
    rest = Cost(name="", work=Work.other, n=1, prompt_tokens=0, new_tokens=0)
    yield PlannedPart("rest", estimate(rest), "loading, validating, recording")


def count_steps(config: RunConfig, rows: TokenizedRows) -> Cost:
    """Count the steps of a training and the tokens of their batches, as the Trainer counts them.

    Args:
        config: The checked settings.
        rows: The tokenized rows. Every epoch reads all of them.
    """
    per_epoch, n_steps = _count_steps(config, len(rows.train))
    n_tokens = sum(map(len, rows.train["input_ids"])) / per_epoch * n_steps
    return Cost("", Work.steps, n_steps, round(n_tokens), 0)


def _count_steps(config: RunConfig, n_rows: int) -> tuple[int, int]:
    """Return the steps of an epoch, and of the training."""
    train = config.train
    # The rows that all processes read at once; `gradient_accumulation_steps` of these are a step.
    n_together = train.per_device_train_batch_size * process_count()
    per_epoch = max(1, ceil(ceil(n_rows / n_together) / train.gradient_accumulation_steps))
    all_epochs = ceil(train.num_train_epochs * per_epoch)
    return per_epoch, train.max_steps if train.max_steps > 0 else all_epochs


def _describe_questions(inputs: RunInputs, cost: Cost) -> str:
    """Say how many questions a benchmark asks, and how long their answers may become."""
    benchmark = inputs.config.benchmark[cost.name]
    if cost.work is Work.choices:
        return pluralize(cost.n, "question")
    if cost.work is Work.documents:
        return pluralize(cost.n, "document")
    repeats = benchmark.repeats or 1
    drawn = f" x {repeats}" if repeats > 1 else ""
    temperature = f", temperature {benchmark.temperature:g}" if benchmark.temperature else ""
    thinking = ", thinking" if inputs.config.evaluation.enable_thinking else ""
    longest = cost.new_tokens // max(1, cost.n * repeats)  # `new_tokens` are those of all answers
    noun = "answer" if cost.n == 1 else "answers"
    return f"{cost.n:,}{drawn} {noun} of up to {longest:,} tokens{temperature}{thinking}"


def _describe_rows(config: RunConfig, rows: TokenizedRows) -> str:
    """Say how many rows there are, and how many steps of how many rows, such as 50 steps of 8."""
    train = config.train
    size = train.per_device_train_batch_size * train.gradient_accumulation_steps * process_count()
    return f"{len(rows.train):,} rows, {count_steps(config, rows).n:,} steps of {size}"


def _describe(inputs: RunInputs, base: LoadedModel, rows: TokenizedRows | None) -> Iterator[str]:
    """Yield sentences on how benchmarks are asked, on the rows, and on memory and disk.

    Args:
        inputs: What the run reads.
        base: The base without its weights.
        rows: The tokenized rows; None: nothing is trained.
    """
    config = inputs.config
    yield f"Base model: {describe_model(config)}."
    if config.evaluation.apply_chat_template != "auto":  # else the first note says it
        yield f"Prompts: {describe_prompts(config.evaluation)}."
    yield from inputs.notes
    if inputs.train_data:
        # Warn if no benchmark asks in the form that the model is trained on.
        is_chat = inputs.train_data.holds_conversations
        evaluations = [task.narrow(config.evaluation) for task in inputs.tasks.values()]
        if all(evaluation.apply_chat_template != is_chat for evaluation in evaluations):
            forms = {True: "go through the chat template", False: "are plain"}
            yield f"The rows {forms[is_chat]}, and all prompts {forms[not is_chat]}."
    if rows:
        labels = [label for row_labels in rows.train["labels"] for label in row_labels]
        share = sum(label != IGNORED for label in labels) / max(1, len(labels))  # one per token
        yield f"The model is trained on {100 * share:.0f} % of the tokens of the rows."
        yield from (f"{note}." for note in rows.notes)
        yield from config.keep.explain_plan(len(rows.train))
    for name, reason in inputs.not_run.items():
        yield f"Not measured: {name} ({reason})."
    yield _describe_memory_and_disk(inputs, base, rows)


def _describe_memory_and_disk(
    inputs: RunInputs, base: LoadedModel, rows: TokenizedRows | None
) -> str:
    """Say what memory a run needs, what it downloads, and how much memory and disk is free."""
    needed = _estimate_memory(inputs, base, rows)
    free = free_memory(torch.device(base.device))
    memory = "of memory" if base.device == "cpu" else f"of the {base.device} device's memory"
    n_download = _measure_download(inputs.config)
    download = f"; {format_bytes(n_download)} will be downloaded" if n_download else ""
    disk = measure_free_disk(store.local_dir(inputs.config.tracking))
    return (
        f"Memory: {format_bytes(needed)} needed, {format_bytes(free)} {memory} free"
        f"{download}; {format_bytes(disk)} of disk free."
    )


def _estimate_memory(inputs: RunInputs, base: LoadedModel, rows: TokenizedRows | None) -> float:
    """Return the bytes that the training needs; those of the base where nothing is trained.

    They are those of the base also for methods whose training cannot be estimated without weights.
    """
    if not rows:
        return base.memory_bytes
    config = inputs.config
    longest = max(map(len, rows.train["input_ids"]))
    if config.train.args.get("packing"):  # packing fills rows up to this length
        longest = config.train.max_length
    dtype, card = getattr(torch, base.dtype), card_memory(torch.device(base.device))
    train = choose_forwards(config, inputs.outline, dtype, rows, card).apply(config.train)
    # The estimate takes every row to be `max_length` long. Here no row is longer than `longest`.
    shaped = replace(config, train=replace(train, max_length=longest))
    training = estimate_training(shaped, inputs.outline, dtype)
    return training.n_bytes if training else base.memory_bytes


def measure_free_disk(folder: Path) -> int:
    """Return the free bytes of the disk that a folder is on, or will be on once it is made."""
    folders = [folder.absolute(), *folder.absolute().parents]
    existing = next(path for path in folders if path.exists())
    return int(psutil.disk_usage(str(existing)).free)


def _measure_download(config: RunConfig) -> int:
    """Return how many bytes of the models' files must still be downloaded.

    Only the files that loading reads are counted. A model counts as 0 bytes if the hub cannot say.
    """
    n_bytes = 0
    for model in filter(None, (config.model, config.tuned_model)):
        if not model.folder:  # it is on the hub
            # Without a connection, for example, the plan is shown without the download.
            with suppress(Exception):
                files: Any = snapshot_download(
                    model.id,
                    revision=model.revision,
                    allow_patterns=[*MODEL_FILES, "*.safetensors"],
                    ignore_patterns="*/*",  # files in folders of the repository
                    dry_run=True,  # lists the files, and downloads none
                )
                n_bytes += sum(file.file_size or 0 for file in files if file.will_download)
    return n_bytes


def _try_work(inputs: RunInputs, rows: TokenizedRows | None, rates: Rates) -> Rates:
    """Load the weights, try one batch of each kind of work, and return what the whole would cost.

    Args:
        inputs: What the run reads.
        rows: The tokenized rows; None where nothing is trained.
        rates: What earlier runs like this one cost. Only the rest of a run (`Work.other`) is taken
            from them, if they know it: loading, preparing rows, validating and recording.

    Returns:
        The costs of all benchmarks, of the training, and of the rest.
    """
    config = inputs.config
    with console.progress_bar("trying one batch of each kind of work"):
        began = time.perf_counter()
        base = load_base_model(config.model, config.quantization, inputs.tokenizer, inputs.outline)
        # The rest of a run is all that is no question and no training step. Here that is loading;
        # preparing the rows and validating are added below.
        rest_seconds = time.perf_counter() - began
        share_prefixes = not inputs.learns_prompt
        tried = try_costs(inputs.tasks, config.evaluation, base, _TRIED_SECONDS, share_prefixes)
        costs = list(tried)
        # Unsloth trains in a process of its own, so its steps are not tried.
        if rows and inputs.train_data and not ENGINES[config.train.engine].module:
            began = time.perf_counter()
            prepared = prepare_training(base, inputs.train_data, config)
            rest_seconds += time.perf_counter() - began
            whole = count_steps(config, prepared)
            step_seconds = try_steps(base, prepared, config, _TRIED_STEPS) / _TRIED_STEPS
            costs.append(replace(whole, seconds=step_seconds * whole.n))
            # The validation loss is computed before and after the training. A forward pass over as
            # many tokens as a step has takes a third of the step.
            n_validation_tokens = sum(map(len, prepared.validation["input_ids"]))
            n_forwards = n_validation_tokens / (whole.prompt_tokens / whole.n)
            rest_seconds += 2 * n_forwards * step_seconds / 3
    # A recorded run knows its whole rest. The trial has seen only a part of it, without recording.
    rest = [cost for cost in rates.costs if cost.work is Work.other]
    tried_rest = Cost("", Work.other, n=1, prompt_tokens=0, new_tokens=0, seconds=rest_seconds)
    costs += rest or [tried_rest]
    return Rates(tuple(costs), "tried here")
