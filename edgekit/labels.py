"""Labels that can be united into classes, and frozen with a reason: the bookkeeping under channels.py."""

from __future__ import annotations

import numpy as np

from edgekit.graph import Value

Axis = tuple[str, int]
"""A parameter axis: (parameter name, dimension)."""


class Labels:
    """Integer labels with ties between them. 0 stands for a constant, which fits any number of channels and is tied to
    nothing.

    Every index of every parameter axis asked for has a label: its slot. Ties and freezes are only noted; `roots` works
    them out at the end, all at once, since a large network has a million of them.
    """

    def __init__(self) -> None:
        self.slot_base: dict[Axis, int] = {}
        self.slot_size: dict[Axis, int] = {}
        self._count = 1
        self._pairs: list[np.ndarray] = []
        self._frozen: list[tuple[np.ndarray, str]] = []

    def unite(self, left: np.ndarray, right: np.ndarray) -> None:
        """Element by element after broadcasting; a 0 unites with nothing."""
        left, right = np.broadcast_arrays(left, right)
        apart = (left != right) & (left != 0) & (right != 0)
        if apart.any():
            self._pairs.append(np.unique(np.stack([left[apart], right[apart]]), axis=1))

    def freeze(self, labels: np.ndarray, reason: str) -> None:
        self._frozen.append((np.unique(labels[labels != 0]), reason))

    def slots(self, param: Value, axis: int) -> np.ndarray:
        """The labels of a parameter along one axis."""
        return self.axis_slots((str(param.param), axis), param.shape[axis])

    def axis_slots(self, key: Axis, size: int) -> np.ndarray:
        if key not in self.slot_base:
            self.slot_base[key], self.slot_size[key] = self._count, size
            self._count += size
        return np.arange(self.slot_base[key], self.slot_base[key] + self.slot_size[key])

    def fixed(self, reason: str) -> int:
        """A new label that is frozen from the start."""
        label = self._count
        self._count += 1
        self.freeze(np.array([label]), reason)
        return label

    def roots(self) -> tuple[np.ndarray, dict[int, str]]:
        """For each label the smallest one of its class, and for each frozen class, by that, the first reason given."""
        parent = np.arange(self._count)
        left, right = np.concatenate([np.zeros((2, 0), np.int64), *self._pairs], axis=1)
        while left.size:
            low, high = np.minimum(left, right), np.maximum(left, right)
            np.minimum.at(parent, high, low)
            while not np.array_equal(parent, above := parent[parent]):
                parent = above
            left, right = parent[left], parent[right]
            left, right = left[left != right], right[left != right]
        reasons: dict[int, str] = {}
        for labels, reason in self._frozen:
            for root in np.unique(parent[labels]).tolist():
                reasons.setdefault(root, reason)
        return parent, reasons
