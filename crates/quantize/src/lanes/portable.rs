//! Plain Rust.

use super::Lanes;

/// 8 lanes that the compiler may or may not make vectors of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

impl Lanes for Portable {
    type Vector = [u16; 8];
    const WIDTH: usize = 8;

    #[inline(always)]
    fn splat(self, value: u16) -> [u16; 8] {
        [value; 8]
    }

    #[inline(always)]
    unsafe fn load(self, from: *const u16) -> [u16; 8] {
        // SAFETY: 8 integers can be read there.
        unsafe { from.cast::<[u16; 8]>().read() }
    }

    #[inline(always)]
    unsafe fn store_interleaved<const N: usize>(self, vectors: [[u16; 8]; N], to: *mut u16) {
        for (lane, to) in (0..8).map(|lane| (lane, to.wrapping_add(N * lane))) {
            for n in 0..N {
                // SAFETY: 8 · N integers can be written.
                unsafe { to.add(n).write(vectors[n][lane]) };
            }
        }
    }

    #[inline(always)]
    fn add_cost<const DOUBLINGS: u32>(self, targets: [u16; 8], values: [u16; 8], costs: [u16; 8]) -> [u16; 8] {
        std::array::from_fn(|lane| {
            let mut distance = (targets[lane] as i16).saturating_sub(values[lane] as i16);
            for _ in 0..DOUBLINGS {
                distance = distance.saturating_add(distance);
            }
            costs[lane].saturating_add(((i32::from(distance) * i32::from(distance)) >> 16) as u16)
        })
    }

    #[inline(always)]
    fn min(self, a: [u16; 8], b: [u16; 8]) -> [u16; 8] {
        std::array::from_fn(|lane| a[lane].min(b[lane]))
    }
}
