"""The CIFAR ResNets with trained weights: loaded by name, scored in PyTorch and as exported files.

python tools/benchmarks/cifar.py      # about 5 minutes on 2 cores
"""

import sys
import tempfile
from pathlib import Path

from cifar10 import RECIPE
from common import claim, write

from edgekit import report, run

sys.path.insert(0, str(Path(__file__).parent))
MODELS = Path(__file__).resolve().parents[3] / "shared" / "data" / "models"


def main() -> None:
    rows, claims = [], []
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "export.toml"
        recipe.write_text(f'{RECIPE}[[rewrite]]\nname = "fold"\n')
        for depth in (20, 56):
            spec = f"cifar_resnet_{depth}?weights={MODELS / f'cifar_resnet{depth}.safetensors'}"
            bundle = run.compress(spec, str(recipe), "python:cifar10:load_test", Path(folder) / str(depth), runs=8)
            row = report.rows(bundle)[0]
            torch_top1, file_top1 = row["metrics_torch"]["top1"], row["metrics"]["top1"]
            rows.append({"network": f"cifar_resnet_{depth}", "torch": torch_top1, "file": file_top1, "n": row["n"]})
            gap = abs(torch_top1 - file_top1)
            claims.append(claim(f"cifar.{depth}.gap", "≤ 0.2 points, torch to file", gap, "points", gap <= 0.2))
            near = "about 81 % on these JPEGs" if depth == 20 else "as trained, on these JPEGs"
            claims.append(claim(f"cifar.{depth}.top1", near, file_top1, "%", file_top1 > 75))
    write("cifar", rows, claims)


if __name__ == "__main__":
    main()
