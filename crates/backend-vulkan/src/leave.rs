//! Products with trellis weights that leave their parts to the norm behind them.
//!
//! Several workgroups share the inputs of a block of outputs. The last of them to be done would have to see what the
//! others wrote: it waits for memory three times, while the card runs empty. A norm that comes next reads all of it
//! anyway, behind the same barrier, and adds it up.

use crate::dispatch::{Dispatch, Region};
use crate::kernel::{norm, trellis};

/// Lets norms add up what the products before them leave, in memory from `room` on: as much as products meet in.
pub(crate) fn insert(room: u64, dispatches: &mut [Dispatch]) {
    for index in 1..dispatches.len() {
        let (before, after) = dispatches.split_at_mut(index);
        let (product, (norm, later)) = (&mut before[index - 1], after.split_first_mut().expect("one at the index"));
        let Some(left) = product.left else { continue };
        if norm::updates_with(norm, left.target, left.columns) && !is_read(later, left.target) {
            trellis::leave(product, room);
            norm::add_up(norm, room, left);
        }
    }
}

/// Whether any of the dispatches reads what a buffer has before them.
fn is_read(dispatches: &[Dispatch], buffer: Region) -> bool {
    let first = dispatches.iter().find(|next| next.reads.contains(&buffer) || next.writes.contains(&buffer));
    first.is_some_and(|next| next.reads.contains(&buffer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_anew_before_it_is_read_is_not_read() {
        let touching = |reads: &[Region], writes: &[Region]| Dispatch {
            reads: reads.to_vec(),
            writes: writes.to_vec(),
            ..Dispatch::default()
        };
        assert!(!is_read(&[touching(&[1], &[2]), touching(&[2], &[3]), touching(&[3], &[1])], 3));
        assert!(!is_read(&[], 3));
        assert!(is_read(&[touching(&[1], &[2]), touching(&[1, 3], &[2])], 3));
        assert!(is_read(&[touching(&[3], &[3])], 3));
    }
}
