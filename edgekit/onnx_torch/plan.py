"""What a builder sees of a node and what it answers. A plan allocates nothing: all nodes are planned, and so checked,
before the first layer is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch import nn
from torch.nn.utils import skip_init

from edgekit.errors import BadInput
from edgekit.onnx_torch.document import Document, Node, Scalar, Shape, Tensor

Make = Callable[[], nn.Module]


def unchanged(array: np.ndarray) -> np.ndarray:
    return array


@dataclasses.dataclass(frozen=True)
class Weight:
    """Where an entry of a layer's state comes from: a constant of the file, and how its array is turned."""

    source: str
    change: Callable[[np.ndarray], np.ndarray] = unchanged


@dataclasses.dataclass(frozen=True)
class Plan:
    """A layer to make.

    Attributes:
        inputs: the activations it reads, in the order of its arguments.
        weights: state key -> where it comes from.
        before: a layer that the first input goes through on its way, for what torch's own layer cannot pad.
    """

    make: Make
    inputs: tuple[str, ...]
    weights: dict[str, Weight] = dataclasses.field(default_factory=dict)
    before: Make | None = None


def layer(cls: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> Make:
    """Makes a layer later."""
    return partial(cls, *args, **kwargs)


def weighted(cls: type[nn.Module], *args: Any, **kwargs: Any) -> Make:
    """Makes a layer with weights later, without drawing random numbers for them."""
    return partial(skip_init, cls, *args, **kwargs)


class Call:
    """One node as its builder sees it. Attributes are taken one by one: one that nobody takes is refused in `done`."""

    def __init__(self, node: Node, document: Document, tensors: dict[str, Tensor]) -> None:
        self.node = node
        self.opset = document.opset
        self._shapes = document.shapes
        self._tensors = tensors
        self._left = set(node.attributes)

    def fail(self, message: str) -> BadInput:
        return BadInput(f"{self.node}: {message}")

    def done(self) -> None:
        """Raises BadInput where the node carries an attribute that its builder does not know."""
        if self._left:
            names = ", ".join(sorted(self._left))
            raise self.fail(f"the attribute {names} cannot be taken over into PyTorch")

    # Attributes

    def ignore(self, *names: str) -> None:
        self._left.difference_update(names)

    def _take(self, name: str, kind: type | tuple[type, ...], default: Any) -> Any:
        self._left.discard(name)
        value = self.node.attributes.get(name, default)
        if value is not None and not isinstance(value, kind):
            raise self.fail(f"the attribute {name} = {value!r} is of the wrong type")
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        value = self._take(name, int, default)
        if value is None:
            raise self.fail(f"the attribute {name} is missing")
        return value

    def decimal(self, name: str, default: float) -> float:
        return float(self._take(name, (int, float), default))

    def text(self, name: str, default: str) -> str:
        return self._take(name, str, default)

    def integers(self, name: str, default: tuple[int, ...] | None = None) -> tuple[int, ...] | None:
        values = self._take(name, tuple, default)
        if values is not None and not all(isinstance(value, int) for value in values):
            raise self.fail(f"the attribute {name} = {values!r} is of the wrong type")
        return values

    def only(self, name: str, allowed: Scalar, default: Scalar | None = None) -> None:
        """Raises BadInput where an attribute says something else than the one thing that can be taken."""
        value = self._take(name, (int, float, str), allowed if default is None else default)
        if value != allowed:
            raise self.fail(f"{name} = {value!r} cannot be taken over into PyTorch; {name} = {allowed!r} can")

    # Inputs

    def has(self, index: int) -> bool:
        return index < len(self.node.inputs) and self.node.inputs[index] != ""

    def value(self, index: int = 0) -> str:
        """The name of the activation that is input `index`."""
        if not self.has(index) or self.node.inputs[index] in self._tensors:
            raise self.fail(f"input {index} must be computed by the network")
        return self.node.inputs[index]

    def is_constant(self, index: int) -> bool:
        return self.has(index) and self.node.inputs[index] in self._tensors

    def tensor(self, index: int, *shapes: Shape) -> Tensor:
        """The constant that is input `index`, of one of `shapes` where some are given."""
        if not self.is_constant(index):
            raise self.fail(f"input {index} is computed by the network; only a constant there can be taken over")
        found = self._tensors[self.node.inputs[index]]
        if shapes and found.shape not in shapes:
            wanted = " or ".join(map(str, shapes))
            raise self.fail(f"{found.name!r} has the shape {found.shape}; {wanted} would fit")
        return found

    def numbers(self, index: int) -> tuple[Any, ...] | None:
        """The values of a setting, as numbers; None where it is left out."""
        if not self.has(index):
            return None
        found = self.tensor(index)
        if found.values is None:
            raise self.fail(f"the values of {found.name!r} are not known")
        return tuple(float(value) if isinstance(value, str) else value for value in found.values)

    def number(self, index: int) -> float | None:
        values = self.numbers(index)
        if values and len(values) != 1:
            raise self.fail(f"input {index} has {len(values)} values; it takes one")
        return values[0] if values else None

    def setting(self, name: str, index: int) -> tuple[int, ...] | None:
        """Integers that older operator sets keep in an attribute and newer ones in an input."""
        given = self.integers(name)
        return given if given is not None else self.numbers(index)

    def shape(self, index: int = 0) -> Shape:
        """The shape of an input at batch 1."""
        name = self.value(index)
        if name not in self._shapes:
            raise self.fail(f"the shape of {name!r} is not known; give the file fixed sizes of height and width")
        return self._shapes[name]

    def rank(self, index: int = 0) -> int:
        return len(self.shape(index))

    def output_shape(self) -> Shape:
        name = self.node.outputs[0]
        if name not in self._shapes:
            raise self.fail("the shape of its output is not known; give the file fixed sizes of height and width")
        return self._shapes[name]

    def axis(self, value: int, rank: int | None = None) -> int:
        """A non-negative axis of the first input."""
        rank = self.rank() if rank is None else rank
        if not -rank <= value < rank:
            raise self.fail(f"axis {value} is outside a tensor of {rank} axes")
        return value % rank
