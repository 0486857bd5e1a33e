"""The transport form: identical bytes back, close to the entropy, small deltas, one file on the device."""

import base64
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgekit.data import Input, Output
from edgekit.export import export, serialise
from edgekit.net import build, parse_spec
from edgekit.targets import target
from edgekit.transport import unpack as form
from edgekit.transport.cuts import cut
from edgekit.transport.pack import LEAST_BYTES, difference, pack, transport_bytes
from edgekit.transport.tables import entropy_bits, shared, table, window
from edgekit.transport.unpack import unpack
from tests.transport_files import arithmetic, codes, floats, laplace, model, raw, small, two_a_byte

DTYPES = [kind for kind in TensorProto.DataType.values() if kind not in (TensorProto.UNDEFINED, TensorProto.STRING)]


@st.composite
def tensors(draw: st.DrawFn) -> onnx.TensorProto:
    """A tensor of any type: empty, short, constant, of few values or of any bytes."""
    size = draw(st.sampled_from([0, 1, 2, LEAST_BYTES - 1, LEAST_BYTES, 64, 1000]))
    values = draw(st.sampled_from([1, 2, 5, 256]))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    data = rng.choice(256, values)[rng.integers(0, values, size)].astype(np.uint8)
    return raw(draw(st.sampled_from("ab")), draw(st.sampled_from(DTYPES)), data)


@settings(max_examples=60)
@given(st.lists(tensors(), max_size=4), st.lists(tensors(), max_size=4))
def test_any_file_comes_back_and_so_does_any_delta(new, old):
    content, base = model(*new), model(*old)
    assert unpack(pack(content).content) == content
    assert unpack(pack(content, base).content, base) == content


@settings(max_examples=40)
@given(st.integers(1, len(small())), st.binary(max_size=200))
def test_bytes_that_are_no_onnx_come_back_too(length, noise):
    """The walk through the wire format decides on the size, never on the result."""
    for content in (noise, small()[:length], small()[length:] + noise):
        assert unpack(pack(content).content) == content
        assert unpack(pack(content, noise).content, noise) == content


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["mobilenet_v2?width=0.35", "hardnet_39ds", "squeezenet_1_1", "mobilenet_v3_small"])
def test_an_exported_network_comes_back(spec):
    exported = serialise(export(build(parse_spec(spec)), Input(size=64), Output(), target("onnxruntime")).model)
    assert unpack(pack(exported).content) == exported
    assert transport_bytes(exported) < 0.9 * len(exported)


def test_the_files_of_a_bundle_come_back(bundle):
    for path in [bundle.base, *bundle.models]:
        packed = pack(path.read_bytes())
        assert unpack(packed.content) == path.read_bytes()
        assert sum(row.transport_bytes for row in packed.rows) == len(packed.content)
        assert sum(row.file_bytes for row in packed.rows) == path.stat().st_size


def entropy_bytes(symbols: np.ndarray) -> float:
    _, counts = np.unique(symbols, return_counts=True)
    share = counts / counts.sum()
    return float(-(counts * np.log2(share)).sum() / 8)


@pytest.mark.parametrize(
    ("tensor", "symbols"),
    [
        (raw("w", TensorProto.INT8, laplace(400_000)), laplace(400_000)),
        (raw("w", TensorProto.UINT8, codes(400_000)), codes(400_000)),
        (raw("w", TensorProto.UINT4, two_a_byte(codes(400_000))), codes(400_000)),
    ],
    ids=["int8", "codes", "uint4"],
)
def test_the_coder_is_within_one_per_cent_of_the_entropy_with_all_side_information(tensor, symbols):
    packed = pack(model(tensor))
    assert entropy_bytes(symbols) < len(packed.content) < 1.01 * entropy_bytes(symbols)
    assert packed.rows[0].entropy_bytes == round(entropy_bytes(symbols))


def test_the_entropy_of_floats_is_that_of_their_byte_planes():
    weights = floats(100_000)
    wanted = sum(entropy_bytes(plane) for plane in weights.view(np.uint8).reshape(-1, 4).T)
    assert len(pack(model(raw("w", TensorProto.FLOAT, weights))).content) < 1.01 * wanted


def test_a_constant_tensor_costs_nothing():
    assert len(pack(model(raw("w", TensorProto.INT8, bytes(1_000_000)))).content) < 250


def test_tensors_of_one_kind_share_tables():
    alike = [np.bincount(laplace(300, seed=seed).view(np.uint8), minlength=256)[None] for seed in range(6)]
    apart = [np.bincount(laplace(30_000, scale).view(np.uint8), minlength=256)[None] for scale in (2.0, 40.0)]
    assert shared(alike) == [list(range(6))]
    assert sorted(shared(apart)) == [[0], [1]]
    assert shared([]) == []


@settings(max_examples=50)
@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=256).filter(any))
def test_a_table_is_of_integers_that_the_coder_uses_as_they_are(counts):
    made = table(np.array(counts))
    if made.codes and not made.constant:
        shares = form.frequencies(made.codes, made.step)
        assert shares.astype(np.int64).sum() == 2**24 - len(shares) and shares.min() >= 0
        assert (shares == shares.round()).all()
        first, count = window(np.array(counts))
        assert made.first == first and len(made.codes) * made.step >= count


def test_the_frequencies_are_near_the_counts():
    """A float of two bits after the leading one is at most an eighth off, and so is their sum."""
    counts = np.random.default_rng(0).integers(1000, 10**6, 16)
    made = table(counts)
    share = (form.frequencies(made.codes) + 1) / 2**24
    wanted = np.roll(counts, -made.first) / counts.sum()
    assert made.step == 1 and np.abs(share / wanted - 1).max() < 0.2
    assert entropy_bits(np.array([8, 4, 4])) == 24.0


@pytest.mark.parametrize("width", [0, 1, 4])
def test_differences_are_undone(width):
    new, old = np.random.default_rng(width).integers(0, 256, (2, 400)).astype(np.uint8)
    assert (form.with_base(difference(new, old, width), old, width) == new).all()


def test_payloads_are_found_in_constants_and_branches():
    weight = raw("inside", TensorProto.FLOAT, floats(8))
    constant = helper.make_node("Constant", [], ["c"], value=raw("", TensorProto.INT64, np.arange(4)))
    branch = helper.make_graph([], "branch", [], [], [weight])
    content = model(
        helper.make_tensor("typed", TensorProto.FLOAT, [4], [1, 2, 3, 4]),
        raw("w", TensorProto.UINT4, bytes(9)),
        nodes=(constant, helper.make_node("If", ["b"], ["y"], then_branch=branch, else_branch=branch)),
    )
    found, edges = cut(content)
    assert {(item.name, item.dtype, item.width, item.size) for item in found} == {
        ("inside", "float", 4, 32), ("", "int64", 8, 32), ("typed", "float", 4, 16), ("w", "uint4", 0, 9),
    }  # fmt: skip
    assert content[found[0].start : found[0].stop] == np.arange(4).tobytes()
    assert {0, len(content)} <= set(edges) and edges == sorted(set(edges))


def changed(weights: np.ndarray, share: float) -> np.ndarray:
    rng = np.random.default_rng(1)
    return weights + (rng.random(weights.size) < share).astype(weights.dtype)


def test_a_delta_costs_what_changed():
    old = laplace(100_000)
    bias = floats(5_000)
    base = model(raw("w", TensorProto.INT8, old), raw("b", TensorProto.FLOAT, bias))
    assert len(pack(base, base).content) < 150
    for new_bias, most in ((bias, 1_500), (bias * np.float32(1.0001), 15_000)):
        content = model(raw("w", TensorProto.INT8, changed(old, 0.01)), raw("b", TensorProto.FLOAT, new_bias))
        packed = pack(content, base).content
        assert unpack(packed, base) == content and len(packed) < most
    for moved in (
        model(raw("b", TensorProto.FLOAT, bias), raw("w", TensorProto.INT8, old)),
        model(raw("other", TensorProto.FLOAT, bias), raw("name", TensorProto.INT8, old)),
    ):
        packed = pack(moved, base).content
        assert unpack(packed, base) == moved and len(packed) < 300


def test_a_delta_of_four_bit_codes_is_modulo_16():
    old = codes(40_000)
    base = model(raw("w", TensorProto.UINT4, two_a_byte(old)))
    content = model(raw("w", TensorProto.UINT4, two_a_byte(changed(old, 0.01) % 16)))
    packed = pack(content, base).content
    assert unpack(packed, base) == content and len(packed) < 700


GOLDEN = r"""
iA76V0RR912R03-s}BGG000009RUCU00000WdAy^qz!#g4Tm-30A)I>$j`uHII^LV5Y6nENXrem0000000000000000000000000000000000000000-T(
jqwgCVD00RIym=D4y^x``m+}ipRhXro4lSiZkZCewKh3`7SsvCv7M#CKP)5BNte3iGz>|^kWPk~8aZwAWExPS2#<z=_&3*_pDZ~CJzzpJ*D70;*0%SfQ)o
7_Kfw!T^dEyV)zIYnKLV_`DI?2D?wPOUh?y__Hdn!Xg*&7QQ%QQ=(3aO|1Ox&M|E#h#)&3FF7gB6(^gOBfX-HZ;S;Sg*G>?y7cW2zI4`h!Zov|GY$2{MAX
#OvPoC7{dy>rbW?B^gp#f;y6H(Z4b@veKuUNiPss)Ba{5?i2witfH|d2X}*d7|NFyW0001KZ2aH@&WblVku=L#hLl=*u=$<HAhoeO;Z(fV?&iiVB{iWgmF
%{c3D1=M1PKT#ll~U}|7-vN001{`rQ8!rfw=D`U6jiLIdG@m6-<M=@hD%G%>+Agso)n*g}n1BVVKVbJ#?$$8BmA5^(<qW(Fi|wtpJ`p+ISbWQ}K^3%xVay
MdN`VzFhj4Hq~<xuTJcWD8^+2p+DVx8n{;VlQGY245~=xgd@RU{hT`3b^s1=dVtr`#s=rS+m=Ezy*2GSbLZ~b0JBIGX`KS@w5cF&=G~{51V5c}64C_#7M$
fr6rw{+66hlp6?KWHAxwM)JaYgxYVR68u*A<J75O9Rn~@!qNs_@8GyrJA#<V8AX}peC{vXPpObhset4Gbi%82t|o8ejP;=cNq%T#jsRptX)K*+xvegk26<
79Fg5a>2ysXQV83X2CEwa|*5jPwlsc}(<Mkm7Q)ASVMY!oqv2I<C!HUpd~JX21Z#SH$HIp@wh=0QC=`VOc8Qe`PvEby+xn^}b`}tMN6I*6nSBBYD+qxdqk
4S4!IhkARo2N(G?EqtxI{Kc^h_!#l)*@s615$3}Z}Uk2?!H@+z#<3$mP=RM!=va`usGDnJf&G3BTF${;j#2B339TPUm+8_!vystlL1IxA>hlD$m#uiNE*D
>M069=27G_aq(0sy<-S0WYgxV6iOfKt^+z3e49$HE8}Fjd<Nhc|C7=89oIU}V~hdj;k0oR3;lA+s+(nmWpm9FbAe-%YY<nL4&&91O@qz3h73Jg}n1{j;h>
jr^E+eF}T>@TpU5OO`Ybbn9GX(P{2=o!0CusEN6g+Lw3Xiv<9qD5etbrrR;faGZmHpa(b*puX~!l-48VHFWE$NRn~VGw(Y<kUvJMo#01MCtig68q$XkL%q
Z+t^D5$Vz-&LSSEuq0000
"""


def test_a_file_of_the_first_version_still_unpacks():
    assert unpack(base64.b85decode(GOLDEN.replace("\n", ""))) == arithmetic()


ALONE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("edgekit", "onnx", "torch", "google", "onnxruntime", "scipy"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
import runpy
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def alone(folder, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The decoder's file by itself in a folder, with numpy and constriction alone."""
    shutil.copy(form.__file__, folder / "unpack.py")
    command = [sys.executable, "-c", ALONE, "unpack.py", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_decoder_runs_by_itself(tmp_path):
    base, content = small(), small(seed=1)
    (tmp_path / "old.onnx").write_bytes(base)
    (tmp_path / "delta.ekz").write_bytes(pack(content, base).content)
    ended = alone(tmp_path, "delta.ekz", "new.onnx", "--base", "old.onnx")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "new.onnx").read_bytes() == content
    for arguments in (["delta.ekz", "other.onnx"], ["no.ekz", "other.onnx"], ["old.onnx", "other.onnx"]):
        ended = alone(tmp_path, *arguments)
        assert ended.returncode == 2 and ended.stderr.startswith("error: ") and "Traceback" not in ended.stderr
    assert not (tmp_path / "other.onnx").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
