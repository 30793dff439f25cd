"""A model and benchmarks into answers and scores. The only room that knows lm-evaluation-harness.

Doors: `questions.load_tasks`, `turns.Asking`, `measure.measure`; `logs.read_lm_eval` for what the harness measured by
itself. Whatever changes an answer belongs into the key of an evaluation (`measure.evaluation_key`), a new
module that answers come from into `measure.MEASURING`.
"""
