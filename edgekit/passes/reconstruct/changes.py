"""What became of a network's channels and weights: the reference, whole, beside the network as it is now."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from edgekit.channels import Group
from edgekit.coded import decoded
from edgekit.context import PassContext
from edgekit.edits import KeepChannels
from edgekit.errors import BadInput
from edgekit.factorise import FORMS, Factorise
from edgekit.labels import Axis
from edgekit.net import Net
from edgekit.removal import Side, layer_side


class Changes:
    """The reference's channels that are left, and its tensors cut down to them.

    Raises:
        BadInput: the network does not come from the reference, differs in nothing, or keeps weights in another form.
    """

    def __init__(self, ctx: PassContext, net: Net) -> None:
        before = ctx.before or ctx.base
        if net.edits[: len(before.edits)] != before.edits:
            raise BadInput("reconstruct: the reference is no earlier form of this network")
        if decoded(net.module) is not net.module:
            raise BadInput("reconstruct: weights are kept in another form, e.g. as codes; put it before that [[pass]]")
        self.before, self.now = before, net
        self.whole: Mapping[str, torch.Tensor] = before.module.state_dict()
        self.state: Mapping[str, torch.Tensor] = net.module.state_dict()
        self.kept: dict[tuple[str, Side], np.ndarray] = {}
        self.chained: dict[str, str] = {}
        """The weight of each low-rank chain's last layer: that of the reference's layer, which put out the same."""
        for edit in net.edits[len(before.edits) :]:
            if isinstance(edit, KeepChannels):
                side, keep = (edit.layer, edit.dim), np.array(edit.keep)
                self.kept[side] = self.kept[side][keep] if side in self.kept else keep
            elif isinstance(edit, Factorise):
                self.chained[f"{edit.layer}.{len(FORMS[edit.form]) - 1}.weight"] = f"{edit.layer}.weight"
        common = self.state.keys() & self.whole.keys()
        self.reweighted = {name for name in common if not torch.equal(self.left(name), self.state[name])}
        if len(net.edits) == len(before.edits) and not self.reweighted:
            raise BadInput(
                "reconstruct: nothing was removed or changed that could be made up for; put it after the [[pass]] that "
                "prunes or quantises"
            )

    def left(self, name: str, *but: int) -> torch.Tensor:
        """A tensor of the reference without what was removed from it, along all its axes `but` these."""
        tensor = self.whole[name]
        for dim in range(min(tensor.ndim, 2)):
            rows = self.rows((name, dim))
            if dim not in but and rows is not None:
                tensor = tensor.index_select(dim, torch.from_numpy(rows).to(tensor.device))
        return tensor

    def rows(self, axis: Axis) -> np.ndarray | None:
        """The indices along a tensor's axis that are left, ascending; None for all."""
        return self.kept.get(layer_side(self.before.module, axis))

    def stay(self, group: Group) -> np.ndarray:
        """Which rows of a group are left: bool (size,)."""
        for axis, indices in group.slots.items():
            rows = self.rows(axis)
            if rows is not None:
                return np.isin(indices[:, 0], rows)
        return np.ones(group.size, bool)

    def places(self, axis: Axis, indices: np.ndarray) -> np.ndarray:
        """Where indices of the reference that are left stand now."""
        rows = self.rows(axis)
        return indices if rows is None else np.searchsorted(rows, indices)
