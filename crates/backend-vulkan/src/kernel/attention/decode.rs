//! Attention of single tokens, the positions split among workgroups.

use tensor::DType;

use super::super::head_prepare::{HeadPrepare, supports};
use super::super::trellis::Rotated;
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
        // As many as AMD's compiler has registers for (`docs/vulkan-gfx1103.md`).
        let step: u32 = if features.is_amd() && shape.fills_registers() { 2 } else { step };
        let workgroup = workgroup.min(features.workgroup_max).max(features.subgroup);
        let block = workgroup as usize / team * step as usize;
        let visible = shape.window.unwrap_or(context).min(context);
        let splits = (groups as usize).div_ceil(shape.kv_heads * tokens.max(1));
        let splits = splits.clamp(1, SPLITS_MAX).min(visible.div_ceil(block).max(1));
        let fits = shared_bytes(shape, (workgroup / features.subgroup) as usize) <= features.shared_bytes as usize;
        fits.then_some(Decode { team: team as u32, workgroup, step, splits })
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

/// Bytes of a workgroup's shared memory, at most.
fn shared_bytes(shape: &AttentionShape, subgroups: usize) -> usize {
    let (group, head_dim) = (shape.group(), shape.head_dim);
    // Sums of as many heads as fit into 16 KiB, or of one.
    let joined = subgroups * head_dim * (4096 / (subgroups * head_dim)).clamp(1, group);
    let statistics = 2 * group * (subgroups + SPLITS_MAX);
    let own = 2 * head_dim + 2 * head_dim + head_dim / 16 + 2;
    4 * (joined + statistics + group * head_dim + own)
}

/// Memory for intermediate results: addresses. Launches that may overlap need memory of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scratch {
    /// Workgroups that have arrived, for each token and head of keys. They must be zero before the first launch; every
    /// launch leaves them zero. Behind those of a single token, marks for workgroups of the next dispatch (`announce`).
    pub(crate) counters: u64,
    /// Statistics of each workgroup, then their sums, from a multiple of 256 bytes on.
    pub(crate) partial: u64,
}

/// In which forms results go out.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Also {
    /// f32.
    Nothing,
    /// f32 and 8 bits.
    Quantized(Quantized),
    /// Only rotated, for products whose inputs have these scales.
    OnlyRotated(Rotated, u64),
}

/// Attention of `rows` tokens, each of whatever position and sequence `tokens` says, the address of a
/// `{token, position, sequence, 0}` for each.
///
/// With `prepare`, queries, keys and values are as the projections left them: what
/// [`super::super::head_prepare::head_prepare`] does is done first, but that the prepared queries are written nowhere.
///
/// # Panics
/// If a result in 8 bits is asked for and heads are no multiple of 32, or `prepare` is about other heads and caches.
pub(crate) fn decode(
    features: &Features,
    (plan, shape): (&Decode, &AttentionShape),
    a: &Addresses,
    (tokens, rows): (u64, usize),
    scratch: Scratch,
    also: Also,
    prepare: Option<&HeadPrepare>,
) -> Dispatch {
    let (quantized, rotated) = match also {
        Also::Nothing => (None, None),
        Also::Quantized(quantized) => (Some(quantized), None),
        Also::OnlyRotated(rotated, scales) => (None, Some((rotated, scales))),
    };
    assert!(rotated.is_none() || shape.can_rotate(), "blocks of 128 in groups of {}", shape.group() * shape.head_dim);
    assert!(quantized.is_none() || shape.head_dim.is_multiple_of(32), "blocks of 32 in heads of {}", shape.head_dim);
    let mut kernel = kernel(features, shape.cache().shader("attention_decode"), shape.constants());
    kernel.workgroup = plan.workgroup;
    let epsilon = prepare.map_or(0.0, |prepare| prepare.epsilon);
    kernel.constants.extend([plan.team, u32::from(quantized.is_some()), plan.step]);
    kernel.constants.extend([u32::from(prepare.is_some()), epsilon.to_bits()]);
    let Scratch { counters, partial } = scratch;
    let target = rotated.map_or(a.output, |(_, scales)| scales);
    let push = Push::default().address(a.query).address(a.keys).address(a.values).address(target).address(tokens);
    let push = push.address(counters).address(partial);
    let Quantized { mut values, mut sums, arrangement } = quantized.unwrap_or_default();
    let form = rotated.map_or(0, |(rotated, _)| rotated.form as u32);
    kernel.constants.extend([arrangement.order as u32, form, 0]);
    if let Some((rotated, _)) = rotated {
        (values, sums) = (rotated.values, rotated.sums);
    }
    let raw = raw_heads(shape, a, prepare);
    let push = raw.into_iter().fold(push.address(values).address(sums), Push::address);
    let push = push.number(shape.pitch()).number(shape.ring);
    let mut reads = vec![a.query, a.keys, a.values, tokens];
    let mut writes = vec![counters, partial];
    writes.extend(rotated.is_none().then_some(a.output));
    writes.extend([values, sums].into_iter().filter(|&address| address != 0));
    if let Some(prepare) = prepare {
        reads.extend([prepare.key.address, prepare.value.address]);
        writes.extend([a.keys, a.values]);
    }
    let prepared = if prepare.is_some() { "_prepare" } else { "" };
    Dispatch {
        kernel,
        groups: [plan.splits as u32, shape.kv_heads as u32, rows as u32],
        push: push.number(shape.window_or_all()).float(shape.scale_log2()),
        reads,
        writes,
        // Of the queries and results alone: how much of the caches is read only the device knows.
        bytes: (2 * 4 * rows * shape.heads * shape.head_dim) as u64,
        operations: 0,
        label: shape.label(&format!("decode{prepared}"), rows),
        ..Dispatch::default()
    }
}

/// Number of the constant that says how many workgroups of the next dispatch wait, among the kernel's own.
const AWAITED: usize = 10;

/// Whether workgroups of the next dispatch can wait for it: it is about a single token.
pub(crate) fn can_announce(attention: &Dispatch) -> bool {
    attention.kernel.shader.starts_with("attention_decode.") && attention.groups[2] == 1
}

/// Lets `waiting` workgroups of the next dispatch go on when this one is done. Returns the address of the marks and how
/// many workgroups each of them waits for.
pub(crate) fn announce(attention: &mut Dispatch, waiting: u32) -> (u64, u32) {
    attention.kernel.constants[AWAITED] = waiting;
    let heads = attention.groups[1];
    let counters = attention.writes[0];
    (counters + 4 * u64::from(heads), heads)
}

/// Addresses of key, value, the weights of the norms of queries and keys, and the tables of angles.
fn raw_heads(shape: &AttentionShape, a: &Addresses, prepare: Option<&HeadPrepare>) -> [u64; 5] {
    let Some(prepare) = prepare else { return [0; 5] };
    let (query, kv_width) = (prepare.query, shape.kv_heads * shape.head_dim);
    assert!(supports(shape.head_dim, shape.cache_dtype), "heads of {} in {}", shape.head_dim, shape.cache_dtype);
    assert_eq!((prepare.head_dim, prepare.cache), (shape.head_dim, shape.cache()));
    assert_eq!((query.address, prepare.keys, prepare.values), (a.query, a.keys, a.values));
    assert_eq!(
        (query.width, prepare.key.width, prepare.value.width),
        (shape.heads * shape.head_dim, kv_width, kv_width)
    );
    let HeadPrepare { key, value, query_weight, key_weight, tables, .. } = *prepare;
    [key.address, value.address, query_weight, key_weight, tables.fine]
}

#[cfg(test)]
mod tests {
    use super::super::testing::{CASES, Experiment, SEGMENTS};
    use super::*;
    use crate::kernel::View;
    use crate::kernel::attention::testing::{Random, rows, token_table, unpad};
    use crate::kernel::cache_write::cache_write;
    use crate::kernel::head_prepare::head_prepare;
    use crate::kernel::quantize::tests::{check, in_order};
    use crate::kernel::rope::{RopeAddresses, RopeTables};
    use crate::lab::Lab;
    use crate::memory::Slice;

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
                let dispatch =
                    decode(lab.features(), what, &experiment.addresses, (tokens, rows), scratch, Also::Nothing, None);
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
        let quantized =
            Also::Quantized(Quantized { values: values.address, sums: meta.address, ..Quantized::default() });
        let dispatch =
            decode(lab.features(), (&plan, shape), &experiment.addresses, (tokens, rows), scratch, quantized, None);
        lab.run(&[dispatch]).unwrap();
        experiment.check(&mut lab);
        let output = experiment.output(&mut lab);
        let values = lab.download(values, rows * width).unwrap();
        let meta = lab.download(meta, rows * width / 16 * 8).unwrap();
        let (values, meta): (&[i8], &[[f32; 2]]) = (bytemuck::cast_slice(&values), bytemuck::cast_slice(&meta));
        let rows = output.chunks(width).zip(values.chunks(width)).zip(meta.chunks(width / 16));
        for ((output, values), meta) in rows {
            let (values, meta) = in_order(values, meta);
            check(output, &values, &meta);
        }
    }

    /// Heads of queries, heads of keys, size of a head, window, format of the caches.
    const FUSED: [(usize, usize, usize, Option<usize>, DType); 9] = [
        (4, 1, 64, None, DType::F32),
        (4, 1, 64, Some(1), DType::F16),
        (2, 1, 64, Some(33), DType::Q8_0),
        (4, 2, 128, None, DType::F16),
        (2, 2, 128, Some(64), DType::Q8_0),
        (3, 3, 128, None, DType::F32),
        (2, 1, 256, Some(20), DType::F16),
        (4, 2, 256, None, DType::Q8_0),
        (7, 1, 64, Some(70), DType::F32),
    ];

    /// The first position, a few, a wrapped ring, and the last of a block.
    const PLACES: [(usize, usize); 4] = [(0, 1), (6, 3), (299, 0), (127, 2)];

    /// Heads as the projections leave them, and caches of all before: what two ways of attention start from.
    struct Start {
        shape: AttentionShape,
        /// Queries, keys and values.
        heads: [Vec<f32>; 3],
        /// Of the norms of queries and keys.
        weights: [u64; 2],
        tables: RopeAddresses,
        tokens: u64,
        /// For each place keys and values of all positions before it that are still there.
        cached: [[Vec<f32>; 2]; PLACES.len()],
    }

    impl Start {
        fn new(lab: &mut Lab, seed: u64, index: usize) -> Start {
            let (heads, kv_heads, head_dim, window, cache_dtype) = FUSED[index];
            let ring = window.map_or(300, |window| window + 2);
            let shape = AttentionShape { heads, kv_heads, head_dim, window, scale: 0.1, cache_dtype, ring };
            let mut random = Random(seed);
            let kv_width = kv_heads * head_dim;
            let heads = [(heads * head_dim, 2.0), (kv_width, 3.0), (kv_width, 4.0)]
                .map(|(width, deviation)| random.normal(PLACES.len() * width, deviation));
            let weights = [(); 2].map(|()| random.normal(head_dim, 1.0));
            let weights = weights.map(|weight| lab.upload(bytemuck::cast_slice(&weight)).unwrap().address);
            let tables = RopeTables::new(10_000.0, 1.0, head_dim, 300).bytes();
            let tables = RopeAddresses::new(lab.upload(&tables).unwrap().address, head_dim);
            let tokens = lab.upload(&token_table(&PLACES)).unwrap().address;
            let before = |position: usize| position.min(ring - 1) * kv_width;
            let cached = PLACES.map(|(position, _)| [1.0, 4.0].map(|size| random.normal(before(position), size)));
            Start { shape, heads, weights, tables, tokens, cached }
        }

        /// The keys, or the values; not a number where nothing was written.
        fn cache(&self, lab: &mut Lab, which: usize) -> Slice {
            let (shape, width) = (self.shape.cache(), self.shape.kv_heads * self.shape.head_dim);
            let cache = lab.upload(&vec![0xff; shape.bytes(PLACES.len()) as usize]).unwrap();
            let mut dispatches = Vec::new();
            for ((position, sequence), values) in PLACES.into_iter().zip(&self.cached) {
                let count = values[which].len() / width;
                let places: Vec<_> = (position - count..position).map(|before| (before, sequence)).collect();
                if count > 0 {
                    let input = View { address: lab.upload(&rows(&values[which], width)).unwrap().address, width };
                    let tokens = lab.upload(&token_table(&places)).unwrap().address;
                    dispatches.push(cache_write(lab.features(), shape, input, cache.address, tokens, count));
                }
            }
            lab.run(&dispatches).unwrap();
            cache
        }

        /// The results, and the bytes of the caches after that.
        fn outcome(&self, lab: &mut Lab, fused: bool) -> (Vec<f32>, [Vec<u8>; 2]) {
            let (shape, tokens) = (&self.shape, PLACES.len());
            let caches = [0, 1].map(|which| self.cache(lab, which));
            let [query, key, value] = self.heads.each_ref().map(|values| {
                let width = values.len() / tokens;
                View { address: lab.upload(&rows(values, width)).unwrap().address, width }
            });
            let prepare = HeadPrepare {
                query,
                key,
                value,
                query_weight: self.weights[0],
                key_weight: self.weights[1],
                epsilon: 1e-6,
                head_dim: shape.head_dim,
                tables: self.tables,
                tokens: self.tokens,
                cache: shape.cache(),
                keys: caches[0].address,
                values: caches[1].address,
            };
            // As for few tokens, so that positions are split.
            let plan = Decode::new(lab.features(), shape, 1, 300).unwrap();
            let counters = lab.upload(&vec![0; Decode::counter_bytes(shape, tokens) as usize]).unwrap().address;
            let partial = lab.upload(&vec![0xff; plan.partial_bytes(shape, tokens) as usize]).unwrap().address;
            let output = lab.upload(&vec![0; tokens * shape.pitch() * 4]).unwrap();
            let HeadPrepare { keys, values, .. } = prepare;
            let addresses = Addresses { query: query.address, keys, values, output: output.address };
            let (what, scratch) = ((&plan, shape), Scratch { counters, partial });
            let with = fused.then_some(&prepare);
            let attention =
                decode(lab.features(), what, &addresses, (self.tokens, tokens), scratch, Also::Nothing, with);
            // Twice fused: it leaves what it starts from but the caches' new rows, and those become the same.
            let dispatches = match fused {
                true => [attention.clone(), attention],
                false => [head_prepare(lab.features(), &prepare, tokens), attention],
            };
            lab.run(&dispatches).unwrap();
            let output = lab.download(output, tokens * shape.pitch() * 4).unwrap();
            let bytes = shape.cache().bytes(tokens) as usize;
            (unpad(&output, query.width), caches.map(|cache| lab.download(cache, bytes).unwrap()))
        }
    }

    #[test]
    fn heads_may_be_prepared_on_the_way() {
        let Some(mut lab) = Lab::for_tests() else { return };
        // Software devices take seconds to compile each.
        let step = if lab.features().kind == DeviceKind::Software { 4 } else { 1 };
        for index in (0..FUSED.len()).step_by(step) {
            let start = Start::new(&mut lab, 8 + index as u64, index);
            let (expected, caches) = start.outcome(&mut lab, false);
            let (found, fused_caches) = start.outcome(&mut lab, true);
            assert!(caches == fused_caches, "the caches of {:?} differ", start.shape);
            // Scores are the same to a few roundings, the order of sums is not.
            let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            let bound = 8.0 * f32::EPSILON * largest;
            for (index, (found, expected)) in found.into_iter().zip(expected).enumerate() {
                let shape = &start.shape;
                assert!((found - expected).abs() <= bound, "{shape:?} {index}: {found}, expected {expected} ± {bound}");
            }
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
