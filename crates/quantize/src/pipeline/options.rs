//! What is asked for.

use tensor::format::trellis::Rate;

/// How large the result may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Bits per weight, everything counted that text needs: scales, norms and headers too, but not an embedding beside
    /// a head that has the same weights.
    BitsPerWeight(f64),
    /// Bytes of all weight files.
    Bytes(u64),
}

/// How bits are divided among the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// The same for all; what is left goes to attention first, and to layers near to either end.
    Uniform,
    /// By the rise of the KL divergence that each weight's errors cause, estimated from its layer's output, but in some
    /// layers.
    Estimated,
    /// By the rise of the KL divergence that each weight's errors cause.
    Measured,
}

/// What stands in the folder beside the trellises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A head that has the embedding's weights stands for it.
    Compact,
    /// The embedding as it was, for exllamav3.
    Exllamav3,
}

impl Layout {
    /// As it is written in files and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Layout::Compact => "compact",
            Layout::Exllamav3 => "exllamav3",
        }
    }
}

/// How a model is quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// How large it may become.
    pub budget: Budget,
    /// Bits per weight of the head; `None` to choose them with the others'.
    pub head: Option<Rate>,
    /// The rates to choose from, ascending.
    pub rates: Vec<Rate>,
    /// How bits are divided.
    pub allocation: Allocation,
    /// What the folder has.
    pub layout: Layout,
    /// Of random signs, and of the errors that sensitivities are measured with.
    pub seed: u64,
    /// Threads; the result does not depend on them, unless the backend's does.
    pub threads: usize,
    /// Whether errors are fed back to the other inputs.
    pub feedback: bool,
    /// What is added to the diagonal of a Hessian, over its mean.
    pub damping: f32,
    /// Tokens of the calibration text that sensitivities are measured on.
    pub probe_tokens: usize,
}

impl Options {
    /// The usual settings for a budget.
    pub fn new(budget: Budget) -> Options {
        let usual = [3, 4, 5, 6, 7, 8, 10, 12];
        Options {
            budget,
            head: None,
            rates: usual.into_iter().filter_map(Rate::from_half_bits).collect(),
            allocation: Allocation::Measured,
            layout: Layout::Compact,
            seed: 0,
            threads: 1,
            feedback: true,
            damping: 0.025,
            probe_tokens: 1024,
        }
    }
}

/// What a run does at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Measures what the errors of each weight cost.
    Sensitivity,
    /// Runs the calibration text through a layer.
    Calibration,
    /// Quantizes.
    Quantization,
    /// Writes a folder in another layout.
    Conversion,
}

/// Who looks on.
pub trait Observer: Sync {
    /// How far a stage is: weights of all weights, or bytes of all bytes of a conversion. Called from many threads.
    fn progress(&self, stage: Stage, done: u64, total: u64);

    /// Whether to stop soon.
    fn cancelled(&self) -> bool;
}
