// What the host hands to the kernels: plain C, read by nvcc and by bindgen (src/cuda/params.rs), so that the two cannot drift apart.
#ifndef MARGIN_LOSS_PARAMS_H
#define MARGIN_LOSS_PARAMS_H

// Rows, classes or dimensions in a tile, in one of the wide kinds, in a step of a sum that blocks split; and threads in a block.
#define MARGIN_LOSS_TILE 64
#define MARGIN_LOSS_WIDE_TILE 128
#define MARGIN_LOSS_STEP 64
#define MARGIN_LOSS_THREADS 128

// Bytes of what the host makes room for, by the type of accumulation: RowState, Norm, Statistics.
#define MARGIN_LOSS_ROW_STATE_F32 40
#define MARGIN_LOSS_ROW_STATE_F64 72
#define MARGIN_LOSS_NORM_F32 8
#define MARGIN_LOSS_NORM_F64 16
#define MARGIN_LOSS_STATISTICS_F32 32
#define MARGIN_LOSS_STATISTICS_F64 56

// Bytes of dynamic shared memory by kind: of a block with cosines, and gradients after them (StepTiles), beside what it keeps for them; of one
// with a contraction alone (ContractTile); what static variables take at most.
#define MARGIN_LOSS_STEP_SHARED_F64 45568
#define MARGIN_LOSS_STEP_SHARED_F32 23296
#define MARGIN_LOSS_STEP_SHARED_TF32 25856
#define MARGIN_LOSS_STEP_SHARED_TENSOR 56576
#define MARGIN_LOSS_STEP_SHARED_WIDE 113152
#define MARGIN_LOSS_CONTRACT_SHARED_F64 38912
#define MARGIN_LOSS_CONTRACT_SHARED_F32 19456
#define MARGIN_LOSS_CONTRACT_SHARED_TF32 19456
#define MARGIN_LOSS_CONTRACT_SHARED_TENSOR 50176
#define MARGIN_LOSS_CONTRACT_SHARED_WIDE 100352
#define MARGIN_LOSS_STEP_STATIC 2048
// Blocks of either that a multiprocessor has room for in registers; fused_step for three would spill on sm_120.
#define MARGIN_LOSS_STEP_BLOCKS 2

// InstanceGate
#define MARGIN_LOSS_GATE_OFF 0
#define MARGIN_LOSS_GATE_POSITIVES 1
#define MARGIN_LOSS_GATE_HARD_POSITIVES 2

// AngleRange
#define MARGIN_LOSS_WRAP 0
#define MARGIN_LOSS_MONOTONE 1
#define MARGIN_LOSS_LINEAR 2
#define MARGIN_LOSS_EASY 3
#define MARGIN_LOSS_CLAMP 4
// How near to 0 and π the last lets an angle come.
#define MARGIN_LOSS_CLAMPED 1e-3

// TargetGradient
#define MARGIN_LOSS_EXACT 0
#define MARGIN_LOSS_DETACH_DIFFICULTY 1
#define MARGIN_LOSS_STRAIGHT_THROUGH 2

// RowLoss
#define MARGIN_LOSS_CROSS_ENTROPY 0
#define MARGIN_LOSS_FOCAL 1
#define MARGIN_LOSS_POLY_1 2
#define MARGIN_LOSS_GENERALIZED 3

// Reduction
#define MARGIN_LOSS_REDUCE_NONE 0
#define MARGIN_LOSS_REDUCE_SUM 1
#define MARGIN_LOSS_REDUCE_MEAN 2
#define MARGIN_LOSS_REDUCE_WEIGHTED_MEAN 3

// The largest sample weight, and the smallest but 0; the log prior of a class that is out (src/options.rs).
#define MARGIN_LOSS_LARGEST 1e9
#define MARGIN_LOSS_LEAST_WEIGHT 1e-15
#define MARGIN_LOSS_OUT -1e18

// The dtype of the labels
#define MARGIN_LOSS_U8 0
#define MARGIN_LOSS_U32 1
#define MARGIN_LOSS_I64 2

// The largest α and β of a row, either way (src/problem.rs).
#define MARGIN_LOSS_MOST_ALPHA 3.14159265358979323846
#define MARGIN_LOSS_MOST_BETA 2.0

// The dtype of the sample weights and of the row margins
#define MARGIN_LOSS_NONE 0
#define MARGIN_LOSS_F16 1
#define MARGIN_LOSS_BF16 2
#define MARGIN_LOSS_F32 3
#define MARGIN_LOSS_F64 4

// What of the margin does not depend on the sample.
struct MarginLossRule {
    double m1;
    double instance_strength; // λ
    int gate;
    int angle_range;
    int gradient;
    int row_loss;
    double row_loss_parameter; // γ, ε or q
};

// What of the loss does not depend on the batch.
struct MarginLossOptions {
    struct MarginLossRule rule;
    double scale;           // s
    double label_smoothing; // α
    double prior_sum;       // Σ b_j
    double sin_floor;       // √ε of the type of accumulation
    long long ignore_index;
    int has_ignore_index;
    int reduction;
    const double *angular;  // A, (C)
    const double *additive; // B, (C)
    const double *prior;    // b, (C), or null for all 0
    const double *weights;  // ω, (C), or null for all 1
};

// A call's tensors and memory. X, W, dX, dW have element types of their own; T is the type of accumulation, float or double.
struct MarginLossCall {
    struct MarginLossOptions options;
    long long n, c, d;

    const void *x;            // X (N, D)
    const void *w;            // W (C, D)
    const void *labels;       // y (N)
    const void *sample_weights; // (N), or null
    const void *row_margins;  // (N, 2), α and β of every row, or null
    long long x_stride, w_stride, label_stride, sample_weight_stride; // in elements
    long long row_margin_stride, row_margin_step;                     // from a row to the next, from α to β
    int label_type;
    int sample_weight_type;
    int row_margin_type;
    int unused;

    void *loss;               // T, a scalar; null where nothing is reduced
    void *per_sample;         // T (N)
    unsigned int *predicted;  // (N)
    unsigned char *hard;      // (N)
    void *target_cosine;      // T (N)
    void *margin_slopes;      // T (N, 2): ∂ℓ/∂α and ∂ℓ/∂β, where there are row margins
    void *margin_factor;      // T: the reduction's factor, beside them
    void *dx;                 // dX (N, D), contiguous, or null
    void *dw;                 // dW (C, D), contiguous, or null
    double gradient_scale;    // what both are multiplied by before they are rounded

    // Kept between forward and backward.
    void *rows;               // RowState<T> (N)
    void *class_norms;        // Norm<T> (C)
    double *factor;           // what the reduction multiplies by, a scalar
    const void *upstream;     // T (N): ∂L/∂ℓ of each row, or null for 1
    unsigned long long *bad_row; // 1 + the first row whose label or weight cannot be; 0 for none

    // Workspace.
    unsigned int *arrivals;   // zeroed counters of stream_forward: all, then one a row tile; null for one block
    void *partials;           // Statistics<T> (splits, N); stream_forward with one split has none
    long long splits;
    // fused_step in one block: rows, class_norms, partials and the chunk's g and class_dots are offsets into its shared memory.
    int on_chip;
    int wide_gradients;       // dX and dW are of type T, whatever X and W are
};

// One chunk of the backward pass: rows [row0, row0 + rows) and classes [class0, class0 + classes), both starts multiples of the tile.
struct MarginLossChunk {
    long long row0, rows;
    long long class0, classes;
    // stream_backward: g and class_dots are offsets into its shared memory.
    void *g;                  // G (rows, stride): ∂L/∂c, on tensor cores by the inverse norms of its row and its class
    long long stride;         // at least classes, rounded up to the tile; on chip a little more
    void *class_dots;         // T (row tiles of the whole batch, stride): Σ g·c over a row tile, for dW
    void *partial_sums;       // T (tiles, splits, TILE·TILE)
    unsigned int *arrivals;   // zeroed counters, one a tile that is split
    void *dx_sums;            // T (rows, D): sums over the chunks so far; dX itself where its type is T
    void *dw_sums;            // T (classes, D): as dx_sums
    long long dx_splits, dw_splits;
    int dx, dw;               // whether dX and dW are wanted of this chunk
    int first_classes, last_classes; // of the chunks that add up to these rows' dX
    int first_rows, last_rows;       // of the chunks that add up to these classes' dW
};

#endif
