"""int8 by training: the quantised network is trained as it will be deployed, and its integers are written.

It begins where quantisation after training ends (`int8`), with quantisers exactly where the target's file has them; see
`edgekit.quant.simulate` for their gradients. Batch norm is in the convolutions by then. The float network is the
teacher, so labels are not needed unless the loss wants them.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Gt
from pydantic import PlainValidator

from edgekit.context import RewriteContext
from edgekit.errors import BadInput
from edgekit.net import Net, Source
from edgekit.onnx_torch import to_module
from edgekit.quant.simulate import Simulated
from edgekit.rewrites.int8 import Int8, written
from edgekit.schema import chosen
from edgekit.train.loop import fit
from edgekit.train.losses import LABEL_LOSSES, TEACHER_LOSSES
from edgekit.train.losses.function_matching import FunctionMatching
from edgekit.train.objective import Loss
from edgekit.train.settings import Training

if TYPE_CHECKING:
    import onnx


@dataclasses.dataclass(frozen=True)
class QAT(Training):
    """Train the int8 network.

    Attributes:
        loss: any loss; those that take a teacher get the float network.
        start: the settings of the quantisation that it begins with.
    """

    lr: Annotated[float, Gt(0)] = 1e-3
    loss: Annotated[Loss, PlainValidator(chosen({**LABEL_LOSSES, **TEACHER_LOSSES}, "function_matching"))] = (
        dataclasses.field(default_factory=FunctionMatching)
    )
    start: Int8 = dataclasses.field(default_factory=Int8)
    precision: ClassVar[str | None] = "int8"

    def __call__(self, model: onnx.ModelProto, ctx: RewriteContext) -> onnx.ModelProto:
        """Raises as Int8; BadInput where the graph cannot become a module, or there are no training pictures."""
        if ctx.training is None:
            raise BadInput("qat: needs training pictures: give --data; to quantise without training, use int8")
        fitted = self.start.fitted(model, ctx)
        simulated = Simulated(fitted.model, fitted.plan, fitted.grids, fitted.layers, fitted.scheme)
        teacher = to_module(fitted.model).requires_grad_(False)
        student = Net(Source("onnx", "qat"), (), simulated.module)
        teachers = [teacher] if self.loss.name in TEACHER_LOSSES else []
        fit(student, self.loss, self, ctx.training, "qat", teachers)
        grids, layers = simulated.trained()
        moved = sum(int((layers[name].integers != old.integers).sum()) for name, old in fitted.layers.items())
        whole = sum(old.integers.size for old in fitted.layers.values())
        ctx.log(f"qat: {100 * moved / whole:.1f} % of the integers moved")
        return written(dataclasses.replace(fitted, grids=grids, layers=layers), ctx)
