// The forward of FlashAttention-2 as candle-flash-attn has it, beside attention in double: GROUP is the heads' width and type.
#include "host.h"

#define FLASHATTENTION_DISABLE_ALIBI
#define FLASHATTENTION_DISABLE_LOCAL
#define FLASHATTENTION_DISABLE_SOFTCAP
#define FLASHATTENTION_DISABLE_DROPOUT
#include "flash_fwd_launch_template.h"

#include <algorithm>

#if GROUP == 0
using Type = cutlass::half_t;
constexpr int WIDTH = 64, BITS = 11;
#define FORWARD run_mha_fwd_hdim64
#elif GROUP == 1
using Type = cutlass::bfloat16_t;
constexpr int WIDTH = 32, BITS = 8;
#define FORWARD run_mha_fwd_hdim32
#elif GROUP == 2
using Type = cutlass::bfloat16_t;
constexpr int WIDTH = 128, BITS = 8;
#define FORWARD run_mha_fwd_hdim128
#elif GROUP == 3
using Type = cutlass::half_t;
constexpr int WIDTH = 96, BITS = 11;
#define FORWARD run_mha_fwd_hdim96
#elif GROUP == 4
using Type = cutlass::half_t;
constexpr int WIDTH = 256, BITS = 11;
#define FORWARD run_mha_fwd_hdim256
#endif

// Q, O (b, queries, h, d); K, V (b, keys, heads of them, d). Causal: the last query sees the last key.
template <bool causal>
bool forward(int b, int queries, int keys, int h, int h_k, int d, bool integers, unsigned seed) {
    Draw draw{std::mt19937(seed + queries), integers, 2};
    Array<Type> q(size_t(b) * queries * h * d), k(size_t(b) * keys * h_k * d), v(k.host.size()), o(q.host.size());
    Array<float> sums(size_t(b) * h * queries);
    q.draw(draw), k.draw(draw), v.draw(draw);
    const float scale = 1 / std::sqrt(float(d));

    Flash_fwd_params p;
    memset(&p, 0, sizeof p);
    p.q_ptr = q.device, p.k_ptr = k.device, p.v_ptr = v.device, p.o_ptr = o.device, p.softmax_lse_ptr = sums.device;
    p.q_batch_stride = p.o_batch_stride = int64_t(queries) * h * d, p.k_batch_stride = p.v_batch_stride = int64_t(keys) * h_k * d;
    p.q_row_stride = p.o_row_stride = h * d, p.k_row_stride = p.v_row_stride = h_k * d;
    p.q_head_stride = p.k_head_stride = p.v_head_stride = p.o_head_stride = d;
    p.b = b, p.h = h, p.h_k = h_k, p.h_h_k_ratio = h / h_k, p.seqlen_q = queries, p.seqlen_k = keys, p.d = d;
    p.seqlen_q_rounded = (queries + 127) / 128 * 128, p.seqlen_k_rounded = (keys + 127) / 128 * 128, p.d_rounded = (d + 31) / 32 * 32;
    p.scale_softmax = scale, p.scale_softmax_log2 = scale * float(M_LOG2E);
    p.p_dropout = p.rp_dropout = 1, p.p_dropout_in_uint8_t = 255, p.scale_softmax_rp_dropout = scale;
    p.is_bf16 = BITS == 8, p.is_causal = causal, p.window_size_left = -1, p.window_size_right = causal ? 0 : -1;
    p.is_seqlens_k_cumulative = true, p.num_splits = 1;
    FORWARD<Type, causal>(p, 0);
    CHECK(cudaGetLastError());
    o.down(), sums.down();

    Bound results, logs;
    std::vector<double> weight(keys);
    for (int n = 0; n < b; n++)
        for (int i = 0; i < queries; i++)
            for (int head = 0; head < h; head++) {
                const int end = causal ? std::max(0, std::min(keys, i + keys - queries + 1)) : keys;
                auto of = [&](const Array<Type>& x, int j, int c) {
                    return double(x.host[((size_t(n) * keys + j) * h_k + head / (h / h_k)) * d + c]);
                };
                const size_t row = ((size_t(n) * queries + i) * h + head) * d;
                double most = -INFINITY, total = 0;
                for (int j = 0; j < end; j++) {
                    double score = 0;
                    for (int c = 0; c < d; c++) score += double(q.host[row + c]) * of(k, j, c);
                    most = std::max(most, weight[j] = score * double(scale));
                }
                for (int j = 0; j < end; j++) total += weight[j] = std::exp(weight[j] - most);
                for (int c = 0; c < d; c++) {
                    double exact = 0, size = 0;
                    for (int j = 0; j < end; j++) exact += weight[j] / total * of(v, j, c), size += weight[j] / total * std::abs(of(v, j, c));
                    // Weights and the result are rounded to the type, the rest to f32.
                    results.add(row + c, double(o.host[row + c]), exact, (size + std::abs(exact)) * std::ldexp(1, -BITS) + size * 1e-5 + std::ldexp(1, -24));
                }
                const size_t at = (size_t(n) * h + head) * queries + i;
                // Of a query that sees no key there is no logarithm: infinity stands for it.
                if (end) logs.add(at, sums.host[at], most + std::log(total), 1e-5 * (1 + std::abs(most)));
                else logs.add(at, sums.host[at] == INFINITY, 1, 0.5);
            }
    char what[99];
    snprintf(what, sizeof what, "%d x %d of %d heads %d wide, %s", queries, keys, h, d, integers ? "integers" : "fractions");
    return results.holds(what) && logs.holds("logarithms of sums");
}

template <bool causal>
bool even(bool integers, unsigned seed) {
    return forward<causal>(1, 128, 256, 2, 2, WIDTH, integers, seed);
}
template <bool causal>
bool uneven(bool integers, unsigned seed) {
    return forward<causal>(2, 113, 203, 2, 1, WIDTH, integers, seed) && forward<causal>(1, 70, 33, 1, 1, WIDTH, integers, seed) &&
           forward<causal>(1, 1, 129, 1, 1, WIDTH, integers, seed);
}
template <bool causal>
bool narrow(bool integers, unsigned seed) {
    return forward<causal>(1, 128, 128, 1, 1, WIDTH - 8, integers, seed) && forward<causal>(1, 45, 150, 2, 2, WIDTH - 24, integers, seed);
}

int main(int argc, char** argv) {
    const std::string head = std::string(BITS == 8 ? "bf16" : "f16") + ", heads of " + std::to_string(WIDTH);
    std::vector<Case> cases = {{head + ", parts of tiles, causal", uneven<true>}};
#ifndef TENTH
    cases.insert(cases.end(), {{head + ", whole tiles", even<false>},
                               {head + ", whole tiles, causal", even<true>},
                               {head + ", parts of tiles", uneven<false>},
                               {head + ", narrower heads", narrow<false>},
                               {head + ", narrower heads, causal", narrow<true>}});
#endif
    return run_cases(cases, argc, argv);
}
