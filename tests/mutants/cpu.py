#!/usr/bin/env python3
"""Changes the CPU path, the formulas, options and counts one expression at a time, and runs the tests: each change is to fail one of them.

    python3 tests/mutants/cpu.py [--record] [PART OF A NAME]

All mutants are compiled at once, into a copy of the crate under target/mutants where each stands behind a number that the environment chooses; so a run
is a build and some seconds a mutant. --record writes cpu.md.
"""

import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
COPY = ROOT / "target" / "mutants"
# Of its own: cargo takes the copy's packages for the crate's, and would put the one's tests in the other's place.
BUILT = ROOT / "target" / "mutants-build"
# In this order: the quick ones first. The tests of the library are the formulas' own.
SUITES = ["--lib", "golden", "errors", "row_margins", "users", "gradient", "candle", "metrics", "traps", "tiers", "sharded", "oracle"]

# (file, text that stands there once, with «what is changed|what it becomes»)
MUTANTS = [
    # ψ
    ("margin.rs", "HardPositives => «f64::from(u8::from(hard))|1.0»,"),
    ("margin.rs", "Positives => «1.0|0.0»,\n            InstanceGate::Hard"),
    ("margin.rs", "let difficulty = «(1.0 - cosine) / 2.0|(1.0 - cosine)»;"),
    ("margin.rs", "let difficulty = «(1.0 - cosine) / 2.0|(1.0 + cosine) / 2.0»;"),
    ("margin.rs", "let slope = «self.instance_strength * gate * angular|gate * angular»;"),
    ("margin.rs", "let a = «angular + slope * difficulty + alpha|angular + slope * difficulty»;"),
    ("margin.rs", "let a = «angular + slope * difficulty + alpha|angular + alpha»;"),
    ("margin.rs", "let a = «angular + slope * difficulty + alpha|angular + (slope + alpha) * difficulty»;"),
    ("margin.rs", "AngleRange::Easy && «cosine <= 0.0|cosine < 0.5»;"),
    ("margin.rs", "if «self.m1 == 1.0|true» && angular == 0.0 && alpha == 0.0"),
    ("margin.rs", "if self.m1 == 1.0 && «angular == 0.0|true» && alpha == 0.0"),
    ("margin.rs", "if self.m1 == 1.0 && angular == 0.0 && «alpha == 0.0|true»"),
    ("margin.rs", "if «self.m1 == 1.0 && angular == 0.0 && alpha == 0.0|false»"),
    ("margin.rs", "dalpha: «if easy { 0.0 } else { -sin_theta }|0.0» }"),
    ("margin.rs", "dalpha: if easy { 0.0 } else { «-sin_theta|-1.0» } }"),
    ("margin.rs", "psi: «cosine - additive|cosine», dpsi: 1.0"),
    ("margin.rs", "let phi = «self.m1 * cosine.acos() + a|cosine.acos() + a»;"),
    ("margin.rs", "AngleRange::Linear && «phi > PI|phi > 3.0»"),
    ("margin.rs", "(cosine - a * a.sin(), «1.0|1.01», "),
    ("margin.rs", "-(a.sin() + «a * a.cos()|a.cos()»))"),
    ("margin.rs", "if «k.rem_euclid(2.0) == 0.0|true» { 1.0 } else { -1.0 }, -2.0 * k"),
    ("margin.rs", "{ 1.0 } else { -1.0 }, «-2.0 * k|-k»)"),
    ("margin.rs", "AngleRange::Clamp if «phi < CLAMPED|false» =>"),
    ("margin.rs", "AngleRange::Clamp if «phi > PI - CLAMPED|false» =>"),
    ("margin.rs", "(PI - CLAMPED, «0.0|1.0», -CLAMPED.cos())"),
    ("margin.rs", "(self.m1 / «sin_theta.max(sin_floor)|sin_theta»), -sign * sin_phi)"),
    ("margin.rs", "(«self.m1 / sin_theta.max(sin_floor)|1.0 / sin_theta.max(sin_floor)»), -sign * sin_phi)"),
    ("margin.rs", "sin_theta.max(sin_floor)), «-sign * sin_phi|sign * sin_phi»)"),
    ("margin.rs", "by_cosine - by_angle * («slope / 2.0|slope»),"),
    ("margin.rs", "DetachDifficulty => «by_cosine|by_cosine - by_angle * (slope / 2.0)»,"),
    ("margin.rs", "StraightThrough => «1.0|by_cosine»,"),
    ("margin.rs", "psi: «value - additive|value», dpsi, dalpha"),
    # F
    ("row_loss.rs", "Focal { gamma } => {\n                let (nll_away, p) = softplus_and_sigmoid(«-delta|delta»);"),
    ("row_loss.rs", "if «gamma == 0.0|false» { 1.0 } else"),
    ("row_loss.rs", "power * («gamma * p * nll + away|away»))"),
    ("row_loss.rs", "(nll + «epsilon * away|epsilon», away"),
    ("row_loss.rs", "away * («1.0 + epsilon - epsilon * away|1.0 + epsilon»))"),
    ("row_loss.rs", "(-(-q * nll).exp_m1() / q, «power * away|away»)"),
    ("row_loss.rs", "let softplus = «x.max(0.0) + e.ln_1p()|(1.0 + x.exp()).ln()»;"),
    ("row_loss.rs", "if x >= 0.0 { 1.0 / (1.0 + e) } else { «e / (1.0 + e)|1.0 - 1.0 / (1.0 + e)» })"),
    # counts
    ("counts.rs", "«samples * (1.0 + 1e-12) + 1e-9|samples»).floor()"),
    ("counts.rs", "let steps = «classes.saturating_sub(1).max(1)|classes» as f64;"),
    ("counts.rs", "filter(|&n| «n > 0|n < u64::MAX»).min()"),
    ("counts.rs", "(«n as f64 / total|n as f64 / total * 1.001»).ln()"),
    ("counts.rs", "map(|&n| weight(«n.max(1)|n»))"),
    ("counts.rs", "(1.0 - beta) / «-(n as f64 * beta.ln()).exp_m1()|(1.0 - beta.powf(n as f64) * 0.99999)»;"),
    ("counts.rs", "let scale = «weights.len() as f64|1.0» / weights"),
    ("counts.rs", "self.power_of_rho(max_m, «-0.25|-0.5»)"),
    ("counts.rs", "self.power_of_rho(k, «-tau|-1.0»)"),
    ("counts.rs", "if «rho > 0.0|true» { factor"),
    ("counts.rs", "if !(imbalance_factor.is_finite() && «imbalance_factor >= 1.0|true»)"),
    # options
    ("options.rs", "«self.log_prior[class] <= OUT|self.log_prior[class] < OUT»"),
    ("builder.rs", "&& «counts.classes() != classes|false»"),
    ("builder.rs", "if !(«self.scale > 0.0|true» && self.scale <= LARGEST)"),
    ("builder.rs", "if !(self.scale > 0.0 && «self.scale <= LARGEST|true»)"),
    ("builder.rs", "InstanceGate::Off && «!self.has_class_margin()|false» {"),
    ("builder.rs", "if «self.instance_strength.is_some()|false» {"),
    ("builder.rs", "if «self.gradient == TargetGradient::DetachDifficulty|false» {"),
    ("builder.rs", "if self.angle_range.is_some() && «!on_angle|false» {"),
    ("builder.rs", "let on_angle = «self.row_margins|false»\n            || m1"),
    ("builder.rs", "if !«(0.0..1.0).contains(&self.label_smoothing)|(0.0..=1.0).contains(&self.label_smoothing)»"),
    ("builder.rs", "_ if «self.label_smoothing > 0.0|false» =>"),
    ("builder.rs", "AngleRange::Linear) && «m1 != 1.0|false» {"),
    ("builder.rs", "SphereFace { .. } => «AngleRange::Monotone|AngleRange::Wrap»,"),
    ("builder.rs", "let of = |log_p: f64| if «tau == 0.0|false» { 0.0 }"),
    ("builder.rs", "«(*value - largest).max(OUT)|*value - largest»)"),
    ("builder.rs", "«(*value - largest).max(OUT)|value.max(OUT)»)"),
    ("builder.rs", "if «self.label_smoothing > 0.0|false»\n            && let Some(class)"),
    ("builder.rs", "if «values.len() != self.classes|false» {"),
    ("builder.rs", "Margin::CosFace { m } => (1.0, all(0.0), all(«cosine(*m)?|*m»)),"),
    ("builder.rs", "«(low..=high).contains(&value)|(low..high).contains(&value)» {"),
    # the call's tensors
    ("problem.rs", "if «d != weight_d|false» {"),
    ("problem.rs", "if «c != classes.len()|false» {"),
    ("problem.rs", "if «margins.dims() != [n, 2]|false» {"),
    ("problem.rs", "let good = weight == 0.0 || «(LEAST_WEIGHT..=LARGEST).contains(&weight)|weight >= 0.0»;"),
    ("problem.rs", "let good = «alpha.abs() <= most_alpha|true» && beta"),
    ("problem.rs", "&& «beta.abs() <= most_beta|true»;"),
    ("problem.rs", "if «params.ignore_index == Some(label)|false» {"),
    ("problem.rs", "Reduction::Mean => «targets.rows.len() as f64|self.n as f64»,"),
    ("problem.rs", "if «self.denominator == 0.0|false» { 0.0 }"),
    ("problem.rs", "if «!upstream.is_finite()|false» {"),
    ("problem.rs", "«self.upstream * self.reduction_factor()|self.reduction_factor()»"),
    ("op.rs", "if margins.track_op() && «problem.n > 0|problem.n > 1» {"),
    ("op.rs", "«problem.upstream|1.0»)?);\n    }\n    Ok(output)"),
    ("op.rs", "let sum = states.iter().fold(«0.0|-0.0»,"),
    # CPU: loading
    ("cpu/load.rs", "if «classes > rows.len()|true» {"),
    ("cpu/load.rs", "for class in «0..classes|0..classes - 1» {\n        places"),
    ("cpu/load.rs", "if «!norms.iter().flatten().any(|norm| norm.long)|true» {"),
    ("cpu/load.rs", "if «known.long|false» {"),
    ("cpu/norm.rs", "if «T::SAFE_SQUARES.contains(&squares)|true» {"),
    ("cpu/norm.rs", "let short = «norm < SHORTEST|norm <= 0.0»;"),
    ("cpu/norm.rs", "projects: «!short|true», long"),
    ("cpu/norm.rs", "long: «norm > T::LONGEST|false», power"),
    ("cpu/norm.rs", "if MIDDLE.contains(&norm.inverse) || norm.inverse.is_nan() || «norm.inverse == 0.0|false» {"),
    ("cpu/norm.rs", "if «MIDDLE.contains(&norm.inverse)|true» || norm"),
    ("cpu/norm.rs", "if largest == 0.0 || «largest.is_infinite()|false» {"),
    ("cpu/norm.rs", "if «norm.long|false» { T::ONE }"),
    # statistics
    ("cpu/statistics.rs", "if «next_max == max|false» || next_max == f64::NEG_INFINITY {"),
    ("cpu/statistics.rs", "if next_max == max || «next_max == f64::NEG_INFINITY|false» {"),
    ("cpu/statistics.rs", "} else if «next_max > max|false» {"),
    ("cpu/statistics.rs", "if «best > self.best[i]|best >= self.best[i]» {"),
    ("cpu/statistics.rs", "if «!self.bounded|false» {"),
    ("cpu/statistics.rs", "if «self.params.label_smoothing > 0.0|true» {"),
    ("cpu/statistics.rs", "let c = if «c > high|false» { high }"),
    ("cpu/statistics.rs", "if «c < low|false» { low } else { c }"),
    ("cpu/statistics.rs", "if «!c_rest.is_empty()|false» {"),
    ("cpu/call.rs", "«largest.max(-smallest)|largest» < -X::Acc::LOWEST"),
    ("cpu/call.rs", "< «-X::Acc::LOWEST - 3.0|1e9»;"),
    # a row's end
    ("cpu/finish.rs", "additive: «params.additive[y] + target.beta|params.additive[y]» }"),
    ("cpu/finish.rs", "let hard = «predicted != target.class|false»;"),
    ("cpu/finish.rs", "params.scale * margin.psi + «params.log_prior[y]|0.0»;"),
    ("cpu/finish.rs", "+ («prior_sum - params.log_prior[y]|prior_sum»);"),
    ("cpu/finish.rs", "loss += «alpha|1.0» * (z_y"),
    ("cpu/finish.rs", "let loss = «target.weight * loss|loss»;"),
    ("cpu/finish.rs", "[by_psi * margin.dalpha, «-by_psi|by_psi»]"),
    ("cpu/finish.rs", "let by_psi = «target.weight * params.scale|params.scale» *"),
    # g, and its contraction
    ("cpu/gradient.rs", "«upstream[target.row]|1.0»);"),
    ("cpu/gradient.rs", "coefficient * state.slope * «rounding|1.0»));"),
    ("cpu/gradient.rs", "X::Acc::of(«coefficient * alpha / classes|0.0»)"),
    ("cpu/gradient.rs", "state.dpsi * («alpha * (1.0 - 1.0 / classes) - state.slope|-state.slope»)"),
    ("cpu/gradient.rs", "= («T::INFINITY|self.log_sum[i]», T::ZERO, T::ZERO);"),
    ("cpu/gradient.rs", "if «!c_rest.is_empty()|false» {"),
    ("cpu/gradient.rs", "row_dots[i] += «g * c|T::ZERO»;"),
    ("cpu/gradient.rs", "class_dot += «g * c|T::ZERO»;"),
    ("cpu/gradient.rs", "cosines[i] = «g * sigma|g»;"),
    ("cpu/gemm.rs", "if «norm.long|false» {\n            vector::scale"),
    ("cpu/gemm.rs", "product(sum, «*accumulate|true», g, tile.rows);"),
    ("cpu/gemm.rs", "product(dw, «accumulate|false», lhs, unit);"),
    ("cpu/gemm.rs", "&& «norm.projects|true»\n        {\n            let factor"),
    ("cpu/gemm.rs", "let factor = «class_dots[j] * T::of(norm.inverse)|class_dots[j]» * sigma(norm);"),
    ("cpu/contract.rs", "accumulate: «t > 0 || !first_range|t > 0»,"),
    ("cpu/contract.rs", "accumulate: «t > 0 || !first_range|!first_range»,"),
    ("cpu/contract.rs", "if «norm.projects|true» {\n                            for lane"),
    ("cpu/contract.rs", "«dot * scale|dot»);"),
    ("cpu/mod.rs", "&& «all.len() < self.n|false»"),
    ("cpu/mod.rs", "made = «plan.range == self.c|true»;"),
    ("cpu/mod.rs", "WeightSink::Sum(DW::as_acc_mut(dw).expect(\"half types sum in a second sweep\"), «index > 0|true»)"),
    ("cpu/mod.rs", "WeightSink::<DW>::Sum(sums, «index > 0|true»)"),
    ("cpu/mod.rs", "if «cosine.to_bits() != states[row].cosine.to_bits()|false» && !cosine"),
    ("cpu/mod.rs", "&states[«part * plan.part|0»..], upstream"),
    # bf16's own products
    ("cpu/pairs/mod.rs", "«rows.get(1).copied().unwrap_or_default()|rows.get(1).copied().unwrap_or(rows[0])»);"),
    ("cpu/pairs/mod.rs", "row_dots[i] += «g * c * class.length|g * c»;"),
    ("cpu/pairs/mod.rs", "class_dot += «g * c * length|g * c»;"),
    ("cpu/pairs/mod.rs", "if «g != rounded|false» {"),
    ("cpu/pairs/mod.rs", "if «norm.projects|true» {\n                widen"),
    ("cpu/pairs/mod.rs", "if «power != 1.0|false» {\n                weight"),
    ("cpu/pairs/mod.rs", "if «power != 1.0|false» {\n        out"),
    ("cpu/pairs/mod.rs", "if «*accumulate|true» { Store::Add }"),
    ("cpu/pairs/mod.rs", "&& «norms.iter().flatten().all(|norm| norm.power == 1.0)|true»"),
    # Shards
    ("cpu/call.rs", "self.params.log_prior[«self.class_of(class)|class»]"),
    ("cpu/call.rs", "self.first + self.index.map_or(row, |index| «index[row] as usize|row»)"),
    ("cpu/call.rs", "class.checked_sub(«self.first as u32|0»)?"),
    ("cpu/statistics.rs", "best_class: «class_of(self.best_class[i] as usize) as u32|self.best_class[i]»,"),
    ("cpu/statistics.rs", "self.total += «next.total|0.0»;"),
    ("cpu/statistics.rs", "if «next.best > self.best|next.best >= self.best» {"),
    ("cpu/statistics.rs", "if «next.target != f64::INFINITY|self.target == f64::INFINITY» {"),
    ("sharded/shard.rs", "let start = rank * each + «rank.min(more)|0»;"),
    ("sharded/shard.rs", "start..start + each + «usize::from(rank < more)|0»"),
    ("sharded/partial.rs", "if «part.classes.start != merged.classes.end|false» {"),
    ("sharded/partial.rs", "if «part.rows.len() != merged.rows.len()|false» {"),
    ("sharded/partial.rs", "if «all.classes != (0..classes)|false» {"),
    ("sharded/partial.rs", "rows[«target.row|target.row.min(0)»] = statistics"),
    ("sharded/loss.rs", "let merged = «Partial::merge(&parts)?|parts[0].clone()»;"),
    ("sharded/loss.rs", "&communicator.all_gather(&«merged|parts[0]».to_tensor()?, counts)?)"),
    ("sharded/loss.rs", "let start = counts[..«self.shard.rank()|0»].iter().sum();"),
    ("sharded/loss.rs", "if y < 0.0 { «ignored|0» } else"),
    ("sharded/loss.rs", "if params.ignore_index == Some(y) { «-1.0|0.0» } else"),
    ("sharded/loss.rs", "let first = «1 + usize::from(weights.is_some())|1»;"),
    ("sharded/reduce.rs", "for rank in «1|2»..parts.dims()[0]"),
    ("sharded/sample.rs", "let wanted = «(self.rate * range.len() as f64).ceil() as usize|0»;"),
    ("sharded/sample.rs", "(place + «before|0») as u32"),
    ("sharded/sample.rs", "step.wrapping_mul(«((call as u64) << 20)|0» + shard"),
    ("sharded/sparse.rs", "*v = «momentum * *v|*v» + (g"),
    ("sharded/sparse.rs", "(g + «decay * *w|0.0»)"),
    ("sharded/sparse.rs", "let decay = «1.0 - self.lr * self.weight_decay|1.0»;"),
    ("sharded/threads.rs", "given[«self.rank|0»].clone()"),
    ("sharded/threads.rs", "start += «count|0»;"),
    ("sharded/threads.rs", "while «state.arrived < meeting.size|false» {"),
    ("sharded/threads.rs", "while «state.round == round && state.failed.is_none()|false» {"),
    ("sharded/agreement.rs", "position(|words| «words[head + i] != first|false»)"),
    ("sharded/agreement.rs", "position(|words| «words[0] != 0|false»)"),
    ("sharded/checkpoint.rs", "(start + «shard.range().start * row|0») as u64;\n            with_bytes"),
    ("sharded/checkpoint.rs", "(offsets[0] + «shard.range().start * row|0») as u64"),
]

# Changes that no test can see, and why.
EQUIVALENT = {
    "cpu/pairs/mod.rs: `rows.get(1).copied().unwrap_or_default()` → `rows.get(1).copied().unwrap_or(rows[0])`": "what it meets is 0",
    "cpu/load.rs: `0..classes` → `0..classes - 1`": "the end of the last class, which nobody reads",
    "cpu/norm.rs: `norm.inverse == 0.0` → `false`": "a row of infinite norm is NaN in any case",
    "cpu/norm.rs: `largest.is_infinite()` → `false`": "a row of infinite norm is NaN in any case",
    "cpu/statistics.rs: `max == f64::NEG_INFINITY` → `false`": "the sum is then multiplied by e^−∞ = 0, which it is, or is NaN and stays so",
    "cpu/load.rs: `classes > rows.len()` → `true`": "two ways of the same sorting",
    "cpu/statistics.rs: `next_max == max` → `false`": "the factor is then e^0",
    "cpu/statistics.rs: `self.params.label_smoothing > 0.0` → `true`": "sums that nobody reads",
}

def parts(mutant):
    file, text = mutant
    # The first bar that is not of a closure or of `||` parts the two: written without spaces around it.
    inside = text[text.index("«") + 1 : text.index("»")]
    bars = [m.start() for m in re.finditer(r"(?<![|\s(])\|(?![|\s])", inside)]
    bar = next(b for b in bars if inside.count("|", 0, b) % 2 == 0)
    return file, text[: text.index("«")], inside[:bar], inside[bar + 1 :], text[text.index("»") + 1 :]


def name_of(mutant):
    file, _, old, new, _ = parts(mutant)
    return f"{file}: `{old}` → `{new}`"


def prepare():
    """The copy, with every mutant behind its number."""
    if COPY.exists():
        shutil.rmtree(COPY)
    COPY.mkdir(parents=True, exist_ok=True)
    for name in ["Cargo.toml", "Cargo.lock", "build.rs", "README.md", "src", "tests", "examples", "benches", "kernels", "python-ref"]:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, COPY / name)
    (COPY / "src/mutants.rs").write_text(
        "pub fn on(number: usize) -> bool {\n"
        "    static CHOSEN: std::sync::OnceLock<usize> = std::sync::OnceLock::new();\n"
        '    *CHOSEN.get_or_init(|| std::env::var("MARGIN_LOSS_MUTANT").map_or(usize::MAX, |n| n.parse().unwrap())) == number\n'
        "}\n"
    )
    library = COPY / "src/lib.rs"
    library.write_text("#![allow(warnings, clippy::all)]\n" + library.read_text().replace("mod builder;", "mod builder;\npub mod mutants;", 1))
    manifest = COPY / "Cargo.toml"
    manifest.write_text(manifest.read_text().replace('missing_docs = "deny"\n', ""))
    places = {}
    for number, mutant in enumerate(MUTANTS):
        file, before, old, new, after = parts(mutant)
        text = (ROOT / "src" / file).read_text()
        whole = before + old + after
        if text.count(whole) != 1:
            sys.exit(f"{file} has {text.count(whole)} of {whole!r}")
        places.setdefault(file, []).append((text.index(whole) + len(before), old, new, number))
    for file, changes in places.items():
        text = (ROOT / "src" / file).read_text()
        spans = {}
        for at, old, new, number in changes:
            spans.setdefault((at, at + len(old)), []).append((new, number))
        ordered = sorted(spans, key=lambda span: (span[0], -span[1]))
        (COPY / "src" / file).write_text(guarded(text, ordered, spans, 0, len(text)))


def guarded(text, ordered, spans, low, high, outer=None):
    """`text` from `low` to `high`, its spans behind their numbers; those within a span are guarded within it."""
    made, at = "", low
    for span in ordered:
        if span[0] < at or span[1] > high or span == outer:
            continue
        made += text[at : span[0]]
        inside = guarded(text, ordered, spans, *span, outer=span)
        for new, number in spans[span]:
            inside = f"(if crate::mutants::on({number}) {{ {new} }} else {{ {inside} }})"
        made += inside
        at = span[1]
    return made + text[at:high]


def build():
    command = ["cargo", "test", "--release", "--no-run", "--lib"]
    for suite in SUITES[1:]:
        command += ["--test", suite]
    environment = {**os.environ, "CARGO_TARGET_DIR": str(BUILT)}
    made = subprocess.run(command, cwd=COPY, capture_output=True, text=True, env=environment)
    if made.returncode:
        sys.exit(made.stderr)
    found = dict(re.findall(r"Executable (?:unittests )?(\S+) \((.*)\)", made.stderr))
    binary = lambda suite: COPY / found["src/lib.rs" if suite == "--lib" else f"tests/{suite}.rs"]
    return {suite: binary(suite) for suite in SUITES}


def run(binaries, number):
    environment = {**os.environ, "MARGIN_LOSS_MUTANT": str(number), "RAYON_NUM_THREADS": "2"}
    for suite, binary in binaries.items():
        try:
            done = subprocess.run([binary], cwd=COPY, env=environment, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired:
            return f"{suite}: does not end"
        if done.returncode:
            failed = re.search(r"^test (\S+) \.\.\. FAILED", done.stdout, re.M)
            return f"{suite.strip('-')}: `{failed.group(1) if failed else 'aborted'}`"
    return None


def main():
    arguments = [a for a in sys.argv[1:] if not a.startswith("--")]
    prepare()
    binaries = build()
    if told := run(binaries, len(MUTANTS)):
        sys.exit(f"the crate as it is fails {told}")
    chosen = [i for i, mutant in enumerate(MUTANTS) if not arguments or arguments[0] in name_of(mutant)]
    rows = {}
    with concurrent.futures.ThreadPoolExecutor(int(os.environ.get("MUTANT_JOBS", "2"))) as pool:
        jobs = {pool.submit(run, binaries, i): i for i in chosen}
        for job in concurrent.futures.as_completed(jobs):
            i = jobs[job]
            name = name_of(MUTANTS[i])
            rows[i] = job.result() or EQUIVALENT.get(name, "**not noticed**")
            print(f"{len(rows)}/{len(chosen)} {name}: {rows[i]}", flush=True)
    same = sum(1 for i in rows if rows[i] == EQUIVALENT.get(name_of(MUTANTS[i])))
    missed = sum(1 for how in rows.values() if how.startswith("**"))
    head = f"{len(rows) - same - missed} of {len(rows)} noticed; {same} change no result, with the reason; {missed} not noticed."
    print(head)
    if "--record" in sys.argv and not arguments:
        cell = lambda text: text.replace("|", "\\|").replace("\n", " ")
        lines = [f"| {cell(name_of(MUTANTS[i]))} | {cell(rows[i])} |" for i in sorted(rows)]
        text = ["# Mutants of the CPU path, the formulas, options and counts", "", head, "By `tests/mutants/cpu.py --record`: the first test that fails.", ""]
        (ROOT / "tests/mutants/cpu.md").write_text("\n".join([*text, "| change | noticed by |", "|---|---|", *lines]) + "\n")
    sys.exit(1 if missed else 0)


main()
