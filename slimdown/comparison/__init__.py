"""Findings of many runs side by side: rows, order, groups over seeds, scales, trials.

Entry points: `run_comparison.compare_runs`, `group_tests.describe_groups`, `scaling.choose_scale`.
"""
