"""reference.py beside classes that others wrote: `pytorch-metric-learning`, at random inputs, values and gradients.

What differs between the two is stated where it is undone. Needs torch and pytorch-metric-learning; skipped where either is missing.
"""

import math

import pytest
import torch

from reference import loss_and_grads, unit_rows

losses = pytest.importorskip("pytorch_metric_learning.losses")

F64 = torch.float64
SIZES = [(2, 2, 2), (7, 3, 2), (16, 10, 5), (33, 101, 17)]  # N, C, D; at D = 1 every row is on a pole, and nothing is left of its gradient


def batch(n, c, d, seed):
    """Rows of every length, near their centre, far from it, and anywhere."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, dtype=F64, generator=generator)
    w = normal(c, d)
    y = torch.randint(c, (n,), generator=generator)
    near = torch.arange(n) % 3 == 0
    x = torch.where(near[:, None], w[y] + 0.3 * normal(n, d), normal(n, d)) * torch.exp(normal(n, 1))
    return x, w, y


def test_some_rows_lie_beyond_pi_minus_m():
    beyond = 0
    for n, c, d in SIZES:
        for seed in range(5):
            x, w, y = batch(n, c, d, seed)
            x, y = between_poles(x, w, y)
            beyond += int((torch.arccos((unit_rows(x) * unit_rows(w)[y]).sum(1)) > math.pi - 1.0).sum())
    assert beyond > 5


def theirs(loss, x, w, y):
    """(loss, dX, dW) of one of their classes, whose W is (D, C), in place of the one it drew."""
    loss = loss.double()
    loss.W.data = w.T.clone()
    x = x.clone().requires_grad_()
    value = loss(x, y)
    value.backward()
    return value.detach(), x.grad, loss.W.grad.T


def between_poles(x, w, y, last=math.pi - 1e-3):
    """The rows with angles from 1e-3 to `last`: closer to a pole the two take different floors."""
    theta = torch.arccos((unit_rows(x) * unit_rows(w)[y]).sum(1).clamp(-1, 1))
    inside = (theta > 1e-3) & (theta < last)
    assert inside.any(), "no row is left to compare"
    return x[inside], y[inside]


def assert_same(ours, others, what):
    for name, a, b in zip(("loss", "dX", "dW"), ours, others):
        bound = 1e-10 * b.abs().max() + 1e-13  # where p_y is 1 to rounding, torch's cross-entropy gives 0 and rounding's gradients
        assert (a - b).abs().max() <= bound, f"{what}: {name} differs by {(a - b).abs().max().item():.1e} of {b.abs().max().item():.1e}"


def mine(x, w, y, config):
    out, dx, dw = loss_and_grads(x, w, y, config)
    return out.loss, dx, dw


@pytest.mark.parametrize("n, c, d", SIZES)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("m, s", [(0.35, 64.0), (0.1, 16.0), (1.2, 1.0)])
def test_cos_face(n, c, d, seed, m, s):
    x, w, y = batch(n, c, d, seed)
    config = {"margin": {"kind": "cos_face", "m": m}, "scale": s}
    others = theirs(losses.CosFaceLoss(num_classes=c, embedding_size=d, margin=m, scale=s), x, w, y)
    assert_same(mine(x, w, y, config), others, f"CosFace {n, c, d}")


@pytest.mark.parametrize("n, c, d", SIZES)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("m, s", [(0.5, 64.0), (0.1, 16.0), (1.0, 4.0)])
def test_arc_face(n, c, d, seed, m, s):
    """Theirs is c - m sin m beyond pi - m: the angle range "linear"."""
    x, w, y = batch(n, c, d, seed)
    x, y = between_poles(x, w, y)
    config = {"margin": {"kind": "arc_face", "m": m}, "angle": "linear", "scale": s}
    others = theirs(losses.ArcFaceLoss(num_classes=c, embedding_size=d, margin=math.degrees(m), scale=s), x, w, y)
    assert_same(mine(x, w, y, config), others, f"ArcFace {n, c, d}")


@pytest.mark.parametrize("n, c, d", SIZES)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("m, s", [(2, 16.0), (3, 4.0), (4, 1.0)])
def test_sphere_face(n, c, d, seed, m, s):
    """Theirs multiplies every logit by the norm of its row: rows come in at norm 1, through the same normalisation, so that it is 1."""
    x, w, y = batch(n, c, d, seed)
    x, y = between_poles(x, w, y)
    config = {"margin": {"kind": "sphere_face", "m": m}, "angle": "monotone", "scale": s}
    loss = losses.SphereFaceLoss(num_classes=c, embedding_size=d, margin=m, scale=s).double()
    loss.W.data = w.T.clone()
    leaf = x.clone().requires_grad_()
    value = loss(unit_rows(leaf), y)
    value.backward()
    assert_same(mine(x, w, y, config), (value.detach(), leaf.grad, loss.W.grad.T), f"SphereFace {n, c, d}")
