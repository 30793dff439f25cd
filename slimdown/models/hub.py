"""The Hugging Face hub, asked again where it fails for a moment.

huggingface_hub 2.4 asks again for listings and downloads, and only once for most other things; where it gives up,
transformers takes an optional file for absent, and loads another tokenizer than was published. To be deleted when
`http_backoff` carries every request of hf_hub_download.
"""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from slimdown.utils.errors import SlimdownError

_WAITS = (
    0.25,
    0.5,
    1.0,
    2.0,
    4.0,
    4.0,
    4.0,
    4.0,
    4.0,
)  # seconds between tries: ten in 24 s, as three in ten may fail
_PATIENCE = 30.0  # seconds, where a try takes long
_LITTLE_PATIENCE = 5.0  # for what can be done without
_OVERLOADED = (500, 502, 503, 504)


_answered: set[str] = set()  # the hosts that answered in this process: the hub and its helpers
_silent: dict[
    str, str
] = {}  # those that are asked no more inside the present `asking_hub`, and why
_patience = [_PATIENCE]  # in the present one


@contextmanager
def asking_hub(what: str, patience: float = _PATIENCE) -> Iterator[None]:
    """Inside, requests that the hub answers with an error of its own, or not at all, are made again for `patience`.

    After that the hub counts as offline to the end of the block, and what lies in the cache is used. The next block
    asks anew: a later job of a sweep has nothing to do with an outage that is over.

    Raises:
        SlimdownError: it stopped answering in the middle, so that files may be missing; the message begins with `what`.
    """
    _ask_again()
    _silent.clear()
    _patience[:] = [patience]
    try:
        yield
    except SlimdownError:
        raise
    except Exception as error:
        if not _silent:
            raise
        raise SlimdownError(f"{what}: {_reasons()}") from error
    if _silent.keys() & _answered:
        raise SlimdownError(f"{what}: {_reasons()}")


def commit_of(repo: str, revision: str, kind: str = "model") -> str:
    """The commit that a branch or tag of a repository is at; asked once a process.

    Where the hub does not say, the commit that the cache has of it.

    Args:
        repo: a hub id.
        revision: a branch, tag or commit.
        kind: model or dataset.

    Raises:
        OSError: nobody knows.
    """
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    try:
        return _asked_commit(repo, revision, kind)
    except Exception:  # offline, gated, gone: loading says so
        cached = Path(
            constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo, repo_type=kind), "refs", revision
        )
        return cached.read_text().strip()


@cache
def _asked_commit(repo: str, revision: str, kind: str) -> str:
    from huggingface_hub import HfApi

    with asking_hub(repo, _LITTLE_PATIENCE):
        return str(HfApi().repo_info(repo, revision=revision, repo_type=kind, timeout=10).sha)


def _reasons() -> str:
    return (
        f"the hub stopped answering ({'; '.join(_silent.values())}); start again later (what was downloaded is kept), "
        "or set HF_HUB_OFFLINE=1 if all of it is in the cache"
    )


@cache
def _ask_again() -> None:
    """Have huggingface_hub, and all that asks through it, use a client that asks again."""
    from huggingface_hub import get_session, set_client_factory
    from huggingface_hub.errors import OfflineModeIsEnabled

    usual = get_session()
    httpx: Any = sys.modules[
        type(usual).__module__.partition(".")[0]
    ]  # httpx2 since huggingface_hub 2
    passing = httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError

    class Client(httpx.Client):  # type: ignore[misc]
        def send(self, request: Any, **options: Any) -> Any:
            if request.method not in ("GET", "HEAD"):
                return super().send(request, **options)
            host, started = request.url.host, time.monotonic()
            for wait in (*_WAITS, None):
                if host in _silent:
                    raise OfflineModeIsEnabled(_reasons())
                try:
                    response = super().send(request, **options)
                except passing as error:
                    if isinstance(error, httpx.ConnectError) and host not in _answered:
                        raise  # no network, or no such helper: what asks goes on without, or says so
                    problem = type(error).__name__
                else:
                    if response.status_code not in _OVERLOADED:
                        _answered.add(host)
                        return response
                    response.close()
                    problem = f"HTTP {response.status_code}"
                seconds = time.monotonic() - started
                if wait is None or seconds + wait > _patience[0]:
                    _silent[host] = f"{problem} from {host} for {seconds:.0f} s"
                    raise OfflineModeIsEnabled(_reasons())
                _tell(f"The hub does not answer for now ({problem} from {host}); asking again ...")
                time.sleep(wait)

    def client() -> Any:
        return Client(
            event_hooks=usual.event_hooks,
            follow_redirects=usual.follow_redirects,
            timeout=usual.timeout,
        )

    set_client_factory(client)


@cache
def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def licence_of(source: str, revision: str) -> str:
    """The licence that a model's card names, with the name and the link of one of its own; empty where none does.

    Args:
        source: a hub id or a folder.
        revision: of the hub.
    """
    from huggingface_hub import ModelCard
    from transformers.utils import cached_file

    try:
        card = cached_file(source, "README.md", revision=revision)
        said = ModelCard(Path(card).read_text(encoding="utf-8"), ignore_metadata_errors=True).data
        named = [said.get(name) for name in ("license", "license_name", "license_link")]
        return " ".join(text for text in named if text)
    except Exception:  # no card, one that is none, or no hub: nothing depends on it
        return ""
