"""The write-once folder of one compression: `manifest.json` seals every file that stands beside it.

What varies from run to run (times, host) stands under `manifest.runs`, outside equality. Later results are new files
under `profile/`, `gates/` and `report/`, each naming the seal; nothing is ever rewritten.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import BadInput
from edgekit.files import file_sha256, read_json, write_json
from edgekit.schema import canonical, sha256

if TYPE_CHECKING:
    from torch import nn

    from edgekit.net import Net

SCHEMA = "edgekit/bundle/1"
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
GOLDEN = "golden.safetensors"
GRAPH = "source.graph.json"
"""The graph of an ONNX source without its weights; there when passes made a torch module of it."""
GRAPH_SCHEMA = "edgekit/graph/1"


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @functools.cached_property
    def seal(self) -> str:
        """SHA-256 over everything in the manifest but `runs`."""
        return seal_of(self.manifest)

    @functools.cached_property
    def _results(self) -> dict[Path, dict[str, Any]]:
        """The later results read so far: they are never rewritten, and every table asks for them."""
        return {}

    @property
    def models(self) -> list[Path]:
        """The files that ship, `model.<target>.<precision>.onnx`."""
        return [self.path / name for name in sorted(self.manifest["files"]) if name.startswith("model.")]

    @property
    def has_module(self) -> bool:
        """Whether it holds a PyTorch network, and not ONNX files alone."""
        return WEIGHTS in self.manifest["files"]

    @property
    def base(self) -> Path:
        """The uncompressed network as exported, for ratios."""
        return self.path / next(name for name in sorted(self.manifest["files"]) if name.startswith("base."))

    def model(self, target: str, precision: str) -> Path:
        """Raises BadInput where the bundle has no such file."""
        path = self.path / f"model.{target}.{precision}.onnx"
        if path not in self.models:
            known = ", ".join(file.name for file in self.models)
            raise BadInput(f"{self.path}: has no {path.name}; it has {known}")
        return path

    def add(self, kind: str, document: dict[str, Any]) -> Path:
        """Write a later result (`profile`, `gates`) as a new file that names the seal."""
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        path = self.path / kind / f"{stamp}-{secrets.token_hex(4)}.json"
        write_json(path, {"schema": f"edgekit/{kind}/1", "seal": self.seal, **document})
        return path

    def latest(self, kind: str) -> dict[str, Any] | None:
        """The newest result of a kind that belongs to this seal and was found on this machine, not on a device."""
        return next((found for found in self._newest_first(kind) if "device" not in found), None)

    @property
    def device_profiles(self) -> list[dict[str, Any]]:
        """The newest profile of each device, and of each engine there, that belongs to this seal."""
        newest: dict[tuple[str, ...], dict[str, Any]] = {}
        for found in self._newest_first("profile"):
            if "device" in found:
                newest.setdefault((found["device"], *found["settings"]["engines"]), found)
        return list(newest.values())

    def _newest_first(self, kind: str) -> Iterator[dict[str, Any]]:
        """Those of a kind that belong to this seal, the newest first."""
        for path in sorted((self.path / kind).glob("*.json"), key=_written, reverse=True):
            document = self._results.get(path) or read_json(path, f"edgekit/{kind}/1")
            self._results[path] = document
            if document.get("seal") == self.seal:
                yield document


def _written(path: Path) -> tuple[str, int]:
    return path.name[:16], path.stat().st_mtime_ns


def seal_of(manifest: dict[str, Any]) -> str:
    return sha256(canonical({key: value for key, value in manifest.items() if key != "runs"}))


def hashes(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    return {
        name: {"sha256": file_sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in sorted(names)
    }


def open_bundle(path: Path | str, check: bool = True) -> Bundle:
    """Open a bundle and, with `check`, compare the hash of each sealed file.

    Raises:
        BadInput: no bundle, an unfinished one, a newer schema, or a file that is missing or altered (hash named).
    """
    path = Path(path)
    if not (path / MANIFEST).is_file():
        state = (
            "an unfinished bundle (run the same command with --resume)" if (path / ".work").is_dir() else "no bundle"
        )
        raise BadInput(f"{path}: is {state}; {MANIFEST} is missing")
    bundle = Bundle(path, read_json(path / MANIFEST, SCHEMA))
    missing = [key for key in ("source", "edits", "files", "steps", "input", "output") if key not in bundle.manifest]
    if missing:
        raise BadInput(f"{path / MANIFEST}: lacks {', '.join(missing)}")
    if check:
        _check_files(bundle)
    return bundle


def _check_files(bundle: Bundle) -> None:
    for name, sealed in bundle.manifest["files"].items():
        if Path(name).name != name:
            raise BadInput(f"{bundle.path / MANIFEST}: {name!r} is no file name of a bundle")
        file = bundle.path / name
        if not file.is_file():
            raise BadInput(f"{file}: is missing; the manifest seals it with SHA-256 {sealed['sha256'][:16]}…")
        if (found := file_sha256(file)) != sealed["sha256"]:
            raise BadInput(
                f"{file}: is corrupt or truncated; its SHA-256 is {found[:16]}…, sealed was {sealed['sha256'][:16]}…"
            )


def save_weights(path: Path, module: nn.Module) -> dict[str, str]:
    """Write the state dict as safetensors, tied tensors once; returns the aliases (name -> name it is stored under)."""
    from safetensors.torch import save

    from edgekit.files import write_bytes

    stored, aliases = {}, {}
    seen: dict[tuple, str] = {}
    for name, tensor in module.state_dict().items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and place in seen:
            aliases[name] = seen[place]
        else:
            seen[place] = name
            stored[name] = tensor.detach().cpu().contiguous().clone()
    write_bytes(path, save(stored))
    return aliases


def load_net(bundle: Bundle, trust: bool = False) -> Net:
    """The network of a bundle, bit-equal to what was sealed.

    Raises:
        BadInput: the source runs the user's code and `trust` is false, the bundle holds ONNX files alone, or the
            weights do not fit.
    """
    from edgekit.net import Net, Source, build, edits_from_json
    from edgekit.schema import parse
    from edgekit.weights import load_exact

    where = str(bundle.path / MANIFEST)
    source = parse(Source, bundle.manifest["source"], f"{where}, source")
    edits = edits_from_json(bundle.manifest["edits"], where)
    module = build(source, edits, trust, _graph(bundle) if source.kind == "onnx" else None)
    load_exact(module, bundle.path / WEIGHTS, bundle.manifest.get("aliases", {}))
    return Net(source, edits, module.eval())


def _graph(bundle: Bundle) -> dict[str, Any]:
    """What an ONNX source is rebuilt from."""
    if not bundle.has_module:
        raise BadInput(f"{bundle.path}: comes from an ONNX file without any pass, so there is no PyTorch module in it")
    return read_json(bundle.path / GRAPH, GRAPH_SCHEMA)


def new_folder(path: Path) -> None:
    """Make the folder of a new bundle. Raises BadInput where it holds something or cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            hint = "; add --resume to continue the run that was started there" if (path / ".work").is_dir() else ""
            raise BadInput(f"{path}: is not empty; give another --out{hint}")
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror})") from error
    if not os.access(path, os.W_OK):
        raise BadInput(f"{path}: cannot be written (permission denied)")
