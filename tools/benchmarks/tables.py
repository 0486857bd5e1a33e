"""The tables of the READMEs, each made of one benchmark's results."""


def line(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def machine_note(document: dict) -> str:
    found = document["machine"]
    flags = ", ".join(found["flags"]) or "no special instructions"
    runtime = f"ONNX Runtime {document['versions']['onnxruntime']}"
    return f"{found['cpu']} ({flags}), {found['cores']} cores, {runtime}, {document['date']}."


def number(item: dict) -> str:
    value = item["measured"]
    return f"{value:,.0f} {item['unit']}" if abs(value) >= 10_000 else f"{value:.4g} {item['unit']}"


def interval(ratio: dict) -> str:
    return f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def claims_table(document: dict) -> str:
    lines = [line("figure", "asked", "measured", ""), "|---|---|---|---|"]
    for item in document["claims"]:
        lines.append(line(item["id"], item["required"], number(item), "" if item["ok"] else "missed"))
    return "\n".join([*lines, "", machine_note(document)])


def highlights(documents: dict[str, dict]) -> str:
    """A line a figure that says most, of the benchmarks that have been run."""
    lines = [line("what", "measured", "asked"), "|---|---:|---|"]
    for title, benchmark, id in HIGHLIGHTS:
        items = [item for item in documents.get(benchmark, {"claims": []})["claims"] if item["id"] == id]
        lines += [line(title, number(item), asked(item)) for item in items]
    return "\n".join(lines)


def asked(item: dict) -> str:
    return item["required"] + (" (missed)" if not item["ok"] else "")


def figures(documents: dict[str, dict]) -> str:
    """A line a benchmark: how many of the figures asked for are met, and which are not."""
    lines = [line("benchmark", "figures met", "missed"), "|---|---:|---|"]
    for name, document in documents.items():
        missed = [item["id"].removeprefix(f"{name}.") for item in document["claims"] if not item["ok"]]
        shown = ", ".join(missed) if len(missed) < MOST_NAMED else f"{missed[0]} and {len(missed) - 1} others"
        total = len(document["claims"])
        lines.append(line(f"`{name}.py`", f"{total - len(missed)} of {total}", shown))
    machines = dict.fromkeys(machine_note(document).partition(", ONNX")[0] for document in documents.values())
    return "\n".join([*lines, "", f"{'; '.join(machines)}."])


def quickstart_table(document: dict) -> str:
    head = line(
        "stage", "params", "MACs", "file kB", "CIO", "top-1 in PyTorch", "top-1 of the file", "latency, ratio [95 %]"
    )
    lines = [head, "|---|" + "---:|" * 7]
    for row in document["rows"]:
        torch_top1 = (row["metrics_torch"] or {}).get("top1")
        ratio = row["latency_ratio"]
        lines.append(
            line(
                row["stage"],
                f"{row['params']:,}",
                f"{row['macs'] / 1e6:.2f} M",
                f"{row['size_bytes'] / 1e3:.0f}",
                f"{row['cio'] / 1e6:.3f} M",
                "–" if torch_top1 is None else f"{torch_top1:.2f}",
                f"{row['metrics']['top1']:.2f}",
                interval(ratio),
            )
        )
    note = (
        f"{document['rows'][0]['n']} test images, 1 thread, all files interleaved in one run. {machine_note(document)}"
    )
    return "\n".join([*lines, "", note])


def zoo_table(document: dict) -> str:
    """A line a pair; a column for each input size and number of threads, beside what was published."""
    pairs = [row for row in document["rows"] if "reference" in row]
    places = list(dict.fromkeys((row["size"], row["threads"]) for row in pairs))
    titles = [f"{size}², {threads} thread{'s' * (threads > 1)}" for size, threads in places]
    lines = [line("network / reference", "MACs", "CIO", "published", *titles), "|---|" + "---:|" * (3 + len(places))]
    for name, reference in dict.fromkeys((row["network"], row["reference"]) for row in pairs):
        rows = {
            (row["size"], row["threads"]): row
            for row in pairs
            if (row["network"], row["reference"]) == (name, reference)
        }
        first = rows[places[0]]
        measured = [interval(rows[place]["ratio"]) for place in places]
        published = f"{first['published_ratio']:.2f} ({first['published_where'].split(',')[0]})"
        costs = (f"{first['macs_ratio']:.2f}", f"{first['cio_ratio']:.2f}")
        lines.append(line(f"{name} / {reference}", *costs, published, *measured))
    return "\n".join([*lines, "", machine_note(document)])


def distil_table(document: dict) -> str:
    """A line a loss: mean over the seeds, the seeds' spread, and what it gives over cross-entropy."""
    found = {row["loss"]: row for row in document["summary"]}
    lines = [line("loss", "seeds", "top-1", "spread", "over CE"), "|---|" + "---:|" * 4]
    for name, row in sorted(found.items(), key=lambda item: -item[1]["mean"]):
        spread = f"{row['spread']:.2f}" if row["n"] > 1 else "–"
        gain = row["mean"] - found["ce"]["mean"]
        lines.append(line(f"`{name}`", row["n"], f"{row['mean']:.2f}", spread, f"{gain:+.2f}" if name != "ce" else ""))
    speed = next((item for item in document["claims"] if item["id"] == "distil.speed"), None)
    pace = f" The loop runs at {speed['measured']:.2f} of a bare PyTorch loop's speed." if speed else ""
    return "\n".join(
        [*lines, "", f"10,000 test images, scored as files in ONNX Runtime.{pace} {machine_note(document)}"]
    )


def prune_table(document: dict) -> str:
    """Accuracy beside Torch-Pruning's, reconstruction without training, and budgets of latency beside those of MACs."""
    rows = document["rows"]
    parts = [
        prune_points(rows, "cifar_resnet_56", {"edgekit": "edgekit", "edgekit_plain": "without reconstruction"}),
        prune_points(rows, "cifar_resnet_20", {"edgekit": "edgekit", "tas": "TAS"}),
        prune_nips([row for row in rows if row["part"] == "nips"]),
        prune_latency([row for row in rows if row["part"] == "latency"]),
    ]
    return "\n\n".join([*parts, machine_note(document)])


def prune_points(rows: list[dict], network: str, runs: dict[str, str]) -> str:
    """Top-1 at half of the MACs, step by step."""
    rows = [row for row in rows if row.get("network") == network and "run" in row]
    unpruned = next((f", unpruned {row['top1']:.2f}" for row in rows if row["run"] == "unpruned"), "")
    runs = {**runs, "torch_pruning": "Torch-Pruning"}
    lines = [line(f"{network}, top-1{unpruned}", *runs.values()), "|---|" + "---:|" * len(runs)]
    for point, title in PRUNE_POINTS.items():
        found = [[row["top1"] for row in rows if (row["run"], row["point"]) == (run, point)] for run in runs]
        lines.append(line(title, *(f"{sum(each) / len(each):.2f}" if each else "–" for each in found)))
    return "\n".join(lines)


def prune_nips(rows: list[dict]) -> str:
    """Top-1 of MobileNetV2 without training."""
    top1 = {(row["way"], row["asked"]): f"{row['top1']:.2f}" for row in rows}
    shares = sorted({share for _, share in top1 if share < 1}, reverse=True)
    titles = [f"{100 * (1 - share):.0f} % of MACs gone" for share in shares]
    lines = [line(f"MobileNetV2, top-1, unpruned {top1['unpruned', 1.0]}", *titles), "|---|" + "---:|" * len(shares)]
    for way, title in PRUNE_WAYS.items():
        lines.append(line(title, *(top1.get((way, share), "–") for share in shares)))
    return "\n".join(lines)


def prune_latency(rows: list[dict]) -> str:
    """The share of the latency that is left, for both allocations of both budgets."""
    ratios = {tuple(row[key] for key in ("network", "asked", "allocation", "budget")): row["ratio"] for row in rows}
    kinds = [(how, budget) for how in ("uniform", "greedy") for budget in ("latency", "macs")]
    names = {"latency": "latency", "macs": "MACs"}
    titles = [f"{how}, asked of the {names[budget]}" for how, budget in kinds]
    lines = [line("share of the latency left", "asked", *titles), "|---|" + "---:|" * (1 + len(kinds))]
    for network, asked in dict.fromkeys(key[:2] for key in ratios):
        lines.append(line(network, asked, *(interval(ratios[network, asked, *kind]) for kind in kinds)))
    return "\n".join(lines)


def int8_table(document: dict) -> str:
    """A line a file: what it loses over the folds, how close its scores stay, its time, and how it was scored."""
    times = {row["network"]: row["files"] for row in document["rows"] if row["part"] == "latency"}
    lines = []
    for network in dict.fromkeys(row["network"] for row in document["summary"]):
        head = line(network, "drop, points", "scores, dB", "same answer, %", "time over fp32", "made in, s")
        lines += [head, "|---|" + "---:|" * 5]
        for row in document["summary"]:
            if row["network"] != network or row["file"] in row["same_file_as"] or row["file"] == "ort_entropy":
                continue
            drop, timed = row["drop"], times[network].get(row["file"])
            lines.append(
                line(
                    INT8_FILES[row["file"]],
                    f"{drop['mean']:.2f} [{drop['low']:.2f}, {drop['high']:.2f}]",
                    f"{row['sqnr_db']['mean']:.1f}",
                    f"{row['agreement']:.1f}",
                    interval(timed["to_fp32"]) if timed else "–",
                    f"{row['seconds_max']:.0f}",
                )
            )
        lines.append("")
    return "\n".join([*lines, machine_note(document)])


def int8_cifar_table(document: dict) -> str:
    """Networks trained on CIFAR-10: the float file and the int8 files of each target."""
    lines = [line("network", "float", *INT8_TARGETS.values()), "|---|" + "---:|" * (1 + len(INT8_TARGETS))]
    for network in dict.fromkeys(row["network"] for row in document["rows"]):
        rows = [row for row in document["rows"] if row["network"] == network]
        exact = [row for row in rows if row["precision"] == "fp32"][-1]["top1"]
        int8 = {row["target"]: f"{row['top1']:.2f}" for row in rows if row["precision"] == "int8"}
        name = "mobilenet_v2 pruned, distilled" if network == "whole" else network
        lines.append(line(name, f"{exact:.2f}", *(int8.get(wanted, "–") for wanted in INT8_TARGETS)))
    speed = ", ".join(f"{interval(ratio)} (`{wanted}`)" for wanted, ratio in document["speedup"].items())
    note = f"10,000 test images. The pruned int8 file is {speed} times as fast as the unpruned one."
    return "\n".join([*lines, "", f"{note} {machine_note(document)}"])


def coding_table(document: dict) -> str:
    """Bytes against answers, archivers beside them; the time of coded int8 files; the entropy coder; sizes."""
    rows = document["rows"]
    parts = [
        coding_curve([row for row in rows if row["part"] == "squeezenet"]),
        coding_archives([row for row in rows if row["part"] == "archives"]),
        coding_speed([row for row in rows if row["part"] == "speed"]),
        coding_coder(rows),
    ]
    sizes = ", ".join(f"{row['mib']:.3f} MiB" for row in rows if row["part"] == "sizes")
    note = f"ResNet-18 by `vq` and the papers' convention: {sizes}, as published. {machine_note(document)}"
    return "\n\n".join([*parts, note])


def coding_curve(rows: list[dict]) -> str:
    """A line a method and setting, the mean over its draws, from the largest file to the smallest."""
    lines = [
        line("method", "draws", "packed, bytes", "bits a weight", "drop, points", "same answer, %"),
        "|---|" + "---:|" * 5,
    ]
    points = []
    for method, setting in dict.fromkeys((row["method"], row["setting"]) for row in rows):
        same = [row for row in rows if (row["method"], row["setting"]) == (method, setting)]
        means = [
            sum(row[key] for row in same) / len(same)
            for key in ("transport_bytes", "bits_a_weight", "drop", "agreement")
        ]
        points.append((means, len(same), f"`{method}`, {setting}" if setting else method))
    for (packed, bits, drop, agreement), draws, title in sorted(points, reverse=True):
        lines.append(line(title, draws, f"{packed:,.0f}", f"{bits:.2f}", f"{drop:.2f}", f"{agreement:.1f}"))
    return "\n".join(lines)


def coding_archives(rows: list[dict]) -> str:
    """What general archivers make of the float and the int8 file."""
    lines = [line("bytes of the file", "as it is", "zip", "zstd", "xz", "packed"), "|---|" + "---:|" * 5]
    names = ("size_bytes", "zip_bytes", "zstd_bytes", "xz_bytes", "transport_bytes")
    return "\n".join([*lines, *(line(row["file"], *(f"{row[name]:,}" for name in names)) for row in rows)])


def coding_speed(rows: list[dict]) -> str:
    """Time of the coded int8 file over the plain int8 file's, and of loading them."""
    head = line("coded int8 file", "target", "time over plain int8", "loads in, ms", "plain int8 loads in, ms")
    lines = [head, "|---|---|" + "---:|" * 3]
    for row in rows:
        title = f"{row['network']}, {row['bits']} bits"
        loads = (f"{row['load_ms']:.0f}", f"{row['load_ms_int8']:.0f}")
        lines.append(line(title, f"`{row['target']}`", interval(row["latency_ratio"]), *loads))
    return "\n".join(lines)


def coding_coder(rows: list[dict]) -> str:
    """A line a file: bytes above its entropy, and MB of ONNX file that are decoded in a second."""
    pace = {(row["network"], row["file"]): row for row in rows if row["part"] == "decode"}
    head = line(
        "packed file", "entropy, bytes", "tensors and tables, bytes", "above it, %", "decoded, MB/s", "MB/s of CPU time"
    )
    lines = [head, "|---|" + "---:|" * 5]
    for row in [row for row in rows if row["part"] == "entropy"]:
        timed = pace[row["network"], row["file"]]
        taken = row["tensor_bytes"] + row["table_bytes"]
        paces = (f"{timed['mb_a_second']:.0f}", f"{timed['mb_a_cpu_second']:.0f}")
        title = f"{row['network']}, {'coded int8' if row['file'] == 'coded' else 'int8'}"
        lines.append(line(title, f"{row['entropy_bytes']:,}", f"{taken:,}", f"{row['excess']:.2f}", *paces))
    return "\n".join(lines)


def coding_mobilenet_table(document: dict) -> str:
    """Plain k-means and shared-out bits in the same bytes, and other methods below."""
    rows = document["rows"]
    drawn = [row for row in rows if row["method"] == "cluster" and row["setting"] == rows[0]["setting"]]
    rest = rows[len(drawn) :]
    plain = [row for row in rest if "levels" in row["setting"]]
    lines = [
        line(
            "k-means, levels",
            "packed, bytes",
            "drop, points",
            "`cluster`, packed, bytes",
            "drop, points",
            "same answer, %",
        )
    ]
    lines.append("|---:|" + "---:|" * 5)
    for row, ours in zip(plain, rest[1::2]):
        levels = row["setting"].partition(",")[0].removeprefix("levels = ")
        cells = [
            f"{row['transport_bytes']:,}",
            f"{row['drop']:.2f}",
            f"{ours['transport_bytes']:,}",
            f"{ours['drop']:.2f}",
        ]
        lines.append(line(levels, *cells, f"{ours['agreement']:.1f}"))
    size, drop, same = (sum(row[key] for row in drawn) / len(drawn) for key in ("transport_bytes", "drop", "agreement"))
    bits = drawn[0]["setting"].partition(",")[0].removeprefix("bits = ")
    chosen = f"Three draws of the pictures at {bits} bits: {size:,.0f} bytes, "
    chosen += f"a drop of {drop:.2f} points, the same answer for {same:.1f} %. "
    others = [f"{row['method']} {row['transport_bytes']:,} bytes, {row['drop']:.2f}" for row in rest[2 * len(plain) :]]
    return "\n".join(
        [*lines, "", f"{chosen}Packed bytes and drops of others: {'; '.join(others)}. {machine_note(document)}"]
    )


def coding_cifar_table(document: dict) -> str:
    """A line a way and its bits; of each network the mean top-1 over its seeds and the packed bytes."""
    rows = document["rows"]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    seeds = {name: len({row["seed"] for row in rows if row["network"] == name}) for name in networks}
    titles = [f"{name}, {count} seed{'s' * (count > 1)}" for name, count in seeds.items()]
    lines = [line("way", "bits", *titles), "|---|---:|" + "---:|" * len(networks)]
    for way, bits in dict.fromkeys((row["way"], row["bits"]) for row in rows):
        cells = []
        for name in networks:
            same = [row for row in rows if (row["network"], row["way"], row["bits"]) == (name, way, bits)]
            top1 = sum(row["top1"] for row in same) / len(same) if same else 0
            cells.append(f"{top1:.2f} in {same[0]['transport_bytes'] / 1000:.0f} kB" if same else "–")
        lines.append(line(f"`{way}`", bits, *cells))
    return "\n".join(
        [*lines, "", f"10,000 test images, scored as files in ONNX Runtime; packed bytes. {machine_note(document)}"]
    )


HIGHLIGHTS = (
    ("MobileNetV2 int8 for any x86, points lost on ImageNet pictures", "int8", "int8.mobilenetv2_tf.portable.drop"),
    ("… its time over ONNX Runtime's own int8 file's", "int8", "int8.mobilenetv2_tf.portable.latency_ratio"),
    (
        "pruned, distilled and int8 MobileNetV2, times as fast as int8 alone",
        "int8_cifar",
        "int8_cifar.whole.onnxruntime.speed",
    ),
    ("… points lost", "int8_cifar", "int8_cifar.whole.onnxruntime.drop"),
    ("MobileNetV2 in 4 bits a weight, without training: packed", "coding_mobilenet", "coding_mobilenet.bytes"),
    ("… points lost", "coding_mobilenet", "coding_mobilenet.drop"),
    ("a coded int8 file's time over the plain one's", "coding", "coding.speed.mobilenetv2_tf.onnxruntime"),
    (
        "ResNet-56 pruned by half of its MACs, top-1 without training",
        "prune",
        "prune.cifar_resnet_56.edgekit.reconstructed",
    ),
    ("wrong verdicts of `edgekit compare`, a file against itself", "profile_compare", "compare.false_verdicts"),
    ("5 % slower files found by it", "profile_compare", "compare.found"),
    ("gates that fail a commit against itself, on a disturbed machine", "gates", "gates.same.failures"),
    ("10 % slower commits that they fail", "gates", "gates.slower.disturbed"),
    ("MobileNetV2 cut without training, bytes a picture on the wire", "split", "split.activation.16"),
    ("ResNet-20 cut and trained, bytes at which it is above all other ways", "split", "split.late.curve"),
    ("… the nearest that it comes to the uncut network", "split", "split.late.near"),
    ("split computing: what the server adds to ONNX Runtime, p50", "split_serve", "split.added"),
    ("… requests answered wrongly or not at all, 64 clients for five minutes", "split_serve", "split.load.errors"),
    (
        "portable int8 MobileNetV2 on six other processors, answers that are the native ones",
        "lab",
        "lab.mobilenetv2_tf.portable.agreement",
    ),
    ("int8 layers that overflow without VNNI and were not foretold, of ten files", "lab", "lab.static.missed"),
    (
        "modelled against measured memory traffic, correlation of ranks",
        "profile_traffic",
        "traffic.all.spearman.traffic_model_bytes",
    ),
    ("… median error, float", "profile_traffic", "traffic.all.error.fp32"),
    ("… median error, int8", "profile_traffic", "traffic.all.error.int8"),
    ("time predicted by the roofline, median error on other families", "profile_roofline", "roofline.error"),
)
"""(what, benchmark, claim)"""
MOST_NAMED = 6
INT8_FILES = {
    "portable": "edgekit, `onnxruntime`",
    "fast": "edgekit, `onnxruntime`, recipe `int8_fast`",
    "vnni": "edgekit, `onnxruntime-vnni`",
    "tensorrt": "edgekit, `tensorrt`",
    "data_free": "edgekit, `onnxruntime`, no pictures (one fold)",
    "ort_minmax": "ONNX Runtime, min-max",
    "ort_portable": "ONNX Runtime, min-max, reduced range",
    "nncf_default": "NNCF 3.4, default",
    "nncf_mixed": "NNCF 3.4, MIXED, full bias correction",
    "aimet": "AIMET-ONNX 2.42",
}
INT8_TARGETS = {
    "onnxruntime": "int8, `onnxruntime`",
    "onnxruntime-vnni": "int8, `onnxruntime-vnni`",
    "tensorrt": "int8, `tensorrt`",
}
PRUNE_WAYS = {
    "magnitude": "magnitude alone",
    "data_free": "`udfc`, no data",
    "merging": "`merging`, no data",
    "data_driven": "`least_squares`, 200 pictures without labels",
}
PRUNE_POINTS = {
    "pruned": "half of the MACs gone",
    "reconstructed": "reconstructed",
    "reestimated": "batch norm re-estimated",
    "ce": "one epoch, labels",
    "kd": "one epoch, distilled",
}
LAB_FILES = {
    "portable": "edgekit, `onnxruntime`",
    "vnni": "edgekit, `onnxruntime-vnni`",
    "ort_minmax": "ONNX Runtime, min-max",
    "nncf_default": "NNCF, default",
}


def lab_table(document: dict) -> str:
    """A table a network: each file on each processor, in dB against the native answers, answers in a hundred that are
    others, and points of top-1 lost."""
    rows = [row for row in document["rows"] if row["part"] == "emulated"]
    parts = []
    for network in dict.fromkeys(row["network"] for row in rows):
        cells = {(row["file"], row["cpu"]): row for row in rows if row["network"] == network}
        processors = list(dict.fromkeys(cpu for _, cpu in cells))
        lines = [line(f"{network}: dB, others, lost", *processors), "|---|" + "---:|" * len(processors)]
        for file, title in LAB_FILES.items():
            found = [lab_cell(cells.get((file, cpu))) for cpu in processors]
            if set(found) != {"–"}:
                lines.append(line(title, *found))
        parts.append("\n".join(lines))
    counts = sorted({row["n"] for row in rows})
    note = f"{' to '.join(map(str, counts))} pictures each, under qemu; = is bit-identical. {machine_note(document)}"
    return "\n\n".join([*parts, note])


def lab_cell(row: dict | None) -> str:
    if row is None:
        return "–"
    same = row["sqnr_db"] >= 300
    others, lost = 100 - row["agreement"], row["native_top1"] - row["top1"]
    return "=" if same else f"{row['sqnr_db']:.1f}, {others:.0f}, {lost:.0f}"


def split_table(document: dict) -> str:
    """Bytes and accuracy of each way from the CIFAR network, and by cut and bits from the MobileNetV2."""
    rows = document["rows"]
    sent = [row for row in rows if row["part"] == "pictures" and row["quality"] in SPLIT_QUALITIES]
    uncut = next(row for row in rows if row["part"] == "activation" and not row["cut"])
    note = f"Uncut {uncut['top1']:.1f}. {machine_note(document)}"
    return "\n\n".join([split_trained(rows, sent), split_activation(rows, sent, uncut["network"]), note])


def split_trained(rows: list[dict], sent: list[dict]) -> str:
    """A line a trained cut, and one a picture sent."""
    trained = [row for row in rows if row["part"] in ("entropic", "reduction")]
    lines = [line("CIFAR ResNet-20", "bytes", "top-1", "MACs on the device"), "|---|---:|---:|---:|"]
    base = next(row for row in rows if row["part"] == "base")
    lines.append(line("uncut, on the device", "–", f"{base['top1']:.2f}", f"{base['macs'] / 1e6:.1f} M"))
    for row in sorted(trained, key=lambda row: (row["head"], row["part"], row["bytes"])):
        value = f"beta {row['beta']:g}" if row["part"] == "entropic" else f"{row['channels']:g} channels of 8 bits"
        title = f"{row['part']}, {row['head']}, {row['method'].replace('_', '-')}, {value}"
        lines.append(line(title, f"{row['bytes']:.0f}", f"{row['top1']:.2f}", f"{row['head_macs'] / 1e6:.1f} M"))
    for row in (row for row in sent if row["network"] == base["network"]):
        title = f"the picture as {row['format']}, quality {row['quality']}"
        lines.append(line(title, f"{row['bytes']:.0f}", f"{row['top1']:.2f}", "0"))
    return "\n".join(lines)


def split_activation(rows: list[dict], sent: list[dict], network: str) -> str:
    """A line a cut without training by the bits of its activation, and one a format of pictures by their quality."""
    cells = {(row["cut"], row["bits"]): row for row in rows if row["part"] == "activation" and row["cut"]}
    bits = sorted({key[1] for key in cells})
    lines = [line("MobileNetV2, cut behind", "MACs on the device", *(f"{value} bits" for value in bits))]
    lines.append("|---|---:|" + "---:|" * len(bits))
    for cut in dict.fromkeys(key[0] for key in cells):
        share = f"{cells[cut, bits[0]]['head_macs'] / 1e6:.0f} M"
        lines.append(line(f"`{cut}`", share, *(split_cell(cells[cut, value]) for value in bits)))
    for kind in ("JPEG", "WEBP"):
        points = [row for row in sent if (row["network"], row["format"]) == (network, kind)][::-1]
        qualities = ", ".join(str(row["quality"]) for row in points)
        lines.append(line(f"the picture as {kind}, quality {qualities}", "0", *map(split_cell, points)))
    return "\n".join(lines)


def split_cell(row: dict) -> str:
    return f"{row['bytes'] / 1e3:.1f} kB, {row['top1']:.1f}"


SPLIT_QUALITIES = (90, 80, 60, 30, 10)
TABLES = {
    "split": split_table,
    "prune": prune_table,
    "quickstart": quickstart_table,
    "zoo": zoo_table,
    "distil": distil_table,
    "int8": int8_table,
    "int8_cifar": int8_cifar_table,
    "coding": coding_table,
    "coding_mobilenet": coding_mobilenet_table,
    "coding_cifar": coding_cifar_table,
    "lab": lab_table,
}
