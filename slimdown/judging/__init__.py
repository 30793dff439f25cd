"""Answers before and after into verdicts with intervals. No torch, no MLflow, no files."""
