"""Reading ONNX files that strangers wrote, and the metadata that edgekit writes into its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.data import Input, Output
from edgekit.errors import BadInput
from edgekit.files import read_toml
from edgekit.schema import parse

if TYPE_CHECKING:
    import onnx

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


def read(path: Path) -> onnx.ModelProto:
    """An ONNX file, checked.

    Raises:
        BadInput: no such file, no ONNX, external data, or operators of a domain that stock runtimes do not have.
    """
    import onnx

    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        model = onnx.load(path.resolve(), load_external_data=False)
        outside = [init.name for init in model.graph.initializer if init.external_data]
        if outside:
            raise BadInput(f"{path}: keeps {outside[0]!r} in another file; save it as one file first")
        foreign = next((node for node in model.graph.node if node.domain not in DOMAINS), None)
        if foreign is not None:
            raise BadInput(
                f"{path}: {foreign.name or foreign.op_type} is of the domain {foreign.domain!r}; none can run it"
            )
        onnx.checker.check_model(model)
    except BadInput:
        raise
    except Exception as error:  # protobuf and onnx raise unrelated classes for a damaged file
        raise BadInput(f"{path}: is no valid ONNX file: {str(error).splitlines()[0]}") from None
    return model


def read_io(path: Path, io_file: Path | None = None) -> tuple[Input, Output]:
    """How images become the file's input and what its output means: from `io_file`, or from the file's metadata.

    Raises:
        BadInput: the file is not edgekit's and no `io_file` is given, or its tables are wrong.
    """
    tables = io_tables(path, io_file)
    where = str(io_file or f"{path} (metadata)")
    return (
        parse(Input, tables["input"], f"{where} [input]"),
        parse(Output, tables.get("output", {}), f"{where} [output]"),
    )


def io_tables(path: Path, io_file: Path | None = None) -> dict[str, Any]:
    """The tables `input` and `output` that `read_io` parses."""
    if io_file is not None:
        tables = read_toml(io_file)
        if "input" not in tables:
            raise BadInput(f"{io_file}: [input] is missing")
        return {key: tables[key] for key in ("input", "output") if key in tables}
    properties = {prop.key: prop.value for prop in read(path).metadata_props}
    if "edgekit.input" not in properties:
        raise BadInput(
            f"{path}: does not say how an image becomes its input; write [input] and [output] as in a recipe "
            f"into a TOML file and give it with --io"
        )
    try:
        return {key: json.loads(properties[f"edgekit.{key}"]) for key in ("input", "output")}
    except (KeyError, ValueError) as error:
        raise BadInput(f"{path}: its edgekit metadata is damaged ({error}); give --io instead") from None
