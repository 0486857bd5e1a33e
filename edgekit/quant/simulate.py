"""A quantised network as a PyTorch module that can be trained, and back.

Learned step sizes (Esser et al.: Learned Step Size Quantization, 2019, arXiv 1902.08153): with v = x / s, a quantiser

    x̂ = s · ⌊clip(v, low − z, high − z)⌉

passes gradients through the rounding as if it were not there, which gives x inside the range the gradient 1 and
outside 0, and s the paper's gradient (equation 3), scaled by 1 / sqrt(N · (high − z)) (section 2.2). Quantisers stand
exactly where the file has QuantizeLinear and DequantizeLinear, weights start on their grid, and zero points stay as
they are: so the integers that are written are those that were trained.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from edgekit.errors import BadInput
from edgekit.masked import MaskedWeight
from edgekit.onnx_torch import GraphModule, to_module
from edgekit.onnx_torch.module import Step
from edgekit.quant.graph import Graph, Plan, layer_matrix, layer_weight
from edgekit.quant.grid import Grid
from edgekit.quant.walk import FittedLayer

if TYPE_CHECKING:
    import onnx

    from edgekit.quant.targets import Scheme


SMALLEST = 1e-9


class Quantiser(nn.Module):
    """x̂ of the equation above.

    Args:
        scale: float (1,), or (C,) for the first axis of the tensor.
        limits: low and high, for all values or for each.
        count: values that one scale is for, N.
    """

    low: torch.Tensor
    high: torch.Tensor

    def __init__(self, scale: torch.Tensor, zero_point: int, limits: Any, count: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale)
        for name, limit in zip(("low", "high"), limits):
            self.register_buffer(name, torch.as_tensor(limit, dtype=torch.float32) - zero_point, persistent=False)
        self.damp = 1 / math.sqrt(max(1, count) * max(1.0, float(self.high.mean())))

    @property
    def step(self) -> torch.Tensor:
        """The scale, kept above 0 whatever training makes of it."""
        return self.scale.abs().clamp(min=SMALLEST)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = self.step.detach()
        scale = value + self.damp * (self.step - value)  # the value, and a share of the gradient
        scale = scale.reshape(-1, *[1] * (x.ndim - 1)) if len(scale) > 1 else scale
        steps = (x / scale).clamp(self.low, self.high)
        return (steps + (steps.round() - steps).detach()) * scale


class Simulated:
    """The module of a fitted network, and the way back to integers.

    Args:
        model: the prepared float model that plan, grids and layers belong to.

    Raises:
        BadInput: the graph holds what cannot be taken over into PyTorch.
    """

    def __init__(
        self, model: onnx.ModelProto, planned: Plan, grids: dict[str, Grid], layers: dict[str, FittedLayer],
        wanted: Scheme,
    ) -> None:  # fmt: skip
        self.plan, self.grids, self.layers, self.wanted = planned, grids, layers, wanted
        self.graph = Graph(model)
        self.nodes = {node.name: node for node in self.graph.nodes}
        self.module = to_module(model)
        self.steps = {step.outputs[0]: step for step in self.module.graph_steps if step.outputs}
        self.quantisers = {group: self._quantiser(group) for group in planned.groups}
        for name in layers:
            self._quantise_weight(name)
        self._insert()

    def _layer(self, name: str) -> Any:
        """The PyTorch layer of a node."""
        return self.module.get_submodule(self.steps[self.nodes[name].output[0]].layer)

    def _quantiser(self, group: tuple[str, ...]) -> Quantiser:
        grid = self.grids[group[0]]
        scale = torch.tensor(grid.scale, dtype=torch.float32)
        return Quantiser(scale, grid.zero_point, self.wanted.activation_range, count=1)

    def _quantise_weight(self, name: str) -> None:
        fitted, layer = self.layers[name], self._layer(name)
        if parametrize.is_parametrized(layer):
            raise BadInput(f"qat: {name} shares its weight with another layer, which cannot be trained in int8")
        weight, scale = layer.weight, torch.from_numpy(fitted.scales.copy())
        held = MaskedWeight(tuple(weight.shape))
        held.kept.copy_(weight)  # a sparse network stays as sparse
        integers = torch.from_numpy(self._torch_order(name, fitted.integers)).float()
        with torch.no_grad():
            weight.copy_(integers * scale.reshape(-1, *[1] * (weight.ndim - 1)))
            if fitted.bias is not None and layer.bias is not None:
                layer.bias.copy_(torch.from_numpy(np.asarray(fitted.bias, np.float32)))
        if fitted.bias is not None and layer.bias is None:
            layer.bias = nn.Parameter(torch.from_numpy(np.asarray(fitted.bias, np.float32)))
        limits = [torch.from_numpy(self._torch_order(name, ends)) for ends in fitted.bounds]
        quantiser = Quantiser(scale, 0, limits, weight.numel() // len(scale))
        for form in (quantiser, held):
            parametrize.register_parametrization(layer, "weight", form)

    def _torch_order(self, name: str, array: np.ndarray) -> np.ndarray:
        """A layer's weight as PyTorch keeps it: output channels first."""
        node = self.nodes[name]
        matrix = layer_matrix(node, array)  # (groups, C_out / groups, K)
        return np.ascontiguousarray(matrix.reshape(-1, matrix.shape[2]).reshape(self._layer(name).weight.shape))

    def _insert(self) -> None:
        """Quantisers as steps of the module, and every planned edge reads behind them."""
        members = {name: group for group in self.plan.groups for name in group}
        paths = {group: f"quantiser_{index}" for index, group in enumerate(self.plan.groups)}
        for group, path in paths.items():
            self.module.add_layer(path, self.quantisers[group])
        readers = {step.outputs: self._edges(step, members) for step in self.module.graph_steps if step.outputs}
        steps: list[Step] = []
        if self.module.graph_source in members:
            steps.append(self._quantised(self.module.graph_source, paths[members[self.module.graph_source]]))
        for step in self.module.graph_steps:
            inputs = tuple(f"{name}\nquantised" if name in readers[step.outputs] else name for name in step.inputs)
            steps.append(Step(step.layer, inputs, step.outputs))
            steps += [self._quantised(name, paths[members[name]]) for name in step.outputs if name in members]
        made = GraphModule(steps, self.module.graph_source, self.module.graph_results)
        for path, layer in self.module.named_children():
            made.add_module(path, layer)
        self.module = made

    def _edges(self, step: Step, members: dict[str, tuple[str, ...]]) -> set[str]:
        """The tensors that a step reads through their quantisers."""
        node = self.graph.producer.get(step.outputs[0])
        if node is None:  # the padding in front of a layer reads what the layer would
            layer = self.graph.producer[step.outputs[0].partition("\n")[0]]
            return {layer.input[0]} if (layer.name, 0) in self.plan.edges else set()
        found = {name for index, name in enumerate(node.input) if (node.name, index) in self.plan.edges}
        return found & set(members)

    @staticmethod
    def _quantised(name: str, path: str) -> Step:
        return Step(path, (name,), (f"{name}\nquantised",))

    def trained(self) -> tuple[dict[str, Grid], dict[str, FittedLayer]]:
        """Grids and integers as they are now."""
        grids = dict(self.grids)
        for group, quantiser in self.quantisers.items():
            scale = quantiser.step.item()
            grids |= {name: dataclasses.replace(self.grids[name], scale=(scale,)) for name in group}
        return grids, {name: self._read(name) for name in self.layers}

    def _read(self, name: str) -> FittedLayer:
        layer, node, old = self._layer(name), self.nodes[name], self.layers[name]
        quantiser = layer.parametrizations.weight[0]
        weight, scale = layer.parametrizations.weight.original.detach(), quantiser.step.detach()
        steps = weight / scale.reshape(-1, *[1] * (weight.ndim - 1))
        integers = steps.clamp(quantiser.low, quantiser.high).round().to(torch.int8).numpy()
        matrix = integers.reshape(layer_matrix(node, old.integers).shape)
        stored = layer_weight(node, matrix, old.integers.shape)
        bias = None if layer.bias is None else layer.bias.detach().double().numpy()
        return FittedLayer(np.ascontiguousarray(stored), old.bounds, scale.numpy().copy(), bias, old.raised)
