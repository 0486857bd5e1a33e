"""Parts `coverage` and `times`: what can be pruned at all, and how long finding out takes.

Coverage: every network of the zoo and of the tests loses 25 % and 50 % of its MACs (a 64² or 32² input for the zoo, so
that all of it takes minutes), is exported, and answers in ONNX Runtime as in PyTorch. Batch norms have statistics under
which the output depends on the input.

Times: analysing and pruning to half of the MACs at 224², by edgekit and by Torch-Pruning in turns. Wall time counts;
CPU time tells how much of it a busy machine took.
"""

import copy
import statistics
import time
from collections.abc import Callable

import prune_peer as peer
import torch
from common import claim
from prune_common import Row, applied, context, found, keep, kept, parity_db, silent
from torch import nn

from edgekit.cards import card
from edgekit.data import Input
from edgekit.errors import EdgekitError
from edgekit.export import PARITY_DB
from edgekit.graph import trace
from edgekit.net import Net, Source, build, parse_spec
from edgekit.nets import ZOO
from tests import test_channels as regression
from tests.nets import Tiny, TinySegment, calibrate

SHARES = (0.75, 0.5)
SEED, ROUNDS = 0, 3
# Of the tests' networks, those whose every removable channel is free; few channels, so that each counts.
REGRESSION: dict[str, Callable[[], nn.Module]] = {
    "tiny": lambda: Tiny(4),
    "segment": lambda: TinySegment(3),
    "concat": regression.Concat,
    "shared": regression.Shared,
    "c2f": regression.Chunk,
    "squeeze_excite": regression.Gated,
    "split": regression.HeldSplit,
    "shuffle": regression.Shuffle,
    "unet": regression.Upsampling,
    "option_a": regression.OptionA,
    "norms": regression.Normed,
}
# And those that hold on to most of theirs: attention, code that slices at fixed places. What is left can go.
HELD: dict[str, Callable[[], nn.Module]] = {
    "fixed_split": regression.FixedSplit,
    "sliced": regression.Sliced,
    "swapped": regression.Swapped,
    "attention": lambda: regression.Attention(True),
    "multihead": lambda: regression.Attention(False),
}
TOOLS = ("edgekit", "torch_pruning")
LIMITS_S = {"mobilenet_v2": 3, "resnet_50": 3, "densenet_201": 20, "hardnet_85": 20}


def coverage(only: list[str]) -> None:
    for name in only or [*ZOO, *REGRESSION, *HELD]:
        for share in SHARES:
            if found("coverage", network=name, asked=share) is None:
                keep("coverage", {"network": name, "asked": share, **pruned(name, share)})


def pruned(name: str, share: float) -> Row:
    """What became of one network; an error is a row too."""
    if name in ZOO:
        input, settings = Input(size=32 if card(name)["input_size"] == 32 else 64), {}
        made = lambda: build(parse_spec(name))  # noqa: E731
    else:
        input, settings = Input(size=_size(name)), {"round_to": 1}
        made = {**REGRESSION, **HELD}[name]
    torch.manual_seed(SEED)
    net = Net(Source("zoo", name), (), calibrate(made(), input.shape))
    table = {"name": "prune", "budget": {"macs": share}, **settings}
    try:
        result = applied(table, net, context(net, input, log=silent))
        macs = trace(result.module, input.shape).macs / trace(net.module, input.shape).macs
        return {"macs": macs, "sqnr_db": parity_db(result.module, input), "error": None}
    except EdgekitError as error:
        return {"macs": None, "sqnr_db": None, "error": str(error)}


def _size(name: str) -> int:
    return {"norms": 4, "attention": 4, "multihead": 4, "tiny": 16, "segment": 64}.get(name, 8)


def coverage_claims() -> list[Row]:
    rows = kept("coverage")
    claims = []
    for title, names in (("zoo", ZOO), ("regression", REGRESSION)):
        of_set = [row for row in rows if row["network"] in names]
        asked = len(SHARES) * len(names)
        done = [row for row in of_set if row["error"] is None and row["macs"] <= row["asked"]]
        right = [row for row in done if row["sqnr_db"] >= PARITY_DB]
        required = f"{asked}: {len(names)} networks, 25 and 50 % of MACs gone, ONNX Runtime within {PARITY_DB:.0f} dB"
        claims.append(claim(f"prune.coverage.{title}", required, len(right), "pruned", len(right) == asked))
    held = [row for row in rows if row["network"] in HELD]
    wrong = [row for row in held if row["error"] is None and row["sqnr_db"] < PARITY_DB]
    required = f"0 of {len(held)} on networks that hold their channels are cut wrongly; what is out of reach is refused"
    return [*claims, claim("prune.coverage.held", required, len(wrong), "wrong", not wrong)] if rows else []


# Times


def times(only: list[str]) -> None:
    for name in only or LIMITS_S:
        for round_ in range(ROUNDS):
            for tool in TOOLS:
                if tool == "torch_pruning" and peer.missing():
                    print(peer.missing(), flush=True)
                elif found("times", network=name, tool=tool, round=round_) is None:
                    keep("times", {"network": name, "tool": tool, "round": round_, **timed(name, tool)})


def timed(name: str, tool: str) -> Row:
    """Seconds from a module in memory to a pruned one."""
    torch.manual_seed(SEED)
    module, input = build(parse_spec(name)).eval(), Input(size=224)
    net = Net(parse_spec(name), (), module)
    ctx = context(net, input, log=silent)
    copied = copy.deepcopy(module)  # Torch-Pruning cuts in place
    wall, cpu = time.perf_counter(), time.process_time()
    error = None
    result = module
    try:
        if tool == "edgekit":
            result = applied({"name": "prune", "budget": {"macs": 0.5}}, net, ctx).module
        else:
            result = peer.cut(copied, input.shape, 0.3, [copied.get_submodule(last_linear(copied))])
    except Exception as problem:  # whatever Torch-Pruning throws is its result
        if tool == "edgekit":
            raise
        error = f"{type(problem).__name__}: {problem}"[:300]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    macs = None if error else trace(result, input.shape).macs / trace(module, input.shape).macs
    return {"wall_s": wall, "cpu_s": cpu, "macs": macs, "error": error}


def last_linear(module: nn.Module) -> str:
    """The classifier, whose outputs must stay."""
    return [name for name, layer in module.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))][-1]


def times_claims() -> list[Row]:
    claims = []
    for name, limit in LIMITS_S.items():
        rows = {tool: [r for r in kept("times") if (r["network"], r["tool"]) == (name, tool)] for tool in TOOLS}
        if not rows["edgekit"]:
            continue
        seconds, cpu = (statistics.median(row[key] for row in rows["edgekit"]) for key in ("wall_s", "cpu_s"))
        required = (
            f"≤ {limit} s, median of {len(rows['edgekit'])} (of it CPU {cpu:.1f} s; {beside(rows['torch_pruning'])})"
        )
        claims.append(claim(f"prune.seconds.{name}", required, seconds, "s", seconds <= limit))
    return claims


def beside(rows: list[Row]) -> str:
    if not rows:
        return "Torch-Pruning: not measured"
    if errors := [row["error"] for row in rows if row["error"]]:
        return f"Torch-Pruning fails: {errors[0][:80]}"
    wall, cpu = (statistics.median(row[key] for row in rows) for key in ("wall_s", "cpu_s"))
    return f"Torch-Pruning: {wall:.1f} s, CPU {cpu:.1f} s"
