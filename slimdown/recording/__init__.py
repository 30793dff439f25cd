"""Findings into MLflow and back. The only room that knows MLflow."""
