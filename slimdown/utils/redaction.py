"""Passwords and tokens, kept out of everything that is written or shown.

A secret is known by where it stands in an address, by its name, by its looks, or by its value, which the environment
holds: `hiding.without_secrets` moves those of the command line there before Hydra copies them into its files.
"""

import os
import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, quote, unquote, urlsplit

_NAME = r"(?:token|password|passwd|passphrase|secret|api_?key|access_?key|credentials?)"  # how a secret's name ends
IS_SECRET = re.compile(rf"(?i).*{_NAME}$")
_NAMED = re.compile(rf"(?i)({_NAME}[\"']?\s*\\?[=:]\s*)(?!\*\*\*)(\"[^\"]*\"|'[^']*'|[^\s&]+)")
# Of an address more: what signed links and drivers call theirs (X-Amz-Signature, sig, pwd, sslkey, auth, odbc_connect).
_PARAMETER = re.compile(
    r"(?i)([?&;][\w.%-]*(?:token|pass|pwd|secret|key|cred|sig|auth|odbc_connect)[\w.%-]*\\?=)[^&]*"
)
# Hydra writes a backslash before `:`, `=` and their like; what logs an address may have encoded it.
_ADDRESS = re.compile(r"(?i)(?<![\w+.-])([a-z][\w+.-]*)(\\?:(?:\\?/){2}|%3a%2f%2f)([^\s\"'<>]*)")
_QUERY = re.compile(r"\\?\?[\w.%-]+\\?=")
_TOKEN = re.compile(r"\b(hf_|ghp_|gho_|github_pat_|glpat-|sk-)[\w-]{20,}")
_SHORTEST = 8  # characters; a password shorter than this is a word that texts are full of


def public_uri(uri: str) -> str:
    """The address without user name, password and secret parameters."""
    address = re.fullmatch(r"(?is)([a-z][\w+.-]*)(://)(.*)", uri)
    return _without_secrets(address) if address else uri


def redact(text: str) -> str:
    r"""The text without secrets: in addresses, by name, by looks, and those that the environment holds.

    >>> print(redact(r"tracking.uri=postgresql\://me\:hunter2@db/mlflow"))
    tracking.uri=postgresql\://***@db/mlflow
    >>> redact("HF_TOKEN=abc lora.r=8 postgresql://db/mlflow?user=me&password=hunter2")
    'HF_TOKEN=*** lora.r=8 postgresql://db/mlflow?user=me&password=***'
    """
    for secret in _held_by_environment():
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
    text = _ADDRESS.sub(_without_secrets, text)
    return _TOKEN.sub(r"\1***", _NAMED.sub(r"\1***", text))


def _without_secrets(address: "re.Match[str]") -> str:
    scheme, separator, rest = address.groups()
    if scheme.lower().split("+")[0] in ("sqlite", "file"):  # a path: an @ in it is a letter
        return address.group(0)
    query = _QUERY.search(rest)
    place, parameters = (rest[: query.start()], rest[query.start() :]) if query else (rest, "")
    place = re.sub("(?i)%40", "@", place) if separator.startswith("%") else place
    host, *_ = re.split(r"[/?#]", place, maxsplit=1)
    port = host.rpartition("@")[2].partition(":")[2]
    # A password may hold an @, and by mistake a slash: then what looks like a port is none.
    if "@" in place and ("@" in host or not re.fullmatch(r"\d*", port)):
        place = "***@" + place.rpartition("@")[2]
    return scheme + separator + place + _PARAMETER.sub(r"\1***", parameters)


def _held_by_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        secrets = [value] if IS_SECRET.match(name) else _secrets_of(value) if "://" in value else []
        for secret in secrets:
            if len(secret) >= _SHORTEST:
                yield from {secret, quote(secret, safe=""), unquote(secret)}


def _secrets_of(address: str) -> list[str]:
    try:
        parts = urlsplit(address)
    except ValueError:
        return []
    password = parts.netloc.rpartition("@")[0].partition(":")[2]
    return [
        password,
        *(value for name, value in parse_qsl(parts.query) if _PARAMETER.match(f"?{name}=")),
    ]
