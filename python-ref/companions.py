"""The companion losses in PyTorch, row by row and class by class, as plainly as their papers write them.

- BCL: Zhu et al., "Balanced Contrastive Learning for Long-Tailed Visual Recognition" (CVPR 2022).
- NCL: Li et al., "Nested Collaborative Learning for Long-Tailed Visual Recognition" (CVPR 2022).
- GML: Suh and Seo, "Long-Tailed Recognition by Mutual Information Maximization between Latent Features and Ground-Truth
  Labels" (ICML 2023).

docs/companions.md says what is followed where paper and public code differ. The classification term is reference.py's.
It is meant for float64 and for reading: loops over anchors and classes, where the crate has one log-sum-exp.
"""

import torch
import torch.nn.functional as F

from reference import ClampCosine, complete, log_prior, lowest_argmax, margin_cosine, margin_loss, margin_tables, unit_rows

BCL = {"temperature": 0.1, "classification": 2.0, "contrastive": 0.6}
NCL = {"hard_classes": None, "hard": 1.0, "distillation": 0.6, "hard_distillation": 0.6, "margined_distillation": 0}
GML = {"temperature": 0.1, "distillation_temperature": 4.0, "classification": 1.0, "contrastive": 1.0, "distillation": 1.0}


# ---- BCL -----------------------------------------------------------------------------------------------------------


def bcl_contrastive(embeddings, centres, y, temperature):
    """Mean over anchors of -mean over positives of log(exp(z.p/t) / sum over classes of the class's mean of exp(z.v/t))."""
    points = torch.cat([unit_rows(embeddings), unit_rows(centres)])  # (2N + C, E)
    classes = y.tolist() * 2 + list(range(len(centres)))  # class of every point: two views, then class-complement
    losses = []
    for i in range(len(embeddings)):
        similarity = points @ points[i] / temperature
        members = {j: [k for k, c in enumerate(classes) if c == j and k != i] for j in range(len(centres))}
        # class-averaging: every class weighs as much as its average
        averages = [torch.logsumexp(similarity[m], 0) - torch.tensor(float(len(m))).double().log() for m in members.values()]
        denominator = torch.logsumexp(torch.stack(averages), 0)
        losses.append(-(similarity[members[classes[i]]] - denominator).mean())
    return torch.stack(losses).mean()


def bcl(x, w, embeddings, centres, y, counts, config=None, options=None):
    """(loss, classification, contrastive)."""
    o = {**BCL, **(options or {})}
    classification = margin_loss(x, w, y, config, counts).loss
    contrastive = bcl_contrastive(embeddings, centres, y, o["temperature"])
    return o["classification"] * classification + o["contrastive"] * contrastive, classification, contrastive


# ---- NCL -----------------------------------------------------------------------------------------------------------


def hard_set(raw, y, k):
    """The target and the k - 1 other classes of the largest raw cosine, of one row (C)."""
    others = sorted((j for j in range(len(raw)) if j != y), key=lambda j: -float(raw[j]))
    return [y] + others[: k - 1]


def kl(left, right):
    """KL of two log-probability vectors."""
    return (left.exp() * (left - right)).sum()


def ncl(experts, y, counts, config=None, options=None):
    """(loss, individual, hard, distillation, hard distillation) of experts [(x, w)]."""
    o = {**NCL, **(options or {})}
    config = complete(config or {})
    classes = len(experts[0][1])
    k = o["hard_classes"] or min(classes, max(2, classes * 3 // 10))
    m1, A, B = margin_tables(config["margin"], counts, classes)
    b = log_prior(config["prior"], counts, classes)
    cosines = [ClampCosine.apply(unit_rows(x) @ unit_rows(w).T) for x, w in experts]
    individual = [margin_loss(x, w, y, config, counts).loss for x, w in experts]
    sets = [hard_set(cosines[0].detach()[i], int(y[i]), k) for i in range(len(y))]

    hard = torch.zeros((), dtype=torch.float64)
    logits = []
    for c in cosines:
        flags = (lowest_argmax(c.detach()) != y).to(torch.int64)
        psi = margin_cosine(c[torch.arange(len(y)), y], flags, m1, A[y], B[y], config)
        for i, members in enumerate(sets):
            z = torch.stack([config["scale"] * (psi[i] if j == y[i] else c[i, j]) + b[j] for j in members])
            hard = hard + F.cross_entropy(z[None], torch.tensor([0])) / len(y)
        full = config["scale"] * c + b
        if o["margined_distillation"]:
            at_target = F.one_hot(y, classes).bool()
            full = torch.where(at_target, (config["scale"] * psi + b[y])[:, None], full)
        logits.append(full)

    pairs = [(e, f) for e in range(len(experts)) for f in range(len(experts)) if e != f]
    distillation = hard_distillation = torch.zeros((), dtype=torch.float64)
    for e, f in pairs:
        for i, members in enumerate(sets):
            full = [torch.log_softmax(logits[m][i], 0) for m in (e, f)]
            part = [torch.log_softmax(logits[m][i][members], 0) for m in (e, f)]
            distillation = distillation + kl(*full) / (len(pairs) * len(y))
            hard_distillation = hard_distillation + kl(*part) / (len(pairs) * len(y))

    loss = sum(individual) + o["hard"] * hard
    loss = loss + o["distillation"] * distillation + o["hard_distillation"] * hard_distillation
    return loss, torch.stack(individual), hard, distillation, hard_distillation


# ---- GML -----------------------------------------------------------------------------------------------------------


def gml_contrastive(similarity, y, key_labels, b, inverse_temperature, left_out=None):
    """Cross-entropy, with the prior b (C), of log S_ij = log mean over the keys k of class j of exp(q_i.k / t)."""
    losses = []
    for i in range(len(y)):
        log_s = {}
        for j in range(len(b)):
            keys = [k for k, c in enumerate(key_labels) if c == j and not (left_out is not None and left_out[i][k])]
            if keys:  # a class without a key has no likelihood
                log_s[j] = torch.log(torch.exp(similarity[i][keys] * inverse_temperature).mean()) + b[j]
        if int(y[i]) in log_s:
            losses.append(torch.logsumexp(torch.stack(list(log_s.values())), 0) - log_s[int(y[i])])
    return torch.stack(losses).mean() if losses else 0 * similarity.sum()


def gml(x, w, y, queries, keys, key_labels, counts, config=None, options=None, learned=None, teacher=None):
    """(loss, classification, contrastive, distillation or None).

    learned: None, or (log temperature, query ids, key ids).
    """
    o = {**GML, **(options or {})}
    full = complete(config or {})
    b = log_prior(full["prior"], counts, len(w))
    classification = margin_loss(x, w, y, config, counts).loss
    similarity = unit_rows(queries) @ unit_rows(keys).T
    if learned is None:
        contrastive = gml_contrastive(similarity, y, key_labels, b, 1 / o["temperature"])
    else:
        log_t, query_ids, key_ids = learned
        left_out = [[q == k for k in key_ids] for q in query_ids]
        inverse = torch.exp(-log_t)
        contrastive = gml_contrastive(similarity, y, key_labels, b, inverse.detach())
        contrastive = contrastive + gml_contrastive(similarity.detach(), y, key_labels, b, inverse, left_out)
    loss = o["classification"] * classification + o["contrastive"] * contrastive
    distillation = None
    if teacher is not None:
        t = o["distillation_temperature"]
        student = full["scale"] * (unit_rows(x) @ unit_rows(w).T)
        log_teacher, log_student = (F.log_softmax(z / t, dim=1) for z in (teacher.detach(), student))
        distillation = t**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
        loss = loss + o["distillation"] * distillation
    return loss, classification, contrastive, distillation
