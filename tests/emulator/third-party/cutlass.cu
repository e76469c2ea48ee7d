// CUTLASS's device-wide products, D = α·A·B + β·C, beside sums in double: GROUP is which, so that each is a compilation of its own.
#include "host.h"

#include <cutlass/cutlass.h>
#include <cutlass/epilogue/thread/linear_combination.h>
#include <cutlass/gemm/device/gemm.h>
#include <cutlass/gemm/device/gemm_sparse.h>
#include <cutlass/gemm/device/gemm_universal.h>
#include <cutlass/util/host_reorder.h>

namespace g = cutlass::gemm;
using cutlass::bfloat16_t;
using cutlass::half_t;
// As BLAS calls them, where columns are what is contiguous.
using T = cutlass::layout::RowMajor;
using N = cutlass::layout::ColumnMajor;
template <int M, int N, int K>
using Shape = g::GemmShape<M, N, K>;

// Bits of a number's fraction, as the products take it.
template <class Type> constexpr int bits = 0;
template <> constexpr int bits<float> = 24;
template <> constexpr int bits<double> = 53;
template <> constexpr int bits<half_t> = 11;
template <> constexpr int bits<bfloat16_t> = 8;
template <> constexpr int bits<int8_t> = 31;
template <> constexpr int bits<int> = 31;

template <class Layout>
size_t place(int row, int column, int rows, int columns) {
    return std::is_same<Layout, cutlass::layout::RowMajor>::value ? size_t(row) * columns + column : size_t(column) * rows + row;
}
template <class Layout>
int stride(int rows, int columns) {
    return std::is_same<Layout, cutlass::layout::RowMajor>::value ? columns : rows;
}

// How it is called: plainly, in parts of K that are added by turns, or with parts of the work given to each multiprocessor.
enum Way { plain, serial, stream };

template <class Gemm, Way way>
cutlass::Status call(Gemm& gemm, int m, int n, int k, int parts, const void* a, const void* b, const void* c, void* d, double alpha, double beta,
                     cudaStream_t queue) {
    using A = typename Gemm::ElementA;
    using B = typename Gemm::ElementB;
    using C = typename Gemm::ElementC;
    using S = typename Gemm::EpilogueOutputOp::ElementCompute;
    const int lda = stride<typename Gemm::LayoutA>(m, k), ldb = stride<typename Gemm::LayoutB>(k, n), ldc = stride<typename Gemm::LayoutC>(m, n);
    auto with = [&](typename Gemm::Arguments arguments) {
        cutlass::Status status = Gemm::can_implement(arguments);
        if (status != cutlass::Status::kSuccess) return status;
        Array<char> workspace(Gemm::get_workspace_size(arguments));
        status = gemm.initialize(arguments, workspace.device, queue);
        if (status != cutlass::Status::kSuccess) return status;
        status = gemm.run(queue);
        CHECK(cudaStreamSynchronize(queue));
        return status;
    };
    if constexpr (way == stream) {
        return with({g::GemmUniversalMode::kGemm, {m, n, k}, parts, {S(alpha), S(beta)}, a, b, c, d, int64_t(m) * k, int64_t(k) * n, int64_t(m) * n,
                     int64_t(m) * n, lda, ldb, ldc, ldc, -1});
    } else {
        return with({{m, n, k}, {(const A*)a, lda}, {(const B*)b, ldb}, {(const C*)c, ldc}, {(C*)d, ldc}, {S(alpha), S(beta)}, parts});
    }
}

// One size: `fraction` bits of the inputs are used, sums have `sum` bits.
template <class Gemm, Way way>
bool product(int m, int n, int k, int parts, int fraction, int sum, bool integers, unsigned seed) {
    using C = typename Gemm::ElementC;
    integers |= std::is_same<C, int>::value;
    const double alpha = integers ? 2 : 1.25, beta = integers ? -1 : 0.5;
    Draw draw{std::mt19937(seed + 7 * m + k), integers};
    Array<typename Gemm::ElementA> a(size_t(m) * k);
    Array<typename Gemm::ElementB> b(size_t(k) * n);
    Array<C> c(size_t(m) * n), d(size_t(m) * n);
    a.draw(draw), b.draw(draw), c.draw(draw);
    Gemm gemm;
    const cutlass::Status status = call<Gemm, way>(gemm, m, n, k, parts, a.device, b.device, c.device, d.device, alpha, beta, 0);
    CHECK(cudaGetLastError());
    if (status != cutlass::Status::kSuccess) {
        printf("%d x %d x %d: %s\n", m, n, k, cutlassGetStatusString(status));
        return false;
    }
    d.down();
    Bound bound;
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < n; j++) {
            double exact = 0, size = 0;
            for (int l = 0; l < k; l++) {
                const double term = double(a.host[place<typename Gemm::LayoutA>(i, l, m, k)]) * double(b.host[place<typename Gemm::LayoutB>(l, j, k, n)]);
                exact += term, size += std::abs(term);
            }
            const size_t at = place<typename Gemm::LayoutC>(i, j, m, n);
            const double own = beta * double(c.host[at]);
            exact = alpha * exact + own;
            // The inputs' cut, k additions, the result's rounding, each at the most.
            const double allowed = std::abs(alpha) * size * (2 * std::ldexp(1, -fraction) + k * std::ldexp(1, -sum)) +
                                   (std::abs(exact) + std::abs(own)) * std::ldexp(1, -bits<C>);
            bound.add(at, double(d.host[at]), integers ? double(C(float(exact))) : exact, integers ? 1e-300 : allowed);
        }
    }
    char what[99];
    snprintf(what, sizeof what, "%d x %d x %d in %d, %s", m, n, k, parts, integers ? "integers" : "fractions");
    return bound.holds(what);
}

// Whole tiles, and sizes that are none.
template <class Gemm, Way way, int fraction, int sum, int step>
bool sizes(bool integers, unsigned seed) {
    using Tile = typename Gemm::ThreadblockShape;
    const int m = Tile::kM, n = Tile::kN, k = Tile::kK, parts = way == serial ? 3 : 1;
    return product<Gemm, way>(2 * m, n, (way == plain ? 3 : 8) * k, parts, fraction, sum, integers, seed) &&
           product<Gemm, way>(m + 3 * step, 2 * n - 5 * step, 2 * k + step, parts, fraction, sum, integers, seed) &&
           // Fewer than there are stages.
           product<Gemm, way>(step, step, step, 1, fraction, sum, integers, seed);
}

template <class In, class Out, class Sum, class LA, class LB, class Class, class Block, class Warp, class One, int stages, int step,
          Way way = plain, class Operator = cutlass::arch::OpMultiplyAdd, int fraction = bits<In>>
struct Product {
    using Compute = typename std::conditional<std::is_same<Sum, half_t>::value, half_t, Sum>::type;
    // Of the results as many at a time as 16 bytes have, or as the operands allow.
    static constexpr int WHOLE = 128 / cutlass::sizeof_bits<Out>::value;
    static constexpr int WIDTH = std::is_same<Class, cutlass::arch::OpClassSimt>::value ? 1 : WHOLE < step ? WHOLE : step;
    using End = cutlass::epilogue::thread::LinearCombination<Out, WIDTH, Sum, Compute>;
    using Plain = g::device::Gemm<In, LA, In, LB, Out, cutlass::layout::RowMajor, Sum, Class, cutlass::arch::Sm80, Block,
                                  Warp, One, End, g::threadblock::GemmIdentityThreadblockSwizzle<>, stages, step, step, way == serial, Operator>;
    using Streamed = g::device::GemmUniversal<In, LA, In, LB, Out, cutlass::layout::RowMajor, Sum, Class,
                                              cutlass::arch::Sm80, Block, Warp, One, End, g::threadblock::ThreadblockSwizzleStreamK, stages, step, step, Operator>;
    using Gemm = typename std::conditional<way == stream, Streamed, Plain>::type;

    static void add(std::vector<Case>& cases, const std::string& name) { cases.push_back({name, sizes<Gemm, way, fraction, bits<Sum>, step>}); }
};

// The same in all four layouts.
template <class In, class Out, class Sum, class Class, class Block, class Warp, class One, int stages, int step, class Operator = cutlass::arch::OpMultiplyAdd,
          int fraction = bits<In>>
void four(std::vector<Case>& cases, const char* type, const char* more) {
    auto name = [&](const char* layouts) { return std::string(type) + " " + layouts + " " + more; };
    Product<In, Out, Sum, T, N, Class, Block, Warp, One, stages, step, plain, Operator, fraction>::add(cases, name("TN"));
#ifndef TENTH
    Product<In, Out, Sum, N, N, Class, Block, Warp, One, stages, step, plain, Operator, fraction>::add(cases, name("NN"));
    Product<In, Out, Sum, N, T, Class, Block, Warp, One, stages, step, plain, Operator, fraction>::add(cases, name("NT"));
    Product<In, Out, Sum, T, T, Class, Block, Warp, One, stages, step, plain, Operator, fraction>::add(cases, name("TT"));
#endif
}

// A with half of its elements, and metadata E that tells which, four bits for each two (in TF32 one): beside sums over what there is.
template <class Gemm, int fraction, int sum>
bool sparse(bool integers, unsigned seed) {
    using A = typename Gemm::ElementA;
    using C = typename Gemm::ElementC;
    using E = typename Gemm::ElementE;
    constexpr bool one = std::is_same<A, float>::value;
    integers |= std::is_same<C, int>::value;
    using Tile = typename Gemm::ThreadblockShape;
    const int m = 2 * Tile::kM, n = Tile::kN + 8, k = 3 * Tile::kK, columns = k / 2 / Gemm::kElementsPerElementE;
    Draw draw{std::mt19937(seed + k), integers};
    Array<A> a(size_t(m) * k / 2);
    Array<typename Gemm::ElementB> b(size_t(k) * n);
    Array<C> c(size_t(m) * n), d(size_t(m) * n);
    Array<E> e(size_t(m) * columns);
    a.draw(draw), b.draw(draw), c.draw(draw);
    std::vector<E> meta(e.host.size());
    std::vector<int> column(a.host.size());
    const int pairs[6] = {0x4, 0x8, 0xc, 0x9, 0xd, 0xe};
    for (int i = 0; i < m; i++)
        for (int group = 0; group < (one ? k / 2 : k / 4); group++) {
            const unsigned four = one ? (draw.random() % 2 ? 0xe : 0x4) : pairs[draw.random() % 6];
            const int each = sizeof(E) * 2;
            meta[size_t(i) * columns + group / each] = E(meta[size_t(i) * columns + group / each] | E(four) << (4 * (group % each)));
            int* to = &column[size_t(i) * k / 2 + (one ? group : 2 * group)];
            to[0] = one ? 2 * group + (four & 3) / 2 : 4 * group + (four & 3);
            if (!one) to[1] = 4 * group + (four >> 2);
        }
    using Rows = cutlass::layout::RowMajor;
    const auto stride_e = Gemm::LayoutE::packed({m, columns});
    cutlass::reorder_meta(cutlass::TensorRef<E, typename Gemm::LayoutE>(e.host.data(), stride_e), cutlass::TensorRef<E, Rows>(meta.data(), Rows(columns)),
                          {m, n, columns});
    e.up();
    Gemm gemm;
    using S = typename Gemm::EpilogueOutputOp::ElementCompute;
    typename Gemm::Arguments arguments({m, n, k}, {a.device, k / 2}, {b.device, k}, {c.device, n}, {d.device, n}, {e.device, stride_e}, {S(2), S(-1)});
    cutlass::Status status = gemm.initialize(arguments);
    if (status == cutlass::Status::kSuccess) status = gemm.run();
    CHECK(cudaGetLastError());
    if (status != cutlass::Status::kSuccess) {
        printf("%s\n", cutlassGetStatusString(status));
        return false;
    }
    d.down();
    Bound bound;
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            double exact = 0, size = 0;
            for (int q = 0; q < k / 2; q++) {
                const size_t at = size_t(i) * k / 2 + q;
                const double term = double(a.host[at]) * double(b.host[size_t(j) * k + column[at]]);
                exact += term, size += std::abs(term);
            }
            const double own = double(c.host[size_t(i) * n + j]), wanted = 2 * exact - own;
            const double allowed = 2 * size * (2 * std::ldexp(2, -fraction) + k * std::ldexp(1, -sum)) + std::abs(wanted) * std::ldexp(1, -bits<C>);
            bound.add(size_t(i) * n + j, double(d.host[size_t(i) * n + j]), wanted, integers ? 1e-300 : allowed);
        }
    return bound.holds(integers ? "integers" : "fractions");
}

template <class In, class Sum, class Block, class Warp, class One, int stages, class Operator = cutlass::arch::OpMultiplyAdd, int fraction = bits<In>>
void add_sparse(std::vector<Case>& cases, const std::string& name) {
    using Gemm = g::device::SparseGemm<In, cutlass::layout::RowMajor, In, cutlass::layout::ColumnMajor, Sum, cutlass::layout::RowMajor, Sum,
                                       cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80, Block, Warp, One,
                                       cutlass::epilogue::thread::LinearCombination<Sum, 4, Sum, Sum>, g::threadblock::GemmIdentityThreadblockSwizzle<>, stages,
                                       128 / cutlass::sizeof_bits<In>::value, 128 / cutlass::sizeof_bits<In>::value, false, Operator>;
    cases.push_back({name, sparse<Gemm, fraction, bits<Sum>>});
}

using Tensor = cutlass::arch::OpClassTensorOp;
using Simt = cutlass::arch::OpClassSimt;
using Half = Shape<16, 8, 16>;
using Tf32 = Shape<16, 8, 8>;
using One = Shape<1, 1, 1>;
using Plainly = cutlass::arch::OpMultiplyAdd;
using InThree = cutlass::arch::OpMultiplyAddFastF32;
using Saturating = cutlass::arch::OpMultiplyAddSaturate;
using Bytes = Shape<16, 8, 32>;

int main(int argc, char** argv) {
    std::vector<Case> cases;
#if GROUP == 0
    four<bfloat16_t, float, float, Tensor, Shape<128, 128, 32>, Shape<64, 64, 32>, Half, 3, 8>(cases, "bf16", "128x128x32, 3 stages");
#elif GROUP == 1
    four<bfloat16_t, bfloat16_t, float, Tensor, Shape<64, 128, 32>, Shape<32, 64, 32>, Half, 4, 8>(cases, "bf16", "64x128x32, 4 stages, to bf16");
#elif GROUP == 2
    four<bfloat16_t, float, float, Tensor, Shape<128, 64, 64>, Shape<64, 32, 64>, Half, 2, 8>(cases, "bf16", "128x64x64, 2 stages");
#elif GROUP == 3
    four<half_t, half_t, half_t, Tensor, Shape<128, 128, 32>, Shape<64, 64, 32>, Half, 4, 8>(cases, "f16", "128x128x32, 4 stages, sums in f16");
#elif GROUP == 4
    four<half_t, float, float, Tensor, Shape<128, 64, 32>, Shape<64, 32, 32>, Half, 5, 8>(cases, "f16", "128x64x32, 5 stages");
#elif GROUP == 5
    four<half_t, half_t, float, Tensor, Shape<64, 64, 64>, Shape<32, 32, 64>, Half, 3, 4>(cases, "f16", "64x64x64, 3 stages, by 8 bytes, to f16");
#elif GROUP == 6
    four<float, float, float, Tensor, Shape<128, 128, 16>, Shape<64, 64, 16>, Tf32, 3, 4, Plainly, 11>(cases, "tf32", "128x128x16, 3 stages");
#elif GROUP == 7
    four<float, float, float, Tensor, Shape<64, 64, 32>, Shape<32, 32, 32>, Tf32, 4, 1, Plainly, 11>(cases, "tf32", "64x64x32, 4 stages, by 4 bytes");
#elif GROUP == 8
    four<float, float, float, Tensor, Shape<64, 64, 16>, Shape<32, 32, 16>, Tf32, 3, 4, InThree, 20>(cases, "3xTF32", "64x64x16, 3 stages");
#elif GROUP == 9
    four<double, double, double, Tensor, Shape<64, 64, 16>, Shape<32, 32, 16>, Shape<8, 8, 4>, 4, 1>(cases, "f64", "64x64x16, 4 stages");
#elif GROUP == 10
    four<double, double, double, Tensor, Shape<32, 64, 16>, Shape<16, 32, 16>, Shape<8, 8, 4>, 3, 1>(cases, "f64", "32x64x16, 3 stages");
#elif GROUP == 11
    four<float, float, float, Simt, Shape<128, 128, 8>, Shape<32, 64, 8>, One, 2, 1>(cases, "f32 SIMT", "128x128x8, 2 stages");
#elif GROUP == 12
    four<float, float, float, Simt, Shape<64, 64, 8>, Shape<32, 32, 8>, One, 4, 1>(cases, "f32 SIMT", "64x64x8, 4 stages");
#elif GROUP == 13
    four<double, double, double, Simt, Shape<64, 64, 8>, Shape<32, 32, 8>, One, 2, 1>(cases, "f64 SIMT", "64x64x8, 2 stages");
#elif GROUP == 14
    Product<bfloat16_t, float, float, T, N, Tensor, Shape<64, 64, 32>, Shape<32, 32, 32>, Half, 3, 8, serial>::add(
        cases, "bf16 TN 64x64x32, split-K serial");
    Product<half_t, half_t, float, N, N, Tensor, Shape<128, 64, 32>, Shape<64, 32, 32>, Half, 4, 8, serial>::add(
        cases, "f16 NN 128x64x32, split-K serial, to f16");
    Product<float, float, float, N, T, Tensor, Shape<64, 64, 16>, Shape<32, 32, 16>, Tf32, 3, 4, serial, Plainly, 11>::add(
        cases, "tf32 NT 64x64x16, split-K serial");
    Product<float, float, float, T, T, Simt, Shape<64, 64, 8>, Shape<32, 32, 8>, One, 2, 1, serial>::add(
        cases, "f32 SIMT TT 64x64x8, split-K serial");
#elif GROUP == 15
    Product<half_t, float, float, T, N, Tensor, Shape<64, 64, 32>, Shape<32, 32, 32>, Half, 3, 8, stream>::add(
        cases, "f16 TN 64x64x32, stream-K");
#ifndef TENTH
    Product<bfloat16_t, float, float, N, N, Tensor, Shape<128, 128, 32>, Shape<64, 64, 32>, Half, 4, 8, stream>::add(
        cases, "bf16 NN 128x128x32, stream-K");
    Product<float, float, float, N, T, Tensor, Shape<64, 64, 16>, Shape<32, 32, 16>, Tf32, 3, 4, stream, Plainly, 11>::add(
        cases, "tf32 NT 64x64x16, stream-K");
    Product<float, float, float, T, T, Simt, Shape<64, 64, 8>, Shape<32, 32, 8>, One, 2, 1, stream>::add(
        cases, "f32 SIMT TT 64x64x8, stream-K");
#endif
#elif GROUP == 16
    Product<int8_t, int, int, T, N, Tensor, Shape<128, 128, 64>, Shape<64, 64, 64>, Bytes, 3, 16, plain, Saturating>::add(
        cases, "s8 TN 128x128x64, 3 stages");
    Product<int8_t, int, int, T, N, Tensor, Shape<64, 64, 64>, Shape<32, 32, 64>, Bytes, 4, 16, plain, Saturating>::add(
        cases, "s8 TN 64x64x64, 4 stages");
    Product<int8_t, int, int, T, N, Tensor, Shape<64, 64, 64>, Shape<32, 32, 64>, Bytes, 3, 16, stream, Saturating>::add(
        cases, "s8 TN 64x64x64, stream-K");
#elif GROUP == 17
    add_sparse<half_t, float, Shape<128, 64, 64>, Shape<64, 32, 64>, Shape<16, 8, 32>, 3>(cases, "f16 half zeros TN 128x64x64, 3 stages");
    add_sparse<bfloat16_t, float, Shape<64, 64, 64>, Shape<32, 32, 64>, Shape<16, 8, 32>, 4>(
        cases, "bf16 half zeros TN 64x64x64, 4 stages");
    add_sparse<float, float, Shape<128, 64, 32>, Shape<64, 32, 32>, Shape<16, 8, 16>, 3, Plainly, 11>(
        cases, "tf32 half zeros TN 128x64x32, 3 stages");
    add_sparse<int8_t, int, Shape<128, 64, 128>, Shape<64, 32, 128>, Shape<16, 8, 64>, 3, Saturating>(
        cases, "s8 half zeros TN 128x64x128, 3 stages");
#endif
    return run_cases(cases, argc, argv);
}
