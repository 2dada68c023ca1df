//! Which instructions may be used, found out at run time.

use std::fmt;

/// An instruction set that the inner loops are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust, any processor.
    Portable,
    /// ARM's NEON with the dot product extension.
    Neon,
    /// AVX2, FMA and F16C: Intel since 2013, AMD since 2015.
    Avx2,
    /// AVX-512 (F, BW, VL, DQ) with VNNI: Zen 4, Ice Lake and newer.
    Avx512,
    /// [`Level::Avx512`] with the AMX int8 matrix unit for products with many tokens: Sapphire Rapids and newer.
    Amx,
}

impl Level {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Neon => "NEON",
            Level::Avx2 => "AVX2",
            Level::Avx512 => "AVX-512 VNNI",
            Level::Amx => "AVX-512 VNNI, AMX",
        }
    }

    /// The best one here. The environment variable `LAPIDARY_CPU` (`portable`, `neon`, `avx2`, `avx512`, `amx`) lowers
    /// it, for comparing.
    pub(crate) fn detect() -> Level {
        let available = Level::available();
        let wanted = std::env::var("LAPIDARY_CPU")
            .ok()
            .and_then(|name| available.iter().copied().find(|level| format!("{level:?}").eq_ignore_ascii_case(&name)));
        wanted.unwrap_or_else(|| *available.last().expect("portable is always there"))
    }

    /// Those of this machine, in ascending order.
    pub(crate) fn available() -> Vec<Level> {
        let mut levels = vec![Level::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                levels.push(Level::Avx2);
                if x86_has_avx512() {
                    levels.push(Level::Avx512);
                    if crate::isa::amx::available() {
                        levels.push(Level::Amx);
                    }
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("dotprod") {
            levels.push(Level::Neon);
        }
        levels
    }

    /// Runs a piece of plain code, compiled for this level.
    pub(crate) fn run<K: Vectorized>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Level` above `Portable` only comes from `available`, which checked the processor's features.
            Level::Avx2 => unsafe { run_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx512 | Level::Amx => unsafe { run_avx512(kernel) },
            // NEON is part of the base instruction set of aarch64.
            _ => kernel.run::<{ cfg!(target_arch = "aarch64") }>(),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Plain code whose loops the compiler turns into the vectors of the level that it runs at. `run` and all that it
/// calls must be `#[inline(always)]`, as only inlined code gets the caller's instruction set.
pub(crate) trait Vectorized {
    /// What it computes.
    type Output;
    /// Computes it. `FMA` says that [`f32::mul_add`] is one instruction (and not a call).
    fn run<const FMA: bool>(self) -> Self::Output;
}

#[cfg(target_arch = "x86_64")]
fn x86_has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vnni")
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<K: Vectorized>(kernel: K) -> K::Output {
    kernel.run::<true>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn run_avx512<K: Vectorized>(kernel: K) -> K::Output {
    kernel.run::<true>()
}

/// `a · b + c`, fused where that is one instruction.
#[inline(always)]
pub(crate) fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}
