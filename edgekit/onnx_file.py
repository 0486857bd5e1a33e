"""Reading ONNX files that strangers wrote, and the metadata that edgekit writes into its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.data import Input, Output
from edgekit.errors import BadInput
from edgekit.files import file_sha256, read_toml
from edgekit.onnx_data import LARGEST_BYTES, inner_graphs, is_external, take_in, tensors
from edgekit.schema import parse

if TYPE_CHECKING:
    import onnx

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


def read(path: Path) -> onnx.ModelProto:
    """An ONNX file, checked, with what it keeps in files beside it loaded into it.

    Raises:
        BadInput: no such file, no ONNX, over 2 GiB, a tensor whose bytes are not what its shape asks for, external data
            that is not a plain file in the model's folder, or operators that stock runtimes do not have.
    """
    import onnx

    model = _parsed(path)
    foreign = next((node for node in _nodes(model.graph) if node.domain not in DOMAINS), None)
    if foreign is not None:
        raise BadInput(
            f"{path}: {foreign.name or foreign.op_type} is of the domain {foreign.domain!r}, which stock runtimes "
            f"lack; write it in the operators of {', '.join(filter(None, DOMAINS))}"
        )
    take_in(model, path)
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and onnx raise unrelated classes for a damaged file
        raise BadInput(f"{path}: is no valid ONNX file: {_first_line(error)}") from None
    return model


def whole(path: Path) -> bytes:
    """An ONNX file as one piece: as it stands, or with what it keeps beside it taken in. Raises BadInput as `read`."""
    model = read(path)
    return (
        model.SerializeToString() if any(is_external(t) for _, t in tensors(_parsed(path).graph)) else path.read_bytes()
    )


def fingerprint(path: Path) -> str:
    """SHA-256 of an ONNX file, and of its weights where they lie beside it: the same for the same network.

    Raises:
        BadInput: as `read`.
    """
    whole = file_sha256(path) if path.is_file() else ""
    if not any(is_external(tensor) for _, tensor in tensors(_parsed(path).graph)):
        return whole
    digest = hashlib.sha256(whole.encode())
    for _, tensor in tensors(read(path).graph):
        digest.update(tensor.raw_data)
    return digest.hexdigest()


def input_shapes(path: Path) -> dict[str, list[int | None]]:
    """The shape of each input; None where a size is free. Raises BadInput as `read`."""
    graph = read(path).graph
    constants = {init.name for init in graph.initializer}
    return {
        value.name: [dim.dim_value or None for dim in value.type.tensor_type.shape.dim]
        for value in graph.input
        if value.name not in constants
    }


def fix_input(
    model: onnx.ModelProto, shape: tuple[int, int, int], where: str, batch: int | None = None
) -> onnx.ModelProto:
    """A copy of the model whose one input has (C, H, W) of `shape`, so that shape arithmetic can be folded away, and
    the batch size `batch` where one is given.

    Raises:
        BadInput: the file fixes another size, or its input is no batch of images.
    """
    import onnx

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    constants = {init.name for init in model.graph.initializer}
    for value in (value for value in fixed.graph.input if value.name not in constants):
        dims = value.type.tensor_type.shape.dim
        found = [dim.dim_value or None for dim in dims]
        if len(found) != 4 or any(size not in (None, wanted) for size, wanted in zip(found[1:], shape)):
            raise BadInput(
                f"{where}: its input {value.name!r} is {found}; [input] makes (batch, {', '.join(map(str, shape))})"
            )
        for dim, wanted in zip(dims, (batch or found[0], *shape)):
            if wanted:
                dim.dim_value = wanted
    # Shapes that the file writes down were those of its own sizes.
    del fixed.graph.value_info[:]
    for value in fixed.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    return fixed


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _parsed(path: Path) -> onnx.ModelProto:
    """The protobuf as it stands in the file."""
    import onnx

    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    if path.stat().st_size >= LARGEST_BYTES:
        raise BadInput(
            f"{path}: has {path.stat().st_size / 2**30:.1f} GiB; ONNX files of 2 GiB and more cannot be read"
        )
    try:
        model = onnx.load(path.resolve(), load_external_data=False)
    except Exception as error:
        raise BadInput(f"{path}: is no ONNX file, or a truncated one: {_first_line(error)}") from None
    if not model.graph.node:
        raise BadInput(f"{path}: is no ONNX file, or a truncated one: it holds no operators")
    return model


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of branches and loop bodies included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in inner_graphs(attribute):
                yield from _nodes(inner)


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
