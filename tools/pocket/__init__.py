"""Makes the pocket world of `slimdown.pocket`: its texts, its tokenizer and its weights."""
