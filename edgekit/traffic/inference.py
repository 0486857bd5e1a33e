"""Run a file N times in ONNX Runtime and leave: what the measuring programs start. Started by its path, so that nothing
but ONNX Runtime is loaded.

    python inference.py PROVIDER FILE RUNS [MORE]

PROVIDER is ONNX Runtime's execution provider, and the file must run there. With MORE, a copy of the process ends after
RUNS, and the process itself goes on for that many more: what the copy did is what the process did until then.
"""

import os
import sys

import numpy as np
import onnxruntime as ort

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


def main(provider: str, path: str, runs: int, more: int = 0) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, list(dict.fromkeys([provider, "CPUExecutionProvider"])))
    if session.get_providers()[0] != provider:  # it would run on the processor, with no more than a warning
        sys.exit(f"ONNX Runtime cannot start its {provider}: look for CUDA and cuDNN of the versions it was built for")
    rng = np.random.default_rng(0)
    given = {}
    for item in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in item.shape]
        given[item.name] = (rng.random(shape) * (255 if "uint8" in item.type else 1)).astype(TYPES[item.type])
    for _ in range(runs):
        session.run(None, given)
    if more and (copy := os.fork()):
        os.waitpid(copy, 0)
        for _ in range(more):
            session.run(None, given)
    os._exit(0)  # the same short way out for both


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
