"""torch-side passes, one idea a file. A pass is a frozen dataclass whose fields are its recipe parameters, callable as
`(net, ctx) -> net`; it may not touch its input."""

from edgekit.passes.cluster import Cluster
from edgekit.passes.depth import Depth
from edgekit.passes.distil import Distil
from edgekit.passes.finetune import Finetune
from edgekit.passes.lowrank import LowRank
from edgekit.passes.prune import Prune
from edgekit.passes.reconstruct import Reconstruct
from edgekit.passes.reestimate import Reestimate
from edgekit.passes.shift import Shift
from edgekit.passes.sparsify import Sparsify
from edgekit.passes.split import Split
from edgekit.passes.tas import Tas
from edgekit.passes.vq import VQ, Project

PASSES = {
    "prune": Prune,
    "reconstruct": Reconstruct,
    "depth": Depth,
    "tas": Tas,
    "lowrank": LowRank,
    "project": Project,
    "vq": VQ,
    "shift": Shift,
    "cluster": Cluster,
    "sparsify": Sparsify,
    "split": Split,
    "distil": Distil,
    "finetune": Finetune,
    "reestimate": Reestimate,
}
