"""How many rows each channel group keeps, so that every budget holds.

- uniform: every group keeps the same share.
- global: the rows with the least importance go, wherever they are.
- greedy: again and again the block of rows goes that has the least (importance lost) / (cost saved), the cost being
  that of the budget which is furthest from met. This is the greedy rule of the knapsack problem, with costs that change
  as the network shrinks (as in Yang et al.: NetAdapt, 2018, arXiv 1804.03230, which measures the loss of accuracy).

Counts move in blocks and not below a floor. What the last block took too much is given back, where something fits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from edgekit.costs import CostModel


@dataclasses.dataclass(frozen=True)
class Allocation:
    """The problem to be solved, one entry a group.

    Attributes:
        costs: of the network by rows kept.
        scores: the importance of each row, float64 (rows of the group,).
        steps: rows move in multiples of this; a group may also keep all of its rows.
        floors: so many rows stay at least; a multiple of the step, or all.
        limits: the budgets, in the unit of each cost.
    """

    costs: CostModel
    scores: Sequence[np.ndarray]
    steps: np.ndarray
    floors: np.ndarray
    limits: dict[str, float]

    @property
    def sizes(self) -> np.ndarray:
        return np.array([len(scores) for scores in self.scores])

    def met(self, kept: np.ndarray) -> bool:
        return all(self.costs.metrics[name].total(kept) <= limit for name, limit in self.limits.items())

    def rounded(self, wanted: np.ndarray) -> np.ndarray:
        """Up to whole blocks, within floor and size."""
        return np.clip(-(-wanted // self.steps) * self.steps, self.floors, self.sizes)

    def block(self, kept: np.ndarray) -> np.ndarray:
        """How many rows can go next from each group: 0 at the floor."""
        return kept - np.maximum(((kept - 1) // self.steps) * self.steps, self.floors)

    def ranking(self, group: int) -> np.ndarray:
        """The rows of a group, the most important first."""
        return np.argsort(-self.scores[group], kind="stable")

    def lost(self, kept: np.ndarray) -> float:
        """The summed importance of the rows that go."""
        return float(sum(np.sort(scores)[: len(scores) - k].sum() for scores, k in zip(self.scores, kept)))


def uniform(problem: Allocation) -> np.ndarray:
    """Rows kept in each group, int64 (groups,): the largest common share that meets the budgets."""
    return _largest(problem, lambda share: problem.rounded(np.ceil(share * problem.sizes).astype(np.int64)))


def by_threshold(problem: Allocation) -> np.ndarray:
    """Rows kept in each group, int64 (groups,): those above the lowest common threshold that meets the budgets."""
    levels = np.sort(np.concatenate(list(problem.scores)))[::-1]

    def kept(share: float) -> np.ndarray:
        threshold = levels[min(int(share * len(levels)), len(levels) - 1)]
        return problem.rounded(np.array([np.count_nonzero(scores >= threshold) for scores in problem.scores]))

    return _largest(problem, kept)


def _largest(problem: Allocation, kept: Callable[[float], np.ndarray]) -> np.ndarray:
    """`kept` of the largest share that meets the budgets, to 2⁻³⁰; the floors always do."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if problem.met(kept(middle)) else (low, middle)
    return kept(low) if problem.met(kept(low)) else problem.floors


def greedy(problem: Allocation) -> np.ndarray:
    """Rows kept in each group, int64 (groups,)."""
    metrics, limits = problem.costs.metrics, problem.limits
    sums = [np.concatenate([[0.0], np.cumsum(-np.sort(-scores))]) for scores in problem.scores]
    kept, steps = problem.sizes, problem.block(problem.sizes)
    lost = np.array([total[k] - total[k - step] for total, k, step in zip(sums, kept, steps)])
    while True:
        excess = {name: metrics[name].total(kept) / limit for name, limit in limits.items()}
        binding = max(excess, key=lambda name: excess[name])
        if excess[binding] <= 1:
            return kept
        saved = metrics[binding].saved(kept, steps, limits[binding])
        ratio = np.where(saved > 0, lost, np.inf) / np.where(saved > 0, saved, 1.0)
        group = int(np.argmin(ratio))
        if not np.isfinite(ratio[group]):
            return problem.floors  # no block lowers the cost any more; the floors, which meet the budgets, are left
        kept[group] -= steps[group]
        steps[group] = problem.block(kept)[group]
        lost[group] = sums[group][kept[group]] - sums[group][kept[group] - steps[group]]


def given_back(problem: Allocation, kept: np.ndarray) -> np.ndarray:
    """With blocks added while one fits into every budget, the most important for its cost first."""
    metrics, kept = problem.costs.metrics, kept.copy()
    sums = [np.concatenate([[0.0], np.cumsum(-np.sort(-scores))]) for scores in problem.scores]
    while True:
        more = problem.rounded(kept + 1) - kept
        over = sum(-metrics[name].saved(kept, -more, limit) for name, limit in problem.limits.items())
        fits = (more > 0) & (over <= 0)
        if not fits.any():
            return kept
        price = sum(-metrics[name].saved(kept, -more, 0.0) / limit for name, limit in problem.limits.items())
        gained = np.array([total[k + step] - total[k] for total, k, step in zip(sums, kept, more)])
        worth = np.where(fits, gained / np.maximum(price, 1e-12), -np.inf)
        group = int(np.argmax(worth))
        kept[group] += more[group]


ALLOCATIONS: dict[str, Callable[[Allocation], np.ndarray]] = {
    "uniform": uniform,
    "global": by_threshold,
    "greedy": greedy,
}
