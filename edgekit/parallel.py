"""Several processes that train one network together, as torchrun starts them.

Every process does the same work on its share of each batch; process 0 alone writes, exports and measures.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
PATIENCE = datetime.timedelta(hours=12)
"""The others wait for process 0 while it exports and measures."""


@dataclasses.dataclass(frozen=True)
class World:
    """This process among `size` of them; `local_rank` counts on this machine alone."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """A GPU of its own where there is one, else the CPU."""
        import torch

        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())

    def agreed(self, value: T) -> T:
        """What process 0 gives."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, value: T) -> list[T]:
        """What each process gives, in the order of their ranks."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value)
        return box

    def mean_(self, *tensors: torch.Tensor) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.size == 1:
            return
        import torch.distributed as dist

        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= self.size


ALONE = World()


def join() -> World:
    """The place that torchrun gave this process; without torchrun, a world of one."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return ALONE
    import torch
    import torch.distributed as dist

    world = World(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", 0)))
    if not dist.is_initialized():
        if world.device.type == "cuda":
            torch.cuda.set_device(world.device)
        backend = "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
    return world
