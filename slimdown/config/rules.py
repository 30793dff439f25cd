"""The rules by which the settings of a run must fit together, one function for each.

Each yields what is wrong, with the settings and values in question and what would be right. The
range of a single value is declared with its field.
"""

import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from math import ceil
from urllib.parse import urlsplit

from slimdown.config.benchmark_config import Role, Until
from slimdown.config.engines import BACKENDS, ENGINES, Backend
from slimdown.config.fields import TRAINING
from slimdown.config.methods import list_all_methods
from slimdown.config.mitigation import list_mitigations
from slimdown.config.paths import list_group_choices
from slimdown.config.schema import RunConfig, ServedConfig
from slimdown.utils.extras import name_install
from slimdown.utils.secrets import redact_uri

# A name of a dataset or benchmark is part of metric keys, file names and dotted keys.
_NAME = re.compile(r"[\w-]+", re.ASCII)

Rule = Callable[[RunConfig], Iterator[str]]


def find_conflicts(config: RunConfig) -> Iterator[str]:
    """Find what does not fit together, in the order of the rules."""
    rules: list[Rule] = [check_choices, check_weights, check_holdout, check_clusters]
    rules += [check_sources, check_served, check_backend]
    if config.tuned is None:
        rules += [check_method, check_mitigation, check_stopping, check_rows, check_engine]
    for rule in rules:
        yield from rule(config)


def check_choices(config: RunConfig) -> Iterator[str]:
    """Datasets and benchmarks are chosen, under names that MLflow takes."""
    for group, members in (("dataset", config.dataset), ("benchmark", config.benchmark)):
        if not members and (config.tuned is None or group not in TRAINING):
            choices = ", ".join(list_group_choices(group))
            yield f"no {group} is chosen; set {group}=[...] to some of {choices}"
        for name in members:
            if not _NAME.fullmatch(name):
                yield f"{group}.{name}: a name may hold only letters, digits, _ and -"


def check_weights(config: RunConfig) -> Iterator[str]:
    """All datasets have a weight, or none."""
    weights = {name: member.weight for name, member in config.dataset.items()}
    is_set = [weight is not None for weight in weights.values()]
    if any(is_set) and not (all(is_set) and any(weights.values())):
        yield f"the weights of datasets are {weights}; set all, at least one above 0, or none"


def check_holdout(config: RunConfig) -> Iterator[str]:
    """Held-out questions do not decide when to stop asking."""
    if config.evaluation.until is not Until.all and config.evaluation.holdout:
        until = f"evaluation.until={config.evaluation.until}"
        problem = "would use the held-out questions (evaluation.holdout) to decide when to stop"
        yield f"{until} {problem}; set only one of the two"


def check_clusters(config: RunConfig) -> Iterator[str]:
    """Benchmarks with clusters are not stopped early: a look could divide a cluster."""
    until = f"evaluation.until={config.evaluation.until}"
    for name, benchmark in config.benchmark.items():
        if benchmark.cluster and config.evaluation.until is not Until.all:
            advice = f"leave benchmark.{name}.cluster out"
            if benchmark.path:
                advice = f"take the column cluster out of {benchmark.path}"
            yield f"{until} could stop in the middle of a cluster of questions; {advice}"


def check_sources(config: RunConfig) -> Iterator[str]:
    """The base has a valid source, and so has the model that `tuned` names."""
    for model in filter(None, (config.model, config.tuned_model)):
        yield from model.source_problems()


def check_served(config: RunConfig) -> Iterator[str]:
    """Yield what is wrong if `tuned` is the address of a server, which has loaded the tuned model.

    These are mistakes in the address, and settings that a server cannot be asked to follow.
    """
    if not config.address:  # `tuned` names no server, so its settings must keep their defaults
        for name, value in vars(config.served).items():
            if value != getattr(ServedConfig(), name):
                yield f"served.{name} is for tuned=http://HOST:PORT/v1; leave it out"
        return
    named = f"tuned={redact_uri(config.address)}"
    try:
        parts = urlsplit(config.address)
        _ = parts.port  # raises if it is no number of a port
    except ValueError as error:
        yield f"tuned= names no server ({error}); type tuned=http://HOST:PORT/v1"
        return
    if parts.username or parts.password or parts.query or parts.fragment:
        problem = "an address may hold no user, password, ? or #, because it is recorded"
        shown = f"tuned={parts.scheme}://{parts.hostname}/..."
        yield f"{shown}: {problem}; a server's key is read from the variable OPENAI_API_KEY"
    elif not parts.hostname:
        yield f"{named} names no host; type tuned=http://HOST:PORT/v1"
    if not all(map(find_spec, ("aiohttp", "tenacity"))):
        yield f"{named} needs a client of servers; {name_install('served')}"
    if config.evaluation.backend is not Backend.hf:
        yield f"{named} is compared with a base model of evaluation.backend=hf; set that"
    if config.evaluation.apply_chat_template is False:
        problem = "a server takes messages, so both models need the chat template"
        yield f"{named}: {problem}; leave out evaluation.apply_chat_template=false"
    for name, benchmark in config.benchmark.items():
        if benchmark.temperature:
            temperature = f"benchmark.{name}.temperature"
            yield f"{named} is asked for its likeliest answers only; leave out {temperature}"


def check_backend(config: RunConfig) -> Iterator[str]:
    """What generates answers is installed, and can do so with what is asked for."""
    facts = BACKENDS[config.evaluation.backend]
    if facts.module:
        yield from facts.find_function("find_problems")(config)


def check_method(config: RunConfig) -> Iterator[str]:
    """Trained weights are not quantized, and checkpointing is off where the method forbids it."""
    quantization, method, facts = config.quantization.name, config.method.name, config.method.facts
    if method not in list_all_methods():
        yield f"method={method} is not installed; install the package that has it"
    if quantization != "none" and not facts.takes_quantized:
        trained = f"method={method} trains the weights themselves"
        yield f"{trained}, so they must not be quantized ({quantization}); set quantization=none"
    if quantization == "int8" and facts.peft_options.get("use_dora"):
        yield f"method={method} does not work with int8; set quantization=nf4 or none"
    if config.train.gradient_checkpointing and not facts.takes_checkpointing:
        yield f"method={method} needs train.gradient_checkpointing=false"


def check_mitigation(config: RunConfig) -> Iterator[str]:
    """The mitigation is installed, and goes with the other settings."""
    keep = config.keep
    if keep.is_active and keep.name not in list_mitigations():
        yield f"keep={keep.name} is not installed; install the package that has it"
    yield from keep.find_conflicts(config)
    if keep.compares_with_base and not config.trains_beside_base:
        needs = "needs the base model beside the tuned one: train an adapter, with train.engine=trl"
        advice = "or choose another mitigation, or set keep.weight=null if it has a weight"
        yield f"keep={keep.name} {needs}; {advice}"


def check_stopping(config: RunConfig) -> Iterator[str]:
    """A training that stops on forgetting looks between steps, at benchmarks with a budget."""
    if not config.train.stop_on_forgetting:
        return
    if ENGINES[config.train.engine].module:
        yield "train.stop_on_forgetting=true works only with train.engine=trl; set that"
    benchmarks = config.benchmark.values()
    if not any(b.role is Role.retained or b.max_loss is not None for b in benchmarks):
        yield "train.stop_on_forgetting=true needs a retained benchmark; add one"


def check_rows(config: RunConfig, n_rows: int = 0, are_plain: bool = False) -> Iterator[str]:
    """Yield why there are too few rows to stop on forgetting, or none with an assistant's answers.

    A training that stops on forgetting looks at the model every `train.look_steps` steps: it tests
    for forgetting with a few questions. It must be long enough for one look.

    Args:
        config: The settings of a training.
        n_rows: The most rows there can be; 0 if the rows are not read yet.
        are_plain: Whether the rows were read and none is a conversation.
    """
    train = config.train
    # Before the rows are read, only `max_examples` limits their number. 10**12 stands for no limit.
    n_rows = n_rows or sum(part.max_examples or 10**12 for part in config.dataset.values())
    n_steps = _count_steps(config, n_rows)
    if train.stop_on_forgetting and train.look_steps > n_steps:
        looks = f"train.look_steps={train.look_steps}"
        yield f"{looks} is more than the {n_steps} steps of this training; set a smaller number"
    if train.assistant_only_loss is True and (are_plain or not config.may_hold_conversations):
        yield "train.assistant_only_loss=true: no dataset has conversations; set it to false"


def _count_steps(config: RunConfig, n_rows: int) -> int:
    """Return the number of training steps on the rows of the datasets and the mitigation's.

    Other settings may be invalid at this point, so values such as 0 or nan must not raise here.
    """
    train = config.train
    if train.max_steps > 0:
        return train.max_steps
    step_rows = max(1, train.per_device_train_batch_size * train.gradient_accumulation_steps)
    # The mitigation adds rows. 1e-9 also if the share is nan: max returns its first value.
    own_share = max(1e-9, 1 - config.keep.added_share)
    n_epoch_steps = ceil(n_rows / own_share / step_rows)
    # `ceil` raises at infinite epochs, hence 1e15. Nan is not below it, so `min` returns 1e15.
    return ceil(min(1e15, n_epoch_steps * train.num_train_epochs))


def check_engine(config: RunConfig) -> Iterator[str]:
    """What trains is installed, and can train what is asked for."""
    facts = ENGINES[config.train.engine]
    if facts.module:
        yield from facts.find_function("find_problems")(config)
