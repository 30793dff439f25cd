"""Passwords and tokens, kept out of everything that is written or shown.

A secret is known by its place in an address, by its name, by its looks, or by its value where the
environment holds it under a secret's name.
"""

import os
import re
from typing import Any
from urllib.parse import quote, unquote

# An eos_token or a think_end_token is no secret.
_NAME = r"(?:(?<!end_|eos_|pad_|bos_)token|password|passwd|pwd|passphrase|secret|api_?key"
_NAME += r"|access_?key|credentials?)"
_IS_SECRET = re.compile(  # PWD is the working folder
    rf"(?i)(?!(old)?pwd$).*({_NAME}|_pass|_pw|_key)$"
)
_VALUE = r"(?!\*\*\*)(\"[^\"]*\"|'[^']*'|[^\s&;,]+)"
_NAMED = re.compile(rf"(?i)(?<![\w/.-])([\w-]*{_NAME}[\"']?\s*[=:]\s*){_VALUE}")
_ASSIGNED = re.compile(rf"(?i)(?<![\w/.-])([\w-]*{_NAME}=){_VALUE}")
HIDDEN = "***"
"""What stands in the place of a secret."""
_ADDRESS = re.compile(r"(?i)(?<![\w+.-])([a-z][\w+.-]*)://([^\s\"'<>]*)")
# Signed links and drivers name theirs X-Amz-Signature, sig, pwd, sslkey, auth, odbc_connect.
_PARAMETER = re.compile(
    r"(?i)([?&;][\w.%-]*(?:token|pass|pwd|secret|key|cred|sig|auth|odbc_connect)[\w.%-]*=)[^&]*"
)
_TOKEN = re.compile(r"\b(hf_|ghp_|gho_|github_pat_|glpat-|sk-)[\w-]{20,}")
_SHORTEST = 8  # characters; a shorter password is a word that texts are full of


def redact_uri(uri: str) -> str:
    """Return an address, or any text, without user names, passwords and secret parameters."""
    return _ADDRESS.sub(_blank_address, uri)


def redact(text: str) -> str:
    """Return a message without secrets: in addresses, by name, by looks, and the environment's.

    It may hide too much, so it is for what people read. `redact_leaf` is for what is read back.

    >>> redact("HF_TOKEN=abc lora.r=8 postgresql://me:pw@db/mlflow?password=hunter2")
    'HF_TOKEN=*** lora.r=8 postgresql://***@db/mlflow?password=***'
    >>> redact("think_end_token: </think>")
    'think_end_token: </think>'
    """
    return _NAMED.sub(r"\1***", redact_leaf(text))


def redact_leaf(text: str) -> str:
    """Return a single value, such as a setting, without secrets; prose stays as it is.

    >>> redact_leaf("Reply with one token: yes/no. The password: is it there?")
    'Reply with one token: yes/no. The password: is it there?'
    >>> redact_leaf("api_key=abc, see https://me:pw@host/x")
    'api_key=***, see https://***@host/x'
    """
    for name, value in os.environ.items():
        secret = ""
        if _IS_SECRET.match(name):
            secret = value
        elif address := re.match(r"[\w+.-]+://[^:@/]*:([^@]+)@", value):
            secret = address[1]  # the password in it
        if len(secret) >= _SHORTEST:
            # Addresses spell some characters as % and two digits.
            for spelling in {secret, quote(secret, safe=""), unquote(secret)}:
                text = re.sub(rf"(?<!\w){re.escape(spelling)}(?!\w)", HIDDEN, text)
    return _TOKEN.sub(r"\1***", _ASSIGNED.sub(r"\1***", redact_uri(text)))


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
        """Return a part of the tree without secrets; its `key` begins with a dot."""
        if isinstance(node, dict):
            return {name: hide(value, f"{key}.{name}") for name, value in node.items()}
        if isinstance(node, list):
            return [hide(value, key) for value in node]
        if not isinstance(node, str):
            return node
        is_secret = node and _IS_SECRET.match(key.rpartition(".")[2])
        text = HIDDEN if is_secret else redact_leaf(node)
        if text != node and key[1:] not in hidden:
            hidden.append(key[1:])
        return text

    return hide(tree, ""), hidden


def hide_variables(text: str, settings: str) -> str:
    """Return a text without the values of environment variables that settings name."""
    for name in re.findall(r"\boc\.env:\s*(\w+)", settings + text):
        words = r"(\s|\\n)+".join(map(re.escape, os.environ.get(name, "").split())) or "$^"
        text = re.sub(rf"(?<!\w)({words})(?!\w)", f"${{oc.env:{name}}}", text)
    return text


def _blank_address(address: "re.Match[str]") -> str:
    scheme, rest = address.groups()
    if scheme.lower().split("+")[0] in ("sqlite", "file"):  # a path: an @ in it is a letter
        return address.group(0)
    place, mark, parameters = rest.partition("?")
    host = re.split("[/#]", place, maxsplit=1)[0]
    # A password may hold a slash by mistake: then what looks like a port is none.
    if "@" in place and ("@" in host or not re.fullmatch(r"\d*", host.partition(":")[2])):
        place = "***@" + place.rpartition("@")[2]
    return f"{scheme}://{place}" + _PARAMETER.sub(r"\1***", mark + parameters)
