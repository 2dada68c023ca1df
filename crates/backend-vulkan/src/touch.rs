//! Addresses of weights translated ahead of their use.
//!
//! A card that goes through many gigabytes in every pass finds the translations of few addresses in its caches, so that
//! each product begins with a wait for page tables. One workgroup of the product before it reads one word of each of its
//! pages (measured: `docs/vulkan-notes.md`).

use crate::dispatch::Dispatch;
use crate::features::{DeviceKind, Features};
use crate::kernel::matvec;

/// Weights of one product are neighbours; what lies further apart is not one range.
const RANGE_MAX: u64 = 1 << 30;

/// Lets the products of a decoding pass touch the pages of the next one each. `sink` is the address of a word that
/// nobody reads.
pub(crate) fn insert(features: &Features, sink: u64, dispatches: &mut [Dispatch]) {
    if features.kind != DeviceKind::Discrete {
        return;
    }
    for index in 0..dispatches.len() {
        let (before, after) = dispatches.split_at_mut(index + 1);
        let dispatch = &mut before[index];
        if dispatch.streams.is_empty() {
            continue;
        }
        let Some(next) = after.iter().find(|next| !next.streams.is_empty()) else { continue };
        let (start, end) = next
            .streams
            .iter()
            .fold((u64::MAX, 0), |(start, end), &(address, bytes)| (start.min(address), end.max(address + bytes)));
        if end - start <= RANGE_MAX {
            matvec::touch(dispatch, start, end - start, sink);
        }
    }
}
