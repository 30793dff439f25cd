"""Models and benchmarks to answers and scores; the only folder that imports lm_eval."""
