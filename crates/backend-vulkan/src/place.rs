//! Where a program's buffers lie on the device.

use std::collections::{HashMap, HashSet};

use tensor::backend::cache_positions;
use tensor::{
    BackendError, BufferId, BufferKind, DType, LoadOptions, MemoryUse, Program, Rows, TrellisFormat, WeightFormat,
};

use crate::kernel::cache_write::CacheShape;
use crate::kernel::matvec::COLUMNS_MAX;
use crate::kernel::to_half::Halves;
use crate::kernel::trellis::{Rotated, RotatedForm, TrellisWeight};
use crate::kernel::{Arrangement, Quantized, View, pitch};
use crate::layout::Weight;
use crate::memory::{Arena, Slice};
use crate::plan::{Form, Forms, Setting, Step};

/// A buffer on the device.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Placed {
    /// A constant.
    Weight(Weight, Slice),
    /// A constant in tiles.
    Trellis(TrellisWeight, Slice),
    /// Activations, and where their other forms go, if there are any.
    Scratch { view: View, slice: Slice, others: Others },
    /// Keys or values of one layer, and their address.
    Cache(CacheShape, u64),
}

/// Where other forms of activations than f32 rows go.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Others {
    quants: Option<Quantized>,
    halfs: Option<Halves>,
    /// Address of rotated values, and of their sums.
    rotated: Option<(u64, u64)>,
}

/// All buffers of a program.
pub(crate) struct Buffers {
    placed: Vec<Placed>,
    arena: Arena,
    used: MemoryUse,
}

impl Buffers {
    /// Decides the memory of a program whose steps, in every setting that will occur, are `plans`.
    ///
    /// # Errors
    /// Memory that is not there.
    pub(crate) fn new(
        arena: Arena,
        program: &Program,
        options: &LoadOptions,
        plans: &HashMap<Setting, Vec<Step>>,
    ) -> Result<Buffers, BackendError> {
        let forms: HashSet<(BufferId, Form)> = plans.values().flatten().flat_map(other_forms).collect();
        let mut buffers = Buffers { placed: Vec::new(), arena, used: MemoryUse::default() };
        for (index, buffer) in program.buffers().iter().enumerate() {
            let own = forms.iter().filter(|(other, _)| *other == BufferId(index as u32)).map(|(_, form)| *form);
            let placed = match buffer.kind {
                BufferKind::Weight { format: WeightFormat::Blocks(dtype), rows, columns } => {
                    buffers.weight(dtype, rows, columns)?
                }
                BufferKind::Weight { format: WeightFormat::Trellis(format), rows, columns } => {
                    buffers.trellis(format, rows, columns)?
                }
                BufferKind::Scratch { rows, width } => {
                    let count = match rows {
                        Rows::Tokens => options.tokens_max,
                        Rows::Outputs => options.outputs_max,
                    };
                    buffers.scratch(count, width, &own.collect::<Vec<_>>())?
                }
                BufferKind::Cache { width, window } => {
                    let positions = cache_positions(window, options);
                    buffers.cache(options.cache_dtype, width, positions, options.sequences_max)?
                }
            };
            buffers.placed.push(placed);
        }
        Ok(buffers)
    }

    fn weight(&mut self, dtype: DType, rows: usize, columns: usize) -> Result<Placed, BackendError> {
        let mut weight = Weight { address: 0, dtype, rows, columns };
        let slice = self.arena.allocate(weight.bytes() as u64, "the weights")?;
        weight.address = slice.address;
        self.used.weights += slice.size;
        Ok(Placed::Weight(weight, slice))
    }

    fn trellis(&mut self, format: TrellisFormat, rows: usize, columns: usize) -> Result<Placed, BackendError> {
        let mut weight = TrellisWeight { address: 0, format, rows, columns };
        let slice = self.arena.allocate(weight.bytes() as u64, "the weights")?;
        weight.address = slice.address;
        self.used.weights += slice.size;
        Ok(Placed::Trellis(weight, slice))
    }

    fn scratch(&mut self, count: usize, width: usize, forms: &[Form]) -> Result<Placed, BackendError> {
        let mut take = |bytes: usize| -> Result<Slice, BackendError> {
            let slice = self.arena.allocate(bytes as u64, "the activations")?;
            self.used.scratch += slice.size;
            Ok(slice)
        };
        let slice = take(count * pitch(width) * size_of::<f32>())?;
        let few = count.min(COLUMNS_MAX);
        let mut others = Others::default();
        if forms.iter().any(|form| matches!(form, Form::Quants(_))) {
            let values = take(few * width)?.address;
            others.quants = Some(Quantized { values, sums: take(few * width / 2)?.address, ..Quantized::default() });
        }
        if forms.contains(&Form::Halfs) {
            let halves = Halves { values: 0, scales: take(4 * count)?.address, width };
            others.halfs = Some(Halves { values: take(2 * count * halves.pitch())?.address, ..halves });
        }
        if forms.iter().any(|form| matches!(form, Form::Rotated(_))) {
            let (values, sums) = Rotated::bytes(few, width);
            others.rotated = Some((take(values)?.address, take(sums)?.address));
        }
        Ok(Placed::Scratch { view: View { address: slice.address, width }, slice, others })
    }

    fn cache(
        &mut self,
        dtype: DType,
        width: usize,
        positions: usize,
        sequences: usize,
    ) -> Result<Placed, BackendError> {
        let shape = CacheShape { dtype, width, ring: positions };
        let slice = self.arena.allocate(shape.bytes(sequences), "the caches")?;
        self.used.caches += slice.size;
        Ok(Placed::Cache(shape, slice.address))
    }

    /// Where a buffer lies.
    pub(crate) fn get(&self, id: BufferId) -> Placed {
        self.placed[id.index()]
    }

    /// A weight.
    ///
    /// # Panics
    /// If it is none: a bug, as programs are checked.
    pub(crate) fn weight_of(&self, id: BufferId) -> Weight {
        match self.get(id) {
            Placed::Weight(weight, _) => weight,
            Placed::Trellis(..) | Placed::Scratch { .. } | Placed::Cache(..) => unreachable!("programs are checked"),
        }
    }

    /// A weight of tiles.
    ///
    /// # Panics
    /// As [`Buffers::weight_of`].
    pub(crate) fn trellis_of(&self, id: BufferId) -> TrellisWeight {
        match self.get(id) {
            Placed::Trellis(weight, _) => weight,
            Placed::Weight(..) | Placed::Scratch { .. } | Placed::Cache(..) => unreachable!("programs are checked"),
        }
    }

    /// The f32 rows of activations.
    ///
    /// # Panics
    /// As [`Buffers::weight_of`].
    pub(crate) fn view(&self, id: BufferId) -> View {
        match self.get(id) {
            Placed::Scratch { view, .. } => view,
            Placed::Weight(..) | Placed::Trellis(..) | Placed::Cache(..) => unreachable!("programs are checked"),
        }
    }

    /// The 8-bit rows of activations, arranged as a step of the plan says.
    ///
    /// # Panics
    /// If no plan has them.
    pub(crate) fn quants(&self, id: BufferId, arrangement: Arrangement) -> Quantized {
        match self.get(id) {
            Placed::Scratch { others: Others { quants: Some(quants), .. }, .. } => Quantized { arrangement, ..quants },
            other => unreachable!("no plan has quants of {other:?}"),
        }
    }

    /// The f16 rows of activations.
    ///
    /// # Panics
    /// If no plan has them.
    pub(crate) fn halfs(&self, id: BufferId) -> Halves {
        match self.get(id) {
            Placed::Scratch { others: Others { halfs: Some(halfs), .. }, .. } => halfs,
            other => unreachable!("no plan has halves of {other:?}"),
        }
    }

    /// The rotated rows of activations in a form.
    ///
    /// # Panics
    /// If no plan has them.
    pub(crate) fn rotated(&self, id: BufferId, form: RotatedForm) -> Rotated {
        match self.get(id) {
            Placed::Scratch { others: Others { rotated: Some((values, sums)), .. }, .. } => {
                Rotated { form, values, sums }
            }
            other => unreachable!("no plan rotates {other:?}"),
        }
    }

    /// A cache's shape and address.
    ///
    /// # Panics
    /// As [`Buffers::weight_of`].
    pub(crate) fn cache_of(&self, id: BufferId) -> (CacheShape, u64) {
        match self.get(id) {
            Placed::Cache(shape, address) => (shape, address),
            Placed::Weight(..) | Placed::Trellis(..) | Placed::Scratch { .. } => unreachable!("programs are checked"),
        }
    }

    /// What has an address of its own besides the program's buffers.
    ///
    /// # Errors
    /// Memory that is not there.
    pub(crate) fn extra(&mut self, bytes: usize) -> Result<Slice, BackendError> {
        let slice = self.arena.allocate(bytes as u64, "the batch")?;
        self.used.scratch += slice.size;
        Ok(slice)
    }

    /// The blocks, for clearing.
    pub(crate) fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Bytes in use.
    pub(crate) fn used(&self) -> MemoryUse {
        self.used
    }
}

/// The buffers of which a step reads or writes another form than f32.
fn other_forms(step: &Step) -> Vec<(BufferId, Form)> {
    let written = |buffer: BufferId, forms: &Forms| {
        let quants = forms.quants.map(|arrangement| (buffer, Form::Quants(arrangement)));
        quants.into_iter().chain(forms.rotated.map(|rotation| (buffer, Form::Rotated(rotation))))
    };
    let read = |buffer: BufferId, form: Form| (form != Form::Floats).then_some((buffer, form));
    match step {
        Step::Plain(_) | Step::HeadPrepare { .. } => vec![],
        Step::Norm { output, forms, .. } => output.iter().flat_map(|(_, output)| written(*output, forms)).collect(),
        Step::Convert { input, form } | Step::Linear { input, form, .. } | Step::Trellis { input, form, .. } => {
            read(*input, *form).into_iter().collect()
        }
        Step::GateUp { input, form, output, forms, .. } => {
            read(*input, *form).into_iter().chain(written(*output, forms)).collect()
        }
        Step::Attention { op, forms } => written(op.writes(), forms).collect(),
    }
}
