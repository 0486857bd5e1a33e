"""A read-only view of a network: the operations of one forward pass, their shapes and what they cost.

The module runs once on meta tensors (shapes without data, so even large networks take a moment) while a dispatch mode
records every ATen operation. Whatever PyTorch can run can be read, functional code included; code that looks at the
data cannot be, and is named.

Counting convention. MACs: multiply-accumulates of convolutions, linear layers and matrix products, batch 1; a bias adds
none; norms, activations, pooling, element-wise arithmetic and data movement count as zero (`FREE`). Parameters: every
trainable tensor once, batch norm's affine pair included. CIO: input/output of convolutions and linear layers in
elements (see `Op.cio`).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgekit.coded import decoded
from edgekit.errors import BadInput

Shape = tuple[int, ...]
FLOAT_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor in the graph: its place in the order of creation, and its parameter name if it is one."""

    index: int
    shape: Shape
    param: str | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Op:
    """One ATen operation: `layer` is the path of the module that ran it, `args` hold Values in place of tensors."""

    layer: str
    kind: str
    func: Any
    args: tuple
    kwargs: dict[str, Any]
    outputs: tuple[Value, ...]

    @property
    def inputs(self) -> list[Value]:
        """The tensors it reads, parameters excepted."""
        return [value for value in values_in((self.args, self.kwargs)) if value.param is None]

    @property
    def params(self) -> list[Value]:
        return [value for value in values_in((self.args, self.kwargs)) if value.param is not None]

    @property
    def is_view(self) -> bool:
        return self.kind in VIEWS and bool(self.inputs)

    @property
    def is_conv(self) -> bool:
        return self.kind == "convolution"

    @property
    def groups(self) -> int:
        return self.args[8] if self.is_conv else 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates at batch 1; 0 by convention for what is neither a convolution nor a product."""
        if self.is_conv:
            x, weight, transposed = self.args[0], self.args[1], self.args[6]
            return (x.size if transposed else self.outputs[0].size) * math.prod(weight.shape[1:])
        if self.kind in PRODUCTS:
            return self.outputs[0].size * PRODUCTS[self.kind](self.args)
        return 0

    @property
    def is_strided_depthwise(self) -> bool:
        return self.is_conv and self.groups > 1 and self.groups == self.args[0].shape[1] and max(self.args[3]) > 1

    @property
    def cio(self) -> int:
        """Convolution input/output in elements: input plus output of a convolution, or of a linear layer, a 1×1
        convolution (Chao et al., HarDNet, 2019, arXiv 1909.00948, eq. 1)."""
        if self.is_conv:
            return self.args[0].size + self.outputs[0].size
        return sum(value.size for value in (*self.inputs[:1], *self.outputs)) if self.kind in LINEAR else 0

    @property
    def moc(self) -> float:
        """MACs over CIO: below a bound of the platform, memory and not arithmetic decides (same source, section 3)."""
        return self.macs / self.cio if self.cio else 0.0

    @property
    def counted(self) -> bool:
        return self.is_conv or self.kind in PRODUCTS or self.kind in FREE


@dataclasses.dataclass(frozen=True)
class Call:
    """One run of a module: the tensors it was given and gave, and the operations in between, `ops[first:last]`."""

    layer: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    first: int
    last: int


@dataclasses.dataclass(frozen=True)
class Graph:
    """The operations of one forward pass at batch 1, in order."""

    ops: tuple[Op, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    params: int
    learned: frozenset[str] = frozenset()
    """Names of the trainable tensors; other `Value.param`s are buffers."""
    holders: frozenset[str] = frozenset()
    """Modules that hold channel counts of their own (see channels.py)."""
    calls: tuple[Call, ...] = ()
    """In order of their ends, so that an inner module stands before the one around it."""

    @property
    def macs(self) -> int:
        return sum(op.macs for op in self.ops)

    @property
    def cio(self) -> int:
        return sum(op.cio for op in self.ops)

    @property
    def cio_paper(self) -> int:
        return sum(op.cio for op in self.paper_convs)

    @property
    def paper_convs(self) -> list[Op]:
        """What HarDNet's table counts: convolutions only, a depthwise one that only down-samples counting as pooling.

        Such a layer has a stride and no activation before the next layer; MobileNet's strided ones have one.
        """
        readers: dict[int, list[Op]] = {}
        for op in self.ops:
            for value in op.inputs:
                readers.setdefault(value.index, []).append(op)

        def only_samples(op: Op) -> bool:
            following = [after for value in op.outputs for after in readers.get(value.index, [])]
            return all(
                only_samples(after) if after.kind in NORMS else after.kind not in POINTWISE for after in following
            )

        return [op for op in self.ops if op.is_conv and not (op.is_strided_depthwise and only_samples(op))]

    @property
    def uncounted(self) -> list[str]:
        """What may cost MACs but is not in the total, as `kind (layer)`."""
        return sorted({f"{op.kind} ({op.layer or 'top'})" for op in self.ops if not op.counted})

    @property
    def alive(self) -> list[list[Value]]:
        """The activations in memory at the start and then at each operation, in this order.

        A lower bound of what a runtime needs: views share their source's memory, every other result is new.
        """
        root: dict[int, Value] = {}
        for op in self.ops:
            source = [*op.inputs, *op.params][:1] if op.kind in VIEWS else []
            for value in op.outputs:
                root[value.index] = root.get(source[0].index, source[0]) if source else value
        last = {root.get(v.index, v).index: place for place, op in enumerate(self.ops) for v in op.inputs}
        last.update({root.get(value.index, value).index: len(self.ops) for value in self.outputs})
        alive = list(self.inputs)
        found = [alive]
        for place, op in enumerate(self.ops):
            alive = alive + [v for v in op.outputs[:1] if root[v.index] is v and v.index in last]
            found.append(alive)
            alive = [value for value in alive if last.get(value.index, -1) > place]
        return found

    @property
    def peak_elements(self) -> int:
        """The largest number of activation elements in memory at once."""
        return max(sum(value.size for value in values) for values in self.alive)

    @property
    def stored(self) -> list[Value]:
        """The parameters and buffers that the forward pass reads, each once: what an exported file holds."""
        return list({value.param: value for op in self.ops for value in op.params}.values())

    def counts(self) -> dict[str, int]:
        return {"params": self.params, "macs": self.macs, "cio": self.cio, "cio_paper": self.cio_paper}

    def cost(self) -> dict[str, int]:
        """The counts, and in bytes of float32 the weights of the exported file (without the graph's own bytes, which
        hardly change) and the peak of the activations."""
        size = FLOAT_BYTES * sum(value.size for value in self.stored)
        return {**self.counts(), "size_bytes": size, "peak_bytes": FLOAT_BYTES * self.peak_elements}


# Reduction length of a matrix product, from its arguments.
PRODUCTS = {
    "addmm": lambda args: args[1].shape[-1],
    "mm": lambda args: args[0].shape[-1],
    "bmm": lambda args: args[0].shape[-1],
    "baddbmm": lambda args: args[1].shape[-1],
    "mv": lambda args: args[0].shape[-1],
    "dot": lambda args: args[0].shape[-1],
}

LINEAR = frozenset(["addmm", "mm"])
POINTWISE = frozenset(
    "relu relu_ hardtanh hardtanh_ hardswish hardswish_ hardsigmoid hardsigmoid_ silu silu_ sigmoid sigmoid_ gelu elu "
    "elu_ leaky_relu leaky_relu_ tanh tanh_ softplus mish clamp clamp_ clamp_min clamp_min_ clamp_max abs neg exp log "
    "sqrt rsqrt reciprocal pow floor round sign erf log_sigmoid "
    "add add_ sub sub_ mul mul_ div div_ maximum minimum where rsub _prelu_kernel "
    "native_dropout dropout alias detach clone _to_copy contiguous lift_fresh copy_".split()
)
VIEWS = frozenset(
    "view _unsafe_view t transpose permute expand unsqueeze squeeze slice select split split_with_sizes chunk unbind "
    "alias detach narrow as_strided".split()
)
MOVEMENT = frozenset(
    "view _unsafe_view reshape t transpose permute expand unsqueeze squeeze slice select split split_with_sizes chunk "
    "unbind cat stack constant_pad_nd pixel_shuffle pixel_unshuffle flip roll narrow as_strided reflection_pad2d "
    "replication_pad2d index_select repeat channel_shuffle native_channel_shuffle index movedim".split()
)
POOLING = frozenset(
    "max_pool2d_with_indices avg_pool2d mean sum amax max _adaptive_avg_pool2d adaptive_max_pool2d "
    "upsample_bilinear2d upsample_nearest2d upsample_bicubic2d _upsample_bilinear2d_aa".split()
)
NORMS = frozenset(
    "_native_batch_norm_legit_no_training native_batch_norm cudnn_batch_norm _native_batch_norm_legit "
    "native_layer_norm native_group_norm _softmax _log_softmax linalg_vector_norm var_mean var std".split()
)
BATCH_NORMS = frozenset("native_batch_norm cudnn_batch_norm _native_batch_norm_legit_no_training".split())
SHAPED_AS_INPUT = BATCH_NORMS | frozenset("relu hardtanh hardswish hardsigmoid silu sigmoid gelu".split())
CREATION = frozenset("arange zeros ones full scalar_tensor zeros_like ones_like full_like empty empty_like".split())
COMPARISON = frozenset("eq ne lt le gt ge logical_and logical_or logical_not argmax topk".split())
FREE = POINTWISE | MOVEMENT | POOLING | NORMS | CREATION | COMPARISON


def trace(module: nn.Module, input_shape: Shape) -> Graph:
    """The graph of `module` in evaluation mode.

    Args:
        input_shape: (C, H, W) of one input.

    Raises:
        BadInput: the module fails on that input, or its code depends on the values of tensors.
    """
    module = decoded(module)
    twin = meta_copy(module).eval()
    recorder = _Recorder(twin)
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    x = torch.empty((1, *input_shape), device="meta", dtype=dtype)
    source = recorder.value(x)
    try:
        with torch.no_grad(), deterministic(False), recorder:
            result = twin(x)
    except Exception as error:
        raise BadInput(_explain(error, recorder.path, input_shape)) from error
    outputs = tuple(recorder.value(tensor) for tensor in tensors_in(result))
    params = sum(parameter.numel() for parameter in module.parameters())
    holders = frozenset(name for name, layer in module.named_modules() if hasattr(layer, "keep_channels"))
    learned = frozenset(name for name, _ in twin.named_parameters())
    return Graph(tuple(recorder.ops), (source,), outputs, params, learned, holders, tuple(recorder.calls))


def meta_copy(module: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers are meta tensors: shapes without data, so no weight is copied on the way."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, memo)


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """PyTorch's switch for deterministic algorithms, set back afterwards.

    Training wants it. A graph that is traced or exported must not: PyTorch then takes some operations, such as bilinear
    resizing, apart into indexing.
    """
    # The debug mode is the same switch; `use_deterministic_algorithms` would import PyTorch's compiler, for seconds.
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn" if wanted else "default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def _explain(error: Exception, path: list[str], input_shape: Shape) -> str:
    where = f"layer {path[-1]!r}" if path and path[-1] else "the network"
    if "item()" in str(error) or "meta tensors" in str(error) or "data-dependent" in str(error).lower():
        return f"{where} decides by the values of a tensor; such a network has no fixed graph ({error})"
    size = "×".join(map(str, input_shape))
    return f"{where} cannot run on an input of {size}: {str(error).splitlines()[0]}"


class _Recorder(TorchDispatchMode):
    """Records each ATen call with the module path it happened in."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch asks; a yes has it import its compiler at the first operation, for seconds."""
        return False

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self.calls: list[Call] = []
        self.path: list[str] = [""]
        self._entered: list[tuple[tuple[Value, ...], int]] = []
        self._values: dict[int, Value] = {}
        self._alive: list[torch.Tensor] = []  # keeps id() of every tensor unique
        self._count = 0
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            self._remember(tensor, param=name)
        for name, layer in module.named_modules():
            layer.register_forward_pre_hook(
                lambda _m, args, kwargs, name=name: self._enter(name, (args, kwargs)), with_kwargs=True
            )
            layer.register_forward_hook(self._leave)

    # What a hook returns replaces the module's input or output: both return None.

    def _enter(self, name: str, given: Any) -> None:
        self.path.append(name)
        self._entered.append((tuple(self.value(tensor) for tensor in tensors_in(given)), len(self.ops)))

    def _leave(self, _module: nn.Module, _args: Any, output: Any) -> None:
        inputs, first = self._entered.pop()
        outputs = tuple(self.value(tensor) for tensor in tensors_in(output))
        self.calls.append(Call(self.path.pop(), inputs, outputs, first, len(self.ops)))

    def _remember(self, tensor: torch.Tensor, param: str | None = None) -> Value:
        value = Value(self._count, tuple(tensor.shape), param)
        self._count += 1
        self._alive.append(tensor)
        self._values[id(tensor)] = value
        return value

    def value(self, tensor: torch.Tensor) -> Value:
        return self._values.get(id(tensor)) or self._remember(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        seen = _swap(args, self.value), _swap(kwargs, self.value)
        kind = func.overloadpacket.__name__
        result = _shaped(kind, args) if _is_plain(kind, args) else func(*args, **kwargs)
        # An in-place operation returns its argument: from here on that tensor is a new value.
        outputs = tuple(self._remember(tensor) for tensor in tensors_in(result))
        self.ops.append(Op(self.path[-1], kind, func, seen[0], seen[1], outputs))
        return result


def _is_plain(kind: str, args: tuple) -> bool:
    """Whether the result's shape is easily told: PyTorch's own way there takes milliseconds, for hundreds of them, and
    the import of its compiler."""
    if kind in ("add", "mul"):
        left, right = args[:2]
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and left.shape == right.shape
    return kind in SHAPED_AS_INPUT


def _shaped(kind: str, args: tuple) -> Any:
    if kind in BATCH_NORMS:
        nothing = args[0].new_empty((0,))  # the statistics of a batch, of which there are none in evaluation
        return torch.empty_like(args[0]), nothing, nothing.clone()
    return torch.empty_like(args[0])


def _swap(item: Any, value: Any) -> Any:
    if isinstance(item, torch.Tensor):
        return value(item)
    if isinstance(item, (list, tuple)):
        return tuple(_swap(part, value) for part in item)
    if isinstance(item, dict):
        return {key: _swap(part, value) for key, part in item.items()}
    return item


def tensors_in(item: Any) -> Iterator[torch.Tensor]:
    if isinstance(item, torch.Tensor):
        yield item
    elif isinstance(item, dict):
        for part in item.values():
            yield from tensors_in(part)
    elif isinstance(item, (list, tuple)):
        for part in item:
            yield from tensors_in(part)


def values_in(item: Any) -> Iterator[Value]:
    if isinstance(item, Value):
        yield item
    elif isinstance(item, dict):
        for part in item.values():
            yield from values_in(part)
    elif isinstance(item, (list, tuple)):
        for part in item:
            yield from values_in(part)
