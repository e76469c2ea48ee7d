//! ResNet-32 and its like for 32 × 32 images (He et al. 2016, section 4.2): three stages of 16, 32 and 64 channels with as many blocks each, shortcuts of
//! option A (every other pixel, channels filled up with zeros), global average pooling.

use candle_core::{Result, Tensor};
use candle_nn::{BatchNorm, Conv2d, Conv2dConfig, ModuleT, VarBuilder};

/// D, the dimension of its features
pub const FEATURES: usize = 64;
const STAGES: [(usize, usize); 3] = [(16, 1), (32, 2), (64, 2)];

/// A 3 × 3 convolution without bias, normalised over the batch.
struct Normalised {
    convolution: Conv2d,
    norm: BatchNorm,
}

impl Normalised {
    fn new(inputs: usize, outputs: usize, stride: usize, vb: VarBuilder) -> Result<Self> {
        let config = Conv2dConfig { padding: 1, stride, ..Default::default() };
        Ok(Self {
            convolution: candle_nn::conv2d_no_bias(inputs, outputs, 3, config, vb.pp("conv"))?,
            norm: candle_nn::batch_norm(outputs, 1e-5, vb.pp("norm"))?,
        })
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        x.apply(&self.convolution)?.apply_t(&self.norm, train)
    }
}

struct Block {
    first: Normalised,
    second: Normalised,
    stride: usize,
    /// Channels of zeros on either side of the shortcut's
    padding: usize,
}

impl Block {
    fn new(inputs: usize, outputs: usize, stride: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            first: Normalised::new(inputs, outputs, stride, vb.pp("first"))?,
            second: Normalised::new(outputs, outputs, 1, vb.pp("second"))?,
            stride,
            padding: (outputs - inputs) / 2,
        })
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let residual = self.second.forward(&self.first.forward(x, train)?.relu()?, train)?;
        (residual + shortcut(x, self.stride, self.padding)?)?.relu()
    }
}

/// Option A: (N, C, H, W) → (N, C + 2·padding, H/stride, W/stride).
pub fn shortcut(x: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    let x = match stride {
        1 => x.clone(),
        _ => {
            let pixels = x.reshape((n, c, h / stride, stride, w / stride, stride))?;
            pixels.narrow(3, 0, 1)?.narrow(5, 0, 1)?.reshape((n, c, h / stride, w / stride))?
        }
    };
    x.pad_with_zeros(1, padding, padding)
}

pub struct ResNet {
    first: Normalised,
    /// Of all stages, as many each
    blocks: Vec<Block>,
}

impl ResNet {
    /// Of 6·`blocks` + 2 layers, the head among them: 5 blocks a stage are ResNet-32, 9 ResNet-56.
    pub fn new(blocks: usize, channels: usize, vb: VarBuilder) -> Result<Self> {
        let first = Normalised::new(channels, STAGES[0].0, 1, vb.pp("first"))?;
        let (a_stage, mut blocks, mut inputs) = (blocks, Vec::new(), STAGES[0].0);
        for (stage, (outputs, stride)) in STAGES.into_iter().enumerate() {
            for block in 0..a_stage {
                let vb = vb.pp(format!("stage{stage}.{block}"));
                blocks.push(Block::new(inputs, outputs, if block == 0 { stride } else { 1 }, vb)?);
                inputs = outputs;
            }
        }
        Ok(Self { first, blocks })
    }

    /// The layers that keep running means and variances, by the names of their variables.
    pub fn norms(&self) -> Vec<(String, &BatchNorm)> {
        let mut all = vec![("first.norm".to_string(), &self.first.norm)];
        let a_stage = self.blocks.len() / STAGES.len();
        for (i, block) in self.blocks.iter().enumerate() {
            let name = format!("stage{}.{}", i / a_stage, i % a_stage);
            all.push((format!("{name}.first.norm"), &block.first.norm));
            all.push((format!("{name}.second.norm"), &block.second.norm));
        }
        all
    }
}

impl ModuleT for ResNet {
    /// Features (N, 64) of images (N, channels, H, W), H and W multiples of 4.
    fn forward_t(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let mut x = self.first.forward(images, train)?.relu()?;
        for block in &self.blocks {
            x = block.forward(&x, train)?;
        }
        x.mean((2, 3))
    }
}
