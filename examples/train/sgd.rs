//! Stochastic gradient descent with momentum and weight decay, as PyTorch has it: v ← μ·v + (g + λ·p), p ← p − η·v. `candle_nn::SGD` has neither.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};

/// How the name of a variable ends that is no weight, and does not decay.
pub const NOT_DECAYED: &str = "log_temperature";

pub struct Sgd {
    pub lr: f64,
    momentum: f64,
    weight_decay: f64,
    variables: BTreeMap<String, Var>,
    /// v of each variable that has had a gradient
    velocities: BTreeMap<String, Tensor>,
}

impl Sgd {
    pub fn new(variables: BTreeMap<String, Var>, momentum: f64, weight_decay: f64) -> Self {
        Self { lr: 0.0, momentum, weight_decay, variables, velocities: BTreeMap::new() }
    }

    pub fn step(&mut self, gradients: &GradStore) -> Result<()> {
        for (name, variable) in &self.variables {
            let Some(gradient) = gradients.get(variable) else { continue };
            let parameter = variable.as_detached_tensor();
            let decay = if name.ends_with(NOT_DECAYED) { 0.0 } else { self.weight_decay };
            let change = (gradient + (&parameter * decay)?)?;
            let velocity = match self.velocities.get(name) {
                Some(velocity) => ((velocity * self.momentum)? + change)?,
                None => change,
            };
            variable.set(&(parameter - (&velocity * self.lr)?)?)?;
            self.velocities.insert(name.clone(), velocity.detach());
        }
        Ok(())
    }

    pub fn velocities(&self) -> &BTreeMap<String, Tensor> {
        &self.velocities
    }

    pub fn set_velocity(&mut self, name: &str, velocity: Tensor) {
        self.velocities.insert(name.to_string(), velocity);
    }
}
