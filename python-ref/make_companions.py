"""Makes tests/golden/companions.json: the companion losses in float64, terms and gradients of every input.

    python3 python-ref/make_companions.py            write the file
    python3 python-ref/make_companions.py --check    compare the file with what would be written

Inputs come as those of make_golden.py do: Python's own `random`, rounded to few digits.
"""

import platform
from pathlib import Path

import numpy
import torch

import companions
from make_golden import Draw, batch, command, differences, finite, long_tail
from reference import unit_rows

SEED = 20220719
PATH = Path(__file__).resolve().parent.parent / "tests" / "golden" / "companions.json"
COMMAND = "python3 python-ref/make_companions.py"

BS = {"scale": 32.0, "prior": {"kind": "balanced_softmax", "tau": 1.0}}
DBM = {**BS, "margin": {"kind": "dbm", "k": 0.3, "tau": 1.0}, "gate": "hard_positives"}
FORMS = {"bs": BS, "dbm": DBM}

# Which of a case's inputs are matrices with a gradient.
TRACKED = ("x", "w", "x2", "w2", "x3", "w3", "embeddings", "centres", "queries", "keys", "log_temperature")


def evaluate(case):
    """`expected` of a case, computed from what is in the JSON and nothing else."""
    t = {name: torch.tensor(case[name], dtype=torch.float64, requires_grad=True) for name in TRACKED if name in case}
    y, config, counts, options = torch.tensor(case["y"]), FORMS[case["form"]], case["counts"], case["options"]
    if case["method"] == "bcl":
        loss, *terms = companions.bcl(t["x"], t["w"], t["embeddings"], t["centres"], y, counts, config, options)
    elif case["method"] == "ncl":
        experts = [(t[x], t[w]) for x, w in (("x", "w"), ("x2", "w2"), ("x3", "w3")) if x in t]
        loss, individual, *terms = companions.ncl(experts, y, counts, config, options)
        terms = [individual.sum(), *terms]
    else:
        learned = (t["log_temperature"], case["query_ids"], case["key_ids"]) if "log_temperature" in t else None
        teacher = torch.tensor(case["teacher"], dtype=torch.float64) if "teacher" in case else None
        queries, keys = t["queries"], t["keys"]
        loss, *terms = companions.gml(
            t["x"], t["w"], y, queries, keys, case["key_labels"], counts, config, options, learned, teacher
        )
    gradients = torch.autograd.grad(loss, list(t.values()), allow_unused=True)
    zero = lambda g, v: torch.zeros_like(v) if g is None else g
    return {
        "loss": loss.item(),
        "terms": [float(term) for term in terms if term is not None],
        "gradients": {name: zero(g, v).flatten().tolist() for (name, v), g in zip(t.items(), gradients)},
    }


def decisive(case):
    """No argmax, and no choice of hard classes, hangs on rounding."""
    for x, w in (("x", "w"), ("x2", "w2"), ("x3", "w3")):
        if x in case:
            to = lambda rows: unit_rows(torch.tensor(rows, dtype=torch.float64))
            c = (to(case[x]) @ to(case[w]).T).sort(dim=1).values
            if c.shape[1] > 1 and float((c[:, 1:] - c[:, :-1]).min()) <= 1e-9:
                return False
    return True


def made(name, method, form, counts, y, options=None, **inputs):
    case = {"name": name, "method": method, "form": form, "counts": counts, "options": options or {}, "y": y, **inputs}
    case["expected"] = evaluate(case)
    if not finite(case["expected"]):
        raise ValueError(f"{name}: not finite")
    if not decisive(case):
        raise ValueError(f"{name}: a choice hangs on rounding")
    return case


def bcl_cases(draw):
    out = []

    def add(name, n, c, d, e, options=None, y=None, embeddings=None, centres=None):
        counts = long_tail(draw, c)
        x, w, labels = batch(draw, n, c, d)
        y = labels if y is None else y
        views, middle = draw.matrix(2 * n, e), draw.matrix(c, e)
        views, middle = (embeddings(views, middle, y) if embeddings else views), (centres(middle) if centres else middle)
        for form in FORMS:
            out.append(made(f"bcl_{name}_{form}", "bcl", form, counts, y, options, x=x, w=w, embeddings=views, centres=middle))

    add("plain", 6, 4, 5, 3)
    add("options", 5, 3, 4, 4, {"temperature": 0.07, "classification": 1.0, "contrastive": 0.35})
    add("one_row", 1, 5, 3, 2)
    add("one_class", 3, 1, 2, 3)
    add("all_alike", 4, 2, 3, 3, y=[1, 1, 1, 1])
    add("duplicates", 4, 3, 3, 3, y=[0, 0, 1, 2], embeddings=lambda v, c, y: [v[0]] * 4 + v[4:])
    add("on_the_centre", 4, 3, 3, 3, embeddings=lambda v, c, y: [c[j] for j in y * 2])
    add("opposite", 3, 3, 3, 2, embeddings=lambda v, c, y: [[-100 * k for k in c[j]] for j in y * 2])
    add("outliers", 6, 4, 3, 3, {"temperature": 0.01},
        embeddings=lambda v, c, y: [[10.0 ** (i - 6) * k for k in row] for i, row in enumerate(v)],
        centres=lambda c: [[1000 * k for k in row] for row in c])  # fmt: skip
    return out


def ncl_cases(draw):
    out = []

    def add(name, experts, n, c, d, options=None, y=None):
        counts = long_tail(draw, c)
        for _ in range(100):
            inputs, labels = {}, None
            for e in range(experts):
                x, w, drawn = batch(draw, n, c, d + e)
                labels = (y or drawn) if labels is None else labels
                suffix = "" if e == 0 else str(e + 1)
                inputs[f"x{suffix}"], inputs[f"w{suffix}"] = x, w
            if decisive(inputs):
                break
        for form in FORMS:
            out.append(made(f"ncl_{name}_{form}", "ncl", form, counts, labels, options, **inputs))

    add("plain", 2, 6, 10, 4)
    add("three", 3, 5, 7, 3)
    add("one_expert", 1, 5, 8, 3)
    add("options", 2, 4, 6, 3, {"hard_classes": 4, "hard": 0.5, "distillation": 1.2, "hard_distillation": 0.3})
    add("every_class_hard", 2, 4, 5, 3, {"hard_classes": 5})
    add("target_alone", 2, 4, 5, 3, {"hard_classes": 1})
    add("two_classes", 2, 3, 2, 3)
    add("one_class", 2, 3, 1, 3)
    add("one_row", 3, 1, 6, 2)
    add("all_alike", 2, 4, 5, 3, y=[2, 2, 2, 2])
    add("margined", 3, 5, 7, 3, {"margined_distillation": 1})
    return out


def gml_cases(draw):
    out = []

    def add(name, n, c, d, e, m, options=None, learned=None, teacher=False, key_labels=None, y=None, keys=None):
        counts = long_tail(draw, c)
        x, w, labels = batch(draw, n, c, d)
        y = labels if y is None else y
        key_labels = [k % c for k in range(m)] if key_labels is None else key_labels
        inputs = {"x": x, "w": w, "queries": draw.matrix(n, e), "key_labels": key_labels}
        inputs["keys"] = keys(draw.matrix(m, e), inputs["queries"]) if keys else draw.matrix(m, e)
        if learned is not None:
            inputs["log_temperature"] = [learned]
            inputs["query_ids"] = list(range(n))
            inputs["key_ids"] = [k if k % 2 == 0 else 1000 + k for k in range(m)]
        if teacher:
            inputs["teacher"] = [[round(10 * v, 3) for v in row] for row in draw.matrix(n, c)]
        for form in FORMS:
            out.append(made(f"gml_{name}_{form}", "gml", form, counts, y, options, **inputs))

    add("plain", 5, 4, 4, 3, 9)
    add("teacher", 4, 3, 3, 3, 6, teacher=True)
    add("learned", 4, 3, 3, 3, 7, learned=-2.0)
    options = {"temperature": 0.3, "distillation_temperature": 2.0}
    add("options", 4, 3, 3, 4, 8, {**options, "classification": 0.7, "contrastive": 1.3, "distillation": 0.4}, teacher=True)
    add("everything", 4, 5, 3, 2, 9, learned=-2.302585, teacher=True)
    add("one_row_one_key", 1, 3, 2, 2, 1, key_labels=[0], y=[0])
    add("one_class", 3, 1, 2, 2, 3)
    add("class_without_key", 4, 4, 3, 3, 5, key_labels=[0, 0, 1, 1, 2], y=[0, 3, 2, 3])
    add("empty_slots", 4, 3, 3, 3, 6, key_labels=[0, -1, 1, 99, 2, 0])
    add("no_query_left", 2, 3, 3, 3, 2, key_labels=[1, 1], y=[0, 2])
    add("own_key_alone", 2, 2, 3, 3, 2, learned=-1.0, key_labels=[0, 1], y=[0, 1])
    add("key_is_query", 3, 3, 3, 3, 6, keys=lambda k, q: q + k[3:])
    add("cold", 4, 3, 3, 3, 6, {"temperature": 0.01}, keys=lambda k, q: [[1e-4 * v for v in row] for row in k])
    return out


def document():
    cases = [c for index, group in enumerate((bcl_cases, ncl_cases, gml_cases)) for c in group(Draw(SEED + index))]
    if len({c["name"] for c in cases}) != len(cases):
        raise ValueError("two cases have one name")
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}
    return {"made_by": COMMAND, "versions": versions, "seed": SEED, "cases": cases}


def compare(committed, fresh):
    left, right = ({c["name"]: c for c in doc["cases"]} for doc in (committed, fresh))
    if list(left) != list(right):
        return ["the cases' names differ"]
    return [d for name in left for d in differences(left[name], right[name], name, 1e-9)]


if __name__ == "__main__":
    command(__doc__, PATH, document, compare)
