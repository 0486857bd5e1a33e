"""Which way a picture takes: answered on the device, by the head here and the tail there, or sent as a picture.

A way costs what the device spends on it, the link's round trip, its bytes over the link's rate, and what the server
spends on it:

    t(way) = here + rtt + bytes / rate + there,        t(device) = here.

All of these are measured while pictures go through, and forgotten by a factor each time, as links and loads change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

FORGET = 0.2
DEVICE = "device"


@dataclasses.dataclass
class Cost:
    """The running means of one way; None before the first picture took it."""

    here_ms: float | None = None
    sent_bytes: float = 0.0
    there_ms: float = 0.0

    def note(self, here_ms: float, sent_bytes: float = 0.0, there_ms: float = 0.0) -> None:
        """One more picture took this way."""
        if self.here_ms is None:
            self.here_ms, self.sent_bytes, self.there_ms = here_ms, sent_bytes, there_ms
            return
        self.here_ms += FORGET * (here_ms - self.here_ms)
        self.sent_bytes += FORGET * (sent_bytes - self.sent_bytes)
        self.there_ms += FORGET * (there_ms - self.there_ms)


@dataclasses.dataclass
class Link:
    """The running estimate of the way to the server; None before anything was measured."""

    rtt_ms: float | None = None
    ms_per_byte: float | None = None

    def note_round_trip(self, rtt_ms: float) -> None:
        """A question of hardly any bytes took so long."""
        self.rtt_ms = rtt_ms if self.rtt_ms is None else self.rtt_ms + FORGET * (rtt_ms - self.rtt_ms)

    def note(self, sent_bytes: int, wire_ms: float) -> None:
        """So many bytes went there and were answered, in so long without the server's own time."""
        rate = max(0.0, wire_ms - (self.rtt_ms or 0.0)) / sent_bytes
        self.ms_per_byte = rate if self.ms_per_byte is None else self.ms_per_byte + FORGET * (rate - self.ms_per_byte)

    def ms(self, sent_bytes: float) -> float:
        """How long so many bytes will take, there and back."""
        return (self.rtt_ms or 0.0) + sent_bytes * (self.ms_per_byte or 0.0)


def predicted_ms(way: str, cost: Cost, link: Link) -> float:
    """What a picture will take on that way; 0 for one that was never tried, so that it is."""
    if cost.here_ms is None:
        return 0.0
    return cost.here_ms + (0.0 if way == DEVICE else link.ms(cost.sent_bytes) + cost.there_ms)


def choose(costs: Mapping[str, Cost], link: Link) -> str:
    """The way that is predicted to take least."""
    return min(costs, key=lambda way: predicted_ms(way, costs[way], link))
