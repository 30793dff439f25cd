"""Passwords and tokens, kept out of everything that is written or shown.

A secret is found by its place in an address, by the name before it, by its own beginning such as
`hf_`, or by its value, if an environment variable with a secret's name has this value.
"""

import os
import re
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

HIDDEN = "***"
"""What stands in the place of a secret."""
# How the name of a secret ends. An eos_token or a think_end_token is no secret.
_NAME = r"(?:(?<!end_|eos_|pad_|bos_)token|password|passwd|pwd|passphrase|secret|api_?key"
_NAME += r"|access_?key|credentials?)"
_IS_SECRET = re.compile(  # the whole name of a variable or setting; PWD is the working folder
    rf"(?i)(?!(old)?pwd$).*({_NAME}|_pass|_pw|_key)$"
)
# A value in quotes, or up to the next space or separator; not one that is hidden already.
_VALUE = rf"(?!{re.escape(HIDDEN)})(\"[^\"]*\"|'[^']*'|[^\s&;,]+)"
# NAME=VALUE and NAME: VALUE, as messages write them; and NAME=VALUE alone, as settings are written.
_NAMED = re.compile(rf"(?i)(?<![\w/.-])([\w-]*{_NAME}[\"']?\s*[=:]\s*){_VALUE}")
_ASSIGNED = re.compile(rf"(?i)(?<![\w/.-])([\w-]*{_NAME}=){_VALUE}")
# The scheme of an address, and what follows "://", up to a space, a quote or a bracket.
_ADDRESS = re.compile(r"(?i)(?<![\w+.-])([a-z][\w+.-]*)://([^\s\"'<>]*)")
# Signed links and drivers name theirs X-Amz-Signature, sig, pwd, sslkey, auth, odbc_connect.
_PARAMETER = re.compile(
    r"(?i)([?&;][\w.%-]*(?:token|pass|pwd|secret|key|cred|sig|auth|odbc_connect)[\w.%-]*=)[^&]*"
)
# Tokens of Hugging Face, GitHub, GitLab and OpenAI.
_TOKEN = re.compile(r"\b(hf_|ghp_|gho_|github_pat_|glpat-|sk-)[\w-]{20,}")
_SHORTEST = 8  # characters; a shorter password is a word that texts are full of


def redact_uri(uri: str) -> str:
    """Return an address, or any text, without user names, passwords and secret parameters."""
    return _ADDRESS.sub(_blank_address, uri)


def redact(text: str) -> str:
    """Return a message without secrets, and without what stands behind a secret's name and a colon.

    This may hide too much, so use it for what only people read. Use `redact_leaf` for values that a
    program reads again.

    >>> redact("HF_TOKEN=abc lora.r=8 postgresql://me:pw@db/mlflow?password=hunter2")
    'HF_TOKEN=*** lora.r=8 postgresql://***@db/mlflow?password=***'
    >>> redact("think_end_token: </think>")
    'think_end_token: </think>'
    """
    return _NAMED.sub(rf"\1{HIDDEN}", redact_leaf(text))


def redact_leaf(text: str) -> str:
    """Return a single value, such as a setting, without secrets; prose stays as it is.

    Hidden are secrets in addresses, NAME=VALUE, tokens with a known beginning, and the values of
    environment variables that hold secrets.

    >>> redact_leaf("Reply with one token: yes/no. The password: is it there?")
    'Reply with one token: yes/no. The password: is it there?'
    >>> redact_leaf("api_key=abc, see https://me:pw@host/x")
    'api_key=***, see https://***@host/x'
    """
    for secret in _list_secrets(tuple(os.environ.items())):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
    text = _ASSIGNED.sub(rf"\1{HIDDEN}", redact_uri(text))
    return _TOKEN.sub(rf"\1{HIDDEN}", text)


@lru_cache(maxsize=1)  # a run's record has hundreds of values
def _list_secrets(variables: tuple[tuple[str, str], ...]) -> list[str]:
    """Return the secrets that environment variables hold, the longest first, as texts spell them.

    Args:
        variables: The name and the value of each.
    """
    secrets = set()
    for name, value in variables:
        secret = ""
        if _IS_SECRET.match(name):
            secret = value
        elif address := re.match(r"[\w+.-]+://[^:@/]*:([^@]+)@", value):
            secret = address[1]  # the password of scheme://user:password@host
        if len(secret) >= _SHORTEST:
            # Addresses spell some characters as % and two digits: the value may be spelled so, and
            # so may the text.
            secrets |= {secret, quote(secret, safe=""), unquote(secret)}
    return sorted(secrets, key=len, reverse=True)  # one may hold another


def redact_leaves(tree: Any) -> tuple[Any, list[str]]:
    """Hide the secrets in a tree of plain values before it is written.

    Args:
        tree: Mappings, lists and values. A text under a name such as `api_key` is a secret; in
            other texts, secrets are hidden as by `redact_leaf`.

    Returns:
        The tree, and the dotted keys at which something was hidden.
    """
    hidden: list[str] = []

    def hide(node: Any, key: str) -> Any:
        """Return a part of the tree without secrets, and note its key if something was hidden.

        `key` is dotted and begins with a dot; it is empty for the whole tree. The values of a list
        have the key of the list.
        """
        if isinstance(node, dict):
            return {name: hide(value, f"{key}.{name}") for name, value in node.items()}
        if isinstance(node, list):
            return [hide(value, key) for value in node]
        if not isinstance(node, str):
            return node
        # An empty text hides nothing, and shows that nothing is set.
        is_secret = node and _IS_SECRET.match(key.rpartition(".")[2])
        text = HIDDEN if is_secret else redact_leaf(node)
        if text != node and key[1:] not in hidden:
            hidden.append(key[1:])
        return text

    return hide(tree, ""), hidden


def hide_variables(text: str, settings: str) -> str:
    """Return a text with `${oc.env:NAME}` in the place of what the variable NAME holds.

    Args:
        text: A message on settings, which may quote their values.
        settings: The settings as they were written. The variables that they or the text name by
            `oc.env` are the ones that are hidden.
    """
    for name in re.findall(r"\boc\.env:\s*(\w+)", settings + text):
        words = os.environ.get(name, "").split()
        if words:  # the message may have broken the value's lines otherwise, or quote them as \n
            value = r"(\s|\\n)+".join(map(re.escape, words))
            text = re.sub(rf"(?<!\w)({value})(?!\w)", f"${{oc.env:{name}}}", text)
    return text


def _blank_address(address: "re.Match[str]") -> str:
    """Return what `_ADDRESS` has found without its user, password and secret parameters."""
    scheme, rest = address.groups()
    if scheme.lower().split("+")[0] in ("sqlite", "file"):  # a path: an @ in it is a letter
        return address.group(0)
    place, mark, parameters = rest.partition("?")
    host = re.split("[/#]", place, maxsplit=1)[0]  # with user and password, if there are any
    # A password may hold a slash by mistake, as in me:pa/ss@host. Then `host` ends within it, and
    # what stands where a port would be is no number. An @ behind a right host is part of a path.
    if "@" in place and ("@" in host or not re.fullmatch(r"\d*", host.partition(":")[2])):
        place = f"{HIDDEN}@" + place.rpartition("@")[2]
    return f"{scheme}://{place}" + _PARAMETER.sub(rf"\1{HIDDEN}", mark + parameters)
