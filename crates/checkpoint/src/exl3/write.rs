//! The tensors of a trellis weight, to be written.

use std::borrow::Cow;

use tensor::format::trellis::{Linear, StoredKind};

use crate::safetensors::{Declared, Element};

/// Most bytes of a file of weights, as exllamav3 writes them.
pub const SHARD_BYTES: u64 = 8192 << 20;

/// The tensors of one weight, in the order in which exllamav3 writes them.
#[derive(Clone, Debug)]
pub struct LinearTensors<'a>(Vec<(Declared, Cow<'a, [u8]>)>);

impl<'a> LinearTensors<'a> {
    /// Those of `name`, without `.weight`.
    pub fn new(name: &str, linear: &'a Linear<'_>) -> LinearTensors<'a> {
        let tensors = linear.tensors().into_iter().map(|tensor| {
            let element = match tensor.kind {
                StoredKind::I16 => Element::I16,
                StoredKind::I32 => Element::I32,
                StoredKind::F16 => Element::F16,
            };
            let name = format!("{name}.{}", tensor.suffix);
            (Declared { name, element, shape: tensor.shape }, tensor.bytes)
        });
        LinearTensors(tensors.collect())
    }

    /// What a writer has to know before.
    pub fn declared(&self) -> impl Iterator<Item = &Declared> {
        self.0.iter().map(|(declared, _)| declared)
    }

    /// Names and bytes, in the same order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(declared, bytes)| (declared.name.as_str(), &**bytes))
    }
}
