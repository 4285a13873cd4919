"""How often the report's bootstrap over seeds and dev rows finds a difference where there is none.

Two methods that are equal, seed by seed and row by row: a run's score is the mean of its dev rows' scores
(the same rows for all runs) plus what its seed makes of it. How the two spreads compare decides: where seeds
differ by more than dev rows, few seeds tell too little of what others would do.

Command: python benchmarks/bootstrap_errors.py --output results/bootstrap_errors.json (1 minute)
"""

from pathlib import Path

import click
import numpy as np

from hadamard_adapter.analysis.statistics import interval_of, permutation_p
from hadamard_adapter.files import write_json

N_ROWS, N_DRAWS, N_EXPERIMENTS = 200, 1000, 1000
RATIOS = (0.0, 0.5, 1.0, 2.0)
"""Standard error by dev rows over that by seeds."""
N_SEEDS = (3, 5, 10)


def false_alarms(n_seeds: int, ratio: float) -> dict[str, float]:
    """Shares of experiments without a difference in which a test says p < 0.05."""
    random = np.random.default_rng(n_seeds * 1000 + round(100 * ratio))
    rows = random.integers(0, N_ROWS, (N_DRAWS, N_ROWS))
    rows = np.concatenate([np.arange(N_ROWS)[None], rows])
    by_bootstrap, by_seed = [], []
    for _ in range(N_EXPERIMENTS):
        of_rows = ratio / np.sqrt(n_seeds) * np.sqrt(N_ROWS) * random.normal(size=N_ROWS)
        differences = random.normal(size=(n_seeds, 1)) + of_rows[rows].mean(axis=1)
        by_bootstrap.append(interval_of(differences, np.zeros_like(differences)).p)
        by_seed.append(permutation_p(differences[:, 0].tolist()))
    return {
        "bootstrap": float(np.mean(np.array(by_bootstrap) < 0.05)),
        "permutation": float(np.mean(np.array(by_seed) < 0.05)),
    }


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="JSON file for the shares.")
def main(output: Path) -> None:
    """Measure, print and write the shares."""
    found = {str(n): {str(ratio): false_alarms(n, ratio) for ratio in RATIOS} for n in N_SEEDS}
    for n, by_ratio in found.items():
        print(n, "seeds:", {ratio: shares["bootstrap"] for ratio, shares in by_ratio.items()})
    settings = {"rows": N_ROWS, "draws": N_DRAWS, "experiments": N_EXPERIMENTS, "level": 0.05}
    write_json(output, {**settings, "by_seeds_and_ratio": found})


if __name__ == "__main__":
    main()
