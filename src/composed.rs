//! The loss of a checked problem, composed of Candle ops with Candle's autograd.

use std::f64::consts::PI;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::ops::log_softmax;

use crate::margin::{AngleRange, CLAMPED, InstanceGate, TargetGradient};
use crate::options::{Normalize, Params, Reduction};
use crate::output::{IGNORED, LossOutput};
use crate::problem::Problem;
use crate::row_loss::RowLoss;

/// Everything but labels and rows to ignore is a Candle op, so gradients come from Candle's tape.
pub(crate) fn forward(problem: &Problem) -> Result<LossOutput> {
    let targets = problem.targets()?;
    let (params, features) = (problem.params(), problem.features);
    let (device, dtype) = (features.device(), features.dtype());
    let weight = problem.weight.to_dtype(dtype)?;
    let valid = targets.rows.len();
    if valid == 0 {
        return empty(problem);
    }

    // Rows to ignore are dropped, so that nothing of theirs, NaN included, reaches the rest.
    let rows: Vec<u32> = targets.rows.iter().map(|target| target.row as u32).collect();
    let rows = Tensor::from_vec(rows, valid, device)?;
    let y: Vec<u32> = targets.rows.iter().map(|target| target.class).collect();
    let y = Tensor::from_vec(y, valid, device)?; // (V)
    let x = if valid == problem.n { features.clone() } else { features.index_select(&rows, 0)? }; // (V, D)
    let omega: Vec<f64> = targets.rows.iter().map(|target| target.weight).collect();
    // Not every device has f64.
    let on_device = |values: &[f64], dtype| Tensor::new(values, &Device::Cpu)?.to_dtype(dtype)?.to_device(device);
    let omega = on_device(&omega, dtype)?; // (V)
    let table = |values: &[f64]| on_device(values, dtype); // (C)

    // eq. (2): c = x̂·ŵ
    let cosines = match params.normalize {
        Normalize::Both => unit_rows(&x)?.matmul(&unit_rows(&weight)?.t()?)?.clamp(-1.0, 1.0)?,
        Normalize::Weight => x.matmul(&unit_rows(&weight)?.t()?)?,
        Normalize::None => x.matmul(&weight.t()?)?,
    }; // (V, C)
    let cosines = match problem.rows.bias {
        None => cosines,
        Some(bias) => cosines.broadcast_add(&bias.to_dtype(dtype)?)?,
    };
    let predicted = cosines.detach().argmax(D::Minus1)?; // (V)
    let hard = predicted.ne(&y)?; // (V) u8, eq. (9)
    let classes = Tensor::arange(0u32, params.classes as u32, device)?.reshape((1, params.classes))?;
    let is_target = y.reshape((valid, 1))?.broadcast_eq(&classes)?; // (V, C) u8
    let onehot = is_target.to_dtype(dtype)?;
    let c_y = (&cosines * &onehot)?.sum(D::Minus1)?; // (V)

    // eqs. (6) to (9): ψ
    let angular = table(&params.angular)?.index_select(&y, 0)?; // A_y
    let additive = table(&params.additive)?.index_select(&y, 0)?; // B_y
    // α and β of the rows
    let own = match problem.rows.margins {
        None => None,
        Some(margins) => {
            let margins = if valid == problem.n { margins.clone() } else { margins.index_select(&rows, 0)? };
            let margins = margins.to_dtype(dtype)?;
            Some((margins.narrow(1, 0, 1)?.flatten_all()?, margins.narrow(1, 1, 1)?.flatten_all()?))
        }
    };
    let alpha = own.as_ref().map(|(alpha, _)| alpha);
    let mut psi = (margin_cosine(params, &c_y, &angular, alpha, &hard)? - additive)?; // (V)
    if let Some((_, beta)) = &own {
        psi = (psi - beta)?;
    }

    // eqs. (4), (11): logits
    let psi = psi.reshape((valid, 1))?.broadcast_as((valid, params.classes))?;
    let z = (is_target.where_cond(&psi, &cosines)? * params.scale)?;
    let z = match &params.class_scales {
        None => z,
        Some(scales) => z.broadcast_mul(&table(scales)?)?,
    };
    let z = z.broadcast_add(&table(&params.log_prior)?)?;

    // eq. (5) with weights and smoothing
    let log_p = log_softmax(&z, D::Minus1)?;
    // Selected, not multiplied: of a class that is out, log p is −∞ in f16.
    let nll = is_target.where_cond(&log_p, &log_p.zeros_like()?)?.sum(D::Minus1)?.neg()?;
    let alpha = params.label_smoothing;
    let per_row = if alpha == 0.0 {
        row_loss(params.row_loss, &nll)?
    } else {
        ((nll * (1.0 - alpha))? - (log_p.mean(D::Minus1)? * alpha)?)?
    };
    let wide = problem.accumulation_dtype();
    let ell = (per_row * omega)?.to_dtype(wide)?; // (V)

    // Rows to ignore take a value of their own, put behind those of the others.
    let places: Vec<u32> = {
        let mut places = vec![valid as u32; problem.n];
        targets.rows.iter().enumerate().for_each(|(at, target)| places[target.row] = at as u32);
        places
    };
    let places = Tensor::from_vec(places, problem.n, device)?;
    let spread = |values: &Tensor, fill: &Tensor| -> Result<Tensor> {
        if valid == problem.n {
            return Ok(values.clone());
        }
        Tensor::cat(&[values, &fill.reshape(1)?], 0)?.index_select(&places, 0)
    };
    let zero = Tensor::zeros(1, wide, device)?;
    let per_sample = spread(&ell, &zero)?;
    let value = match params.reduction {
        Reduction::None => per_sample.clone(),
        // A tensor, since Candle takes a factor of 0 off the tape.
        _ => (ell.sum_all()? * on_device(&[targets.reduction_factor()], wide)?.reshape(())?)?,
    };
    Ok(LossOutput {
        loss: value,
        per_sample,
        predicted: spread(&predicted, &Tensor::new(IGNORED, device)?)?,
        hard: spread(&hard, &Tensor::new(0u8, device)?)?,
        target_cosine: spread(&c_y.detach().to_dtype(wide)?, &zero)?,
        margin_gradient: None,
        bias_gradient: None,
    })
}

/// What no valid row gives: zeros, still on the tape.
fn empty(problem: &Problem) -> Result<LossOutput> {
    let (n, wide, device) = (problem.n, problem.accumulation_dtype(), problem.features.device());
    // Selected away rather than multiplied by 0, which NaN would survive.
    let nothing = |tensor: &Tensor| {
        let never = Tensor::zeros(tensor.dims(), DType::U8, device)?;
        never.where_cond(tensor, &tensor.zeros_like()?)?.sum_all()?.to_dtype(wide)
    };
    let mut none = (nothing(problem.features)? + nothing(problem.weight)?)?;
    if let Some(margins) = problem.rows.margins {
        none = (none + nothing(margins)?)?;
    }
    if let Some(bias) = problem.rows.bias {
        none = (none + nothing(bias)?)?;
    }
    let zeros = Tensor::zeros(n, wide, device)?;
    let loss = match problem.params().reduction {
        Reduction::None => zeros.broadcast_add(&none)?,
        _ => none,
    };
    Ok(LossOutput {
        loss,
        per_sample: zeros.clone(),
        predicted: Tensor::full(IGNORED, n, device)?,
        hard: Tensor::zeros(n, DType::U8, device)?,
        target_cosine: zeros,
        margin_gradient: None,
        bias_gradient: None,
    })
}

/// F from −ln p, of any shape.
pub(crate) fn row_loss(row_loss: RowLoss, nll: &Tensor) -> Result<Tensor> {
    let away = || 1.0 - nll.neg()?.exp()?; // 1 − p
    match row_loss {
        RowLoss::CrossEntropy => Ok(nll.clone()),
        // Above 0, so that a power below 1 has a gradient.
        RowLoss::Focal { gamma } => away()?.maximum(1e-30)?.powf(gamma)? * nll,
        RowLoss::Poly1 { epsilon } => nll + (away()? * epsilon)?,
        RowLoss::Generalized { q } => (1.0 - (nll * -q)?.exp()?)? / q,
    }
}

/// Rows divided by max(‖row‖₂, 1e-12); the floor under the root, so that a row of zeros has a gradient.
pub(crate) fn unit_rows(rows: &Tensor) -> Result<Tensor> {
    let norm = rows.sqr()?.sum_keepdim(D::Minus1)?.maximum(1e-24)?.sqrt()?;
    rows.broadcast_div(&norm)
}

/// cos(m1·θ + a + α), continued beyond π as the options say; (V) from c_y (V), A_y (V), α (V) and the hard flags (V).
pub(crate) fn margin_cosine(
    params: &Params,
    c_y: &Tensor,
    angular: &Tensor,
    alpha: Option<&Tensor>,
    hard: &Tensor,
) -> Result<Tensor> {
    let rule = params.rule;
    let plain = alpha.is_none() && rule.m1 == 1.0 && params.angular.iter().all(|&a| a == 0.0);
    if plain {
        return Ok(c_y.clone());
    }
    let source = match rule.gradient {
        TargetGradient::StraightThrough => c_y.detach(),
        _ => c_y.clone(),
    };
    let difficulty = ((1.0 - &source)? / 2.0)?; // eq. (7)
    let difficulty = match rule.gradient {
        TargetGradient::Exact => difficulty,
        _ => difficulty.detach(),
    };
    let gate = match rule.gate {
        InstanceGate::Off => None,
        InstanceGate::Positives => Some(angular.clone()),
        InstanceGate::HardPositives => Some((angular * hard.to_dtype(angular.dtype())?)?),
    };
    let a = match gate {
        None => angular.clone(),
        Some(gate) => (angular + ((gate * difficulty)? * rule.instance_strength)?)?, // eqs. (8), (9)
    };
    let a = match alpha {
        None => a,
        Some(alpha) => (a + alpha)?,
    };
    let phi = ((arccos(&source)? * rule.m1)? + &a)?;
    let psi = match rule.angle_range {
        AngleRange::Wrap => phi.cos()?,
        AngleRange::Linear => {
            let line = (&source - (&a * a.sin()?)?)?;
            phi.gt(PI)?.where_cond(&line, &phi.cos()?)?
        }
        AngleRange::Easy => source.gt(0.0)?.where_cond(&phi.cos()?, &source)?,
        AngleRange::Clamp => phi.maximum(CLAMPED)?.minimum(PI - CLAMPED)?.cos()?,
        AngleRange::Monotone => {
            let k = (phi.detach() / PI)?.floor()?;
            let sign = (1.0 - ((&k - ((&k / 2.0)?.floor()? * 2.0)?)? * 2.0)?)?; // (−1)^k
            ((phi.cos()? * sign)? - (k * 2.0)?)?
        }
    };
    match rule.gradient {
        // The value of ψ with the gradient of c.
        TargetGradient::StraightThrough => c_y + (psi - c_y.detach())?,
        _ => Ok(psi),
    }
}

/// θ = arccos c with dθ/dc = −1 / max(sin θ, √ε). Candle has no arccos: a polynomial gives it to 7·10⁻⁵, and
/// Newton's steps on cos θ = c the rest; the last step carries the gradient.
fn arccos(c: &Tensor) -> Result<Tensor> {
    let constant = c.detach();
    let epsilon = match c.dtype() {
        DType::F64 => f64::EPSILON,
        DType::F16 => f64::from(half::f16::EPSILON),
        DType::BF16 => f64::from(half::bf16::EPSILON),
        _ => f64::from(f32::EPSILON),
    };
    let sin_floor = epsilon.sqrt();
    // arccos |c| ≈ √(1 − |c|)·(a0 + a1|c| + a2|c|² + a3|c|³) (Abramowitz and Stegun 4.4.45)
    let size = constant.abs()?;
    let poly = ((&size * -0.018_729_3)? + 0.074_261_0)?;
    let poly = ((poly * &size)? - 0.212_114_4)?;
    let poly = ((poly * &size)? + 1.570_728_8)?;
    let acute = ((1.0 - &size)?.sqrt()? * poly)?;
    let negative = constant.lt(0.0)?;
    let mut theta = negative.where_cond(&(PI - &acute)?, &acute)?;
    for _ in 0..2 {
        let sin = theta.sin()?.maximum(sin_floor)?;
        theta = (&theta + ((theta.cos()? - &constant)? / sin)?)?;
    }
    let sin = (1.0 - constant.sqr()?)?.maximum(0.0)?.sqrt()?.maximum(sin_floor)?;
    // θ(c) to first order at the constant: the value is the Newton step's, the gradient −1/sin θ.
    &theta + ((constant - c)? / sin)?
}
