"""Whether there is a hub to ask: found out once and quickly, before a library tries for half a minute."""

import http.client
import json
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterable

from hadamard_adapter.files import expanded

__all__ = ["base_name_in", "stay_offline_without_hub"]

_TIMEOUT_S = 5.0


def stay_offline_without_hub(names: Iterable[str | None]) -> None:
    """Tell the Hugging Face libraries to use their cache alone where the hub does not answer.

    Nothing is asked if every name is a path that exists. To be called before those libraries are imported:
    they read HF_HUB_OFFLINE once.

    Args:
        names: models and datasets of a command; None is skipped.

    Example:
        >>> stay_offline_without_hub([".", None])
    """
    wanted = [name for name in names if name is not None and not expanded(name).exists()]
    if not wanted or "HF_HUB_OFFLINE" in os.environ:
        return
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        request = urllib.request.Request(address, method="HEAD")
        urllib.request.urlopen(request, timeout=_TIMEOUT_S).close()
    except (OSError, ValueError, http.client.HTTPException) as error:  # the last: it speaks no HTTP
        # A server that says no has answered, and so has one whose certificate Python does not know: the hub's
        # own library brings certificates of its own.
        reason = getattr(error, "reason", error)
        if not isinstance(error, urllib.error.HTTPError) and not isinstance(reason, ssl.SSLError):
            os.environ["HF_HUB_OFFLINE"] = "1"


def base_name_in(adapter: str) -> str | None:
    """The base model that an adapter's config names; None where there is no such config.

    Example:
        >>> base_name_in("no-such-folder") is None
        True
    """
    try:
        config = json.loads((expanded(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
        return str(config["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # what is wrong with the folder is said by whoever loads it
