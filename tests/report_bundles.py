"""Bundles made by hand for the tests of the report: small files, and whatever figures a test wants to be shown."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.bundle import Bundle, hashes, open_bundle

BASE, FP32, INT8 = "base.onnxruntime.fp32.onnx", "model.onnxruntime.fp32.onnx", "model.onnxruntime.int8.onnx"
HOSTILE = "</script><script>window.stolen = 1</script>\"'&|`\x00"


def chain(names: list[str], channels: int = 4, int8: bool = False) -> onnx.ModelProto:
    """Pointwise convolutions in a row, (1, channels, 2, 2) throughout, float or with int8 weights."""
    shape = [1, channels, 2, 2]
    nodes, weights = [], []
    for place, name in enumerate(names):
        weight = np.ones((channels, channels, 1, 1), np.int8 if int8 else np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{place}"))
        read = f"w{place}"
        if int8:
            weights.append(numpy_helper.from_array(np.float32(0.5), f"s{place}"))
            nodes.append(helper.make_node("DequantizeLinear", [read, f"s{place}"], [f"d{place}"]))
            read = f"d{place}"
        nodes.append(helper.make_node("Conv", [f"x{place}", read], [f"x{place + 1}"], name=name))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x0", f"x{len(names)}")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])


def step(stage: str, file: str, size: int, top1: float, **more: Any) -> dict[str, Any]:
    fixed = {"target": "onnxruntime", "engine": "onnxruntime", "engine_version": "1", "stand_in": None}
    cost = {"params": 1000, "macs": 5000, "cio": 300, "cio_paper": 300, "size_bytes": size}
    scores = {"metrics": {"top1": top1}, "metrics_torch": None, "n": 100, "skipped": 0}
    return {"stage": stage, "file": file, "precision": file.split(".")[-2], **fixed, **cost, **scores, **more}


def interval(median: float) -> dict[str, float]:
    return {"median": median, "low": 0.9 * median, "high": 1.1 * median, "level": 0.95, "n": 50}


def make_bundle(folder: Path, layers: list[str], *, profiled: bool = True, **manifest: Any) -> Bundle:
    """A sealed bundle of three files: 4 channels before, 2 after, and those in int8."""
    folder.mkdir(parents=True)
    models = {BASE: chain(layers), FP32: chain(layers, 2), INT8: chain(layers, 2, int8=True)}
    for name, model in models.items():
        onnx.save(model, folder / name)
    (folder / "train.01.csv").write_text("step,epoch,lr,loss,top1\n1,1,0.1,2.5,\n2,1,0.1,1.5,70\n3,2,0.1,1.0,90\n")
    quant = {"schema": "edgekit/quant/1", "gain_db": {name: 1.0 + place for place, name in enumerate(layers)}}
    (folder / "quant.onnxruntime.json").write_text(json.dumps(quant))
    document = {
        "schema": "edgekit/bundle/1",
        "source": {"kind": "zoo", "name": "mobilenet_v2", "args": {"width": 0.5}},
        "edits": [{"edit": "keep_channels", "layer": name, "dim": "out", "keep": [0, 1]} for name in layers[:1]],
        "recipe": {"name": "r", "tables": {"input": {"size": 2}, "pass": [{"name": "finetune", "epochs": 2}]}},
        "seed": 3,
        "versions": {"edgekit": "0.1.0"},
        "input": {"size": 2, "channels": "rgb", "resize": "squash", "mean": [0.5], "std": [0.5]},
        "output": {"task": "classify", "classes": 4},
        "data": {"test": {"n": 100, "sha256": "ab" * 32}},
        "steps": [step("base", BASE, 4000, 90.0), step("prune", FP32, 2000, 88.0), step("int8", INT8, 600, 87.5)],
        "files": hashes(folder, [*models, "train.01.csv", "quant.onnxruntime.json"]),
        "runs": {"machine": {"cpu": "A CPU", "cores": 2, "flags": [], "system": "Linux", "load": 0.0}},
        **manifest,
    }
    (folder / "manifest.json").write_text(json.dumps(document))
    bundle = open_bundle(folder)
    if profiled:
        bundle.add("profile", profile(layers))
        verdict = {"metric": "top1", "file": INT8, "rule": "max_drop", "limit": 1.0}
        found = {"outcome": "inconclusive", "value": 2.5, "low": 0.5, "high": 4.5}
        bundle.add("gates", {"verdicts": [{**verdict, **found}]})
    return bundle


def profile(layers: list[str], cpu: str = "A CPU") -> dict[str, Any]:
    """Times and traffic of the three files, whole and by layer."""
    rows = []
    for name, ms in ((BASE, 4.0), (FP32, 2.0), (INT8, 1.0)):
        times = [{"layer": each, "kind": "Conv", "ms": ms / len(layers)} for each in layers]
        moved = [{"layer": each, "traffic_model_bytes": 100 + 10 * place} for place, each in enumerate(layers)]
        row = {
            "file": name,
            "load_ms": 5.0,
            "latency_ms": interval(ms),
            "unstable": [],
            "layers": times,
            "traffic_layers": moved,
        }
        rows.append({**row, "traffic_model_bytes": 1e5 * ms, "roofline": {"macs_per_s": 1e9, "bytes_per_s": 1e10}})
    machine = {"cpu": cpu, "cores": 2, "flags": ["vnni"], "system": "Linux", "load": 0.1}
    return {
        "rows": rows,
        "unmeasured": {},
        "settings": {"engines": {"onnxruntime": "1"}, "runs": 50},
        "machine": machine,
    }
