"""Net = (source, edits, module): where a network comes from, what was changed, and the module that resulted.

The invariant: `build(source, edits)` gives a module that loads `module.state_dict()` and computes bit-equal outputs,
so a network is kept as JSON and safetensors and never as pickled code.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import parse_qsl

from edgekit.cards import card, cards
from edgekit.errors import BadInput, unknown
from edgekit.files import file_sha256
from edgekit.nets import ZOO
from edgekit.onnx_file import fingerprint
from edgekit.schema import parse, to_json

if TYPE_CHECKING:
    from torch import nn

WEIGHTS_ARGUMENT = "weights"
LIBRARIES = {"timm": "timm:create_model", "torchvision": "torchvision.models:get_model"}
"""Packages of networks, with the function that makes one by name."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a base network comes from. `kind` "zoo" and "onnx" load for anyone; "factory" and "library" run code that
    is not edgekit's, so its file hash, or its package's version, is kept and compared.

    `weights` says what the base was loaded with: a card's own, or a file of the user's by name and hash.
    """

    kind: Literal["zoo", "factory", "library", "onnx"]
    name: str
    args: dict[str, int | float | bool | str] = dataclasses.field(default_factory=dict)
    sha256: str | None = None
    version: str | None = None
    weights: dict[str, str] | None = None


class Edit(Protocol):
    """One structural change, as data. `apply` changes the module it is given."""

    def apply(self, module: nn.Module) -> None: ...


@dataclasses.dataclass(frozen=True)
class Net:
    """A network: `build(source, edits)` has the structure of `module`. Passes return a new one."""

    source: Source
    edits: tuple[Edit, ...]
    module: nn.Module

    def clone(self) -> Net:
        return dataclasses.replace(self, module=copy.deepcopy(self.module))

    def edited(self, *edits: Edit) -> Net:
        """A new Net with `edits` applied to a copy of the module and appended to the list."""
        module = copy.deepcopy(self.module)
        for edit in edits:
            edit.apply(module)
        return Net(self.source, (*self.edits, *edits), module)


def parse_spec(spec: str) -> Source:
    """The source that a MODEL argument names.

    A zoo name or card, `timm:NAME`, `torchvision:NAME` or `package.module:factory`, each with arguments, or a path
    ending in .onnx. The argument `weights` is reserved: a file to load (see `weights_path`).

    Raises:
        BadInput: no such network or file; the known ones are listed and the nearest is named.
    """
    name, given = _split_spec(spec)
    args = {key: _literal(value) for key, value in given.items() if key != WEIGHTS_ARGUMENT}
    if name.endswith(".onnx"):
        if given:
            raise BadInput(f"{spec}: an ONNX file takes no arguments; it holds its own weights")
        return _onnx_source(Path(name))
    weights = _weights_record(weights_path(spec))
    if (package := name.partition(":")[0]) in LIBRARIES:
        return Source("library", name, args, version=_library_version(package), weights=weights)
    if ":" in name:
        return Source("factory", name, args, sha256=_factory_hash(name), weights=weights)
    if name in cards():
        entry = card(name)
        if weights is None and "weights" in entry:
            weights = {"card": name, "sha256": entry["sha256"]}
        return Source("zoo", entry.get("net", name), {**entry.get("args", {}), **args}, weights=weights)
    if name in ZOO:
        return Source("zoo", name, args, weights=weights)
    raise unknown("model", name, {*ZOO, *cards()})


def weights_path(spec: str) -> Path | None:
    """The file that a MODEL argument names as `weights=PATH`."""
    given = _split_spec(spec)[1].get(WEIGHTS_ARGUMENT)
    return None if given is None else Path(given)


def _split_spec(spec: str) -> tuple[str, dict[str, str]]:
    """The name and the arguments as text. A + is a plus here, as in paths, and no space as in the web's queries."""
    name, _, query = spec.partition("?")
    try:
        pairs = parse_qsl(query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise BadInput(f"{spec}: {error}; write NAME?argument=value&argument=value") from None
    return name, dict(pairs)


def _weights_record(path: Path | None) -> dict[str, str] | None:
    """Name and hash alone: where the file lies on this machine says nothing about the network."""
    if path is None:
        return None
    if not path.is_file():
        raise BadInput(f"{path}: no such file of weights")
    return {"file": path.name, "sha256": file_sha256(path)}


def _literal(text: str) -> int | float | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _onnx_source(path: Path) -> Source:
    if not path.is_file():
        raise BadInput(f"{path}: no such ONNX file")
    return Source("onnx", path.name, sha256=fingerprint(path))


def _factory_hash(name: str) -> str:
    module_name = name.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise BadInput(f"{name}: there is no module {module_name!r} to import; write package.module:factory")
    return file_sha256(Path(spec.origin))


def build(
    source: Source, edits: Sequence[Edit] = (), trust: bool = False, graph: Mapping[str, Any] | None = None
) -> nn.Module:
    """A module of the structure that `source` and `edits` describe, with fresh weights.

    Args:
        trust: whether a source that runs the user's code may do so.
        graph: for an ONNX source, its graph (`onnx_torch.graph_to_json`), so that the file itself is not needed.

    Raises:
        BadInput: an unknown network, wrong arguments, a source that needs `trust`, or a graph that cannot be built.
    """
    module = _construct(source, trust, graph)
    for edit in edits:
        edit.apply(module)
    return module


def _construct(source: Source, trust: bool, graph: Mapping[str, Any] | None) -> nn.Module:
    if source.kind == "zoo":
        if source.name not in ZOO:
            raise unknown("model", source.name, ZOO)
        return call_factory(ZOO[source.name], source.args, source.name)
    if source.kind == "factory":
        return _construct_factory(source, trust)
    if source.kind == "library":
        return _construct_library(source, trust)
    if graph is None:
        raise BadInput(f"{source.name}: an ONNX file becomes a module by `onnx_torch.to_module`; its graph is not here")
    from edgekit.onnx_torch import module_from_graph

    return module_from_graph(graph, source.name)


def _construct_factory(source: Source, trust: bool) -> nn.Module:
    if not trust:
        raise BadInput(f"{source.name}: would run that module's code. If you trust it, say so with --trust")
    if source.sha256 != (found := _factory_hash(source.name)):
        raise BadInput(
            f"{source.name}: its file has changed (SHA-256 {found[:12]}…, expected {str(source.sha256)[:12]}…)"
        )
    return call_factory(source.name, source.args, source.name)


def _library_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise BadInput(f"{package}: is not installed; pip install {package}, or name a network of the zoo") from None


def _construct_library(source: Source, trust: bool) -> nn.Module:
    package, _, name = source.name.partition(":")
    if not trust:
        raise BadInput(f"{source.name}: would run {package}'s code. If you trust it, say so with --trust")
    if (found := _library_version(package)) != source.version:
        raise BadInput(f"{source.name}: {package} is {found} here and was {source.version}; install that version")
    module_name, _, function = LIBRARIES[package].partition(":")
    try:
        make = getattr(importlib.import_module(module_name), function)
    except Exception as error:  # e.g. torchvision's operators are missing beside a CPU-only torch
        raise BadInput(f"{package} {found} is installed but cannot be imported: {error}") from error
    try:
        return make(name, **source.args)
    except Exception as error:
        raise BadInput(f"{source.name}: {package} cannot make it: {error}") from error


def call_factory(target: str, args: Mapping[str, Any], name: str) -> nn.Module:
    """Call `package.module:function` with `args`, checked against its signature first."""
    from torch import nn

    module_name, _, attribute = target.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise BadInput(f"{name}: cannot load {target!r} ({error})") from error
    _check_arguments(factory, args, name)
    module = factory(**args)
    if not isinstance(module, nn.Module):
        raise BadInput(f"{name}: {target!r} returned {type(module).__name__}, not a torch.nn.Module")
    return module


def _check_arguments(factory: Any, args: Mapping[str, Any], name: str) -> None:
    parameters = inspect.signature(factory).parameters
    for key, value in args.items():
        if key not in parameters:
            raise unknown("argument", key, parameters, name)
        kind = parameters[key].annotation
        kind = {"int": int, "float": float, "bool": bool, "str": str}.get(kind, kind)
        accepted = {float: (int, float), int: (int,), bool: (bool,), str: (str,)}.get(kind)
        if accepted and (not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool)):
            raise BadInput(f"{name}: {key} = {value!r} must be {kind.__name__}")


def edits_to_json(edits: Sequence[Edit]) -> list[dict]:
    from edgekit.edits import EDITS

    names: dict[type, str] = {cls: name for name, cls in EDITS.items()}
    return [{"edit": names[type(edit)], **to_json(edit)} for edit in edits]


def edits_from_json(items: Sequence[Mapping[str, Any]], where: str) -> tuple[Edit, ...]:
    """Raises BadInput for an edit this edgekit does not know or whose fields are wrong."""
    from edgekit.edits import EDITS

    edits: list[Edit] = []
    for index, item in enumerate(items):
        name = str(item.get("edit"))
        if name not in EDITS:
            raise unknown("edit", name, EDITS, f"{where}, edit {index}")
        fields = {key: value for key, value in item.items() if key != "edit"}
        edits.append(parse(EDITS[name], fields, f"{where}, edit {index} ({name})"))
    return tuple(edits)


def state_sha256(module: nn.Module) -> str:
    """One hash over every name, shape and byte of the state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
