"""Findings of many runs side by side: rows, order, groups over seeds, scales, trials.

Entry points: `run_comparison.compare_runs`, `group_tests.find_differences`, `scaling.choose_scale`.
"""
