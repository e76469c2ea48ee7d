"""Writes tests/golden/cases.json: losses, gradients and what else a call gives, from reference.py in float64.

    python3 python-ref/make_golden.py            write the file
    python3 python-ref/make_golden.py --check    compare the file with what would be written

Inputs come from Python's own `random` (whose `random()` is the same in every version) rounded to few digits, so that only the
last bits of `expected` depend on the versions of torch and libm. README.md says what the cases cover.
"""

import argparse
import itertools
import json
import math
import platform
import random
import sys
from pathlib import Path

import numpy
import torch

from reference import CLAMPED, complete, loss_and_grads, margin_tables, unit_rows

SEED = 20250112477
PATH = Path(__file__).resolve().parent.parent / "tests" / "golden" / "cases.json"
COMMAND = "python3 python-ref/make_golden.py"

# ---- random inputs -------------------------------------------------------------------------------------------------


class Draw(random.Random):
    """Only `random()` is used: its sequence for a seed is promised by Python."""

    def normal(self, digits=4):
        radius = math.sqrt(-2 * math.log(1 - self.random()))
        return round(radius * math.cos(2 * math.pi * self.random()), digits)

    def below(self, n):
        return int(self.random() * n)

    def pick(self, values):
        return values[self.below(len(values))]

    def matrix(self, rows, cols, digits=4):
        return [[self.normal(digits) for _ in range(cols)] for _ in range(rows)]

    def spread(self, low, high, digits=3):
        return round(low + (high - low) * self.random(), digits)


def long_tail(draw, classes):
    """Counts of a long-tailed set, in no order."""
    counts = [max(1, round(400 * 50 ** (-j / max(classes - 1, 1)))) for j in range(classes)]
    return [counts.pop(draw.below(len(counts))) for _ in range(classes)]


def batch(draw, n, classes, d, spread=0.5):
    """Centres, labels, and rows that are easy (near their centre), hard (near another) or anywhere, in turn."""
    w = draw.matrix(classes, d)
    y = [draw.below(classes) for _ in range(n)]
    x = []
    for i in range(n):
        noise = draw.matrix(1, d)[0]
        near = {0: y[i], 1: draw.below(classes), 2: None}[i % 3]
        if near is None:
            x.append(noise)
        else:
            x.append([round(2 * w[near][k] + spread * noise[k], 4) for k in range(d)])
    return x, w, y


# ---- one case ------------------------------------------------------------------------------------------------------


def flat(rows):
    return [float(v) for row in rows for v in row]


def evaluate(case):
    """`expected` of a case, computed from what is in the JSON and nothing else."""
    n, c, d = case["n"], case["c"], case["d"]
    tensor = lambda values, *shape: torch.tensor(values, dtype=torch.float64).reshape(shape)
    weights, margins = case["sample_weights"], case["row_margins"]
    out, dx, dw, *d_margins = loss_and_grads(
        tensor(case["x"], n, d),
        tensor(case["w"], c, d),
        torch.tensor(case["y"], dtype=torch.int64),
        case["config"],
        case["counts"],
        None if weights is None else tensor(weights, n),
        case["upstream"],
        None if margins is None else tensor(margins, n, 2),
    )
    return {
        "loss": out.loss.tolist(),
        "per_sample": out.per_sample.tolist(),
        "predicted": out.predicted.tolist(),
        "hard": out.hard.tolist(),
        "target_cosine": out.target_cosine.tolist(),
        "dx": dx.flatten().tolist(),
        "dw": dw.flatten().tolist(),
        "d_margins": d_margins[0].flatten().tolist() if d_margins else None,
    }


def decisive(case):
    """No argmax and no floor(phi / pi) of the case hangs on rounding."""
    n, c, d, config = case["n"], case["c"], case["d"], complete(case["config"], case["row_margins"] is not None)
    x = torch.tensor(case["x"], dtype=torch.float64).reshape(n, d)
    w = torch.tensor(case["w"], dtype=torch.float64).reshape(c, d)
    cosines = (unit_rows(x) @ unit_rows(w).T).clamp(-1, 1)
    m1, A, _ = margin_tables(config["margin"], case["counts"], c)
    for i, y in enumerate(case["y"]):
        if y == config["ignore_index"]:
            continue
        top = sorted(cosines[i].tolist(), reverse=True)
        if c > 1 and top[0] - top[1] <= 1e-9:
            exact = sum(v == 0 for v in x[i].tolist()) >= d - 1 or "tie" in case["name"] or "zero" in case["name"]
            if not (exact and top[0] == top[1]):
                return False
        if config["angle"] != "wrap":
            hard = float(case["expected"]["hard"][i])
            gate = {"off": 0.0, "positives": 1.0, "hard_positives": hard}[config["gate"]]
            c_y = float(cosines[i][y])
            phi = m1 * math.acos(c_y) + float(A[y]) * (1 + config["instance_strength"] * gate * (1 - c_y) / 2)
            phi += case["row_margins"][2 * i] if case["row_margins"] is not None else 0.0
            turns = phi / math.pi
            if config["angle"] in ("monotone", "linear") and round(turns) != 0 and abs(turns - round(turns)) <= 1e-9:
                return False
            if config["angle"] == "easy" and abs(c_y) <= 1e-9:
                return False
            if config["angle"] == "clamp" and min(abs(phi - CLAMPED), abs(phi - math.pi + CLAMPED)) <= 1e-9:
                return False
    return True


def finite(value):
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def case(name, x, w, y, config, counts=None, sample_weights=None, upstream=None, row_margins=None):
    n, c, d = len(x), len(w), len(w[0])
    full = complete(config, row_margins is not None)
    if upstream is None:
        upstream = 1.0 if full["reduction"] != "none" else [1.0] * n
    made = {
        "name": name,
        "n": n,
        "c": c,
        "d": d,
        "config": full,
        "counts": counts if counts is not None else [1] * c,
        "x": flat(x),
        "w": flat(w),
        "y": list(y),
        "sample_weights": sample_weights,
        "row_margins": None if row_margins is None else flat(row_margins),
        "upstream": upstream,
    }
    made["expected"] = evaluate(made)
    if not finite(made):
        raise ValueError(f"{name}: not finite")
    if not decisive(made):
        raise ValueError(f"{name}: a decision hangs on rounding")
    return made


# ---- pairwise cover ------------------------------------------------------------------------------------------------

FACTORS = {
    "margin": ["none", "sphere_face", "cos_face", "arc_face", "ldam", "dbm", "combined", "per_class"],
    "gate": ["off", "positives", "hard_positives"],
    "target_gradient": ["exact", "detach_difficulty", "straight_through"],
    "angle": ["wrap", "monotone", "linear", "easy", "clamp"],
    "row_loss": ["cross_entropy", "focal", "poly_1", "generalized"],
    "row_margins": [False, True],
    "prior": ["none", "balanced_softmax", "log_prior"],
    "class_weights": ["none", "class_balanced", "class_balanced_normalized", "per_class"],
    "reduction": ["none", "sum", "mean", "weighted_mean"],
    "label_smoothing": [0.0, 0.1],
    "ignore_index": [None, -100, 1],
    "sample_weights": [False, True],
    "scale": [1.0, 16.0, 32.0],
}
NAMES = list(FACTORS)


def meaningful(partial):
    """False where the options that `partial` has mean nothing together, whatever the rest."""
    margin, gate = partial.get("margin"), partial.get("gate")
    if gate not in (None, "off") and margin in ("none", "sphere_face", "cos_face", "ldam"):
        return False
    if partial.get("target_gradient") == "detach_difficulty":
        if gate == "off" or margin in ("none", "sphere_face", "cos_face", "ldam"):
            return False
    angle, smoothing = partial.get("angle"), partial.get("label_smoothing")
    if angle == "linear" and margin == "sphere_face":
        return False
    if partial.get("row_loss") not in (None, "cross_entropy") and smoothing not in (None, 0.0):
        return False
    return not (angle not in (None, "wrap") and margin in ("none", "cos_face", "ldam") and partial.get("row_margins") is False)


def pairs_of(choice):
    return {((a, choice[a]), (b, choice[b])) for a, b in itertools.combinations(NAMES, 2)}


def all_pairs():
    return {
        ((a, u), (b, v))
        for a, b in itertools.combinations(NAMES, 2)
        for u in FACTORS[a]
        for v in FACTORS[b]
        if meaningful({a: u, b: v})
    }


def cover(draw):
    """Choices of every factor such that every meaningful pair of values appears: greedy, the best of some random candidates."""
    todo = all_pairs()
    key = lambda pair: [(name, FACTORS[name].index(value)) for name, value in pair]
    chosen = []
    while todo:
        seed = dict(min(todo, key=key))
        best, gain = None, -1
        for _ in range(60):
            candidate = {name: seed.get(name, draw.pick(FACTORS[name])) for name in NAMES}
            if meaningful(candidate):
                new = len(pairs_of(candidate) & todo)
                if new > gain:
                    best, gain = candidate, new
        if best is not None:
            chosen.append(best)
            todo -= pairs_of(best)
    return chosen


def margin_of(draw, kind, classes, angle):
    factors = [1.0, 1.2, 1.5] if angle != "linear" else [1.0]
    return {
        "none": lambda: {"kind": "none"},
        "sphere_face": lambda: {"kind": "sphere_face", "m": draw.pick([1.35, 2.0, 4.0])},
        "cos_face": lambda: {"kind": "cos_face", "m": 0.35},
        "arc_face": lambda: {"kind": "arc_face", "m": draw.pick([0.3, 0.5, 1.0])},
        "ldam": lambda: {"kind": "ldam", "max_m": 0.5},
        "dbm": lambda: {"kind": "dbm", "k": draw.pick([0.1, 0.3, 0.8]), "tau": draw.pick([1.0, 0.5, 0.0])},
        "combined": lambda: {"kind": "combined", "m1": draw.pick(factors), "m2": 0.3, "m3": 0.2},
        "per_class": lambda: {
            "kind": "per_class",
            "m1": draw.pick(factors),
            "angular": [0.25] + [draw.spread(-0.4, 0.9) for _ in range(classes - 1)],
            "cosine": [draw.spread(-0.2, 0.5) for _ in range(classes)],
        },
    }[kind]()


def covered_case(draw, index, choice):
    while True:
        n, classes, d = 4 + draw.below(6), 2 + draw.below(9), 2 + draw.below(7)
        x, w, y = batch(draw, n, classes, d)
        prior = {
            "none": {"kind": "none"},
            "balanced_softmax": {"kind": "balanced_softmax", "tau": draw.pick([1.0, 0.6, 1.5])},
            "log_prior": {"kind": "log_prior", "values": [draw.spread(-3, 3) for _ in range(classes)]},
        }[choice["prior"]]
        weights = {
            "none": {"kind": "none"},
            "class_balanced": {"kind": "class_balanced", "beta": draw.pick([0.9999, 0.99, 0.0])},
            "class_balanced_normalized": {"kind": "class_balanced_normalized", "beta": draw.pick([0.9999, 0.9])},
            "per_class": {"kind": "per_class", "weights": [0.0] + [draw.spread(0.2, 3) for _ in range(classes - 1)]},
        }[choice["class_weights"]]
        config = {
            "scale": choice["scale"],
            "margin": margin_of(draw, choice["margin"], classes, choice["angle"]),
            "gate": choice["gate"],
            "instance_strength": draw.pick([1.0, 0.5, 2.0]) if choice["gate"] != "off" else 1.0,
            "prior": prior,
            "class_weights": weights,
            "angle": choice["angle"],
            "target_gradient": choice["target_gradient"],
            "row_loss": {
                "cross_entropy": {"kind": "cross_entropy"},
                "focal": {"kind": "focal", "gamma": draw.pick([2.0, 0.5, 5.0])},
                "poly_1": {"kind": "poly_1", "epsilon": draw.pick([2.0, -1.0])},
                "generalized": {"kind": "generalized", "q": draw.pick([0.7, 0.3, 1.0])},
            }[choice["row_loss"]],
            "reduction": choice["reduction"],
            "ignore_index": choice["ignore_index"],
            "label_smoothing": choice["label_smoothing"],
        }
        if choice["ignore_index"] is not None:
            y[1 + draw.below(n - 1)] = choice["ignore_index"]
        sample_weights = [draw.spread(0, 2) for _ in range(n)] if choice["sample_weights"] else None
        row_margins = [[draw.spread(-0.6, 1.2), draw.spread(-0.5, 0.9)] for _ in range(n)] if choice["row_margins"] else None
        if row_margins:
            row_margins[0][0] = 0.0  # an angle of 0 has a derivative as well
        scalar = draw.pick([1.0, 0.5, -2.0])
        upstream = [draw.spread(-1.5, 1.5) for _ in range(n)] if choice["reduction"] == "none" else scalar
        name = f"pair_{index:03}_{choice['margin']}_{choice['prior']}_{choice['class_weights']}_{choice['reduction']}"
        try:
            made = case(name, x, w, y, config, long_tail(draw, classes), sample_weights, upstream, row_margins)
        except ValueError:
            continue  # a decision that hangs on rounding: draw again
        if sum(1 for target in y if target != choice["ignore_index"]) >= 2:
            return made


# ---- named cases ---------------------------------------------------------------------------------------------------


def dbm(k=0.3, **options):
    return {"margin": {"kind": "dbm", "k": k, "tau": 1.0}, "gate": "hard_positives", **options}


FAMILIES = {
    "none": {"margin": {"kind": "none"}},
    "sphere_face": {"margin": {"kind": "sphere_face", "m": 4.0}, "angle": "monotone"},
    "cos_face": {"margin": {"kind": "cos_face", "m": 0.35}},
    "arc_face": {"margin": {"kind": "arc_face", "m": 0.5}},
    "ldam": {"margin": {"kind": "ldam", "max_m": 0.5}, "scale": 30.0},
    "dbm": dbm(),
    "combined": {"margin": {"kind": "combined", "m1": 1.0, "m2": 0.3, "m3": 0.2}},
    "combined_m1": {"margin": {"kind": "combined", "m1": 1.35, "m2": 0.0, "m3": 0.1}, "angle": "monotone"},
}


def presets(draw):
    x, w, y = batch(draw, 9, 7, 6)
    counts = [500, 232, 107, 50, 23, 10, 5]
    beta = {"kind": "class_balanced", "beta": 0.9999}
    yield case("preset_dbm_ce", x, w, y, dbm(0.1), counts)
    yield case("preset_dbm_cb", x, w, y, dbm(0.1, class_weights=beta), counts)
    normalized = {"kind": "class_balanced_normalized", "beta": 0.9999}
    yield case("preset_dbm_cb_normalized", x, w, y, dbm(0.1, class_weights=normalized), counts)
    yield case("preset_dbm_bs", x, w, y, dbm(0.1, prior={"kind": "balanced_softmax", "tau": 1.0}), counts)
    yield case("preset_dbm_bs_k0.3", x, w, y, dbm(0.3, prior={"kind": "balanced_softmax", "tau": 1.0}), counts)
    for name, options in FAMILIES.items():
        yield case(f"family_{name}", x, w, y, options, counts)
    per_class = {"kind": "per_class", "m1": 1.0, "angular": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, -0.1], "cosine": [0.1] * 7}
    yield case("family_per_class", x, w, y, {"margin": per_class, "gate": "positives"}, counts)
    large = {"kind": "log_prior", "values": [1e4 + v for v in (0.0, -1.0, 2.0, 0.5, -3.0, 1.0, 0.0)]}
    yield case("log_prior_large_common_offset", x, w, y, dbm(prior=large), counts)


def at_angle(theta, d=3, length=1.0):
    """A row at `theta` to the first axis, in the plane of the first two."""
    return [length * math.cos(theta), length * math.sin(theta)] + [0.0] * (d - 2)


def poles(draw):
    """Rows at small angles to their centre and to its opposite; the centre lies on an axis, so its unit vector is exact."""
    angular = {
        "dbm": dbm(0.3, gate="positives"),
        "dbm_hard": dbm(0.3),
        "arc_face": {"margin": {"kind": "arc_face", "m": 0.5}},
        "arc_face_monotone": {"margin": {"kind": "arc_face", "m": 0.5}, "angle": "monotone"},
        "arc_face_straight": {"margin": {"kind": "arc_face", "m": 0.5}, "target_gradient": "straight_through"},
        "dbm_detached": dbm(0.3, gate="positives", target_gradient="detach_difficulty"),
        "sphere_face": {"margin": {"kind": "sphere_face", "m": 4.0}, "angle": "monotone"},
        "cos_face": {"margin": {"kind": "cos_face", "m": 0.35}},
        "none": {"margin": {"kind": "none"}},
    }
    w = [[2.0, 0.0, 0.0], [0.3, 0.9, -0.4], [-0.2, 0.5, 1.1], [0.1, -0.7, 0.6]]
    counts = [3, 20, 100, 40]
    for name, options in angular.items():
        options = {**options, "scale": 16.0}
        x = [at_angle(1e-3), at_angle(-1e-3, length=2.0), at_angle(0.1), at_angle(math.pi - 1e-3), at_angle(math.pi - 0.1)]
        yield case(f"pole_1e-3_{name}", x, w, [0] * 5, options, counts)
        # Conditioned to about 1e-6 only: c = 1 - 5e-11 has one ulp of 1e-16.
        x = [at_angle(1e-5), at_angle(math.pi - 1e-5), at_angle(-1e-5), at_angle(2.0)]
        yield case(f"pole_1e-5_{name}", x, w, [0] * 4, options, counts)
        # Exactly at the centre, and exactly opposite unless phi would be a multiple of pi there.
        far = [-4.0, 0.0, 0.0] if name != "sphere_face" else [-4.0, 1.0, 0.0]
        x = [[1.0, 0.0, 0.0], far, [0.5, 0.0, 0.0]]
        yield case(f"pole_exact_{name}", x, w, [0] * 3, options, counts)
    # Off the axes: aligned but for rounding
    w = [[0.3, 0.9, -0.4], [0.6, -0.5, 0.2], [-1.0, 0.1, 0.3]]
    x = [[0.6, 1.8, -0.8], [0.6, -0.5, 0.21], [1.0, -0.1, -0.29]]
    yield case("pole_off_axis_cos_face", x, w, [0, 1, 2], {"margin": {"kind": "cos_face", "m": 0.2}}, [9, 3, 1])


def beyond_pi(draw):
    """phi beyond pi: rows opposite their centres, large margins, both angle ranges."""
    w = draw.matrix(5, 4)
    y = [0, 1, 2, 3, 4, 0]
    x = [[round(-v + 0.15 * draw.normal(), 4) for v in w[target]] for target in y]
    counts = [100, 40, 16, 6, 2]
    for angle in ("wrap", "monotone", "linear", "easy", "clamp"):
        yield case(f"beyond_pi_arc_face_{angle}", x, w, y, {"margin": {"kind": "arc_face", "m": 1.2}, "angle": angle}, counts)
        yield case(f"beyond_pi_dbm_{angle}", x, w, y, dbm(1.5, angle=angle), counts)
        if angle == "linear":
            continue
        for m in (2.0, 4.0):
            yield case(f"beyond_pi_sphere_face_m{m:g}_{angle}", x, w, y, {"margin": {"kind": "sphere_face", "m": m}, "angle": angle}, counts)
        both = {"kind": "combined", "m1": 2.5, "m2": 0.7, "m3": 0.1}
        yield case(f"beyond_pi_combined_{angle}", x, w, y, {"margin": both, "gate": "positives", "angle": angle}, counts)
    straight = {"margin": {"kind": "sphere_face", "m": 4.0}, "angle": "monotone", "target_gradient": "straight_through"}
    yield case("beyond_pi_sphere_face_straight", x, w, y, straight, counts)
    # phi below 0: a negative angular margin at a small angle; k = -1 in Monotone
    below = {"kind": "per_class", "m1": 1.0, "angular": [-0.5] * 5, "cosine": [0.0] * 5}
    near = [[round(v + 0.05 * draw.normal(), 4) for v in w[target]] for target in y]
    for angle in ("wrap", "monotone"):
        yield case(f"below_0_per_class_{angle}", near, w, y, {"margin": below, "angle": angle}, counts)


def ties(draw):
    """Exact ties: rows and centres on axes. The lowest index wins, so a label at a higher index is hard."""
    w = [[0.0, 3.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0], [4.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.5, 0.0, 0.0]]
    x = [[1.0, 0.0, 0.0, 0.0], [8.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.25, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, -2.0]]
    y = [1, 2, 0, 4, 0, 3]  # predicted 1, 1, 0, 0, 0, 0
    counts = [8, 4, 2, 16, 1]
    yield case("tie_dbm", x, w, y, dbm(), counts)
    yield case("tie_positives", x, w, y, dbm(gate="positives"), counts)
    yield case("tie_none", x, w, y, {}, counts)
    yield case("tie_bs", x, w, y, dbm(prior={"kind": "balanced_softmax", "tau": 1.0}), counts)
    same = [[1.0, 0.0, 0.0, 0.0]] * 5
    yield case("tie_all_classes_equal", x, same, y, dbm(label_smoothing=0.2), counts)


def ignored(draw):
    x, w, y = batch(draw, 6, 5, 4)
    counts = [50, 20, 9, 4, 2]
    beta = {"kind": "class_balanced", "beta": 0.99}
    for reduction in ("none", "sum", "mean", "weighted_mean"):
        options = dbm(reduction=reduction, ignore_index=-100, class_weights=beta)
        upstream = [1.0, -2.0, 0.5, 3.0, 1.5, 0.25] if reduction == "none" else 1.0
        some = [y[0], -100, y[2], -100, y[4], y[5]]
        weights = [1.0, 5.0, 0.0, 2.0, 0.5, 1.5]
        yield case(f"ignored_some_{reduction}", x, w, some, options, counts, weights, upstream)
        yield case(f"ignored_all_{reduction}", x, w, [-100] * 6, options, counts, None, upstream)
    yield case("ignored_is_a_class", x, w, [2, 0, 1, 2, 3, 4], dbm(ignore_index=2), counts)
    yield case("ignored_no_row", x, w, y, dbm(ignore_index=255), counts)
    yield case("weight_0_everywhere", x, w, y, dbm(reduction="weighted_mean"), counts, [0.0] * 6)


def shapes(draw):
    for n, classes, d in [(1, 2, 3), (1, 1, 4), (5, 1, 3), (5, 4, 1), (1, 13, 9), (9, 13, 8), (4, 13, 9), (2, 2, 1), (8, 3, 7)]:
        x, w, y = batch(draw, n, classes, d)
        counts = long_tail(draw, classes)
        if d == 1:  # every cosine is 1 or -1: ties by construction
            x = [[2.0], [-1.0], [0.5], [-4.0], [1.0]][:n]
            w = [[1.0], [-2.0], [4.0], [-0.25]][:classes]
        name = f"shape_n{n}_c{classes}_d{d}" + ("_tie" if d == 1 else "")
        yield case(f"{name}_dbm", x, w, y, dbm(), counts)
        yield case(f"{name}_smooth", x, w, y, {"label_smoothing": 0.3, "reduction": "sum"}, counts)
        arc = {"margin": {"kind": "arc_face", "m": 0.4}, "prior": {"kind": "balanced_softmax", "tau": 1.0}, "reduction": "none"}
        yield case(f"{name}_arc_bs", x, w, y, arc, counts)


def norms(draw):
    x, w, y = batch(draw, 6, 4, 5)
    counts = [60, 20, 6, 2]
    scaled = lambda rows, by: [[v * by for v in row] for row in rows]
    for name, by_x, by_w in [("x_1e4", 1e4, 1.0), ("w_1e4", 1.0, 1e4), ("both_1e4", 1e4, 1e4), ("x_1e-4", 1e-4, 1.0), ("both_1e-6", 1e-6, 1e-6)]:
        yield case(f"norm_{name}", scaled(x, by_x), scaled(w, by_w), y, dbm(), counts)
    zero = [[0.0] * 5 if i in (0, 3) else row for i, row in enumerate(x)]
    yield case("norm_zero_rows_x", zero, w, y, dbm(), counts)
    yield case("norm_zero_rows_x_none", zero, w, y, {"reduction": "none", "label_smoothing": 0.1}, counts)
    yield case("norm_zero_row_x_one_class_zero", [[0.0] * 5], w[:1], [0], dbm(), [3])
    # below the floor: divided by 1e-12, so the 'cosine' is short, and the gradient is not projected
    short = [[v * 1e-14 for v in row] if i < 2 else row for i, row in enumerate(x)]
    yield case("norm_below_floor_x", short, w, y, dbm(), counts)
    zero_w = [w[0], [0.0] * 5, w[2], w[3]]
    yield case("norm_zero_row_w", x, zero_w, [0, 2, 3, 0, 1, 2], dbm(), counts)


def scales(draw):
    # Saturated: rows beside their own centres, others far, s = 64: 1 - p of 1e-20 and below must keep its digits.
    w = [[1.0, 0.05, 0.0, 0.0], [0.0, 1.0, 0.05, 0.0], [0.05, 0.0, 1.0, 0.0], [-0.5, -0.5, -0.5, 0.1]]
    x = [[1.0, 0.1, 0.02, 0.0], [0.1, 2.0, 0.0, 0.3], [0.2, 0.01, 1.0, 0.1], [-1.0, -1.2, -0.9, 0.1], [1.0, 0.2, -0.1, 0.1]]
    counts = [100, 30, 10, 3]
    easy, wrong = [0, 1, 2, 3, 0], [3, 3, 0, 1, 2]
    for name, y in (("easy", easy), ("wrong", wrong)):
        yield case(f"scale_64_{name}", x, w, y, {"scale": 64.0}, counts)
        yield case(f"scale_64_{name}_dbm_bs", x, w, y, dbm(0.2, scale=64.0, prior={"kind": "balanced_softmax", "tau": 1.0}), counts)
        yield case(f"scale_64_{name}_arc_face", x, w, y, {"scale": 64.0, "margin": {"kind": "arc_face", "m": 0.5}, "reduction": "none"}, counts)
        yield case(f"scale_64_{name}_smooth", x, w, y, {"scale": 64.0, "label_smoothing": 0.1}, counts)
        yield case(f"scale_1_{name}_dbm", x, w, y, dbm(0.3, scale=1.0), counts)
    yield case("scale_1_none", x, w, easy, {"scale": 1.0}, counts)
    yield case("scale_1e-3_cos_face", x, w, easy, {"scale": 1e-3, "margin": {"kind": "cos_face", "m": 0.35}}, counts)


def cases():
    draw = Draw(SEED)
    made = [covered_case(draw, index, choice) for index, choice in enumerate(cover(draw))]
    for index, group in enumerate((presets, poles, beyond_pi, ties, ignored, shapes, norms, scales)):
        made.extend(group(Draw(SEED + 1 + index)))  # a seed of its own: a new case leaves the other groups alone
    if len({c["name"] for c in made}) != len(made):
        raise ValueError("two cases have one name")
    return made


# ---- the file ------------------------------------------------------------------------------------------------------


def document():
    return {
        "made_by": COMMAND,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__},
        "seed": SEED,
        "cases": cases(),
    }


def text(doc):
    """JSON with a case a line."""
    head = {key: value for key, value in doc.items() if key != "cases"}
    lines = [json.dumps(c, separators=(",", ":"), allow_nan=False) for c in doc["cases"]]
    return json.dumps(head, indent=1)[:-2] + ',\n "cases": [\n' + ",\n".join(lines) + "\n]}\n"


def differences(left, right, path="", rtol=1e-12, scale=None):
    """Where two documents differ: strings, integers and shapes exactly, floats to `rtol` of the largest in their list."""
    if isinstance(left, dict) and isinstance(right, dict):
        if set(left) != set(right):
            return [f"{path}: keys differ"]
        return [d for key in left for d in differences(left[key], right[key], f"{path}.{key}", rtol)]
    if isinstance(left, list) and isinstance(right, list):
        if len(left) != len(right):
            return [f"{path}: lengths {len(left)} and {len(right)}"]
        numbers = [abs(v) for v in left if isinstance(v, float)]
        scale = max(numbers, default=None)
        return [d for i, (a, b) in enumerate(zip(left, right)) for d in differences(a, b, f"{path}[{i}]", rtol, scale)]
    if isinstance(left, float) and isinstance(right, float):
        bound = rtol * max(abs(left), abs(right), scale or 0.0)
        return [] if abs(left - right) <= bound else [f"{path}: {left!r} and {right!r}"]
    return [] if type(left) is type(right) and left == right else [f"{path}: {left!r} and {right!r}"]


def compare(committed, made):
    """Differences of two documents' cases, each to what its conditioning allows."""
    left, right = ({c["name"]: c for c in doc["cases"]} for doc in (committed, made))
    if list(left) != list(right):
        return ["the cases' names differ"]
    return [d for name in left for d in differences(left[name], right[name], name, tolerance(left[name]))]


def tolerance(case):
    """Relative tolerance between two builds of torch: 1e-12, but an ulp of c = cos theta is ulp / theta^2 of psi'."""
    off_pole = [1 - abs(c) for c in case["expected"]["target_cosine"] if abs(c) != 1]
    return min(2e-5, max(1e-12, 8e-16 / min(off_pole, default=1.0)))


def command(description, path, document, compare):
    """What a script that makes a golden file does: writes it, or with --check compares it with what would be written."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare the committed file with what would be written")
    parser.add_argument("--out", type=Path, default=path)
    options = parser.parse_args()
    doc = document()
    if options.check:
        found = compare(json.loads(options.out.read_text()), doc)
        print("\n".join(found[:40]) or f"{len(doc['cases'])} cases agree")
        sys.exit(1 if found else 0)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text(doc))
    print(f"{len(doc['cases'])} cases, {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    command(__doc__, PATH, document, compare)
