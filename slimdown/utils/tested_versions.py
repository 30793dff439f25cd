"""Which versions of libraries slimdown was tested with, and what to do after one has changed."""

import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import Requirement
from packaging.version import Version

from slimdown.utils.errors import SlimdownError, list_causes
from slimdown.utils.versions import find_version

PRIVATE_NAMES = {  # by package; docs/private_interfaces.md says where and why they are used
    "bitsandbytes": ("support_avx512bf16_for_cpu",),
    "lm-eval": (
        *("_instances", "_loglikelihood_tokens", "_model_generate"),
        "normalize_gen_kwargs",
    ),
    "peft": ("_adapters_disabled",),
    "torch": ("_forward_hooks", "_version"),
    "transformers": (
        *("_attn_implementation", "_keys_to_ignore_on_load_unexpected", "_n_gpu"),
        *("_hf_peft_config_loaded", "_supports_attention_backend"),
        "AutoQuantizationConfig",
    ),
}


class LibraryError(SlimdownError):
    """A library has changed what slimdown uses of it; the message says how to go back."""


@cache  # the metadata is read from the disk
def find_tested_ranges() -> dict[str, Requirement]:
    """Return the versions that slimdown's extra `train` allows, by package."""
    try:
        lines = requires("slimdown") or []
    except PackageNotFoundError:  # a checkout that is not installed
        return {}
    requirements = map(Requirement, lines)
    return {
        requirement.name: requirement
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate({"extra": "train"})
    }


def find_untested() -> Iterator[tuple[str, str]]:
    """Yield the installed packages whose version was not tested, each with a sentence on it."""
    for package, requirement in find_tested_ranges().items():
        installed = find_version(package)
        if installed and not requirement.specifier.contains(installed, prereleases=True):
            floors = [s.version for s in requirement.specifier if s.operator in (">=", "~=")]
            is_old = any(Version(installed) < Version(floor) for floor in floors)
            age = "older" if is_old else "newer"
            tested = f"{package}{requirement.specifier}"
            yield (
                package,
                f"{package} {installed} is {age} than the versions that slimdown was tested with; "
                f"install one of those: pip install '{tested}'",
            )


def require_names(owner: object, package: str, *names: str) -> None:
    """Raise an error if an object or class lacks names of a library that slimdown relies on.

    Raises:
        LibraryError: One is missing.
    """
    for name in names:
        if not hasattr(owner, name):
            raise LibraryError(describe_change(package, name))


def explain_library_change(error: BaseException) -> str:
    """Return what an error says if a library has probably caused it; empty if it has not.

    The error's text names something that slimdown uses without the library's promise, or the error
    is of the kind that a renamed function or argument causes and a library has an untested version.

    Args:
        error: What was raised.
    """
    kinds = (AttributeError, ImportError, TypeError)
    causes = [cause for cause in list_causes(error) if isinstance(cause, kinds)]
    for cause in causes:
        quoted = set(re.findall(r"'(?:\w+\.)*(\w+)'", str(cause)))
        for package, names in PRIVATE_NAMES.items():
            if name := next((name for name in names if name in quoted), ""):
                return describe_change(package, name)
    untested = dict(find_untested()) if causes else {}
    if not untested:
        return ""
    what = f"{type(causes[0]).__name__}: {causes[0]}"
    return f"{what}\nA library may have changed: {' '.join(untested.values())}"


def describe_change(package: str, name: str) -> str:
    """Say that a library lacks a name of `PRIVATE_NAMES`, or changed it, and how to go back."""
    requirement = find_tested_ranges().get(package)
    tested = f"{package}{requirement.specifier if requirement else ''}"
    return (
        f"{package} {find_version(package)} lacks {name}, or has changed it; slimdown needs that. "
        f"slimdown was tested with {tested}; install such a version: pip install '{tested}'"
    )
