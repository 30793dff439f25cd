"""The settings of recorded runs."""

import pytest
from mlflow import MlflowClient
from record_builders import Compose, set_metric

from slimdown.config.schema import RunConfig


@pytest.fixture
def config(store: MlflowClient, composed: Compose) -> RunConfig:
    """The settings of a run in a store of the test's own."""
    return set_metric(composed())
