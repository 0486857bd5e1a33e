"""edgekit: from a vision network to a verified, gated file on an edge device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "compress", "load"]

if TYPE_CHECKING:
    from edgekit.run import compress, load


def __getattr__(name: str) -> Any:
    """`edgekit.compress` and `edgekit.load` import torch and the rest only when they are used."""
    if name in ("compress", "load"):
        from edgekit import run

        return getattr(run, name)
    raise AttributeError(f"module 'edgekit' has no attribute {name!r}")
