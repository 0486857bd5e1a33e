"""What `edgekit inspect --cuts` shows: where a network can be cut, what would cross, and how long an answer would take.

The prediction: the network's time on this machine, in ONNX Runtime, is shared out by MACs; the device is as fast as
this machine and the server `server_speed` times as fast; the link carries 8 bits a value at its bandwidth, without
delay. Entropy coding makes less of them, and neither it nor the server's queue is in the prediction.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.cuts import Cut, Cuts, net_cuts, onnx_cuts
from edgekit.data import Input, Output
from edgekit.errors import BadInput
from edgekit.export import export, serialise
from edgekit.graph import FLOAT_BYTES, trace
from edgekit.inspection import input_shape
from edgekit.net import build, parse_spec
from edgekit.onnx_file import fix_input, read
from edgekit.profile import time_files
from edgekit.rewrites.fold import fold_model
from edgekit.targets import target
from edgekit.terminal import make, show, si

if TYPE_CHECKING:
    import onnx

RUNS = 30
UNITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}


def cut_table(
    spec: str, input_size: int | None = None, bandwidth: str | None = None, server_speed: float = 1.0
) -> dict[str, Any]:
    """The cuts of a MODEL at batch 1, from the picture itself to the last.

    Args:
        bandwidth: of the link, such as "10Mbit" (a second); None predicts no times.
        server_speed: how many times as fast as this machine the server is.

    Raises:
        BadInput: no such model, it cannot run on that input or has no fixed size, or a bandwidth that is none.
    """
    rate = None if bandwidth is None else bits_per_second(bandwidth)
    cuts, model, shape = _onnx(spec, input_size) if spec.endswith(".onnx") else _net(spec, input_size)
    whole_ms = None if rate is None else _measured_ms(model)
    total = cuts.every[0].macs_left + cuts.every[0].macs_right if cuts.every else 0
    places = [Cut(("(input)",), None, shape, 0, total), *cuts.listed]
    rows = [_row(cut, whole_ms, rate, server_speed) for cut in places]
    found = {"schema": "edgekit/cuts/1", "model": spec, "input": list(shape), "cuts": rows}
    return found | ({"full_ms": whole_ms, "bits_per_second": rate, "server_speed": server_speed} if rate else {})


def bits_per_second(text: str) -> float:
    """Of "10Mbit", "250 kbit" or "1Gbit". Raises BadInput for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?bit)(?:/s)?", text.strip().lower())
    if match is None or float(match[1]) == 0:
        raise BadInput(f"bandwidth {text!r}: write a number and kbit, Mbit or Gbit, such as 10Mbit (a second)")
    return float(match[1]) * UNITS[match[2]]


def _net(spec: str, input_size: int | None) -> tuple[Cuts, Any, tuple[int, ...]]:
    shape = input_shape(spec.partition("?")[0], input_size)
    module = build(parse_spec(spec), trust=True).eval()
    return net_cuts(trace(module, shape)), (module, Input(size=shape[1:])), shape


def _onnx(spec: str, input_size: int | None) -> tuple[Cuts, onnx.ModelProto, tuple[int, ...]]:
    model = read(Path(spec))
    if input_size:
        model = fix_input(model, (3, input_size, input_size), spec)
    folded = fold_model(model)
    constants = {init.name for init in folded.graph.initializer}
    source = next(value for value in folded.graph.input if value.name not in constants)
    shape = tuple(dim.dim_value for dim in source.type.tensor_type.shape.dim[1:])
    if len(shape) != 3 or not all(shape):
        raise BadInput(f"{spec}: its input has no fixed (C, H, W); give --input-size")
    return onnx_cuts(folded), folded, shape


def _measured_ms(model: Any) -> float:
    if isinstance(model, tuple):
        module, taken = model
        model = export(module, taken, Output(), target("onnxruntime")).model
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(serialise(model))
        return time_files([path], "onnxruntime", RUNS, 1)[0]["latency_ms"]["median"]


def _row(cut: Cut, whole_ms: float | None, rate: float | None, server_speed: float) -> dict[str, Any]:
    row = {
        "layer": cut.layer,
        "shape": list(cut.shape),
        "float_bytes": FLOAT_BYTES * cut.size,
        "int8_bytes": cut.size,
        "macs_left": cut.macs_left,
        "macs_right": cut.macs_right,
    }
    if whole_ms is None or rate is None:
        return row
    parts = cut.macs_left + cut.macs_right / server_speed
    compute_ms = whole_ms * parts / max(1, cut.macs_left + cut.macs_right)
    return row | {"predicted_ms": compute_ms + 8000 * cut.size / rate}


def show_cuts(found: dict[str, Any]) -> None:
    """On the terminal."""
    timed = "predicted ms" if "full_ms" in found else ""
    headers = ["cut behind", "shape", "float32", "8 bit", "MACs before", "MACs behind", *filter(None, [timed])]
    made = make(*headers, title=found["model"])
    for row in found["cuts"]:
        cells = ["×".join(map(str, row["shape"])), f"{si(row['float_bytes'])}B", f"{si(row['int8_bytes'])}B"]
        cells += [si(row["macs_left"]), si(row["macs_right"])]
        made.add_row(row["layer"], *cells, *([f"{row['predicted_ms']:.2f}"] if timed else []))
    show(made)
    if timed:
        show(
            f"all here: {found['full_ms']:.2f} ms, shared out by MACs; a link of {si(found['bits_per_second'])}bit/s "
            f"without delay; a server {found['server_speed']:g} times as fast as this machine"
        )
