//! Which tensors the result has, and how large they are.

use checkpoint::safetensors::Declared;
use engine::{ModelSource, SourceTensor};
use model::tensors::is_vision;
use model::{Role, TensorEntry};
use tensor::format::trellis::hadamard::BLOCK;
use tensor::format::trellis::{LEN, Rate};

use super::folder::declare;
use super::rounding::INPUTS;
use super::{Budget, Layout, PipelineError};

/// A weight that becomes a trellis.
#[derive(Clone, Debug)]
pub(super) struct Target<'a> {
    pub(super) tensor: &'a SourceTensor,
    /// What the names of its tensors begin with.
    pub(super) key: String,
    /// Its layer; the head has the number after the last.
    pub(super) layer: usize,
    /// Which input it gets: an index into [`INPUTS`]; 0 for the head.
    pub(super) input: usize,
}

impl Target<'_> {
    /// With padding.
    pub(super) fn outputs(&self) -> usize {
        self.tensor.entry.rows.next_multiple_of(BLOCK)
    }

    /// With padding.
    pub(super) fn inputs(&self) -> usize {
        self.tensor.entry.columns.next_multiple_of(BLOCK)
    }

    /// With padding.
    pub(super) fn weights(&self) -> u64 {
        (self.outputs() * self.inputs()) as u64
    }

    /// Bytes of its tiles.
    pub(super) fn tile_bytes(&self, rate: Rate) -> u64 {
        self.weights() / LEN as u64 * rate.tile_bytes() as u64
    }
}

/// All tensors of the result.
pub(super) struct Plan<'a> {
    pub(super) source: &'a ModelSource<'a>,
    /// Layer by layer, those of an input side by side; the head last.
    pub(super) targets: Vec<Target<'a>>,
    /// What is copied as it is, by their names, in order.
    pub(super) copied: Vec<Declared>,
    /// How many of these text does not need.
    extra: usize,
}

impl<'a> Plan<'a> {
    pub(super) fn new(source: &'a ModelSource<'a>, layout: Layout) -> Result<Plan<'a>, PipelineError> {
        let config = source.config();
        let tensors = source.tensors();
        let find = |role, layer| tensors.iter().find(|of| of.entry.role == role && of.entry.layer == layer);
        let mut targets = Vec::new();
        for layer in 0..config.layers.len() {
            for (input, roles) in INPUTS.iter().enumerate() {
                for &role in *roles {
                    let tensor = find(role, Some(layer)).expect("a tensor of every layer");
                    let key = tensor.name.trim_end_matches(".weight").to_owned();
                    targets.push(Target { tensor, key, layer, input });
                }
            }
        }
        let embedding = find(Role::Embedding, None).expect("an embedding");
        let head = find(Role::Head, None);
        let key = match head {
            Some(head) => head.name.trim_end_matches(".weight").to_owned(),
            None => head_key(source, embedding),
        };
        let tensor = head.unwrap_or(embedding);
        targets.push(Target { tensor, key, layer: config.layers.len(), input: 0 });

        let checkpoint = source.checkpoint();
        let mut copied: Vec<Declared> = Vec::new();
        let keeps_embedding = head.is_some() || layout == Layout::Exllamav3;
        for tensor in tensors.iter().filter(|of| of.entry.role.is_norm()) {
            copied.push(declare(&tensor.name, tensor.decoded(), tensor.entry.shape())?);
        }
        let before = copied.len();
        if keeps_embedding {
            copied.push(declare(&embedding.name, embedding.decoded(), embedding.entry.shape())?);
        }
        for info in checkpoint.tensors().iter().filter(|info| is_vision(&info.name)) {
            copied.push(declare(&info.name, info.dtype, info.shape.clone())?);
        }
        // An embedding of its own is a part of what text needs.
        let extra = copied.len() - before - usize::from(head.is_some());
        if head.is_some() {
            let embedding = copied.remove(before);
            copied.insert(0, embedding);
        }
        Ok(Plan { source, targets, copied, extra })
    }

    /// The targets of a layer and where they are among all.
    pub(super) fn of_layer(&self, layer: usize) -> impl Iterator<Item = (usize, &Target<'a>)> {
        self.targets.iter().enumerate().filter(move |(_, target)| target.layer == layer)
    }

    /// Lengths of the inputs of a layer's weights, with padding.
    pub(super) fn input_widths(&self) -> impl Iterator<Item = usize> {
        let input = |input| self.of_layer(0).find(move |(_, target)| target.input == input);
        (0..INPUTS.len()).filter_map(input).map(|(_, target)| target.inputs())
    }

    /// All weights that become trellises, with padding.
    pub(super) fn weights(&self) -> u64 {
        self.targets.iter().map(Target::weights).sum()
    }

    /// Bytes of all but tiles: what text needs, and the rest.
    fn other_bytes(&self) -> Result<(u64, u64), PipelineError> {
        let header = |name: &str| name.len() as u64 + 90;
        let mut needed = 256;
        for target in &self.targets {
            needed += 2 * (target.inputs() + target.outputs()) as u64 + 4;
            needed += 4 * header(&target.key) + 4 * 8;
        }
        let mut extra = 0;
        for (index, tensor) in self.copied.iter().enumerate() {
            let bytes = tensor.bytes()? + header(&tensor.name);
            *(if index < self.copied.len() - self.extra { &mut needed } else { &mut extra }) += bytes;
        }
        Ok((needed, extra))
    }

    /// Bytes that the tiles may have; an error if there are not enough for rates of `least`.
    pub(super) fn tile_budget(&self, budget: Budget, least: &[Rate]) -> Result<u64, PipelineError> {
        let (needed, extra) = self.other_bytes()?;
        let parameters = self.source.config().parameters();
        let (wanted, others) = match budget {
            Budget::BitsPerWeight(bits) => ((bits * parameters as f64 / 8.0) as u64, needed),
            Budget::Bytes(bytes) => (bytes, needed + extra),
        };
        let tiles: u64 = self.targets.iter().zip(least).map(|(target, &rate)| target.tile_bytes(rate)).sum();
        if others + tiles > wanted {
            return Err(PipelineError::Budget { wanted, least: others + tiles, parameters });
        }
        Ok(wanted - others)
    }

    /// Bytes of the result at these rates: of what text needs, and of all.
    pub(super) fn bytes(&self, rates: &[Rate]) -> Result<(u64, u64), PipelineError> {
        let (needed, extra) = self.other_bytes()?;
        let tiles: u64 = self.targets.iter().zip(rates).map(|(target, &rate)| target.tile_bytes(rate)).sum();
        Ok((needed + tiles, needed + tiles + extra))
    }
}

/// What exllamav3 calls the head of a model whose head is the embedding.
fn head_key(source: &ModelSource<'_>, embedding: &SourceTensor) -> String {
    let names = embedding.entry.hugging_face_names();
    let heads = TensorEntry::new(source.config(), Role::Head, None).hugging_face_names();
    let place = names.iter().position(|name| *name == embedding.name);
    // In a compact folder the embedding has the head's name already.
    let name = place.map_or(&embedding.name, |place| &heads[place]);
    name.trim_end_matches(".weight").to_owned()
}
