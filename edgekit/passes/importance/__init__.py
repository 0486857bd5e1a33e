"""How much a channel matters, one measure a file. Each is a frozen dataclass whose fields are the recipe's; see
`rows.Importance`."""

from edgekit.passes.importance.bn_scale import BNScale
from edgekit.passes.importance.geometric_median import GeometricMedian
from edgekit.passes.importance.l1 import L1
from edgekit.passes.importance.l2 import L2
from edgekit.passes.importance.optin import Optin
from edgekit.passes.importance.random import Random
from edgekit.passes.importance.rows import Importance
from edgekit.passes.importance.taylor import Taylor

IMPORTANCES = {
    "l1": L1,
    "l2": L2,
    "bn_scale": BNScale,
    "taylor": Taylor,
    "optin": Optin,
    "geometric_median": GeometricMedian,
    "random": Random,
}

__all__ = ["IMPORTANCES", "Importance"]
