"""What is to be learned: the kind of problem, the names of its labels, and how it is scored."""

from dataclasses import dataclass

from .reading import words

__all__ = ["PROBLEM_TYPES", "Task", "describe_task"]

PROBLEM_TYPES: dict[str, str] = {
    "single_label_classification": "single-label classification",
    "multi_label_classification": "multi-label classification",
    "regression": "regression",
}
"""Name in a transformers config to words."""


@dataclass(frozen=True)
class Task:
    """A task: `Task("mood", "single_label_classification", ("negative", "positive"), ("accuracy",))`."""

    name: str
    """Name in messages and in the model card."""
    problem_type: str
    """A key of PROBLEM_TYPES."""
    label_names: tuple[str, ...]
    """Names in the order of the logits; empty in regression."""
    metrics: tuple[str, ...]
    """Keys of METRICS; the first one picks the epoch."""
    threshold: float = 0.5
    """Multi-label: a label is predicted where its probability reaches this."""
    separator: str = "|"
    """Multi-label: what stands between the labels of a cell of CSV and TSV."""

    @property
    def n_outputs(self) -> int:
        """Return the number of logits: one for each label, one in regression."""
        return max(1, len(self.label_names))


def describe_task(task: Task) -> str:
    """Return a task in one line.

    Example:
        >>> describe_task(Task("mood", "single_label_classification", ("bad", "good"), ("accuracy", "f1")))
        'mood: single-label classification, 2 labels (bad, good); chosen by accuracy, also f1'
    """
    parts = [f"{task.name}: {PROBLEM_TYPES[task.problem_type]}"]
    if task.label_names:
        parts.append(f", {len(task.label_names)} labels ({words(task.label_names, 8)})")
    if task.problem_type == "multi_label_classification":
        parts.append(f", threshold {task.threshold:g}")
    parts.append(f"; chosen by {task.metrics[0]}")
    if task.metrics[1:]:
        parts.append(f", also {words(task.metrics[1:])}")
    return "".join(parts)
