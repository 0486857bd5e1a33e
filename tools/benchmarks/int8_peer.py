"""One peer's int8 file, made in a process of its own, by a Python that has that peer: their pins of onnx differ.

    python -m venv nncf && nncf/bin/pip install nncf==3.4.0 onnx onnxruntime
    python -m venv aimet && aimet/bin/pip install aimet-onnx==2.42.0
    nncf/bin/python tools/benchmarks/int8_peer.py nncf_mixed float.onnx images.npy int8.onnx

`images.npy` holds preprocessed images (N, C, H, W). The last line printed is JSON: the version and the seconds taken.
"""

import importlib.metadata
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Feeds = list[dict[str, np.ndarray]]


def main() -> None:
    setting, source, images, path = sys.argv[1:]
    model = onnx.load(source)
    feeds = [{model.graph.input[0].name: image[None]} for image in np.load(images)]
    package, make = SETTINGS[setting]
    begin = time.perf_counter()
    made = make(model, feeds)
    seconds = time.perf_counter() - begin
    onnx.save(made, path)
    print(json.dumps({"version": f"{package} {importlib.metadata.version(package)}", "seconds": seconds}))


def ort_minmax(model: onnx.ModelProto, feeds: Feeds) -> onnx.ModelProto:
    return _onnxruntime(model, feeds, "MinMax", reduce_range=False)


def ort_entropy(model: onnx.ModelProto, feeds: Feeds) -> onnx.ModelProto:
    """No second opinion where its file is MinMax's: of 128 bins for 128 steps the whole range is the only candidate,
    and `quantize_static` takes no other number. The rows' `sha256` says where that is so.
    """
    return _onnxruntime(model, feeds, "Entropy", reduce_range=False)


def ort_portable(model: onnx.ModelProto, feeds: Feeds) -> onnx.ModelProto:
    """MinMax with weights within ±64."""
    return _onnxruntime(model, feeds, "MinMax", reduce_range=True)


def _onnxruntime(model: onnx.ModelProto, feeds: Feeds, method: str, reduce_range: bool) -> onnx.ModelProto:
    """ONNX Runtime's own quantiser: uint8 asymmetric activations, int8 weights per channel, Q/DQ."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder:
        source, path = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        quantize_static(
            source, path, Reader(feeds), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=reduce_range,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod[method],
        )  # fmt: skip
        return onnx.load(path)


class Reader:
    """Feeds in the form that ONNX Runtime's quantiser asks for them."""

    def __init__(self, feeds: Feeds) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def nncf_default(model: onnx.ModelProto, feeds: Feeds) -> onnx.ModelProto:
    """Preset `performance`: symmetric activations (uint8 where they are not negative), fast bias correction."""
    return _nncf(model, feeds)


def nncf_mixed(model: onnx.ModelProto, feeds: Feeds) -> onnx.ModelProto:
    """Preset `mixed`: uint8 asymmetric activations; the slow and accurate bias correction."""
    import nncf

    return _nncf(model, feeds, preset=nncf.QuantizationPreset.MIXED, fast_bias_correction=False)


def _nncf(model: onnx.ModelProto, feeds: Feeds, **settings: Any) -> onnx.ModelProto:
    """Weights symmetric per channel over the full range but for the first layer's, which NNCF halves."""
    import nncf

    return nncf.quantize(
        model, nncf.Dataset(feeds), target_device=nncf.TargetDevice.CPU, subset_size=len(feeds), **settings
    )


def aimet(model: onnx.ModelProto, feeds: Feeds) -> onnx.ModelProto:
    """Encodings by `tf_enhanced` with weights per channel over the full range; uint8 activations; no AdaRound.

    Cross-layer equalisation is left out: it scales channels across Clip(0, 6), after which MobileNetV2 is another
    network before anything is quantised (3.9 dB). Of the schemes, `min_max` came out 1.4 dB lower.
    """
    import aimet_onnx
    from aimet_onnx.common import quantsim_config

    config = Path(quantsim_config.__file__).parent / "default_config_per_channel.json"
    sim = aimet_onnx.QuantizationSimModel(model, quant_scheme="tf_enhanced", config_file=str(config))
    sim.compute_encodings(feeds)
    return sim.to_onnx_qdq(export_int32_bias=True, prequantize_constants=True)


SETTINGS: dict[str, tuple[str, Callable[[onnx.ModelProto, Feeds], onnx.ModelProto]]] = {
    "ort_minmax": ("onnxruntime", ort_minmax),
    "ort_entropy": ("onnxruntime", ort_entropy),
    "ort_portable": ("onnxruntime", ort_portable),
    "nncf_default": ("nncf", nncf_default),
    "nncf_mixed": ("nncf", nncf_mixed),
    "aimet": ("aimet-onnx", aimet),
}

if __name__ == "__main__":
    main()
