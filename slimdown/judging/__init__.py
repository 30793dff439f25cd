"""Two evaluations in, findings out: pairs, verdicts, causes of loss, budgets. No torch, no MLflow.

Entry points: `findings.judge`, `budgets.check_budgets`, `stopping.stopping_rule`.
"""
