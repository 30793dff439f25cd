"""Answers before and after into verdicts with intervals. No torch, no MLflow, no files.

Doors: `findings.judge`, `budget.hold_to_budgets`, `comparison.compare`. Every number here has a simulation in
docs/studies/statistics.md; who changes a test or an interval runs `python -m bench.statistics` again.
"""
