"""Settings into what a run works on: the loaded model, and rows as prompts and completions.

Doors: `model.load_model`, `data.load_data`. The base stays as it was published: nothing here changes a weight beyond
quantizing it, and what answers depend on is told by `identity.py`.
"""
