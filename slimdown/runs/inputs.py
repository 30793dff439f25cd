"""What a run reads before it loads weights: benchmarks, rows, the tokenizer, models' outlines."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from slimdown.config.engines import BACKENDS
from slimdown.config.loader import complete_config, read_trained_quantization
from slimdown.config.rules import check_rows
from slimdown.config.schema import EvaluationConfig, RunConfig, TunedModelConfig
from slimdown.data.chat_templates import choose_prompts, read_template_args
from slimdown.data.contamination import Contamination, find_contamination
from slimdown.data.training_data import TrainingData, load_training_data
from slimdown.evaluation.evaluator import check_room
from slimdown.evaluation.served_evaluation import find_served_otherwise
from slimdown.evaluation.tasks import BenchmarkTask, load_tasks
from slimdown.models.adapters import check_base
from slimdown.models.base_model import LoadedModel, fix_dtypes, load_base_tokenizer
from slimdown.models.external import (
    ExternalModel,
    fetch_tuned_model,
    open_tuned_model,
    read_chat_template,
)
from slimdown.models.gguf_file import read_gguf_header
from slimdown.models.server import Server, find_answering_server
from slimdown.models.serving_settings import compare_templates
from slimdown.utils.errors import DataError, SlimdownError
from slimdown.utils.progress import OnProgress


@dataclass(frozen=True)
class RunInputs:
    """What a run reads before it loads weights, checked.

    Attributes:
        config: The settings with nothing left to choose.
        outline: The base without its weights, see `load_outline`.
        tokenizer: The base's.
        tasks: The benchmarks that are asked, by name.
        not_run: Why other benchmarks of the suite are not asked, by name.
        train_data: The rows; None where nothing is trained.
        external: The adapter or model that was tuned elsewhere; None where this run trains, or
            where a server answers.
        server: The server that answers for the tuned model; None where the model is loaded here.
        server_differences: How the server's chat template differs from the base's, a line each.
        served: The benchmarks that `external` is asked once more, with the chat template and the
            settings of its own files; empty where that changes nothing.
        notes: Lines for the user.
    """

    config: RunConfig
    outline: Any
    tokenizer: Any
    tasks: dict[str, BenchmarkTask]
    not_run: dict[str, str]
    train_data: TrainingData | None
    external: ExternalModel | None
    server: Server | None
    server_differences: list[str]
    served: dict[str, BenchmarkTask]
    notes: list[str]

    def find_contamination(self) -> Contamination:
        """Search the rows for the benchmarks' questions; without rows, nothing is found."""
        if self.train_data is None:
            return Contamination()
        questions = {name: task.questions() for name, task in self.tasks.items()}
        return find_contamination(self.train_data, questions, self.config.keep.read_prompts())

    @property
    def learns_prompt(self) -> bool:
        """Whether the tuned model puts virtual tokens before a prompt, as prompt tuning does."""
        facts = self.config.method.facts
        return self.external.learns_prompt if self.external else facts.learns_prompt


def read_inputs(config: RunConfig, on_progress: OnProgress = lambda *_: None) -> RunInputs:
    """Read benchmarks, rows, the tokenizer and the models' outlines.

    Args:
        config: The checked settings.
        on_progress: Receives the name of what is read.

    Returns:
        What was read. Its `config` is the one to go on with: `auto` is decided in it, and it lacks
        the benchmarks that cannot be asked.

    Raises:
        SlimdownError: Something that you can mend.
    """
    # The steps are in this order because each needs what those before it found: the tokenizer and
    # the server decide which benchmarks can be asked, these and the rows decide how prompts are
    # written, and written prompts show whether they fit into the model's window.
    outline = check_base(config)
    backend = BACKENDS[config.evaluation.backend]
    if backend.module:
        backend.find_function("check_tuned")(config)  # raises if it cannot answer with the adapter
    config = fix_dtypes(config)
    server = find_answering_server(config) if config.address else None
    tasks, not_run = load_benchmarks(config, on_progress)
    tokenizer = load_tokenizer(config, server)
    tasks, unaskable = leave_out_unaskable(config, tasks, tokenizer, server)
    not_run |= unaskable
    config = replace(config, benchmark={name: task.config for name, task in tasks.items()})
    notes = _describe_exact_scores(tasks)
    train_data = None
    if config.tuned_model:
        notes += [_describe_weights(config, config.tuned_model)]
    elif server is None:  # this run trains
        on_progress(0, 0, ", ".join(config.dataset))
        config, train_data, row_notes = _prepare_rows(config, tokenizer)
        notes += row_notes
    evaluation, prompt_notes = decide_prompts(config, tasks, tokenizer, train_data)
    config = replace(config, evaluation=evaluation)
    notes = prompt_notes + notes  # how prompts are written comes first
    base = LoadedModel.without_loading(outline, tokenizer, config.model.id)
    check_room(tasks, evaluation, base)  # raises if prompts do not fit into the model's window
    server_differences = list[str]()
    if server:
        server_differences += _compare_template(server, tokenizer)
        notes.append(f"The tuned model is asked through {server}.")
        notes += [f"Compared with the base model: {line}." for line in server_differences]
    external = open_tuned_model(config, base) if config.tuned_model else None
    # The benchmarks that the tuned model is asked once more, as it will be served: with its own
    # chat template and settings instead of the base's.
    served = dict[str, BenchmarkTask]()
    if external and external.differences:
        served, served_notes = _find_asked_twice(external, evaluation, tasks)
        notes += served_notes
    # `model=NAME` chooses rows and questions for real models, but `model.id=NAME` leaves those of
    # the demo.
    if "pocket_instructions" in config.dataset and config.model.id != "pocket:model":
        notes.append(
            "Rows, questions and learning rate are those of the pocket world; with "
            f"model={config.model.id} they are those for real models."
        )
    return RunInputs(
        config=config,
        outline=outline,
        tokenizer=tokenizer,
        tasks=tasks,
        not_run=not_run,
        train_data=train_data,
        external=external,
        server=server,
        server_differences=server_differences,
        served=served,
        notes=notes,
    )


def _describe_exact_scores(tasks: dict[str, BenchmarkTask]) -> list[str]:
    """Advise another score for benchmarks that demand a chat model's answer letter by letter."""
    return [
        f"{name}: an answer must equal the right one (score=exact). If the model answers in "
        f"sentences, set benchmark.{name}.score=contains."
        for name, task in tasks.items()
        if task.compares_whole_messages
    ]


def _describe_weights(config: RunConfig, tuned_model: TunedModelConfig) -> str:
    """Say in which precision a model that was tuned elsewhere is measured.

    Args:
        config: The settings; `quantization` is that of both models.
        tuned_model: What `config.tuned` names: a GGUF file, an adapter or a whole model.
    """
    if tuned_model.gguf:
        weights = read_gguf_header(tuned_model.gguf, tuned_model.named).weights
        detail = f" ({weights})" if weights else ""
        return (
            f"The weights are those of {tuned_model.gguf.name}{detail}, "
            "unpacked by transformers; the engine is not llama.cpp."
        )
    trained_on = read_trained_quantization(fetch_tuned_model(tuned_model))
    note = f"Both models are measured with quantization={config.quantization.name}"
    if trained_on not in ("none", config.quantization.name):
        note += f"; the adapter was trained on {trained_on}: quantization={trained_on}"
    return f"{note}."


def _prepare_rows(config: RunConfig, tokenizer: Any) -> tuple[RunConfig, TrainingData, list[str]]:
    """Read and check the rows; return the settings that fit them, the rows, and notes.

    Args:
        config: The settings. What `keep=auto` stands for depends on the rows, and is decided here.
        tokenizer: The base's.

    Raises:
        DataError: The settings do not work with these rows.
    """
    notes: list[str] = []
    train_data = read_rows(config, tokenizer)
    keep = config.keep.adapt_to(tokenizer, train_data, config)
    if keep.name != config.keep.name:
        notes.append(f"For this run, keep={config.keep.name} means {keep.describe()}.")
        config = complete_config(replace(config, keep=keep))
    n_rows = sum(len(part.train) for part in train_data.parts)
    for problem in check_rows(config, n_rows, are_plain=not train_data.holds_conversations):
        raise DataError(problem)  # the first one
    return config, train_data, [*notes, *train_data.notes]


def _find_asked_twice(
    external: ExternalModel, evaluation: EvaluationConfig, tasks: dict[str, BenchmarkTask]
) -> tuple[dict[str, BenchmarkTask], list[str]]:
    """Find the benchmarks that the tuned model is asked a second time: as its own files serve it.

    The first time it is asked as the base, so that only the weights differ. The second time it is
    asked with its own chat template, stop tokens and settings of generation.

    Args:
        external: The tuned model. Its files have it served differently than the base; its
            `differences` say how.
        evaluation: How the base is asked.
        tasks: All benchmarks.

    Returns:
        By name, the benchmarks whose prompts or ends of answers differ the second time; none if it
        cannot be asked so. And lines for the user, which say what differs and what is asked twice.
    """
    # With `differences`, the files of both models say how they are served.
    serving, base_serving = external.serving, external.base_serving
    assert serving
    assert base_serving
    notes = [f"The tuned model is served differently: {line}." for line in external.differences]
    try:
        # No weights are needed to check prompts. An adapter's outline is that of the base.
        outline = external.outline or external.base.outline
        model = external.serve(replace(external.base, model=outline, outline=outline))
        templates = external.tokenizer.chat_template, model.tokenizer.chat_template
        asked_twice = find_served_otherwise(tasks, evaluation, templates, serving, base_serving)
        # A backend with a module of its own, such as vLLM, does not apply the settings of the tuned
        # model's files.
        if asked_twice and BACKENDS[evaluation.backend].module:
            return {}, [*notes, "It is not measured as it is served; evaluation.backend=hf does."]
        check_room(asked_twice, evaluation, model)
    except SlimdownError as error:  # its template fails or ignores a setting, or prompts do not fit
        return {}, [*notes, f"It cannot be measured as it is served: {error}"]
    if asked_twice:
        twice = "as the base is asked, and once more as it is served"
        notes.append(f"It is measured {twice}: {', '.join(asked_twice)}.")
    return asked_twice, notes


def _compare_template(server: Server, tokenizer: Any) -> Iterator[str]:
    """Say how a server's chat template differs from the base's, as far as the server shows it."""
    if server.chat_template is None:
        yield "chat template: the server does not show it"
    else:
        yield from compare_templates(server.chat_template, tokenizer.chat_template, "the base")


def load_tokenizer(config: RunConfig, server: Server | None = None) -> Any:
    """Load the base's tokenizer. If it has no chat template, it gets that of the tuned model.

    Args:
        config: The settings; `tuned` names the tuned model, if it was tuned elsewhere.
        server: The server that answers for the tuned model, if there is one.
    """
    tokenizer = load_base_tokenizer(config.model)
    if config.tuned_model and not tokenizer.chat_template:
        tokenizer.chat_template = read_chat_template(config.tuned_model)
    if server and not tokenizer.chat_template:
        tokenizer.chat_template = server.chat_template
    return tokenizer


def load_benchmarks(
    config: RunConfig, on_progress: OnProgress = lambda *_: None
) -> tuple[dict[str, BenchmarkTask], dict[str, str]]:
    """Load the benchmarks; say why a suite lacks those whose questions cannot be loaded.

    Args:
        config: The settings.
        on_progress: Receives the name of each benchmark.

    Returns:
        The benchmarks by name; and, by name, why others of the suite cannot be loaded.

    Raises:
        ConfigError: A task is unknown or cannot give the metric.
        DataError: Questions cannot be loaded, and no suite chose the benchmarks.
    """
    not_run: dict[str, str] = {}
    tasks = load_tasks(
        config.benchmark,
        config.evaluation.include_path,
        lacking=not_run if config.suite else None,  # without a suite, a missing one is an error
        on_progress=on_progress,
    )
    return tasks, not_run


def leave_out_unaskable(
    config: RunConfig, tasks: dict[str, BenchmarkTask], tokenizer: Any, server: Server | None = None
) -> tuple[dict[str, BenchmarkTask], dict[str, str]]:
    """Leave out a suite's benchmarks that cannot be asked.

    The base's chat template does not take their messages, or the server cannot answer them.

    Args:
        config: The settings; without a suite, a benchmark that cannot be asked is an error.
        tasks: The benchmarks.
        tokenizer: What `load_tokenizer` returned.
        server: The server that answers for the tuned model; None: that model is loaded here.

    Returns:
        The benchmarks that can be asked; and, by name, why the others cannot.

    Raises:
        ModelError: The model has no chat template, and a benchmark asks messages.
        DataError: No benchmark can be asked, or, without a suite, one cannot.
    """
    reasons = dict(_find_unservable(server, tasks, tokenizer)) if server else dict[str, str]()
    for name, task in tasks.items():
        try:
            task.check_prompts(tokenizer, config.evaluation)
        except DataError as error:
            reasons[name] = str(error)
    askable = {name: task for name, task in tasks.items() if name not in reasons}
    if reasons and (config.suite is None or not askable):
        lines = "\n".join(reasons.values())
        raise DataError(f"{lines}\nLeave out what cannot be asked, or use another model")
    return askable, reasons


def _find_unservable(
    server: Server, tasks: dict[str, BenchmarkTask], tokenizer: Any
) -> Iterator[tuple[str, str]]:
    """See what a server can do; if choices need it, send a prompt to score.

    Yields:
        The name of each benchmark that the server cannot be asked, and why.
    """
    from slimdown.evaluation.served_lm import check_scores

    # Choices are judged by the log-probabilities of a prompt, which not every server returns.
    needs_scores = not all(task.only_generates for task in tasks.values())
    has_scores = needs_scores and check_scores(server, tokenizer)
    for name, task in tasks.items():
        if not task.only_generates and not has_scores:
            reason = "needs the log-probabilities of a prompt (`echo` of /v1/completions), which "
            reason += f"{server} does not return"
        elif task.unservable:
            reason = f"{task.unservable}, which slimdown does not ask a server yet"
        else:
            continue
        yield name, f"benchmark.{name} {reason}; to ask it, measure the model's files"


def read_rows(config: RunConfig, tokenizer: Any) -> TrainingData:
    """Read the rows of the chosen datasets, see `load_training_data`."""
    thinking = config.evaluation.enable_thinking  # the rows are rendered like the questions
    return load_training_data(config.dataset, tokenizer, config.seed, config.keep, thinking)


def decide_prompts(
    config: RunConfig,
    tasks: dict[str, BenchmarkTask],
    tokenizer: Any,
    train_data: TrainingData | None,
) -> tuple[EvaluationConfig, list[str]]:
    """Decide how benchmarks are asked, see `choose_prompts`.

    Args:
        config: The settings.
        tasks: The benchmarks.
        tokenizer: What `load_tokenizer` returned.
        train_data: The rows; None: there are none, or none that may be conversations.

    Returns:
        The settings of the evaluation with nothing left to choose, and lines for the user.

    Raises:
        ModelError: The chat template is needed, and it is missing, fails or drops what is set.
    """
    # Whether the tuned model knows the chat template: from its rows or, where these are not known,
    # because its files bring one.
    if config.address:
        is_chat_model = True  # a server takes messages
    elif config.tuned_model and not train_data:
        is_chat_model = read_chat_template(config.tuned_model) is not None
    else:
        is_chat_model = train_data is not None and train_data.holds_conversations
    # With "auto", a chat model that generates answers gets its prompts through the template.
    needs_template = is_chat_model and any(task.generates for task in tasks.values())
    setting = config.evaluation.apply_chat_template
    is_plain = setting is False or (setting == "auto" and not needs_template)
    # Questions that are messages go through the template whatever the setting says.
    if is_plain and any(task.has_messages for task in tasks.values()):
        with_template = replace(config.evaluation, apply_chat_template=True)
        read_template_args(tokenizer, with_template)  # raises if the template is missing or fails
        note = "Messages are asked through the chat template, and other prompts are plain."
        return replace(config.evaluation, apply_chat_template=False), [note]
    return choose_prompts(config.evaluation, tokenizer, auto_uses_template=needs_template)
