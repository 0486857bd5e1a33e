"""What only HTML and plots need, from the extra `report`."""

import importlib
from typing import Any

from edgekit.errors import BadInput


def extra(module: str) -> Any:
    """A module of the extra. Raises BadInput where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        hint = "pip install 'edgekit[report]', or use --markdown"
        raise BadInput(f"HTML reports and plots need {module}, which is not installed; {hint}") from None
