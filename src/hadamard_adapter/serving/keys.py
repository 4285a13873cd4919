"""Keys of a server: who may ask which adapters, and who may change them; only hashes are kept."""

import hashlib
import hmac
import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hadamard_adapter.errors import SettingsError
from hadamard_adapter.files import expanded, replacing

__all__ = ["EVERYTHING", "Key", "find_key", "make_key", "read_keys"]


@dataclass(frozen=True)
class Key:
    """What one key allows."""

    name: str
    """Of its owner; stands in logs."""
    sha256: str
    """Of the secret, in hex."""
    ids: tuple[str, ...]
    """Ids that it may use, with * and ? as in file names."""
    may_administrate: bool = False
    """Whether it may add, replace and remove the adapters that it may use."""

    def may_use(self, id: str) -> bool:
        """Whether an id is among its patterns.

        Example:
            >>> Key("shop", "", ("shop-*",)).may_use("shop-mood")
            True
        """
        return any(fnmatchcase(id, pattern) for pattern in self.ids)

    @property
    def may_use_all(self) -> bool:
        """Whether every id is."""
        return "*" in self.ids


EVERYTHING = Key("nobody", "", ("*",), may_administrate=True)
"""What a server without keys allows to those who reach it: it listens on this machine only."""


def read_keys(path: str | Path) -> tuple[Key, ...]:
    """The keys of a file.

    Args:
        path: JSON, {"keys": [{"name": …, "sha256": …, "ids": ["shop-*"], "may_administrate": false}]}.

    Raises:
        SettingsError: no such file, or another content.
    """
    try:
        content = json.loads(expanded(path).read_text(encoding="utf-8"))
        keys = tuple(_key(entry) for entry in content["keys"])
    except OSError as error:
        raise SettingsError(
            f"keys {str(path)!r}: {error.strerror}; make one with hadamard serve-key"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f'keys {str(path)!r}: expected {{"keys": [{{"name", "sha256", "ids", "may_administrate"}}, …]}}, '
            f"received {error}; make it with hadamard serve-key"
        ) from error
    if not keys:
        raise SettingsError(f"keys {str(path)!r}: expected one key at least; add it with hadamard serve-key")
    return keys


def find_key(keys: Sequence[Key], secret: str) -> Key | None:
    """The key with this secret; every key is compared, in a time that does not depend on the secret.

    Example:
        >>> find_key([Key("shop", hashlib.sha256(b"s").hexdigest(), ("*",))], "s").name
        'shop'
    """
    digest = _hash(secret)
    found = None
    for key in keys:
        if hmac.compare_digest(key.sha256, digest):
            found = key
    return found


def make_key(path: str | Path, name: str, ids: Sequence[str], may_administrate: bool = False) -> str:
    """A new secret, whose hash is added to a file that only its owner may read.

    Args:
        path: made if it is not there.
        name: of the owner; one that is there already is refused.
        ids: patterns of ids that it may use.
        may_administrate: whether it may change them.

    Raises:
        SettingsError: the file holds something else, or this name already.
    """
    place = expanded(path)
    keys = read_keys(place) if place.exists() else ()
    if any(key.name == name for key in keys):
        raise SettingsError(f"keys {str(path)!r} has a key named {name!r} already; choose another name")
    if not ids:
        raise SettingsError("ids: expected one pattern at least, such as 'shop-*' or '*', received none")
    secret = secrets.token_urlsafe(32)
    new = Key(name, _hash(secret), tuple(ids), may_administrate)
    with replacing(place, "w", permissions=0o600, encoding="utf-8") as file:
        file.write(json.dumps({"keys": [asdict(key) for key in (*keys, new)]}, indent=2) + "\n")
    return secret


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _key(entry: dict[str, Any]) -> Key:
    if len(bytes.fromhex(entry["sha256"])) != 32:
        raise ValueError(f"a sha256 of {len(entry['sha256'])} digits")
    if not isinstance(entry["ids"], list) or not all(isinstance(id, str) for id in entry["ids"]):
        raise ValueError(f"ids {entry['ids']!r}")
    may_administrate = entry.get("may_administrate", False)
    if not isinstance(may_administrate, bool):
        raise ValueError(f"may_administrate {may_administrate!r}")
    return Key(str(entry["name"]), entry["sha256"].lower(), tuple(entry["ids"]), may_administrate)
