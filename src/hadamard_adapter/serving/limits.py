"""The limits of a server: what it refuses, and when."""

import math
from dataclasses import dataclass, fields

from hadamard_adapter.errors import SettingsError

__all__ = ["Limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server takes; more is refused with one line that says so."""

    queue_texts: int = 512
    """Texts that may be under way at once; more are refused with 429."""
    batch_tokens: int = 16_384
    """Tokens of one turn of the batcher, padding included."""
    request_texts: int = 32
    """Predictions of one request, texts times adapters; more are refused with 422."""
    body_bytes: int = 1_000_000
    """Size of a request's body; more is refused with 413."""
    upload_bytes: int = 64_000_000
    """Size of an uploaded adapter, packed and unpacked; more is refused with 413."""
    timeout_s: float = 10.0
    """Seconds until a request that is not answered gets 504, or 408 if its body is not there by then."""
    drain_s: float = 1.0
    """Seconds between SIGTERM, when /ready turns to 503, and the end of the last connection's acceptance."""
    metric_adapters: int = 100
    """Adapters that have a label of their own in /metrics; the others share one."""

    def __post_init__(self) -> None:
        """Check that every limit lets something pass."""
        for limit in fields(Limits):
            value = getattr(self, limit.name)
            if not 0 <= value < math.inf or (value == 0 and limit.name not in ("drain_s", "metric_adapters")):
                option = f"--{limit.name.replace('_', '-')}"
                raise SettingsError(f"{option}: expected a number above 0, received {value!r}")
