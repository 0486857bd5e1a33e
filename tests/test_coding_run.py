"""Prune, factorise, distil, code, quantise, export and pack in one recipe."""

import pytest

import edgekit
from edgekit.bundle import MANIFEST, open_bundle
from edgekit.files import read_json
from edgekit.report import rows
from edgekit.transport.pack import pack
from edgekit.transport.unpack import unpack
from edgekit.verify import verify

RECIPE = """
[input]
size = 32
channels = "rgb"
resize = "squash"
mean = [0.5]
std = [0.5]

[output]
classes = 10

[[pass]]
name = "prune"
budget = {{ macs = 0.7 }}

[[pass]]
name = "lowrank"
energy = 0.9

[[pass]]
name = "distil"
epochs = 3
lr = 0.01

[[pass]]
{coding}

[[rewrite]]
name = "fold"

[[rewrite]]
name = "int8"
images = 100

[export]
targets = ["onnxruntime", "tensorrt"]
"""
DISTIL = '\n\n[[pass]]\nname = "distil"\nepochs = 1\nlr = 0.002'
CODINGS = {
    "cluster": 'name = "cluster"\nbits = 4.0\nimages = 100',
    "vq": 'name = "vq"\nk = 256\nm = { pointwise = 2, linear = 2, depthwise = 3 }\nmethod = "em"' + DISTIL,
    "shift": 'name = "shift"\nbits = 3' + DISTIL,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CODINGS)
def test_all_of_them_compose(tmp_path, name):
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out"
    recipe.write_text(RECIPE.format(coding=CODINGS[name]))
    edgekit.compress("mobilenet_v2_digits", str(recipe), "digits", out, seed=0, runs=8)
    bundle = open_bundle(out)
    found = {(row["target"], row["precision"]): row for row in rows(bundle) if row["file"].startswith("model.")}
    assert len(found) == 4 and all(row["top1"] > 90 for row in found.values())
    float_files = [found[target, "fp32"]["size_bytes"] for target in ("onnxruntime", "tensorrt")]
    assert float_files[0] < 0.5 * float_files[1]
    kinds = [edit["edit"] for edit in read_json(out / MANIFEST, "edgekit/bundle/1")["edits"]]
    assert list(dict.fromkeys(kinds)) == [
        "keep_channels",
        "factorise",
        "shift_weight" if name == "shift" else "code_weight",
    ]
    verify(out)
    content = bundle.model("onnxruntime", "int8").read_bytes()
    packed = pack(content).content
    assert unpack(packed) == content and len(packed) < 0.6 * len(content)
