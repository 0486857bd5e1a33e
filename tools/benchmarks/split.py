"""Bytes on the wire and accuracy of cut networks, against sending the picture.

    python tools/benchmarks/split.py                  # about 8 hours on one core; goes on where it was stopped
    python tools/benchmarks/split.py --part pictures  # one part; parts can run one after the other in any order
    python tools/benchmarks/split.py --write          # the JSON from what there is

Parts on the CIFAR-10 copy, all of one ResNet-20 that is first fine-tuned on these JPEGs, like the cut ones after it:

    base       that network, uncut
    pictures   the picture as JPEG (the scan alone: its tables are agreed beforehand) and as WebP (without its 20 bytes
               of file header), decoded and given to the uncut network
    late       the network's own layers up to layer3.0, and an encoder in the place of the next block
    middle     its own layers up to layer2, likewise
    light      the encoder alone, from the picture, in the place of the stem and layer1

each of the last three with a prior, by the weight of a bit (`entropic`), and with batch norm in the same encoder,
without a rate, by the channels of 8 bits (`reduction`); both trained by the same methods. Of a given MobileNetV2 on
NIPS17-1000, where 200 pictures without labels calibrate and 800 are scored:

    activation the activation as it is, quantised and coded, by cut and bits; no training

A latent's bytes are those of real packets without their fixed header of 42 bytes, which stands in `header_bytes`; every
packet is decoded again, and the tail scores what came out. JPEG and WebP leave out their headers likewise.
"""

import argparse
import functools
import hashlib
import sys
from pathlib import Path
from typing import Any

import common
import numpy as np
import split_nips
from cifar10 import RECIPE
from common import claim, write
from split_common import ROWS, WORK, Curve, accuracy_at, bytes_at, curve, found, found_all, keep, through_packets
from split_pictures import QUALITIES, measure_pictures

import edgekit
from edgekit import data as datasets
from edgekit.bundle import MANIFEST, Bundle, open_bundle
from edgekit.data import Samples
from edgekit.engines import engine
from edgekit.onnx_file import read_io
from edgekit.progress import track
from edgekit.split import artifact

sys.path.insert(0, str(Path(__file__).parent))
MODELS = Path(__file__).resolve().parents[3] / "shared" / "data" / "models"
NETWORK, DATA = "cifar_resnet_20", "python:cifar10:load"
TRAINING = ("batch = 64", "score = 0", "augment = { flip = true, shift = 0.125 }")
TUNE = "\n".join(('[[pass]]\nname = "finetune"\nepochs = 6\nlr = 0.02\nweight_decay = 5e-4', *TRAINING))
CUTS = {
    "late": 'after = "layer3.0"\ncut = "layer3.1"\nstride = 2\nwidth = 48',
    "middle": 'after = "layer2"\ncut = "layer3.0"\nstride = 2\nwidth = 24',
    "light": 'cut = "layer1"\nwidth = 48',
}
EPOCHS = {"two_stage": (10, 6), "end_to_end": (5, 4)}
"""Of the first stage and of the second."""
RATES = {("late", "two_stage"): 2e-3, ("middle", "two_stage"): 4e-3, ("light", "two_stage"): 4e-3}
"""The first stage's learning rates where it is not 1e-3; `late` diverged at 4e-3, `middle` at 1.2e-2."""
LATENT = {"late": 48}
"""Channels of an entropic latent where they are not 24; the rate decides what they carry."""
TAIL = {"late": ("temperature = 4", "alpha = 1")}
"""Where the second stage learns from the teacher's softened answers alone, which was a little better for `middle`."""
RUNS: dict[tuple[str, str], dict[str, tuple[float, ...]]] = {
    ("late", "two_stage"): {"beta": (0.5, 0.25, 1.0), "channels": (16, 8)},
    ("middle", "two_stage"): {"beta": (1.0,)},
    ("middle", "end_to_end"): {"beta": (1e-3, 3e-4)},
    ("light", "two_stage"): {"beta": (1.0, 0.25), "channels": (8,)},
}
"""In the order in which they are trained: the middle of the curve first."""
KINDS = {"beta": "entropic", "channels": "reduction"}
"""Which bottleneck a field is of."""
MOST_DROP, SHARE = 1.0, 0.5
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="measure nothing")
    parser.add_argument("--part", choices=PARTS, help="this part alone, and write no JSON")
    given = parser.parse_args()
    for name in [given.part] if given.part else [] if given.write else PARTS:
        PARTS[name]()
    if not given.part:
        rows = [row for row in common.kept(ROWS) if "recipe" not in row or current(row)]
        write("split", rows, claims(rows))


def current(row: Row) -> bool:
    """Whether a trained cut is of today's recipe."""
    field = next(field for field in KINDS if field in row)
    return named(row["head"], row["method"], field, row[field]).items() <= row.items()


# The CIFAR copy


def base() -> Bundle:
    """The uncut network, fine-tuned; its row."""
    spec = f"{NETWORK}?weights={MODELS / f'{NETWORK}.safetensors'.replace('_20', '20')}"
    bundle = made("base", spec, TUNE)
    if not found(part="base"):
        row = next(row for row in bundle.manifest["steps"] if row["file"].startswith("model."))
        keep({"part": "base", "network": NETWORK, "top1": row["metrics"]["top1"], "n": row["n"], "macs": row["macs"]})
    return bundle


def made(name: str, spec: str, passes: str) -> Bundle:
    """The bundle of a recipe, made now or taken up where it was stopped."""
    folder, recipe = WORK / name, WORK / f"{name}.toml"
    if (folder / MANIFEST).is_file():
        return open_bundle(folder)
    WORK.mkdir(parents=True, exist_ok=True)
    recipe.write_text(f'{RECIPE}\n{passes}\n[[rewrite]]\nname = "fold"\n')
    say = {"track": track, "log": lambda line: print(line, flush=True)}
    return edgekit.compress(spec, str(recipe), DATA, folder, resume=(folder / ".work").is_dir(), runs=8, **say)


def trained(head: str) -> None:
    for (where, method), values in RUNS.items():
        for field, each in values.items() if where == head else ():
            for value in each:
                cut(head, method, field, value)


def cut(head: str, method: str, field: str, value: float) -> None:
    """A row of a trained cut, through packets."""
    key = named(head, method, field, value)
    if found(**key):
        return
    tuned = base()
    spec = f"{NETWORK}?weights={tuned.path / 'weights.safetensors'}"
    folder = f"{head}-{method}-{field}-{value:g}-{key['recipe']}"
    bundle = made(folder, spec, steps(head, method, field, value))
    row = through_packets(bundle.path, artifact.read(bundle), test())
    keep({**key, "network": NETWORK, **row})


def named(head: str, method: str, field: str, value: float) -> Row:
    """What its row is found by; a changed recipe is another row."""
    recipe = hashlib.sha256(steps(head, method, field, value).encode()).hexdigest()[:8]
    return {"part": KINDS[field], "head": head, "method": method, field: value, "recipe": recipe}


def steps(head: str, method: str, field: str, value: float) -> str:
    (first, second), rate = EPOCHS[method], RATES.get((head, method), 1e-3)
    tail = ", ".join((f"epochs = {second}", "lr = 0.02", *TAIL.get(head, ()), *TRAINING))
    kind = KINDS[field]
    lines = ['[[pass]]\nname = "split"', CUTS[head], f'method = "{method}"\nbottleneck = "{kind}"\n{field} = {value}']
    if kind == "entropic" and head in LATENT:
        lines.append(f"channels = {LATENT[head]}")
    return "\n".join((*lines, f"epochs = {first}\nlr = {rate}", *TRAINING, f"tail = {{ {tail} }}\n"))


def test() -> Samples:
    return datasets.load([DATA], progress=track).role("test")


def pictures() -> None:
    path = next(path for path in base().models if path.name.endswith(".fp32.onnx"))
    measure_pictures(engine("onnxruntime").load(path, 1), *read_io(path), test(), network=NETWORK)


# Claims


def claims(rows: list[Row]) -> list[Row]:
    uncut = next(iter(found_all(rows, part="base")), None)
    sent = {kind: curve(found_all(rows, format=kind, network=NETWORK)) for kind in QUALITIES}
    listed = []
    for head in CUTS:
        ways = {kind: curve(found_all(rows, part=kind, head=head)) for kind in KINDS.values()}
        if uncut and all((ways | sent).values()):
            listed += [near_the_uncut(head, ways | sent, uncut["top1"]), most_of_the_range(head, ways | sent)]
    return [*listed, *split_nips.claims(rows)]


def near_the_uncut(head: str, curves: dict[str, Curve], uncut: float) -> Row:
    """The fewest bytes within a point of the uncut network, over those of the best other way at that accuracy."""
    near = [point for point in curves["entropic"] if point[1] >= uncut - MOST_DROP]
    required = f"≤ {SHARE} of the fewest bytes of the other ways at an accuracy within {MOST_DROP} of {uncut:.2f}"
    if not near:
        size, top1 = max(curves["entropic"], key=lambda point: point[1])
        required += f"; no point is that near, the nearest has {size:.0f} bytes"
        return claim(f"split.{head}.near", required, uncut - top1, "points under it", False)
    size, top1 = min(near)
    others = {name: bytes_at(curves[name], top1) for name in curves if name != "entropic"}
    best = min(others, key=lambda name: others[name])
    required += f"; {size:.0f} bytes for {top1:.2f}, {best} {others[best]:.0f}"
    return claim(f"split.{head}.near", required, size / others[best], "of their bytes", size <= SHARE * others[best])


def most_of_the_range(head: str, curves: dict[str, Curve]) -> Row:
    """On how much of the range of its bytes the entropic curve lies above all others."""
    grid = np.geomspace(curves["entropic"][0][0], curves["entropic"][-1][0], 101)
    peers = [points for name, points in curves.items() if name != "entropic"]
    above = [
        accuracy_at(curves["entropic"], size) > max(accuracy_at(points, size) for points in peers)
        for size in grid.tolist()
    ]
    share = 100 * float(np.mean(above))
    required = f"above reduction, JPEG and WebP over most of {grid[0]:.0f} to {grid[-1]:.0f} bytes"
    return claim(f"split.{head}.curve", required, share, "% of the range", share > 50)


PARTS = {
    "base": base,
    "pictures": pictures,
    "activation": split_nips.activation,
    "late": functools.partial(trained, "late"),
    "middle": functools.partial(trained, "middle"),
    "light": functools.partial(trained, "light"),
}

if __name__ == "__main__":
    main()
