"""What every benchmark shares: the machine, the versions, and the file that its figures go into."""

import datetime
import json
import sys
from pathlib import Path
from typing import Any

from edgekit.job import versions
from edgekit.profile import machine

RESULTS = Path(__file__).parent / "results"


def claim(id: str, required: str, measured: float, unit: str, ok: bool) -> dict[str, Any]:
    """A figure that was asked for, met or not."""
    return {"id": id, "required": required, "measured": measured, "unit": unit, "ok": ok}


def write(name: str, rows: list[dict[str, Any]], claims: list[dict[str, Any]], seed: int = 0, **extra: Any) -> None:
    """Write `results/NAME.json` and print the claims."""
    found = machine()
    found.pop("load")
    document = {
        "schema": "edgekit/benchmark/1",
        "machine": found,
        "versions": versions(),
        "command": " ".join(["python", f"tools/benchmarks/{name}.py", *sys.argv[1:]]),
        "seed": seed,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "rows": rows,
        "claims": claims,
        **extra,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    for item in claims:
        mark = "ok  " if item["ok"] else "MISS"
        print(f"{mark} {item['id']}: {item['measured']:.4g} {item['unit']} ({item['required']})")
