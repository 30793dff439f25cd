"""The commands, `slimdown VERB ...`. Each has `main(argv) -> int`: arguments in, exit code out."""
