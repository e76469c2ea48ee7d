"""Writes tests/golden/heads.json: heads that are not normalised, biases and class scales, from reference.py in float64.

    python3 python-ref/make_heads.py            write the file
    python3 python-ref/make_heads.py --check    compare the file with what would be written

Without scales, margin and prior, a linear head's case is also held to torch.nn.functional.cross_entropy.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from make_golden import Draw
from reference import margin_loss

PATH = Path(__file__).resolve().parent.parent / "tests" / "golden" / "heads.json"
IGNORE = -100

# (name, normalize, scale, B, with class scales, with a prior, smoothing, with a bias, reduction, size of X)
CASES = [
    ("linear", "none", 1.0, 0.0, False, False, 0.0, True, "mean", 1.0),
    ("linear_large", "none", 1.0, 0.0, False, False, 0.0, True, "mean", 3000.0),
    ("linear_prior_per_row", "none", 1.0, 0.0, False, True, 0.0, True, "none", 1.0),
    ("linear_scales_smoothed", "none", 1.0, 0.0, True, True, 0.1, True, "sum", 1.0),
    ("linear_margin", "none", 2.0, 0.3, True, False, 0.0, False, "mean", 1.0),
    ("weight", "weight", 3.0, 0.0, False, False, 0.0, False, "mean", 1.0),
    ("weight_scales", "weight", 3.0, 0.2, True, True, 0.1, False, "none", 1.0),
    ("cosine_scales", "both", 16.0, 0.0, True, False, 0.0, False, "mean", 1.0),
    ("cosine_scales_margin_smoothed", "both", 30.0, 0.35, True, True, 0.2, False, "none", 1.0),
]


def make(index, name, normalize, scale, margin, scaled, prior, smoothing, biased, reduction, size):
    draw = Draw(7100 + index)
    n, c, d = 6 + index, 3 + index % 5, 4 + index % 3
    x = [[round(size * v, 4) for v in row] for row in draw.matrix(n, d)]
    if normalize != "both":
        x[2] = [0.0] * d
    w = draw.matrix(c, d)
    y = [IGNORE if i == 4 else draw.below(c) for i in range(n)]
    bias = draw.matrix(1, c)[0] if biased else None
    scales = [draw.spread(0.3, 2.0) for _ in range(c)] if scaled else None
    values = [draw.spread(-2.0, 1.0) for _ in range(c)] if prior else None
    upstream = [draw.spread(-1.0, 2.0) for _ in range(n)] if reduction == "none" else [1.0]
    config = {"scale": scale, "label_smoothing": smoothing, "reduction": reduction, "ignore_index": IGNORE}
    if margin:
        config["margin"] = {"kind": "cos_face", "m": margin}
    if prior:
        config["prior"] = {"kind": "log_prior", "values": values}
    leaf = lambda values: torch.tensor(values, dtype=torch.float64, requires_grad=True)
    X, W, B = leaf(x), leaf(w), leaf(bias) if biased else None
    sigma = torch.tensor(scales, dtype=torch.float64) if scaled else None
    out = margin_loss(X, W, torch.tensor(y), config, normalize=normalize, class_scales=sigma, bias=B)
    total = (out.loss * torch.tensor(upstream, dtype=torch.float64).reshape(out.loss.shape)).sum()
    leaves = [X, W] + ([B] if biased else [])
    gradients = torch.autograd.grad(total, leaves)
    if name.startswith("linear") and not (margin or scaled or prior or smoothing):
        usual = F.cross_entropy(X @ W.T + B, torch.tensor(y), ignore_index=IGNORE)
        assert torch.allclose(out.loss, usual, rtol=1e-13), name
        for ours, theirs in zip(gradients, torch.autograd.grad(usual, leaves)):
            assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-13), name
    flat = lambda tensor: tensor.detach().flatten().tolist()
    return {
        "name": name, "n": n, "c": c, "d": d, "normalize": normalize, "scale": scale, "margin": margin, "smoothing": smoothing,
        "reduction": reduction, "x": sum(x, []), "w": sum(w, []), "y": y, "bias": bias, "scales": scales, "prior": values, "upstream": upstream,
        "loss": flat(out.loss), "predicted": out.predicted.tolist(), "dx": flat(gradients[0]), "dw": flat(gradients[1]),
        "db": flat(gradients[2]) if biased else None,
    }


def near(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(near(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(near, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= 1e-11 * max(1.0, abs(a))
    return a == b


def main():
    cases = [make(index, *case) for index, case in enumerate(CASES)]
    if "--check" in sys.argv:
        same = near(cases, json.loads(PATH.read_text())["cases"])
        print("heads.json is", "as it would be written" if same else "another")
        sys.exit(0 if same else 1)
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    PATH.write_text('{"made_by":"python3 python-ref/make_heads.py","torch":"%s","cases":[\n%s\n]}\n' % (torch.__version__, lines))


if __name__ == "__main__":
    main()
