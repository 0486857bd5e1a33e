"""Frequency tables and `split.json`."""

import hashlib
import json

import numpy as np
import pytest

from edgekit import bundle
from edgekit.errors import BadInput
from edgekit.files import read_json, write_json
from edgekit.schema import parse
from edgekit.split import artifact
from edgekit.split.tables import Tables, from_counts
from edgekit.transport.tables import entropy_bits
from tests import split_bundles


def test_tables_of_known_counts():
    assert from_counts([np.array([3, 1]), np.array([5])], 2) == Tables(2, ((3, 1), (4,)))
    assert from_counts([np.array([2, 5])], 2).frequencies == ((1, 3),)  # of 1.14 and 2.86 the latter is rounded up
    # A symbol that was never seen takes the least; the rest is shared out in proportion.
    assert from_counts([np.array([0, 3, 4, 0])], 10).frequencies == ((1, 438, 584, 1),)
    assert from_counts([np.zeros(4, int)], 3).frequencies == ((2, 2, 2, 2),)


@pytest.mark.parametrize("symbols", [1, 2, 31, 256])
def test_tables_cost_hardly_more_than_the_entropy(symbols):
    rng = np.random.default_rng(symbols)
    latent = (rng.laplace(symbols / 2, symbols / 20, (3, 64, 64)).round() % symbols).astype(np.uint8)
    counts = [np.bincount(channel.reshape(-1), minlength=symbols) for channel in latent]
    made = from_counts(counts)
    entropy = float(sum(entropy_bits(row) for row in np.array(counts)))
    assert all(sum(row) == 2**16 and min(row) >= 1 for row in made.frequencies)
    assert entropy <= made.bits(latent) <= entropy * 1.003 + 1e-6


def test_the_id_is_that_of_the_content():
    one, two = Tables(2, ((3, 1),)), Tables(2, ((1, 3),))
    content = b'{"frequencies":[[3,1]],"precision_bits":2}'
    assert one.id == hashlib.sha256(content).digest()[:8] and one.id != two.id


@pytest.mark.parametrize(
    "table, message",
    [
        ({"precision_bits": 17, "frequencies": [[2**17]]}, "precision_bits = 17 must be from 1 to 16"),
        ({"precision_bits": 2, "frequencies": []}, "no row"),
        ({"precision_bits": 2, "frequencies": [[2, 2], [4, 0]]}, "channel 1 has a frequency of 0"),
        ({"precision_bits": 2, "frequencies": [[2, 1]]}, "channel 0 sum to 3, not to 2\\^2"),
        ({"precision_bits": 16, "frequencies": [[1] * 257]}, "channel 0 has 257 symbols"),
    ],
)
def test_wrong_tables_are_refused(table, message):
    with pytest.raises(BadInput, match=message):
        parse(Tables, table, "split.json: tables")


def test_a_bundle_tells_of_its_cut(tmp_path):
    opened = bundle.open_bundle(split_bundles.make(tmp_path / "cut"))
    found = artifact.read(opened)
    assert (found.cut, found.bottleneck, found.latent.shape) == ("stem", "activation", (6, 8, 8))
    assert found.tables == split_bundles.tables() and found.full is not None
    assert found.model_hash.hex() == opened.manifest["files"][found.tail.file]["sha256"][:32]
    assert [path.name for path in opened.models] == [found.full.file]


def test_the_whole_network_may_be_missing(tmp_path):
    folder = split_bundles.make(tmp_path / "cut", full=False)
    assert json.loads((folder / artifact.FILE).read_text())["full"] is None
    assert artifact.read(bundle.open_bundle(folder)).full is None


def _altered(folder, **changes):
    """The bundle with another `split.json`, sealed anew."""
    document = read_json(folder / artifact.FILE, artifact.SCHEMA)
    write_json(folder / artifact.FILE, {**document, **changes})
    manifest = read_json(folder / bundle.MANIFEST, bundle.SCHEMA)
    manifest["files"] |= bundle.hashes(folder, [artifact.FILE])
    write_json(folder / bundle.MANIFEST, manifest)
    return bundle.open_bundle(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"latent": {"name": "latent", "shape": [5, 8, 8]}}, "tables have 6 rows; the latent has 5 channels"),
        ({"latent": {"name": "latent", "shape": [6, 0, 8]}}, "latent: .*must have from 1"),
        ({"latent": {"name": "latent", "shape": [6, 2**20, 8]}}, "must have from 1 to 16,777,216 values"),
        ({"latent": None}, "latent must be a table"),
        ({"tables": {"precision_bits": 16}}, "tables: frequencies is missing"),
        ({"bottleneck": "magic"}, "bottleneck"),
        ({"head": {"file": "../head.onnx", "sha256": "00"}}, "../head.onnx is not the file"),
        ({"schema": "edgekit/split/2"}, "reads up to edgekit/split/1"),
        ({"tail": {"file": "head.onnxruntime.fp32.onnx", "sha256": "00"}}, "head.onnxruntime.fp32.onnx is not the"),
    ],
)
def test_a_wrong_description_is_refused(tmp_path, changes, message):
    opened = _altered(split_bundles.make(tmp_path / "cut"), **changes)
    with pytest.raises(BadInput, match=message):
        artifact.read(opened)


def test_an_uncut_bundle_says_how_to_cut_it(tmp_path):
    folder = split_bundles.make(tmp_path / "cut")
    manifest = read_json(folder / bundle.MANIFEST, bundle.SCHEMA)
    del manifest["files"][artifact.FILE]
    write_json(folder / bundle.MANIFEST, manifest)
    with pytest.raises(BadInput, match="compress the network with the pass `split`"):
        artifact.read(bundle.open_bundle(folder))
