"""This machine: what a latency depends on, and on x86 the answers of int8 kernels."""

from __future__ import annotations

import platform

from edgekit.devices.runner import cpu_flags, cpu_name, identity, machine

__all__ = ["cpu_flags", "cpu_name", "identity", "int8_saturates", "machine"]


def int8_saturates() -> bool:
    """Whether int8 kernels here add products in 16 bits, which full-range weights overflow: x86 without VNNI."""
    return platform.machine().lower() in ("x86_64", "amd64", "i686") and "vnni" not in cpu_flags()
