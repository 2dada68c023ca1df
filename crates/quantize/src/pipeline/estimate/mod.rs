//! What a run would take: memory by what its phases keep, time by how much there is to do and a short measurement of
//! how fast it is done here.

mod clock;
mod measure;
mod memory;
mod work;

use super::plan::Plan;
use super::{Allocation, PipelineError, Task};

pub use measure::Speeds;
pub use memory::Phase;
pub use work::{Part, Work};

/// What a run would take.
#[derive(Clone, Debug)]
pub struct Estimate {
    /// What is in memory in each phase, besides pages of the checkpoint and the program itself.
    pub phases: Vec<Phase>,
    /// What there is to do.
    pub work: Work,
    /// How fast it is done here.
    pub speeds: Speeds,
    /// Seconds of each part, on one thread.
    pub parts: Vec<(Part, f64)>,
    /// Threads that share them.
    pub threads: usize,
    /// Whether a device searches for tiles while threads prepare others.
    pub overlaps: bool,
}

impl Estimate {
    /// The phase with the most memory.
    pub fn peak(&self) -> &Phase {
        self.phases.iter().max_by_key(|phase| phase.bytes).expect("some phases")
    }

    /// Seconds of all threads together.
    pub fn processor_seconds(&self) -> f64 {
        self.parts.iter().map(|(_, seconds)| seconds).sum()
    }

    /// Seconds from beginning to end, if the threads have a core each.
    pub fn seconds(&self) -> f64 {
        let of = |part| self.parts.iter().filter(|(other, _)| *other == part).map(|(_, seconds)| seconds).sum::<f64>();
        let meanwhile = of(Part::Tiles).min(of(Part::Feedback) + of(Part::Rotation));
        let hidden = if self.overlaps { meanwhile } else { 0.0 };
        (self.processor_seconds() - hidden) / self.threads as f64
    }
}

impl Task<'_> {
    /// What this run would take. Measures for a few seconds; bits are divided evenly for it, as what errors cost is not
    /// known yet.
    ///
    /// # Errors
    /// A budget that can't be met, a text that is too short, a model that can't be run.
    pub fn estimate(&self) -> Result<Estimate, PipelineError> {
        self.check_input()?;
        let plan = Plan::new(self.source, self.options.layout)?;
        let report = self.report(&plan, &vec![0.0; plan.targets.len()], Allocation::Uniform)?;
        let rates: Vec<_> = report.weights.iter().map(|weight| weight.rate).collect();
        let phases = memory::phases(self, &plan, &rates)?;
        let work = Work::of(self, &plan, &rates);
        let speeds = Speeds::measure(self, &plan, &rates)?;
        let parts = work.seconds(&speeds);
        Ok(Estimate {
            phases,
            work,
            speeds,
            parts,
            threads: self.options.threads.max(1),
            overlaps: self.tiles.is_some(),
        })
    }

    /// Memory of each phase, as [`Estimate::phases`], without a measurement.
    ///
    /// # Errors
    /// A budget that can't be met.
    pub fn memory(&self) -> Result<Vec<Phase>, PipelineError> {
        let plan = Plan::new(self.source, self.options.layout)?;
        let report = self.report(&plan, &vec![0.0; plan.targets.len()], Allocation::Uniform)?;
        let rates: Vec<_> = report.weights.iter().map(|weight| weight.rate).collect();
        memory::phases(self, &plan, &rates)
    }
}
