"""Recipes: TOML to objects. The only place where a name in a file becomes an object."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Gt

from edgekit.cards import package_data
from edgekit.data import Input, InputForm, Output, OutputForm, check_plain
from edgekit.errors import BadInput, unknown
from edgekit.files import read_toml
from edgekit.gate import Gate, check_names
from edgekit.passes import PASSES
from edgekit.rewrites import REWRITES
from edgekit.schema import parse
from edgekit.targets import target

SECTIONS = ("input", "output", "pass", "rewrite", "latency", "export", "gates")


@dataclasses.dataclass(frozen=True)
class Export:
    """[export]: the targets that files are made for, the batch size of the files, what they take and what they give.

    input: "float_nchw", or "uint8_nhwc": a camera's pixels; the file normalises them itself.
    output: "scores", "argmax" or "topk" (see `Output.form`); k is how many classes "topk" gives.
    """

    targets: tuple[str, ...] = ("onnxruntime",)
    batch: Literal["dynamic"] | Annotated[int, Gt(0)] = "dynamic"
    input: InputForm = "float_nchw"
    output: OutputForm = "scores"
    k: Annotated[int, Gt(0)] = 5

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("name at least one target")
        for name in self.targets:
            target(name)

    def shipped(self, input: Input, output: Output) -> tuple[Input, Output]:
        """What the files take and give, for a network with that [input] and [output].

        Raises:
            ValueError: the task has no such output.
        """
        k = self.k if self.output == "topk" else None
        return dataclasses.replace(input, form=self.input), dataclasses.replace(output, form=self.output, k=k)


@dataclasses.dataclass(frozen=True)
class Latency:
    """[latency]: what budgets of latency count with.

    table: a file of layer times, as `edgekit profile MODEL --layer-table --device ADDRESS` keeps one; without, the
        layers are measured on this machine.
    """

    table: str | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """A pass or rewrite under the name it has in the recipe."""

    name: str
    run: Any


@dataclasses.dataclass(frozen=True)
class Recipe:
    name: str
    tables: dict[str, Any]
    input: Input
    output: Output
    passes: tuple[Step, ...]
    rewrites: tuple[Step, ...]
    latency: Latency
    export: Export
    gates: dict[str, tuple[Gate, ...]]

    @property
    def budgets_latency(self) -> bool:
        """Whether a pass prunes to a share of the latency."""
        return any("latency" in getattr(step.run, "budget", {}) for step in self.passes)

    @property
    def plain(self) -> tuple[Input, Output]:
        """What the network itself takes and gives."""
        return self.input, self.output

    @property
    def shipped(self) -> tuple[Input, Output]:
        """What the files take and give."""
        return self.export.shipped(self.input, self.output)


def known_recipes() -> dict[str, Path]:
    return {path.stem: path for path in sorted(package_data("recipes").glob("*.toml"))}


def load(name_or_path: str, overrides: Sequence[str] = (), defaults: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of that name, or in that file, with `section.key=value` overrides applied.

    Args:
        defaults: sections for a recipe that leaves them to the model, e.g. the [input] of an ONNX file.

    Raises:
        BadInput: no such recipe, or a key, type or value in it is wrong; the file, key and what is allowed are named.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        if name_or_path not in known_recipes():
            raise unknown("recipe", name_or_path, known_recipes())
        path = known_recipes()[name_or_path]
    tables = {**(defaults or {}), **read_toml(path)}
    for override in overrides:
        _override(tables, override)
    return from_tables(tables, path.stem, str(path))


def from_tables(tables: Mapping[str, Any], name: str, where: str) -> Recipe:
    for section in tables:
        if section not in SECTIONS:
            raise unknown("section", section, SECTIONS, where)
    if "input" not in tables:
        raise BadInput(
            f"{where}: [input] is missing; it says how an image becomes the network's input. Write it "
            f"into the recipe, or give it with --io"
        )
    rewrites = _steps(tables.get("rewrite", []), "rewrite", REWRITES, where)
    _check_precisions(rewrites, where)
    made = Recipe(
        name=name,
        tables=dict(tables),
        input=parse(Input, tables["input"], f"{where} [input]"),
        output=parse(Output, tables.get("output", {}), f"{where} [output]"),
        passes=_steps(tables.get("pass", []), "pass", PASSES, where),
        rewrites=rewrites,
        latency=parse(Latency, tables.get("latency", {}), f"{where} [latency]"),
        export=parse(Export, tables.get("export", {}), f"{where} [export]"),
        gates=parse_gates(tables.get("gates", {}), f"{where} [gates]"),
    )
    if made.latency.table and not made.budgets_latency:
        raise BadInput(
            f"{where} [latency]: no pass has a budget of latency; write for example budget = {{ latency = 0.7 }} into "
            "[[pass]], or leave [latency] out"
        )
    check_plain(*made.plain, where)
    try:
        _ = made.shipped
    except ValueError as error:
        raise BadInput(f"{where} [export]: {error}") from None
    return made


def _steps(items: Any, kind: str, registry: Mapping[str, Any], where: str) -> tuple[Step, ...]:
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise BadInput(f"{where}: write each {kind} as a table of its own, headed [[{kind}]]")
    steps = []
    for index, item in enumerate(items):
        place = f"{where} [[{kind}]] {index + 1}"
        if not isinstance(item.get("name"), str):
            raise BadInput(f"{place}: name is missing; known: {', '.join(sorted(registry))}")
        if item["name"] not in registry:
            raise unknown(kind, item["name"], registry, place)
        fields = {key: value for key, value in item.items() if key != "name"}
        steps.append(Step(item["name"], parse(registry[item["name"]], fields, f"{place} ({item['name']})")))
    return tuple(steps)


def _check_precisions(rewrites: Sequence[Step], where: str) -> None:
    """Each rewrite that changes the precision makes a file of its own from the float one, named by the precision."""
    made = [step.run.precision for step in rewrites if step.run.precision is not None]
    twice = next((precision for precision in made if made.count(precision) > 1), None)
    if twice is not None:
        raise BadInput(f"{where}: several [[rewrite]] make {twice}, and its file can be made once; leave one of them")


def parse_gates(tables: Any, where: str) -> dict[str, tuple[Gate, ...]]:
    """`metric = { … }` or `metric = [{ … }, { … }]` for several limits."""
    if not isinstance(tables, dict):
        raise BadInput(f"{where}: gates = {tables!r}; write a table of metrics, headed [gates]")
    check_names(tables, where)
    gates = {}
    for metric, value in tables.items():
        items = value if isinstance(value, list) else [value]
        if not items or not all(isinstance(item, dict) for item in items):
            raise BadInput(f"{where}: {metric} = {value!r}; write for example {metric} = {{ max = 1.0 }}")
        gates[metric] = tuple(parse(Gate, item, f"{where} {metric}") for item in items)
    return gates


def _override(tables: dict[str, Any], override: str) -> None:
    """`prune.budget.macs=0.5`: a pass, rewrite or section, a field, and a TOML value (or a bare string)."""
    path, equals, text = override.partition("=")
    owner, _, rest = path.partition(".")
    if not equals or not rest:
        raise BadInput(f"--set {override}: write section.field=value or pass.field=value")
    steps = [*tables.get("pass", []), *tables.get("rewrite", [])]
    named = [step for step in steps if step.get("name") == owner]
    if len(named) > 1:
        raise BadInput(f"--set {override}: the recipe has {len(named)} steps named {owner!r}; edit the file instead")
    if not named and owner not in SECTIONS:
        raise unknown("step or section", owner, [*(str(step.get("name")) for step in steps), *SECTIONS], "--set")
    table = named[0] if named else tables.setdefault(owner, {})
    *parents, field = rest.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
    table[field] = _toml_value(text)


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
