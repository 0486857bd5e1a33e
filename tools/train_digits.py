#!/usr/bin/env python3
"""Train the embedded network: MobileNetV2 (width 0.35, 32×32 form) on scikit-learn's handwritten digits.

    python tools/train_digits.py        # about 3 minutes on 2 cores; writes models/mobilenet_v2_digits.safetensors

The split is `digits`' own (70/10/20 by content hash); the test images are scored once, at the end.
"""

import hashlib
import tomllib
from pathlib import Path

import torch

from edgekit import data as datasets
from edgekit.bundle import save_weights
from edgekit.context import PassContext
from edgekit.evaluate import evaluate
from edgekit.job import torch_predict
from edgekit.net import Net, Source, build
from edgekit.passes.finetune import Finetune
from edgekit.progress import track
from edgekit.recipe import load

ROOT = Path(__file__).parents[1]
ARGS = {"width": 0.35, "classes": 10, "small_input": True}
SEED = 0


def main() -> None:
    torch.manual_seed(SEED)
    recipe = load("quickstart")
    source = Source("zoo", "mobilenet_v2", dict(ARGS))
    base = Net(source, (), build(source))
    data = datasets.load(["digits"])
    context = PassContext(
        data=data,
        input=recipe.input,
        output=recipe.output,
        seed=SEED,
        base=base,
        cost=lambda _net: {},
        score=lambda _net: {},
        network=lambda _spec: base.module,
        log=print,
        track=track,
    )
    net = Finetune(epochs=20, lr=0.1, batch=64, weight_decay=5e-4)(base, context)
    path = ROOT / "models" / "mobilenet_v2_digits.safetensors"
    save_weights(path, net.module)
    score = evaluate(torch_predict(net.module), data.role("test"), recipe.input, recipe.output)
    print(f"top-1 {score.metrics['top1']:.2f} on {score.n} test images")
    print(f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()} — write it into the card")
    card = tomllib.loads((ROOT / "models" / "mobilenet_v2_digits.toml").read_text())
    print(f"the card says top-1 {card['measured'][0]['value']}, sha256 {card['sha256']}")


if __name__ == "__main__":
    main()
