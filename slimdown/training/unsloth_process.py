"""The process that `unsloth.py` starts: a pickled job comes in, lines of JSON go out."""

import json
import os
import pickle
import sys
from typing import Any


def main() -> None:
    """Load the base with Unsloth, train, and save the adapter."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # where Unsloth prints to

    def send(**answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")

    model_id = "this model"
    try:
        import torch
        from unsloth import FastLanguageModel  # before everything that it changes

        from slimdown.models.identity import hash_weights
        from slimdown.training.sft import TrainingCallback, build_trainer

        source, dtype, weights, tokenizer, rows, config, folder = pickle.load(sys.stdin.buffer)
        model_id, lora, seed = config.model.id, config.lora, config.seed
        in_4bit = config.quantization.load_in_4bit
        checkpointing = "unsloth" if config.train.gradient_checkpointing else False
        model, _ = FastLanguageModel.from_pretrained(
            source,
            max_seq_length=config.train.max_length,
            dtype=getattr(torch, dtype),
            load_in_4bit=in_4bit,
            load_in_16bit=not in_4bit,
            use_gradient_checkpointing=checkpointing,
            use_exact_model_name=True,
        )
        if hash_weights(model) != weights:
            raise ValueError("it makes other weights of it than those that are measured")
        model = FastLanguageModel.get_peft_model(
            model,
            r=lora.r,
            lora_alpha=lora.lora_alpha,
            lora_dropout=lora.lora_dropout,
            target_modules="all-linear" if lora.is_everywhere else list(lora.target_modules),
            use_rslora=config.method.name == "rslora",
            bias="none",
            use_gradient_checkpointing=checkpointing,
            random_state=seed,
        )
        trainer = build_trainer(model, tokenizer, rows, config.train, seed, folder)
        used = str(getattr(trainer.args.optim, "value", trainer.args.optim))
        if used not in (config.train.optim, f"{config.train.optim}_fused"):
            raise ValueError(f"it takes {used} in place of train.optim={config.train.optim}")
        callback = TrainingCallback(
            config.train,
            dtype,
            lambda log: send(step=log.step, of=trainer.state.max_steps, values=log.values),
            lambda done, total, label: None,
        )
        trainer.add_callback(callback)
        seconds = trainer.train().metrics["train_runtime"]
        trainer.model.save_pretrained(f"{folder}/adapter")
        send(seconds=seconds)
    except Exception as error:  # of somebody else's code
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        send(error=f"Unsloth cannot train {model_id} ({reason}); set train.engine=trl")


if __name__ == "__main__":
    main()
