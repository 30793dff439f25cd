"""What the library that trains cannot, said before anything is loaded."""

from collections.abc import Iterator
from importlib.util import find_spec

from slimdown.config.method import Method
from slimdown.config.schema import Engine, RunConfig


def engine_problems(config: RunConfig) -> Iterator[str]:
    """What keeps `train.engine` from training a run of these settings."""
    if config.train.engine is not Engine.unsloth or config.tuned is not None:
        return
    if find_spec("unsloth") is None:  # which imports nothing
        yield "train.engine=unsloth: Unsloth is not installed; pip install 'slimdown[unsloth]', or train.engine=trl"
        return
    unable = []
    if config.method.name not in (Method.lora, Method.rslora):
        unable.append(f"method={config.method.name}; it trains method=lora and method=rslora")
    if "lm_head" in config.lora.target_modules:
        unable.append(
            "an adapter on lm_head, which it trains whole; leave it out of lora.target_modules"
        )
    quantization, dtype = config.quantization, config.quantization.bnb_4bit_compute_dtype
    if quantization.name not in ("nf4", "none"):
        unable.append(
            f"quantization={quantization.name}; it trains on quantization=nf4 and quantization=none"
        )
    elif quantization.load_in_4bit and not quantization.bnb_4bit_use_double_quant:
        unable.append(
            "scales that are not quantized; set quantization.bnb_4bit_use_double_quant=true"
        )
    elif quantization.load_in_4bit and dtype != config.model.dtype:
        unable.append(f"4-bit layers that compute in another dtype; set model.dtype={dtype}")
    if quantization.load_in_4bit and quantization.dequantize_for_training.lower() == "true":
        unable.append("dequantized values; leave out quantization.dequantize_for_training=true")
    for what in unable:
        yield f"train.engine=unsloth: Unsloth cannot train {what}, or set train.engine=trl"
