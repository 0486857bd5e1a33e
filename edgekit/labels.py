"""Labels that can be united into classes, and frozen with a reason: the bookkeeping under channels.py."""

from __future__ import annotations

import numpy as np

from edgekit.graph import Value

Axis = tuple[str, int]
"""A parameter axis: (parameter name, dimension)."""


class Labels:
    """Union-find over integer labels. 0 stands for a constant, which fits any number of channels and joins no class.

    Every index of every parameter axis asked for has a label: its slot. The root of a frozen class has a reason.
    """

    def __init__(self) -> None:
        self.parent: list[int] = [0]
        self.reason: dict[int, str] = {}
        self.slot_base: dict[Axis, int] = {}
        self.slot_size: dict[Axis, int] = {}

    def find(self, label: int) -> int:
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def unite(self, left: np.ndarray, right: np.ndarray) -> None:
        """Element by element after broadcasting; a 0 unites with nothing."""
        left, right = np.broadcast_arrays(left, right)
        pairs = np.unique(np.stack([left.ravel(), right.ravel()], 1), axis=0)
        for a, b in pairs:
            if a and b:
                self.union(int(a), int(b))

    def union(self, a: int, b: int) -> None:
        a, b = sorted((self.find(a), self.find(b)))
        if a != b:
            self.parent[b] = a
            if b in self.reason:
                self.reason.setdefault(a, self.reason.pop(b))

    def freeze(self, labels: np.ndarray, reason: str) -> None:
        for label in np.unique(labels):
            if label:
                self.reason.setdefault(self.find(int(label)), reason)

    def slots(self, param: Value, axis: int) -> np.ndarray:
        """The labels of a parameter along one axis."""
        return self.axis_slots((str(param.param), axis), param.shape[axis])

    def axis_slots(self, key: Axis, size: int) -> np.ndarray:
        if key not in self.slot_base:
            self.slot_base[key], self.slot_size[key] = len(self.parent), size
            self.parent.extend(range(len(self.parent), len(self.parent) + size))
        return np.arange(self.slot_base[key], self.slot_base[key] + self.slot_size[key])

    def fixed(self, reason: str) -> int:
        """A new label that is frozen from the start."""
        self.parent.append(label := len(self.parent))
        self.reason[label] = reason
        return label
