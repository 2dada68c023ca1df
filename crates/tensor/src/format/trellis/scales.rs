//! The scales of a trellis weight.

use half::f16;

use super::Linear;

/// The scales of a trellis weight, with those of the padding.
#[derive(Clone, Debug, PartialEq)]
pub struct Scales {
    /// Signs and scales of the inputs.
    pub suh: Vec<f16>,
    /// Signs and scales of the outputs.
    pub svh: Vec<f16>,
}

impl From<&Linear<'_>> for Scales {
    fn from(linear: &Linear<'_>) -> Scales {
        Scales { suh: linear.suh().to_vec(), svh: linear.svh().to_vec() }
    }
}
