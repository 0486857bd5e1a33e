"""What the lab found, on the terminal."""

from __future__ import annotations

from typing import Any

from edgekit.terminal import decibel, make, percent, show


def show_isa(found: dict[str, Any]) -> None:
    """The layers whose int8 sums can overflow, each with its remedy."""
    unsafe = [row for row in found["rows"] if not row["safe"]]
    if unsafe:
        made = make("layer", "worst pair", "sum", "pairs beyond", "remedy", title=found["file"])
        for column in (made.columns[1], made.columns[4]):
            column.justify = "left"
        for row in unsafe:
            beyond = f"{row['beyond']:,} of {row['pairs']:,}"
            made.add_row(row["layer"], row["where"], f"{row['largest']:,}", beyond, row["remedy"])
        show(made)
    safe = len(found["rows"]) - len(unsafe)
    print(f"{safe} of {len(found['rows'])} int8 layers are safe on x86 without VNNI")


def show_instructions(found: dict[str, Any]) -> None:
    made = make("file", "instructions", "L1 misses", "last-level misses")
    for row in found["rows"]:
        made.add_row(row["file"], *(f"{row[key]:,}" for key in ("instructions", "l1_misses", "llc_misses")))
    show(made)


def show_lab(found: dict[str, Any]) -> None:
    """The answers of each file on each processor, beside those here."""
    metrics = list(dict.fromkeys(name for row in found["rows"] for name in row["metrics"]))
    made = make("file", "CPU", "samples", *metrics, "same answers %", "SQNR dB")
    for row in found["rows"]:
        samples = f"{row['n']}, time over" if row["partial"] else str(row["n"])
        values = [percent(row["metrics"].get(name)) for name in metrics]
        made.add_row(
            row["file"], row["cpu"], samples, *values, percent(row.get("agreement")), decibel(row.get("sqnr_db"))
        )
    made.columns[1].justify = "left"
    show(made)
    for row in found["rows"]:
        if "diverging" in row:
            layers = ", ".join(row["diverging"][:6]) or "none"
            print(f"{row['file']} as {row['cpu']}: first layers to differ: {layers}")
    for reason in found["failed"].values():
        print(f"failed: {reason}")
