"""What decides how a model is served beside its weights.

Chat template, BOS, where answers end, and settings of generation that change a greedy answer.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from slimdown.config.schema import ModelConfig, TunedModelConfig
from slimdown.models.base_model import load_tokenizer
from slimdown.models.gguf_file import KNOWN_ENDS, read_gguf_header
from slimdown.models.quiet import quiet_libraries
from slimdown.utils.hub import explain_hub_errors
from slimdown.utils.time_limit import limit_time

_SHOWN = 24  # characters of two templates, or of two settings, where they differ
# Of generation_config.json, what changes a greedy answer, and the value at which it changes nothing
_GENERATION: dict[str, Any] = {"repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0}
_GENERATION |= {"no_repeat_ngram_size": 0, "min_length": 0, "num_beams": 1}
_OFF_AT_NONE = ["suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias"]
_OFF_AT_NONE += ["forced_bos_token_id", "forced_eos_token_id", "min_new_tokens", "guidance_scale"]
_GENERATION |= dict.fromkeys([*_OFF_AT_NONE, "exponential_decay_length_penalty"])


@dataclass(frozen=True)
class Serving:
    """How a model's own files have it served.

    Attributes:
        chat_template: None where the files hold none.
        bos, eos: The tokens that begin and end a text; None where there is none.
        tokenizer_puts_bos: Whether the tokenizer puts BOS before a prompt.
        template_writes_bos: Whether the chat template begins a prompt with BOS.
        stops: The texts of the tokens that end an answer, sorted.
        generation: Further settings of generation that change a greedy answer, by name.
    """

    chat_template: str | None
    bos: str | None
    eos: str | None
    tokenizer_puts_bos: bool
    template_writes_bos: bool
    stops: tuple[str, ...]
    generation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def says_bos_twice(self) -> bool:
        """Whether a prompt of its chat template begins with two BOS, if nobody takes one away."""
        return self.tokenizer_puts_bos and self.template_writes_bos

    @property
    def start(self) -> str | None:
        """What the tokenizer puts before a plain prompt; None: nothing."""
        return self.bos if self.tokenizer_puts_bos else None

    def doubles_bos(self, before: "Serving") -> bool:
        """Return whether a prompt of its chat template has two BOS, and that of another stage not.

        If both would have two, whoever serves them takes one away, as the harness does.
        """
        return self.says_bos_twice and not before.says_bos_twice


def read_serving(
    config: ModelConfig, folder: Path, before: Serving | None = None
) -> Serving | None:
    """Read how a model is served from its files.

    Args:
        config: Which model, for its GGUF file and for messages.
        folder: Where its files are.
        before: The stage that it is compared with. If a folder lists no stop tokens, as that of an
            adapter, the stop tokens of `before` are added to the tokenizer's EOS. If the model is
            a GGUF file, only those are added that llama.cpp recognizes by their text.

    Returns:
        None if the folder has no tokenizer: then the base's files decide.

    Raises:
        ModelError: A file is damaged.
    """
    # A tuned model names its GGUF file itself, a base by an option of transformers.
    file = config.gguf if isinstance(config, TunedModelConfig) else None
    if file is None and "gguf_file" in config.gguf_args:
        file = folder / config.gguf_args["gguf_file"]
    if file:
        return _read_gguf(file, config.named, before)
    if not (folder / "tokenizer_config.json").is_file():
        return None
    with explain_hub_errors(config.named), quiet_libraries():
        tokenizer = load_tokenizer(folder)
        bos, eos = tokenizer.bos_token, tokenizer.eos_token
        stop_ids = _read_stop_ids(folder)
        if stop_ids is not None:
            stops = tokenizer.convert_ids_to_tokens(stop_ids)
        else:  # the folder holds no model, but an adapter for that of `before`
            stops = before.stops if before else ()
        template = tokenizer.chat_template
        if isinstance(template, dict):  # several, by name
            template = template.get("default")
        # Any text shows whether the tokenizer puts BOS before it.
        tokenizer_puts_bos = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
        generation = _read_generation(folder, before)
    return Serving(
        chat_template=template,
        bos=bos,
        eos=eos,
        tokenizer_puts_bos=tokenizer_puts_bos,
        template_writes_bos=_begins_with_bos(template, bos, eos),
        stops=_list_once([eos, *stops]),
        generation=generation,
    )


def _read_generation(folder: Path, before: Serving | None) -> Mapping[str, Any]:
    """Return the settings of generation that change a greedy answer; of an adapter, its base's."""
    if (file := folder / "generation_config.json").is_file():
        settings = json.loads(file.read_text("utf-8"))
        generation = {}
        for name, value_without_effect in _GENERATION.items():
            if settings.get(name) not in (None, value_without_effect, []):
                generation[name] = settings[name]
        return generation
    is_adapter = before is not None and not (folder / "config.json").is_file()
    return before.generation if before and is_adapter else {}


def _read_stop_ids(folder: Path) -> list[int] | None:
    """Return the ids that end an answer by the settings of generation, or else of the model.

    None: the folder holds no model.
    """
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            ids = json.loads((folder / name).read_text("utf-8")).get("eos_token_id")
            if ids is not None:
                return ids if isinstance(ids, list) else [ids]
    return [] if (folder / "config.json").is_file() else None


def _read_gguf(file: Path, setting: str, before: Serving | None) -> Serving:
    """Read how a GGUF file is served; see `read_serving`."""
    header = read_gguf_header(file, setting)
    # Stop tokens of the stage before that llama.cpp recognizes in this vocabulary by their text.
    known_stops = KNOWN_ENDS.intersection(header.tokens, before.stops if before else ())
    return Serving(
        chat_template=header.chat_template,
        bos=header.bos,
        eos=header.eos,
        tokenizer_puts_bos=header.puts_bos and header.bos is not None,
        template_writes_bos=_begins_with_bos(header.chat_template, header.bos, header.eos),
        stops=_list_once([header.eos, header.eot, *known_stops]),
        # The file holds no such settings, and a server has its own: none counts as different.
        generation=before.generation if before else {},
    )


def _list_once(tokens: list[str | None]) -> tuple[str, ...]:
    """Return the tokens that there are, sorted, each once."""
    return tuple(sorted({token for token in tokens if token}))


def _begins_with_bos(template: str | None, bos: str | None, eos: str | None) -> bool:
    """Return whether a chat template begins a prompt with BOS; False if the template fails."""
    from transformers.utils import chat_template_utils

    if not template or not bos:
        return False
    render: Any = chat_template_utils.render_jinja_template
    question = [{"role": "user", "content": "What is 2 + 2?"}]
    names = {"bos_token": bos, "eos_token": eos or "", "add_generation_prompt": True}
    # The template is the publisher's program, which may raise anything.
    with suppress(Exception), limit_time("the chat template"):
        [prompt], _ = render([question], chat_template=template, **names)
        return str(prompt).startswith(bos)
    return False


def build_served_tokenizer(place: Path, serving: Serving, asked_by: Any) -> Any:
    """Build the tokenizer that a model is served with: a folder's own, or as a GGUF file says it.

    Args:
        place: The folder or the file.
        serving: What `read_serving` read from it.
        asked_by: The tokenizer with which tuned model and base are asked the same prompts. It
            gives what the model's own files lack: chat template, BOS or EOS.
    """
    from tokenizers.processors import TemplateProcessing

    if place.is_dir():
        with quiet_libraries():
            tokenizer = load_tokenizer(place)
        # The harness needs an EOS; this one ends no answer, see `AskingRules.stops_alone`.
        tokenizer.eos_token = serving.eos or asked_by.eos_token
    else:  # a GGUF file has the vocabulary of `asked_by`, and its own rule for BOS
        tokenizer = copy.deepcopy(asked_by)
        tokenizer.bos_token = serving.bos or asked_by.bos_token
        tokenizer.eos_token = serving.eos or asked_by.eos_token
        put_before = [serving.bos] if serving.bos and serving.tokenizer_puts_bos else []
        # $A and $B stand for the texts that are encoded.
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=[*put_before, "$A"],
            pair=[*put_before, "$A", "$B:1"],
            special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos)) for bos in put_before],
        )
    tokenizer.chat_template = serving.chat_template or asked_by.chat_template
    return tokenizer


def compare_serving(after: Serving, before: Serving, name: str = "the stage before") -> list[str]:
    """List what differs between serving a stage and serving the one before, a line each.

    Args:
        after: The stage.
        before: The stage before it.
        name: What the stage before is called.
    """
    lines = [
        *compare_templates(after.chat_template, before.chat_template, name),
        *_compare_bos(after, before, name),
        *_compare_stops(after, before, name),
    ]
    for setting, (value, value_before) in find_other_generation(after, before).items():
        other = _shorten(value_before)
        lines.append(f"generates with {setting}={_shorten(value)}; {name} with {other}")
    return lines


def find_other_generation(after: Serving, before: Serving) -> dict[str, tuple[Any, Any]]:
    """Find the settings of generation that differ.

    Returns:
        By name, the values after and before; None where a stage does not use the setting.
    """
    differing = {}
    for name in _GENERATION:
        value, value_before = after.generation.get(name), before.generation.get(name)
        if value != value_before:
            differing[name] = value, value_before
    return differing


def _shorten(value: Any) -> str:
    shown = "none" if value is None else str(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def compare_templates(after: str | None, before: str | None, name: str) -> Iterator[str]:
    """Say in a line how a chat template differs from that of the stage before, if it does.

    Args:
        after: The template; None or empty: there is none.
        before: That of the stage before.
        name: What the stage before is called.
    """
    text, text_before = (after or "").strip(), (before or "").strip()
    if text == text_before:
        return
    if not text:
        yield f"chat template: none; {name} has one"
    elif not text_before:
        yield f"chat template: one of its own; {name} has none"
    else:
        # How many characters are the same from the beginning.
        pairs = zip(text, text_before, strict=False)
        n_same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        rest, rest_before = text[n_same:], text_before[n_same:]
        part = repr(rest[:_SHOWN]) if rest else "its end"
        part_before = repr(rest_before[:_SHOWN]) if rest_before else "its end"
        difference = f"it first differs at {part}, where {name} has {part_before}"
        yield f"chat template: another one; {difference}"


def _compare_bos(after: Serving, before: Serving, name: str) -> Iterator[str]:
    """Say in a line how the use of BOS differs, if it does; see `compare_serving`."""
    start, start_before = after.start or "nothing", before.start or "nothing"
    if after.doubles_bos(before):
        twice = "twice, where the server takes none away"
        yield f"puts {after.bos} before a prompt that begins with {after.bos} already: {twice}"
    elif start != start_before:
        yield f"puts {start} before a prompt; {name} puts {start_before}"
    elif after.bos != before.bos and before.bos and "bos_token" in (after.chat_template or ""):
        yield f"begins a text with {after.bos or 'nothing'}; {name} with {before.bos}"


def _compare_stops(after: Serving, before: Serving, name: str) -> Iterator[str]:
    """Say in a line how the stop tokens differ, if they do; see `compare_serving`."""
    if after.stops != before.stops:
        stops, stops_before = (", ".join(s.stops) or "no token" for s in (after, before))
        yield f"ends an answer at {stops}; {name} at {stops_before}"
