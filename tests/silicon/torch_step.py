"""The kit's part on PyTorch: the loss of bench_torch.py, eager and compiled, and the three bare products, on the device, by events.

    python3 torch_step.py --rows FILE [--reduced] [--device cuda]

Appends a row of JSON as soon as it is measured. The loss's value is compared with reference.py's in float64 before it is timed.
"""

import argparse
import itertools
import json
import statistics
import time
from contextlib import nullcontext

import bench_torch
import torch
from reference import margin_loss

# What is worth knowing first; a compilation of its own for each.
SHAPES = [(256, 8142, 2048), (64, 100, 64), (256, 1000, 2048), (1024, 10000, 512), (128, 1000, 512)]
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


class Clock:
    """Microseconds a call: by the device's events, or by the host's clock where there is no device."""

    def __init__(self, device, runs, turn_ms):
        self.device, self.runs, self.turn_ms = device, runs, turn_ms

    def once(self, step, count):
        if self.device == "cpu":
            start = time.perf_counter()
            for _ in range(count):
                step()
            return 1e6 * (time.perf_counter() - start) / count
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            step()
        end.record()
        end.synchronize()
        return 1e3 * start.elapsed_time(end) / count

    def __call__(self, step):
        self.once(step, 3)
        count = max(1, min(2000, int(1e3 * self.turn_ms / max(self.once(step, 2), 1))))
        times = [self.once(step, count) for _ in range(self.runs)]
        return {"median": statistics.median(times), "least": min(times), "most": max(times), "runs": len(times)}


def measure(n, c, d, name, device, clock, compile_it):
    """The ways of one size, or the compiled one: each a name and its row or the error."""
    x, w, y, counts, class_margin, log_prior = bench_torch.make_inputs(n, c, d, DTYPES[name])
    config = {"margin": {"kind": "dbm", "k": bench_torch.K, "tau": 1.0}, "gate": "hard_positives", "scale": bench_torch.SCALE}
    config["prior"] = {"kind": "balanced_softmax", "tau": 1.0}
    x, w = (t.detach().to(device).requires_grad_() for t in (x, w))
    y, class_margin, log_prior = (t.to(device) for t in (y, class_margin, log_prior))
    # In float64 on the device: the reference on a host takes seconds at these sizes.
    with nullcontext() if device == "cpu" else torch.device(device):
        exact = margin_loss(x.detach().double(), w.detach().double(), y, config, counts).loss.item()

    def step(loss):
        def both():
            x.grad = w.grad = None
            value = loss(x, w, y, class_margin, log_prior)
            value.backward()
            return value

        return both

    def checked(loss):
        both = step(loss)
        value = both().item()
        tolerance = 5e-2 if name == "bf16" else 1e-4
        if not abs(value - exact) <= tolerance * abs(exact):
            raise RuntimeError(f"the loss is {value}, the reference {exact}")
        return clock(both)

    def compiled():
        torch._dynamo.reset()
        start = time.perf_counter()
        loss = torch.compile(bench_torch.eager_dbm_bs, dynamic=False)
        step(loss)()
        return {"compilation, s": round(time.perf_counter() - start, 1), **checked(loss)}

    a, b, g = x.detach(), w.detach(), torch.randn(n, c, device=device).to(DTYPES[name])

    def products():
        a @ b.T, g @ b, g.T @ a

    ways = {"PyTorch, eager": lambda: checked(bench_torch.eager_dbm_bs), "PyTorch, three products": lambda: clock(products)}
    if compile_it:
        ways = {"PyTorch, compiled": compiled}
    for way, work in ways.items():
        try:
            yield way, work()
        except Exception as error:  # a compiler that is not there, memory that is not enough: the others go on
            yield way, {"failed": f"{type(error).__name__}: {error}"[:400]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", required=True)
    parser.add_argument("--reduced", action="store_true")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    shapes, dtypes = (SHAPES[1:2], ["bf16"]) if options.reduced else (SHAPES, DTYPES)
    clock = Clock(options.device, *((1, 0) if options.reduced else (9, 10)))
    with open(options.rows, "a") as rows:
        # Compilations last: they take the time.
        for compile_it, name, (n, c, d) in itertools.product((False, True), dtypes, shapes):
            for way, row in measure(n, c, d, name, options.device, clock, compile_it):
                row = {"size": [n, c, d], "type": name, "way": way, "unit": "µs", **row, "torch": torch.__version__}
                print(json.dumps(row, ensure_ascii=False), flush=True)
                print(json.dumps(row, ensure_ascii=False), file=rows, flush=True)


if __name__ == "__main__":
    main()
