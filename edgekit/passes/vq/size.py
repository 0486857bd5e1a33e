"""The size of a coded network by the convention of the papers on vector-quantised weights.

Codes take log₂ k bits each (whole ones), codebooks are float16 and all else is float32, a batch norm being two vectors:
its statistics are folded into scale and shift. The papers' unit is MiB, printed as "MB" (Stock et al., And the Bit Goes
Down, 2019, arXiv 1907.05686, and Martinez et al., Permute, Quantize, and Fine-tune, 2021, arXiv 2010.15703).
"""

from __future__ import annotations

from torch import nn

from edgekit.coded import coded_weights, decoded


def convention_bytes(module: nn.Module) -> float:
    """The size of a network in bytes, by that convention."""
    codes = coded_weights(module)
    rest = (parameter.numel() for name, parameter in decoded(module).named_parameters() if name not in codes)
    return sum(found.bits for found in codes.values()) / 8 + 4 * sum(rest)
