"""The entropy coder of a latent: ANS over its channels, each by its own integer table.

Duda, Asymmetric numeral systems, 2013, arXiv 1311.2540; the coder is constriction's. It takes probabilities as floats,
and f / 2^b with b ≤ 16 is one exactly, as are sums of them, so both ends code alike on any machine. ANS and not range
coding, because the same library decodes a 24 × 28 × 28 latent a fifth faster with it and codes it as short.

ANS has no integrity of its own: altered words decode to other symbols and may still end on an empty stack. What comes
off the wire is checked before it gets here (`packet.py`); what this file promises is the shape, symbols within their
tables, and no other exception than PacketError.
"""

from __future__ import annotations

import functools
import math

import constriction
import numpy as np

from edgekit.errors import BadInput
from edgekit.split.tables import Tables

WORD = np.dtype("<u4")


class PacketError(BadInput):
    """Bytes off the wire that are no packet for this model."""


class Codec:
    """Codes latents of one shape (C, H, W) by one set of tables."""

    def __init__(self, tables: Tables, shape: tuple[int, int, int]) -> None:
        self.tables, self.shape, self.size = tables, shape, math.prod(shape)
        self._most = tables.symbols - 1

    @functools.cached_property
    def _models(self) -> list[constriction.stream.model.Categorical | None]:
        """A model for each channel; None for one that has a single symbol, which costs nothing."""
        total = np.float32(1 << self.tables.precision_bits)
        rows = (np.array(row, np.float32) / total for row in self.tables.frequencies)
        return [constriction.stream.model.Categorical(row, perfect=False) if len(row) > 1 else None for row in rows]

    def check(self, latent: np.ndarray) -> None:
        """Raises BadInput where it has another shape or type, or a symbol that its channel's table has not."""
        if latent.shape != self.shape or latent.dtype != np.uint8:
            raise BadInput(f"a latent must be uint8 {self.shape}; got {latent.dtype} {latent.shape}")
        largest = latent.reshape(len(latent), -1).max(axis=1)
        if (largest > self._most).any():
            channel = int((largest > self._most).argmax())
            raise BadInput(
                f"channel {channel} of the latent has the symbol {largest[channel]}; its table ends at "
                f"{self._most[channel]}"
            )

    def encode(self, latent: np.ndarray) -> bytes:
        """A latent, uint8 (C, H, W), as words of 32 bits.

        Raises:
            BadInput: as `check`.
        """
        self.check(latent)
        coder = constriction.stream.stack.AnsCoder()
        symbols = latent.reshape(len(latent), -1).astype(np.int32)
        for channel, model in reversed(list(zip(symbols, self._models))):  # a stack: the first to decode goes on last
            if model is not None:
                coder.encode_reverse(channel, model)
        return coder.get_compressed().astype(WORD).tobytes()

    def decode(self, payload: bytes) -> np.ndarray:
        """The inverse of `encode`: uint8 (C, H, W), every symbol within its table.

        Raises:
            PacketError: it is no code of such a latent, as far as ANS can tell.
        """
        if len(payload) % WORD.itemsize:
            raise PacketError(f"its payload has {len(payload)} bytes, no multiple of {WORD.itemsize}")
        latent = np.zeros((self.shape[0], math.prod(self.shape[1:])), np.uint8)
        try:
            coder = constriction.stream.stack.AnsCoder(np.frombuffer(payload, WORD).astype(np.uint32))
            for channel, model in zip(latent, self._models):
                if model is not None:
                    channel[:] = coder.decode(model, len(channel))
        except (AssertionError, ValueError) as error:
            raise PacketError(f"its payload cannot be decoded ({error})") from None
        if not coder.is_empty():
            raise PacketError("its payload goes on after the last symbol")
        return latent.reshape(self.shape)
