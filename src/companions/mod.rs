//! Companion losses of the paper's tables: methods that put a second term beside the classification loss, which is this crate's own op.
//!
//! - [`Bcl`]: balanced contrastive learning (Zhu et al., CVPR 2022).
//! - [`Ncl`]: nested collaborative learning of several experts (Li et al., CVPR 2022).
//! - [`Gml`]: Gaussian-mixture-likelihood learning with a teacher (Suh and Seo, ICML 2023).
//!
//! Each has its plain form, `bs` (balanced softmax over s·cos, no margin), and its DBM form, `dbm` ([`MarginLoss::dbm_bs`](crate::MarginLoss::dbm_bs)), both at the presets'
//! scale s = 32; `builder` takes any other [`MarginLoss`](crate::MarginLoss) that reduces by [`Reduction::Mean`](crate::Reduction::Mean) and ignores no row. `docs/companions.md` says which
//! equations are followed, where the authors' public code differs from their papers, and what could not be verified.
//!
//! All but the classification term is composed of Candle ops with Candle's autograd, in f32, or in f64 for f64: f16 and bf16 are widened, and
//! gradients come back in their own dtypes. On a CUDA device nothing is read back but what the classification term's check of its labels waits for
//! ([`check_labels`](crate::MarginLossBuilder::check_labels)). A batch must have at least one row.

mod bcl;
mod gml;
mod ncl;
mod shared;

pub use bcl::{Bcl, BclBuilder, BclOutput};
pub use gml::{Gml, GmlBatch, GmlBuilder, GmlOutput};
pub use ncl::{Ncl, NclBuilder, NclOutput};
