"""Which layers cost what: how much closer to the float network the file would answer if one layer stayed in float.

    gain_l = SQNR(file with layer l in float) − SQNR(file)

on the network's outputs, each file as the deployed runtime computes it. The other layers keep the integers that they
were fitted with.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgekit.parity import sqnr_db
from edgekit.quant.graph import Graph, plan
from edgekit.quant.grid import Grid
from edgekit.quant.session import open_session
from edgekit.quant.walk import FittedLayer
from edgekit.quant.write import quantised_model

if TYPE_CHECKING:
    import onnx

    from edgekit.quant.targets import Scheme


class Sensitivity:
    """Files of one fitted network with some of its layers in float, held against the float network.

    Args:
        model: the prepared float model that `grids` and `layers` belong to.
        batches: pictures (B, C, H, W) on which outputs are compared.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        grids: dict[str, Grid],
        layers: dict[str, FittedLayer],
        wanted: Scheme,
        batches: Sequence[np.ndarray],
    ) -> None:
        self.model, self.grids, self.layers, self.wanted, self.batches = model, grids, layers, wanted, batches
        self.graph = Graph(model)
        self.reference = self._outputs(model)
        self.known: dict[frozenset[str], float] = {}

    def file(self, in_float: Collection[str]) -> onnx.ModelProto:
        """The quantised file in which these layers stay in float."""
        planned = plan(self.graph, self.wanted, in_float)
        layers = {name: layer for name, layer in self.layers.items() if name not in in_float}
        grids = {name: self.grids[name] for name in planned.tensors}
        return quantised_model(self.model, planned, grids, layers, self.wanted)

    def sqnr_db(self, in_float: Collection[str] = ()) -> float:
        """Of the outputs of `file(in_float)`; each file is run once."""
        key = frozenset(in_float)
        if key not in self.known:
            self.known[key] = sqnr_db(self.reference, self._outputs(self.file(key)))
        return self.known[key]

    def gains(self, track: Callable[[Iterable, str, int], Iterable]) -> dict[str, float]:
        """For each layer by how many dB the outputs gain if it alone stays in float, the largest gain first.

        Empty where there is one layer, which has to stay in int8.
        """
        whole = self.sqnr_db()
        names = list(self.layers) if len(self.layers) > 1 else []
        found = {name: self.sqnr_db((name,)) - whole for name in track(names, "sensitivity of layers", len(names))}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def worst(self, least_db: float, gains: dict[str, float]) -> list[str]:
        """The fewest layers, of the largest gain first, that have to stay in float for outputs of `least_db`.

        Layers without a gain of their own are none of them, and one layer is always left in int8.
        """
        chosen: list[str] = []
        for name in [name for name, gain in gains.items() if gain > 0][: len(self.layers) - 1]:
            if self.sqnr_db(chosen) >= least_db:
                break
            chosen.append(name)
        return chosen

    def _outputs(self, model: onnx.ModelProto) -> np.ndarray:
        session = open_session(model)
        return np.concatenate([session.run(None, {self.graph.inputs[0]: batch})[0] for batch in self.batches])
