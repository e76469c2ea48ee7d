#!/usr/bin/env python3
"""Changes the CUDA kernels one barrier, fence, wait, mask or bound at a time, and runs them on the emulated GPU: each change is to be
reported by the emulator or to change a result (tests/cuda.rs, kernels_are_the_cpus and gradients_by_their_upstream).

    sh tests/emulator/run.sh python3 tests/mutants/mutants.py [--record] [--missing] [PART OF A NAME]

A mutant's kernels are compiled by nvcc for five kinds (f32, bf16 and f16, the halves on tensor cores, too) and put in place of those of the test's binary by the emulated
driver (PTX_EMULATOR_REPLACE). --record writes table.md; --missing
runs what that table has no line of.
"""

import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels"
MODULES = ["stream_forward", "stream_backward", "fused_step", "scale"]
KINDS = """ENTRY(f32, margin_loss::OnFma<float, float>)
ENTRY(bf16, margin_loss::OnFma<__nv_bfloat16, __nv_bfloat16>)
ENTRY(f16, margin_loss::OnFma<__half, __half>)
ENTRY(bf16_tensor, margin_loss::OnTensorCores<__nv_bfloat16, 64>)
ENTRY(f16_tensor, margin_loss::OnTensorCores<__half, 64>)
#ifndef NARROW
ENTRY(bf16_wide, margin_loss::OnTensorCores<__nv_bfloat16, 128>)
ENTRY(f16_wide, margin_loss::OnTensorCores<__half, 128>)
#endif
#undef ENTRY
"""

SYNC = "__syncthreads();"
# (file, what stands there, what is put there, which occurrence)
MUTANTS = [
    # barriers of a block
    ("tile.cuh", SYNC, "", 0), ("tile.cuh", SYNC, "", 1), ("tile.cuh", SYNC, "", 2),
    ("mma.cuh", SYNC, "", 0), ("mma.cuh", SYNC, "", 1), ("mma.cuh", SYNC, "", 2),
    ("cosines.cuh", "if (!__syncthreads_or(!all_plain)) return;", "if (all_plain) return;", 0),
    ("cosines.cuh", SYNC, "", 0), ("cosines.cuh", SYNC, "", 1), ("finish.cuh", SYNC, "", 0),
    ("common.cuh", SYNC, "", 0), ("common.cuh", SYNC, "", 1), ("common.cuh", SYNC, "", 2), ("common.cuh", SYNC, "", 3),
    ("gradient.cuh", SYNC, "", 0), ("gradient.cuh", SYNC, "", 1), ("contract.cuh", SYNC, "", 0), ("contract.cuh", SYNC, "", 1),
    ("stream_forward.cu", SYNC, "", 0), ("stream_forward.cu", SYNC, "", 1),
    ("stream_backward.cu", SYNC, "", 0),
    ("fused_step.cu", SYNC, "", 0), ("fused_step.cu", SYNC, ";", 1), *(("fused_step.cu", SYNC, "", nth) for nth in range(2, 7)),
    # of the grid, and fences
    ("fused_step.cu", "wait_for_all(); // every tile", "__syncthreads(); // every tile", 0),
    ("fused_step.cu", "wait_for_all(); // every row", "__syncthreads(); // every row", 0),
    ("fused_step.cu", "wait_for_all(); // all of g", "__syncthreads(); // all of g", 0),
    ("fused_step.cu", "if (call.on_chip) __syncthreads();", "if (call.on_chip) return;", 0),
    ("common.cuh", "__threadfence();", "", 0), ("common.cuh", "__threadfence();", "", 1),
    ("common.cuh", "== expected - 1", "== 0", 0),
    ("common.cuh", "if (expected == 1) return true;", "", 0), ("common.cuh", "if (expected == 1)", "if (expected <= 2)", 0),
    # copies in flight
    ("mma.cuh", "wait_copies<STAGES - 2>();", "", 0), ("mma.cuh", "wait_copies<STAGES - 2>();", "wait_copies<STAGES - 1>();", 0),
    ("mma.cuh", "commit_copies();\n            if constexpr", "if constexpr", 0), ("mma.cuh", "stage == 0 ? STAGES - 1 : stage - 1", "stage", 0),
    ("mma.cuh", "step + STAGES - 1 < steps", "step + STAGES < steps", 0), ("mma.cuh", "!(step == 0 && partial)", "true", 0),
    ("mma.cuh", "PLAIN && depth % STEP != 0", "false", 0), ("mma.cuh", "__syncwarp();", "", 0),
    ("mma.cuh", "if (!__syncthreads_and(a.is_plain() && b.is_plain()))", "if (false)", 0), ("mma.cuh", "whole = whole && counts(share.row(i))", "whole = true", 0), ("mma.cuh", "bool plain = copies;", "bool plain = true;", 0),
    ("mma.cuh", "bool plain = copies;", "bool plain = true;", 1), ("mma.cuh", "(!counts(r) || norms[r].scale == 1.f)", "true", 0),
    ("mma.cuh", "plain && by.counts(k) && by.template norm<float>(k).scale == 1.f", "plain && by.counts(k)", 0),
    ("mma.cuh", "plain && by.counts(k) && by.template norm<float>(k).scale == 1.f", "plain && by.template norm<float>(k).scale == 1.f", 0),
    ("mma.cuh", "whole || counts(share.row(i)) ? 16 : 0", "16", 0), ("mma.cuh", "left >= CHUNK ? 16 : left > 0 ? left * int(sizeof(E)) : 0", "16", 0),
    ("tile.cuh", "(half ^ row_part())", "half", 0), ("tile.cuh", "half = own / (SIDE / 2) ^ column_part()", "half = own / (SIDE / 2)", 0),
    ("mma.cuh", "commit_copies(); // an empty", "// an empty", 0),
    ("mma.cuh", "chunk ^ (row % 8)", "chunk ^ (row % 4)", 0),
    ("mma.cuh", "scale == 1.f && copies", "scale == 1.f", 0), ("mma.cuh", "scale == 1.f && copies", "copies", 0),
    ("mma.cuh", "copies(aligned && !on_chip)", "copies(aligned)", 0), ("mma.cuh", "copies(aligned && !on_chip)", "copies(aligned)", 1),
    ("memory.cuh", "g_on_chip = of_chunk != nullptr", "g_on_chip = false", 0),
    ("tile.cuh", "__syncwarp();", "", 0),
    # masks
    ("mma.cuh", "count >= CHUNK ? CHUNK : count > 0 ? count : 0", "CHUNK", 0),
    ("mma.cuh", "k < depth && counts(r)", "k < depth", 0), ("mma.cuh", "k < depth && counts(r)", "counts(r)", 0), ("mma.cuh", "r < rows && (mask", "(mask", 0),
    ("mma.cuh", "(mask == nullptr || mask[r] >= 0)", "true", 0),
    ("mma.cuh", "k < depth && m < width && by.counts(k)", "m < width && by.counts(k)", 0),
    ("mma.cuh", "k < depth && m < width && by.counts(k)", "k < depth && m < width", 0),
    ("tile.cuh", "lane() < rows && ", "", 0), ("tile.cuh", "(mask == nullptr || mask[lane()] >= 0)", "true", 0),
    ("tile.cuh", "k < depth && by.counts(k)", "by.counts(k)", 0), ("tile.cuh", "k < depth && by.counts(k)", "k < depth", 0),
    ("common.cuh", "if (aligned && count >= 8)", "if (aligned)", 0), ("common.cuh", "if (aligned && count >= 8)", "if (count >= 8)", 0),
    ("common.cuh", "i < count ?", "i <= count ?", 0),
    ("cosines.cuh", "row0 + r < call.n ? label_of(call, row0 + r) : BAD_LABEL", "label_of(call, row0 + r)", 0),
    ("cosines.cuh", "bool there = class0 + j < call.c;", "bool there = true;", 0),
    ("cosines.cuh", "z[j] = is_target ? T(-INFINITY) :", "z[j] =", 0), ("cosines.cuh", "j != target_number && prior[j] != T(-INFINITY)", "prior[j] != T(-INFINITY)", 0),
    ("cosines.cuh", "j != target_number && prior[j] != T(-INFINITY)", "j != target_number", 0), ("cosines.cuh", "part == 0 && target_in(class0, r) >= 0 ?", "part == 0 ?", 0),
    ("gradient.cuh", "Engine::NORMS_IN_G ? values[j0 + j] * inverses[j0 + j] : values[j0 + j]", "values[j0 + j]", 0),
    ("contract.cuh", "Engine::NORMS_IN_G ? along / length / length : along", "along", 0),
    ("cosines.cuh", "there ? T(-1) : T(NOT_THERE), most = there ? T(1) : T(NOT_THERE)", "T(-1), most = T(1)", 0), ("cosines.cuh", "max == T(-INFINITY) ? T(0) : max", "max", 0),
    ("gradient.cuh", "return {T(INFINITY), T(1), -nothing, nothing, T(1)};", "return {T(0), T(1), -nothing, nothing, T(1)};", 0),
    ("gradient.cuh", "values[j] = j == target ? of.target : values[j];", "", 0), ("gradient.cuh", "if (row < rows) store", "store", 0),
    ("contract.cuh", "if (!first) {", "if (false) {", 0), ("contract.cuh", "end = rows < TILE ? int(rows) : TILE", "end = TILE", 0), ("contract.cuh", "if (left > 0) {", "if (true) {", 0),
    ("contract.cuh", "norm.projects() ? -dot : T(0)", "-dot", 0), ("contract.cuh", "norm.projects() ? -dot : T(0)", "T(0)", 0),
    ("contract.cuh", "of.length != T(0) ? left : 0", "left", 0), ("contract.cuh", "if (of.length == T(0))", "if (false)", 0),
    # bounds
    ("tile.cuh", "i64(step + 1) * STEP), b.fetch(i64(step + 1) * STEP)", "i64(step + 1) * STEP), b.fetch(i64(step) * STEP)", 0),
    ("tile.cuh", "(depth + STEP - 1) / STEP", "depth / STEP", 0), ("mma.cuh", "(depth + STEP - 1) / STEP", "depth / STEP", 0),
    ("stream_forward.cu", "class_tiles * (split + 1) / call.splits", "class_tiles * (split + 1) / call.splits - (split > 0)", 0),
    ("stream_forward.cu", "other = 1; other < call.splits", "other = 2; other < call.splits", 0),
    ("stream_forward.cu", "class_tile == begin", "true", 0), ("cosines.cuh", "part < Sums::ROW_PARTS", "part < 1", 0),
    ("contract.cuh", "(depth + STEP - 1) / STEP", "depth / STEP", 0), ("contract.cuh", "if (*end > depth) *end = depth;", "", 0),
    ("contract.cuh", "i64 other = 0; other < splits", "i64 other = 1; other < splits", 0),
    ("gradient.cuh", "part < Sums::COLUMN_PARTS", "part < 1", 0),
    ("gradient.cuh", "offset = Sums::ROW_LANES", "offset = 2 * Sums::ROW_LANES", 0), ("contract.cuh", "t < row_tiles", "t < 1", 0),
    ("fused_step.cu", "i64(tiles) * (block + 1) / owners", "i64(tiles) * (block + 1) / owners - (block == 1)", 0),
    ("fused_step.cu", "owners = blocks < tiles ? blocks : tiles", "owners = blocks", 0), ("fused_step.cu", "at + 1 == share.end || ", "", 0),
    ("fused_step.cu", "|| class_tile + 1 == share.class_tiles", "", 0), ("fused_step.cu", "at == share.begin || class_tile == 0", "at == share.begin", 0),
    ("fused_step.cu", "last ? memory : memory + Kind::STEP_SHARED", "memory", 0),
    ("fused_step.cu", "part += lanes", "part += 2 * lanes", 0), ("fused_step.cu", "int offset = lanes / 2; offset > 0", "int offset = lanes / 4; offset > 0", 0),
    ("contract.cuh", "for (i64 block = blockIdx.x; block < blocks", "for (i64 block = blockIdx.x + 1; block < blocks", 0),
    ("contract.cuh", "for (i64 block = blockIdx.x; block < blocks", "for (i64 block = blockIdx.x; block + 1 < blocks", 0),
    ("contract.cuh", "chunk.dw ? class_tiles * d_tiles", "chunk.dw ? row_tiles * d_tiles", 0), ("contract.cuh", "chunk.dx ? row_tiles * d_tiles", "chunk.dx ? class_tiles * d_tiles", 0),
    ("stream_backward.cu", "at < row_tiles * class_tiles", "at + 1 < row_tiles * class_tiles", 0), ("stream_backward.cu", "at < row_tiles * class_tiles", "at < class_tiles", 0),
    ("stream_backward.cu", "at / class_tiles * TILE", "at / row_tiles * TILE", 0), ("stream_backward.cu", "at % class_tiles * TILE", "at % row_tiles * TILE", 0),
    ("stream_backward.cu", "blockIdx.x / class_tiles * TILE", "blockIdx.x % class_tiles * TILE", 0), ("stream_backward.cu", "(chunk.classes + TILE - 1) / TILE", "(call.c + TILE - 1) / TILE", 0),
    ("stream_backward.cu", "scratch(call, chunk, nullptr, memory)", "scratch(call, chunk, memory, memory)", 0),
    ("common.cuh", "if (count >= 8 && aligned)", "if (aligned)", 0), ("common.cuh", "if (i < count) to[i]", "to[i]", 0),
    ("scale.cu", "at < count; at += 8", "at < count - 8; at += 8", 0), ("scale.cu", "at += 8 * i64(gridDim.x) * THREADS", "at += 16 * i64(gridDim.x) * THREADS", 0),
    ("scale.cu", "v[i] *= upstream", "v[i] *= T(1)", 0),
    # numbers at their ends
    ("margin.cuh", "other.max == T(-INFINITY) ? T(1) : exp2", "exp2", 0), ("cosines.cuh", "(square(of, r) >= LEAST && square(of, r) <= MOST)", "true", 0),
    ("cosines.cuh", "norm < shortest ? -shortest : norm", "norm", 0), ("cosines.cuh", "exponent < -60 ? -60 : exponent", "exponent", 0),
    # margins of rows, and row losses
    ("margin.cuh", "line ? a : phi", "phi", 0), ("margin.cuh", "slope * difficulty + margin.alpha", "slope * difficulty", 0),
    ("margin.cuh", "out.by_beta = -q_y", "out.by_beta = q_y", 0), ("finish.cuh", "own + call.row_margin_step", "own", 0), ("finish.cuh", "slopes[0] = by_alpha", "slopes[0] = by_beta", 0),
    ("margin.cuh", "power * (parameter * sigmoid(-delta) * nll + away)", "power * away", 0), ("margin.cuh", "away * (1.0 + parameter - parameter * away)", "away", 0),
    ("margin.cuh", "exp(-parameter * nll) * away", "away", 0),
    ("margin.cuh", "other.best_class < into.best_class", "other.best_class > into.best_class", 0),
]


# Changes that no result can show, and why they are in the kernels all the same.
EQUIVALENT = {
    ("mma.cuh", "k < depth && counts(r)", "counts(r)", 0): "nothing is read at a count of 0",
    ("tile.cuh", "(mask == nullptr || mask[lane()] >= 0)", "true", 0): "g is masked last; the rows are not read to save their bytes",
    ("mma.cuh", "(mask == nullptr || mask[r] >= 0)", "true", 0): "as in tile.cuh",
    ("tile.cuh", "__syncwarp();", "", 0): "mma.sync waits for its warp itself",
}


def name_of(index):
    file, old, new, nth = MUTANTS[index]
    return f"{file}: `{old}`{f' ({nth + 1})' if old in (SYNC, 'grid.sync();', '__threadfence();') else ''} → {f'`{new}`' if new else 'removed'}"


def test_binary():
    made = subprocess.run(["cargo", "test", "--release", "--features", "cuda", "--test", "cuda", "--no-run"], cwd=ROOT, capture_output=True, text=True)
    found = re.search(r"Executable tests/cuda.rs \((.*)\)", made.stderr)
    if not found:
        sys.exit(made.stderr)
    return ROOT / found.group(1) if not pathlib.Path(found.group(1)).is_absolute() else pathlib.Path(found.group(1))


def run(binary, index):
    """What became of a mutant: (caught, how). None: of the kernels as they are."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        sources = folder / "kernels"
        shutil.copytree(KERNELS, sources)
        (sources / "entries.h").write_text(KINDS)
        modules = MODULES
        if index is not None:
            file, old, new, nth = MUTANTS[index]
            text = (sources / file).read_text()
            parts = text.split(old)
            if len(parts) < nth + 2:
                sys.exit(f"{file} has no {nth + 1}. {old}")
            (sources / file).write_text(old.join(parts[: nth + 1]) + new + old.join(parts[nth + 1 :]))
            if file.endswith(".cu"):
                modules = [file[:-3]]
        for module in modules:
            out = folder / f"{module}.ptx"
            made = subprocess.run(["nvcc", "-std=c++17", "-lineinfo", "--ptx", "-arch=compute_80", "-o", out, sources / f"{module}.cu"], capture_output=True, text=True)
            if made.returncode:
                return False, "**does not compile**: " + made.stderr.strip().splitlines()[0].split(": ", 1)[-1]
        # On few multiprocessors a block loops over its tiles, on many sums are split: what the first does not show, the second may.
        for multiprocessors in ["1"] if index is not None and MUTANTS[index] in EQUIVALENT else ["1", "132"]:
            environment = {**os.environ, "PTX_EMULATOR_REPLACE": str(folder), "PTX_EMULATOR_MULTIPROCESSORS": multiprocessors, "MARGIN_LOSS_MUTANTS": "1"}
            on = "" if multiprocessors == "1" else "on 132: "
            try:
                done = subprocess.run([binary, "kernels_are_the_cpus", "gradients_by_their_upstream"], env=environment, capture_output=True, text=True, timeout=900)
            except subprocess.TimeoutExpired:
                return True, on + "does not end"
            output = done.stdout + done.stderr
            fault = re.search(r"emulated driver: \w+: (.*)", output)
            if fault:
                return True, on + "reported: " + re.sub(r" at 0x[0-9a-f]+", "", fault.group(1)).split(", block")[0].split(" in kernel")[0]
            wrong = re.search(r"panicked at [^\n]*\n([^\n]*)", output)
            if done.returncode:
                return True, on + "another result" + (": " + wrong.group(1)[:60] if wrong else "")
        return False, "" if index is None else EQUIVALENT.get(MUTANTS[index], "**not noticed**")


def main():
    arguments = [a for a in sys.argv[1:] if not a.startswith("--")]
    chosen = [i for i in range(len(MUTANTS)) if not arguments or arguments[0] in name_of(i)]
    if "--missing" in sys.argv:
        table = (ROOT / "tests/mutants/table.md").read_text()
        chosen = [i for i in chosen if f"| {name_of(i)} |".replace("||", "\\|\\|") not in table]
    binary = test_binary()
    caught, how = run(binary, None)
    if caught:
        sys.exit(f"the kernels as they are fail: {how}")
    rows = {}
    with concurrent.futures.ThreadPoolExecutor(int(os.environ.get("MUTANT_JOBS", "2"))) as pool:
        jobs = {pool.submit(run, binary, i): i for i in chosen}
        for job in concurrent.futures.as_completed(jobs):
            rows[jobs[job]] = job.result()
            print(f"{len(rows)}/{len(chosen)} {name_of(jobs[job])}: {job.result()[1]}", flush=True)
            if "--record" in sys.argv:
                record(rows)
    survivors = [i for i in chosen if "**" in rows[i][1]]
    print(f"{sum(1 for i in chosen if rows[i][0])} of {len(chosen)} caught, {len(survivors)} not noticed")
    sys.exit(1 if survivors else 0)


def record(rows):
    """Writes the table: what has been run, and the lines that it had of what has not, since a run takes half an hour and may be cut short."""
    table = ROOT / "tests/mutants/table.md"
    line = lambda i, how: f"| {name_of(i)} | {how} |".replace("||", "\\|\\|")
    old = table.read_text().splitlines()
    lines = {}
    for i in range(len(MUTANTS)):
        if i in rows:
            lines[i] = line(i, rows[i][1])
        elif before := [l for l in old if l.startswith(line(i, "")[:-2])]:
            lines[i] = before[0]
    same = sum(1 for i in lines if MUTANTS[i] in EQUIVALENT and EQUIVALENT[MUTANTS[i]] in lines[i])
    missed = sum(1 for l in lines.values() if "**" in l) # not noticed, or does not compile
    caught = len(lines) - same - missed
    head = f"{caught} of {len(lines)} noticed; {same} change no result, with the reason; {missed} not noticed; {len(MUTANTS) - len(lines)} not run."
    how = "By `tests/mutants/mutants.py --record`, on a device of one multiprocessor and then, where that shows nothing, on one of 132."
    text = ["# Mutants of the kernels", "", head, how, "", "| change | what became of it |", "|---|---|", *(lines[i] for i in sorted(lines))]
    table.write_text("\n".join(text) + "\n")


main()
