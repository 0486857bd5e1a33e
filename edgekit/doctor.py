"""What this machine has: versions, processor, engines and extras, and how to get what is missing."""

from __future__ import annotations

import importlib.util
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from edgekit import __version__
from edgekit.engines import cuda
from edgekit.machine import cpu_flags, cpu_name, int8_saturates

CORE = ("torch", "onnx", "onnxruntime", "onnxsim", "onnxscript", "numpy", "safetensors", "constriction", "pillow")
EXTRAS = {
    "kornia": ("kornia", "train"),
    "nvidia-ml-py": ("pynvml", "nvml"),
    "openvino": ("openvino", "openvino"),
    "prometheus-client": ("prometheus_client", "split"),
    "zigzag-dse": ("zigzag", "zigzag"),
    "scikit-learn": ("sklearn", "digits"),
    "starlette": ("starlette", "split"),
    "tensorrt": ("tensorrt", "tensorrt"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt-rtx"),
    "tomli-w": ("tomli_w", "report"),
    "urllib3": ("urllib3", "split"),
    "uvicorn": ("uvicorn", "split"),
    "vl-convert-python": ("vl_convert", "report"),
}


def examine() -> dict[str, Any]:
    """Everything `edgekit doctor` prints, as one document."""
    return {
        "schema": "edgekit/doctor/1",
        "edgekit": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": {"name": cpu_name(), "features": cpu_flags(), "int8": _int8_advice()},
        "caches": _caches(),
        "packages": {name: _version(name) for name in CORE},
        "extras": {name: _extra(name, *where) for name, where in EXTRAS.items()},
        "gpu": cuda.missing() is None,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _extra(package: str, module: str, extra: str) -> dict[str, Any]:
    present = importlib.util.find_spec(module) is not None
    return {"version": _version(package) if present else None, "get": f"pip install 'edgekit[{extra}]'"}


def _int8_advice() -> str:
    flags = cpu_flags()
    if "vnni" in flags or "dot product" in flags:
        return "full-range int8 files are right and fast here"
    if int8_saturates():
        return "no VNNI: full-range int8 files are wrong here; use the target onnxruntime, not onnxruntime-vnni"
    return "no dot product: int8 is right here, and may be no faster than float"


def _caches() -> dict[str, str]:
    from pathlib import Path

    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        found[f"L{level} {kind.lower()}"] = size
    return found
