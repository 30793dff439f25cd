"""What was tuned, as MLflow loads it.

`mlflow.pyfunc` loads it as it was measured, `mlflow.transformers` on the unquantized base. Neither needs a copy of the
base's weights: they are had from where the run had them.
"""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimdown.config.method import Method
from slimdown.utils.redaction import redact

if TYPE_CHECKING:  # it would bring torch along
    from slimdown.models.model import LoadedModel

_LONGEST = 128  # tokens of an answer, where nothing else is asked for


def describe(folder: Path, tuned: "LoadedModel", settings: Mapping[str, Any]) -> None:
    """Write MLflow's own files beside what was tuned.

    Args:
        folder: an adapter's, or a whole model's.
        tuned: the model.
        settings: of the run, by dotted keys.
    """
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema

    text = Schema([ColSpec("string")])
    longest = ParamSchema([ParamSpec("max_new_tokens", "long", _LONGEST)])
    model = Model(signature=ModelSignature(inputs=text, outputs=text, params=longest))
    base = {key: settings[key] for key in settings if key.startswith(("model.", "quantization."))}
    loading = {
        **base,
        "dtype": tuned.dtype,
        "compute_dtype": tuned.compute_dtype,
        "revision": tuned.revision,
    }
    # As `mlflow.pyfunc.add_to_model` does, whose import warns (mlflow 3.17).
    flavor = {
        "loader_module": __name__,
        "python_version": platform.python_version(),
        "config": loading,
    }
    model.add_flavor("python_function", **flavor)
    is_of_hub = not tuned.revision.startswith("sha256:")
    # PEFT knows of no bottleneck, and its generate misplaces virtual tokens (peft 0.21 with transformers 5.24).
    is_pefts = settings.get("method.name") not in (Method.bottleneck, Method.prefix, Method.prompt)
    if is_of_hub and is_pefts and (folder / "adapter_config.json").is_file():
        model.add_flavor("transformers", **_on_the_hub(tuned))
    model.save(folder / "MLmodel")
    needed = [
        "slimdown",
        "transformers",
        "torch",
        *(["peft"] if hasattr(tuned.model, "peft_config") else []),
    ]
    needed += ["bitsandbytes"] if tuned.quantization != "none" else []
    (folder / "requirements.txt").write_text(
        "".join(f"{name}=={version(name)}\n" for name in needed)
    )


def log_model(client: Any, run_id: str, folder: Path, tuned: "LoadedModel", steps: int) -> str:
    """Keep what was tuned as a run's logged model, and return its id; one that was begun before takes the files again.

    Args:
        client: of the store.
        run_id: of a run that is going.
        folder: an adapter's, or a whole model's; what it is called is what the logged model is called.
        tuned: the model.
        steps: that it was trained for.
    """
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id)
    begun = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    model = next(
        (model for model in begun if model.name == folder.name), None
    ) or client.create_logged_model(
        run.info.experiment_id,
        name=folder.name,
        source_run_id=run_id,
        params={
            "base": redact(tuned.id),
            "base_revision": tuned.revision,
            "quantization": tuned.quantization,
        },
        model_type="peft" if folder.name == "adapter" else "transformers",
    )
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    if model.model_id not in {
        output.model_id for output in (run.outputs.model_outputs if run.outputs else [])
    }:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=steps)])
    return str(model.model_id)


def _on_the_hub(tuned: "LoadedModel") -> dict[str, Any]:
    """What mlflow.transformers asks for an adapter in the folder itself, on a base of the hub (mlflow 3.17)."""
    return {
        "task": "text-generation",
        "instance_type": "TextGenerationPipeline",
        "pipeline_model_type": type(tuned.model.get_base_model()).__name__,
        "source_model_name": tuned.id,
        "source_model_revision": tuned.revision,
        "peft_adaptor": ".",
        "torch_dtype": f"torch.{tuned.dtype}",
        "components": ["tokenizer"],
        "tokenizer_type": type(tuned.tokenizer).__name__,
        "tokenizer_name": tuned.id,
        "tokenizer_revision": tuned.revision,
        "transformers_version": version("transformers"),
        "code": None,
    }


class Completing:
    """A model and its tokenizer: prompts in, the likeliest continuations out."""

    def __init__(self, tuned: "LoadedModel") -> None:
        """Take a loaded model."""
        self._tuned = tuned

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[str]:
        """One continuation a prompt, without it; `model_input` is what MLflow makes of a list of prompts."""
        rows = model_input.iloc[:, 0] if hasattr(model_input, "iloc") else model_input
        return [
            self._complete(prompt, **(params or {}))
            for prompt in ([rows] if isinstance(rows, str) else rows)
        ]

    def _complete(self, prompt: str, max_new_tokens: int = _LONGEST) -> str:
        from slimdown.evaluation.engine.decoding import decoded
        from slimdown.evaluation.engine.forward import virtual_tokens

        model, tokenizer = self._tuned.model, self._tuned.tokenizer
        asked = tokenizer(prompt, return_tensors="pt").to(model.device)
        if virtual_tokens(
            model
        ):  # which PEFT's generate misplaces (peft 0.21 with transformers 5.24)
            new = decoded(model, tuple(asked.input_ids[0].tolist()), max_new_tokens)
            return str(tokenizer.decode(new, skip_special_tokens=True))
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        answer = model.generate(
            **asked, **greedy, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id
        )
        text: str = tokenizer.decode(
            answer[0, asked.input_ids.shape[1] :], skip_special_tokens=True
        )
        return text


def _load_pyfunc(path: str, model_config: Mapping[str, Any]) -> Completing:
    """What mlflow.pyfunc calls: the tuned model as its run measured it.

    Raises:
        SlimdownError: its base cannot be had any more, or is another by now.
    """
    from dataclasses import replace

    from slimdown.models.model import load_model
    from slimdown.training.saved import is_adapter, load_base, load_tuned, recorded_base

    revision, folder = model_config["revision"], Path(path)
    model, quantization = recorded_base(
        model_config, model_config["dtype"], model_config["compute_dtype"], revision
    )
    if not is_adapter(folder):
        return Completing(load_model(replace(model, id=path, revision="main"), quantization))
    base = load_base(model, quantization, revision)
    return Completing(replace(base, model=load_tuned(base, folder)))
