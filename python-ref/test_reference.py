"""Tests of reference.py and of the committed goldens: `python3 -m pytest python-ref`."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

import make_golden
from reference import (
    CLAMPED,
    IGNORED,
    class_weights,
    complete,
    log_prior,
    loss_and_grads,
    margin_cosine,
    margin_loss,
    margin_tables,
    unit_rows,
)

F64 = torch.float64
COUNTS = [500, 120, 31, 8, 5]


def make_batch(n=6, c=5, d=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, dtype=F64, generator=generator)
    w = normal(c, d)
    y = torch.randint(c, (n,), generator=generator)
    x = torch.where((torch.arange(n) % 2 == 0)[:, None], w[y] + 0.3 * normal(n, d), normal(n, d))
    return x, w, y


def angle_at(x, w, y):
    return torch.arccos((unit_rows(x) * unit_rows(w)[y]).sum(1))


def cosines(x, w):
    return unit_rows(x) @ unit_rows(w).T


@pytest.fixture(scope="module")
def committed():
    return json.loads(make_golden.PATH.read_text())


@pytest.fixture(scope="module")
def made():
    return make_golden.document()


# ---- goldens -------------------------------------------------------------------------------------------------------


def test_committed_goldens_are_what_make_golden_makes(committed, made):
    assert make_golden.compare(committed, made) == []
    assert committed["seed"] == made["seed"] and committed["made_by"] == made["made_by"]


def test_compare_sees_a_difference(made):
    other = json.loads(json.dumps(made))
    name = "preset_dbm_bs"
    target = next(c for c in other["cases"] if c["name"] == name)
    target["expected"]["dw"][3] *= 1 + 1e-6
    assert len(make_golden.compare(made, other)) == 1


def test_every_meaningful_pair_of_options_is_in_the_goldens(committed):
    kinds = ("margin", "prior", "class_weights", "row_loss")
    seen = set()
    for case in committed["cases"]:
        if case["name"].startswith("pair_"):
            config = {k: v["kind"] if k in kinds else v for k, v in case["config"].items()}
            config["sample_weights"] = case["sample_weights"] is not None
            config["row_margins"] = case["row_margins"] is not None
            seen |= make_golden.pairs_of({name: config[name] for name in make_golden.NAMES})
    assert make_golden.all_pairs() <= seen


def test_goldens_hold_the_special_cases(committed):
    cases = committed["cases"]
    assert {len(c["config"]) for c in cases} == {12}
    for name in ("preset_dbm_ce", "preset_dbm_cb", "preset_dbm_bs", "tie_dbm", "ignored_all_mean", "scale_64_easy"):
        assert any(c["name"] == name for c in cases)
    assert any(c["c"] == 1 for c in cases) and any(c["n"] == 1 for c in cases)
    easy = next(c for c in cases if c["name"] == "scale_64_easy")["expected"]["per_sample"]
    assert 0 < min(easy) < 1e-20
    for case in cases:
        n, c, d, expected = case["n"], case["c"], case["d"], case["expected"]
        assert len(case["x"]) == len(expected["dx"]) == n * d and len(case["w"]) == len(expected["dw"]) == c * d
        assert all(len(values) == n for values in (case["y"], expected["per_sample"], expected["hard"]))
        assert isinstance(expected["loss"], list) == (case["config"]["reduction"] == "none")


def mp_case(case):
    """Loss, dX, dW and the row margins' gradient of a golden case at 60 digits: no torch, softmax as the paper writes it, gradients by central differences."""
    mp = pytest.importorskip("mpmath").mp
    mp.dps = 60
    n, c, d, config = case["n"], case["c"], case["d"], case["config"]
    m, one = mp.mpf, mp.mpf(1)
    counts = [m(v) for v in case["counts"]]
    margin, prior, weights = config["margin"], config["prior"], config["class_weights"]
    A, B, m1 = [m(0)] * c, [m(0)] * c, m(1)
    kind = margin["kind"]
    if kind == "sphere_face":
        m1 = m(margin["m"])
    elif kind == "cos_face":
        B = [m(margin["m"])] * c
    elif kind == "arc_face":
        A = [m(margin["m"])] * c
    elif kind == "ldam":
        B = [m(margin["max_m"]) * mp.root(min(counts) / v, 4) for v in counts]
    elif kind == "dbm":
        A = [m(margin["k"]) * (min(counts) / v) ** m(margin["tau"]) for v in counts]
    elif kind == "combined":
        m1, A, B = m(margin["m1"]), [m(margin["m2"])] * c, [m(margin["m3"])] * c
    elif kind == "per_class":
        m1, A, B = m(margin["m1"]), list(map(m, margin["angular"])), list(map(m, margin["cosine"]))
    factor = [one] * c  # e^b_j, as eq. (4) has it: n_j^tau
    if prior["kind"] == "balanced_softmax":
        factor = [v ** m(prior["tau"]) for v in counts]
    elif prior["kind"] == "log_prior":
        factor = [mp.exp(m(v)) for v in prior["values"]]
    omega = [one] * c
    if weights["kind"].startswith("class_balanced"):
        omega = [(1 - m(weights["beta"])) / (1 - m(weights["beta"]) ** v) for v in counts]
        if weights["kind"].endswith("normalized"):
            omega = [v * c / sum(omega) for v in omega]
    elif weights["kind"] == "per_class":
        omega = list(map(m, weights["weights"]))

    def unit(rows):
        norms = [mp.sqrt(sum(v * v for v in row)) for row in rows]
        return [[v / max(norm, m("1e-12")) for v in row] for row, norm in zip(rows, norms)]

    s, lam, alpha = m(config["scale"]), m(config["instance_strength"]), m(config["label_smoothing"])
    sample = [m(v) for v in case["sample_weights"] or [1] * n]
    rows = [i for i in range(n) if case["y"][i] != config["ignore_index"]]
    weight = {i: omega[case["y"][i]] * sample[i] for i in rows}
    denominator = {"none": one, "sum": one, "mean": m(len(rows)), "weighted_mean": sum(weight.values())}[config["reduction"]]
    upstream = [m(v) for v in case["upstream"]] if config["reduction"] == "none" else [m(case["upstream"])] * n

    margins = [m(v) for v in case["row_margins"] or [0] * (2 * n)]

    def row_loss(i, x_unit, w_unit, base, moved_margin=(0, 0)):
        """omega_i loss_i; base holds what a detached gradient keeps constant."""
        own_angle, own_cosine = margins[2 * i] + moved_margin[0], margins[2 * i + 1] + moved_margin[1]
        y = case["y"][i]
        cs = [sum(a * b for a, b in zip(x_unit, row)) for row in w_unit]
        cy = max(-one, min(one, cs[y]))
        hard = case["expected"]["hard"][i]
        gate = {"off": 0, "positives": 1, "hard_positives": hard}[config["gate"]]

        def psi_of(cosine, difficulty):
            a = A[y] * (1 + lam * gate * difficulty) + own_angle
            phi, angle = m1 * mp.acos(cosine) + a, config["angle"]
            if angle == "linear" and phi > mp.pi:
                value = cosine - a * mp.sin(a)
            elif angle == "easy" and cosine <= 0:
                value = cosine
            elif angle == "clamp":
                near = m(CLAMPED)
                value = mp.cos(max(near, min(mp.pi - near, phi)))
            else:
                k = int(mp.floor(phi / mp.pi)) if angle == "monotone" else 0
                value = (-1) ** k * mp.cos(phi) - 2 * k
            return value - B[y] - own_cosine

        gradient = config["target_gradient"]
        if base is None:
            psi = psi_of(cy, (1 - cy) / 2)
        elif gradient == "straight_through" and not any(moved_margin):
            psi = base[i][1] + cs[y] - base[i][0]
        else:
            psi = psi_of(cy, (1 - (base[i][0] if gradient == "detach_difficulty" else cy)) / 2)
        e = [factor[j] * mp.exp(s * cs[j]) for j in range(c)]
        e[y] = factor[y] * mp.exp(s * psi)
        total = sum(e)
        logs = [mp.log(v / total) for v in e]
        rest = sum(e[:y] + e[y + 1 :])
        nll = mp.log1p(rest / e[y])  # -log p_y, with digits to spare at either end
        kind, away = config["row_loss"], rest / total
        if kind["kind"] == "focal":
            nll = away ** m(kind["gamma"]) * nll if away else nll
        elif kind["kind"] == "poly_1":
            nll += m(kind["epsilon"]) * away
        elif kind["kind"] == "generalized":
            nll = -mp.expm1(-m(kind["q"]) * nll) / m(kind["q"])
        loss = weight[i] * ((1 - alpha) * nll - alpha / c * sum(logs))
        return loss, (cy, psi)

    x = [[m(v) for v in case["x"][i * d : (i + 1) * d]] for i in range(n)]
    w = [[m(v) for v in case["w"][j * d : (j + 1) * d]] for j in range(c)]
    xu, wu = unit(x), unit(w)
    here = {i: row_loss(i, xu[i], wu, None) for i in rows}
    per_sample = [here[i][0] if i in here else m(0) for i in range(n)]
    base = {i: here[i][1] for i in rows}
    scale_of = {i: upstream[i] / denominator if denominator else m(0) for i in rows}
    h = m("1e-25")

    def central(at):
        return (at(h) - at(-h)) / (2 * h)

    def moved(rows_, r, k, step):
        row = list(rows_[r])
        row[k] += step
        return unit([row])[0]

    dx = [
        central(lambda t: scale_of[i] * row_loss(i, moved(x, i, k, t), wu, base)[0]) if i in here else m(0)
        for i in range(n)
        for k in range(d)
    ]
    dw = [
        central(
            lambda t: sum(
                (scale_of[i] * row_loss(i, xu[i], wu[:j] + [moved(w, j, k, t)] + wu[j + 1 :], base)[0] for i in rows), m(0)
            )
        )
        for j in range(c)
        for k in range(d)
    ]
    d_margins = [
        central(lambda t: scale_of[i] * row_loss(i, xu[i], wu, base, ((t, 0), (0, t))[k])[0]) if i in here else m(0)
        for i in range(n)
        for k in range(2)
    ]
    return per_sample, dx, dw, d_margins, sum((per_sample[i] / denominator for i in rows if denominator), m(0))


def test_goldens_agree_with_60_digits_and_central_differences(committed):
    """All cases but rows exactly at a pole and rows of zeros, where a central difference is not the gradient that is asked for."""
    checked, worst = 0, 0.0
    for case in committed["cases"]:
        name = case["name"]
        if name.startswith(("pole_exact", "pole_off_axis", "norm_zero", "tie_")) or "_d1_" in name:
            continue
        per_sample, dx, dw, d_margins, loss = mp_case(case)
        expected = case["expected"]
        tolerance = 1e-6 if name.startswith("pole_1e-5") else 1e-11
        pairs = [(expected["per_sample"], per_sample), (expected["dx"], dx), (expected["dw"], dw)]
        if case["row_margins"] is not None:
            pairs.append((expected["d_margins"], d_margins))
        if case["config"]["reduction"] != "none":
            pairs.append(([expected["loss"]], [loss]))
        for got, want in pairs:
            size = max(map(abs, want))
            error = max(abs(a - b) for a, b in zip(got, want))
            assert error <= tolerance * size, f"{name}: {float(error / size)}"
            if size and tolerance <= 1e-11:
                worst = max(worst, float(error / size))
        checked += 1
    print(f"{checked} cases, worst relative error {worst:.1e}")
    assert checked > 100


# ---- gradients -----------------------------------------------------------------------------------------------------

FAMILIES = [
    {"kind": "none"},
    {"kind": "sphere_face", "m": 4.0},
    {"kind": "cos_face", "m": 0.35},
    {"kind": "arc_face", "m": 0.5},
    {"kind": "ldam", "max_m": 0.5},
    {"kind": "dbm", "k": 0.3, "tau": 1.0},
    {"kind": "combined", "m1": 1.2, "m2": 0.3, "m3": 0.2},
    {"kind": "per_class", "m1": 1.1, "angular": [0.0, 0.2, 0.5, -0.1, 1.0], "cosine": [0.0, 0.1, -0.1, 0.3, 0.2]},
]
ON_ANGLE = ("sphere_face", "arc_face", "dbm", "combined", "per_class")
GATED = ("arc_face", "dbm", "combined", "per_class")


MEANINGFUL = [
    (margin, gate, angle)
    for margin in FAMILIES
    for gate in ("off", "positives", "hard_positives")
    for angle in ("wrap", "monotone", "linear", "easy", "clamp")
    if (gate == "off" or margin["kind"] in GATED) and (angle == "wrap" or margin["kind"] in ON_ANGLE)
    and (angle != "linear" or margin["kind"] in ("arc_face", "dbm"))
]


@pytest.mark.parametrize("margin, gate, angle", MEANINGFUL, ids=lambda v: v["kind"] if isinstance(v, dict) else v)
def test_gradcheck_families(margin, gate, angle):
    x, w, y = make_batch()
    config = {"margin": margin, "gate": gate, "angle": angle, "scale": 8.0, "instance_strength": 0.7}
    assert torch.autograd.gradcheck(lambda x, w: margin_loss(x, w, y, config, COUNTS).loss, (x.requires_grad_(), w.requires_grad_()))


ROW_LOSSES = [
    {"kind": "focal", "gamma": 0.5},
    {"kind": "focal", "gamma": 2.0},
    {"kind": "poly_1", "epsilon": -1.0},
    {"kind": "generalized", "q": 0.7},
]


@pytest.mark.parametrize("row_loss", ROW_LOSSES, ids=lambda v: v["kind"])
@pytest.mark.parametrize("angle", ["wrap", "monotone", "linear", "easy", "clamp"])
def test_gradcheck_row_margins_and_row_losses(row_loss, angle):
    x, w, y = make_batch(seed=2)
    generator = torch.Generator().manual_seed(7)
    margins = 0.5 * torch.randn(6, 2, dtype=F64, generator=generator)
    config = {"margin": {"kind": "dbm", "k": 0.3, "tau": 1.0}, "gate": "positives", "scale": 6.0, "angle": angle, "row_loss": row_loss}
    inputs = (x.requires_grad_(), w.requires_grad_(), margins.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, w, margins: margin_loss(x, w, y, config, COUNTS, None, margins).loss, inputs)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "weighted_mean"])
@pytest.mark.parametrize(
    "weights",
    [{"kind": "none"}, {"kind": "class_balanced", "beta": 0.99}, {"kind": "class_balanced_normalized", "beta": 0.9999}, {"kind": "per_class", "weights": [0.5, 0.0, 1.0, 2.0, 3.0]}],
    ids=lambda weights: weights["kind"],
)
@pytest.mark.parametrize("prior", [{"kind": "none"}, {"kind": "balanced_softmax", "tau": 1.5}, {"kind": "log_prior", "values": [0.1, -2.0, 1.0, 0.0, 3.0]}], ids=lambda prior: prior["kind"])
def test_gradcheck_options(prior, weights, reduction):
    x, w, y = make_batch(seed=1)
    y[2] = -1
    config = {"margin": {"kind": "dbm", "k": 0.3, "tau": 1.0}, "gate": "hard_positives", "scale": 6.0, "prior": prior}
    config.update(class_weights=weights, reduction=reduction, ignore_index=-1, label_smoothing=0.1)
    sample = torch.tensor([1.0, 0.5, 3.0, 2.0, 0.0, 1.5], dtype=F64)
    assert torch.autograd.gradcheck(lambda x, w: margin_loss(x, w, y, config, COUNTS, sample).loss, (x.requires_grad_(), w.requires_grad_()))


def test_straight_through_has_psi_prime_1_and_detached_drops_the_second_term():
    c = torch.linspace(-0.95, 0.95, 39, dtype=F64)
    hard = (torch.arange(39) % 2).to(torch.int64)
    A, B, m1, lam = torch.full((39,), 0.4, dtype=F64), torch.full((39,), 0.1, dtype=F64), 1.3, 0.7

    def slope(**options):
        at = c.clone().requires_grad_()
        config = complete({"margin": {"kind": "arc_face", "m": 0.4}, "gate": "hard_positives", "instance_strength": lam, **options})
        psi = margin_cosine(at, hard, m1, A, B, config)
        return psi.detach(), torch.autograd.grad(psi.sum(), at)[0]

    theta = torch.arccos(c)
    phi = m1 * theta + A * (1 + lam * hard * (1 - c) / 2)
    exact, detached, straight = (slope(target_gradient=g) for g in ("exact", "detach_difficulty", "straight_through"))
    for value, _ in (exact, detached, straight):
        torch.testing.assert_close(value, torch.cos(phi) - B)
    # the closed form of spec 3
    torch.testing.assert_close(exact[1], torch.sin(phi) * (m1 / torch.sin(theta) + lam * hard * A / 2))
    torch.testing.assert_close(detached[1], torch.sin(phi) * m1 / torch.sin(theta))
    torch.testing.assert_close(straight[1], torch.ones_like(c))


def test_gradients_are_the_closed_form_of_the_spec():
    """dX and dW from q, psi' and the two projections, written out without autograd."""
    x, w, y = make_batch(seed=3)
    s, k, alpha, n, c = 10.0, 0.4, 0.15, 6, 5
    config = {"margin": {"kind": "dbm", "k": k, "tau": 1.0}, "gate": "positives", "scale": s, "label_smoothing": alpha}
    config["prior"] = {"kind": "balanced_softmax", "tau": 1.0}
    out, dx, dw = loss_and_grads(x, w, y, config, COUNTS)
    counts = torch.tensor(COUNTS, dtype=F64)
    A = (k * counts.min() / counts)[y]
    cos = cosines(x, w)
    c_y = cos.gather(1, y[:, None])[:, 0]
    theta = torch.arccos(c_y)
    phi = theta + A * (1 + (1 - c_y) / 2)
    z = s * cos
    z[torch.arange(n), y] = s * torch.cos(phi)
    z = z + torch.log(counts / counts.sum())
    onehot = F.one_hot(y, c).to(F64)
    q = torch.softmax(z, 1) - (1 - alpha) * onehot - alpha / c
    g = s * q / n
    g[torch.arange(n), y] *= torch.sin(phi) * (1 / torch.sin(theta) + A / 2)
    xu, wu = unit_rows(x), unit_rows(w)
    torch.testing.assert_close(dx, (g @ wu - (g * cos).sum(1, keepdim=True) * xu) / x.norm(dim=1, keepdim=True))
    torch.testing.assert_close(dw, (g.T @ xu - (g * cos).sum(0)[:, None] * wu) / w.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("margin", FAMILIES, ids=lambda margin: margin["kind"])
def test_every_finite_input_gives_finite_gradients(margin):
    w = torch.tensor([[1.0, 0, 0], [-2, 0, 0], [0, 3, 0], [0, 0, 0], [1e-13, 0, 1e-14]], dtype=F64)
    x = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 0, 0], [1e-13, 0, 0], [1e4, 1, 0], [1, 1e-9, 0], [-1, 1e-8, 0]], dtype=F64)
    for scale in (1.0, 64.0):
        for target in range(5):
            gate = "positives" if margin["kind"] in GATED else "off"
            out, dx, dw = loss_and_grads(x, w, torch.full((7,), target), {"margin": margin, "gate": gate, "scale": scale}, COUNTS)
            assert all(torch.isfinite(t).all() for t in (out.loss, out.per_sample, dx, dw))


# ---- the paper's statements ----------------------------------------------------------------------------------------


def test_dbm_rarest_class_gets_k():  # eq. (6)
    _, A, B = margin_tables({"kind": "dbm", "k": 0.3, "tau": 1.0}, COUNTS, 5)
    assert A[4] == 0.3 and torch.equal(A, A.sort().values) and not B.any()
    torch.testing.assert_close(A, torch.tensor([0.3 * 5 / n for n in COUNTS], dtype=F64))
    _, flat, _ = margin_tables({"kind": "dbm", "k": 0.3, "tau": 0.0}, COUNTS, 5)
    assert (flat == 0.3).all()


def test_dbm_with_k_0_is_cosine_cross_entropy():
    x, w, y = make_batch()
    dbm = loss_and_grads(x, w, y, {"margin": {"kind": "dbm", "k": 0.0, "tau": 1.0}, "gate": "hard_positives"}, COUNTS)
    plain = loss_and_grads(x, w, y)
    torch.testing.assert_close(dbm[0].loss, plain[0].loss, rtol=1e-13, atol=0)
    for got, want in zip(dbm[1:], plain[1:]):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(plain[0].loss, F.cross_entropy(32 * cosines(x, w), y))


def test_difficulty_is_0_at_the_centre_and_1_opposite():  # eq. (7)
    config = complete({"margin": {"kind": "arc_face", "m": 0.3}, "gate": "positives"})
    at = lambda c: margin_cosine(torch.tensor([c], dtype=F64), torch.zeros(1), 1.0, torch.tensor([0.3], dtype=F64), torch.zeros(1, dtype=F64), config).item()
    assert at(1.0) == pytest.approx(math.cos(0.3), abs=1e-15)
    assert at(-1.0) == pytest.approx(math.cos(math.pi + 0.6), abs=1e-15)
    assert at(0.0) == pytest.approx(math.cos(math.pi / 2 + 0.45), abs=1e-15)


def test_hard_positives_alone_get_the_instance_margin():  # eqs. (8), (9)
    x, w, y = make_batch(n=40, seed=2)
    run = lambda gate: margin_loss(x, w, y, {"margin": {"kind": "arc_face", "m": 0.3}, "gate": gate, "reduction": "none"})
    off, all_, hard = run("off"), run("positives"), run("hard_positives")
    flag = hard.hard.bool()
    assert 5 < flag.sum() < 35
    assert torch.equal(flag, cosines(x, w).argmax(1) != y) and torch.equal(off.hard, hard.hard)
    assert torch.equal(hard.loss, torch.where(flag, all_.loss, off.loss))
    assert (all_.loss[flag] > off.loss[flag]).all()


def test_ldam_largest_margin_is_max_m():
    _, A, B = margin_tables({"kind": "ldam", "max_m": 0.5}, COUNTS, 5)
    assert B.max() == 0.5 == B[4] and not A.any()
    torch.testing.assert_close(B, torch.tensor([0.5 * (5 / n) ** 0.25 for n in COUNTS], dtype=F64))


def test_class_balanced_weight():  # eqs. (3), (10)
    raw = class_weights({"kind": "class_balanced", "beta": 0.9999}, COUNTS, 5)
    torch.testing.assert_close(raw, torch.tensor([(1 - 0.9999) / (1 - 0.9999**n) for n in COUNTS], dtype=F64), rtol=1e-10, atol=0)
    normal = class_weights({"kind": "class_balanced_normalized", "beta": 0.9999}, COUNTS, 5)
    assert normal.sum().item() == pytest.approx(5) and torch.allclose(normal / raw, (normal / raw)[0].expand(5))
    assert torch.equal(class_weights({"kind": "class_balanced", "beta": 0.0}, COUNTS, 5), torch.ones(5, dtype=F64))
    near_one = class_weights({"kind": "class_balanced", "beta": 1 - 1e-15}, COUNTS, 5)
    torch.testing.assert_close(near_one, 1 / torch.tensor(COUNTS, dtype=F64), rtol=1e-3, atol=0)


def test_balanced_softmax_prior():  # eqs. (4), (11)
    x, w, y = make_batch()
    bs = {"kind": "balanced_softmax", "tau": 1.0}
    value = lambda prior, counts=COUNTS: margin_loss(x, w, y, {"prior": prior}, counts).loss
    counts = torch.tensor(COUNTS, dtype=F64)
    e = counts * torch.exp(32 * cosines(x, w))
    torch.testing.assert_close(value(bs), -(e.gather(1, y[:, None])[:, 0] / e.sum(1)).log().mean())
    torch.testing.assert_close(value(bs), value(bs, [7 * n for n in COUNTS]))  # counts matter by their ratios
    torch.testing.assert_close(value(bs, [9] * 5), value({"kind": "none"}))  # a balanced set: nothing
    torch.testing.assert_close(value({"kind": "balanced_softmax", "tau": 0.0}), value({"kind": "none"}))
    torch.testing.assert_close(log_prior(bs, COUNTS, 5).exp().sum(), torch.tensor(1.0, dtype=F64))
    shifted = [math.log(n) + 1e4 for n in COUNTS]  # a common offset: nothing but rounding of the input
    torch.testing.assert_close(value({"kind": "log_prior", "values": shifted}), value(bs), rtol=1e-10, atol=0)


@pytest.mark.parametrize("s", [1.0, 32.0])
def test_families_by_their_own_formulas(s):  # Table 1
    x, w, y = make_batch(seed=5)
    theta, z = angle_at(x, w, y), s * cosines(x, w)
    onehot = F.one_hot(y, 5).to(F64)
    counts = torch.tensor(COUNTS, dtype=F64)[y]
    hard = (z.argmax(1) != y).to(F64)

    def check(margin, psi, counts=COUNTS, **options):
        logits = z * (1 - onehot) + s * psi[:, None] * onehot
        value = margin_loss(x, w, y, {"margin": margin, "scale": s, **options}, counts).loss
        torch.testing.assert_close(value, F.cross_entropy(logits, y))

    check({"kind": "cos_face", "m": 0.35}, torch.cos(theta) - 0.35)
    check({"kind": "arc_face", "m": 0.5}, torch.cos(theta + 0.5))
    check({"kind": "sphere_face", "m": 2.0}, torch.cos(2 * theta))
    k = (3 * theta / math.pi).floor()
    check({"kind": "sphere_face", "m": 3.0}, (-1.0) ** k * torch.cos(3 * theta) - 2 * k, angle="monotone")
    check({"kind": "combined", "m1": 1.1, "m2": 0.2, "m3": 0.3}, torch.cos(1.1 * theta + 0.2) - 0.3)
    check({"kind": "ldam", "max_m": 0.5}, torch.cos(theta) - 0.5 * (5 / counts) ** 0.25)
    m_c, d_i = 0.3 * 5 / counts, (1 - torch.cos(theta)) / 2
    check({"kind": "dbm", "k": 0.3, "tau": 1.0}, torch.cos(theta + m_c + m_c * d_i * hard), gate="hard_positives")


def test_monotone_decreases_and_is_continuous():
    config = complete({"margin": {"kind": "sphere_face", "m": 4.0}, "angle": "monotone"})
    theta = torch.linspace(0, math.pi, 4001, dtype=F64)
    zero = torch.zeros_like(theta)
    psi = margin_cosine(torch.cos(theta), zero, 4.0, zero, zero, config)
    step = psi[1:] - psi[:-1]
    assert (step <= 1e-12).all() and (step > -0.01).all()
    assert psi[0] == 1 and psi[-1].item() == pytest.approx(-7)


# ---- reductions, weights, ignored rows, smoothing ------------------------------------------------------------------


def test_reductions_are_consistent():
    x, w, y = make_batch()
    y[1] = -1
    sample = torch.tensor([1.0, 9.0, 0.5, 2.0, 0.0, 1.5], dtype=F64)
    beta = {"kind": "class_balanced", "beta": 0.99}
    run = lambda r: margin_loss(x, w, y, {"reduction": r, "ignore_index": -1, "class_weights": beta}, COUNTS, sample)
    none, total, mean, weighted = (run(r) for r in ("none", "sum", "mean", "weighted_mean"))
    omega = class_weights(beta, COUNTS, 5)[y.clamp_min(0)] * sample * (y != -1)
    assert none.loss[1] == 0 and torch.equal(none.loss.detach(), none.per_sample)
    torch.testing.assert_close(total.loss, none.loss.sum())
    torch.testing.assert_close(mean.loss, none.loss.sum() / 5)
    torch.testing.assert_close(weighted.loss, none.loss.sum() / omega.sum())
    for out in (total, mean, weighted):
        assert torch.equal(out.per_sample, none.per_sample)
    _, dx, dw = loss_and_grads(x, w, y, {"reduction": "sum", "ignore_index": -1}, COUNTS, sample)
    _, dx_none, dw_none = loss_and_grads(x, w, y, {"reduction": "none", "ignore_index": -1}, COUNTS, sample)
    torch.testing.assert_close(dx, dx_none)
    torch.testing.assert_close(dw, dw_none)


def test_sample_weights_multiply():
    x, w, y = make_batch()
    twice = margin_loss(torch.cat([x, x]), w, torch.cat([y, y]), {"reduction": "sum"}).loss
    torch.testing.assert_close(margin_loss(x, w, y, {"reduction": "sum"}, None, torch.full((6,), 2.0)).loss, twice)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_against_torch_cross_entropy(alpha, reduction):
    x, w, y = make_batch(n=9, seed=7)
    y[[2, 5]] = 255
    config = {"reduction": reduction, "label_smoothing": alpha, "ignore_index": 255, "scale": 12.0}
    torch_loss = F.cross_entropy(12 * cosines(x, w), y, reduction=reduction, label_smoothing=alpha, ignore_index=255)
    torch.testing.assert_close(margin_loss(x, w, y, config).loss, torch_loss)


def test_weighted_mean_is_torch_weighted_cross_entropy():
    x, w, y = make_batch(n=9, seed=8)
    y[4] = -100
    weight = torch.tensor([0.5, 1.0, 2.0, 0.0, 3.0], dtype=F64)
    config = {"class_weights": {"kind": "per_class", "weights": weight.tolist()}, "ignore_index": -100}
    z = 32 * cosines(x, w)
    for ours, theirs in (("weighted_mean", "mean"), ("sum", "sum"), ("none", "none")):
        value = margin_loss(x, w, y, {**config, "reduction": ours}).loss
        torch.testing.assert_close(value, F.cross_entropy(z, y, weight=weight, reduction=theirs))


def test_gradients_against_torch_cross_entropy():
    x, w, y = make_batch(seed=9)
    _, dx, dw = loss_and_grads(x, w, y, {"label_smoothing": 0.2})
    a, b = x.clone().requires_grad_(), w.clone().requires_grad_()
    F.cross_entropy(32 * F.normalize(a) @ F.normalize(b).T, y, label_smoothing=0.2).backward()
    torch.testing.assert_close(dx, a.grad)
    torch.testing.assert_close(dw, b.grad)


def test_smoothing_0_is_none_and_the_limit_of_small_ones():
    x, w, y = make_batch()
    plain, none, tiny = (margin_loss(x, w, y, c).loss for c in ({}, {"label_smoothing": 0.0}, {"label_smoothing": 1e-9}))
    assert torch.equal(plain, none) and plain != tiny
    torch.testing.assert_close(plain, tiny, rtol=1e-6, atol=1e-7)


def test_ignored_rows_are_as_if_absent_even_with_nan():
    x, w, y = make_batch()
    config = {"margin": {"kind": "dbm", "k": 0.3, "tau": 1.0}, "gate": "hard_positives", "ignore_index": -100}
    y[[1, 4]] = -100
    x[1], x[4] = float("nan"), float("inf")
    keep = torch.tensor([0, 2, 3, 5])
    out, dx, dw = loss_and_grads(x, w, y, config, COUNTS)
    short, dx_short, dw_short = loss_and_grads(x[keep], w, y[keep], config, COUNTS)
    assert torch.equal(out.loss, short.loss) and torch.equal(dw, dw_short) and torch.equal(dx[keep], dx_short)
    for row in (1, 4):
        assert not dx[row].any() and out.per_sample[row] == 0 and out.hard[row] == 0
        assert out.predicted[row] == IGNORED == 2**32 - 1 and out.target_cosine[row] == 0


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "weighted_mean"])
def test_no_valid_row_gives_0(reduction):
    x, w, y = make_batch()
    config = {"reduction": reduction, "ignore_index": -1, "label_smoothing": 0.1}
    for out, dx, dw in (
        loss_and_grads(x, w, torch.full((6,), -1), config),
        loss_and_grads(x[:0], w, y[:0], config),
    ):
        assert not out.loss.any() and not dx.any() and not dw.any() and torch.isfinite(out.loss).all()


def test_one_class_gives_0():
    x, w, _ = make_batch(c=1)
    for alpha in (0.0, 0.3):
        out, dx, dw = loss_and_grads(x, w, torch.zeros(6, dtype=torch.int64), {"margin": {"kind": "arc_face", "m": 0.5}, "label_smoothing": alpha})
        assert out.loss == 0 and not dx.any() and not dw.any() and not out.hard.any()


def test_lowest_index_wins_a_tie():
    w = torch.tensor([[0.0, 1], [2, 0], [1, 0], [4, 0]], dtype=F64)
    out = margin_loss(torch.tensor([[3.0, 0], [5, 0], [0, 0]], dtype=F64), w, torch.tensor([1, 2, 3]))
    assert out.predicted.tolist() == [1, 1, 0] and out.hard.tolist() == [0, 1, 1]


def test_the_difference_form_keeps_digits():
    """1 - p of 1e-30 and below: lse - z_y gives 0 there, softplus(delta) does not."""
    w = torch.eye(3, dtype=F64)
    x = torch.tensor([[1.0, 0.1, 0.0]], dtype=F64)
    c = x / x.norm()
    value = margin_loss(x, w, torch.tensor([0]), {"scale": 100.0}).loss.item()
    exact = math.exp(100 * (c[0, 1] - c[0, 0])) + math.exp(100 * (c[0, 2] - c[0, 0]))
    assert value == pytest.approx(exact, rel=1e-12) and value < 1e-38


@pytest.mark.parametrize(
    "config",
    [
        {"gate": "positives"},
        {"margin": {"kind": "ldam", "max_m": 0.5}, "gate": "hard_positives"},
        {"margin": {"kind": "combined", "m1": 1.2, "m2": 0.0, "m3": 0.1}, "gate": "positives"},
        {"margin": {"kind": "arc_face", "m": 0.5}, "target_gradient": "detach_difficulty"},
        {"angle": "monotone"},
        {"reduction": "average"},
        {"margins": {"kind": "none"}},
        {"margin": {"kind": "unknown"}},
    ],
)
def test_what_means_nothing_is_refused(config):
    x, w, y = make_batch()
    with pytest.raises(ValueError):
        margin_loss(x, w, y, config, COUNTS)


def test_missing_counts_and_bad_labels_are_refused():
    x, w, y = make_batch()
    for config in ({"margin": {"kind": "dbm", "k": 0.3, "tau": 1.0}}, {"prior": {"kind": "balanced_softmax", "tau": 1.0}}):
        for counts in (None, COUNTS[:4], [0] + COUNTS[1:]):
            with pytest.raises(ValueError):
                margin_loss(x, w, y, config, counts)
    for label in (5, -1):
        with pytest.raises(ValueError):
            margin_loss(x, w, y.index_fill(0, torch.tensor([0]), label))
