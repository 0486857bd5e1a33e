"""PyTorch on the CPU: the module of a bundle, to set its time beside those of the files. No target's engine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle import MANIFEST, load_net, open_bundle
from edgekit.data import Input
from edgekit.errors import BadInput
from edgekit.schema import parse


@dataclasses.dataclass(frozen=True)
class Session:
    """The module of a bundle, as ONNX Runtime's `Session`."""

    module: Any
    shape: tuple[int, ...]
    batch: int | None = None
    dtype: type[np.generic] = np.float32

    def run(self, batch: np.ndarray) -> np.ndarray:
        """The output for a batch of (B, *shape)."""
        import torch

        with torch.inference_mode():
            return self.module(torch.from_numpy(batch)).numpy()

    def fork(self) -> Session:
        """A session for another thread to run at the same time."""
        return self


def load(model: Path | bytes, threads: int = 0, optimise: bool = True, trust: bool = False) -> Session:  # noqa: ARG001
    """The module of the bundle `model`.

    Args:
        threads: of one inference, and of all of PyTorch in this process; 0 leaves the choice to PyTorch.
        optimise: for other engines; a module is run as it is.
        trust: whether a bundle whose source runs the user's code may do so.

    Raises:
        BadInput: it is no bundle, holds no module, or needs `trust`.
    """
    import torch

    if isinstance(model, bytes) or not model.is_dir():
        raise BadInput(
            f"{'the model' if isinstance(model, bytes) else model}: torch runs the module of a bundle, not a file"
        )
    bundle = open_bundle(model)
    module = load_net(bundle, trust).module
    if threads:
        torch.set_num_threads(threads)
    return Session(module.eval(), parse(Input, bundle.manifest["input"], f"{model / MANIFEST} input").shape)


def missing() -> str | None:
    """Why modules cannot be run here: never, as PyTorch is one of edgekit's own dependencies."""
    return None


def version() -> str:
    import torch

    return torch.__version__
