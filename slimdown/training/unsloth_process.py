"""The process that `unsloth.py` starts; it reads a job from a folder, and answers in JSON lines."""

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

from slimdown.utils.errors import describe_error


def main() -> None:
    """Load the base with Unsloth, train, and save the adapter."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what Unsloth prints goes to stderr

    def send(**answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")

    try:
        import torch
        from unsloth import FastLanguageModel  # before everything that it changes

        from slimdown.training.result import StepLog
        from slimdown.training.sft import TrainingCallback, build_trainer

        folder = sys.argv[1]
        source, dtype, tokenizer, rows, config = pickle.loads(Path(folder, "job").read_bytes())
        train, lora, in_4bit = config.train, config.lora, config.quantization.load_in_4bit
        checkpointing = "unsloth" if train.gradient_checkpointing else False
        model, _ = FastLanguageModel.from_pretrained(
            source,
            use_exact_model_name=True,
            load_in_4bit=in_4bit,
            load_in_16bit=not in_4bit,
            use_gradient_checkpointing=checkpointing,
            dtype=getattr(torch, dtype),
            max_seq_length=train.max_length,
        )
        model = FastLanguageModel.get_peft_model(
            model,
            r=lora.r,
            lora_alpha=lora.lora_alpha,
            lora_dropout=lora.lora_dropout,
            target_modules="all-linear" if lora.is_everywhere else list(lora.target_modules),
            **config.method.facts.peft_options,
            use_gradient_checkpointing=checkpointing,
            bias="none",
            random_state=config.seed,
        )
        trainer = build_trainer(model, tokenizer, rows, config, Path(folder))
        trainer.takes_plain_loss = False  # Unsloth has a loss of its own
        trainer.args.train_sampling_strategy = "random"  # TRL's engine gets the same batches

        def send_step(log: StepLog) -> None:
            logs = log.values | {"num_input_tokens_seen": log.values["num_tokens"]}
            send(step=log.step, of=trainer.state.max_steps, logs=logs)

        trainer.add_callback(TrainingCallback(train, dtype, send_step, lambda *done: None))
        seconds = trainer.train().metrics["train_runtime"]
        trainer.model.save_pretrained(f"{folder}/adapter")
        send(seconds=seconds)
    except Exception as error:  # Unsloth's code may raise anything
        reason = describe_error(error)
        send(error=f"Unsloth cannot train this model ({reason}); set train.engine=trl")


if __name__ == "__main__":
    main()
