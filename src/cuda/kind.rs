//! Which of a kernel's kinds a problem takes, and what that kind takes of memory.

use candle_core::DType;
use candle_core::cuda::gemm_reduced_precision_f32;
use candle_core::cuda_backend::CudaDType;
use cudarc::driver::{DeviceRepr, ValidAsZeroBits};

use super::params;
use super::plan::{Fused, KindSizes, Limits, Sizes, TILE, WIDE_TILE};
use crate::problem::Problem;

/// The types that sums are in.
pub(super) trait Accumulator: CudaDType + DeviceRepr + ValidAsZeroBits {
    const ROW_STATE: usize;
    const NORM: usize;
    const STATISTICS: usize;
    const SIN_FLOOR: f64;
}

impl Accumulator for f32 {
    const ROW_STATE: usize = params::MARGIN_LOSS_ROW_STATE_F32 as usize;
    const NORM: usize = params::MARGIN_LOSS_NORM_F32 as usize;
    const STATISTICS: usize = params::MARGIN_LOSS_STATISTICS_F32 as usize;
    const SIN_FLOOR: f64 = 0.000345266983001244; // √ε
}

impl Accumulator for f64 {
    const ROW_STATE: usize = params::MARGIN_LOSS_ROW_STATE_F64 as usize;
    const NORM: usize = params::MARGIN_LOSS_NORM_F64 as usize;
    const STATISTICS: usize = params::MARGIN_LOSS_STATISTICS_F64 as usize;
    const SIN_FLOOR: f64 = 1.4901161193847656e-8; // √ε
}

/// How a problem's products are made: `OnFma`, `OnTf32` and `OnTensorCores` in kind.cuh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    pub x: DType,
    pub w: DType,
    pub by: Products,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Products {
    Fma,
    Tf32,
    TensorCores,
    /// By tiles of 128
    Wide,
}

impl Kind {
    /// Fewer dimensions are not worth a step of 64: padding would be most of it.
    const LEAST_DIMENSIONS: usize = 16;

    pub fn of(problem: &Problem, limits: &Limits, budget: usize) -> Self {
        let (x, w) = (problem.features.dtype(), problem.weight.dtype());
        Self::choose(x, w, [problem.n, problem.c, problem.d], problem.params().streaming, limits, budget)
    }

    /// Of N, C, D.
    pub fn choose(x: DType, w: DType, ncd: [usize; 3], streaming: bool, limits: &Limits, budget: usize) -> Self {
        let wide = ncd[2] >= Self::LEAST_DIMENSIONS;
        let by = match (x, w) {
            (DType::F64, _) => Products::Fma,
            (DType::F16 | DType::BF16, w) if w == x && wide => Products::TensorCores,
            // Candle's own switch, off unless the user sets it.
            (_, DType::F32) if wide && gemm_reduced_precision_f32() => Products::Tf32,
            _ => Products::Fma,
        };
        let narrow = Self { x, w, by };
        if by != Products::TensorCores {
            return narrow;
        }
        let wide = Self { by: Products::Wide, ..narrow };
        let fits = |kind: Self| {
            let sizes = kind.problem_sizes(ncd);
            !streaming && Fused::new(&sizes, limits, &kind.sizes(), budget, true, true).is_some()
        };
        // One launch before wide tiles.
        let is_wide = wide.problem_sizes(ncd).are_wide(limits, &wide.sizes()) && (fits(wide) || !fits(narrow));
        if is_wide { wide } else { narrow }
    }

    /// What its kernels' names end with.
    pub fn suffix(self) -> String {
        let (x, w) = (self.x.as_str(), self.w.as_str());
        let types = if x == w { x.to_string() } else { format!("{x}_{w}") };
        match self.by {
            Products::Fma => types,
            Products::Tf32 => format!("{types}_tf32"),
            Products::TensorCores => format!("{types}_tensor"),
            Products::Wide => format!("{types}_wide"),
        }
    }

    /// Bytes of an element of g: `Engine::G` of its contraction.
    pub fn g(self) -> usize {
        match (self.x, self.by) {
            (DType::F64, _) => 8,
            (DType::BF16, Products::TensorCores | Products::Wide) => 2,
            _ => 4,
        }
    }

    /// Sides of its tiles: of cosines, of a contraction. f16's gradients are contracted in TF32.
    fn tiles(self) -> (usize, usize) {
        match (self.x, self.by) {
            (DType::F16, Products::Wide) => (WIDE_TILE, TILE),
            (_, Products::Wide) => (WIDE_TILE, WIDE_TILE),
            _ => (TILE, TILE),
        }
    }

    /// What its kernels take: `Kind::STEP_SHARED` and `Kind::CONTRACT_SHARED` in kind.cuh, and the sizes that params.h has.
    pub fn sizes(self) -> KindSizes {
        let shared = match (self.x, self.by) {
            (DType::F64, _) => params::MARGIN_LOSS_STEP_SHARED_F64,
            (_, Products::Fma) => params::MARGIN_LOSS_STEP_SHARED_F32,
            (_, Products::Tf32) => params::MARGIN_LOSS_STEP_SHARED_TF32,
            (_, Products::TensorCores) => params::MARGIN_LOSS_STEP_SHARED_TENSOR,
            (_, Products::Wide) => params::MARGIN_LOSS_STEP_SHARED_WIDE,
        };
        let contract_shared = match (self.x, self.by) {
            (DType::F64, _) => params::MARGIN_LOSS_CONTRACT_SHARED_F64,
            (_, Products::Fma) => params::MARGIN_LOSS_CONTRACT_SHARED_F32,
            (DType::F16, _) | (_, Products::Tf32) => params::MARGIN_LOSS_CONTRACT_SHARED_TF32,
            (_, Products::TensorCores) => params::MARGIN_LOSS_CONTRACT_SHARED_TENSOR,
            (_, Products::Wide) => params::MARGIN_LOSS_CONTRACT_SHARED_WIDE,
        };
        let (statistics, row_state, norm) = match self.x {
            DType::F64 => (f64::STATISTICS, f64::ROW_STATE, f64::NORM),
            _ => (f32::STATISTICS, f32::ROW_STATE, f32::NORM),
        };
        KindSizes {
            shared: shared as usize,
            contract_shared: contract_shared as usize,
            statistics,
            row_state,
            norm,
            alone: if self.by == Products::Fma { 2 } else { 6 },
        }
    }

    /// A problem's N, C, D and what this kind makes of them, as the plans take them.
    pub fn problem_sizes(self, [n, c, d]: [usize; 3]) -> Sizes {
        let (tile, contract_tile) = self.tiles();
        Sizes {
            n,
            c,
            d,
            x: self.x.size_in_bytes(),
            w: self.w.size_in_bytes(),
            g: self.g(),
            sum: if self.x == DType::F64 { 8 } else { 4 },
            tile,
            contract_tile,
        }
    }
}
