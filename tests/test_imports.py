"""What is cut short while a run's libraries are imported: they find what they would have found."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import subprocess
import sys
from typing import Any

import pytest
import transformers
from packaging.version import Version

from slimdown.models import imports

OTHER_PROCESS = """
import functools, gc, importlib.metadata, inspect, json, sys
before = functools.lru_cache, importlib.metadata.packages_distributions, inspect.getmodule
from slimdown.models import imports
if sys.argv[1] == "quickly":
    with imports.imported_quickly():
        import slimdown.experiment
    was_on = gc.isenabled()
    imports.settle()
    imports.settle()
    states = [was_on, gc.isenabled(), gc.get_freeze_count() > 500_000]
else:
    import slimdown.experiment
    states = None
import torch, transformers, transformers.models
from trl.import_utils import _is_package_available
after = functools.lru_cache, importlib.metadata.packages_distributions, inspect.getmodule
def plain(names):
    if isinstance(names, dict):
        return {str(sorted(key)) if isinstance(key, frozenset) else key: plain(names[key]) for key in names}
    return sorted(names)
packages = ["torch", "transformers", "peft", "liger_kernel", "vllm", "PIL", "yaml", "trl"]
print(json.dumps({
    "states": states,
    "left": before == after and inspect.isfunction(torch.compile),
    "models": [plain(one._import_structure) for one in (transformers, transformers.models)],
    "found": [_is_package_available(name, return_version=True) for name in packages],
    "scipy": [transformers.utils.is_scipy_available(), "scipy.optimize" in sys.modules],
}))
"""


def imported(how: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, how], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_libraries_find_what_they_find_otherwise_and_nothing_is_left_in_their_place() -> None:
    quickly, usually = imported("quickly"), imported("usually")
    assert quickly.pop("states") == [False, True, True]
    assert usually.pop("states") is None
    is_found, is_imported = quickly.pop("scipy")
    assert is_found
    assert not is_imported or Version(transformers.__version__) < Version(
        "5.24"
    )  # older ones import it elsewhere
    usually.pop("scipy")
    assert quickly == usually
    assert quickly["left"]


def test_a_module_that_is_called_otherwise_than_its_distribution_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    distributions = imports._Distributions()
    assert distributions["torch"] == ["torch"]
    assert distributions["yaml"] == importlib.metadata.packages_distributions()["yaml"]
    assert distributions.get("no_such_module", []) == []
    with pytest.raises(KeyError):
        distributions["no_such_module"]


def test_a_frame_is_of_the_module_that_it_names() -> None:
    for one in (sys._getframe(), pytest.raises, sys._getframe().f_back):
        assert imports._getmodule(one) is inspect.getmodule(one) is not None
