//! What passes are made from: a program, where its parts lie, and its plans.

use std::collections::HashMap;
use std::sync::Arc;

use tensor::{DType, LoadOptions, Program};

use crate::announce;
use crate::context::Context;
use crate::dispatch::Dispatch;
use crate::kernel::attention::Scratch;
use crate::kernel::matmul::{Path, path};
use crate::kernel::matvec::COLUMNS_MAX;
use crate::kernel::rope::RopeAddresses;
use crate::leave;
use crate::place::Buffers;
use crate::plan::{Rope, Setting, Step, plan};
use crate::record::{BatchAddresses, Counts, Recorder};
use crate::touch;

/// The parts of a loaded program that don't change from pass to pass.
pub(crate) struct Scene {
    pub(crate) context: Arc<Context>,
    pub(crate) program: Program,
    pub(crate) options: LoadOptions,
    pub(crate) buffers: Buffers,
    pub(crate) ropes: HashMap<Rope, RopeAddresses>,
    pub(crate) batch: BatchAddresses,
    pub(crate) scratch: Scratch,
    /// Address of a word that nobody reads.
    pub(crate) sink: u64,
    /// For every setting that passes can have: [`plans`].
    pub(crate) plans: HashMap<Setting, Vec<Step>>,
}

impl Scene {
    /// The dispatches of a pass, some of which begin together where the device can do that. Not for timing each of
    /// them.
    pub(crate) fn joined_dispatches(&self, counts: Counts) -> Vec<Dispatch> {
        let mut dispatches = self.dispatches(counts);
        announce::insert(self.context.features(), self.scratch.counters, &mut dispatches);
        dispatches
    }

    /// The dispatches of a pass.
    pub(crate) fn dispatches(&self, counts: Counts) -> Vec<Dispatch> {
        let setting = setting(&self.context, &self.options, counts.tokens, counts.outputs);
        let recorder = Recorder {
            features: self.context.features(),
            program: &self.program,
            buffers: &self.buffers,
            ropes: &self.ropes,
            batch: self.batch,
            arithmetic: setting.arithmetic(),
            matrices: setting.matrices,
            scratch: self.scratch,
            context: self.options.context_max,
            counts,
        };
        let mut dispatches = recorder.dispatches(&self.plans[&setting]);
        leave::insert(self.batch.trellis.left, &mut dispatches);
        touch::insert(self.context.features(), self.sink, &mut dispatches);
        dispatches
    }
}

/// The plan for every setting that passes can have.
pub(crate) fn plans(context: &Context, program: &Program, options: &LoadOptions) -> HashMap<Setting, Vec<Step>> {
    settings(context, options).into_iter().map(|setting| (setting, plan(program, &setting))).collect()
}

/// The setting for a pass.
fn setting(context: &Context, options: &LoadOptions, tokens: usize, outputs: usize) -> Setting {
    Setting {
        precision: options.precision,
        integer_dot: context.features().integer_dot,
        matrices: path(context.features(), options.precision, DType::F16) == Path::Matrix,
        matrix_layout: context.features().matrix_layout,
        amd: context.features().is_amd(),
        few_tokens: tokens <= COLUMNS_MAX,
        few_outputs: outputs <= COLUMNS_MAX,
        one_token: tokens <= 1,
        one_output: outputs <= 1,
    }
}

/// Every setting that passes can have.
fn settings(context: &Context, options: &LoadOptions) -> Vec<Setting> {
    let counts = |most: usize| [1, 2.min(most), most].into_iter();
    counts(options.tokens_max)
        .flat_map(|tokens| counts(options.outputs_max).map(move |outputs| (tokens, outputs)))
        .map(|(tokens, outputs)| setting(context, options, tokens, outputs))
        .collect()
}
