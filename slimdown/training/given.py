"""What somebody else tuned, in place of training: a PEFT adapter on the base, or a whole model."""

import hashlib
import re
import warnings
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from slimdown.config.files import tuned_problem
from slimdown.config.schema import OnProgress, RunConfig, TunedConfig
from slimdown.evaluation.measure import Record
from slimdown.models.dequantize import is_4bit
from slimdown.models.identity import identify
from slimdown.models.memory import release_memory
from slimdown.models.model import (
    LoadedModel,
    check_numbers,
    explained,
    load_model,
    load_tokenizer,
    outline,
    resolved_revision,
)
from slimdown.training.adapters import sharing_copy
from slimdown.training.fine_tune import OnStep, Tuned
from slimdown.utils.digests import digest
from slimdown.utils.errors import SlimdownError

# Texts on which two tokenizers of one vocabulary part ways: spaces, lines, digits, letters beyond ASCII, code.
_PROBES = (
    "Hello, world!  Two  spaces\n\n\tand a tab.",
    " 12345 + 678 = 13,023",
    "Naïve café — 你好 🙂",
    "def f(x):\n    pass",
)
# What repackagers add to the name of a model whose weights they took over.
_REPACKED = re.compile(r"(-unsloth)?(-bnb)?(-[48]bit)?$")


class _Given:
    data = None
    estimates: ClassVar[dict[str, float]] = {}

    def measure_base(self, record: Record) -> None:
        """Nothing: without rows there is no loss on them."""


class GivenAdapter(_Given):
    """An adapter made elsewhere, on a copy of the base that shares its weights."""

    doing = "taking the adapter"

    def __init__(
        self, base: LoadedModel, config: RunConfig, given: TunedConfig, folder: Path
    ) -> None:
        """Put it on, before hours go into measuring the base.

        Raises:
            SlimdownError: an adapter for another base or task, a tokenizer that is not the base's, pickled weights.
        """
        import peft
        from safetensors import safe_open

        if problem := tuned_problem(folder):
            raise SlimdownError(f"{given.named}: {problem}")
        with explained(given):
            self.adapter: Any = peft.PeftConfig.from_pretrained(folder)
        _check_base(self.adapter, base, config, given)
        file = folder / "adapter_model.safetensors"
        with explained(given), safe_open(file, "pt") as saved:
            shapes = {key: tuple(saved.get_slice(key).get_shape()) for key in saved.keys()}  # noqa: SIM118 - no dict
            own = (
                load_tokenizer(folder)
                if (folder / "tokenizer_config.json").is_file()
                else base.tokenizer
            )
        tokenizer, self.notes = checked_tokenizer(base, own, config, given.named)
        model = _attached(base, self.adapter, folder, shapes, given.named)
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            tokenizer = base.tokenizer
            self.notes = [
                f"{given.named} was saved without embeddings of the tokens that its tokenizer adds: not used"
            ]
        weights = digest([base.identity["weights"], hashlib.sha256(file.read_bytes()).hexdigest()])
        tuned = replace(
            base,
            model=model,
            tokenizer=tokenizer,
            id=given.id,
            revision=resolved_revision(str(folder), "") if given.folder else folder.name,
            identity=identify(model, tokenizer, weights),
        )
        self._tuned = Tuned(tuned, training=None)
        # Asked in turn, both would hold the values of 4-bit weights, for twice the memory that is known to be free.
        is_unpacked = config.quantization.dequantize_for_evaluation.lower() != "false"
        self.keeps_base = not (is_unpacked and any(map(is_4bit, base.model.modules())))

    def obtain(
        self, folder: Path, on_step: OnStep, on_progress: OnProgress, *unused: object
    ) -> Tuned:
        """The base with the adapter on."""
        return self._tuned


class GivenModel(_Given):
    """A whole model made elsewhere, loaded as the base was: what differs is the tuning and not the rounding."""

    doing = "loading the tuned model"
    keeps_base = False

    def __init__(self, base: LoadedModel, config: RunConfig, given: TunedConfig) -> None:
        """Check that both can be asked alike, before hours go into measuring the base.

        Raises:
            SlimdownError: files that cannot be had or read, pickled weights, a tokenizer that is not the base's.
        """
        self.adapter, own = outline(given)  # of the model without its numbers
        self._tokenizer, self.notes = checked_tokenizer(base, own, config, given.named)
        shapes = [model.config.get_text_config() for model in (base.model, self.adapter)]
        for key in ("model_type", "num_hidden_layers", "hidden_size", "intermediate_size"):
            before, after = (getattr(shape, key, None) for shape in shapes)
            if before != after:
                self.notes.append(
                    f"{given.named} is another model than {base.id}: its {key} is {after} and not {before}"
                )
        if getattr(self.adapter.config, "quantization_config", None):
            self.notes.append(
                f"{given.named} is stored quantized: what that changed is measured along with its tuning"
            )
        self._base, self._given, self._quantization = base, given, config.quantization

    def obtain(
        self, folder: Path, on_step: OnStep, on_progress: OnProgress, *unused: object
    ) -> Tuned:
        """The tuned model; the base makes room for it and is no model any longer.

        Raises:
            SlimdownError: see `load_model`.
        """
        for tensor in chain(self._base.model.parameters(), self._base.model.buffers()):
            tensor.data = tensor.data.new_empty(0)
        release_memory()
        tuned = load_model(self._given, self._quantization)
        identity = identify(tuned.model, self._tokenizer, tuned.identity["weights"])
        return Tuned(replace(tuned, tokenizer=self._tokenizer, identity=identity), training=None)


def fetched(given: TunedConfig) -> Path:
    """The folder that holds it, of a model on the hub all but its weights.

    Raises:
        SlimdownError: it cannot be had.
    """
    import huggingface_hub

    if given.folder:
        return given.folder
    wanted = ["*.json", "*.jinja", "*.model", "*.txt", "adapter_model.safetensors"]
    with explained(given):
        folder = huggingface_hub.snapshot_download(
            given.id, revision=given.revision, allow_patterns=wanted, ignore_patterns="*/*"
        )
    return Path(folder)


def checked_tokenizer(
    base: LoadedModel, own: Any, config: RunConfig, named: str
) -> tuple[Any, list[str]]:
    """The tokenizer that a tuned model came with, made to ask as the base is asked, and what to know of it.

    Raises:
        SlimdownError: it is not the base's with tokens added.
    """
    known, its = base.tokenizer.get_vocab(), own.get_vocab()
    if unlike := [token for token, i in known.items() if its.get(token) != i]:
        raise SlimdownError(
            f"{named} has another tokenizer than {base.id}: {len(unlike):,} of {len(known):,} tokens are not in it or "
            f"have another number, {unlike[0]!r} for one; give the base that it was made from, model.id=..."
        )
    for text in _PROBES:
        if own(text).input_ids != base.tokenizer(text).input_ids:
            raise SlimdownError(
                f"{named} has another tokenizer than {base.id}: it cuts {text!r} into other tokens"
            )
    notes = []
    if added := sorted(its.keys() - known.keys(), key=its.__getitem__):
        several = f"{', '.join(added[:3])}{', ...' if len(added) > 3 else ''}"
        notes.append(f"{named} adds {len(added):,} to the tokens of {base.id}: {several}")
    if own.chat_template != base.tokenizer.chat_template:
        own.chat_template = base.tokenizer.chat_template
        if config.evaluation.apply_chat_template:
            notes.append(
                f"{named} has a chat template of its own; both models are asked through that of {base.id}"
            )
    return own, notes


def _check_base(adapter: Any, base: LoadedModel, config: RunConfig, given: TunedConfig) -> None:
    """Refuse an adapter for other models than causal ones, or made on another of the hub than the base."""
    if adapter.task_type not in (None, "CAUSAL_LM"):
        raise SlimdownError(
            f"{given.named} is an adapter for {adapter.task_type}; only CAUSAL_LM can be asked questions"
        )
    adapter.task_type = "CAUSAL_LM"
    made_on = str(adapter.base_model_name_or_path or "")
    if not config.model.folder and is_another(made_on, base.id) and _is_on_hub(made_on):
        raise SlimdownError(
            f"{given.named} was made on {made_on}, and the base is {base.id}; set model.id={made_on}, or where the two "
            f"are the same, correct base_model_name_or_path in its adapter_config.json"
        )


def is_another(made_on: str, base: str) -> bool:
    """Whether both name models of the hub, and not the same one in the hands of another owner.

    >>> is_another("unsloth/Llama-3.2-1B-unsloth-bnb-4bit", "meta-llama/Llama-3.2-1B")
    False
    >>> is_another("meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-1B"), is_another("./mine", "a/b")
    (True, False)
    """
    names = [_REPACKED.sub("", id_.rpartition("/")[2].lower()) for id_ in (made_on, base)]
    return (
        re.fullmatch(r"[\w.-]+/[\w.-]+", made_on) is not None
        and made_on[0] != "."
        and names[0] != names[1]
    )


def _is_on_hub(id_: str) -> bool:
    """False where the hub says that it has no such model: then it names a folder of somebody's machine."""
    import huggingface_hub

    try:
        return huggingface_hub.repo_exists(id_)
    except Exception:  # offline, or a helper that fails: the name is all there is
        return True


def _attached(
    base: LoadedModel, adapter: Any, folder: Path, shapes: dict[str, tuple[int, ...]], named: str
) -> Any:
    """The base's model with the adapter on, in evaluation mode; the base's own is left as it is.

    Raises:
        SlimdownError: PEFT cannot put it on, or some of its weights find no place.
    """
    import peft

    wrong: list[str] = []
    try:
        adapter.inference_mode = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they warn of is looked at here
            tuned = peft.PeftModelForCausalLM(_twin(base.model, adapter, shapes), adapter)
            loaded = tuned.load_adapter(folder, "default", torch_device=base.device)
        unplaced = (
            [] if adapter.is_prompt_learning else loaded.unexpected_keys
        )  # prompts it loads by themselves
        unplaced = [
            key for key in unplaced if ".modules_to_save." not in key
        ]  # a second copy, of resized embeddings
        if homeless := sorted([*loaded.missing_keys, *unplaced]):
            wrong = [
                f"{len(homeless):,} of its weights are missing or find no place, {homeless[0]} for one"
            ]
        else:
            check_numbers(named, tuned.eval())
    except SlimdownError:
        raise
    except Exception as error:  # PEFT has another type for each kind of adapter
        wrong = [" ".join(f"{error}".split())[:300]]
    if wrong:
        other = (
            "" if base.quantization == "none" else ", or is of a kind that needs quantization=none"
        )
        raise SlimdownError(
            f"{named} does not fit on {base.id}: it was made on another base{other} ({wrong[0]})"
        )
    return tuned


# Ways to begin a LoRA that leave the base's weights as they are; others change them when it is put on again, too.
_LEAVING = (None, True, False, "gaussian", "eva", "orthogonal", "mica")


def _twin(model: Any, adapter: Any, shapes: dict[str, tuple[int, ...]]) -> Any:
    """A copy of `model` that shares the weights which the adapter does not write, with as many embeddings as it has."""
    tensors = dict(chain(model.named_parameters(remove_duplicate=False), model.named_buffers()))
    saved = {
        key.removeprefix("base_model.model.").replace(".base_layer.", "."): key for key in shapes
    }
    written = {id(tensor) for name, tensor in tensors.items() if name in saved}
    shared = [tensor for tensor in tensors.values() if id(tensor) not in written]
    if getattr(adapter, "init_lora_weights", None) not in _LEAVING or getattr(
        adapter, "kasa_config", None
    ):
        shared = []
    twin = sharing_copy(model, shared)
    embeddings = model.get_input_embeddings().weight
    for name in (
        name for name, tensor in tensors.items() if tensor is embeddings and name in saved
    ):
        if (n_rows := shapes[saved[name]][0]) != embeddings.shape[0]:
            twin.resize_token_embeddings(
                n_rows, mean_resizing=False
            )  # their values are in the file
            break
    return twin
