"""What is known of each stage and file of a bundle, in one record."""

from __future__ import annotations

from typing import Any

from edgekit.bundle import Bundle
from edgekit.gate import Verdict

# The metric of each task that the table shows, and its title.
METRICS = {"classify": ("top1", "top-1"), "segment": ("miou", "mIoU"), "detect": ("map", "mAP")}


# What a file is wherever it runs; what else a step holds was found on the machine that made the bundle.
FIXED = (
    "stage file target precision params macs cio cio_paper size_bytes transport_bytes traffic_model_bytes weight_bytes "
    "peak_bytes"
).split()


def rows(bundle: Bundle) -> list[dict[str, Any]]:
    """A record per stage: what `compress` measured, and the latency of the newest profile.

    Bits a weight are 8 × packed bytes over the weights of the uncompressed network.
    """
    profile = bundle.latest("profile") or {"rows": [], "machine": bundle.manifest.get("runs", {}).get("machine", {})}
    return [
        {**step, **step["metrics"], **_timing(bundle, step["file"], profile), **_bits(bundle, step)}
        for step in bundle.manifest["steps"]
    ]


def device_rows(bundle: Bundle) -> list[dict[str, Any]]:
    """A record per device and file that was measured there: what the file is anywhere, and the newest measurement."""
    found = []
    for profile in bundle.device_profiles:
        measured = {row["file"] for row in profile["rows"]}
        for step in bundle.manifest["steps"]:
            if step["file"] in measured:
                fixed = {key: step[key] for key in FIXED if key in step}
                timed = {**_timing(bundle, step["file"], profile), "device": profile["device"]}
                found.append({**fixed, **timed, **_bits(bundle, step)})
    return found


def _timing(bundle: Bundle, file: str, profile: dict[str, Any]) -> dict[str, Any]:
    """What a profile measured of a file, on what, and whose file its ratio is to."""
    timed: dict[str, Any] = next((row for row in profile["rows"] if row["file"] == file), {})
    hashes = {name: sealed["sha256"] for name, sealed in bundle.manifest["files"].items()}
    known = {"cpu": profile["machine"].get("cpu"), "sha256": hashes.get(file)}
    return {**timed, **known, "file": file, "ratio_sha256": hashes.get(timed.get("ratio_to"))}


def _bits(bundle: Bundle, step: dict[str, Any]) -> dict[str, float]:
    steps = bundle.manifest["steps"]
    weights = next((base["params"] for base in steps if base["file"].startswith("base.")), None)
    return {"bits": 8 * step["transport_bytes"] / weights} if weights and "transport_bytes" in step else {}


def shipped(bundle: Bundle) -> list[dict[str, Any]]:
    """The rows of the files that ship."""
    return _of_models(bundle, rows(bundle))


def judged(bundle: Bundle) -> list[dict[str, Any]]:
    """The rows of the files that ship, here and on every device that they were measured on."""
    return _of_models(bundle, [*rows(bundle), *device_rows(bundle)])


def _of_models(bundle: Bundle, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = {path.name for path in bundle.models}
    return [row for row in found if row["file"] in names]


def base_row(bundle: Bundle) -> dict[str, Any]:
    """The row of the uncompressed network, which drops and ratios compare with."""
    return next(row for row in rows(bundle) if row["file"] == bundle.base.name)


def task(bundle: Bundle) -> str:
    return bundle.manifest["output"].get("task", "classify")


def newest_verdicts(bundle: Bundle) -> list[Verdict]:
    """How the gates that were judged last came out."""
    return [Verdict(**item) for item in (bundle.latest("gates") or {}).get("verdicts", [])]
