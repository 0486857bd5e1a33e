"""What the commands print: tables on stdout, at 80 columns too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgekit import gate, report
from edgekit.terminal import decibel, digits, joules, latency, make, megabytes, percent, show, si
from edgekit.verify import compared

if TYPE_CHECKING:
    from edgekit.bundle import Bundle


def show_inspection(found: dict[str, Any]) -> None:
    made = make("layer", "input", "output", "params", "MACs", "CIO", "MoC", title=found["model"])
    for row in found["layers"]:
        shapes = ("×".join(map(str, row[side])) for side in ("input", "output"))
        made.add_row(
            row["layer"] or row["op"], *shapes, si(row["params"]), si(row["macs"]), si(row["cio"]), si(row["moc"])
        )
    total = found["total"]
    made.add_section()
    made.add_row("total", "", "", si(total["params"]), si(total["macs"]), si(total["cio"]), "")
    show(made)
    if "peak_bytes" in total:
        sizes = f"weights {si(total['weight_bytes'])}B, activations at least {si(total['peak_bytes'])}B at once"
        show(f"float32, batch 1: {sizes}; CIO by HarDNet's count {si(total['cio_paper'])}")
    if found["uncounted"]:
        show(f"not counted: {', '.join(found['uncounted'])}")
    if "phones" in found:
        show_accelerators(found["phones"])


def show_accelerators(found: dict[str, Any]) -> None:
    made = make("accelerator", "nodes taken", "in parts", "operators left to the CPU")
    made.columns[-1].justify = "left"
    for row in found["rows"]:
        made.add_row(row["accelerator"], f"{row['taken']} of {row['nodes']}", str(row["parts"]), ", ".join(row["left"]))
    show(made)
    print(found["what"])


def show_traffic(found: dict[str, Any], layers: bool) -> None:
    """The three tiers, each in a column of its own: they count different things."""
    if layers:
        show_traffic_layers(found["layers"])
    title = f"{found['file']}, batch 1"
    made = make("MACs", "CIO", "CIO, HarDNet's", "modelled bytes", "measured bytes", title=title)
    measured, by = found.get("traffic_measured_bytes"), found.get("measured_by")
    made.add_row(
        *(si(found[name]) for name in ("macs", "cio", "cio_paper")),
        f"{found['traffic_model_bytes'] / 1e6:.2f} MB",
        "–" if measured is None else f"{measured / 1e6:.2f} MB",
    )
    show(made)
    print(f"last-level cache of {found['llc_bytes'] / 2**20:g} MiB, {found['board'] or 'no board'}, one core")
    parts = ", ".join(f"{part} {size / 1e6:.2f}" for part, size in found["model_parts"].items())
    print(f"modelled, MB: {parts}")
    print(f"measured by {by['provider']}" if by else "measured: no; --measure cachegrind does, in a minute or more")
    if "cross_check" in found:
        show_cross_check(found["cross_check"])


def show_cross_check(found: dict[str, Any]) -> None:
    """What another program counts for an accelerator, beside the bytes of each layer's tensors."""
    made = make(
        "layer", "weights", "in", "out", "all", "each tensor once", title=f"{found['by']} {found['version']}, bytes"
    )
    keys = ("weights_bytes", "input_bytes", "output_bytes", "traffic_bytes", "once_bytes")
    for row in found["layers"]:
        made.add_row(row["layer"], *(f"{row.get(key, 0):,}" for key in keys))
    made.add_row("total", *(f"{sum(row.get(key, 0) for row in found['layers']):,}" for key in keys))
    show(made)
    print(f"int8 on {found['accelerator']}, between its last memory and the one before")
    for name in found["uncounted"]:
        print(f"{name}: not counted by {found['by']}")


def show_traffic_layers(rows: Sequence[dict[str, Any]]) -> None:
    made = make("layer", "MACs", "weights", "in", "out", "traffic", "MACs/B", "ms")
    for row in rows:
        sizes = [si(row[name]) for name in ("macs", "weights_bytes", "input_bytes", "output_bytes")]
        sizes[2] += "*" if row["resident"] else ""
        traffic, least = si(row["traffic_model_bytes"]), row["least_ms"]
        time = "–" if least is None else f"{least:.3f}{row['bound'][0]}"
        made.add_row(row["layer"], *sizes, traffic, si(row["macs_per_byte"]), time)
    show(made)
    print("bytes of each, and those from memory; * the input was in the cache")
    print("ms: at least, on one core, by its peak (c, compute) or its bandwidth (m, memory)\n")


def show_report(bundle: Bundle, as_json: bool, markdown: bool = False) -> int:
    """Print a bundle's table and the newest verdicts; returns the exit code of those."""
    verdicts = report.newest_verdicts(bundle)
    if as_json:
        print(json.dumps(report.document(bundle), indent=1))
    elif markdown:
        print(report.markdown(bundle, verdicts), end="")
    else:
        show(report.table(bundle))
        if sized := report.size_table(bundle):
            show(sized)
        for line in report.notes(bundle):
            print(line)
        for verdict in verdicts:
            print(report.verdict_line(verdict))
        print(f"\nbundle: {bundle.path}")
    return gate.exit_code(verdicts)


def show_reports(bundles: Sequence[Bundle], as_json: bool, markdown: bool = False) -> None:
    """Print the tables of several bundles, each under its name; of one alone as `show_report`."""
    if len(bundles) == 1:
        show_report(bundles[0], as_json, markdown)
    elif as_json:
        documents = [report.document(bundle) for bundle in bundles]
        print(json.dumps({"schema": "edgekit/reports/1", "reports": documents}, indent=1))
    else:
        for name, bundle in zip(report.names([bundle.path for bundle in bundles]), bundles):
            print(f"### {report.plain_markdown(name)}\n" if markdown else name)
            show_report(bundle, False, markdown)
            print()


def show_profile(found: dict[str, Any], most: int = 12) -> None:
    """The latencies; then loading, throughput and a long run; then the slowest layers of each file."""
    rows = found["rows"]
    tails = [name for name in ("p90", "p99") if any(f"latency_{name}_ms" in row for row in rows)]
    made = make("file", "latency ms [95 %]", *tails, "ratio [95 %]")
    for row in rows:
        shown = (digits(row.get(f"latency_{name}_ms")) for name in tails)
        made.add_row(row["file"], latency(row["latency_ms"]), *shown, latency(row["latency_ratio"]))
        if "end_to_end_ms" in row:
            made.add_row("  picture to answer", latency(row["end_to_end_ms"]), *("" for _ in tails), "")
    show(made)
    _show_others(rows)
    for row in rows:
        _show_layers(row, most)
    _show_conditions(found, found["settings"]["engines"])
    for name, reason in found["unmeasured"].items():
        print(f"{name}: not measured: {reason}")
    if "memory" in found:
        show_memory(found)
        show_energy(found)


def show_memory(found: dict[str, Any]) -> None:
    """What `memory.with_memory` added to a profile."""
    made = make("memory, MB", "weights", "activations", "arena", "loaded", "running")
    keys = "weight_bytes peak_bytes arena_bytes resident_load_bytes resident_run_bytes".split()
    for row in found["rows"]:
        made.add_row(row["file"], *(megabytes(row.get(key)) for key in keys))
    show(made)
    for row in (row for row in found["rows"] if "peak_unknown" in row):
        print(f"{row['file']}: activations not counted: {row['peak_unknown']}")
    for name, reason in found["memory"]["unmeasured"].items():
        print(f"{name}: resident memory not measured: {reason}")


def show_energy(found: dict[str, Any]) -> None:
    """What `energy.with_energy` added to a profile."""
    for name, of in found["energy"].items():
        if "missing" in of:
            print(f"energy in {name}: no meter here: {of['missing']}")
            continue
        made = make("file", "J a run [95 %]")
        for row in (row for row in found["rows"] if row["engine"] == name):
            made.add_row(row["file"], joules(row["energy_j"]))
        show(made)
        print(f"{of['meter']}; idle {of['idle_w']['median']:.1f} W, which the joules include")


def _show_others(rows: Sequence[dict[str, Any]]) -> None:
    streams = next((row["throughput"]["streams"] for row in rows if "throughput" in row), None)
    more = [f"images/s, {streams} at once [95 %]"] if streams else []
    more += ["sustained ms"] if any("sustained" in row for row in rows) else []
    made = make("file", "load ms", "first ms", *more)
    for row in rows:
        cells = []
        if "throughput" in row:
            cells.append(latency(row["throughput"]["images_per_s"]))
        if "sustained" in row:
            ends = (digits(row["sustained"][index]["median_ms"]) for index in (0, -1))
            cells.append(" → ".join(ends))
        made.add_row(row["file"], digits(row["load_ms"]), digits(row["first_ms"]), *cells)
    show(made)


def _show_layers(row: dict[str, Any], most: int) -> None:
    if "layers_unknown" in row:
        print(f"{row['file']}: layers not measured: {row['layers_unknown']}")
    if "layers" not in row:
        return
    *layers, other = row["layers"]
    slowest = sorted(layers, key=lambda layer: -layer["ms"])
    whole = row["layers_whole_ms"]
    made = make(
        "layer", "kind", "ms", "%", "traffic", "least ms", title=f"{row['file']}, {digits(whole)} ms in these rounds"
    )
    rest = {"layer": f"{len(slowest) - most} more", "kind": "", "ms": sum(item["ms"] for item in slowest[most:])}
    for item in [*slowest[:most], *([rest] if slowest[most:] else []), other]:
        share = f"{100 * item['ms'] / whole:.1f}"
        made.add_row(item["layer"], item["kind"], f"{item['ms']:.3f}", share, *_traffic_cells(row, item["layer"]))
    show(made)
    if "traffic_layers_unknown" in row:
        print(f"{row['file']}: traffic of layers not modelled: {row['traffic_layers_unknown']}")


def _traffic_cells(row: dict[str, Any], layer: str) -> tuple[str, str]:
    """The modelled traffic of a layer, and its time at least, by compute (c) or memory (m)."""
    found = [item for item in row.get("traffic_layers", []) if item["layer"] == layer]
    if not found:
        return "", ""
    moved = si(sum(item["traffic_model_bytes"] for item in found))
    if "least_ms" not in found[0]:
        return moved, ""
    slowest = max(found, key=lambda item: item["least_ms"])
    return moved, f"{sum(item['least_ms'] for item in found):.3f}{slowest['bound'][0]}"


def _show_conditions(found: dict[str, Any], engines: dict[str, str]) -> None:
    """What was measured by, and why the times are not to be trusted where they are not."""
    settings, cpu = found["settings"], found["machine"]["cpu"]
    names = ", ".join(f"{name} {version}" for name, version in engines.items()) or "no engine"
    threads, batch = settings["threads"] or "all", settings["batch"]
    print(f"{cpu}, threads: {threads}, batch {batch}, {names}")
    for row in found["rows"]:
        for reason in row["unstable"]:
            print(f"unstable: {row['file']} {reason}")
    for reason in found["unstable"]:
        print(f"unstable: {reason}")


def show_comparison(found: dict[str, Any]) -> None:
    made = make("file", "latency ms [95 %]", *(["score"] if "scores" in found else []))
    for row, score in zip(found["rows"], found.get("scores", [None, None])):
        metrics = [", ".join(f"{name} {value:.2f}" for name, value in score["metrics"].items())] if score else []
        made.add_row(row["file"], latency(row["latency_ms"]), *metrics)
    show(made)
    for line in verdict_lines(found):
        print(line)
    _show_conditions(found, {row["engine"]: found["settings"]["versions"][row["engine"]] for row in found["rows"]})


def verdict_lines(found: dict[str, Any]) -> list[str]:
    """What a comparison found, in words."""
    ratio, (first, second) = found["ratio"], (row["file"] for row in found["rows"])
    spread = "no ratio after so few rounds"
    if ratio is not None:
        spread = f"ratio {ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}] at {ratio['level']:.1%}"
    verdicts = {
        "slower": f"{second} is slower than {first}",
        "faster": f"{second} is faster than {first}",
        "same": f"{second} takes the time of {first} to {found['floor']:.0%}",
        "undecided": f"whether {second} is faster or slower than {first}; give it more --seconds, or a quieter machine",
    }
    rounds = f"{found['rows'][0]['latency_ms']['n']} rounds, {found['seconds']:.1f} s"
    return [f"{found['verdict']}: {verdicts[found['verdict']]}", f"{spread}, {rounds}"]


def show_packed(found: dict[str, Any]) -> None:
    made = make("kind", "tensors", "bytes", "packed", "entropy")
    for row in found["rows"]:
        entropy = "" if row["entropy_bytes"] is None else f"{row['entropy_bytes']:,}"
        tensors = str(row["tensors"] or "")
        made.add_row(row["kind"], tensors, f"{row['file_bytes']:,}", f"{row['transport_bytes']:,}", entropy)
    made.add_section()
    made.add_row("total", "", f"{found['size_bytes']:,}", f"{found['transport_bytes']:,}", "")
    show(made)
    print(f"{found['transport_bytes'] / found['size_bytes']:.3f} of {found['file']}")


def show_verdicts(verdicts: Sequence[gate.Verdict], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"schema": "edgekit/gates/1", "verdicts": report.verdicts_json(verdicts)}, indent=1))
        return
    for verdict in verdicts:
        print(report.verdict_line(verdict))


def show_verified(found: dict[str, Any]) -> None:
    made = make("file", "found", "needed")
    for row in found["rows"]:
        value, needed, unit = compared(row)
        made.add_row(row["file"], f"{value:.1f} {unit}", f"{needed:g}")
    show(made)
    print("verified")


def show_score(found: dict[str, Any]) -> None:
    made = make("metric", "value", title=f"{found['file']} in {found['engine']}, {found['n']} samples")
    for name, value in found["metrics"].items():
        made.add_row(name, f"{value:.2f}")
    show(made)
    if found["skipped"]:
        print(f"{found['skipped']} images could not be decoded and were left out")


def show_fleet(found: dict[str, Any]) -> None:
    """The latencies on every device, what they were measured on, and what could not be measured."""
    made = make("device", "file", "latency ms [95 %]", "ratio [95 %]")
    for profile in found["profiles"]:
        for row in profile["rows"]:
            ratio = latency(row["latency_ratio"]) if len(profile["rows"]) > 1 else ""
            made.add_row(profile["device"], row["file"], latency(row["latency_ms"]), ratio)
    made.columns[1].justify = "left"
    show(made)
    for profile in found["profiles"]:
        print(f"{profile['device']}: ", end="")
        _show_conditions(profile, profile["settings"]["engines"])
        for row in profile["rows"]:
            _show_layers({**row, "file": f"{profile['device']}: {row['file']}"}, 12)
        for name, reason in profile["unmeasured"].items():
            print(f"{name}: not measured on {profile['device']}: {reason}")
    show_failed(found["failed"])


def show_device_scores(found: dict[str, Any]) -> None:
    """The metrics here and on each device, and how many answers differ from those here."""
    here = {"device": "here", **found["here"]}
    metrics = list(here["metrics"])
    made = make("where", *metrics, "same answers %", "SQNR dB", title=f"{found['file']}, {found['n']} samples")
    for row in (here, *found["devices"]):
        values = [row["metrics"].get(name) for name in metrics]
        made.add_row(row["device"], *map(percent, (*values, row.get("agreement"))), decibel(row.get("sqnr_db")))
    show(made)
    for row in (here, *found["devices"]):
        machine = row["machine"]
        flags = f" ({', '.join(machine['flags'])})" if machine["flags"] else ""
        print(f"{row['device']}: {machine['cpu']}{flags}, {found['engine']} {row['engine_version']}")
    show_failed(found["failed"])
    if found["skipped"]:
        print(f"{found['skipped']} images could not be decoded and were left out")


def show_layer_tables(found: dict[str, Any]) -> None:
    made = make("device", "model", "latency ms [95 %]", "layers", "error %", "worst %")
    for row in found["rows"]:
        errors = (f"{100 * row['error'][name]:.1f}" for name in ("median", "worst"))
        made.add_row(row["device"], row["model"], latency(row["latency_ms"]), str(row["layers"]), *errors)
    made.columns[1].justify = "left"
    show(made)
    for row in found["rows"]:
        print(f"{row['device']}: {row['what']}\nkept in {row['path']}")
    show_failed(found["failed"])


def show_failed(failed: dict[str, str]) -> None:
    for reason in failed.values():
        print(f"not measured: {reason}")


def show_device(found: dict[str, Any]) -> None:
    made = make("what", "found")
    made.columns[-1].justify = "left"
    for name in ("device", "system", "python", "numpy", "onnxruntime"):
        made.add_row(name, found[name])
    made.add_row("free there", f"{found['free_bytes'] / 1e6:,.0f} MB")
    made.add_row("kept there", f"{found['cache_bytes'] / 1e6:,.1f} MB in {found['folder']}")
    if found["freed_bytes"] is not None:
        made.add_row("removed", f"{found['freed_bytes'] / 1e6:,.1f} MB")
    show(made)


def show_bisection(found: dict[str, Any], most: int = 12) -> None:
    """The layers where the files part, and the last layer."""
    falls = [row for row in found["rows"] if row["layer"] in found["diverging"]]
    made = make("layer", "SQNR dB", "worse than its inputs by dB", title=" → ".join(found["files"]))
    for row in [*falls[:most], found["rows"][-1]]:
        made.add_row(row["layer"], f"{row['sqnr_db']:.1f}", f"{row['fall_db']:.1f}")
    show(made)
    if not falls:
        print("no layer is much worse than its inputs")
    elif len(falls) > most:
        print(f"and {len(falls) - most} layers more; --json lists every tensor")
    if not found["as_deployed"]:
        print("observing the tensors changed the answers: what was compared is not exactly what is deployed")


def show_doctor(found: dict[str, Any]) -> None:
    made = make("what", "found")
    made.columns[-1].justify = "left"
    made.add_row("edgekit", found["edgekit"])
    made.add_row("python", found["python"])
    made.add_row("system", found["system"])
    made.add_row("cpu", f"{found['cpu']['name']} ({', '.join(found['cpu']['features']) or 'no special features'})")
    made.add_row("int8 here", found["cpu"]["int8"])
    made.add_row("caches", ", ".join(f"{name} {size}" for name, size in found["caches"].items()) or "unknown")
    for name, number in found["packages"].items():
        made.add_row(name, number or "missing")
    for name, extra in found["extras"].items():
        made.add_row(name, extra["version"] or f"not installed; {extra['get']}")
    made.add_row("gpu", "yes" if found["gpu"] else "none found")
    show(made)
