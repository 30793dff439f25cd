"""Judge answers before and after, with verdicts and intervals. No torch, no MLflow, no files.

Entry points: `findings.judge`, `budgets.check_budgets`, `run_comparison.compare_runs`. Every number
here has a simulation in docs/studies/statistics.md: if you change a test, run `python -m
bench.statistics` again.
"""
