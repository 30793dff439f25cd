"""The Python API: measure a loaded model, judge two evaluations, watch a training."""
