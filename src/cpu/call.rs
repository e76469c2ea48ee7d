//! A call's inputs, how it is cut, and how its pieces are dealt to threads: what every step reads.

use rayon::prelude::*;

use super::instructions::Instructions;
use super::norm::Norm;
use super::numeric::{Element, Real};
use super::plan::{Operands, Plan};
use super::view::Rows;
use crate::options::{DEFAULT_WORKSPACE_BYTES, Normalize, Params};
use crate::problem::{Problem, Targets};

/// A call's inputs and how it is cut.
pub(super) struct Call<'a, X: Element, W> {
    pub params: &'a Params,
    pub targets: &'a Targets,
    pub n: usize,
    pub c: usize,
    pub d: usize,
    /// The class of W's first row: 0, or where a shard's classes begin. Classes below are counted from it, labels are not.
    pub first: usize,
    /// Which rows of W take part, where they are not all: classes below are counted in it
    pub index: Option<&'a [u32]>,
    /// X (N, D)
    pub x: Rows<'a, X>,
    /// W (C, D)
    pub w: Rows<'a, W>,
    pub operands: Operands,
    pub plan: Plan,
    pub arch: Instructions,
    /// Whether e^z neither overflows in a sum over the classes nor is flushed to 0, whatever the cosines: |c| ≤ 1 bounds every logit.
    pub bounded: bool,
}

/// A class's part in the logits: c = product·(1/‖w‖) + offset, z = s·σ_j·c + b.
#[derive(Debug, Clone, Copy)]
pub(super) struct Logit<T> {
    /// s·σ_j
    pub scale: T,
    /// b_j
    pub prior: T,
    /// The head's bias, 0 where it has none
    pub offset: T,
    /// The largest |c|: 1 of a cosine, ∞ of a product
    pub limit: T,
    /// σ_j, the class's scale
    pub class_scale: T,
}

impl<T: Real> Logit<T> {
    #[inline(always)]
    pub fn of(self, cosine: T) -> T {
        self.scale.mul_add(cosine, self.prior)
    }

    /// A product of ŵ/σ and x̂ to a cosine, clamped to [−1, 1], or to a head's x·w + b; NaN stays.
    #[inline(always)]
    pub fn cosine(self, product: T, sigma: T) -> T {
        let (low, high) = (T::ZERO - self.limit, self.limit);
        let c = product.mul_add(sigma, self.offset);
        let c = if c > high { high } else { c };
        if c < low { low } else { c }
    }
}

impl<'a, X, W> Call<'a, X, W>
where
    X: Element,
    W: Element<Acc = X::Acc>,
{
    pub fn new(
        problem: &Problem<'a>,
        targets: &'a Targets,
        x: Rows<'a, X>,
        w: Rows<'a, W>,
        operands: Operands,
    ) -> Self {
        let (n, c, d) = (problem.n, problem.c, problem.d);
        let params = problem.params();
        let budget = params.workspace_bytes.unwrap_or(DEFAULT_WORKSPACE_BYTES);
        let plan = Plan::new(targets.rows.len().max(1), c, d, size_of::<X::Acc>(), budget, operands);
        let scale = params.largest_scale();
        let largest = scale + (c as f64).ln(); // the largest b_j is 0
        let smallest = params.log_prior.iter().fold(0.0, |least: f64, &b| least.min(b)) - scale;
        let bounded = params.normalize == Normalize::Both && largest.max(-smallest) < -X::Acc::LOWEST - 3.0;
        Self {
            params,
            targets,
            n,
            c,
            d,
            first: problem.first,
            index: problem.index,
            x,
            w,
            operands,
            plan,
            arch: Instructions::new(),
            bounded,
        }
    }

    /// Does each piece of work, side by side where the problem is worth waking threads for.
    pub fn each<I: Send>(&self, pieces: Vec<I>, work: impl Fn(I) + Sync + Send) {
        if self.plan.lanes > 1 {
            pieces.into_par_iter().for_each(work);
        } else {
            pieces.into_iter().for_each(work);
        }
    }

    /// A row of W that takes part to its class of all.
    #[inline(always)]
    pub fn class_of(&self, row: usize) -> usize {
        self.first + self.index.map_or(row, |index| index[row] as usize)
    }

    /// A class of all to the row of W that takes part, where it does.
    pub fn row_of(&self, class: u32) -> Option<u32> {
        let row = class.checked_sub(self.first as u32)?;
        match self.index {
            None => ((row as usize) < self.c).then_some(row),
            Some(index) => index.binary_search(&row).ok().map(|at| at as u32),
        }
    }

    #[inline(always)]
    pub fn logit(&self, class: usize) -> Logit<X::Acc> {
        let (params, of) = (self.params, self.class_of(class));
        let class_scale = params.class_scale(of);
        Logit {
            scale: X::Acc::of(params.scale * class_scale),
            prior: X::Acc::of(params.log_prior[of]),
            offset: X::Acc::of(self.offset(class)),
            limit: if params.normalize == Normalize::Both { X::Acc::ONE } else { X::Acc::INFINITY },
            class_scale: X::Acc::of(class_scale),
        }
    }

    /// The head's bias of a class.
    #[inline(always)]
    pub fn offset(&self, class: usize) -> f64 {
        self.targets.bias.as_ref().map_or(0.0, |bias| bias[self.class_of(class)])
    }

    /// The norm that a row of X is divided by.
    #[inline(always)]
    pub fn x_norm(&self, row: &[X::Acc]) -> Norm {
        if self.params.normalize == Normalize::Both { Norm::of(row) } else { Norm::UNIT }
    }

    /// The norm that a row of W is divided by.
    #[inline(always)]
    pub fn w_norm(&self, row: &[X::Acc]) -> Norm {
        if self.params.normalize == Normalize::None { Norm::UNIT } else { Norm::of(row) }
    }
}
