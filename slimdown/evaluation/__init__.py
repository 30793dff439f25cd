"""Turns models and benchmarks into answers and scores. Only this folder imports lm_eval."""
