"""Weights from files: edgekit's own, which must fit exactly, and a user's checkpoint, which comes in many wrappings.

Safetensors hold arrays alone. `.pth` and `.pt` are pickles: PyTorch reads them here with its unpickler that makes
tensors and plain containers only (`weights_only`), so a file that wants to run code is refused.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekit.errors import BadInput

WRAPPERS = ("state_dict", "model_state_dict", "model", "ema", "ema_state_dict", "state_dict_ema", "model_ema")
"""Keys that a training script puts its weights under; the first one present is taken."""
PREFIXES = ("module.", "model.")
State = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Report:
    """What loading did: how many entries were loaded, and which of the module's keep their initial values."""

    loaded: int
    skipped: tuple[str, ...]

    def __str__(self) -> str:
        left = f"; left at their initial values: {', '.join(self.skipped)}" if self.skipped else ""
        return f"{self.loaded} entries loaded{left}"


def load_exact(module: nn.Module, path: Path, aliases: Mapping[str, str] | None = None) -> None:
    """Load edgekit's own safetensors strictly; `aliases` maps the name of a tied tensor to the one it is stored under.

    Raises:
        BadInput: a damaged file, or missing, unexpected and mis-shaped keys.
    """
    state = _safetensors(path)
    state.update({name: state[kept] for name, kept in (aliases or {}).items() if kept in state})
    wanted = module.state_dict()
    _refuse(path, differences(wanted, state), wanted, state)
    module.load_state_dict(state)


def load_into(module: nn.Module, path: Path, classes: int | None = None) -> Report:
    """Load a user's checkpoint, `.safetensors`, `.pth` or `.pt`, into a network.

    Wrappers such as {"state_dict": ...} are opened and prefixes such as "module." are taken off where they stand before
    every key. Counters of batch norm that old files lack stay at zero.

    Args:
        classes: the number of classes that was asked for. Where the file has another number, the layer that tells
            classes apart keeps its initial values and is listed in the report.

    Raises:
        BadInput: a file that cannot be read without running its code, or missing, unexpected and mis-shaped keys.
    """
    wanted = module.state_dict()
    state = _without_prefixes(_checkpoint(path), wanted)
    problems = differences(wanted, state)
    counters = [key for key in problems["missing"] if key.endswith("num_batches_tracked")]
    classifier = _classifier(problems["mis-shaped"], wanted, state, classes)
    excused = {*counters, *classifier}
    _refuse(path, {kind: [key for key in keys if key not in excused] for kind, keys in problems.items()}, wanted, state)
    fitting = {key: tensor for key, tensor in state.items() if key not in classifier}
    try:
        module.load_state_dict(fitting, strict=False)
    except (RuntimeError, NotImplementedError) as error:  # e.g. sparse or quantised tensors
        raise BadInput(f"{path}: holds tensors of an unusual kind ({error})") from None
    return Report(len(fitting), (*classifier, *counters))


def differences(wanted: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """The keys by which two states differ, as missing, unexpected and mis-shaped."""
    common = wanted.keys() & state.keys()
    return {
        "missing": sorted(wanted.keys() - state.keys()),
        "unexpected": sorted(state.keys() - wanted.keys()),
        "mis-shaped": sorted(key for key in common if state[key].shape != wanted[key].shape),
    }


def _refuse(path: Path, problems: Mapping[str, list[str]], wanted: State, state: State) -> None:
    def shown(kind: str, key: str) -> str:
        return f"{key} {tuple(state[key].shape)} for {tuple(wanted[key].shape)}" if kind == "mis-shaped" else key

    if any(problems.values()):
        listed = "; ".join(
            f"{len(keys)} {kind}: {', '.join(shown(kind, key) for key in keys[:5])}"
            for kind, keys in problems.items()
            if keys
        )
        raise BadInput(f"{path}: does not fit the network: {listed}")


def _classifier(misshaped: list[str], wanted: State, state: State, classes: int | None) -> list[str]:
    """The mis-shaped keys, where all of them belong to one layer and differ in the number of classes alone."""

    def by_classes(key: str) -> bool:
        ours, theirs = wanted[key].shape, state[key].shape
        return len(ours) > 0 and ours[0] == classes and len(ours) == len(theirs) and ours[1:] == theirs[1:]

    layers = {key.rpartition(".")[0] for key in misshaped}
    counts = {state[key].shape[:1] for key in misshaped}
    return misshaped if len(layers) == len(counts) == 1 and all(map(by_classes, misshaped)) else []


# Reading files


def _safetensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path}: cannot be read as safetensors ({error})") from None


def _checkpoint(path: Path) -> State:
    """The tensors of a file by name, taken out of their wrapper."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix not in (".pth", ".pt"):
        raise BadInput(f"{path}: weights come as .safetensors, .pth or .pt")
    return _unwrapped(_unpickled(path), path)


def _unpickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an unusual pickle: what matters raises
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle raises whatever it likes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(
            f"{path}: cannot be read without running code that it brings along ({reason}); "
            f"save its state_dict alone, best as .safetensors"
        ) from None


def _unwrapped(content: Any, path: Path) -> State:
    for _ in range(4):  # no script nests deeper, and a hostile file might nest without end
        if isinstance(content, dict) and content and all(isinstance(value, torch.Tensor) for value in content.values()):
            return {str(key): tensor for key, tensor in content.items()}
        inside = [key for key in WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict)]
        if not inside:
            break
        content = content[inside[0]]
    found = (
        f"the keys {', '.join(map(str, list(content)[:5]))}" if isinstance(content, dict) else type(content).__name__
    )
    raise BadInput(f"{path}: holds no state dict but {found}; looked under {', '.join(WRAPPERS)}")


def _without_prefixes(state: State, wanted: State) -> State:
    """The state with prefixes taken off, one at a time, as long as all keys have one and none of them is wanted."""
    while state and not wanted.keys() & state.keys():
        prefix = next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in state)), None)
        if prefix is None:
            return state
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state
