"""Settings into what a run works on: the loaded model, and rows as prompts and completions."""
