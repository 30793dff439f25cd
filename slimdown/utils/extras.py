"""Packages that only a part of slimdown needs, and what installs them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution

from slimdown.utils.errors import ConfigError

# Modules of the extra `train`: what the light install, which judges logs, does without.
_TRAIN = {
    *("accelerate", "bitsandbytes", "datasets", "filelock", "huggingface_hub", "hydra"),
    *("jsonschema", "lm_eval", "mlflow", "omegaconf", "pandas", "peft", "psutil", "py3langid"),
    *("referencing", "regex", "torch", "tqdm", "transformers", "trl"),
}


def name_install(extra: str) -> str:
    """Return the line that installs an extra, from the place where slimdown was installed from.

    pip writes this place beside the package (PEP 610). If it is no repository, the line installs
    from a clone. It never names PyPI: until slimdown is released, its name there may be anybody's.

    Args:
        extra: A name of `project.optional-dependencies`, such as `train`.
    """
    try:
        written = distribution("slimdown").read_text("direct_url.json")
    except PackageNotFoundError:  # a clone that is not installed
        written = None
    origin = json.loads(written) if written else {}
    if repository := origin.get("vcs_info"):  # `vcs` is the program, such as git
        return f"pip install 'slimdown[{extra}] @ {repository['vcs']}+{origin['url']}'"
    return f"in your clone of slimdown: pip install '.[{extra}]'"


@contextmanager
def explain_missing_packages() -> Iterator[None]:
    """Inside, if the light install lacks a package, an error names the line that installs it.

    Other missing packages raise the `ModuleNotFoundError` of Python.

    Raises:
        ConfigError: A package of the extra `train` is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _TRAIN:  # installing the extra would not help
            raise
        text = f"this needs {package}, which is not installed; {name_install('train')}"
        raise ConfigError(text) from error
