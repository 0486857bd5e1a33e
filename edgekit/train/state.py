"""The state of a training run as one safetensors file, from which a run that was killed goes on bit for bit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekit.errors import BadInput
from edgekit.files import write_bytes

SCHEMA = "edgekit/training/1"
RNG, LOG, CODES = "rng", "log", "codes"


@dataclasses.dataclass
class State:
    """What changes while a network is trained.

    Attributes:
        objective: student and term; under `student.` and `term.` in the file.
        mean: the running mean of the student's state, by name; empty where none is kept.
        step: steps done.
        log: of each step its learning rate and loss.
        scores: metrics after an epoch, by the number of steps done then.
        codes: of the student's trained codes, what they were when the epoch began; None where it has none.
    """

    objective: nn.Module
    optimiser: torch.optim.Optimizer
    mean: dict[str, torch.Tensor]
    step: int = 0
    log: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    scores: dict[int, dict[str, float]] = dataclasses.field(default_factory=dict)
    codes: torch.Tensor | None = None

    def save(self, path: Path) -> None:
        from safetensors.torch import save

        tensors = {
            **self.objective.state_dict(),
            **{f"mean.{name}": tensor for name, tensor in self.mean.items()},
            **{
                f"optimiser.{index}.{name}": value
                for index, entry in self.optimiser.state_dict()["state"].items()
                for name, value in entry.items()
                if value is not None
            },
            RNG: torch.get_rng_state(),
            LOG: torch.tensor(self.log, dtype=torch.float64).reshape(-1, 2),
            **({} if self.codes is None else {CODES: self.codes}),
        }
        # Cloned, as safetensors takes no two tensors that share memory.
        whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        about = {"schema": SCHEMA, "step": str(self.step), "scores": json.dumps(self.scores)}
        write_bytes(path, save(whole, about))

    def restore(self, path: Path) -> None:
        """Go back to a saved state. Raises BadInput where the file is none of this training."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            if about.get("schema") != SCHEMA:
                raise BadInput(f"{path}: is no state of a training run")
            own = self.objective.state_dict()
            self.objective.load_state_dict({name: tensors[name] for name in own})
            self.mean = {name: tensors[f"mean.{name}"].to(value.device) for name, value in self.mean.items()}
            self._restore_optimiser(tensors)
            torch.set_rng_state(tensors[RNG])
            self.log = [(rate, loss) for rate, loss in tensors[LOG].tolist()]
            self.codes = None if self.codes is None else tensors[CODES].to(self.codes.device)
            self.step = int(about["step"])
            self.scores = {int(step): metrics for step, metrics in json.loads(about["scores"]).items()}
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise BadInput(
                f"{path}: does not fit this training ({error}); remove it to begin this pass anew"
            ) from error

    def _restore_optimiser(self, tensors: dict[str, torch.Tensor]) -> None:
        entries: dict[int, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, index, key = name.split(".", 2)
                entries.setdefault(int(index), {})[key] = tensor
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": entries, "param_groups": groups})
