// One entry a pair of element types, of X and of W. `ENTRY(NAME, X, W)` is what a kernel's file defines.
ENTRY(f64, double, double)
ENTRY(f32, float, float)
ENTRY(f16, __half, __half)
ENTRY(bf16, __nv_bfloat16, __nv_bfloat16)
ENTRY(f16_f32, __half, float)
ENTRY(bf16_f32, __nv_bfloat16, float)
#undef ENTRY
