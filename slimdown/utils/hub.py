"""What the Hugging Face hub's errors mean, in one line each. Retries are huggingface_hub's own."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from slimdown.utils.errors import ModelError, SlimdownError


@contextmanager
def explain_hub_errors(
    setting: str, error_class: type[SlimdownError] = ModelError
) -> Iterator[None]:
    """Turn whatever fetching and reading raises into one line that says how to go on.

    Args:
        setting: What names the repository or folder, as `model.id=OWNER/NAME`.
        error_class: ModelError or DataError.

    Raises:
        SlimdownError: Of that class.
    """
    from huggingface_hub import errors as hub

    try:
        yield
    except (SlimdownError, KeyboardInterrupt):
        raise
    except Exception as error:
        chain: list[BaseException] = []
        link: BaseException | None = error
        while link is not None and link not in chain:
            chain.append(link)
            link = link.__cause__ or link.__context__
        text = " ".join(str(link) for link in chain)
        modules = {type(link).__module__.partition(".")[0] for link in chain}

        def is_any(*kinds: type[BaseException]) -> bool:
            return any(isinstance(link, kinds) for link in chain)

        if is_any(hub.GatedRepoError) or "access a gated repo" in text:
            reason = (
                "is gated: accept its licence on its page at https://huggingface.co, then log in "
                "with `hf auth login` or set HF_TOKEN; or choose an open one, e.g. model=smollm2"
            )
        elif is_any(hub.RevisionNotFoundError):
            reason = "has no such branch, tag or commit; see its page at https://huggingface.co"
        elif is_any(hub.RepositoryNotFoundError):
            reason = (
                "is neither on the hub nor a local folder; check the spelling, or log in with "
                "`hf auth login` if it is private"
            )
        elif "No space left" in text:
            reason = "does not fit on the disk of the hub's cache; free some, or set HF_HOME"
        elif any(type(link).__name__ == "SafetensorError" for link in chain):
            reason = f"has a .safetensors file that is damaged ({error}); download it again"
        elif "ignore_mismatched_sizes" in text:
            reason = "has weights of other shapes than its config.json describes; get it again"
        elif "trust_remote_code" in text:
            reason = "needs code of its own, which slimdown does not run; choose another"
        elif "safetensors" in text:
            reason = (
                "has no safetensors weights, and pickled ones can run code when they are read; "
                "choose a revision or a copy with .safetensors files"
            )
        elif modules & {"httpx", "httpx2", "requests"} or is_any(
            hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, hub.HfHubHTTPError
        ):
            reason = (
                "cannot be reached: the hub does not answer and the local cache does not hold it; "
                "check the network and HF_ENDPOINT, or run the embedded world: "
                "python -m slimdown.run"
            )
        else:
            reason = f"cannot be loaded: {' '.join(str(error).split())[:400]}"
        raise error_class(f"{setting} {reason}") from error


def resolve_commit(repo: str, revision: str, repo_type: str = "model") -> str:
    """Return the commit of a branch or tag; where the hub does not answer, that of the cache.

    Raises:
        OSError: Neither knows.
    """
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    try:
        return str(HfApi().repo_info(repo, revision=revision, repo_type=repo_type, timeout=10).sha)
    except Exception:  # offline, gated or gone: loading says which
        folder = repo_folder_name(repo_id=repo, repo_type=repo_type)
        cached = f"{constants.HF_HUB_CACHE}/{folder}/refs/{revision}"
        with open(cached, encoding="utf-8") as file:
            return file.read().strip()
