"""MobileNetV2 from eight bits a weight to two: shared-out bits beside plain k-means of the same packed bytes.

    python tools/benchmarks/coding_mobilenet.py      # about 40 minutes on one core; goes on where it was stopped

NIPS17-1000: 200 pictures without labels to fit on, the other 800 scored as the file that ships, in ONNX Runtime
(`coding_common.point`). Plain k-means gives each layer so many levels (Deep Compression's clustering, entropy-coded
like all else) and knows no pictures. `cluster` gets the bits that fit into the same packed bytes. Which layer and
channel gets how many is found on the 200 pictures alone. `CHOSEN` bits are measured with three draws of them.
"""

from typing import Any

import numpy as np
from coding_common import IMAGES, INT8, named, once, point, weights
from common import claim, write
from prune_common import Row

NETWORK, LEVELS, CHOSEN, DRAWS = "mobilenetv2_tf", (255, 64, 32, 16, 8, 4), 3.94, (0, 1, 2)
MARGIN = 0.004
"""Bits a weight that the parts of a file whose size varies (tables, scales) may take more."""
BYTES, DROP, AGREEMENT = 1_800_000, 2.0, 93.0
OTHERS: tuple[tuple[dict[str, Any], ...], ...] = (
    INT8,
    ({"name": "vq", "k": 256, "m": {"pointwise": 2, "linear": 2}, "method": {"name": "em", "images": IMAGES}},),
    ({"name": "vq", "k": 256, "m": {"pointwise": 4, "linear": 4}, "method": {"name": "em", "images": IMAGES}},),
)
"""Beside the two curves."""


def main() -> None:
    drawn = [measured(cluster(CHOSEN), draw) for draw in DRAWS]
    rest = drawn[0]["transport_bytes"] - CHOSEN * weights(NETWORK) / 8
    rows, pairs = list(drawn), []
    for levels in LEVELS:
        plain = measured(kmeans(levels))
        pairs.append((levels, plain, no_larger(plain["transport_bytes"], rest)))
        rows += pairs[-1][1:]
    rows += [measured(steps) for steps in OTHERS]
    write("coding_mobilenet", rows, [*chosen_claims(drawn), *curve_claims(pairs)])


def no_larger(size: int, rest: float) -> Row:
    """`cluster` with the bits that fit into so many packed bytes, of which about `rest` are not codes."""
    while True:
        bits = round(min(8 * (size - rest) / weights(NETWORK) - MARGIN, 8.0), 3)
        row = measured(cluster(bits))
        if row["transport_bytes"] <= size:
            return row
        rest = row["transport_bytes"] - bits * weights(NETWORK) / 8


def cluster(bits: float) -> tuple[Row, ...]:
    return ({"name": "cluster", "bits": bits, "images": IMAGES},)


def kmeans(levels: int) -> tuple[Row, ...]:
    return ({"name": "cluster", "levels": levels, "grid": "kmeans", "reconstruct": "none"},)


def measured(steps: tuple[Row, ...], draw: int = 0) -> Row:
    key = {"network": NETWORK, **named(steps), "draw": draw}
    return once("mobilenet", lambda: point(NETWORK, steps, draw), steps, **key)


def chosen_claims(rows: list[Row]) -> list[Row]:
    largest = max(row["transport_bytes"] for row in rows)
    drop, same = (float(np.mean([row[key] for row in rows])) for key in ("drop", "agreement"))
    return [
        claim("coding_mobilenet.bytes", f"≤ {BYTES} packed", largest, "bytes", largest <= BYTES),
        claim("coding_mobilenet.drop", f"≤ {DROP}, mean of three draws", drop, "points", drop <= DROP),
        claim("coding_mobilenet.agreement", f"≥ {AGREEMENT}, mean of three draws", same, "%", same >= AGREEMENT),
    ]


def curve_claims(pairs: list[tuple[int, Row, Row]]) -> list[Row]:
    """Never worse than plain k-means in no more bytes, and half its drop at 16 levels, four bits."""
    found = []
    for levels, plain, ours in pairs:
        at = f"in {ours['transport_bytes']:,} bytes; k-means {plain['drop']:.2f} in {plain['transport_bytes']:,}"
        ok = ours["drop"] <= plain["drop"] and ours["transport_bytes"] <= plain["transport_bytes"]
        found.append(claim(f"coding_mobilenet.levels_{levels}", f"not worse: {at}", ours["drop"], "points", ok))
    _, plain, ours = next(pair for pair in pairs if pair[0] == 16)
    half = plain["drop"] / 2
    required = f"≤ {half:.2f}, half of k-means' drop at 4 bits"
    found.append(claim("coding_mobilenet.half", required, ours["drop"], "points", ours["drop"] <= half))
    return found


if __name__ == "__main__":
    main()
