"""What only split computing needs, from the extra `split`."""

import importlib.util

from edgekit.errors import BadInput

SERVER = ("uvicorn", "starlette", "httptools", "prometheus_client")
DEVICE = ("urllib3",)


def check(modules: tuple[str, ...]) -> None:
    """Raises BadInput where one is not installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise BadInput(f"split computing needs {', '.join(missing)}; pip install 'edgekit[split]'")
