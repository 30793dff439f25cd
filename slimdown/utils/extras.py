"""Packages that only a part of slimdown needs, and what installs them."""

from collections.abc import Iterator
from contextlib import contextmanager

from slimdown.utils.errors import ConfigError

# Modules of the extra `train`: what the light install, which judges logs, does without.
_TRAIN = {
    *("accelerate", "bitsandbytes", "datasets", "filelock", "huggingface_hub", "hydra", "lm_eval"),
    *("mlflow", "omegaconf", "pandas", "peft", "psutil", "regex", "torch", "tqdm"),
    *("transformers", "trl"),
}


def name_install(extra: str) -> str:
    """Return the line that installs an extra.

    It names a folder: until slimdown is released, its name on PyPI may be anybody's.
    """
    return f"in your clone of slimdown: pip install '.[{extra}]'"


@contextmanager
def explain_missing_packages() -> Iterator[None]:
    """Inside, if the light install lacks a package, an error names the line that installs it.

    Raises:
        ConfigError: The package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _TRAIN:
            raise
        text = f"this needs {package}, which is not installed; {name_install('train')}"
        raise ConfigError(text) from error
