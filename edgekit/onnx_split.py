"""A file with a latent, and the two files that it falls into there.

The latent is a tensor of uint8 symbols in the middle of the network. Per channel, with step Δ and low end m,

    symbol = clip(round((x − m) / Δ), 0, levels − 1),    x' = symbol · Δ + m.

The whole file computes both lines, so that it answers exactly as head and tail do one after the other: what crosses
are integers. The head ends, and the tail begins, with the cast. With a and b the least and the greatest value that a
channel held, and μ its median, `grid` places the levels from μ + s (a − μ) to μ + s (b − μ), with s in {1, 0.9, … 0.1}
of the least squared error: few levels lose less by cutting off rare large values than by coarse steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgekit.errors import BadInput
from edgekit.graph_onnx import shapes_at_batch_1

if TYPE_CHECKING:
    import onnx

LATENT = "latent"
MOST_LEVELS = 256
"""Of a symbol in a byte."""


@dataclasses.dataclass(frozen=True)
class Crossing:
    """What crosses a cut network's cut.

    Attributes:
        cut: the layer whose output the tail begins with.
        bottleneck: "activation", "entropic" or "reduction".
        levels: how many symbols there are.
        counts: how likely a trained prior holds each symbol of each channel, in whole numbers; None where that is to be
            counted on calibration images.
    """

    cut: str
    bottleneck: Literal["activation", "entropic", "reduction"]
    levels: int
    counts: tuple[np.ndarray, ...] | None = None


def grid(values: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Low end and step of each channel, float32 (C,), from what it holds, (C, n). A constant channel has step 1."""
    middle = np.median(values, axis=1)
    spans = [end(values, axis=1) - middle for end in (np.min, np.max)]
    best = np.full(len(values), np.inf)
    low, step = middle.copy(), np.ones(len(values))
    for share in np.arange(10, 0, -1) / 10:
        start, width = middle + share * spans[0], share * (spans[1] - spans[0]) / (levels - 1)
        width[width <= 0] = 1.0
        symbols = np.clip(np.round((values - start[:, None]) / width[:, None]), 0, levels - 1)
        error = np.square(symbols * width[:, None] + start[:, None] - values).sum(axis=1)
        better = error < best
        best = np.where(better, error, best)
        low, step = np.where(better, start, low), np.where(better, width, step)
    return low.astype(np.float32), step.astype(np.float32)


def with_latent(model: onnx.ModelProto, tensor: str, low: np.ndarray, step: np.ndarray, levels: int) -> onnx.ModelProto:
    """A copy of the model in which everything behind `tensor` reads it as symbols of 0 … levels − 1.

    Args:
        low, step: m and Δ of each channel, float32 (C,).
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    made = onnx.ModelProto()
    made.CopyFrom(model)
    place = next(index for index, node in enumerate(made.graph.node) if tensor in node.output)
    _read_instead(made, place + 1, tensor, f"{LATENT}.values")
    constants = {
        "low": low.reshape(-1, 1, 1),
        "step": step.reshape(-1, 1, 1),
        "zero": np.float32(0),
        "top": np.float32(levels - 1),
    }
    made.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, np.float32), f"{LATENT}.{name}") for name, value in constants.items()
    )
    chain: tuple[tuple[str, str, dict[str, int], str], ...] = (
        ("Sub", "low", {}, "shifted"), ("Div", "step", {}, "scaled"), ("Round", "", {}, "rounded"),
        ("Clip", "zero top", {}, "clipped"), ("Cast", "", {"to": TensorProto.UINT8}, ""),
        ("Cast", "", {"to": TensorProto.FLOAT}, "symbols"), ("Mul", "step", {}, "sized"), ("Add", "low", {}, "values"),
    )  # fmt: skip
    last = tensor
    for offset, (kind, operands, settings, result) in enumerate(chain, 1):
        names = [f"{LATENT}.{name}" for name in operands.split()]
        output = f"{LATENT}.{result}" if result else LATENT
        node = helper.make_node(kind, [last, *names], [output], f"{LATENT}/{kind}_{offset}", **settings)
        made.graph.node.insert(place + offset, node)
        last = output
    return made


def _read_instead(model: onnx.ModelProto, first: int, tensor: str, other: str) -> None:
    """All nodes from place `first` on read `other` in the place of `tensor`."""
    for node in list(model.graph.node)[first:]:
        for index, name in enumerate(node.input):
            if name == tensor:
                node.input[index] = other


def latent_of(model: onnx.ModelProto) -> str:
    """The name of the latent: what the one cast to uint8 makes.

    Raises:
        BadInput: the file has no latent, or several tensors that look like one.
    """
    found = _casts(model)
    if len(found) != 1:
        listed = ", ".join(found) or "none"
        raise BadInput(f"a file to cut has one cast to uint8, which makes its latent; this one has {listed}")
    return found[0]


def has_latent(model: onnx.ModelProto) -> bool:
    return len(_casts(model)) == 1


def _casts(model: onnx.ModelProto) -> list[str]:
    from onnx import TensorProto

    nodes = [node for node in model.graph.node if node.op_type == "Cast"]
    return [node.output[0] for node in nodes if node.attribute[0].i == TensorProto.UINT8]


def halves(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Head and tail of a file with a latent, which is called `latent` in both.

    Raises:
        BadInput: as `latent_of`, or something goes around the latent.
    """
    from onnx import TensorProto, helper

    name, sizes = latent_of(model), shapes_at_batch_1(model)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    shape = [batch.dim_value or batch.dim_param or None, *sizes[name][1:]]
    latent = helper.make_tensor_value_info(LATENT, TensorProto.UINT8, shape)
    before = _needed(model, [name], lambda _name: False)
    behind = _needed(model, [value.name for value in model.graph.output], lambda read: read == name)
    source = model.graph.input[0].name
    if any(source in model.graph.node[index].input for index in behind):
        raise BadInput(f"{source!r} is read behind the latent, too; cut where one tensor alone crosses")
    head, tail = (_part(model, places, name) for places in (before, behind))
    del head.graph.output[:], tail.graph.input[:]
    head.graph.output.append(latent)
    tail.graph.input.append(latent)
    return head, tail


def _needed(model: onnx.ModelProto, results: list[str], given: Callable[[str], bool]) -> list[int]:
    """The places of the nodes that `results` are computed by, from what is given."""
    wanted, places = set(results), []
    for place in range(len(model.graph.node) - 1, -1, -1):
        node = model.graph.node[place]
        if any(name in wanted and not given(name) for name in node.output):
            places.append(place)
            wanted.update(node.input)
    return places[::-1]


def _part(model: onnx.ModelProto, places: list[int], latent: str) -> onnx.ModelProto:
    """A copy of the model with these nodes alone."""
    import onnx

    part = onnx.ModelProto()
    part.CopyFrom(model)
    graph = part.graph
    nodes = [graph.node[place] for place in places]
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [LATENT if name == latent else name for name in names]
    known = {name for node in nodes for name in (*node.input, *node.output)}
    kept = [init for init in graph.initializer if init.name in known]
    infos = [info for info in graph.value_info if info.name in known]
    for field, values in ((graph.node, nodes), (graph.initializer, kept), (graph.value_info, infos)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
    return part
