"""This machine: what a latency depends on, and on x86 the answers of int8 kernels."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """What a latency depends on and a reader must know."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "flags": cpu_flags(),
        "system": platform.system(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


WANTED_FLAGS = {
    "avx2": "avx2",
    "avx512f": "avx512",
    "avx512_vnni": "vnni",
    "avx_vnni": "vnni",
    "avx512_fp16": "fp16",
    "asimddp": "dot product",
    "asimdhp": "fp16",
    "i8mm": "int8 matmul",
}


def cpu_flags() -> list[str]:
    """The instruction sets that decide how fast, and on x86 how right, an int8 file is."""
    found = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return sorted({name for flag, name in WANTED_FLAGS.items() if flag in found})


def int8_saturates() -> bool:
    """Whether int8 kernels here add products in 16 bits, which full-range weights overflow: x86 without VNNI."""
    return platform.machine().lower() in ("x86_64", "amd64", "i686") and "vnni" not in cpu_flags()
