"""Register the model of a run that passed its gate, and find a registered model's run."""

import json
import re
from dataclasses import dataclass
from typing import Any

from slimdown.comparison.run_records import RunRecord
from slimdown.config.tracking_config import TrackingConfig
from slimdown.tracking import store
from slimdown.tracking.logged_models import find_made_model
from slimdown.tracking.metrics_and_tags import Tag
from slimdown.tracking.run_reader import find_run
from slimdown.utils.errors import ConfigError, TrackingError

_VERSIONS = "mlflow.modelVersions"  # a logged model's tag, which MLflow's page of it shows
_NAME = re.compile(r"[^/:@]{1,200}")
_ALIAS = re.compile(r"(?!v?\d+$|latest$)[\w-]{1,200}", re.ASCII | re.IGNORECASE)
_URI = re.compile(r"models:/([^/:@']+)(?:@([\w-]+)|/(\d+))")


@dataclass(frozen=True)
class RegisteredModel:
    """A version of a registered model, and the run that made it."""

    name: str
    version: str
    run: RunRecord


def check_names(name: str, alias: str) -> None:
    """Check the name and the alias that a model shall be registered by.

    Raises:
        ConfigError: MLflow takes no such name or alias.
    """
    if not _NAME.fullmatch(name) or not name.strip():
        raise ConfigError(f"--register {name!r}: a name has no / : @ and up to 200 letters")
    if alias and not _ALIAS.fullmatch(alias):
        example = "such as champion; not a number, v1 or latest"
        raise ConfigError(f"--alias {alias!r}: give letters, digits, - and _, {example}")


def check_in_record(run: RunRecord) -> None:
    """Check that the record holds the model that a run judged, so that it can be registered.

    Raises:
        TrackingError: The model was made elsewhere.
    """
    if origin := run.tags.get(Tag.origin):
        problem = f"judged {origin}, whose files are not in the record"
        advice = "register it where it was made, or judge a run that trained"
        raise TrackingError(f"run {run.run_id} ({run.name}) {problem}; {advice}")


def register_model(
    tracking: TrackingConfig, run: RunRecord, name: str, alias: str, outcome: str
) -> str:
    """Register the model that a run trained as a version of a registered model.

    If the run already has a version of this registered model, that version is used.

    Args:
        tracking: The store.
        run: The run.
        name: The name of the registered model; it is created if the store has none.
        alias: An alias that is set to the version; none is set if this is empty.
        outcome: The outcome of the gate, for the version's tags.

    Returns:
        The number of the version.

    Raises:
        TrackingError: The store does not take it.
    """
    from mlflow.exceptions import MlflowException

    client = store.open_store(tracking, must_exist=True)
    with store.explain_store_errors(tracking):
        model = find_made_model(client, run.run_id)
        try:
            client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            client.create_registered_model(name)
        made_by_run = client.search_model_versions(f"run_id = '{run.run_id}'")
        versions = [version for version in made_by_run if version.name == name]
        if not versions:
            # The version gets the address of the model's files. MLflow would look for a models:/
            # address in its global store, which may be another one.
            created = client.create_model_version(name, model.artifact_location, run.run_id)
            versions = [created]
        version = str(versions[0].version)
        _show_version(client, model, name, version)  # on the page of the run's logged model
        client.set_model_version_tag(name, version, "slimdown.outcome", outcome)
        if alias:
            client.set_registered_model_alias(name, alias, version)
    return version


def _suggest_versions(client: Any, name: str, alias: str) -> str:
    """Say which aliases and versions a registered model has, or how to register the first one."""
    for model in client.search_registered_models(f"name = '{name}'"):
        newest = max((int(latest.version) for latest in model.latest_versions), default=0)
        return f"{name} has {', '.join([*model.aliases, f'versions up to {newest}'])}"
    return f"slimdown check RUN --register {name} --alias {alias or 'champion'} makes the first"


def _show_version(client: Any, model: Any, name: str, version: str) -> None:
    """Name the version on the model's own page, by the tag that `mlflow.register_model` writes."""
    shown = json.loads(model.tags.get(_VERSIONS, "[]"))
    if name not in [registered["name"] for registered in shown]:
        text = json.dumps([*shown, {"name": name, "version": version}])
        client.set_logged_model_tags(model.model_id, {_VERSIONS: text})


def find_registered(tracking: TrackingConfig, uri: str) -> RegisteredModel:
    """Find the version of a registered model that an address names, and its run.

    Args:
        tracking: The store.
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`; the user gives it by `--against`.

    Raises:
        ConfigError: It is no such address.
        TrackingError: The record has no such model, alias or version; the version was registered
            without a run; or its run is not in this record.
    """
    from mlflow.exceptions import MlflowException

    if not (parts := _URI.fullmatch(uri)):
        raise ConfigError(f"--against {uri}: give models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, number = parts.groups()  # either the alias or the number is None
    client = store.open_store(tracking, must_exist=True)
    with store.explain_store_errors(tracking):
        try:
            if alias:
                version = client.get_model_version_by_alias(name, alias)
            else:
                version = client.get_model_version(name, number)
        except MlflowException as error:
            # The second code is MLflow's for an alias that no version has.
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            problem = f"--against {uri}: the record has no such model"
            raise TrackingError(f"{problem}; {_suggest_versions(client, name, alias)}") from None
    if not version.run_id:
        problem = "was registered without its run, so its answers are not known"
        raise TrackingError(f"--against {uri}: version {version.version} {problem}")
    return RegisteredModel(name, str(version.version), find_run(tracking, version.run_id))
