//! Weights into the device's cache while a kernel of few workgroups leaves the memory idle.
//!
//! Between two large products of a decoding pass stand kernels that take a few microseconds and read next to nothing:
//! norms and attention. A second dispatch beside them, without a barrier between, reads the beginning of the next
//! product's weights. Only for cards with caches and memory of their own: elsewhere there is nothing to gain.

use crate::dispatch::{Dispatch, Push};
use crate::features::{DeviceKind, Features};
use crate::kernel::kernel;

/// Bytes that one invocation brings in.
const INVOCATION_BYTES: u64 = 8 * 32;

/// Puts prefetches into a pass. `bandwidth` is the memory's in bytes per second; `sink` is the address of a word.
pub(crate) fn insert(features: &Features, bandwidth: f64, sink: u64, dispatches: Vec<Dispatch>) -> Vec<Dispatch> {
    if features.kind != DeviceKind::Discrete {
        return dispatches;
    }
    // Bytes of the next product that earlier prefetches have brought in.
    let mut done = 0;
    let mut result = Vec::with_capacity(dispatches.len() * 2);
    for (index, dispatch) in dispatches.iter().enumerate() {
        result.push(dispatch.clone());
        if !dispatch.streams.is_empty() {
            done = 0;
        } else if dispatch.idle_microseconds > 0.0 {
            let next = dispatches[index + 1..].iter().find(|next| !next.streams.is_empty());
            let mut budget = (bandwidth * f64::from(dispatch.idle_microseconds) * 1e-6) as u64;
            let mut skip = done;
            for &(address, bytes) in next.map_or(&[][..], |next| &next.streams) {
                let start = skip.min(bytes);
                skip -= start;
                let taken = budget.min(bytes - start) & !31;
                if taken > 0 {
                    result.push(prefetch(features, address + start, taken, sink));
                    done += taken;
                    budget -= taken;
                }
            }
        }
    }
    result
}

fn prefetch(features: &Features, address: u64, bytes: u64, sink: u64) -> Dispatch {
    let kernel = kernel(features, "prefetch", vec![]);
    let push = Push::default().address(address).address(sink).number((bytes / 32) as usize);
    Dispatch {
        groups: [bytes.div_ceil(INVOCATION_BYTES * u64::from(kernel.workgroup)) as u32, 1, 1],
        kernel,
        push,
        bytes,
        label: format!("prefetch {:.1} MB", bytes as f64 / 1e6),
        ..Dispatch::default()
    }
}
