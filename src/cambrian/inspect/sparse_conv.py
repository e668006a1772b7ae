"""Direct sparse convolution on a CPU: no im2col, one pass over the non-zero weights (Park et al. 2017, section 2.1).

The weights of an output channel are a row of CSR whose column index is the offset of its input in the padded picture:

    for j in row n:   w = values[j];  for all outputs (y, x) of the plane:  out[n, y, x] += w * in[offset[j] + y * W' + x]

The inner loop is a contiguous multiply-add over the flat plane (its pad columns are computed too, and dropped). A block
of the plane stays in vector registers over the whole row: the loop over j is inside, and is written as LLVM
instructions, since compilers spill the accumulators. A stride s splits the picture into s x s phases, each contiguous.

Shapes: N images, C input channels, O output channels, H W input, R S kernel.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian.errors import CapabilityError, ConfigError, ShapeError

BACKENDS = ("auto", "numba", "torch")
SIZES = (1, 2, 3, 4, 6, 8, 10, 12, 13)  # vectors that one block keeps in registers; compiled when first used


@dataclass(frozen=True)
class Geometry:
    """A convolution and its input's size; `phases` is (stride_y, stride_x)."""

    channels: int
    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def out(self) -> tuple[int, int]:
        """Height and width of the output. Raises `ShapeError` when it would be empty."""
        sizes = []
        for i, size in enumerate((self.height, self.width)):
            reach = self.dilation[i] * (self.kernel[i] - 1) + 1
            sizes.append((size + 2 * self.padding[i] - reach) // self.stride[i] + 1)
        if min(sizes) < 1:
            raise ShapeError(f"a kernel of {self.kernel} does not fit into {self.height}x{self.width} pixels")
        return sizes[0], sizes[1]

    @property
    def plane(self) -> tuple[int, int]:
        """Rows and columns of one phase of the padded picture."""
        sizes = [
            -(-(size + 2 * pad) // step)
            for size, pad, step in zip((self.height, self.width), self.padding, self.stride, strict=True)
        ]
        return sizes[0], sizes[1]

    @property
    def flat(self) -> int:
        """Outputs of the flat plane: all rows, of which the last needs no pad columns."""
        (rows, columns), (_, wide) = self.out, self.plane
        return rows * wide - (wide - columns)


@dataclass(frozen=True)
class Csr:
    """Non-zero weights by output channel: `values [nnz]` float32, `offsets [nnz]` int32 into the picture as laid out by
    `arrange`, `rows [O + 1]` int64.
    """

    geometry: Geometry
    values: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, weight: Tensor, geometry: Geometry) -> Csr:
        """The non-zeros of `weight [O, C / groups, R, S]` for inputs of that geometry."""
        g = geometry
        outputs, depth = weight.shape[:2]
        if depth * g.groups != g.channels or tuple(weight.shape[2:]) != g.kernel or outputs % g.groups:
            raise ShapeError(f"a weight {list(weight.shape)} does not fit {g}")
        dense = weight.detach().cpu().float().numpy()
        o, c, r, s = np.nonzero(dense)  # in order of output channels
        channel = c + (o // (outputs // g.groups)) * depth
        rows, columns = g.plane
        y, x = r * g.dilation[0], s * g.dilation[1]
        phase = (channel * g.stride[0] + y % g.stride[0]) * g.stride[1] + x % g.stride[1]
        offsets = (phase * rows + y // g.stride[0]) * columns + x // g.stride[1]
        starts = np.concatenate([[0], np.bincount(o, minlength=outputs).cumsum()]).astype(np.int64)
        return cls(g, np.ascontiguousarray(dense[o, c, r, s]), offsets.astype(np.int32), starts)

    @property
    def density(self) -> float:
        """Share of weights that are not zero."""
        g = self.geometry
        return len(self.values) / ((len(self.rows) - 1) * g.channels // g.groups * g.kernel[0] * g.kernel[1])


def arrange(x: Tensor, geometry: Geometry, slack: int) -> Tensor:
    """`[N, C, H, W]` -> `[N, C * phases * plane + slack]`: padded, split into phases, with zeros behind the end so that
    whole vectors can be read there.
    """
    g = geometry
    (rows, columns), (sy, sx) = g.plane, g.stride
    tall, wide = rows * sy, columns * sx
    out = x.new_zeros(len(x), g.channels * tall * wide + slack)
    left, top = g.padding[1], g.padding[0]
    if sy == sx == 1:
        view = out[:, : out.shape[1] - slack].view(len(x), g.channels, tall, wide)
        view[:, :, top : top + g.height, left : left + g.width] = x
        return out
    padded = F.pad(x, (left, wide - g.width - left, top, tall - g.height - top))
    phases = padded.view(len(x), g.channels, rows, sy, columns, sx).permute(0, 1, 3, 5, 2, 4)
    out[:, : out.shape[1] - slack] = phases.flatten(1)
    return out


def sparse_conv2d(
    x: Tensor, csr: Csr, bias: Tensor | None = None, relu: bool = False, *, backend: str = "auto"
) -> Tensor:
    """The convolution of `x [N, C, H, W]` float32 with the CSR's weights, `bias [O]` and ReLU fused in: `[N, O, H', W']`.

    Forward only. Uses torch's number of threads. `backend` "numba" raises `CapabilityError` where numba is missing,
    "auto" then falls back to "torch" (a sparse product over im2col: right, and slow).
    """
    g = csr.geometry
    if x.dim() != 4 or tuple(x.shape[1:]) != (g.channels, g.height, g.width):
        raise ShapeError(f"inputs must be [N, {g.channels}, {g.height}, {g.width}], got {list(x.shape)}")
    if x.dtype != torch.float32 or x.device.type != "cpu":
        raise CapabilityError(f"the sparse kernel takes float32 on the CPU, not {x.dtype} on {x.device}")
    if resolve(backend) == "torch":
        return _with_torch(x, csr, bias, relu)
    outputs = len(csr.rows) - 1
    out = torch.empty(len(x), outputs, *g.out)
    lanes = vector_lanes()
    size, blocks = _block(g.flat, lanes)
    span = size * lanes
    packed = arrange(x.detach().contiguous(), g, blocks * span - g.flat + lanes)
    shift = np.zeros(outputs, np.float32) if bias is None else bias.detach().float().contiguous().numpy()
    run = _kernel(size, lanes)
    jobs = len(x) * outputs
    workers = max(1, min(torch.get_num_threads(), jobs))
    edges = np.linspace(0, jobs, workers + 1).astype(np.int64)
    arrays = packed.numpy(), csr.values, csr.offsets, csr.rows, shift, relu, out.numpy()

    def part(k: int) -> None:
        buffer = np.empty(blocks * span, np.float32)
        run(edges[k], edges[k + 1], *arrays, buffer, blocks, g.plane[1])

    if workers == 1:
        part(0)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(part, range(workers)))
    return out


def resolve(backend: str) -> str:
    """The backend that a name stands for here. Raises `ConfigError`, and `CapabilityError` for numba where it is missing."""
    if backend not in BACKENDS:
        raise ConfigError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    if backend == "torch":
        return backend
    if find_spec("numba") is None:
        if backend == "numba":
            raise CapabilityError("the sparse kernel needs numba; run: pip install 'cambrian[fast]'")
        warnings.warn("numba is missing: sparse convolution is slower than dense; pip install 'cambrian[fast]'", stacklevel=3)  # fmt: skip
        return "torch"
    return "numba"


class SparseConv2d(nn.Module):
    """An `nn.Conv2d` for inference whose time goes with its non-zero weights: `[N, C, H, W]` -> `[N, O, H', W']`."""

    def __init__(self, conv: nn.Conv2d, *, relu: bool = False, backend: str = "auto") -> None:
        super().__init__()
        if conv.padding_mode != "zeros":
            raise CapabilityError(f"the sparse kernel pads with zeros, not by {conv.padding_mode}")
        self.relu, self.backend = relu, resolve(backend)
        self.kernel, self.stride = tuple(conv.kernel_size), tuple(conv.stride)
        self.dilation, self.groups = tuple(conv.dilation), conv.groups
        self.padding = _padding(conv)
        self.register_buffer("weight", conv.weight.detach().float().contiguous().clone())
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach().float().clone())
        self._plans: dict[tuple[int, int], Csr] = {}

    @classmethod
    def from_dense(cls, conv: nn.Conv2d, *, relu: bool = False, backend: str = "auto") -> SparseConv2d:
        """The same layer on the sparse kernel; zeros of its weight are never touched again."""
        if not isinstance(conv, nn.Conv2d):
            raise CapabilityError(f"the sparse kernel is for nn.Conv2d, not {type(conv).__name__}")
        return cls(conv, relu=relu, backend=backend)

    def plan(self, height: int, width: int) -> Csr:
        """The weights laid out for inputs of that size; made once."""
        if (height, width) not in self._plans:
            geometry = Geometry(
                self.weight.shape[1] * self.groups, height, width, self.kernel, self.stride, self.padding,
                self.dilation, self.groups,
            )  # fmt: skip
            self._plans[height, width] = Csr.of(self.weight, geometry)
        return self._plans[height, width]

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise ShapeError(f"inputs must be [N, C, H, W], got {list(x.shape)}")
        return sparse_conv2d(x, self.plan(*x.shape[2:]), self.bias, self.relu, backend=self.backend)

    @property
    def density(self) -> float:
        """Share of weights that are not zero."""
        return int(self.weight.count_nonzero()) / self.weight.numel()

    def extra_repr(self) -> str:
        return f"{self.density:.1%} of {list(self.weight.shape)}, backend={self.backend}"


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    if not isinstance(conv.padding, str):
        return tuple(conv.padding)
    if conv.padding == "valid":
        return 0, 0
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    if any(r % 2 for r in reach):
        raise CapabilityError("padding='same' with an even kernel pads unevenly; give numbers")
    return reach[0] // 2, reach[1] // 2


def _with_torch(x: Tensor, csr: Csr, bias: Tensor | None, relu: bool) -> Tensor:
    """The lowering method: a CSR matrix times the gathered inputs of every output."""
    g, rows = csr.geometry, len(csr.rows) - 1
    (tall, wide), columns = g.out, g.plane[1]
    packed = arrange(x, g, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its CSR tensors beta
        matrix = torch.sparse_csr_tensor(
            torch.from_numpy(csr.rows), torch.arange(len(csr.values)), torch.from_numpy(csr.values),
            size=(rows, len(csr.values)),
        )  # fmt: skip
        place = (torch.arange(tall).view(-1, 1) * columns + torch.arange(wide)).flatten()
        index = torch.from_numpy(csr.offsets).long().unsqueeze(1) + place
        out = torch.stack([matrix @ image[index] for image in packed]).view(len(x), rows, tall, wide)
    out = out if bias is None else out + bias.view(-1, 1, 1)
    return out.relu() if relu else out


# -- the kernel --------------------------------------------------------------------------------------------------------


@functools.cache
def vector_lanes() -> int:
    """Floats in a vector register of this machine: 16 with AVX-512, else 8."""
    import llvmlite.binding as llvm

    return 16 if llvm.get_host_cpu_features().get("avx512f") else 8


def _block(flat: int, lanes: int) -> tuple[int, int]:
    """Vectors of a block and the number of blocks that cover the plane with the least waste, then the fewest blocks.

    Never more than 13 vectors: with the weight they fit 16 registers of 8 lanes, and 32 of 8 where a compiler halves
    vectors of 16.
    """
    vectors = -(-flat // lanes)
    plans = [(size, -(-vectors // size)) for size in SIZES]
    return min(plans, key=lambda plan: (plan[0] * plan[1], plan[1]))


@functools.cache
def _kernel(size: int, lanes: int) -> Callable[..., None]:
    """The compiled loop over (image, output channel) pairs `begin <= k < end`."""
    import numba

    row = _row_intrinsic(size, lanes)
    step = 4 * size * lanes

    def run(begin, end, x, values, offsets, rows, bias, relu, out, buffer, blocks, wide):
        outputs, tall, columns = out.shape[1], out.shape[2], out.shape[3]
        for k in range(begin, end):
            n, o = k // outputs, k % outputs
            for b in range(blocks):
                row(x[n].ctypes.data + b * step, values.ctypes.data, offsets.ctypes.data, rows[o], rows[o + 1],
                    buffer.ctypes.data + b * step, bias[o], relu)  # fmt: skip
            for i in range(tall):
                for j in range(columns):
                    out[n, o, i, j] = buffer[i * wide + j]

    return numba.njit(nogil=True, error_model="numpy")(run)


def _row_intrinsic(size: int, lanes: int) -> Any:
    """`row(x, values, offsets, first, last, out, bias, relu)` for numba, pointers as integers: `size * lanes` outputs of
    one row of the CSR, accumulated in registers.
    """
    from numba import types
    from numba.extending import intrinsic

    def row(typingctx, x, values, offsets, first, last, out, bias, relu):
        pointer = types.uintp
        signature = types.void(
            pointer, pointer, pointer, types.int64, types.int64, pointer, types.float32, types.boolean
        )
        return signature, lambda context, builder, _sig, args: _emit(context, builder, args, size, lanes)

    return intrinsic(row)


def _emit(context: Any, builder: Any, args: Any, size: int, lanes: int) -> Any:
    """LLVM: load nothing but weights, offsets and inputs inside the loop; add bias at its start, ReLU at its end."""
    from llvmlite import ir
    from numba.core import cgutils

    real, whole, narrow = ir.FloatType(), ir.IntType(64), ir.IntType(32)
    vector = ir.VectorType(real, lanes)
    fma = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{lanes}f32"
    )
    x, values, out = (builder.inttoptr(args[i], real.as_pointer()) for i in (0, 1, 5))
    offsets = builder.inttoptr(args[2], narrow.as_pointer())

    def spread(value: Any) -> Any:
        undefined = ir.Constant(vector, ir.Undefined)
        one = builder.insert_element(undefined, value, ir.Constant(narrow, 0))
        return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(narrow, lanes), [0] * lanes))

    def vector_at(base: Any, k: int) -> Any:
        return builder.bitcast(builder.gep(base, [ir.Constant(whole, k * lanes)]), vector.as_pointer())

    start = spread(args[6])
    entry, head = builder.block, builder.append_basic_block("head")
    body, end = builder.append_basic_block("body"), builder.append_basic_block("end")
    builder.branch(head)
    builder.position_at_end(head)
    j, sums = builder.phi(whole), [builder.phi(vector) for _ in range(size)]
    j.add_incoming(args[3], entry)
    for total in sums:
        total.add_incoming(start, entry)
    builder.cbranch(builder.icmp_signed("<", j, args[4]), body, end)
    builder.position_at_end(body)
    weight = spread(builder.load(builder.gep(values, [j])))
    base = builder.gep(x, [builder.sext(builder.load(builder.gep(offsets, [j])), whole)])
    for k, total in enumerate(sums):
        value = builder.load(vector_at(base, k))
        value.align = 4
        total.add_incoming(builder.call(fma, [weight, value, total]), body)
    j.add_incoming(builder.add(j, ir.Constant(whole, 1)), body)
    builder.branch(head)
    builder.position_at_end(end)
    zero = ir.Constant(vector, [0.0] * lanes)
    for k, total in enumerate(sums):
        kept = builder.select(builder.fcmp_unordered(">", total, zero), total, zero)
        builder.store(builder.select(args[7], kept, total), vector_at(out, k)).align = 4
    return context.get_dummy_value()
