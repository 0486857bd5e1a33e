"""Transformable Architecture Search; see `search.py`."""

from edgekit.passes.tas.search import Tas

__all__ = ["Tas"]
