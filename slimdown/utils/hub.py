"""Explain errors of the Hugging Face hub in one line each. huggingface_hub does the retries."""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from slimdown.utils.errors import ModelError, SlimdownError, describe_error, list_causes
from slimdown.utils.tested_versions import explain_library_change

# What errors mean, as the end of a sentence whose subject is the model or dataset. A key holds
# names of error classes, or HTTP statuses, with spaces between them. The first key is taken that
# fits the error or one of its causes. Classes are given by name: importing them takes a second.
_BY_CLASS = {
    "GatedRepoError": "is gated: accept its licence at https://huggingface.co/{repo}, then log in "
    "with `hf auth login` or set HF_TOKEN; or choose an open one, e.g. model=smollm2",
    "RepositoryNotFoundError DatasetNotFoundError": "is not on the hub, or is private: check the "
    "spelling of OWNER/NAME, or log in with `hf auth login`",
    "RevisionNotFoundError": "has no such branch, tag or commit; leave the revision out for the "
    "newest",
    "SafetensorError": "has a .safetensors file that is damaged; download it again",
    "5xx": "cannot be reached: the hub failed with status {status}; try again in a few minutes",
    "401 403 404": "is refused by the hub; check its spelling, HF_ENDPOINT and `hf auth login`",
    "429": "cannot be reached: too many questions came to the hub; wait, or run `hf auth login`",
    "HTTPError ConnectionError LocalEntryNotFoundError TimeoutError": "cannot be reached: the hub "
    "does not answer and the local cache does not hold it; check the network and HF_ENDPOINT, or "
    "try the pocket world, which needs no hub: slimdown run",
}
# The files of a model that hold a JSON object.
_OBJECTS = [f"{name}.json" for name in ("config", "generation_config", "adapter_config")]
_OBJECTS += ["tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"]
# The same by a pattern of the message: transformers has no class for these errors.
_BY_TEXT = {
    "`ignore_mismatched_sizes`": "has weights of other shapes than its config.json describes; get "
    "it again",
    "`trust_remote_code=True`": "needs code of its own, which slimdown does not run; choose "
    "another",
    r"(no|a) file named \S+\.safetensors|No such file .*\.safetensors": "has no safetensors "
    "weights, and pickled ones can run code when they are read; choose a revision or a copy with "
    ".safetensors files",
}


@contextmanager
def explain_hub_errors(
    setting: str, error_class: type[SlimdownError] = ModelError
) -> Iterator[None]:
    """Inside, turn whatever fetching and reading raises into one line that says how to go on.

    Args:
        setting: The setting that names the repository or folder, such as `model.id=OWNER/NAME` or
            `tuned=OWNER/NAME@REVISION`. The message begins with it.
        error_class: The class of the error that is raised: ModelError or DataError.

    Raises:
        SlimdownError: An error of `error_class` that explains another error. A `SlimdownError` that
            was raised inside is raised as it is.
    """
    try:
        yield
    except SlimdownError:
        raise  # it already says how to go on
    except Exception as error:
        named = setting.partition("=")[2]
        repo = re.split("[ @]", named)[0]  # without the revision that may follow
        reason = _find_reason(error, Path(named).expanduser()).replace("{repo}", repo)
        raise error_class(f"{setting} {reason}") from error


def is_silence(error: SlimdownError) -> bool:
    """Whether an explained error means that the hub does not answer although it was asked."""
    from huggingface_hub import constants

    return "the hub does not answer" in str(error) and not constants.HF_HUB_OFFLINE


def _find_reason(error: Exception, folder: Path) -> str:
    """Return what an error means, as the end of a sentence; `{repo}` in it is the repository.

    Args:
        error: What a library raised.
        folder: Where the model is, if it is a local one. No such folder: it is on the hub.
    """
    causes = list_causes(error)
    text = " ".join(map(str, causes))
    # Of a server that is not the hub, HTTP's status code is all that says what is wrong.
    statuses = re.findall(r"error '(\d+)", text)
    # What may be in a key of `_BY_CLASS`: these status codes, and the names of the classes of the
    # error and of its causes, with their base classes.
    signs = {*statuses, *(kind.__name__ for cause in causes for kind in type(cause).__mro__)}
    failure = next((status for status in statuses if status.startswith("5")), "")
    if failure:
        signs.add("5xx")
    for names, reason in _BY_CLASS.items():
        if signs & {*names.split()}:
            return reason.replace("{status}", failure)
    for words, reason in _BY_TEXT.items():
        if re.search(words, text):
            return reason
    if damaged := find_damaged(folder):
        return f"cannot be loaded: {damaged} is damaged; get it again"
    return f"cannot be loaded: {explain_library_change(error) or describe_error(error)}"


def find_damaged(folder: Path) -> str:
    """Return the name of a file that should hold a JSON object and does not.

    Args:
        folder: A model's or an adapter's folder, which may lack some of these files.

    Returns:
        The name of the first such file; empty if all are sound.
    """
    for name in _OBJECTS:
        if (file := folder / name).is_file():
            try:
                is_sound = isinstance(json.loads(file.read_text("utf-8")), dict)
            except (OSError, ValueError, RecursionError):
                is_sound = False
            if not is_sound:
                return name
    return ""


def ask_hub(repo: str, revision: str = "main", kind: str = "model") -> None:
    """Check that the hub has a repository and its revision, and gives access to it.

    An overloaded hub is asked three times. A hub that is silent or cannot be found is asked once.

    Args:
        repo: OWNER/NAME.
        revision: A branch, tag or commit.
        kind: "model" or "dataset".

    Raises:
        Exception: An error of huggingface_hub, see `explain_hub_errors`.
    """
    from huggingface_hub import constants, hf_hub_url, utils

    http: Any = utils  # mypy does not see the names that it exports
    # Only access is asked for. Most models have this file, and one without it is no error.
    url = hf_hub_url(repo, "config.json", repo_type=kind, revision=revision)
    options = {"max_retries": 2, "retry_on_exceptions": (), "headers": http.build_hf_headers()}
    options["timeout"] = constants.HF_HUB_ETAG_TIMEOUT
    with suppress(http.EntryNotFoundError):  # the repository is there, and lacks this file
        http.hf_raise_for_status(http.http_backoff("HEAD", url, **options))
    resolve_commit(repo, revision, kind)  # fails if the server is not a hub


def check_repositories(repositories: Iterable[tuple[str, str, str, str]]) -> Iterator[str]:
    """Ask the hub once for each repository that the local cache does not hold.

    Args:
        repositories: For each repository, the setting that names it, its id, its revision, and
            "model" or "dataset". If several settings name the same repository, the line on its
            problem begins with the last of them.

    Yields:
        One line for each problem; if the hub does not answer, one line for all.
    """
    unreachable: list[str] = []  # the settings that name them, once the hub does not answer
    reason = ""  # of that, as the end of a line
    settings = {(repo, revision, kind): setting for setting, repo, revision, kind in repositories}
    for (repo, revision, kind), setting in settings.items():
        if _find_cached_commit(repo, revision, kind):
            continue
        if unreachable:  # the hub is not asked again: each question would wait as long
            unreachable.append(setting)
            continue
        try:
            with explain_hub_errors(setting):
                ask_hub(repo, revision, kind)
        except SlimdownError as error:
            if "cannot be reached" in str(error):
                unreachable.append(setting)
                reason = str(error).removeprefix(setting)
            else:
                yield str(error)
    if unreachable:
        yield ", ".join(unreachable) + reason


def find_file(source: str, name: str, revision: str) -> Path:
    """Return a file of a model: in its folder, or in the hub's cache, after a download if needed.

    Args:
        source: The model's folder, or OWNER/NAME.
        name: The file's path inside.
        revision: A branch, tag or commit; of no meaning for a folder.

    Raises:
        FileNotFoundError: The model has no such file, or nobody can tell without the hub.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if Path(source).is_dir():
        file = Path(source, name)
        if file.is_file():
            return file
    else:
        with suppress(RemoteEntryNotFoundError):
            return Path(hf_hub_download(source, name, revision=revision))
    raise FileNotFoundError(f"{source} has no file named {name}")


def _find_cached_commit(repo: str, revision: str, kind: str) -> str:
    """Return the commit of a branch or tag as the local cache knows it; empty if it does not.

    Args:
        repo: OWNER/NAME.
        revision: A branch, tag or commit.
        kind: "model" or "dataset".
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with suppress(LocalEntryNotFoundError):  # the folder has the commit's name
        folder = snapshot_download(repo, revision=revision, repo_type=kind, local_files_only=True)
        return Path(folder).name
    return ""


@cache
def resolve_commit(repo: str, revision: str, repo_type: str = "model") -> str:
    """Return the commit of a branch or tag, from the local cache if the hub gives none.

    A process asks only once for each branch or tag. A commit is returned as it is, without asking.

    Args:
        repo: OWNER/NAME.
        revision: A branch, tag or commit.
        repo_type: "model" or "dataset".

    Raises:
        OSError: Neither the hub nor the cache knows the branch or tag.
    """
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi, constants

    options: Any = {"repo_type": repo_type, "timeout": constants.HF_HUB_ETAG_TIMEOUT}
    try:
        found = HfApi().repo_info(repo, revision=revision, **options).sha
        # If a server that is no hub answers with something else, the list is empty, which raises.
        return str(re.findall(r"\A[0-9a-f]{40}\Z", str(found))[0])
    except Exception as error:  # whatever it is: if it matters, loading meets it again
        if commit := _find_cached_commit(repo, revision, repo_type):
            return commit
        message = f"{repo} is neither on the hub nor in the local cache; check HF_ENDPOINT"
        raise FileNotFoundError(message) from error
