"""The process that `unsloth.py` starts: a pickled `Job` and then a line come in, lines of JSON go out."""

import json
import os
import pickle
import sys
from typing import TYPE_CHECKING, Any

from slimdown.utils.errors import SlimdownError

if TYPE_CHECKING:
    from slimdown.training.unsloth import Job


def main() -> None:
    """Load, say that all is ready, wait for the word, train, and save the adapter."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # where Unsloth prints to

    def tell(**answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")

    name = "anything here"
    try:
        import unsloth

        # Only now: what these import must have been changed before.
        from slimdown.training.steps import take_steps

        job: Job = pickle.load(sys.stdin.buffer)
        name = job.base
        trainer = _trainer(unsloth.FastLanguageModel, job)
        tell(ready=True)
        if not sys.stdin.buffer.readline():
            return  # whoever started this is gone
        steps = take_steps(
            trainer,
            job.config,
            job.seed,
            job.device,
            lambda step, of, values: tell(step=step, of=of, values=values),
        )
        trainer.model.save_pretrained(job.folder / "adapter")
        tell(n=steps.n, train_loss=steps.train_loss, seconds=steps.seconds)
    except SlimdownError as error:
        tell(error=str(error))
    except Exception as error:  # of somebody else's code
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        tell(
            error=f"train.engine=unsloth: Unsloth cannot train {name} ({reason}); set train.engine=trl"
        )


def _trainer(fast: Any, job: "Job") -> Any:
    """TRL's trainer, as Unsloth left it, around Unsloth's model.

    Raises:
        SlimdownError: what Unsloth loaded is not the base, or it trains otherwise than asked.
    """
    import torch
    from trl import SFTTrainer

    from slimdown.models.identity import weights_digest
    from slimdown.training.steps import trainer_for

    checkpointing = "unsloth" if job.config.gradient_checkpointing else False  # its own kind of it
    model, _ = fast.from_pretrained(
        str(job.source),
        max_seq_length=job.config.max_length,
        dtype=getattr(torch, job.dtype),
        load_in_4bit=job.in_4bit,
        load_in_16bit=not job.in_4bit,
        use_gradient_checkpointing=checkpointing,
        use_exact_model_name=True,
    )
    if weights_digest(model) != job.weights:
        raise SlimdownError(
            f"train.engine=unsloth: what Unsloth makes of {job.base} are other weights than those that are measured; "
            "set train.engine=trl"
        )
    model = fast.get_peft_model(
        model,
        **job.adapter,
        bias="none",
        use_gradient_checkpointing=checkpointing,
        random_state=job.seed,
    )
    trainer = trainer_for(
        model, job.tokenizer, job.rows, job.config, job.seed, job.folder, job.device, SFTTrainer
    )
    used = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    if used not in (job.config.optim, f"{job.config.optim}_fused"):
        raise SlimdownError(
            f"train.optim={job.config.optim}: Unsloth takes {used} in its place here; set train.optim={used}"
        )
    return trainer


if __name__ == "__main__":
    main()
