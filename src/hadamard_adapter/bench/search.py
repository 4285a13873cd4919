"""Which learning rates a search tries next, and which one it chooses; pure functions of what was found."""

from collections.abc import Mapping, Sequence

__all__ = ["GOOD_ENOUGH", "Quality", "best_rate", "fewest_epochs", "next_rates"]

GOOD_ENOUGH = 0.01
"""Of the best score: by as much less epochs may lose, where fewer take less time."""

Quality = tuple[float, float]
"""Score, and minus the loss, which decides between equal scores; greater is better."""

Found = Mapping[float, Quality | None]
"""Learning rate -> quality on held-out rows; None: the run failed."""


def next_rates(grid: Sequence[float], found: Found, extensions: int) -> list[float]:
    """The rates to try now: what is left of the grid, then one more at an edge while the best one is there.

    Args:
        grid: rates to begin with, rising.
        found: what was tried.
        extensions: rates beyond the grid, at most.

    Returns:
        Rates, rising; none when the search is over.

    Example:
        >>> next_rates([1e-3, 3e-3], {1e-3: (0.5, -1)}, extensions=3)
        [0.003]
        >>> next_rates([1e-3, 3e-3], {1e-3: (0.5, -1), 3e-3: (0.7, -1)}, extensions=3)
        [0.009]
        >>> next_rates([1e-3, 3e-3], {1e-3: (0.5, -1), 3e-3: (0.7, -1), 9e-3: (0.7, -2)}, extensions=3)
        []
    """
    left = [rate for rate in grid if rate not in found]
    if left:
        return left
    best, tried = best_rate(found), sorted(found)
    if best is None or len(tried) - len(grid) >= extensions or len(tried) < 2:
        return []
    if best == tried[0]:
        return [_rounded(tried[0] * tried[0] / tried[1])]
    if best == tried[-1]:
        return [_rounded(tried[-1] * tried[-1] / tried[-2])]
    return []


def best_rate(found: Found) -> float | None:
    """The rate with the best score, then the lowest loss, then the smallest; None where all failed.

    Example:
        >>> best_rate({1e-3: (0.5, -1), 3e-3: (0.5, -0.9), 9e-3: None})
        0.003
    """
    scores = {rate: value for rate, value in found.items() if value is not None}
    return max(sorted(scores), key=lambda rate: scores[rate], default=None)


def fewest_epochs(found: Mapping[int, Found]) -> int | None:
    """The fewest epochs whose best score is at most 1 % below the best of all; None where all failed.

    Args:
        found: number of epochs -> learning rate -> quality on held-out rows.

    Example:
        >>> fewest_epochs({2: {1e-3: (0.80, -1), 2e-3: (0.85, -1)}, 4: {1e-3: (0.87, -1)}, 8: {1e-3: None}})
        4
    """
    scores: dict[int, float] = {}
    for epochs, of_rates in found.items():
        rate = best_rate(of_rates)
        value = None if rate is None else of_rates[rate]
        if value is not None:
            scores[epochs] = value[0]
    if not scores:
        return None
    best = max(scores.values())
    return min(epochs for epochs, score in scores.items() if score >= best - GOOD_ENOUGH * abs(best))


def _rounded(rate: float) -> float:
    """Two digits, so that rates can be read."""
    return float(f"{rate:.2g}")
