//! Attention of single tokens, the positions split among workgroups.

use tensor::DType;

use super::super::{Quantized, kernel};
use super::{Addresses, AttentionShape};
use crate::dispatch::{Dispatch, Push};
use crate::features::{DeviceKind, Features};

/// Most workgroups that the last of them has to join the results of; as in the shader.
const SPLITS_MAX: usize = 32;

/// Elements of queries that one lane should hold at most; it needs as many registers again for the sums.
const LANE_ELEMENTS: usize = 32;

/// Vectors of a position's keys that one lane should hold at most: 4 registers each, times the positions in
/// flight, and the same for the values.
const LANE_VECTORS: usize = 2;

/// Bytes that parts of the scratch memory begin at a multiple of.
const ALIGNMENT: u64 = 256;

/// How [`decode`] divides its work: a function of the shape and the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decode {
    /// Lanes that share a position.
    team: u32,
    /// Invocations of a workgroup.
    workgroup: u32,
    /// Positions that a team has in flight.
    step: u32,
    /// Workgroups for each token and head of keys.
    splits: usize,
}

impl Decode {
    /// For up to `tokens` tokens at positions below `context`; `None` where heads of that size need
    /// [`super::prefill`].
    pub(crate) fn new(features: &Features, shape: &AttentionShape, tokens: usize, context: usize) -> Option<Decode> {
        let vector = match shape.cache_dtype {
            DType::F16 => 8,
            DType::Q8_0 => 16,
            _ => 4,
        };
        if !shape.head_dim.is_multiple_of(vector) || shape.group() * shape.head_dim > 4096 {
            return None;
        }
        let (vectors, subgroup) = (shape.head_dim / vector, features.subgroup as usize);
        let fits = |team: usize| team <= subgroup && vectors.is_multiple_of(team);
        let mut team = [8, 4, 2, 1].into_iter().find(|&team| fits(team))?;
        let full = |team: usize| shape.head_dim * shape.group() > LANE_ELEMENTS * team || vectors > LANE_VECTORS * team;
        while full(team) && fits(2 * team) {
            team *= 2;
        }
        // Workgroups that keep the device busy, their size, and positions in flight (written out, which takes lavapipe
        // seconds to compile).
        let (groups, workgroup, step) = match features.kind {
            DeviceKind::Discrete | DeviceKind::Virtual => (256, 256, 4),
            DeviceKind::Integrated => (48, 256, 4),
            DeviceKind::Software => (4, 64, 2),
        };
        let workgroup = workgroup.min(features.workgroup_max).max(features.subgroup);
        let block = workgroup as usize / team * step as usize;
        let visible = shape.window.unwrap_or(context).min(context);
        let splits = (groups as usize).div_ceil(shape.kv_heads * tokens.max(1));
        let splits = splits.clamp(1, SPLITS_MAX).min(visible.div_ceil(block).max(1));
        Some(Decode { team: team as u32, workgroup, step, splits })
    }

    /// Bytes of the statistics and the partial results of `tokens` tokens.
    fn parts(&self, shape: &AttentionShape, tokens: usize) -> [u64; 2] {
        let heads = (tokens * shape.kv_heads * self.splits * shape.group()) as u64;
        [8 * heads, 4 * heads * shape.head_dim as u64].map(|bytes| bytes.next_multiple_of(ALIGNMENT))
    }

    /// Bytes of [`Scratch::partial`] for `tokens` tokens.
    pub(crate) fn partial_bytes(&self, shape: &AttentionShape, tokens: usize) -> u64 {
        self.parts(shape, tokens).iter().sum()
    }

    /// Bytes of [`Scratch::counters`] for `tokens` tokens.
    pub(crate) fn counter_bytes(shape: &AttentionShape, tokens: usize) -> u64 {
        4 * (tokens * shape.kv_heads) as u64
    }
}

/// Memory for intermediate results: addresses. Launches that may overlap need memory of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scratch {
    /// Workgroups that have arrived, for each token and head of keys. They must be zero before the first launch; every
    /// launch leaves them zero.
    pub(crate) counters: u64,
    /// Statistics and sums of each workgroup.
    pub(crate) partial: u64,
}

/// Attention of `rows` tokens, each of whatever position and sequence `tokens` says, the address of a
/// `{token, position, sequence, 0}` for each.
///
/// # Panics
/// If a result in 8 bits is asked for and heads are no multiple of 32.
pub(crate) fn decode(
    features: &Features,
    (plan, shape): (&Decode, &AttentionShape),
    a: &Addresses,
    (tokens, rows): (u64, usize),
    scratch: Scratch,
    quantized: Option<Quantized>,
) -> Dispatch {
    assert!(quantized.is_none() || shape.head_dim.is_multiple_of(32), "blocks of 32 in heads of {}", shape.head_dim);
    let mut kernel = kernel(features, shape.cache().shader("attention_decode"), shape.constants());
    kernel.workgroup = plan.workgroup;
    kernel.constants.extend([plan.team, u32::from(quantized.is_some()), plan.step]);
    let [statistics, _] = plan.parts(shape, rows);
    let Scratch { counters, partial } = scratch;
    let push = Push::default().address(a.query).address(a.keys).address(a.values).address(a.output).address(tokens);
    let push = push.address(counters).address(partial).address(partial + statistics);
    let Quantized { values, sums } = quantized.unwrap_or(Quantized { values: 0, sums: 0 });
    let push = push.address(values).address(sums).number(shape.pitch()).number(shape.ring);
    let mut writes = vec![a.output, counters, partial];
    writes.extend(quantized.into_iter().flat_map(|quantized| [quantized.values, quantized.sums]));
    Dispatch {
        kernel,
        groups: [plan.splits as u32, shape.kv_heads as u32, rows as u32],
        push: push.number(shape.window_or_all()).float(shape.scale_log2()),
        reads: vec![a.query, a.keys, a.values, tokens],
        writes,
        // Of the queries and results alone: how much of the caches is read only the device knows.
        bytes: (2 * 4 * rows * shape.heads * shape.head_dim) as u64,
        operations: 0,
        label: shape.label("decode", rows),
        ..Dispatch::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{CASES, Experiment, SEGMENTS};
    use super::*;
    use crate::kernel::attention::testing::token_table;
    use crate::lab::Lab;

    #[test]
    fn results_are_those_of_the_reference_run_after_run() {
        let Some(mut lab) = Lab::for_tests() else { return };
        for (seed, case) in CASES.iter().enumerate() {
            for segments in SEGMENTS {
                let Some(experiment) = Experiment::new(&mut lab, seed as u64, case, segments) else { continue };
                let (shape, rows) = (&experiment.shape, experiment.tokens());
                // As for few tokens, so that positions are split.
                let Some(plan) = Decode::new(lab.features(), shape, 1, 300) else { continue };
                let tokens = lab.upload(&token_table(&experiment.places())).unwrap().address;
                let counters = lab.upload(&vec![0; Decode::counter_bytes(shape, rows) as usize]).unwrap();
                let partial = lab.upload(&vec![0xff; plan.partial_bytes(shape, rows) as usize]).unwrap().address;
                let scratch = Scratch { counters: counters.address, partial };
                let what = (&plan, shape);
                let dispatch = decode(lab.features(), what, &experiment.addresses, (tokens, rows), scratch, None);
                lab.run(&[dispatch.clone(), dispatch.clone(), dispatch]).unwrap();
                experiment.check(&mut lab);
                let counters = lab.download(counters, Decode::counter_bytes(shape, rows) as usize).unwrap();
                assert!(counters.iter().all(|&byte| byte == 0));
            }
        }
    }

    #[test]
    fn the_result_in_8_bits_is_that_in_f32_rounded() {
        let Some(mut lab) = Lab::for_tests() else { return };
        let experiment = Experiment::new(&mut lab, 1, &(4, 2, 96, None), &[(0, 200, 3), (1, 7, 1)]).unwrap();
        let (shape, rows) = (&experiment.shape, experiment.tokens());
        let plan = Decode::new(lab.features(), shape, 1, 300).unwrap();
        let tokens = lab.upload(&token_table(&experiment.places())).unwrap().address;
        let counters = lab.upload(&vec![0; Decode::counter_bytes(shape, rows) as usize]).unwrap().address;
        let partial = lab.upload(&vec![0xff; plan.partial_bytes(shape, rows) as usize]).unwrap().address;
        let scratch = Scratch { counters, partial };
        let width = shape.heads * shape.head_dim;
        let values = lab.upload(&vec![0; rows * width]).unwrap();
        let meta = lab.upload(&vec![0; rows * width / 16 * 8]).unwrap();
        let quantized = Some(Quantized { values: values.address, sums: meta.address });
        let dispatch =
            decode(lab.features(), (&plan, shape), &experiment.addresses, (tokens, rows), scratch, quantized);
        lab.run(&[dispatch]).unwrap();
        experiment.check(&mut lab);
        let output = experiment.output(&mut lab);
        let values = lab.download(values, rows * width).unwrap();
        let meta = lab.download(meta, rows * width / 16 * 8).unwrap();
        for (index, meta) in bytemuck::cast_slice::<u8, [f32; 2]>(&meta).iter().enumerate() {
            let block = &output[index / 2 * 32..][..32];
            let scale = block.iter().fold(0f32, |largest, x| largest.max(x.abs())) / 127.0;
            let expected: Vec<i8> = output[index * 16..][..16].iter().map(|x| (x / scale).round() as i8).collect();
            assert_eq!(bytemuck::cast_slice::<u8, i8>(&values[index * 16..][..16]), expected);
            let sum: i32 = expected.iter().map(|&value| i32::from(value)).sum();
            assert_eq!(*meta, [scale, scale * sum as f32]);
        }
    }

    #[test]
    fn work_is_divided_by_the_size_of_the_device_and_of_the_context() {
        let Some(lab) = Lab::for_tests() else { return };
        let mut features = lab.features().clone();
        (features.kind, features.subgroup, features.workgroup_max) = (DeviceKind::Discrete, 32, 1024);
        let shape = |heads, kv_heads, head_dim, window| AttentionShape {
            heads,
            kv_heads,
            head_dim,
            window,
            scale: 1.0,
            cache_dtype: DType::F16,
            ring: 8192,
        };
        let plan = |shape, tokens, context| {
            let plan = Decode::new(&features, &shape, tokens, context).unwrap();
            (plan.team, plan.splits)
        };
        // Gemma 3 27B and 1B.
        assert_eq!(plan(shape(32, 16, 128, None), 1, 8192), (8, 16));
        assert_eq!(plan(shape(32, 16, 128, None), 8, 8192), (8, 2));
        assert_eq!(plan(shape(32, 16, 128, Some(1024)), 1, 8192), (8, 8));
        assert_eq!(plan(shape(4, 1, 256, None), 1, 8192), (32, 32));
        assert_eq!(plan(shape(4, 1, 256, None), 1, 100), (32, 4));
        assert_eq!(Decode::new(&features, &shape(5, 1, 6, None), 1, 100), None);
    }
}
