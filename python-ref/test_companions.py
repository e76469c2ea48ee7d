"""Tests of companions.py and of its goldens: `python3 -m pytest python-ref`."""

import json

import pytest
import torch
import torch.nn.functional as F

import companions
import make_companions
from make_companions import BS, DBM
from reference import margin_loss, unit_rows

F64 = torch.float64
COUNTS = [500, 120, 31, 8, 5]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def labels(n, c=5, seed=0):
    return torch.randint(c, (n,), generator=torch.Generator().manual_seed(seed))


def experts(count, n=4, c=5, d=3):
    return [(normal(n, d, seed=2 * e), normal(c, d, seed=2 * e + 1)) for e in range(count)]


def close(left, right, tolerance=1e-12):
    assert abs(float(left) - float(right)) <= tolerance * max(1.0, abs(float(right)))


# ---- goldens -------------------------------------------------------------------------------------------------------


def test_committed_goldens_are_what_make_companions_makes():
    committed, fresh = json.loads(make_companions.PATH.read_text()), make_companions.document()
    assert make_companions.compare(committed, fresh) == []
    assert committed["seed"] == fresh["seed"] and committed["made_by"] == fresh["made_by"]
    fresh["cases"][3]["expected"]["gradients"]["centres"][1] += 1e-5
    assert len(make_companions.compare(committed, fresh)) == 1


def test_goldens_hold_every_method_in_both_forms():
    cases = json.loads(make_companions.PATH.read_text())["cases"]
    kinds = {(c["method"], c["form"]) for c in cases}
    assert kinds == {(m, f) for m in ("bcl", "ncl", "gml") for f in ("bs", "dbm")}
    of = {c["name"]: c["expected"]["loss"] for c in cases}
    assert sum(of[name] != of[name[:-2] + "dbm"] for name in of if name.endswith("_bs")) >= 20


# ---- gradients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [BS, DBM])
def test_gradcheck(config):
    y = torch.tensor([0, 4, 2, 4])
    config = {**config, "scale": 8.0}
    tracked = lambda *tensors: tuple(t.clone().requires_grad_() for t in tensors)
    bcl = lambda *t: companions.bcl(*t, y, COUNTS, config)[0]
    assert torch.autograd.gradcheck(bcl, tracked(normal(4, 3), normal(5, 3, seed=1), normal(8, 2, seed=2), normal(5, 2, seed=3)))
    ncl = lambda *t: companions.ncl([t[:2], t[2:]], y, COUNTS, config, {"hard_classes": 3})[0]
    assert torch.autograd.gradcheck(ncl, tracked(*experts(2)[0], *experts(2)[1]))
    teacher, key_labels = 10 * normal(4, 5, seed=9), [0, 1, 2, 4, 4, 2]
    gml = lambda *t: companions.gml(*t[:2], y, *t[2:], key_labels, COUNTS, config, teacher=teacher)[0]
    assert torch.autograd.gradcheck(gml, tracked(normal(4, 3), normal(5, 3, seed=1), normal(4, 2, seed=2), normal(6, 2, seed=3)))


# ---- BCL -----------------------------------------------------------------------------------------------------------


def test_bcl_with_every_class_once_is_a_supervised_contrastive_loss_with_weights():
    # One sample a class: 2 views and a centre. The own class keeps 2 of its 3, so a class counts 3 and the own 2.
    n, t = 5, 0.1
    z, c = unit_rows(normal(2 * n, 3)), unit_rows(normal(n, 3, seed=1))
    y = torch.arange(n)
    points, classes = torch.cat([z, c]), torch.cat([y, y, y])
    expected = 0
    for i in range(2 * n):
        e = torch.exp(points @ z[i] / t)
        own = (classes == y[i % n]) & (torch.arange(3 * n) != i)
        denominator = e[classes != y[i % n]].sum() / 3 + e[own].sum() / 2
        expected -= torch.log(e[own] / denominator).mean() / (2 * n)
    close(companions.bcl_contrastive(z, c, y, t), expected)


def test_bcl_where_everything_is_one_point_is_the_log_of_the_number_of_classes():
    point = normal(1, 3)
    value = companions.bcl_contrastive(point.repeat(8, 1), point.repeat(5, 1), labels(4), 0.1)
    close(value, torch.tensor(5.0).double().log())


def test_bcl_takes_a_class_by_its_average():
    # Points of a class all at its centre: a class's average is that point's, however many samples the class has.
    centres = normal(3, 4)
    total = lambda y: companions.bcl_contrastive(centres[torch.tensor(y * 2)], centres, torch.tensor(y), 0.5) * len(y)
    close(total([0, 1, 1, 1]), total([0]) + 3 * total([1]))


# ---- NCL -----------------------------------------------------------------------------------------------------------


def test_ncl_of_one_expert_has_no_distillation():
    loss, individual, hard, *distillation = companions.ncl(experts(1), labels(4), COUNTS, DBM)
    assert [float(d) for d in distillation] == [0.0, 0.0]
    close(loss, individual.sum() + hard)


@pytest.mark.parametrize("config", [BS, DBM])
def test_ncl_with_every_class_hard_is_the_full_form_twice(config):
    both = experts(3)
    _, individual, hard, full, part = companions.ncl(both, labels(4), COUNTS, config, {"hard_classes": 5})
    close(hard, individual.sum(), 1e-10)
    close(part, full)
    for (x, w), value in zip(both, individual):
        close(value, margin_loss(x, w, labels(4), config, COUNTS).loss)


def test_ncl_of_equal_experts_has_no_distillation():
    expert = experts(1)[0]
    _, _, _, full, part = companions.ncl([expert, expert], labels(4), COUNTS, BS)
    assert float(full) == 0.0 and float(part) == 0.0


def test_hard_set_keeps_the_target_and_takes_the_largest_others():
    raw = torch.tensor([0.9, -0.5, 0.3, 0.8, 0.1])
    assert companions.hard_set(raw, 1, 3) == [1, 0, 3]
    assert companions.hard_set(raw, 0, 3) == [0, 3, 2]
    assert companions.hard_set(raw, 4, 1) == [4]


# ---- GML -----------------------------------------------------------------------------------------------------------


def test_gml_with_a_key_a_class_is_a_softmax_over_prototypes():
    q, k, y, t = normal(4, 3), normal(5, 3, seed=1), labels(4), 0.2
    b = torch.log(torch.tensor(COUNTS, dtype=F64) / sum(COUNTS))
    cosines = unit_rows(q) @ unit_rows(k).T
    close(companions.gml_contrastive(cosines, y, list(range(5)), b, 1 / t), F.cross_entropy(cosines / t + b, y))


def test_gml_does_not_see_a_key_twice():
    q, k, y = normal(4, 3), normal(5, 3, seed=1), labels(4)
    cosines, b = unit_rows(q) @ unit_rows(k).T, torch.zeros(5, dtype=F64)
    value = lambda columns: companions.gml_contrastive(cosines[:, columns], y, columns, b, 10.0)
    close(value([0, 1, 1, 1, 2, 3, 4]), value([0, 1, 2, 3, 4]))


def test_gml_of_a_teacher_that_the_student_is_distils_nothing():
    x, w, y = normal(4, 3), normal(5, 3, seed=1), labels(4)
    teacher = 32.0 * (unit_rows(x) @ unit_rows(w).T)
    result = companions.gml(x, w, y, normal(4, 2), normal(5, 2, seed=3), [0, 1, 2, 3, 4], COUNTS, BS, teacher=teacher)
    close(result[3], 0.0)


def test_gml_learns_the_temperature_by_its_own_term_alone():
    x, w, y = normal(4, 3), normal(5, 3, seed=1), labels(4)
    q, k = normal(4, 2).requires_grad_(), normal(6, 2, seed=3).requires_grad_()
    log_t = torch.tensor(-1.0, dtype=F64, requires_grad=True)
    value = lambda learned, o=None: companions.gml(x, w, y, q, k, [0, 1, 2, 3, 4, 4], COUNTS, BS, o, learned)[2]
    learned = value((log_t, list(range(4)), list(range(6))))
    fixed = value(None, {"temperature": float(torch.exp(log_t))})
    for left, right in zip(torch.autograd.grad(learned, (q, k), retain_graph=True), torch.autograd.grad(fixed, (q, k))):
        assert torch.allclose(left, right, rtol=1e-12)
    assert float(torch.autograd.grad(learned, log_t)[0].abs()) > 1e-3
