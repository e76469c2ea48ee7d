//! Fused cosine-margin softmax losses for Candle (work in progress).
