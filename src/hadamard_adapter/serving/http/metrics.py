"""Counters of a server in Prometheus' format, with a bounded number of labels."""

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Metrics", "merge_pages"]

_OTHER = "other"
"""Label of the adapters that have none of their own."""
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """What a server counts.

    Args:
        n_labels: adapters that get a label of their own, the first that are asked; the others share "other".

    Example:
        >>> metrics = Metrics(1)
        >>> [metrics.label_of(id) for id in ("mood", "topic", "mood")]
        ['mood', 'other', 'mood']
    """

    def __init__(self, n_labels: int) -> None:
        """Make counters at zero."""
        self.n_labels = n_labels
        self._labels: set[str] = set()
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "hadamard_requests", "Requests answered", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "hadamard_request_seconds", "Time to answer", ["route"], registry=registry, buckets=_SECONDS
        )
        self.texts = Counter("hadamard_texts", "Texts predicted", ["adapter"], registry=registry)
        self.refused = Counter("hadamard_refused", "Requests refused", ["reason"], registry=registry)
        self.batch_texts = Histogram(
            "hadamard_batch_texts", "Texts in a forward pass", registry=registry,
            buckets=[2**power for power in range(11)],
        )  # fmt: skip
        self.batch_tokens = Histogram(
            "hadamard_batch_tokens", "Tokens in a forward pass, padding included", registry=registry,
            buckets=[2**power for power in range(4, 16)],
        )  # fmt: skip
        self.under_way = Gauge("hadamard_texts_under_way", "Texts not answered yet", registry=registry)
        self.adapters = Gauge("hadamard_adapters", "Adapters served", registry=registry)
        self.problems = Gauge("hadamard_store_problems", "Adapters that cannot be read", registry=registry)

    def label_of(self, id: str) -> str:
        """The label under which an adapter is counted."""
        if id not in self._labels and len(self._labels) < self.n_labels:
            self._labels.add(id)
        return id if id in self._labels else _OTHER

    def passed(self, n_rows: int, n_tokens: int) -> None:
        """Count one forward pass."""
        self.batch_texts.observe(n_rows)
        self.batch_tokens.observe(n_tokens)

    def page(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)


def merge_pages(pages: Mapping[str, bytes]) -> bytes:
    """The pages of several servers as one, in which every sample has the label `replica`.

    Args:
        pages: by name of the server.

    Example:
        >>> print(merge_pages({"a": b"# TYPE x gauge\\nx 1", "b": b"# TYPE x gauge\\nx 2"}).decode())
        # HELP x
        # TYPE x gauge
        x{replica="a"} 1.0
        x{replica="b"} 2.0
        <BLANKLINE>
    """
    families: dict[str, Metric] = {}
    for replica, page in pages.items():
        for family in text_string_to_metric_families(page.decode()):
            whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                whole.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
    return generate_latest(_Collected(list(families.values())))


@dataclass(frozen=True)
class _Collected:
    """Metrics in the shape that prometheus_client writes."""

    metrics: list[Metric]

    def collect(self) -> list[Metric]:
        return self.metrics
