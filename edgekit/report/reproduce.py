"""How a bundle was made: the command, the recipe as it ran, and what it ran on."""

from __future__ import annotations

import shlex
from typing import Any

from edgekit.bundle import Bundle
from edgekit.report.extra import extra


def command(bundle: Bundle) -> str:
    """What was typed; of a bundle that does not say, the same with capitals where something is not known."""
    runs, manifest = bundle.manifest.get("runs", {}), bundle.manifest
    if runs.get("command"):
        return str(runs["command"])
    words = ["edgekit", "compress", model(manifest["source"]), "--recipe", "recipe.toml", "--data", "DATA"]
    return shlex.join([*words, "--out", "OUT", "--seed", str(manifest.get("seed", 0))])


def model(source: dict[str, Any]) -> str:
    """The MODEL argument of a source."""
    weights, args = source.get("weights") or {}, dict(source.get("args", {}))
    if "card" in weights:
        return str(weights["card"])
    if "file" in weights:
        args["weights"] = weights["file"]
    query = "&".join(f"{key}={value}" for key, value in args.items())
    return f"{source['name']}?{query}" if query else str(source["name"])


def recipe_toml(bundle: Bundle) -> str:
    """The recipe with its overrides, as a file that `--recipe` takes. Raises BadInput where tomli-w is missing."""
    return extra("tomli_w").dumps(bundle.manifest.get("recipe", {}).get("tables", {}))


def environment(bundle: Bundle) -> list[tuple[str, str]]:
    """What a reader must know of the machine, the versions and the data, as names and texts."""
    manifest, profile = bundle.manifest, bundle.latest("profile") or {}
    runs = manifest.get("runs", {})
    data = (f"{role} {item['n']:,} samples ({item['sha256'][:12]}…)" for role, item in manifest.get("data", {}).items())
    pairs = [
        ("made", f"{runs.get('started', 'not recorded')} to {runs.get('ended', 'not recorded')}"),
        ("scored on", machine_text(runs.get("machine", {}))),
        ("timed on", machine_text(profile["machine"]) if "machine" in profile else "not measured"),
        ("timing", _settings(profile.get("settings", {}))),
        ("versions", ", ".join(f"{name} {number}" for name, number in manifest.get("versions", {}).items())),
        ("Python", str(runs.get("python", "not recorded"))),
        ("data", "; ".join(data)),
        ("seed", str(manifest.get("seed", 0))),
        ("seal", bundle.seal),
    ]
    return [(name, text) for name, text in pairs if text]


def machine_text(found: dict[str, Any]) -> str:
    """A machine in a line."""
    if not found:
        return "not recorded"
    flags = ", ".join(found.get("flags") or []) or "no special features"
    load = found.get("load")
    busy = "" if load is None else f", load {load:.1f}"
    return f"{found.get('cpu', 'unknown CPU')}, {found.get('cores', '?')} cores ({flags}), {found.get('system')}{busy}"


def _settings(settings: dict[str, Any]) -> str:
    if not settings:
        return ""
    engines = ", ".join(f"{name} {version}" for name, version in settings.get("engines", {}).items())
    counts = ", ".join(f"{key} {settings[key]}" for key in ("runs", "threads", "batch") if key in settings)
    return f"{engines}; {counts}"
