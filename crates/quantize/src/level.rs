//! Which instructions may be used, found out at run time.

use std::fmt;

use crate::lanes::{Lanes, Portable};

/// An instruction set that the encoder is written for. All of them find the same tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust, any processor.
    Portable,
    /// ARM's NEON.
    Neon,
    /// AVX2 with FMA: Intel since 2013, AMD since 2015.
    Avx2,
    /// AVX-512 (F and BW): Zen 4, Ice Lake and newer.
    Avx512,
}

impl Level {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Neon => "NEON",
            Level::Avx2 => "AVX2",
            Level::Avx512 => "AVX-512",
        }
    }

    /// Those of this machine, in ascending order.
    pub fn available() -> Vec<Level> {
        let mut levels = vec![Level::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if crate::lanes::Avx2::detect().is_some() {
                levels.push(Level::Avx2);
            }
            if crate::lanes::Avx512::detect().is_some() {
                levels.push(Level::Avx512);
            }
        }
        #[cfg(target_arch = "aarch64")]
        levels.push(Level::Neon);
        levels
    }

    /// The best one here.
    pub fn detect() -> Level {
        *Level::available().last().expect("portable is always there")
    }

    /// How many costs an instruction takes.
    pub(crate) fn width(self) -> usize {
        struct Width;
        impl WithLanes for Width {
            type Output = usize;
            #[inline(always)]
            fn run<S: Lanes>(self, _: S) -> usize {
                S::WIDTH
            }
        }
        self.run(Width)
    }

    /// Runs a kernel with the lanes of this level. A level that the machine doesn't have is the portable one.
    pub(crate) fn run<K: WithLanes>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        {
            use crate::lanes::{Avx2, Avx512};
            if let (Level::Avx2, Some(lanes)) = (self, Avx2::detect()) {
                // SAFETY: `lanes` exist only where the processor has the instructions.
                return unsafe { run_avx2(kernel, lanes) };
            }
            if let (Level::Avx512, Some(lanes)) = (self, Avx512::detect()) {
                // SAFETY: as above.
                return unsafe { run_avx512(kernel, lanes) };
            }
        }
        #[cfg(target_arch = "aarch64")]
        if self == Level::Neon {
            return kernel.run(crate::lanes::Neon);
        }
        kernel.run(Portable)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Code that is compiled for each level. `run` and all that it calls must be `#[inline(always)]`, as only inlined code
/// gets the caller's instruction set.
pub(crate) trait WithLanes {
    /// What it computes.
    type Output;
    /// Computes it.
    fn run<S: Lanes>(self, lanes: S) -> Self::Output;
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: WithLanes>(kernel: K, lanes: crate::lanes::Avx2) -> K::Output {
    kernel.run(lanes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw")]
fn run_avx512<K: WithLanes>(kernel: K, lanes: crate::lanes::Avx512) -> K::Output {
    kernel.run(lanes)
}
