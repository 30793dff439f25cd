"""Findings into MLflow and back. The only room that knows MLflow.

Doors: `runs.opened_run`, `read.find_runs`, `read.read_evaluation`. A metric's name stands in `names.py`, for writing
and reading; whoever changes what is written keeps what was written before readable (`tests/records`).
"""
