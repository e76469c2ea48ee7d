//! [`MarginLossBuilder`]: options, checked, to [`Params`].

use crate::counts::ClassCounts;
use crate::error::{Error, Result};
use crate::margin::{AngleRange, InstanceGate, Margin, MarginRule, TargetGradient};
use crate::options::{
    ClassScales, ClassWeights, LARGEST, LEAST_WEIGHT, LabelCheck, Normalize, OUT, Params, Path, Prior, Reduction,
};
use crate::row_loss::RowLoss;

/// The smallest q: below it 1 − p^q has few digits, and none at last.
const LEAST_Q: f64 = 1e-6;

/// The smallest σ_j; its inverse is the largest.
const LEAST_CLASS_SCALE: f64 = 1e-6;

/// The largest λ: ψ′ is in λ·A/2, and is to leave room in single precision.
const MOST_STRENGTH: f64 = 1e6;

/// Sets a [`MarginLoss`](crate::MarginLoss)'s options; [`build`](MarginLossBuilder::build) checks that they make sense together.
#[derive(Debug, Clone)]
pub struct MarginLossBuilder {
    classes: usize,
    counts: Option<ClassCounts>,
    scale: Option<f64>,
    normalize: Normalize,
    class_scales: ClassScales,
    margin: Margin,
    gate: InstanceGate,
    instance_strength: Option<f64>,
    angle_range: Option<AngleRange>,
    gradient: TargetGradient,
    prior: Prior,
    weights: ClassWeights,
    reduction: Reduction,
    ignore_index: Option<i64>,
    label_smoothing: f64,
    row_margins: bool,
    row_loss: RowLoss,
    path: Path,
    recompute_gradients: bool,
    workspace_bytes: Option<usize>,
    check_labels: LabelCheck,
    keep_workspace: bool,
    streaming: bool,
}

impl MarginLossBuilder {
    pub(crate) fn new(classes: usize) -> Self {
        Self {
            classes,
            counts: None,
            scale: None,
            normalize: Normalize::Both,
            class_scales: ClassScales::None,
            margin: Margin::None,
            gate: InstanceGate::Off,
            instance_strength: None,
            angle_range: None,
            gradient: TargetGradient::Exact,
            prior: Prior::None,
            weights: ClassWeights::None,
            reduction: Reduction::Mean,
            ignore_index: None,
            label_smoothing: 0.0,
            row_margins: false,
            row_loss: RowLoss::CrossEntropy,
            path: Path::Auto,
            recompute_gradients: false,
            workspace_bytes: None,
            check_labels: LabelCheck::AtOnce,
            keep_workspace: false,
            streaming: false,
        }
    }

    /// The training samples per class, for the options that need them.
    pub fn counts(mut self, counts: &ClassCounts) -> Self {
        self.counts = Some(counts.clone());
        self
    }

    /// Which rows are divided by their norms. Default [`Normalize::Both`]: cosines.
    pub fn normalize(mut self, normalize: Normalize) -> Self {
        self.normalize = normalize;
        self
    }

    /// What a class's logit is multiplied by beside s. Default [`ClassScales::None`].
    pub fn class_scales(mut self, scales: ClassScales) -> Self {
        self.class_scales = scales;
        self
    }

    /// The scale s of the cosines, 0 < s ≤ 10⁹. Default 32, and 1 where X's rows are not normalised.
    pub fn scale(mut self, scale: f64) -> Self {
        self.scale = Some(scale);
        self
    }

    /// The margin family. Default [`Margin::None`].
    pub fn margin(mut self, margin: Margin) -> Self {
        self.margin = margin;
        self
    }

    /// Which samples get the instance margin; needs an angular margin. Default [`InstanceGate::Off`].
    pub fn instance_gate(mut self, gate: InstanceGate) -> Self {
        self.gate = gate;
        self
    }

    /// The strength λ of the instance margin, 0 ≤ λ ≤ 10⁶; needs an instance gate. Default 1.
    pub fn instance_strength(mut self, lambda: f64) -> Self {
        self.instance_strength = Some(lambda);
        self
    }

    /// Whether every row of a call brings margins α_i and β_i of its own ([`RowInputs::margins`](crate::RowInputs::margins)), on top of its class's:
    /// ψ = cos(m1·θ + a + α) − B − β. Default false.
    ///
    /// With [`Margin::None`] they are all there is: margins drawn anew for every row, margins that follow the norm of the features, margins learnt.
    pub fn row_margins(mut self, row_margins: bool) -> Self {
        self.row_margins = row_margins;
        self
    }

    /// What happens to angles beyond π, and where the margin does not help; needs a margin on the angle, or row margins. Default [`AngleRange::Monotone`] for SphereFace, else [`AngleRange::Wrap`].
    pub fn angle_range(mut self, angle_range: AngleRange) -> Self {
        self.angle_range = Some(angle_range);
        self
    }

    /// How the gradient passes through the margin. Default [`TargetGradient::Exact`].
    pub fn target_gradient(mut self, gradient: TargetGradient) -> Self {
        self.gradient = gradient;
        self
    }

    /// What is added to the logits for the classes' frequency. Default [`Prior::None`].
    pub fn prior(mut self, prior: Prior) -> Self {
        self.prior = prior;
        self
    }

    /// The weight of a row's loss by class. Default [`ClassWeights::None`].
    pub fn class_weights(mut self, weights: ClassWeights) -> Self {
        self.weights = weights;
        self
    }

    /// How the rows' losses become one. Default [`Reduction::Mean`].
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }

    pub(crate) fn map_reduction(mut self, change: impl FnOnce(Reduction) -> Reduction) -> Self {
        self.reduction = change(self.reduction);
        self
    }

    /// Rows with this label have no loss, no gradient and no part in any denominator. Default: none.
    pub fn ignore_index(mut self, index: i64) -> Self {
        self.ignore_index = Some(index);
        self
    }

    /// α of the target distribution (1 − α)·onehot + α/C, 0 ≤ α < 1. Default 0.
    pub fn label_smoothing(mut self, alpha: f64) -> Self {
        self.label_smoothing = alpha;
        self
    }

    /// What a row loses at the probability of its class. Default [`RowLoss::CrossEntropy`]; no other goes with label smoothing, which is a loss of every
    /// class's probability.
    pub fn row_loss(mut self, row_loss: RowLoss) -> Self {
        self.row_loss = row_loss;
        self
    }

    /// Which implementation a call takes. Default [`Path::Auto`].
    pub fn path(mut self, path: Path) -> Self {
        self.path = path;
        self
    }

    /// Whether a reduced loss on Candle's tape leaves its gradients to backward. Default false.
    ///
    /// By default they are made with the loss: three products of 2·N·C·D flop, and dX and dW (f32 for half types) are held until backward. With this
    /// a loss holds O(N) until then, and backward makes the cosines once more: four products. To be taken where several losses are added up before one
    /// backward: several heads, or a batch in parts. Where only the memory of gradient *accumulation* matters, a backward a part
    /// ([`MarginLoss::backward`](crate::MarginLoss::backward)) holds no more than the sum so far and the part's own, whatever the number of parts. X and W must not change between forward and
    /// backward: on the CPU that is an error, on a CUDA device it goes unseen.
    pub fn recompute_gradients(mut self, recompute: bool) -> Self {
        self.recompute_gradients = recompute;
        self
    }

    /// The memory that a call may use beyond inputs, outputs, gradients and O(N + C), in bytes. Default [`DEFAULT_WORKSPACE_BYTES`](crate::DEFAULT_WORKSPACE_BYTES) on the CPU
    /// and [`DEFAULT_CUDA_WORKSPACE_BYTES`](crate::DEFAULT_CUDA_WORKSPACE_BYTES) on a CUDA device.
    ///
    /// Less than 1 MiB is taken as 1 MiB; what one row of D features and one tile of classes need is taken in any case.
    pub fn workspace_bytes(mut self, bytes: usize) -> Self {
        self.workspace_bytes = Some(bytes);
        self
    }

    /// When a call on a CUDA device says that a label or a sample weight is none: [`LabelCheck`], or true for at once and false for never. Default true.
    ///
    /// At once is the one way in which a call waits for the device; only with false can a call be captured into a CUDA graph. A label or sample weight that
    /// cannot be never reaches memory in any case: its row's loss is NaN, and so is every gradient it reaches. On the CPU the check is always on.
    pub fn check_labels(mut self, check: impl Into<LabelCheck>) -> Self {
        self.check_labels = check.into();
        self
    }

    /// Whether a loss keeps its workspace on a CUDA device from one call to the next, one for each stream that it is used on and for each call that is
    /// made there at the same time, until it is dropped. Default false: a call allocates its workspace and gives it back in the stream's order.
    ///
    /// It is as large as the largest call needed, rounded up to a power of two, and what was outgrown stays, too; together less than four times the
    /// budget. A CUDA graph of a step then needs the loss as long as it is launched. On the CPU workspaces are always kept.
    pub fn keep_workspace(mut self, keep: bool) -> Self {
        self.keep_workspace = keep;
        self
    }

    /// Whether a CUDA device always takes the streaming kernels, of any size, and never the one launch that keeps the cosines on chip where they
    /// fit. Default false. Both give the same numbers to rounding; a device shared with other work may not want to be held by one launch.
    pub fn streaming(mut self, streaming: bool) -> Self {
        self.streaming = streaming;
        self
    }

    /// The options, checked, as the paths read them.
    pub(crate) fn params(self) -> Result<Params> {
        let classes = self.classes;
        if classes == 0 {
            return Err(Error::Option("at least one class is needed, C is 0".into()));
        }
        if let Some(counts) = &self.counts
            && counts.classes() != classes
        {
            return Err(Error::Counts(format!("{} counts for {classes} classes", counts.classes())));
        }
        let scale = self.scale.unwrap_or(if self.normalize == Normalize::Both { 32.0 } else { 1.0 });
        if !(scale > 0.0 && scale <= LARGEST) {
            return Err(Error::Option(format!("the scale s must be in 0 < s ≤ 1e9, it is {scale}")));
        }
        let class_scales = self.class_scale_table(scale)?;
        let (m1, angular, additive) = self.margin_tables()?;
        let on_angle = self.row_margins
            || m1 != 1.0
            || !matches!(self.margin, Margin::None | Margin::CosFace { .. } | Margin::Ldam { .. });
        let margin = self.margin.name();
        if self.normalize != Normalize::Both && on_angle {
            let what = if self.row_margins { "row margins" } else { margin };
            return Err(Error::Option(format!(
                "a margin on the angle needs normalised features and centres, and {what} is set with Normalize::{:?}",
                self.normalize
            )));
        }
        if self.gate != InstanceGate::Off && !self.has_class_margin() {
            return Err(Error::Option(format!(
                "the instance gate scales an angular class margin, and {margin} has none"
            )));
        }
        if self.gate == InstanceGate::Off {
            if self.instance_strength.is_some() {
                return Err(Error::Option("an instance strength λ is set, but the instance gate is off".into()));
            }
            if self.gradient == TargetGradient::DetachDifficulty {
                return Err(Error::Option("the difficulty can only be detached where an instance gate is on".into()));
            }
        }
        if self.angle_range.is_some() && !on_angle {
            return Err(Error::Option(format!("an angle range is set, but {margin} does not change the angle")));
        }
        let instance_strength = self.instance_strength.unwrap_or(1.0);
        range("the instance strength λ", instance_strength, 0.0, MOST_STRENGTH)?;
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return Err(Error::Option(format!(
                "the label smoothing α must be in 0 ≤ α < 1, it is {}",
                self.label_smoothing
            )));
        }
        match self.row_loss {
            RowLoss::CrossEntropy => {}
            _ if self.label_smoothing > 0.0 => {
                return Err(Error::Option(
                    "label smoothing goes with the cross-entropy alone, and another row loss is set".into(),
                ));
            }
            RowLoss::Focal { gamma } => drop(range("the focal loss: γ", gamma, 0.0, 100.0)?),
            RowLoss::Poly1 { epsilon } => drop(range("Poly-1: ε", epsilon, -1.0, 1e6)?),
            RowLoss::Generalized { q } => drop(range("generalised cross-entropy: q", q, LEAST_Q, 1.0)?),
        }
        if self.angle_range == Some(AngleRange::Linear) && m1 != 1.0 {
            return Err(Error::Option(format!(
                "the linear angle range is of an angle that is not multiplied, and m1 is {m1}"
            )));
        }
        let default_range = match self.margin {
            Margin::SphereFace { .. } => AngleRange::Monotone,
            _ => AngleRange::Wrap,
        };
        let rule = MarginRule {
            m1,
            gate: self.gate,
            instance_strength,
            angle_range: self.angle_range.unwrap_or(default_range),
            gradient: self.gradient,
        };
        Ok(Params {
            classes,
            scale,
            normalize: self.normalize,
            class_scales,
            rule,
            row_margins: self.row_margins,
            row_loss: self.row_loss,
            angular,
            additive,
            log_prior: self.log_prior()?,
            weights: self.weight_table()?,
            reduction: self.reduction,
            ignore_index: self.ignore_index,
            label_smoothing: self.label_smoothing,
            path: self.path,
            recompute_gradients: self.recompute_gradients,
            workspace_bytes: self.workspace_bytes.map(|bytes| bytes.max(1 << 20)),
            check_labels: self.check_labels,
            keep_workspace: self.keep_workspace,
            streaming: self.streaming,
        })
    }

    fn needed_counts(&self, what: &str) -> Result<&ClassCounts> {
        self.counts.as_ref().ok_or_else(|| Error::Option(format!("{what} needs class counts")))
    }

    fn has_class_margin(&self) -> bool {
        match &self.margin {
            Margin::None | Margin::SphereFace { .. } | Margin::CosFace { .. } | Margin::Ldam { .. } => false,
            Margin::ArcFace { .. } | Margin::Dbm { .. } => true,
            Margin::Combined { m2, .. } => *m2 != 0.0,
            Margin::PerClass { angular, .. } => angular.iter().any(|&a| a != 0.0),
        }
    }

    /// (m1, A, B)
    fn margin_tables(&self) -> Result<(f64, Vec<f64>, Vec<f64>)> {
        use std::f64::consts::PI;
        let all = |value: f64| vec![value; self.classes];
        let name = self.margin.name();
        let angle = |value: f64| range(&format!("{name}: the angular margin"), value, 0.0, PI);
        let cosine = |value: f64| range(&format!("{name}: the cosine margin"), value, 0.0, 2.0);
        let factor = |value: f64| range(&format!("{name}: the angle's factor"), value, 1.0, 1e3);
        Ok(match &self.margin {
            Margin::None => (1.0, all(0.0), all(0.0)),
            Margin::SphereFace { m } => (factor(*m)?, all(0.0), all(0.0)),
            Margin::CosFace { m } => (1.0, all(0.0), all(cosine(*m)?)),
            Margin::ArcFace { m } => (1.0, all(angle(*m)?), all(0.0)),
            Margin::Ldam { max_m } => (1.0, all(0.0), self.needed_counts("LDAM")?.ldam_margins(cosine(*max_m)?)),
            Margin::Dbm { k, tau } => {
                range("DBM: the frequency exponent τ", *tau, 0.0, f64::MAX)?;
                (
                    1.0,
                    self.needed_counts("DBM")?.dbm_margins(range("DBM: the margin scale K", *k, 0.0, PI)?, *tau),
                    all(0.0),
                )
            }
            Margin::Combined { m1, m2, m3 } => (factor(*m1)?, all(angle(*m2)?), all(cosine(*m3)?)),
            Margin::PerClass { m1, angular, cosine } => {
                self.table("the per-class angular margin", angular, -PI, PI)?;
                self.table("the per-class cosine margin", cosine, -2.0, 2.0)?;
                (factor(*m1)?, angular.clone(), cosine.clone())
            }
        })
    }

    fn log_prior(&self) -> Result<Vec<f64>> {
        let mut prior = match &self.prior {
            Prior::None => return Ok(vec![0.0; self.classes]),
            Prior::BalancedSoftmax { tau } => {
                let tau = range("the prior's exponent τ", *tau, 0.0, 1e6)?;
                let counts = self.needed_counts("balanced softmax")?;
                let of = |log_p: f64| if tau == 0.0 { 0.0 } else { tau * log_p };
                counts.log_priors().into_iter().map(of).collect()
            }
            Prior::LogPrior(values) => {
                self.table_of("the log prior", values, |what, value| match value {
                    f64::NEG_INFINITY => Ok(value),
                    _ if value.is_finite() => Ok(value),
                    _ => Err(Error::Option(format!("{what} must be finite or −∞, it is {value}"))),
                })?;
                values.clone()
            }
        };
        let largest = prior.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if largest == f64::NEG_INFINITY {
            return Err(Error::Option("the log prior of every class is −∞, one at least must be finite".into()));
        }
        prior.iter_mut().for_each(|value| *value = (*value - largest).max(OUT));
        if self.label_smoothing > 0.0
            && let Some(class) = prior.iter().position(|&value| value <= OUT)
        {
            return Err(Error::Option(format!(
                "label smoothing gives every class a share of the target, and the prior takes class {class} out"
            )));
        }
        Ok(prior)
    }

    /// σ_j, where they are not all 1
    fn class_scale_table(&self, scale: f64) -> Result<Option<Vec<f64>>> {
        let scales = match &self.class_scales {
            ClassScales::None => return Ok(None),
            ClassScales::Frequency { gamma } => {
                let gamma = range("the class scales' exponent γ", *gamma, 0.0, 10.0)?;
                self.needed_counts("scaling by frequency")?.frequency_scales(gamma)
            }
            ClassScales::PerClass(scales) => scales.clone(),
        };
        self.table("the class scale", &scales, LEAST_CLASS_SCALE, 1.0 / LEAST_CLASS_SCALE)?;
        let largest = scale * scales.iter().copied().fold(0.0, f64::max);
        if largest > LARGEST {
            return Err(Error::Option(format!(
                "the scale s times the largest class scale must be at most 1e9, it is {largest}"
            )));
        }
        Ok(scales.iter().any(|&scale| scale != 1.0).then_some(scales))
    }

    fn weight_table(&self) -> Result<Vec<f64>> {
        match &self.weights {
            ClassWeights::None => Ok(vec![1.0; self.classes]),
            ClassWeights::ClassBalanced { beta } => {
                self.needed_counts("class-balanced weighting")?.class_balanced_weights(*beta)
            }
            ClassWeights::ClassBalancedNormalized { beta } => {
                self.needed_counts("class-balanced weighting")?.class_balanced_weights_normalized(*beta)
            }
            ClassWeights::PerClass(weights) => {
                self.table_of("the class weight", weights, |what, value| match value {
                    0.0 => Ok(value),
                    _ if (LEAST_WEIGHT..=LARGEST).contains(&value) => Ok(value),
                    _ => Err(Error::Option(format!(
                        "{what} must be 0 or in {LEAST_WEIGHT:e}..={LARGEST:e}, it is {value}"
                    ))),
                })?;
                Ok(weights.clone())
            }
        }
    }

    fn table(&self, what: &str, values: &[f64], low: f64, high: f64) -> Result<()> {
        self.table_of(what, values, |what, value| range(what, value, low, high))
    }

    /// One value a class, each of which `check` takes.
    fn table_of(&self, what: &str, values: &[f64], check: impl Fn(&str, f64) -> Result<f64>) -> Result<()> {
        if values.len() != self.classes {
            return Err(Error::Option(format!("{what}: {} values for {} classes", values.len(), self.classes)));
        }
        values.iter().enumerate().try_for_each(|(class, &v)| check(&format!("{what} of class {class}"), v).map(drop))
    }
}

/// `value`, if it is finite and in `low..=high`.
fn range(what: &str, value: f64, low: f64, high: f64) -> Result<f64> {
    if value.is_finite() && (low..=high).contains(&value) {
        return Ok(value);
    }
    let bounds = if high == f64::MAX { format!("finite and at least {low}") } else { format!("in {low}..={high}") };
    Err(Error::Option(format!("{what} must be {bounds}, it is {value}")))
}
