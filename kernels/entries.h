// One entry a kind. `ENTRY(NAME, KIND)` is what a kernel's file defines; with NARROW, no kind of wide tiles.
ENTRY(f64, margin_loss::OnFma<double, double>)
ENTRY(f32, margin_loss::OnFma<float, float>)
ENTRY(f16, margin_loss::OnFma<__half, __half>)
ENTRY(bf16, margin_loss::OnFma<__nv_bfloat16, __nv_bfloat16>)
ENTRY(f16_f32, margin_loss::OnFma<__half, float>)
ENTRY(bf16_f32, margin_loss::OnFma<__nv_bfloat16, float>)
ENTRY(f32_tf32, margin_loss::OnTf32<float, float>)
ENTRY(f16_f32_tf32, margin_loss::OnTf32<__half, float>)
ENTRY(bf16_f32_tf32, margin_loss::OnTf32<__nv_bfloat16, float>)
ENTRY(f16_tensor, margin_loss::OnTensorCores<__half, 64>)
ENTRY(bf16_tensor, margin_loss::OnTensorCores<__nv_bfloat16, 64>)
#ifndef NARROW
ENTRY(f16_wide, margin_loss::OnTensorCores<__half, 128>)
ENTRY(bf16_wide, margin_loss::OnTensorCores<__nv_bfloat16, 128>)
#endif
#undef ENTRY
