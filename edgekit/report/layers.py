"""What is known of each layer of a file: its cost by the graph, its time and traffic by the profile, its sensitivity.

A layer is known by the name of its node, which is its module path. Time of a node that is no layer stands in a row of
its own, so that the times add up to what was measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from edgekit.bundle import Bundle
from edgekit.files import read_json
from edgekit.graph_onnx import layer_costs
from edgekit.onnx_file import read

if TYPE_CHECKING:
    import onnx


@dataclasses.dataclass(frozen=True)
class LayerMetric:
    """A column of the table of layers, and a plot of bars: key in a row, title, unit."""

    key: str
    title: str
    unit: str = ""


LAYER_METRICS = (
    LayerMetric("ms", "time", "ms"),
    LayerMetric("macs", "MACs"),
    LayerMetric("traffic_model_bytes", "modelled traffic", "B"),
    LayerMetric("bits", "bits a weight", "bits"),
    LayerMetric("gain_db", "sensitivity: gain when in float", "dB"),
)
MERGED = ("ms", "traffic_model_bytes", "traffic_measured_bytes")
"""What the lists of layers in a file's row, under LISTS, hold for each layer."""
LISTS = ("layers", "traffic_layers")


def file_layers(bundle: Bundle, row: dict[str, Any]) -> list[dict[str, Any]]:
    """A record per layer of one file of a bundle, in the file's order.

    Args:
        row: what the bundle knows of the file (see rows.py).

    Raises:
        BadInput: the file is no ONNX model.
    """
    found = with_measured(read(bundle.path / row["file"]), row)
    gains = _gains(bundle, row) if row["precision"] == "int8" else {}
    return [{**item, "gain_db": gains[item["layer"]]} if item["layer"] in gains else item for item in found]


def with_measured(model: onnx.ModelProto, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The layers of a model with what a profile's row measured of each."""
    layers = {item["layer"]: item for item in layer_costs(model)}
    for item in _measured(row):
        own = layers.setdefault(item["layer"], {"layer": item["layer"], "kind": "other"})
        for key in MERGED:
            if item.get(key) is not None:
                own[key] = own.get(key, 0.0) + item[key]
    return [_with_intensity({"place": place, **item}) for place, item in enumerate(layers.values())]


def _measured(row: dict[str, Any]) -> Iterable[dict[str, Any]]:
    return (item for name in LISTS for item in row.get(name) or [])


def _with_intensity(item: dict[str, Any]) -> dict[str, Any]:
    """MACs a byte and billions of MACs a second, for the roofline, where both of each are known."""
    macs, moved, ms = (item.get(key) for key in ("macs", "traffic_model_bytes", "ms"))
    intensity = {"intensity": macs / moved} if macs and moved else {}
    return {**item, **intensity, **({"gmacs_per_s": macs / ms / 1e6} if macs and ms else {})}


def _gains(bundle: Bundle, row: dict[str, Any]) -> dict[str, float]:
    """By how many dB an int8 file's outputs gain from each layer in float, where the recipe had that measured."""
    name = f"quant.{row['target']}.json"
    if name not in bundle.manifest["files"]:
        return {}
    return read_json(bundle.path / name, "edgekit/quant/1").get("gain_db") or {}
