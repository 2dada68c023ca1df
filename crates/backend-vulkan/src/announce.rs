//! Products that begin together with what makes their input.
//!
//! A barrier lets the card run empty: after it the next dispatch begins, asks memory for its first weights and waits.
//! Where the dispatch before it has few workgroups, the product's can begin at the same time, load their first weights
//! meanwhile, and wait in the shader (`announce.glsl`).

use crate::dispatch::Dispatch;
use crate::features::Features;
use crate::kernel::{attention, matvec, norm};

/// Words of memory for marks.
pub(crate) const MARKS: usize = 1 << 15;

/// Lets products of a single token begin together with the norm or attention before them. `counters` is the address of
/// those of attention, which [`MARKS`] words follow. No norm is under way together with attention.
pub(crate) fn insert(features: &Features, counters: u64, dispatches: &mut [Dispatch]) {
    if features.begins_in_order {
        join(counters, dispatches);
    }
}

fn join(counters: u64, dispatches: &mut [Dispatch]) {
    for index in 1..dispatches.len() {
        let (before, after) = dispatches.split_at_mut(index);
        let (first, product) = (&mut before[index - 1], &mut after[0]);
        let reads_it = product.reads.iter().all(|region| first.writes.contains(region));
        let apart = product.writes.iter().all(|region| !first.writes.contains(region) && !first.reads.contains(region));
        if !matvec::can_wait(product) || !reads_it || !apart {
            continue;
        }
        let waiting: u32 = product.groups.iter().product();
        let fits =
            |announcing: u32| waiting as usize * announcing as usize <= MARKS && announcing <= product.kernel.workgroup;
        if norm::can_announce(first) && fits(1) {
            norm::announce(first, counters, waiting);
            matvec::wait(product, counters, 1);
        } else if attention::can_announce(first) && fits(first.groups[1]) {
            let (marks, announcing) = attention::announce(first, waiting);
            matvec::wait(product, marks, announcing);
        }
    }
}

#[cfg(test)]
mod tests {
    use tensor::DType;

    use super::*;
    use crate::kernel::attention::testing::{Random, rows, token_table};
    use crate::kernel::attention::{Addresses, Also, AttentionShape, Decode, Scratch, decode};
    use crate::kernel::matvec::{Gated, Input, gate_up, gated_tiling, matvec, tiling};
    use crate::kernel::norm::{Output, Scale, norm};
    use crate::kernel::{Arrangement, HalfOrder, Quantized, View};
    use crate::lab::Lab;
    use crate::layout::Weight;
    use crate::memory::Slice;

    /// A layer of Q4_0 with random weights: attention, the product behind it, a norm, gate and up.
    struct Layer {
        dispatches: Vec<Dispatch>,
        counters: u64,
        /// What is compared: results of the product, and bytes of gate and up.
        results: [(Slice, usize); 2],
    }

    const HIDDEN: usize = 512;
    const INNER: usize = 1024;

    fn weight(lab: &mut Lab, random: &mut Random, rows: usize, columns: usize) -> Weight {
        let mut weight = Weight { address: 0, dtype: DType::Q4_0, rows, columns };
        let (pitch, units) = (16 * weight.pitch(), weight.units());
        let mut bytes = vec![0; weight.bytes()];
        for row in bytes.chunks_exact_mut(pitch) {
            let (quants, scales) = row.split_at_mut(16 * units);
            let noise = random.normal(quants.len(), 100.0);
            quants.iter_mut().zip(noise).for_each(|(quant, noise)| *quant = noise as i32 as u8);
            // 1/16 in f16.
            scales[..2 * units].chunks_exact_mut(2).for_each(|scale| scale.copy_from_slice(&[0, 0x2c]));
        }
        weight.address = lab.upload(&bytes).unwrap().address;
        weight
    }

    impl Layer {
        fn new(lab: &mut Lab) -> Layer {
            let random = &mut Random(5);
            let arrangement = Arrangement { order: HalfOrder::of(DType::Q4_0), half_scales: false };
            let [out, gate, up] = [(HIDDEN, HIDDEN), (INNER, HIDDEN), (INNER, HIDDEN)]
                .map(|(rows, columns)| weight(lab, random, rows, columns));
            let mut zeros = |bytes: usize| lab.upload(&vec![0; bytes]).unwrap();
            let mut quantized =
                |width: usize| Quantized { values: zeros(width).address, sums: zeros(width).address, arrangement };
            let (attended, normed) = (quantized(HIDDEN), quantized(HIDDEN));
            let (update, gated) = (zeros(4 * HIDDEN), zeros(INNER));
            let mut target = Quantized { values: gated.address, sums: zeros(INNER).address, arrangement };
            target.arrangement.half_scales = true;
            let counters = zeros(64 + 4 * MARKS).address;
            let partial = zeros(1 << 20).address;
            let [residual, query, weights] = [1.0, 1.0, 1.0].map(|deviation| {
                let values = random.normal(HIDDEN, deviation);
                View { address: lab.upload(&rows(&values, HIDDEN)).unwrap().address, width: HIDDEN }
            });
            let (heads, kv_heads, head_dim) = (4, 2, 128);
            let (window, scale, cache_dtype, ring) = (None, 0.1, DType::F16, 300);
            let shape = AttentionShape { heads, kv_heads, head_dim, window, scale, cache_dtype, ring };
            let [keys, values] = [(); 2].map(|()| {
                let noise: Vec<u16> = random
                    .normal(shape.cache().bytes(1) as usize / 2, 500.0)
                    .iter()
                    .map(|&x| 0x3800 + x.abs() as u16 % 1000)
                    .collect();
                lab.upload(bytemuck::cast_slice(&noise)).unwrap().address
            });
            let tokens = lab.upload(&token_table(&[(290, 0)])).unwrap().address;
            let output = lab.upload(&vec![0; 4 * HIDDEN]).unwrap().address;
            let features = lab.features();
            let plan = Decode::new(features, &shape, 1, ring).unwrap();
            let addresses = Addresses { query: query.address, keys, values, output };
            let scratch = Scratch { counters, partial };
            let also = Also::Quantized(attended);
            let update_view = View { address: update.address, width: HIDDEN };
            let scale = Scale { weight: weights.address, epsilon: 1e-6 };
            let normed_output = Output { scale, floats: None, quantized: Some(normed), rotated: None };
            let of_product = tiling(features, DType::Q4_0, HIDDEN, out.units(), 1);
            let of_gated = gated_tiling(features, DType::Q4_0, 1);
            let dispatches = vec![
                decode(features, (&plan, &shape), &addresses, (tokens, 1), scratch, also, None),
                matvec(features, &[(out, update_view)], Input::Quantized(attended), 1, of_product),
                norm(features, Some((update_view, scale)), residual, Some(normed_output), 1),
                gate_up(features, gate, up, Input::Quantized(normed), Gated::Quantized(target), 1, of_gated),
            ];
            Layer { dispatches, counters, results: [(update, 4 * HIDDEN), (gated, INNER)] }
        }

        fn results(&self, lab: &mut Lab, dispatches: &[Dispatch]) -> Vec<Vec<u8>> {
            lab.run(dispatches).unwrap();
            self.results.map(|(slice, len)| lab.download(slice, len).unwrap()).to_vec()
        }
    }

    #[test]
    fn dispatches_that_begin_together_give_the_same_run_after_run() {
        let needs = "integer dot products, or no order in which workgroups begin";
        let lab = Lab::for_tests_with(needs, |features| features.integer_dot && features.begins_in_order);
        let Some(mut lab) = lab else { return };
        // The residual grows with every norm, so that both start from the same one.
        let (apart, together) = (Layer::new(&mut lab), Layer::new(&mut lab));
        let mut joined = together.dispatches.clone();
        join(together.counters, &mut joined);
        assert_eq!(joined.iter().map(|dispatch| dispatch.joins).collect::<Vec<_>>(), [false, true, false, true]);
        let mut before = Vec::new();
        for _ in 0..20 {
            let expected = apart.results(&mut lab, &apart.dispatches);
            assert!(expected[1].iter().any(|&byte| byte != 0) && expected != before);
            assert!(together.results(&mut lab, &joined) == expected);
            before = expected;
        }
    }
}
