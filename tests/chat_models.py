"""Chat templates of families of models, and tiny models that have them."""

from importlib.resources import files

from tiny_models import build_byte_tokenizer, build_tiny_model

from slimdown.models.base_model import LoadedModel
from slimdown.models.causal import wrap_model

CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
NO_SYSTEM = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
# As Granite 3.2 and SmolLM3 switch thinking: by another name, and in the system turn.
GRANITE = (
    "{%- for m in messages %}<|start|>{{ m.role }}<|stop|>{{ m.content }}\n{%- endfor %}"
    "{%- if add_generation_prompt %}<|start|>assistant"
    "{%- if thinking %}<|think|>{% endif %}<|stop|>{% endif %}"
)
SMOLLM3 = (
    "{%- set on = enable_thinking is not defined or enable_thinking %}"
    "{%- set mode = '/think' if on else '/no_think' %}"
    "{%- set first = messages[0].content if messages[0].role == 'system' else '' %}"
    "<|im_start|>system\n{{ first }}\n{{ mode }}<|im_end|>\n"
    "{%- for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{%- endfor %}{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{%- if mode == '/no_think' %}<think>\n\n</think>\n{% endif %}{% endif %}"
)


def read_template(family: str) -> str:
    if family in ("granite", "smollm3"):
        return GRANITE if family == "granite" else SMOLLM3
    return files("trl").joinpath(f"chat_templates/{family}.jinja").read_text()


def build_model(template: str | None, seed: int = 0) -> LoadedModel:
    tokenizer = build_byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.bos_token = "<|end|>"
    model = build_tiny_model("llama", seed, max_position_embeddings=4096)
    return wrap_model(model, tokenizer)
