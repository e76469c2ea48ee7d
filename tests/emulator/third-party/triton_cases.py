"""Triton's kernels: what its tutorials teach, and what its reductions and scans compile to. Each case is a kernel for compute capability 8.0, and a
run of it beside numpy."""

from dataclasses import dataclass, field

import numpy as np
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def softmax(x, y, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    values = tl.load(x + row * columns + at, mask=at < columns, other=-float("inf"))
    above = tl.exp(values - tl.max(values, axis=0))
    tl.store(y + row * columns + at, above / tl.sum(above, axis=0), mask=at < columns)


@triton.jit
def matmul(a, b, c, m, n, k, am, ak, bk, bn, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
           PARTS: tl.constexpr, SUM: tl.constexpr):
    tile, part = tl.program_id(0), tl.program_id(1)
    down, across = tl.cdiv(m, M), tl.cdiv(n, N)
    group = tile // (GROUP * across)
    height = min(down - group * GROUP, GROUP)
    row = group * GROUP + tile % (GROUP * across) % height
    column = tile % (GROUP * across) // height
    i, j, l = row * M + tl.arange(0, M), column * N + tl.arange(0, N), part * K + tl.arange(0, K)
    pa = a + (i % m)[:, None] * am + l[None, :] * ak
    pb = b + l[:, None] * bk + (j % n)[None, :] * bn
    total = tl.zeros((M, N), dtype=SUM)
    for start in range(0, tl.cdiv(k, K * PARTS)):
        left = k - (start * PARTS + part) * K
        x = tl.load(pa, mask=tl.arange(0, K)[None, :] < left, other=0)
        y = tl.load(pb, mask=tl.arange(0, K)[:, None] < left, other=0)
        total = tl.dot(x, y, total, input_precision=PRECISION, out_dtype=SUM)
        pa += K * PARTS * ak
        pb += K * PARTS * bk
    at, inside = c + i[:, None] * n + j[None, :], (i < m)[:, None] & (j < n)[None, :]
    if PARTS == 1:
        tl.store(at, total.to(c.dtype.element_ty), mask=inside)
    else:
        tl.atomic_add(at, total.to(c.dtype.element_ty), mask=inside)


@triton.jit
def attention(q, k, v, o, scale, length, causal: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr):
    i, d = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, D)
    head = tl.program_id(1) * length * D
    inside = (i < length)[:, None]
    rows = tl.load(q + head + i[:, None] * D + d[None, :], mask=inside, other=0)
    most = tl.full((M,), -float("inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    mean = tl.zeros((M, D), tl.float32)
    end = min((tl.program_id(0) + 1) * M, length) if causal else length
    for start in range(0, end, N):
        j = start + tl.arange(0, N)
        keys = tl.load(k + head + j[None, :] * D + d[:, None], mask=(j < length)[None, :], other=0)
        score = tl.dot(rows, keys) * scale
        seen = (j < length)[None, :] & (j[None, :] <= i[:, None]) if causal else (j < length)[None, :]
        score = tl.where(seen, score, -float("inf"))
        now = tl.maximum(most, tl.max(score, axis=1))
        p = tl.exp2(score - now[:, None])
        shrink = tl.exp2(most - now)
        total = total * shrink + tl.sum(p, axis=1)
        values = tl.load(v + head + j[:, None] * D + d[None, :], mask=(j < length)[:, None], other=0)
        mean = tl.dot(p.to(v.dtype.element_ty), values, mean * shrink[:, None])
        most = now
    tl.store(o + head + i[:, None] * D + d[None, :], mean / total[:, None], mask=inside)


@triton.jit
def reduce(x, s, most, where, both, M: tl.constexpr, N: tl.constexpr, AXIS: tl.constexpr):
    i, j = tl.arange(0, M), tl.arange(0, N)
    values = tl.load(x + i[:, None] * N + j[None, :])
    to = j if AXIS == 0 else i
    tl.store(s + to, tl.sum(values, axis=AXIS))
    tl.store(most + to, tl.max(values, axis=AXIS))
    tl.store(where + to, tl.argmax(values, axis=AXIS))
    tl.store(both, tl.sum(tl.min(values, axis=AXIS), axis=0))


@triton.jit
def total(x, o, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(o, tl.sum(tl.load(x + at, mask=at < n, other=0), axis=0))


@triton.jit
def compose(a, b, c, d):
    return a * c, b * c + d


@triton.jit
def scan(x, decay, sums, run, M: tl.constexpr, N: tl.constexpr, AXIS: tl.constexpr, REVERSE: tl.constexpr):
    at = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    values = tl.load(x + at)
    tl.store(sums + at, tl.cumsum(values, axis=AXIS, reverse=REVERSE))
    _, last = tl.associative_scan((tl.load(decay + at), values), AXIS, compose)
    tl.store(run + at, last)


@triton.jit
def sort(x, o, count, bins, N: tl.constexpr, BINS: tl.constexpr):
    at = tl.arange(0, N)
    values = tl.load(x + at)
    tl.store(o + at, tl.sort(values))
    tl.store(count + tl.arange(0, BINS), tl.histogram(values, BINS))


@triton.jit
def norm(x, w, b, y, n, eps, BLOCK: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    values = tl.load(x + row * n + at, mask=at < n, other=0).to(tl.float32)
    mean = tl.sum(values, axis=0) / n
    off = tl.where(at < n, values - mean, 0.0)
    scale = 1 / tl.sqrt(tl.sum(off * off, axis=0) / n + eps)
    to = off * scale * tl.load(w + at, mask=at < n, other=0) + tl.load(b + at, mask=at < n, other=0)
    tl.store(y + row * n + at, to, mask=at < n)


@triton.jit
def column_sums(x, locks, o, n, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Rows add to one of GROUP partial sums, under its lock: the backward of Triton's layer normalisation."""
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    lock = locks + row % GROUP
    count = lock + GROUP
    to = o + row % GROUP * n + at
    values = tl.load(x + row * n + at, mask=at < n)
    while tl.atomic_cas(lock, 0, 1) == 1:
        pass
    if tl.load(count) == 0:
        tl.atomic_xchg(count, 1)
    else:
        values += tl.load(to, mask=at < n)
    tl.store(to, values, mask=at < n)
    tl.debug_barrier()
    tl.atomic_xchg(lock, 0)


@triton.jit
def casts(x, half, brain, eighth, whole, N: tl.constexpr):
    at = tl.arange(0, N)
    values = tl.load(x + at)
    tl.store(half + at, values.to(tl.float16))
    tl.store(brain + at, values.to(tl.bfloat16).to(tl.float32))
    tl.store(eighth + at, values.to(tl.float16).to(tl.float8e5).to(tl.float32))
    tl.store(whole + at, values.to(tl.int32))


def bf16(x):
    """Rounded to bf16, in f32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return (((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32)).view(np.float32)


def tf32(x):
    return (np.ascontiguousarray(x, np.float32).view(np.uint32) & 0xFFFFE000).view(np.float32)


#: numpy's way to hold a type, how it is rounded to, bits of its fraction
TYPES = {
    "fp16": (np.float16, lambda x: x.astype(np.float16), 11),
    "bf16": (np.uint16, lambda x: (bf16(x).view(np.uint32) >> 16).astype(np.uint16), 8),
    "fp32": (np.float32, lambda x: x.astype(np.float32), 24),
    "i32": (np.int32, lambda x: x.astype(np.int32), 31),
    "i8": (np.int8, lambda x: x.astype(np.int8), 31),
}


def value(x, ty):
    """What an array of a type means, in f64."""
    return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64) if ty == "bf16" else x.astype(np.float64)


def near(got, wanted, allowed, what):
    off = np.abs(np.asarray(got, np.float64) - wanted)
    bad = ~(off <= allowed)
    if bad.any():
        at = np.unravel_index(np.argmax(np.where(np.isnan(off), np.inf, off)), off.shape)
        raise AssertionError(f"{what}: {int(bad.sum())} elements, at {tuple(map(int, at))} {float(np.asarray(got)[at])} for {float(wanted[at])}")


@dataclass
class Case:
    name: str
    kernel: object
    signature: dict
    constants: dict
    #: of the device, random numbers and whether they are to be integers; checks by itself
    check: object
    warps: int = 4
    stages: int = 3
    launch: dict = field(default_factory=dict)

    def compile(self):
        signature = self.signature | {name: "constexpr" for name in self.constants}
        order = {name: signature[name] for name in self.kernel.arg_names}
        source = ASTSource(fn=self.kernel, signature=order, constexprs=self.constants)
        made = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": self.warps, "num_stages": self.stages})
        self.launch = {"ptx": made.asm["ptx"], "name": made.metadata.name, "shared": made.metadata.shared, "threads": 32 * self.warps}


def draw(random, integers, shape, most=4):
    return (random.integers(-most, most + 1, shape) if integers else random.uniform(-1, 1, shape)).astype(np.float32)


def matmul_case(ty, to, layout, tile, precision="tf32", parts=1, warps=4, stages=3, total=tl.float32):
    m_, n_, k_ = tile
    _, round_to, bits = TYPES[ty]
    used = {"tf32": 11, "tf32x3": 20, "ieee": 24}[precision] if ty == "fp32" else bits

    def check(device, random, integers):
        for m, n, k in [(m_, 2 * n_, 3 * k_), (2 * m_ - 7, n_ + 5, 2 * k_ + 3), (5, 3, 1)]:
            a, b = round_to(draw(random, integers or ty == "i8", (m, k))), round_to(draw(random, integers or ty == "i8", (k, n)))
            stored = [x if letter == "T" else np.ascontiguousarray(x.T) for x, letter in [(a, layout[0]), (b, layout[1])]]
            (am, ak), (bk, bn) = [(x.shape[1], 1) if letter == "T" else (1, x.shape[0]) for x, letter in [(a, layout[0]), (b, layout[1])]]
            c = np.zeros((m, n), TYPES[to][0]) if parts > 1 else np.empty((m, n), TYPES[to][0])
            grid = (-(-m // m_) * -(-n // n_), parts, 1)
            c = device.run(grid, [stored[0], stored[1], device.out(c, written=parts > 1), m, n, k, am, ak, bk, bn])[0]
            exact, size = value(a, ty) @ value(b, ty), np.abs(value(a, ty)) @ np.abs(value(b, ty))
            allowed = size * (2.0 ** (2 - used) + (k + parts) * 2.0**-24) + np.abs(exact) * 2.0 ** -TYPES[to][2]
            if total == tl.float16:
                allowed = size * k * 2.0**-11
            near(value(c, to), value(TYPES[to][1](exact), to) if integers or ty == "i8" else exact, 0 if integers or ty == "i8" else allowed, f"{m} x {n} x {k}")

    name = f"matmul {ty} {layout} {m_}x{n_}x{k_}" + (f", {precision}" if ty == "fp32" else "") + (f" to {to}" if to not in ("fp32", "i32") else "")
    name += (", sums in f16" if total == tl.float16 else "") + (f", {parts} parts, atomics" if parts > 1 else "") + f", {warps} warps, {stages} stages"
    sizes = {x: "i32" for x in ["m", "n", "k", "am", "ak", "bk", "bn"]}
    constants = {"M": m_, "N": n_, "K": k_, "GROUP": 2, "PRECISION": precision, "PARTS": parts, "SUM": total}
    return Case(name, matmul, {"a": f"*{ty}", "b": f"*{ty}", "c": f"*{to}"} | sizes, constants, check, warps, stages)


def attention_case(ty, causal, tile, depth, warps=4, stages=3):
    def check(device, random, integers):
        for length in (2 * tile[1], tile[0] + 13, 1):
            heads, scale = 2, 1 / np.sqrt(depth)
            q, k, v = (TYPES[ty][1](draw(random, integers, (heads, length, depth), 2)) for _ in range(3))
            o = device.out(np.empty((heads, length, depth), np.float32))
            o = device.run((-(-length // tile[0]), heads, 1), [q, k, v, o, np.float32(scale * np.log2(np.e)), length])[0]
            q, k, v = (value(x, ty) for x in (q, k, v))
            score = np.einsum("hid,hjd->hij", q, k) * scale
            if causal:
                score = np.where(np.tri(length, dtype=bool), score, -np.inf)
            p = np.exp(score - score.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            # Probabilities are rounded to the type; the rest is in f32.
            allowed = np.einsum("hij,hjd->hid", p, np.abs(v)) * (2.0 ** -TYPES[ty][2] + 1e-5) + 1e-6
            near(o, np.einsum("hij,hjd->hid", p, v), allowed, f"length {length}")

    signature = {x: f"*{ty}" for x in "qkv"} | {"o": "*fp32", "scale": "fp32", "length": "i32"}
    name = f"attention {ty} {tile[0]}x{tile[1]}, {depth} wide{', causal' if causal else ''}, {warps} warps, {stages} stages"
    return Case(name, attention, signature, {"causal": causal, "M": tile[0], "N": tile[1], "D": depth}, check, warps, stages)


def softmax_case(block, warps):
    def check(device, random, integers):
        for columns in (block, block - 3, 1):
            x = draw(random, integers, (5, columns), 9)
            y = device.run((5, 1, 1), [x, device.out(np.empty_like(x)), columns])[0]
            p = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            near(y, p, p * 1e-5, f"{columns} columns")

    return Case(f"softmax {block}, {warps} warps", softmax, {"x": "*fp32", "y": "*fp32", "columns": "i32"}, {"BLOCK": block}, check, warps)


def reduce_case(shape, axis, warps):
    def check(device, random, integers):
        x = draw(random, integers, shape, 99)
        left = shape[1 - axis]
        outs = [device.out(np.empty(left, np.float32)), device.out(np.empty(left, np.float32)), device.out(np.empty(left, np.int32)), device.out(np.empty(1, np.float32))]
        s, most, where, both = device.run((1, 1, 1), [x, *outs])
        near(s, x.sum(axis, dtype=np.float64), 0 if integers else 1e-5 * np.abs(x).sum(axis), "sums")
        near(most, x.max(axis), 0, "largest")
        near(where, x.argmax(axis), 0, "where the largest is, the first")
        near(both, x.min(axis).sum(dtype=np.float64, keepdims=True), 0 if integers else 1e-4, "of both axes")

    signature = {x: "*fp32" for x in ["x", "s", "most", "both"]} | {"where": "*i32"}
    return Case(f"sum, max, argmax, min {shape[0]}x{shape[1]} along {axis}, {warps} warps", reduce, signature, {"M": shape[0], "N": shape[1], "AXIS": axis}, check, warps)


def total_case(block, warps):
    def check(device, random, integers):
        x = draw(random, integers, 3 * block - 5)
        o = device.run((3, 1, 1), [x, device.out(np.zeros(1, np.float32), written=True), x.size])[0]
        near(o, x.sum(dtype=np.float64, keepdims=True), 0 if integers else 1e-3, "sum")

    return Case(f"sum by atomics, {block} a block, {warps} warps", total, {"x": "*fp32", "o": "*fp32", "n": "i32"}, {"BLOCK": block}, check, warps)


def scan_case(shape, axis, reverse, warps):
    def check(device, random, integers):
        x = draw(random, integers, shape)
        decay = random.integers(0, 2, shape).astype(np.float32) if integers else random.uniform(0, 1, shape).astype(np.float32)
        sums, run = device.run((1, 1, 1), [x, decay, device.out(np.empty_like(x)), device.out(np.empty_like(x))])
        turn = (lambda v: np.flip(v, axis)) if reverse else (lambda v: v)
        near(sums, turn(np.cumsum(turn(x.astype(np.float64)), axis)), 0 if integers else 1e-4, "running sums")
        wanted, state = np.moveaxis(np.zeros(shape), axis, 0), 0
        for i, (a, b) in enumerate(zip(np.moveaxis(decay, axis, 0), np.moveaxis(x, axis, 0))):
            state = state * a.astype(np.float64) + b
            wanted[i] = state
        near(run, np.moveaxis(wanted, 0, axis), 0 if integers else 1e-4, "recurrence")

    constants = {"M": shape[0], "N": shape[1], "AXIS": axis, "REVERSE": reverse}
    name = f"scans {shape[0]}x{shape[1]} along {axis}{', from the end' if reverse else ''}, {warps} warps"
    return Case(name, scan, {x: "*fp32" for x in ["x", "decay", "sums", "run"]}, constants, check, warps)


def sort_case(n, warps):
    def check(device, random, integers):
        x = random.integers(0, 16, n).astype(np.int32)
        o, count = device.run((1, 1, 1), [x, device.out(np.empty_like(x)), device.out(np.empty(16, np.int32)), 16])
        near(o, np.sort(x), 0, "sorted")
        near(count, np.bincount(x, minlength=16), 0, "histogram")

    return Case(f"sort and histogram of {n}, {warps} warps", sort, {"x": "*i32", "o": "*i32", "count": "*i32", "bins": "i32"}, {"N": n, "BINS": 16}, check, warps)


def norm_case(block, warps):
    def check(device, random, integers):
        n = block - 9
        x, w, b = TYPES["fp16"][1](draw(random, integers, (4, n))), draw(random, integers, n), draw(random, integers, n)
        y = device.run((4, 1, 1), [x, w, b, device.out(np.empty((4, n), np.float32)), n, np.float32(1e-5)])[0]
        v = x.astype(np.float64)
        off = v - v.mean(1, keepdims=True)
        near(y, off / np.sqrt((off * off).mean(1, keepdims=True) + 1e-5) * w + b, 1e-4, "normalised")

    signature = {"x": "*fp16", "w": "*fp32", "b": "*fp32", "y": "*fp32", "n": "i32", "eps": "fp32"}
    return Case(f"layer normalisation {block}, {warps} warps", norm, signature, {"BLOCK": block}, check, warps)


def lock_case(block, warps):
    def check(device, random, integers):
        n, rows, group = block - 3, 12, 3
        x, locks = draw(random, integers, (rows, n)), np.zeros(2 * group, np.int32)
        o = device.run((rows, 1, 1), [x, device.out(locks, written=True), device.out(np.empty((group, n), np.float32)), n])[1]
        near(o, x.reshape(rows // group, group, n).sum(0, dtype=np.float64), 0 if integers else 1e-5, "sums")

    signature = {"x": "*fp32", "locks": "*i32", "o": "*fp32", "n": "i32"}
    return Case(f"sums under locks, {block} wide, {warps} warps", column_sums, signature, {"GROUP": 3, "BLOCK": block}, check, warps)


def cast_case():
    def check(device, random, integers):
        x = draw(random, integers, 256, 30) * np.float32(1 if integers else 50)
        outs = [device.out(np.empty(256, ty)) for ty in (np.float16, np.float32, np.float32, np.int32)]
        half, brain, eighth, whole = device.run((1, 1, 1), [x, *outs])
        near(half, x.astype(np.float16), 0, "f16")
        near(brain, bf16(x), 0, "bf16")
        bits = x.astype(np.float16).view(np.uint16).astype(np.uint32)
        wanted = ((bits + 0x7F + (bits >> 8 & 1)) >> 8 << 8).astype(np.uint16).view(np.float16)
        near(eighth, wanted, 0, "e5m2")
        near(whole, np.trunc(x), 0, "s32")

    signature = {"x": "*fp32", "half": "*fp16", "brain": "*fp32", "eighth": "*fp32", "whole": "*i32"}
    return Case("conversions", casts, signature, {"N": 256}, check)


CASES = [
    matmul_case("fp16", "fp32", "TN", (64, 64, 32)),
    matmul_case("fp16", "fp16", "NN", (128, 64, 32), stages=4),
    matmul_case("fp16", "fp16", "TT", (64, 32, 16), total=tl.float16, warps=2),
    matmul_case("bf16", "fp32", "NT", (64, 128, 32), warps=8),
    matmul_case("bf16", "bf16", "TN", (32, 32, 64), warps=1, stages=2),
    matmul_case("fp32", "fp32", "TT", (64, 64, 32)),
    matmul_case("fp32", "fp32", "NN", (32, 64, 32), stages=4),
    matmul_case("fp32", "fp32", "TN", (32, 32, 32), precision="tf32x3"),
    matmul_case("fp32", "fp32", "NT", (32, 64, 16), precision="ieee", warps=8),
    matmul_case("i8", "i32", "TN", (64, 64, 64), total=tl.int32),
    matmul_case("fp16", "fp32", "TT", (32, 64, 32), parts=3),
    attention_case("fp16", False, (64, 64), 64),
    attention_case("fp16", True, (64, 32), 32, stages=2),
    attention_case("bf16", True, (128, 64), 64, warps=8, stages=4),
    softmax_case(256, 4),
    softmax_case(2048, 8),
    softmax_case(64, 1),
    reduce_case((32, 64), 0, 4),
    reduce_case((32, 64), 1, 4),
    reduce_case((4, 512), 1, 8),
    reduce_case((256, 2), 0, 8),
    total_case(512, 4),
    scan_case((64, 32), 0, False, 4),
    scan_case((8, 256), 1, False, 8),
    scan_case((16, 64), 1, True, 2),
    sort_case(512, 4),
    norm_case(512, 4),
    lock_case(128, 4),
    cast_case(),
]
