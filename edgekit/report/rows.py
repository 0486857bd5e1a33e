"""What is known of each stage and file of a bundle, in one record."""

from __future__ import annotations

from typing import Any

from edgekit.bundle import Bundle
from edgekit.gate import Verdict

# The metric of each task that the table shows, and its title.
METRICS = {"classify": ("top1", "top-1"), "segment": ("miou", "mIoU"), "detect": ("map", "mAP")}


def rows(bundle: Bundle) -> list[dict[str, Any]]:
    """A record per stage: what `compress` measured, and the latency of the newest profile.

    Bits a weight are 8 × packed bytes over the weights of the uncompressed network.
    """
    profile = bundle.latest("profile") or {"rows": [], "machine": bundle.manifest.get("runs", {}).get("machine", {})}
    timed = {row["file"]: row for row in profile["rows"]}
    hashes = {name: sealed["sha256"] for name, sealed in bundle.manifest["files"].items()}
    weights = next((step["params"] for step in bundle.manifest["steps"] if step["file"].startswith("base.")), None)
    merged = []
    for step in bundle.manifest["steps"]:
        timing = {key: value for key, value in timed.get(step["file"], {}).items() if key != "file"}
        known = {"cpu": profile["machine"].get("cpu"), "sha256": hashes.get(step["file"])}
        known["ratio_sha256"] = hashes.get(timing.get("ratio_to"))
        if weights and "transport_bytes" in step:
            known["bits"] = 8 * step["transport_bytes"] / weights
        merged.append({**step, **step["metrics"], **timing, **known})
    return merged


def shipped(bundle: Bundle) -> list[dict[str, Any]]:
    """The rows of the files that ship."""
    names = {path.name for path in bundle.models}
    return [row for row in rows(bundle) if row["file"] in names]


def base_row(bundle: Bundle) -> dict[str, Any]:
    """The row of the uncompressed network, which drops and ratios compare with."""
    return next(row for row in rows(bundle) if row["file"] == bundle.base.name)


def task(bundle: Bundle) -> str:
    return bundle.manifest["output"].get("task", "classify")


def newest_verdicts(bundle: Bundle) -> list[Verdict]:
    """How the gates that were judged last came out."""
    return [Verdict(**item) for item in (bundle.latest("gates") or {}).get("verdicts", [])]
