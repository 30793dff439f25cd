"""A model and benchmarks into answers and scores. The only room that knows lm-evaluation-harness.

Doors: `questions.load_tasks`, `harness.choose_scoring`, `measure.measure`. Whatever changes an answer belongs into the
key of an evaluation (`measure.evaluation_key`), a new module of this room into `measure.MEASURING`.
"""
