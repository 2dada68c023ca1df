//! Vectors of numbers with a fraction.

use super::{Lanes, Portable};

/// Multiplies and adds numbers of the type `T`, with one rounding.
///
/// As of [`Lanes`], all methods are `#[inline(always)]`.
pub(crate) trait Floats<T>: Copy {
    /// `COUNT` numbers.
    type Numbers: Copy;
    /// Numbers of a vector.
    const COUNT: usize;

    /// The same number in all lanes.
    fn fill(self, value: T) -> Self::Numbers;

    /// Reads a vector.
    ///
    /// # Safety
    /// `COUNT` numbers can be read there.
    unsafe fn read(self, from: *const T) -> Self::Numbers;

    /// Writes a vector.
    ///
    /// # Safety
    /// `COUNT` numbers can be written there.
    unsafe fn write(self, numbers: Self::Numbers, to: *mut T);

    /// `a · b + c`.
    fn multiply_add(self, a: Self::Numbers, b: Self::Numbers, c: Self::Numbers) -> Self::Numbers;
}

/// With the intrinsics of an instruction set.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! floats {
    (
        $lanes:ty, $number:ty, $vector:ty, $count:literal, $fill:path, $read:path, $write:path,
        |$a:ident, $b:ident, $c:ident| $product:expr
    ) => {
        impl Floats<$number> for $lanes {
            type Numbers = $vector;
            const COUNT: usize = $count;

            #[inline(always)]
            fn fill(self, value: $number) -> $vector {
                // SAFETY: the processor has the instructions, as there is a `self`; so below.
                unsafe { $fill(value) }
            }

            #[inline(always)]
            unsafe fn read(self, from: *const $number) -> $vector {
                // SAFETY: so many numbers can be read there.
                unsafe { $read(from) }
            }

            #[inline(always)]
            unsafe fn write(self, numbers: $vector, to: *mut $number) {
                // SAFETY: so many numbers can be written there.
                unsafe { $write(to, numbers) }
            }

            #[inline(always)]
            fn multiply_add(self, $a: $vector, $b: $vector, $c: $vector) -> $vector {
                // SAFETY: there is a `self`.
                unsafe { $product }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::{Avx2, Avx512};
    use super::Floats;

    floats!(Avx2, f32, __m256, 8, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, |a, b, c| _mm256_fmadd_ps(
        a, b, c
    ));
    floats!(Avx2, f64, __m256d, 4, _mm256_set1_pd, _mm256_loadu_pd, _mm256_storeu_pd, |a, b, c| _mm256_fmadd_pd(
        a, b, c
    ));
    floats!(Avx512, f32, __m512, 16, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, |a, b, c| _mm512_fmadd_ps(
        a, b, c
    ));
    floats!(Avx512, f64, __m512d, 8, _mm512_set1_pd, _mm512_loadu_pd, _mm512_storeu_pd, |a, b, c| _mm512_fmadd_pd(
        a, b, c
    ));
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;

    use super::super::Neon;
    use super::Floats;

    floats!(Neon, f32, float32x4_t, 4, vdupq_n_f32, vld1q_f32, vst1q_f32, |a, b, c| vfmaq_f32(c, a, b));
    floats!(Neon, f64, float64x2_t, 2, vdupq_n_f64, vld1q_f64, vst1q_f64, |a, b, c| vfmaq_f64(c, a, b));
}

macro_rules! portable {
    ($number:ty) => {
        impl Floats<$number> for Portable {
            type Numbers = [$number; 4];
            const COUNT: usize = 4;

            #[inline(always)]
            fn fill(self, value: $number) -> [$number; 4] {
                [value; 4]
            }

            #[inline(always)]
            unsafe fn read(self, from: *const $number) -> [$number; 4] {
                // SAFETY: four numbers can be read there.
                unsafe { from.cast::<[$number; 4]>().read() }
            }

            #[inline(always)]
            unsafe fn write(self, numbers: [$number; 4], to: *mut $number) {
                // SAFETY: four numbers can be written there.
                unsafe { to.cast::<[$number; 4]>().write(numbers) };
            }

            #[inline(always)]
            fn multiply_add(self, a: [$number; 4], b: [$number; 4], c: [$number; 4]) -> [$number; 4] {
                std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
            }
        }
    };
}

portable!(f32);
portable!(f64);

/// Sums of `R` rows and `N` columns: `Σ a[k][row] · b[k][column]`, in the order of `k`.
#[inline(always)]
pub(crate) fn tile<T: Copy + Default, S: Lanes + Floats<T>, const R: usize, const N: usize>(
    lanes: S,
    a: &[[T; R]],
    b: &[[T; N]],
) -> [[T; N]; R] {
    /// Vectors of a row, at most: rows have 64 bytes, vectors 16 or more.
    const VECTORS_MAX: usize = 4;
    let count = <S as Floats<T>>::COUNT;
    let vectors = N / count;
    assert!(vectors * count == N && vectors <= VECTORS_MAX);
    let mut sums = [[lanes.fill(T::default()); VECTORS_MAX]; R];
    for (a, b) in a.iter().zip(b) {
        let mut columns = [lanes.fill(T::default()); VECTORS_MAX];
        for (vector, columns) in columns.iter_mut().enumerate().take(vectors) {
            // SAFETY: the vectors of a row are within it.
            *columns = unsafe { lanes.read(b.as_ptr().add(vector * count)) };
        }
        for row in 0..R {
            let factor = lanes.fill(a[row]);
            for vector in 0..vectors {
                sums[row][vector] = Floats::<T>::multiply_add(lanes, factor, columns[vector], sums[row][vector]);
            }
        }
    }
    let mut result = [[T::default(); N]; R];
    for (result, sums) in result.iter_mut().zip(sums) {
        for (vector, sums) in sums.into_iter().enumerate().take(vectors) {
            // SAFETY: as above.
            unsafe { lanes.write(sums, result.as_mut_ptr().add(vector * count)) };
        }
    }
    result
}
