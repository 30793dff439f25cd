"""Runs into MLflow and back: the only folder that imports MLflow."""
