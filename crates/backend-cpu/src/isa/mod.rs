//! The hand-written inner loops: integer dot products of panels with rounded activations.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
pub(crate) mod trellis;

use std::ops::Range;

use tensor::DType;

use crate::activations::Activations;
use crate::level::Level;
use crate::panel::{Layout, PanelMatrix, ROWS};

/// Sums of one panel: a row of 16 outputs for each of up to 8 tokens.
pub(crate) type Sums = [[f32; ROWS]; TOKENS];

/// Tokens that one call of a dot product kernel takes at most.
pub(crate) const TOKENS: usize = 8;

/// The layout of format number `D` of [`DType::ALL`], as a constant that kernels are specialized for.
pub(crate) const fn layout<const D: usize>() -> Layout {
    match Layout::of(DType::ALL[D]) {
        Some(layout) => layout,
        None => panic!("floats have no panels"),
    }
}

/// A matrix of outputs that threads write disjoint columns of.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    pointer: *mut f32,
    rows: usize,
    width: usize,
}

// SAFETY: the tasks of a parallel region write disjoint columns (`Output::write`'s contract).
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    /// Over `[rows, width]` values.
    pub(crate) fn new(values: &mut [f32], width: usize) -> Self {
        Output { pointer: values.as_mut_ptr(), rows: values.len() / width, width }
    }

    /// Writes a part of a row; what lies past the row's end is dropped.
    ///
    /// # Safety
    /// No other thread reads or writes these elements meanwhile, and the values that `new` got are still borrowed.
    #[inline(always)]
    pub(crate) unsafe fn write(&self, row: usize, column: usize, values: &[f32]) {
        debug_assert!(row < self.rows && column < self.width);
        let room = self.width - column;
        // SAFETY: inside the matrix as asserted; exclusive by this function's contract.
        let copy = |count| unsafe {
            std::ptr::copy_nonoverlapping(values.as_ptr(), self.pointer.add(row * self.width + column), count);
        };
        // Apart, because most callers know the length when they are compiled: that is no call then.
        if values.len() <= room {
            copy(values.len());
        } else {
            copy(room);
        }
    }
}

/// `output[t][r] = Σ activations[t] · weight[r]` for the rows of some panels.
pub(crate) fn multiply_panels(
    level: Level,
    matrix: &PanelMatrix,
    activations: &Activations,
    panels: Range<usize>,
    output: Output,
) {
    // For so few tokens that one call takes them all, the vector unit is faster; only more are padded to whole tiles.
    #[cfg(target_arch = "x86_64")]
    if level == Level::Amx && activations.rows > TOKENS {
        return for_format(matrix.dtype, amx::MultiplyPanels { matrix, activations, panels, output });
    }
    let dot = select(level, matrix.dtype);
    for index in panels {
        let panel = matrix.panel(index);
        let mut row = 0;
        while row < activations.rows {
            let tokens = (activations.rows - row).min(TOKENS);
            let mut sums: Sums = [[0.0; ROWS]; TOKENS];
            dot(&panel, activations, row, tokens, &mut sums);
            for (token, sums) in sums[..tokens].iter().enumerate() {
                // SAFETY: the panels of the caller's range are this thread's alone.
                unsafe { output.write(row + token, index * ROWS, sums) };
            }
            row += tokens;
        }
    }
}

/// A dot product kernel: panel, activations, first row, number of tokens (1 to [`TOKENS`]), sums.
type Dot = fn(&crate::panel::Panel<'_>, &Activations, usize, usize, &mut Sums);

/// An instruction set's dot product kernels.
trait DotKernel {
    /// A [`Dot`] for format number `D` of [`DType::ALL`].
    fn dot<const D: usize>(
        panel: &crate::panel::Panel<'_>,
        activations: &Activations,
        row: usize,
        tokens: usize,
        sums: &mut Sums,
    );
}

/// Picks a kernel of `K`.
struct Select<K>(std::marker::PhantomData<K>);

impl<K: DotKernel> ForFormat for Select<K> {
    type Output = Dot;
    fn run<const D: usize>(self) -> Dot {
        K::dot::<D>
    }
}

/// Code that is specialized for a format.
trait ForFormat {
    /// What it gives.
    type Output;
    /// Runs it for format number `D` of [`DType::ALL`].
    fn run<const D: usize>(self) -> Self::Output;
}

/// The one table from formats to code that is specialized for them.
fn for_format<F: ForFormat>(dtype: DType, code: F) -> F::Output {
    match dtype {
        DType::Q4_0 => code.run::<{ DType::Q4_0 as usize }>(),
        DType::Q4_1 => code.run::<{ DType::Q4_1 as usize }>(),
        DType::Q5_0 => code.run::<{ DType::Q5_0 as usize }>(),
        DType::Q5_1 => code.run::<{ DType::Q5_1 as usize }>(),
        DType::Q8_0 => code.run::<{ DType::Q8_0 as usize }>(),
        DType::Q2_K => code.run::<{ DType::Q2_K as usize }>(),
        DType::Q3_K => code.run::<{ DType::Q3_K as usize }>(),
        DType::Q4_K => code.run::<{ DType::Q4_K as usize }>(),
        DType::Q5_K => code.run::<{ DType::Q5_K as usize }>(),
        DType::Q6_K => code.run::<{ DType::Q6_K as usize }>(),
        DType::F32 | DType::F16 | DType::BF16 => unreachable!("floats have no panels"),
    }
}

/// The kernel of a level for a format.
fn select(level: Level, dtype: DType) -> Dot {
    use std::marker::PhantomData;
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Amx => for_format(dtype, Select::<avx512::Avx512>(PhantomData)),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => for_format(dtype, Select::<avx2::Avx2>(PhantomData)),
        #[cfg(target_arch = "aarch64")]
        Level::Neon => for_format(dtype, Select::<neon::Neon>(PhantomData)),
        _ => portable::dot,
    }
}
