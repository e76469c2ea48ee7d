"""Times the eager PyTorch loss (DBM with balanced softmax), forward + backward, on the shapes of benches/.

    python3 python-ref/bench_torch.py [--threads 2] [--dtypes f32,bf16] [--runs 9] [--only 256,8142,2048] [--compile] [--json FILE]
    python3 python-ref/bench_torch.py --paired BINARY [--compile] …      # BINARY: what `cargo bench --bench loss --no-run` names

With --compile the loss is also taken through torch.compile. With --paired this crate's benchmark runs turn by turn with PyTorch, in rounds, and the
table has the medians of the ratios within the rounds.

The loss is written as one composes it in training code: normalise, product, clamp, margin at the target, cross-entropy. It is
checked against reference.py before it is timed. The three bare products (X.W^T, G.W, G^T.X) of the same type are timed beside it.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from reference import margin_loss

SHAPES = [(64, 100, 64), (128, 1000, 512), (256, 1000, 2048), (256, 8142, 2048), (1024, 10000, 512)]
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f64": torch.float64}
SCALE, K = 32.0, 0.1


def eager_dbm_bs(x, w, y, class_margin, log_prior):
    """x (N, D), w (C, D), y (N), class_margin (C), log_prior (C); mean over the batch."""
    cosine = F.linear(F.normalize(x), F.normalize(w)).clamp(-1 + 1e-7, 1 - 1e-7)  # (N, C)
    target = cosine.gather(1, y[:, None])[:, 0]  # (N)
    hard = (cosine.detach().argmax(dim=1) != y).to(x.dtype)  # eq. (9)
    margin = class_margin[y] * (1 + hard * (1 - target) / 2)  # eqs. (6) to (9)
    psi = torch.cos(torch.arccos(target) + margin)
    logits = SCALE * cosine.scatter(1, y[:, None], psi[:, None]) + log_prior
    return F.cross_entropy(logits.float() if x.dtype == torch.bfloat16 else logits, y)


def make_inputs(n, c, d, dtype):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(n, d, generator=generator).to(dtype).requires_grad_()
    w = torch.randn(c, d, generator=generator).to(dtype).requires_grad_()
    y = torch.randint(c, (n,), generator=generator)
    counts = [max(1, round(1000 * 100 ** (-j / max(c - 1, 1)))) for j in range(c)]
    frequency = torch.tensor(counts, dtype=torch.float64)
    class_margin = (K * frequency.min() / frequency).to(dtype)
    return x, w, y, counts, class_margin, torch.log(frequency / frequency.sum()).to(dtype)


def check(n, c, d, dtype):
    """The eager loss against the reference in float64, before anything is timed."""
    x, w, y, counts, class_margin, log_prior = make_inputs(n, c, d, dtype)
    value = eager_dbm_bs(x, w, y, class_margin, log_prior).item()
    config = {"margin": {"kind": "dbm", "k": K, "tau": 1.0}, "gate": "hard_positives", "scale": SCALE}
    config["prior"] = {"kind": "balanced_softmax", "tau": 1.0}
    exact = margin_loss(x.detach().double(), w.detach().double(), y, config, counts).loss.item()
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2}[dtype]
    if not abs(value - exact) <= tolerance * abs(exact):
        sys.exit(f"{(n, c, d)} {dtype}: the eager loss is {value}, the reference {exact}")


def median_ms(step, runs):
    step()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def measure(n, c, d, dtype, runs, compiled):
    loss = torch.compile(eager_dbm_bs) if compiled else eager_dbm_bs
    x, w, y, _, class_margin, log_prior = make_inputs(n, c, d, dtype)

    def forward():
        with torch.no_grad():
            loss(x, w, y, class_margin, log_prior)

    def both():
        x.grad = w.grad = None
        loss(x, w, y, class_margin, log_prior).backward()

    a, b = x.detach(), w.detach()
    g = torch.randn(n, c).to(dtype)

    def products():
        a @ b.T, g @ b, g.T @ a

    return {name: median_ms(step, runs) for name, step in (("forward", forward), ("both", both), ("products", products))}


WAYS = ["loss_and_grads_into", "loss_and_grads", "tape"]


class Crate:
    """This crate's benchmark, serving one problem (benches/loss/turns.rs)."""

    def __init__(self, binary, n, c, d, dtype, threads):
        command = [binary, "--turns", f"{n},{c},{d},{dtype}"]
        environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"the benchmark ended at: {line}")
        return answer.strip()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def paired(binary, n, c, d, name, runs, compiled, threads):
    """Rounds in which every way takes its turn: {way: [ms a round]}."""
    x, w, y, _, class_margin, log_prior = make_inputs(n, c, d, DTYPES[name])
    crate = Crate(binary, n, c, d, name, threads)
    if crate.ask("check") != "ok":
        sys.exit("the benchmark's check failed")
    losses = {"eager": eager_dbm_bs}
    if compiled:
        losses["compiled"] = torch.compile(eager_dbm_bs)

    def torch_ms(loss, count):
        start = time.perf_counter()
        for _ in range(count):
            x.grad = w.grad = None
            loss(x, w, y, class_margin, log_prior).backward()
        return 1e3 * (time.perf_counter() - start) / count

    turns = {way: (lambda count, way=way: float(crate.ask(f"{count} {way}"))) for way in WAYS}
    turns.update({key: (lambda count, loss=loss: torch_ms(loss, count)) for key, loss in losses.items()})
    counts = {}
    for key, turn in turns.items():
        turn(1)  # pages, threads, compilation
        counts[key] = max(1, min(2000, int(20 / max(min(turn(1), turn(1)), 1e-3))))
    times = {key: [] for key in turns}
    for round_ in range(runs):
        for key in list(turns)[:: -1 if round_ % 2 else 1]:
            times[key].append(turns[key](counts[key]))
    crate.close()
    return times


def run_paired(options, shapes):
    print(f"torch {torch.__version__}, {options.threads} threads, {options.runs} rounds, ms; torch / the fastest of {', '.join(WAYS)}")
    results = []
    for name in options.dtypes.split(","):
        for n, c, d in shapes:
            check(n, c, d, DTYPES[name])
            times = paired(options.paired, n, c, d, name, options.runs, options.compile, options.threads)
            medians = {key: statistics.median(values) for key, values in times.items()}
            best = min(WAYS, key=medians.get)
            ratios = {
                key: statistics.median(a / b for a, b in zip(times[key], times[best]))
                for key in times
                if key not in WAYS
            }
            cells = "  ".join(f"{key} {ms:.4g}" for key, ms in medians.items())
            print(f"{name} {(n, c, d)}: {cells}  " + "  ".join(f"{key} / {best} {v:.2f}" for key, v in ratios.items()), flush=True)
            results.append({"n": n, "c": c, "d": d, "dtype": name, "ms": medians, "fastest": best, "ratios": ratios, "rounds": times})
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", default="f32,bf16", help="of f32, bf16, f64")
    parser.add_argument("--runs", type=int, default=9, help="the median of this many, after one to warm up")
    parser.add_argument("--only", help="one shape: N,C,D")
    parser.add_argument("--compile", action="store_true", help="also the loss by torch.compile")
    parser.add_argument("--paired", metavar="BINARY", help="this crate's benchmark, to take turns with")
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shapes = [tuple(map(int, options.only.split(",")))] if options.only else SHAPES
    if options.paired:
        results = run_paired(options, shapes)
        if options.json:
            options.json.write_text(json.dumps({"torch": torch.__version__, "threads": options.threads, "results": results}, indent=1) + "\n")
        return
    print(f"torch {torch.__version__}, {options.threads} threads, median of {options.runs} runs, ms")
    print(f"{'N':>6} {'C':>6} {'D':>6} {'dtype':>6} {'forward':>10} {'fwd+bwd':>10} {'3 products':>11} {'ratio':>7}")
    results = []
    for name in options.dtypes.split(","):
        for n, c, d in shapes:
            check(n, c, d, DTYPES[name])
            times = measure(n, c, d, DTYPES[name], options.runs, options.compile)
            ratio = times["both"] / times["products"]
            print(
                f"{n:>6} {c:>6} {d:>6} {name:>6} {times['forward']:>10.3f} {times['both']:>10.3f}"
                f" {times['products']:>11.3f} {ratio:>7.2f}",
                flush=True,
            )
            results.append({"n": n, "c": c, "d": d, "dtype": name, **{f"{k}_ms": v for k, v in times.items()}})
    if options.json:
        document = {"torch": torch.__version__, "python": platform.python_version(), "threads": options.threads}
        options.json.write_text(json.dumps({**document, "runs": options.runs, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
