//! Vectors of 16-bit integers, as each instruction set has them.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod floats;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use floats::{Floats, tile};
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use portable::Portable;

/// An instruction set. A value of a type that has this trait is the proof that the processor knows the instructions.
///
/// All methods are `#[inline(always)]`, to be compiled with the instructions of who calls them.
pub(crate) trait Lanes: Copy + Floats<f32> + Floats<f64> {
    /// `WIDTH` integers.
    type Vector: Copy;
    /// Integers of a vector: 8, 16 or 32.
    const WIDTH: usize;

    /// The same number in all lanes.
    fn splat(self, value: u16) -> Self::Vector;

    /// Reads a vector.
    ///
    /// # Safety
    /// `WIDTH` integers can be read there.
    unsafe fn load(self, from: *const u16) -> Self::Vector;

    /// Writes vectors one after another, `to[N · i + n]` from lane `i` of vector `n`.
    ///
    /// # Safety
    /// `N · WIDTH` integers can be written there. `N` is a power of two.
    unsafe fn store_interleaved<const N: usize>(self, vectors: [Self::Vector; N], to: *mut u16);

    /// `costs` plus the cost that `values` have for `targets`, which are signed: see
    /// [`Metric::cost`](tensor::format::trellis::search::Metric::cost).
    fn add_cost<const DOUBLINGS: u32>(
        self,
        targets: Self::Vector,
        values: Self::Vector,
        costs: Self::Vector,
    ) -> Self::Vector;

    /// The smaller ones, as unsigned integers.
    fn min(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
}

/// One step of interleaving `N` vectors, to be done log₂ `N` times: the lanes of the first half of the vectors and
/// those of the second half by turns. `zip` gives the two vectors with the lanes of two by turns.
#[inline(always)]
fn riffle<V: Copy, const N: usize>(vectors: [V; N], zip: impl Fn(V, V) -> (V, V)) -> [V; N] {
    let mut result = vectors;
    for index in 0..N / 2 {
        (result[2 * index], result[2 * index + 1]) = zip(vectors[index], vectors[N / 2 + index]);
    }
    result
}
