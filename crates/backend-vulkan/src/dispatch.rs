//! One launch of a kernel, as data, and how a list of them becomes a command buffer.

use crate::pipeline::{Kernel, PUSH_BYTES};

/// A range of device addresses that a kernel reads or writes. Two ranges of one buffer count as the same.
pub(crate) type Region = u64;

/// One launch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dispatch {
    /// What is launched.
    pub(crate) kernel: Kernel,
    /// Its arguments: addresses first, then numbers; see [`Push`].
    pub(crate) push: Push,
    /// Workgroups in x, y and z.
    pub(crate) groups: [u32; 3],
    /// Addresses of the buffers that it reads and that others write.
    pub(crate) reads: Vec<Region>,
    /// Addresses of the buffers that it writes.
    pub(crate) writes: Vec<Region>,
    /// Bytes that have to come from and go to memory, for the report.
    pub(crate) bytes: u64,
    /// Multiplications and additions, for the report.
    pub(crate) operations: u64,
    /// For people: the op and its sizes.
    pub(crate) label: String,
    /// Whether it begins together with the dispatch before it, for whose results it waits itself: no barrier between
    /// the two.
    pub(crate) joins: bool,
    /// Constants that it reads from beginning to end: addresses and bytes.
    pub(crate) streams: Vec<(u64, u64)>,
    /// What it can leave to a reader of its output.
    pub(crate) left: Option<Left>,
}

/// The parts of a product with a trellis weight that have not been added up, rotated nor scaled: f32
/// `[blocks of 128 outputs, parts, columns, 128]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    /// Where its output would go.
    pub(crate) target: Region,
    /// Parts of each block.
    pub(crate) parts: usize,
    /// Columns.
    pub(crate) columns: usize,
    /// Address of the scales of the outputs, binary16.
    pub(crate) scales: u64,
}

/// Push constants, laid out as a shader's block declares them with `scalar` layout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Push {
    bytes: [u8; PUSH_BYTES],
    len: usize,
}

impl Default for Push {
    fn default() -> Push {
        Push { bytes: [0; PUSH_BYTES], len: 0 }
    }
}

impl Push {
    /// Appends an address.
    pub(crate) fn address(self, address: u64) -> Push {
        assert!(self.len.is_multiple_of(8), "addresses come first");
        self.append(&address.to_le_bytes())
    }

    /// Appends a number.
    pub(crate) fn number(self, number: usize) -> Push {
        let number = u32::try_from(number).expect("sizes of models fit in 32 bits");
        self.append(&number.to_le_bytes())
    }

    /// Appends a number with a fraction.
    pub(crate) fn float(self, number: f32) -> Push {
        self.append(&number.to_le_bytes())
    }

    fn append(mut self, bytes: &[u8]) -> Push {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
        self
    }

    /// Replaces what was appended at `start`.
    pub(crate) fn replace(&mut self, start: usize, bytes: &[u8]) {
        assert!(start + bytes.len() <= self.len, "{start} + {} of {}", bytes.len(), self.len);
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// All that was appended.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Before which of the dispatches there has to be a barrier: where one touches what another one since the last barrier
/// wrote, or writes what another one since then read. One that begins together with the dispatch before it waits for
/// what that wrote, and for nothing else; those behind it have not waited.
pub(crate) fn barriers(dispatches: &[Dispatch]) -> Vec<bool> {
    let (mut read, mut written): (Vec<Region>, Vec<Region>) = Default::default();
    let mut barriers = Vec::with_capacity(dispatches.len());
    for (index, dispatch) in dispatches.iter().enumerate() {
        let awaited: &[Region] = if dispatch.joins && index > 0 { &dispatches[index - 1].writes } else { &[] };
        let is_written = |region: &Region| written.contains(region) && !awaited.contains(region);
        let hazard = dispatch.reads.iter().any(is_written)
            || dispatch.writes.iter().any(|region| written.contains(region) || read.contains(region));
        if hazard {
            read.clear();
            written.clear();
        }
        read.extend(&dispatch.reads);
        written.extend(&dispatch.writes);
        barriers.push(hazard);
    }
    barriers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touching(reads: &[Region], writes: &[Region]) -> Dispatch {
        Dispatch { reads: reads.to_vec(), writes: writes.to_vec(), ..Dispatch::default() }
    }

    #[test]
    fn barriers_are_where_something_is_read_or_written_again() {
        let norm = touching(&[1, 2], &[2, 3]);
        let (first, second) = (touching(&[3], &[4]), touching(&[3], &[5]));
        let overwrites = touching(&[6], &[3]);
        let all = [norm, first, second, overwrites];
        assert_eq!(barriers(&all), [false, true, false, true]);
    }

    #[test]
    fn only_the_dispatch_that_joins_another_goes_without_a_barrier() {
        let norm = touching(&[1, 2], &[2, 3]);
        let joins = Dispatch { joins: true, ..touching(&[3], &[4]) };
        let (second, third) = (touching(&[3], &[5]), touching(&[4], &[6]));
        assert_eq!(barriers(&[norm.clone(), joins.clone(), second]), [false, false, true]);
        assert_eq!(barriers(&[norm.clone(), joins.clone(), third]), [false, false, true]);
        // What it reads besides was written by another one since the last barrier.
        let reads_more = Dispatch { reads: vec![3, 7], ..joins };
        assert_eq!(barriers(&[touching(&[], &[7]), norm, reads_more]), [false, false, true]);
    }
}
