"""What a network costs as a function of how many rows each channel group keeps, without running it again.

Every size in the graph is linear in the rows kept: an activation's or a weight axis's size is

    s(k) = s_0 + Σ_g s_g · k_g,    k_g rows kept of group g,

where s_g counts its elements that carry one row's label (channels.py gives each row of a group the same number). So
parameters, bytes and MACs are sums of products of two such forms, CIO is a sum of forms, and the peak of the
activations is the largest of the sums at each operation. All are exact: equal to `trace(pruned module).cost()`.

A cost of another kind, such as measured latency, is a function of one operation and its shapes: see `CostModel.add`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from edgekit.channels import Group, Ties
from edgekit.graph import FLOAT_BYTES, LINEAR, PRODUCTS, Graph, Op, Shape, Value

LayerCost = Callable[[Op, Shape, Shape], float]
"""(operation as traced, shape of its first input, shape of its first output) -> its cost. The shapes are those after
pruning; kernel, stride and kind stand in the operation."""


class Metric(Protocol):
    """One cost. `kept` holds the rows that stay in each group, int64 (groups,)."""

    def total(self, kept: np.ndarray) -> float: ...

    def saved(self, kept: np.ndarray, steps: np.ndarray, limit: float) -> np.ndarray:
        """For each group, what the removal of `steps` of its rows takes from the cost above `limit`, (groups,).

        So at the limit 0 it is all that is saved; at a limit that is met, adding rows (`steps` below 0) gives 0 where
        it stays met.
        """
        ...

    def by_layer(self, kept: np.ndarray) -> dict[str, float]: ...


class Products(NamedTuple):
    """cost = Σ factor · (left @ k) · (right @ k) with k = (1, rows kept of each group...).

    `layers` and `factor` are (terms,), `left` and `right` float64 (terms, 1 + groups).
    """

    layers: list[str]
    factor: np.ndarray
    left: np.ndarray
    right: np.ndarray


class CostModel:
    """The costs of a network whose `groups` may lose rows; all that is not in a group stays as it is."""

    def __init__(self, found: Ties, groups: Sequence[Group]) -> None:
        self._forms = forms = _Forms(found, groups)
        graph = found.graph
        params = [forms.param(value) for value in graph.stored]
        learned = [term for value, term in zip(graph.stored, params) if value.param in graph.learned]
        idle = graph.params - sum(value.size for value in graph.stored if value.param in graph.learned)
        self.metrics: dict[str, Metric] = {
            "params": _Products(forms, [*learned, ("", idle, 0, 0)]),
            "macs": _Products(forms, [forms.macs(op) for op in graph.ops if op.is_conv or op.kind in PRODUCTS]),
            "cio": _Products(forms, _moved(forms, (op for op in graph.ops if op.is_conv or op.kind in LINEAR))),
            "cio_paper": _Products(forms, _moved(forms, graph.paper_convs)),
            "size_bytes": _Products(forms, [(layer, FLOAT_BYTES * n, i, j) for layer, n, i, j in params]),
            "peak_bytes": _Peak(forms, graph.alive, ["", *(op.layer for op in graph.ops)]),
        }

    def add(self, name: str, cost: LayerCost) -> None:
        """Another cost: the sum of `cost(op, input shape, output shape)` over every operation that makes new data.

        A table of measured latencies is added as `model.add("latency", table.milliseconds)`; `cost` gives 0 for what
        is free. It is asked once for each different pair of shapes.
        """
        self.metrics[name] = _Layers(self._forms, cost)

    def products(self, name: str) -> Products:
        """A cost that is a sum of products, open to be computed with other numbers than whole rows."""
        metric = self.metrics[name]
        if not isinstance(metric, _Products):
            raise ValueError(f"{name} is no sum of products")
        matrix = self._forms.matrix
        return Products(metric.layers, metric.factor, matrix[metric.left], matrix[metric.right])

    def costs(self, kept: np.ndarray) -> dict[str, float]:
        return {name: metric.total(kept) for name, metric in self.metrics.items()}


Term = tuple[str, int, int, int]
"""(layer, factor, form, form): factor times the product of two forms; form 0 is the constant 1."""


class _Forms:
    """The linear forms of a graph's sizes, each different one once, as rows (constant, rows of each group...)."""

    def __init__(self, found: Ties, groups: Sequence[Group]) -> None:
        self.found = found
        self.sizes = np.array([group.size for group in groups], np.int64)
        self._known: dict[bytes, int] = {}
        self._rows: list[np.ndarray] = []
        self._group = np.zeros(1 + max((int(c.max()) for c in found.classes.values() if len(c)), default=0), np.int64)
        for number, group in enumerate(groups, 1):
            axis, rows = next(iter(group.slots.items()))
            self._group[found.classes[axis][rows[:, 0]]] = number
        self.constant(1)

    @functools.cached_property
    def matrix(self) -> np.ndarray:
        """float64 (forms, 1 + groups), to be read once all forms are known."""
        return np.array(self._rows, np.float64)

    def values(self, kept: np.ndarray) -> np.ndarray:
        """Each form's value, (forms,). float64 is exact here: every number stays below 2⁵³."""
        return self.matrix[:, 0] + self.matrix[:, 1:] @ kept

    def constant(self, size: int) -> int:
        return self._add(np.concatenate([[size], np.zeros_like(self.sizes)]))

    def value(self, value: Value, share: int = 1) -> int:
        """The form of an activation's size in elements, divided by `share`."""
        return self._add(self.row(value) // share)

    def row(self, value: Value) -> np.ndarray:
        """int64 (1 + groups,)."""
        labels = self.found.values.get(value.index)
        if labels is None or not labels.size:
            return np.concatenate([[value.size], np.zeros_like(self.sizes)])
        return value.size // labels.size * self._count(labels)

    def param(self, value: Value) -> Term:
        """Its elements: the product of its axes, of which at most two vary."""
        factor, varying = 1, []
        for axis, size in enumerate(value.shape):
            classes = self.found.classes.get((str(value.param), axis))
            row = None if classes is None else self._count(classes)
            if row is not None and row[1:].any():
                varying.append(self._add(row))
            else:
                factor *= size
        i, j = (*varying, 0, 0)[:2]
        return str(value.param).rpartition(".")[0], factor, i, j

    def macs(self, op: Op) -> Term:
        """Output elements times the length of each sum; a transposed convolution spreads inputs instead."""
        if op.is_conv:
            x, weight, transposed = op.args[0], op.args[1], op.args[6]
            classes = self.found.classes.get((str(weight.param), 1))
            summed = self.constant(weight.shape[1]) if classes is None else self._add(self._count(classes))
            kernel = math.prod(weight.shape[2:])
            return op.layer, kernel, self.value(x if transposed else op.outputs[0]), summed
        x = op.args[1] if op.kind in ("addmm", "baddbmm") else op.args[0]
        return op.layer, 1, self.value(op.outputs[0]), self.value(x, share=x.size // x.shape[-1])

    def channels(self, value: Value) -> tuple[int, np.ndarray]:
        """The axis whose length varies, and its form (1 + groups,); where several vary, axis 0 as it is."""
        labels = self.found.values.get(value.index)
        long = [] if labels is None else [axis for axis, size in enumerate(labels.shape) if size > 1]
        if labels is None or len(long) != 1:
            return 0, np.concatenate([[value.shape[0] if value.shape else 1], np.zeros_like(self.sizes)])
        return long[0], self._count(labels)

    def _count(self, classes: np.ndarray) -> np.ndarray:
        """How many elements are constant, and how many there are to one row of each group."""
        found = np.bincount(self._group[classes.ravel()], minlength=1 + len(self.sizes))
        found[1:] //= self.sizes
        return found

    def _add(self, row: np.ndarray) -> int:
        number = self._known.setdefault(row.tobytes(), len(self._rows))
        if number == len(self._rows):
            self._rows.append(row)
        return number


def _moved(forms: _Forms, ops: Iterable[Op]) -> list[Term]:
    """Input plus output, as `Op.cio` counts them."""
    return [(op.layer, 1, forms.value(value), 0) for op in ops for value in (op.inputs[0], op.outputs[0])]


class _Products:
    """A sum of products of two forms."""

    def __init__(self, forms: _Forms, terms: list[Term]) -> None:
        self.forms = forms
        self.layers = [layer for layer, *_ in terms]
        self.factor = np.array([term[1] for term in terms], np.float64)
        self.left = np.array([term[2] for term in terms], np.int64)
        self.right = np.array([term[3] for term in terms], np.int64)

    def _each(self, kept: np.ndarray) -> np.ndarray:
        values = self.forms.values(kept)
        return self.factor * values[self.left] * values[self.right]

    def total(self, kept: np.ndarray) -> float:
        return float(self._each(kept).sum())

    @functools.cached_property
    def _curvature(self) -> np.ndarray:
        """Half the second derivative by each k_g, (groups,): where both forms count the group."""
        slopes = self.forms.matrix[:, 1:]
        return self.factor @ (slopes[self.left] * slopes[self.right])

    def saved(self, kept: np.ndarray, steps: np.ndarray, limit: float) -> np.ndarray:
        """f(k) − f(k − s e_g) = s · ∂f/∂k_g − s² · ½ ∂²f/∂k_g², exact since f is quadratic."""
        values, count = self.forms.values(kept), len(self.forms.matrix)
        weights = np.bincount(self.left, self.factor * values[self.right], count)
        weights += np.bincount(self.right, self.factor * values[self.left], count)
        saved = steps * (weights @ self.forms.matrix[:, 1:]) - steps**2 * self._curvature
        return _above(self.total(kept), saved, limit)

    def by_layer(self, kept: np.ndarray) -> dict[str, float]:
        return _summed(self.layers, self._each(kept))


class _Peak:
    """The largest of the sums of what is in memory at once."""

    def __init__(self, forms: _Forms, alive: list[list[Value]], layers: list[str]) -> None:
        rows = {value.index: forms.row(value) for values in alive for value in values}
        found = np.stack([np.sum([rows[value.index] for value in values], axis=0) for values in alive])
        self.places, first = np.unique(FLOAT_BYTES * found.astype(np.float64), axis=0, return_index=True)
        self.layers = [layers[place] for place in first]

    def _each(self, kept: np.ndarray) -> np.ndarray:
        return self.places[:, 0] + self.places[:, 1:] @ kept

    def total(self, kept: np.ndarray) -> float:
        return float(self._each(kept).max())

    def saved(self, kept: np.ndarray, steps: np.ndarray, limit: float) -> np.ndarray:
        """Taken from the sum of all that exceeds the limit: several places may be as high as the highest."""
        return _above(self._each(kept)[:, None], self.places[:, 1:] * steps, limit).sum(0)

    def by_layer(self, kept: np.ndarray) -> dict[str, float]:
        """What each layer finds in memory, its own output included."""
        found: dict[str, float] = {}
        for layer, size in zip(self.layers, self._each(kept).tolist()):
            found[layer] = max(size, found.get(layer, 0.0))
        return found


class _Layers:
    """A sum over operations of a function of their shapes."""

    def __init__(self, forms: _Forms, cost: LayerCost) -> None:
        self.cost = cost
        self.ops = working(forms.found.graph)
        ends = [(forms.channels(op.inputs[0]), forms.channels(op.outputs[0])) for op in self.ops]
        self.axes = [tuple(axis for axis, _ in pair) for pair in ends]
        # int64 (operations, 2, 1 + groups): how long the channel axes of input and output are
        self.rows = np.array([[row for _, row in pair] for pair in ends]).reshape(len(ends), 2, 1 + len(forms.sizes))
        self._known: dict[tuple[int, int, int], float] = {}

    def _one(self, number: int, lengths: np.ndarray) -> float:
        key = (number, int(lengths[0]), int(lengths[1]))
        if key not in self._known:
            op = self.ops[number]
            shapes = [
                tuple(length if axis == own else size for axis, size in enumerate(value.shape))
                for value, own, length in zip((op.inputs[0], op.outputs[0]), self.axes[number], key[1:])
            ]
            self._known[key] = float(self.cost(op, shapes[0], shapes[1]))
        return self._known[key]

    def _each(self, kept: np.ndarray) -> list[float]:
        lengths = self.rows[..., 0] + self.rows[..., 1:] @ kept
        return [self._one(number, pair) for number, pair in enumerate(lengths)]

    def total(self, kept: np.ndarray) -> float:
        return sum(self._each(kept))

    def saved(self, kept: np.ndarray, steps: np.ndarray, limit: float) -> np.ndarray:
        lengths, each = self.rows[..., 0] + self.rows[..., 1:] @ kept, self._each(kept)
        saved = np.zeros(len(kept))
        for number, group in np.argwhere(self.rows[..., 1:].any(1)):
            fewer = lengths[number] - steps[group] * self.rows[number, :, 1 + group]
            saved[group] += each[number] - self._one(number, fewer)
        return _above(sum(each), saved, limit)

    def by_layer(self, kept: np.ndarray) -> dict[str, float]:
        return _summed([op.layer for op in self.ops], self._each(kept))


def working(graph: Graph) -> list[Op]:
    """The operations that make new data from activations."""
    return [op for op in graph.ops if op.inputs and op.outputs and not op.is_view]


def layer_total(graph: Graph, cost: LayerCost) -> float:
    """A cost of layers, of a network as it was traced."""
    return sum(cost(op, op.inputs[0].shape, op.outputs[0].shape) for op in working(graph))


def _above(cost: np.ndarray | float, saved: np.ndarray, limit: float) -> np.ndarray:
    return np.maximum(cost - limit, 0) - np.maximum(cost - saved - limit, 0)


def _summed(layers: Sequence[str], costs: Iterable[float]) -> dict[str, float]:
    total: dict[str, float] = {}
    for layer, cost in zip(layers, costs):
        total[layer] = total.get(layer, 0.0) + float(cost)
    return total
