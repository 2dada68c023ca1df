//! The CPU backend: the fallback that always works.
//!
//! # How a product is computed
//! Activations are rounded at run time to 8 bits in blocks of 32 (`activations`), weights stay in the bits of their
//! format. Matrices of all block formats are rearranged once, at load, into *panels* of 16 rows (`panel`, `unpack`), so
//! that one integer dot product instruction multiplies 4 columns of 16 rows. Floating-point weights are multiplied as
//! floats. Trellis weights are multiplied straight from their tiles, rearranged too, with rotated activations that are
//! rounded to 14 bits and a sign (`trellis`). With [`tensor::Precision::F32`] every weight is decoded to f32 and
//! nothing is rounded.
//!
//! # Instruction sets
//! [`Level`] names what the machine was found to have. Hand-written inner loops live in `isa/`, one file per
//! instruction set; everything else is plain code that the compiler vectorizes for each level
//! (`level::Vectorized`).

mod activations;
mod aligned;
mod bandwidth;
mod cache;
mod isa;
mod kernel;
mod level;
mod loaded;
mod panel;
mod pool;
mod trellis;
mod unpack;
mod weight;

use tensor::{Backend, BackendError, Capabilities, DType, LoadOptions, Loaded, Program, WeightSource};

pub use bandwidth::memory_read_rate;
pub use level::Level;
pub use pool::physical_cores;

/// The processor of this machine.
#[derive(Clone, Debug)]
pub struct CpuBackend {
    level: Level,
}

impl Default for CpuBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl CpuBackend {
    /// With the best instruction set that the processor and the operating system offer.
    pub fn new() -> Self {
        CpuBackend { level: Level::detect() }
    }

    /// With a given instruction set, for comparing; `None` if the machine does not have it.
    pub fn with_level(level: Level) -> Option<Self> {
        Self::available_levels().contains(&level).then_some(CpuBackend { level })
    }

    /// The instruction sets that this machine has, the plainest first.
    pub fn available_levels() -> Vec<Level> {
        Level::available()
    }

    /// The instruction set in use.
    pub fn level(&self) -> Level {
        self.level
    }
}

impl Backend for CpuBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            description: format!("CPU, {} cores, {}", physical_cores(), self.level.name()),
            weight_dtypes: DType::ALL.to_vec(),
            trellis: true,
            cache_dtypes: vec![DType::F32, DType::F16, DType::Q8_0],
            memory_bytes: available_memory(),
            decodes: false,
            grams: false,
        }
    }

    fn load(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        options: &LoadOptions,
    ) -> Result<Box<dyn Loaded>, BackendError> {
        Ok(Box::new(loaded::LoadedProgram::new(self.level, program, weights, options)?))
    }
}

/// Bytes of memory that can be used without swapping; `u64::MAX` where the system doesn't tell.
fn available_memory() -> u64 {
    let Ok(text) = std::fs::read_to_string("/proc/meminfo") else { return u64::MAX };
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes = line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kilobytes.map_or(u64::MAX, |kilobytes| kilobytes * 1024)
}
