"""Programs that run a file: `load(path)` gives a session whose `run(batch)` gives the outputs."""

from edgekit.engines import onnxruntime
from edgekit.errors import unknown

ENGINES = {"onnxruntime": onnxruntime}


def engine(name: str):  # type: ignore[no-untyped-def]
    """Raises BadInput for an engine that is not in ENGINES."""
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    return ENGINES[name]
