"""The design's direction of flow, and the size of things."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "edgekit"

# Left to right: a module imports only from its own group or from groups to its left.
LAYERS = [
    {"errors"},
    {
        "files",
        "schema",
        "progress",
        "parallel",
        "parity",
        "terminal",
        "onnx_data",
        "machine",
        "devices",
        "statistics",
        "vocabulary",
    },
    {"cards", "targets", "data", "nets"},
    {"coded", "onnx_codes", "projected", "masked", "shift"},
    {"graph", "graph_onnx", "edits", "factorise", "onnx_file", "onnx_torch", "metrics", "evaluate", "weights"}
    | {"cuts", "onnx_split", "bottlenecks"},
    {"labels"},
    {"net", "channels", "removal", "blocks"},
    {"costs"},
    {"context"},
    {"train"},
    {"quant"},
    {"passes"},
    {"export", "rewrites"},
    {"bundle"},
    {"engines"},
    {"profile", "memory", "energy", "footprint", "verify", "shipping", "phones", "transport", "traffic", "isa"},
    {"latency"},
    {"gate"},
    {"report", "recipe", "inspection", "cut_table", "catalogue", "split"},
    {"baseline"},
    {"judge"},
    {"job"},
    {"run"},
    {"bisect", "deploy", "doctor", "lab", "on_device", "sweep", "tables"},
    {"cli", "__main__"},
]
LONGER = {"devices/runner.py": 600}
"""It is sent to devices as one file."""
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def unit(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def rank(name: str) -> int:
    found = [index for index, group in enumerate(LAYERS) if name in group]
    assert found, f"{name} has no place in LAYERS; give it one"
    return found[0]


def imported(path: Path) -> set[str]:
    """First-level edgekit modules that a file imports anywhere but under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    names = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "edgekit":
            names |= {
                alias.name
                for alias in node.names
                if (ROOT / f"{alias.name}.py").exists() or (ROOT / alias.name).is_dir()
            }
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgekit."):
            names.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("edgekit.")}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_left(path):
    own = rank(unit(path))
    right = sorted(name for name in imported(path) if rank(name) > own)
    assert not right, f"{path.name} imports {', '.join(right)}, which stand to its right"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert text.count("\n") <= LONGER.get(str(path.relative_to(ROOT)), 420)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


def test_no_import_cycles():
    graph = {str(path.relative_to(ROOT)): imported(path) for path in MODULES}
    units: dict[str, set[str]] = {}
    for path in MODULES:
        units.setdefault(unit(path), set()).update(graph[str(path.relative_to(ROOT))] - {unit(path)})
    seen: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import cycle: {' -> '.join([*trail, name])}"
        if name not in seen:
            for other in units.get(name, ()):
                visit(other, (*trail, name))
            seen.add(name)

    for name in units:
        visit(name, ())
