"""The training pictures on their way to the network: order, decoding here or in processes, views, batches.

The order of an epoch comes from (seed, epoch), the view of a picture from (seed, epoch, number) and the mixing of a
batch from (seed, step): none depends on processes or on where a run was interrupted. Of N processes, number
r takes every N-th picture of each batch from the r-th on. Only what runs on whole batches (kornia's augmentation, the
partner in mixing) is drawn within a process's share.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from edgekit.data import Input, Output, Samples, check_masks, fitted
from edgekit.errors import BadInput, TrainingStopped
from edgekit.parallel import World
from edgekit.train.augment import mixed
from edgekit.train.objective import Views
from edgekit.train.settings import Training


class Key(NamedTuple):
    """One picture in one epoch."""

    epoch: int
    number: int


class Picture(NamedTuple):
    """uint8 (C, H, W), and the class of each pixel, uint8 (H, W), where the task is that."""

    number: int
    pixels: np.ndarray
    mask: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Feed:
    """Batches of the role train for this process."""

    samples: Samples
    input: Input
    output: Output
    settings: Training
    outputs: int
    seed: int
    world: World

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return len(self.samples) // self.settings.batch

    def views(self, start: int) -> Iterator[Views]:
        """Every batch from step `start` on, on this process's device.

        Raises:
            BadInput: a picture that cannot be decoded or used.
            TrainingStopped: a decoding process died.
        """
        recoloured = self.settings.augment.on_batches()
        for step, pictures in enumerate(self._pictures(start), start):
            yield self._batch(pictures, step, recoloured)

    def plain(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Every picture once, in order, not augmented."""
        for images, labels, _ in self.samples.batches(self.input, self.settings.batch):
            placed = torch.from_numpy(images).to(self.world.device, memory_format=torch.channels_last)
            yield placed, torch.from_numpy(self.output.channels(labels)).to(self.world.device)

    def plan(self, start: int) -> Iterator[list[Key]]:
        """The pictures of this process's share of each batch from step `start` on."""
        size = self.settings.batch
        for epoch in range(start // self.steps, self.settings.epochs):
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.samples)).tolist()
            first = start % self.steps if epoch == start // self.steps else 0
            for step in range(first, self.steps):
                share = order[step * size : (step + 1) * size][self.world.rank :: self.world.size]
                yield [Key(epoch, index) for index in share]

    def _pictures(self, start: int) -> Iterator[list[Picture]]:
        if self.settings.workers:
            batches: Iterator[list[Picture | str | None]] = iter(self._loader(start))
        else:
            # Not in threads: beside training they only contend for the interpreter, and the processor is busy anyway.
            batches = ([self.picture(key) for key in batch] for batch in self.plan(start))
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:  # of PyTorch's loader, e.g. where the system killed a process for its memory
                raise TrainingStopped(
                    f"a process that decodes pictures died ({str(error).splitlines()[0]}); fewer workers need less "
                    "memory. Run again with --resume"
                ) from error
            yield self._usable(batch)

    def _usable(self, batch: list[Picture | str | None]) -> list[Picture]:
        if wrong := next((item for item in batch if isinstance(item, str)), None):
            raise BadInput(wrong)
        pictures = [item for item in batch if isinstance(item, Picture)]
        if not pictures:
            raise BadInput("none of the pictures of a batch could be decoded; look at the training data")
        return pictures

    def _loader(self, start: int) -> Iterable[Any]:
        if "fork" not in multiprocessing.get_all_start_methods():
            raise BadInput("workers = 0 is needed here: this system cannot fork processes that share the data")
        from torch.utils.data import DataLoader

        # Arrays go through pipes, not through shared memory, of which containers often have next to none.
        return DataLoader(
            _Decoded(self.picture),
            batch_sampler=self.plan(start),
            num_workers=self.settings.workers,
            collate_fn=list,
            multiprocessing_context="fork",
        )

    def picture(self, key: Key) -> Picture | str | None:
        """The picture as it is seen in that epoch; what is wrong with it; or None where it is to be skipped."""
        sample = self.samples[key.number]
        try:
            image = sample.read()
            truth = None if sample.truth is None else sample.truth.read()
        except BadInput as error:
            return None if self.samples.on_error == "skip" else str(error)
        rng = random.Random((self.seed << 64) + (key.epoch << 32) + key.number)
        try:
            view = self.settings.augment.view(rng, *image.shape[:2])
            return Picture(key.number, *fitted(sample, image, truth, self.input, view))
        except BadInput as error:
            return str(error)

    def _batch(self, pictures: list[Picture], step: int, recoloured: Callable[[torch.Tensor], torch.Tensor]) -> Views:
        indices = [picture.number for picture in pictures]
        labels = self._labels(pictures, indices).to(self.world.device, non_blocking=True)
        pixels = torch.from_numpy(np.stack([picture.pixels for picture in pictures]))  # (B, C, H, W)
        images = pixels.to(self.world.device, memory_format=torch.channels_last, non_blocking=True).float()
        if self.settings.augment.photometric:
            with torch.random.fork_rng():
                seeds = np.random.SeedSequence([self.seed, step, self.world.rank])
                torch.manual_seed(int(seeds.generate_state(1)[0]))
                images = recoloured(images / 255) * 255
        factor, offset = self._normal
        images, targets = images.mul(factor).add_(offset), None
        if self.settings.mixes:
            rng = np.random.default_rng([self.seed, step, self.outputs])
            images, targets = mixed(images, labels, self.outputs, self.settings.mixup, self.settings.cutmix, rng)
        return Views(
            images.contiguous(memory_format=torch.channels_last), labels, targets,
            torch.tensor(indices, device=images.device), step // self.steps, self.settings.epochs,
            self.settings.label_smoothing,
        )  # fmt: skip

    @functools.cached_property
    def _normal(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(pixel · scale − mean) / std as pixel · factor + offset, each (C, 1, 1)."""
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (self.input.mean, self.input.std))
        factor, offset = (values.float()[:, None, None] for values in (self.input.scale / std, -mean / std))
        return factor.to(self.world.device), offset.to(self.world.device)

    def _labels(self, pictures: list[Picture], indices: list[int]) -> torch.Tensor:
        if self.output.task == "classify":
            return torch.from_numpy(self.output.channels(self.samples.labels[indices]))
        masks = np.stack([picture.mask for picture in pictures if picture.mask is not None]).astype(np.int64)
        if self.output.classes is not None:
            check_masks(self.samples, masks, indices, self.output.classes)
        return torch.from_numpy(self.output.channels(masks))


class _Decoded(torch.utils.data.Dataset):
    """What PyTorch's loader asks for."""

    def __init__(self, picture: Callable[[Key], Picture | str | None]) -> None:
        self.picture = picture

    def __getitem__(self, key: Key) -> Picture | str | None:
        return self.picture(key)
