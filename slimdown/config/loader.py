"""What Hydra composed -> a checked `RunConfig`."""

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from slimdown.config.engine import engine_problems
from slimdown.config.keys import problems_of, unknown_keys
from slimdown.config.schema import Role, RunConfig, Until
from slimdown.utils.errors import ConfigError


def load_config(composed: DictConfig) -> RunConfig:
    """Turn the config that Hydra composed into a checked `RunConfig`.

    Raises:
        ConfigError: listing every problem, one a line.
    """
    if composed.get("tuned") is not None:  # whatever the model's own file would train on
        composed = composed.copy()
        composed.dataset = {}
    problems = list(unknown_keys(composed, RunConfig)) + list(_missing_keys(composed))
    if problems:
        raise ConfigError("\n".join(problems))
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    assert isinstance(config, RunConfig)
    if problems := [*problems_of(config), *engine_problems(config), *_until_problems(config)]:
        raise ConfigError("\n".join(problems))
    return config


def _until_problems(config: RunConfig) -> Iterator[str]:
    until, holdout, search = config.evaluation.until, config.evaluation.holdout, config.search
    if until is Until.all:
        return
    if holdout:
        yield (
            f"evaluation.until={until} would end by what held-out questions say (evaluation.holdout={holdout:g}), and "
            "these are to judge what they had no part in; set one of the two"
        )
    if search.space or search.trial is not None:
        yield (
            f"evaluation.until={until}: a search compares its trials by their scores, for which all must be asked the "
            "same; leave it out"
        )
    budgets = [b.max_loss is not None or b.role is Role.retained for b in config.benchmark.values()]
    if until is Until.budget and not any(budgets):
        given = "".join(
            f", e.g. benchmark.{name}.max_loss=0.02" for name in list(config.benchmark)[:1]
        )
        yield f"evaluation.until=budget: no benchmark is to be retained, and none has a budget; give one{given}"


def _missing_keys(composed: DictConfig) -> Iterator[str]:
    missing = OmegaConf.missing_keys(composed)
    # What a group's file always sets: where it lacks, the file was not read and other settings came from elsewhere.
    unchosen = {
        f"{group}.{name}": group
        for group, always_set in (("dataset", "template"), ("benchmark", "metric"))
        for name in composed[group]
        if f"{group}.{name}.{always_set}" in missing
    }
    for name, group in unchosen.items():
        yield f"{name} has settings but is not chosen; add it to {group}=[...]"
    for key in sorted(missing):
        if not any(key.startswith(f"{name}.") for name in unchosen):
            yield f"{key} must be set"
