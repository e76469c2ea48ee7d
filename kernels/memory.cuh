// What a call's phases leave to each other, and where: rows' states, norms, statistics, g.
#ifndef MARGIN_LOSS_MEMORY_CUH
#define MARGIN_LOSS_MEMORY_CUH

#include "tile.cuh"

namespace margin_loss {

// What backward takes of a row.
template <class T>
struct RowState {
    Norm<T> norm;
    T max;         // of z·log₂e over non-targets
    T others;      // Finished::others
    T target;      // Finished::target
    T dot;         // Finished::dot
    T cosine;      // c_iy
    int label;     // y, or one of the below
    double weight; // ω_y times the sample weight
};

static_assert(sizeof(RowState<float>) == MARGIN_LOSS_ROW_STATE_F32 && sizeof(RowState<double>) == MARGIN_LOSS_ROW_STATE_F64, "RowState");
static_assert(sizeof(Norm<float>) == MARGIN_LOSS_NORM_F32 && sizeof(Norm<double>) == MARGIN_LOSS_NORM_F64, "Norm");
static_assert(sizeof(Statistics<float>) == MARGIN_LOSS_STATISTICS_F32 && sizeof(Statistics<double>) == MARGIN_LOSS_STATISTICS_F64, "Statistics");

// What g takes of a row; with the norms in it, the row's is in all but max.
template <class T>
struct RowConstants {
    T max;
    T factor;  // a_i
    T uniform; // u_i
    T target;  // t_i
    T length;  // of the norm, where it is in the others: what that is undone by
};

// The label is the ignore index; the label is no class, or one that the prior takes out; the sample weight is out of its range.
constexpr int IGNORED = -1, BAD_LABEL = -2, BAD_INPUT = -3;

// What a call's phases leave to each other: in global memory, or in the block's own where one block makes several of them. The host's
// addresses are then offsets into that.
template <class T>
struct Scratch {
    RowState<T> *rows;       // (N)
    Norm<T> *class_norms;    // (C)
    Statistics<T> *partials; // (splits, N)
    void *g;                 // of the chunk: G (rows, stride)
    T *class_dots;           // of the chunk: (row tiles, stride)
    bool g_on_chip;

    // The block's memory where it holds what the call has (`of_call`), what the chunk has (`of_chunk`); null where that is global.
    __device__ Scratch(const MarginLossCall &call, unsigned char *of_call = nullptr)
        : rows(at<RowState<T>>(of_call, call.rows)), class_norms(at<Norm<T>>(of_call, call.class_norms)),
          partials(at<Statistics<T>>(of_call, call.partials)), g(nullptr), class_dots(nullptr), g_on_chip(false) {}

    __device__ Scratch(const MarginLossCall &call, const MarginLossChunk &chunk, unsigned char *of_call = nullptr, unsigned char *of_chunk = nullptr)
        : Scratch(call, of_call) {
        g = at<void>(of_chunk, chunk.g), class_dots = at<T>(of_chunk, chunk.class_dots), g_on_chip = of_chunk != nullptr;
    }

    template <class P>
    __device__ static P *at(unsigned char *own, void *given) {
        return reinterpret_cast<P *>(reinterpret_cast<unsigned long long>(own) + reinterpret_cast<unsigned long long>(given));
    }
};

// y, IGNORED or BAD_LABEL
__device__ inline int label_of(const MarginLossCall &call, i64 row) {
    i64 at = row * call.label_stride;
    i64 label = call.label_type == MARGIN_LOSS_I64   ? static_cast<const i64 *>(call.labels)[at]
                : call.label_type == MARGIN_LOSS_U32 ? i64(static_cast<const unsigned int *>(call.labels)[at])
                                                     : i64(static_cast<const unsigned char *>(call.labels)[at]);
    if (call.options.has_ignore_index && label == call.options.ignore_index) return IGNORED;
    if (label < 0 || label >= call.c) return BAD_LABEL;
    bool out = call.options.prior != nullptr && call.options.prior[label] <= MARGIN_LOSS_OUT;
    return out ? BAD_LABEL : int(label);
}

} // namespace margin_loss

#endif
