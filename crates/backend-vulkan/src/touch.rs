//! Addresses of weights translated ahead of their use.
//!
//! A card that goes through many gigabytes in every pass finds the translations of few addresses in its caches, so that
//! each product begins with a wait for page tables. A norm leaves nearly all of the card idle: a workgroup beside it
//! reads one word of each page of the products that follow.

use crate::dispatch::Dispatch;
use crate::features::{DeviceKind, Features};
use crate::kernel::norm;

/// Weights of one half of a layer are neighbours; what lies further apart is not one range.
const RANGE_MAX: u64 = 1 << 30;

/// Lets the norms of a decoding pass touch the pages of the products up to the next norm. `sink` is the address of a
/// word that nobody reads.
pub(crate) fn insert(features: &Features, sink: u64, dispatches: &mut [Dispatch]) {
    if features.kind != DeviceKind::Discrete {
        return;
    }
    for index in 0..dispatches.len() {
        let (before, after) = dispatches.split_at_mut(index + 1);
        let dispatch = &mut before[index];
        if dispatch.kernel.shader != "norm" {
            continue;
        }
        let until_norm = after.iter().take_while(|next| next.kernel.shader != "norm");
        let streams = until_norm.flat_map(|next| next.streams.iter().copied());
        let (start, end) = streams
            .fold((u64::MAX, 0), |(start, end), (address, bytes)| (start.min(address), end.max(address + bytes)));
        if start < end && end - start <= RANGE_MAX {
            norm::touch(dispatch, start, end - start, sink);
        }
    }
}
