#!/usr/bin/env python3
"""Memory, bytes and time of a step with the classes over P ranks, by the formulas of ../sharded.md: prints its table.

What is assumed of a rank: products at 2 TFLOP/s in f32 (a CPU node of 64 cores), 12.5 GB/s in each direction (100 Gb/s), 20 µs a collective and doubling
of ranks. Nothing overlaps. Nothing here has been measured at these sizes.
"""

import math

FLOPS, BANDWIDTH, LATENCY = 2e12, 12.5e9, 20e-6
D, BATCH = 512, 4096  # dimensions; rows of all ranks
COLLECTIVES, HEADER = 6, 23 * 8  # agree, X, y, statistics twice, dX; a rank's header


def step(c, p, n=BATCH, d=D, b=4):
    own = n / p
    received = {
        "agree": (p - 1) * HEADER,
        "gather": (n - own) * (b * d + 8),
        "merge": 2 * (n - own) * 48,
        "dX": (n - own) * 4 * d,
    }
    state = 3 * 4 * d * c / p  # W, dW and one momentum
    memory = state + 32 * c + n * d * (b + 8) + 500 * n
    work = 4 * 2 * n * (c / p) * d / FLOPS
    # The optimizer reads W, dW and the momentum and writes two of them, at 100 GB/s.
    update = 5 * 4 * d * c / p / 100e9
    wire = sum(received.values()) / BANDWIDTH + COLLECTIVES * LATENCY * math.log2(p)
    return memory, sum(received.values()), work, wire, update


def data_parallel(c, p, n=BATCH, d=D):
    memory = 3 * 4 * d * c + 32 * c
    received = 2 * 4 * c * d * (p - 1) / p  # all-reduce of dW
    return memory, received, 3 * 2 * (n / p) * c * d / FLOPS, received / BANDWIDTH, 5 * 4 * d * c / 100e9


def size(bytes_):
    for unit, scale in [("TB", 1e12), ("GB", 1e9), ("MB", 1e6)]:
        if bytes_ >= scale:
            return f"{bytes_ / scale:.3g} {unit}"
    return f"{bytes_ / 1e3:.3g} kB"


def seconds(time):
    return f"{time:.3g} s" if time >= 1 else f"{1e3 * time:.3g} ms"


print("| C | ranks | memory a rank | received a step | products | wire | optimizer | step | data-parallel: memory | received | step |")
print("|---|---|---|---|---|---|---|---|---|---|---|")
for c in [10**6, 10**7, 10**8]:
    for p in [8, 64, 512]:
        memory, received, *times = step(c, p)
        dp_memory, dp_received, *dp_times = data_parallel(c, p)
        cells = [f"10^{round(math.log10(c))}", str(p), size(memory), size(received), *map(seconds, times), seconds(sum(times))]
        print("| " + " | ".join([*cells, size(dp_memory), size(dp_received), seconds(sum(dp_times))]) + " |")
memory, *_ = step(29 * 10**6, 8)
print(f"\n29 million classes on 8 ranks: {size(memory)} a rank.")
