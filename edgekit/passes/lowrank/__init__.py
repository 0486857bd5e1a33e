"""Low-rank forms: layers become chains of smaller ones, where that pays.

Which forms there are stands in `edgekit.factorise`, how their weights are found in `decompose`, what each layer can
become in `candidates`, and which of it meets a budget in `choices`.
"""

from edgekit.passes.lowrank.lowrank import LowRank

__all__ = ["LowRank"]
