"""The difficulty-aware balancing margin loss and its relatives, in PyTorch, as plainly as the paper writes it.

Source: Son, Koo, Park, Kim, "Difficulty-aware Balancing Margin Loss for Long-tailed Recognition" (AAAI 2025,
arXiv 2412.15477). Equation numbers in the comments are the paper's; "spec 2.5" and the like are steps of docs/math.md.
It is meant for float64 and for reading; nothing here is fast.

Shapes: X (N, D), W (C, D), y (N), counts n (C). Options are a dict, the `config` of tests/golden/cases.json.
"""

import math
from typing import NamedTuple, Optional, Sequence

import torch
import torch.nn.functional as F

IGNORED = 4294967295  # u32::MAX, the predicted class of an ignored row
NORM_FLOOR = 1e-12
CLAMPED = 1e-3  # how near to 0 and pi the angle range "clamp" lets an angle come (AdaFace)

DEFAULTS = {
    "scale": 32.0,
    "margin": {"kind": "none"},
    "gate": "off",
    "instance_strength": 1.0,
    "prior": {"kind": "none"},
    "class_weights": {"kind": "none"},
    "angle": "wrap",
    "target_gradient": "exact",
    "row_loss": {"kind": "cross_entropy"},
    "reduction": "mean",
    "ignore_index": None,
    "label_smoothing": 0.0,
}

CHOICES = {
    "gate": ("off", "positives", "hard_positives"),
    "angle": ("wrap", "monotone", "linear", "easy", "clamp"),
    "target_gradient": ("exact", "detach_difficulty", "straight_through"),
    "reduction": ("none", "sum", "mean", "weighted_mean"),
}


class Output(NamedTuple):
    loss: torch.Tensor  # scalar, or (N) for reduction "none"; on the tape
    per_sample: torch.Tensor  # (N), omega_i * loss of row i before the reduction; 0 at ignored rows
    predicted: torch.Tensor  # (N) int64; IGNORED at ignored rows
    hard: torch.Tensor  # (N) int64, 0 or 1; 0 at ignored rows
    target_cosine: torch.Tensor  # (N); 0 at ignored rows


class Arccos(torch.autograd.Function):
    """theta = arccos c, with d theta / dc = -1 / max(sin theta, sqrt(eps)) so that the poles stay finite (spec 3)."""

    @staticmethod
    def forward(ctx, c):
        ctx.save_for_backward(c)
        return torch.arccos(c)

    @staticmethod
    def backward(ctx, upstream):
        (c,) = ctx.saved_tensors
        sin_theta = ((1 - c) * (1 + c)).clamp_min(0).sqrt()
        return -upstream / sin_theta.clamp_min(math.sqrt(torch.finfo(c.dtype).eps))


class ClampCosine(torch.autograd.Function):
    """Clamps what rounding has put beyond +-1; the gradient is that of the unrounded cosine, which never leaves [-1, 1]."""

    @staticmethod
    def forward(ctx, c):
        return c.clamp(-1, 1)

    @staticmethod
    def backward(ctx, upstream):
        return upstream


def unit_rows(rows):
    """Rows divided by max(|row|, 1e-12); shorter rows by the constant, so without projection in the gradient (spec 3)."""
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(NORM_FLOOR)


def margin_tables(margin, counts, classes, m1_only=False):
    """(m1, A (C), B (C)): every family is psi = cos(m1 theta + a) - B_y (Table 1; eq. 6 for DBM)."""
    if m1_only:
        return float({"sphere_face": margin.get("m"), "combined": margin.get("m1"), "per_class": margin.get("m1")}.get(margin["kind"], 1.0))
    zero = torch.zeros(classes, dtype=torch.float64)
    kind = margin["kind"]
    if kind == "none":
        return 1.0, zero, zero
    if kind == "sphere_face":
        return float(margin["m"]), zero, zero
    if kind == "cos_face":
        return 1.0, zero, zero + margin["m"]
    if kind == "arc_face":
        return 1.0, zero + margin["m"], zero
    if kind == "ldam":  # B_j = max_m n_j^-1/4 / max_k n_k^-1/4
        raw = _counts(counts, classes, "ldam") ** -0.25
        return 1.0, zero, margin["max_m"] * raw / raw.max()
    if kind == "dbm":  # eq. (6): m_C = K rho_j^-tau
        n = _counts(counts, classes, "dbm")
        return 1.0, margin["k"] * (n / n.min()) ** -margin["tau"], zero
    if kind == "combined":  # InsightFace: cos(m1 theta + m2) - m3
        return float(margin["m1"]), zero + margin["m2"], zero + margin["m3"]
    if kind == "per_class":
        table = [torch.tensor(margin[side], dtype=torch.float64) for side in ("angular", "cosine")]
        if any(side.shape != (classes,) for side in table):
            raise ValueError("per_class needs one angular and one cosine margin a class")
        return float(margin["m1"]), table[0], table[1]
    raise ValueError(f"unknown margin {kind!r}")


def log_prior(prior, counts, classes):
    """b (C), added to the logits."""
    kind = prior["kind"]
    if kind == "none":
        return torch.zeros(classes, dtype=torch.float64)
    if kind == "balanced_softmax":  # eqs. (4), (11): b_j = tau log p_j
        n = _counts(counts, classes, "balanced_softmax")
        return prior["tau"] * torch.log(n / n.sum())
    if kind == "log_prior":
        return torch.tensor(prior["values"], dtype=torch.float64)
    raise ValueError(f"unknown prior {kind!r}")


def class_weights(weights, counts, classes):
    """omega (C)."""
    kind = weights["kind"]
    if kind == "none":
        return torch.ones(classes, dtype=torch.float64)
    if kind in ("class_balanced", "class_balanced_normalized"):  # eqs. (3), (10)
        beta = weights["beta"]
        n = _counts(counts, classes, kind)
        # (1 - beta) / (1 - beta^n), with the denominator by expm1; beta = 0 weighs every class 1
        raw = (1 - beta) / -torch.expm1(n * math.log(beta)) if beta > 0 else torch.ones_like(n)
        return raw * classes / raw.sum() if kind == "class_balanced_normalized" else raw
    if kind == "per_class":
        return torch.tensor(weights["weights"], dtype=torch.float64)
    raise ValueError(f"unknown class weights {kind!r}")


def _counts(counts, classes, what):
    if counts is None or len(counts) != classes or min(counts) < 1:
        raise ValueError(f"{what} needs {classes} class counts, none of them 0")
    return torch.tensor([float(n) for n in counts], dtype=torch.float64)


def complete(config, row_margins=False):
    """The config with defaults filled in, checked; refuses what the Rust builder refuses."""
    unknown = set(config) - set(DEFAULTS)
    if unknown:
        raise ValueError(f"unknown options {sorted(unknown)}")
    full = {**DEFAULTS, **config}
    for key, values in CHOICES.items():
        if full[key] not in values:
            raise ValueError(f"{key} is {full[key]!r}, not one of {values}")
    margin = full["margin"]
    angular = {
        "arc_face": True,
        "dbm": True,
        "combined": margin.get("m2", 0) != 0,
        "per_class": any(margin.get("angular", [])),
    }.get(margin["kind"], False)
    if full["gate"] != "off" and not angular:
        raise ValueError("the instance gate needs an angular class margin")
    if full["gate"] == "off" and full["target_gradient"] == "detach_difficulty":
        raise ValueError("detach_difficulty needs an instance gate")
    if full["angle"] != "wrap" and margin["kind"] in ("none", "cos_face", "ldam") and not row_margins:
        raise ValueError("an angle range needs a margin on the angle")
    if full["angle"] == "linear" and margin_tables(margin, [1], 1, m1_only=True) != 1.0:
        raise ValueError("the linear angle range needs m1 = 1")
    if full["row_loss"]["kind"] != "cross_entropy" and full["label_smoothing"] != 0:
        raise ValueError("label smoothing goes with the cross-entropy alone")
    return full


def row_loss(kind, delta):
    """F(delta) (V): a loss of p_y = sigmoid(-delta), written in delta so that 1 - p_y needs no subtraction."""
    log_p, log_away = F.logsigmoid(-delta), F.logsigmoid(delta)  # log p_y, log(1 - p_y)
    name = kind["kind"]
    if name == "cross_entropy":
        return -log_p  # softplus(delta): eqs. (5), (10), (11)
    if name == "focal":  # -(1 - p)^gamma log p (Lin et al. 2017)
        return -torch.exp(kind["gamma"] * log_away) * log_p
    if name == "poly_1":  # -log p + epsilon (1 - p) (Leng et al. 2022)
        return -log_p + kind["epsilon"] * log_away.exp()
    if name == "generalized":  # (1 - p^q) / q (Zhang and Sabuncu 2018)
        power = torch.exp(kind["q"] * log_p)  # carries the gradient: that of expm1 is made of 1 + expm1
        return -(torch.expm1(kind["q"] * log_p).detach() + power - power.detach()) / kind["q"]
    raise ValueError(f"unknown row loss {name!r}")


def margin_cosine(c_y, hard, m1, A_y, B_y, config, alpha=None):
    """psi (V), the target's cosine with its margin, from c_y (V), hard flags (V), A_y, B_y (V) and the rows' own angles alpha (V)."""
    alpha = torch.zeros_like(A_y) if alpha is None else alpha
    theta = Arccos.apply(c_y)  # eq. (2)
    d_I = (1 - c_y) / 2  # eq. (7)
    if config["target_gradient"] == "detach_difficulty":
        d_I = d_I.detach()
    gate = {"off": 0.0, "positives": 1.0, "hard_positives": hard.to(c_y.dtype)}[config["gate"]]  # eq. (9)
    a = A_y * (1 + config["instance_strength"] * gate * d_I) + alpha  # eqs. (8), (9): m_C + m_C m_I on hard positives
    phi = m1 * theta + a
    if config["angle"] == "wrap":
        psi = torch.cos(phi)  # Table 1
    elif config["angle"] == "linear":  # InsightFace: cos theta - m sin m beyond pi - m
        psi = torch.where(phi > math.pi, c_y - a * torch.sin(a), torch.cos(phi))
    elif config["angle"] == "easy":  # InsightFace's easy margin
        psi = torch.where(c_y > 0, torch.cos(phi), c_y)
    elif config["angle"] == "clamp":  # AdaFace
        psi = torch.cos(phi.clamp(CLAMPED, math.pi - CLAMPED))
    else:
        k = torch.floor(phi.detach() / math.pi)
        psi = (1 - 2 * torch.remainder(k, 2)) * torch.cos(phi) - 2 * k  # SphereFace: (-1)^k cos phi - 2k
    if m1 == 1.0:  # phi = theta: psi is the cosine itself, also at the poles, where arccos loses the gradient
        by_alpha = -((1 - c_y) * (1 + c_y)).clamp_min(0).sqrt().detach()  # d psi / d alpha = -sin theta
        if config["angle"] == "easy":
            by_alpha = torch.where(c_y > 0, by_alpha, torch.zeros_like(by_alpha))
        psi = torch.where((A_y == 0) & (alpha == 0), c_y + by_alpha * (alpha - alpha.detach()), psi)
    psi = psi - B_y  # Table 1: CosFace, LDAM
    if config["target_gradient"] == "straight_through":
        # The value of psi (to an ulp) with psi' = 1, and the derivative by alpha as it is.
        psi = c_y + (psi.detach() - c_y.detach()) + (through_alpha(c_y, hard, m1, A_y, B_y, config, alpha) if alpha.requires_grad else 0)
    return psi


def margin_loss(
    x: torch.Tensor,
    w: torch.Tensor,
    y: torch.Tensor,
    config: Optional[dict] = None,
    counts: Optional[Sequence[int]] = None,
    sample_weights: Optional[torch.Tensor] = None,
    row_margins: Optional[torch.Tensor] = None,
    normalize: str = "both",
    class_scales: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
) -> Output:
    """The loss of features x (N, D), centres w (C, D), labels y (N) int64; row_margins (N, 2) are alpha and beta of every row.

    normalize is "both", "weight" or "none": which rows are divided by their norms. class_scales sigma (C) multiply the classes' logits beside s,
    bias (C) is added to x.w of a head that is not normalised.
    """
    if normalize not in ("both", "weight", "none"):
        raise ValueError(f"normalize is {normalize!r}")
    if bias is not None and normalize != "none":
        raise ValueError("a bias goes with a head that is not normalised")
    config = complete(config or {}, row_margins is not None)
    n, classes, dtype = x.shape[0], w.shape[0], x.dtype
    s, alpha = config["scale"], config["label_smoothing"]
    m1, A, B = margin_tables(config["margin"], counts, classes)
    b = log_prior(config["prior"], counts, classes).to(dtype)  # (C)
    omega = class_weights(config["class_weights"], counts, classes).to(dtype)  # (C)
    b = b - b.max()  # softmax does not see a common offset; a large one would cost digits
    A, B = A.to(dtype), B.to(dtype)

    # Rows to ignore leave here, so that nothing of theirs reaches the rest, not even NaN.
    ignore = config["ignore_index"]
    rows = torch.arange(n) if ignore is None else torch.nonzero(y != ignore).flatten()  # (V)
    y_v = y[rows]
    if rows.numel() and not (0 <= int(y_v.min()) and int(y_v.max()) < classes):
        raise ValueError("a label is neither a class nor the ignore index")
    V = rows.numel()

    if normalize == "both":
        c = ClampCosine.apply(unit_rows(x[rows]) @ unit_rows(w).T)  # (V, C), cos theta_ij of eq. (2)
    else:
        if m1 != 1.0 or bool((A != 0).any()) or row_margins is not None:
            raise ValueError("a margin on the angle needs cosines")
        c = x[rows] @ (unit_rows(w) if normalize == "weight" else w).T  # (V, C)
    if bias is not None:
        c = c + bias
    sigma = torch.ones(classes, dtype=dtype) if class_scales is None else class_scales.to(dtype)  # (C)
    is_target = F.one_hot(y_v, classes).bool()  # (V, C)
    c_y = c[is_target]  # (V)
    predicted = lowest_argmax(c.detach())  # argmax_j c_ij = argmin_j theta_ij
    hard = (predicted != y_v).to(torch.int64)  # eq. (9)

    alphas, betas = (None, 0.0) if row_margins is None else row_margins[rows].unbind(1)
    if normalize == "both":
        psi = margin_cosine(c_y, hard, m1, A[y_v], B[y_v], config, alphas) - betas  # (V)
    else:
        psi = c_y - B[y_v]
    z_y = s * sigma[y_v] * psi + b[y_v]  # eqs. (1), (5), (11), the numerator's exponent
    others = (s * sigma * c + b)[~is_target].reshape(V, classes - 1)  # the denominator's other exponents
    if classes > 1:
        delta = torch.logsumexp(others, dim=1) - z_y  # spec 2.5
        nll = row_loss(config["row_loss"], delta)  # (V)
    else:
        nll = 0 * z_y  # delta = -inf
    if alpha != 0:  # target distribution (1 - alpha) onehot + alpha / C over the same z (spec 2.8)
        nll = nll + alpha * (z_y - (others.sum(dim=1) + z_y) / classes)
    weight = omega[y_v]  # eqs. (3), (10)
    if sample_weights is not None:
        weight = weight * sample_weights[rows].to(dtype)
    ell = weight * nll  # (V)

    per_sample = torch.zeros(n, dtype=dtype).index_copy(0, rows, ell)
    total = ell.sum()
    loss = {
        "none": lambda: per_sample,
        "sum": lambda: total,
        "mean": lambda: total / max(V, 1),
        "weighted_mean": lambda: total / weight.sum() if V and float(weight.sum()) > 0 else total,
    }[config["reduction"]]()

    spread = lambda values, fill: torch.full((n,), fill, dtype=values.dtype).index_copy(0, rows, values)
    return Output(loss, per_sample.detach(), spread(predicted, IGNORED), spread(hard, 0), spread(c_y.detach(), 0))


def through_alpha(c_y, hard, m1, A_y, B_y, config, alpha):
    """0 with the derivative of psi by alpha, the cosine held."""
    exact = {**config, "target_gradient": "exact"}
    psi = margin_cosine(c_y.detach(), hard, m1, A_y, B_y, exact, alpha)
    return psi - psi.detach()


def lowest_argmax(c):
    """argmax of every row of c (V, C), the lowest index at a tie, which torch.argmax does not promise."""
    if c.numel() == 0:
        return torch.zeros(0, dtype=torch.int64)
    index = torch.arange(c.shape[1]).expand_as(c)
    is_top = c == c.max(dim=1, keepdim=True).values
    return torch.where(is_top, index, torch.full_like(index, c.shape[1] - 1)).min(dim=1).values


def loss_and_grads(x, w, y, config=None, counts=None, sample_weights=None, upstream=None, row_margins=None):
    """(Output, dX, dW), and with row_margins (N, 2) their gradient: of upstream . loss; upstream is 1 unless given, (N) for reduction "none"."""
    x = x.detach().clone().requires_grad_()
    w = w.detach().clone().requires_grad_()
    margins = None if row_margins is None else row_margins.detach().clone().requires_grad_()
    out = margin_loss(x, w, y, config, counts, sample_weights, margins)
    upstream = torch.ones_like(out.loss) if upstream is None else torch.as_tensor(upstream, dtype=out.loss.dtype)
    of = [x, w] if margins is None else [x, w, margins]
    gradients = torch.autograd.grad((out.loss * upstream).sum(), of, allow_unused=True)
    gradients = [torch.zeros_like(tensor) if gradient is None else gradient for tensor, gradient in zip(of, gradients)]
    return out._replace(loss=out.loss.detach()), *gradients
