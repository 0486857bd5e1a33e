"""How long `vq` learns the codebooks of ResNet-50: k = 256, kernels of 3×3 and 4 channels of 1×1 as subvectors.

The weights are random: these keep k-means busy for all its iterations. To be run on a quiet machine.
"""

import time

import torch
from coding_common import SEED, kept, once
from common import claim
from int8_files import IMAGENET
from prune_common import Row, context, silent

from edgekit.net import Net, parse_spec
from edgekit.nets.resnet import resnet_50
from edgekit.passes import VQ
from edgekit.passes.coding import layers_to_code
from edgekit.schema import parse

STEPS = ({"name": "vq", "k": 256, "exclude": []},)
THREADS, SECONDS = 2, 60


def codebooks() -> None:
    once("codebooks", learned, STEPS, network="resnet_50")


def learned() -> Row:
    torch.manual_seed(SEED)
    net = Net(parse_spec("resnet_50"), (), resnet_50())
    run = parse(VQ, {key: value for key, value in STEPS[0].items() if key != "name"}, "tools/benchmarks")
    ctx = context(net, IMAGENET, log=silent)
    torch.set_num_threads(THREADS)
    begin = time.perf_counter(), time.process_time()
    run(net, ctx)
    seconds, cpu_seconds = time.perf_counter() - begin[0], time.process_time() - begin[1]
    layers = [net.module.get_submodule(name) for name in layers_to_code(net.module, (), "vq")]
    return {
        "threads": THREADS,
        "layers": len(layers),
        "weights": sum(layer.weight.numel() for layer in layers),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }


def claims() -> list[Row]:
    required = f"≤ {SECONDS} s at k = 256 on {THREADS} cores"
    return [
        claim("coding.resnet_50.codebooks", required, row["seconds"], "s", row["seconds"] <= SECONDS)
        for row in kept("codebooks")
    ]
