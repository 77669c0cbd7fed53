"""Secrets stay out of everything that is written: values under secret names, and the user part of an address."""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REDACTED = "<redacted>"

# Secret wherever it stands in a name, and secret only as its last word: `api_key`, and not `num_key_value_heads`.
ANYWHERE = {"secret", "password", "passwd", "passphrase", "credential", "credentials", "apikey"}
LAST = {"key", "token", "pwd"}
# Of tokenizers, tables and error messages.
KNOWN = re.compile(r"(pad|bos|eos|unk|cls|sep|mask|class|sort|index|primary|foreign|full)_?(token|key)$", re.IGNORECASE)
SHORTEST = 8  # characters of a secret value that is looked for in other text; a shorter one is part of many words

# Also with one slash, which is what is left of an address that was taken for a path.
_URL_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://?)[^/\s@]+(?:@[^/\s@]+)*@")
_OVERRIDE = re.compile(r"([+~]*([\w.@/-]+)=)(.+)", re.DOTALL)
_NAMED = re.compile(r"""([\w.-]*\w)(["']?\s*[=:]\s*)("[^"]*"|'[^']*'|(?!//)[^\s,{}\[\]&;"']+)""")


def secret(name: str) -> bool:
    """Whether a setting or variable of this name holds a secret: `hub_token`, and not `tokenizer` or `max_tokens`."""
    words = re.sub(r"([a-z])([A-Z])", r"\1_\2", name.rpartition(".")[2]).lower()
    parts = re.split(r"[^a-z0-9]+", words.strip("_-"))
    return not KNOWN.search(words) and (parts[-1] in LAST or not ANYWHERE.isdisjoint(parts))


def redacted(value: Any) -> Any:
    """The same text or nested containers without secrets.

    Hidden are values under a secret name, the values that secret environment variables and the command line give such
    names, and the user part of any address. The result of the same command is the same, whatever the secret.
    """
    return _redacted(value, _known_values())


def redact(path: Path) -> None:
    """Hide the secrets in a text file that another library has written."""
    if path.is_file():
        path.write_text(redacted(path.read_text(encoding="utf-8")), encoding="utf-8")


def _redacted(value: Any, known: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _hidden(item) if secret(str(key)) else _redacted(item, known) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redacted(item, known) for item in value]
    return _text(value, known) if isinstance(value, str) else value


def _hidden(value: Any) -> Any:
    """The shape stays, and what was left open or is a switch."""
    if isinstance(value, Mapping):
        return {key: _hidden(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hidden(item) for item in value]
    return value if value is None or isinstance(value, bool) else REDACTED


def _text(text: str, known: list[str]) -> str:
    override = _OVERRIDE.fullmatch(text)
    if override and secret(override[2]):
        return override[1] + REDACTED
    for value in known:
        text = text.replace(value, REDACTED)
    text = _URL_USER.sub(rf"\1{REDACTED}@", text)

    def hide(found: re.Match) -> str:
        name, sign, rest = found.groups()
        # `key=` alone is mostly that of `sorted`.
        return name + sign + (REDACTED if name != "key" and secret(name) else _NAMED.sub(hide, rest))

    return _NAMED.sub(hide, text)


def _known_values() -> list[str]:
    """Values that the environment and the command line give to secret names, the longest first."""
    values = {value for name, value in os.environ.items() if secret(name)}
    for word in sys.argv[1:]:
        pairs = [(found[1], found[3]) for found in _NAMED.finditer(word)]
        if override := _OVERRIDE.fullmatch(word):
            pairs.append((override[2], override[3]))
        values |= {value.strip("\"'") for name, value in pairs if secret(name)}
    # A path is no secret, and what lies below it must stay readable.
    long = {value for value in values if len(value) >= SHORTEST and not value.startswith(("/", "~", "."))}
    return sorted(long, key=len, reverse=True)
