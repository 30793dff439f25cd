"""Answers before and after -> verdicts with intervals. No torch, no MLflow, no files.

Doors: `findings.judge`, `budgets.check_budgets`, `run_comparison.compare_runs`. Every number here
has a simulation in docs/studies/statistics.md: if you change a test, run `python -m
bench.statistics` again.
"""
