"""Answers of an ONNX file, picture by picture: started under the emulator, and imported on the host.

It stands alone: Python 3.9 and up, numpy and onnxruntime.

    python worker.py FOLDER FIRST STEP

reads model.onnx and inputs.npy (N, …) in FOLDER and runs the rows FIRST, FIRST + STEP, …, each by itself. The outputs
of row i become answers/i.npz, whole or not at all, so that what is there when it is stopped counts.
"""

import os
import sys
from typing import Any

import numpy as np


def opened(model: Any) -> Any:
    """A session of one thread on the CPU."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, ["CPUExecutionProvider"])


def answers(session: Any, row: np.ndarray) -> list[np.ndarray]:
    """All outputs for one input; a file of a fixed batch is filled with copies of it."""
    (taken,) = session.get_inputs()
    batch = taken.shape[0] if isinstance(taken.shape[0], int) else 1
    found = session.run(None, {taken.name: np.repeat(row[None], batch, axis=0)})
    return [value[:1] if value.ndim and len(value) == batch else value for value in found]


def main(folder: str, first: int, step: int) -> None:
    session = opened(os.path.join(folder, "model.onnx"))
    rows = np.load(os.path.join(folder, "inputs.npy"), mmap_mode="r", allow_pickle=False)
    for index in range(first, len(rows), step):
        path = os.path.join(folder, "answers", f"{index}.npz")
        with open(f"{path}.part", "wb") as file:
            np.savez(file, *answers(session, rows[index]))
        os.replace(f"{path}.part", path)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
