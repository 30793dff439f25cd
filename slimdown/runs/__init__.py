"""One run: what it reads, what it will cost, how it goes, and where its tuned model is from."""
