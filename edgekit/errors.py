"""What edgekit raises on purpose. Each class carries the exit code of the command that ends with it."""

import difflib
from collections.abc import Iterable


class EdgekitError(Exception):
    """Base of every error that a user can cause or mend; `exit_code` is what the command returns."""

    exit_code = 2


class BadInput(EdgekitError):
    """A name, file, recipe, image or bundle that cannot be used as given."""


class GateFailed(EdgekitError):
    """At least one gate failed."""

    exit_code = 1


class Inconclusive(EdgekitError):
    """No gate failed, but at least one could not be decided."""

    exit_code = 3


class TrainingStopped(EdgekitError):
    """Training met a loss that is not finite; the last good weights were kept."""


class ParityError(EdgekitError):
    """An exported or rewritten file does not compute what it should."""


class NothingChanged(EdgekitError):
    """A pass or rewrite left the network as it was."""


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> BadInput:
    """The error for a name that is not in a registry: names the nearest and lists the known ones."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    prefix = f"{where}: " if where else ""
    return BadInput(f"{prefix}unknown {kind} {name!r}{hint} Known: {', '.join(known) or 'none'}")
