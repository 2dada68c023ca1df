//! One suite that every backend has to pass: each op, in each format, at awkward sizes, on random inputs, against
//! [`tensor::reference`].
//!
//! A case builds small programs ([`setup`]), runs them on the reference and on the backends under test, and compares
//! every element with a bound that is *derived*, not chosen: while the reference runs, [`bound`] carries the largest
//! error that correct arithmetic in the backend's number formats may have made, from op to op. Each op's file holds
//! the derivation of its own share. A failure prints the worst element, both values and the bound.
//!
//! To add an op: its file here, with its error and its cases; a line in [`cases`] and one in [`bound`]. To add a
//! format: its line in [`mod@format`]. To add a backend: a test that calls [`assert_conforms`].
//!
//! **Invariant:** the suite knows no backend; only its tests do.

pub mod bound;
pub mod compare;
pub mod format;
pub mod lanes;
pub mod random;
pub mod setup;
pub mod trellis;

mod add;
mod attention;
mod cache_write;
mod continued;
mod contract;
mod decode;
mod embed;
mod gelu_mul;
mod layer;
mod linear;
mod rms_norm;
mod rope;
mod select_outputs;
mod single_tokens;

use tensor::Backend;

use setup::Experiment;

pub use compare::Failure;

/// How much of the suite a backend is put through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// All of it.
    Full,
    /// Less, for devices that take long to compile kernels: of the passes over at most 8 tokens that depend on no
    /// other pass, only those over 1, 4 and 8; of the formats of caches, one in each precision; of the ways to
    /// decode with the same sampling, only one.
    Quick,
}

/// A backend under test.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// What to call it in a failure.
    pub name: &'a str,
    /// The backend.
    pub backend: &'a dyn Backend,
    /// How much it is put through.
    pub effort: Effort,
}

/// A part of the suite.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The op, and what of it: `linear/q4_0`.
    pub name: &'static str,
    work: Work,
}

/// Is given the experiments of a case one by one; its first error ends the case.
type Visit<'a> = &'a mut dyn FnMut(&Experiment) -> Result<(), Failure>;

/// What a case does.
#[derive(Clone, Copy, Debug)]
enum Work {
    /// Compares numbers.
    Compare(fn(Visit<'_>) -> Result<(), Failure>),
    /// Looks at the rest of the contract.
    Contract(fn(&[Subject<'_>]) -> Result<(), Failure>),
}

impl Case {
    /// Runs the case on all subjects; the reference's part of the work is done once.
    ///
    /// # Errors
    /// The first program on which a subject is out of bounds.
    pub fn run(&self, subjects: &[Subject<'_>]) -> Result<(), Failure> {
        match self.work {
            Work::Compare(run) => run(&mut |experiment| compare::compare(experiment, subjects)),
            Work::Contract(run) => run(subjects),
        }
    }

    /// The experiments of the case, one by one.
    pub fn experiments(&self, mut visit: impl FnMut(&Experiment)) {
        if let Work::Compare(run) = self.work {
            let result = run(&mut |experiment| {
                visit(experiment);
                Ok(())
            });
            result.expect("no experiment was run");
        }
    }
}

/// The whole suite.
pub fn cases() -> Vec<Case> {
    [
        embed::CASES,
        rms_norm::CASES,
        linear::CASES,
        rope::CASES,
        cache_write::CASES,
        attention::CASES,
        gelu_mul::CASES,
        add::CASES,
        select_outputs::CASES,
        layer::CASES,
        single_tokens::CASES,
        trellis::CASES,
        contract::CASES,
        decode::CASES,
    ]
    .concat()
}

/// Runs every case whose name starts with `prefix` (all for the empty one) on the subjects.
///
/// # Panics
/// With the report of every case that failed, or if no case has such a name.
pub fn assert_cases(prefix: &str, subjects: &[Subject<'_>]) {
    let cases: Vec<Case> = cases().into_iter().filter(|case| case.name.starts_with(prefix)).collect();
    assert!(!cases.is_empty(), "no case is named `{prefix}…`");
    let failures: Vec<String> = cases
        .into_iter()
        .filter_map(|case| case.run(subjects).err().map(|failure| format!("{}: {failure}", case.name)))
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

/// Runs the whole suite on one backend.
///
/// # Panics
/// With the report of every case that failed.
pub fn assert_conforms(name: &str, backend: &dyn Backend) {
    assert_cases("", &[Subject { name, backend, effort: Effort::Full }]);
}
