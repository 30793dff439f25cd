"""A model and benchmarks into answers and scores. The only room that knows lm-evaluation-harness."""
