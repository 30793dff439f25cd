"""Fine-tune a small language model with QLoRA and measure what it learned and what it lost."""

__version__ = "0.1.0"
