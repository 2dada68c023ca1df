//! What a model has kept of the original's quality: for people, for programs and as an exit code.

use anyhow::Result;
use evaluate::{Comparison, Retained, bleu_of_expected, require, worst};
use serde_json::{Value, json};

use super::choices::Scores;
use super::instructions::{Answers, Questions};
use crate::args::EvaluateArgs;
use crate::output;

/// All ratios of scores.
#[derive(Default)]
pub(super) struct Verdict {
    retained: Vec<Retained>,
    /// Scores that can't be compared, and why.
    missing: Vec<String>,
}

impl Verdict {
    /// A text was compared.
    pub(super) fn text(&mut self, name: &str, comparison: &Comparison) {
        self.retained.push(Retained::perplexity(name, comparison));
    }

    /// Instructions were answered.
    pub(super) fn instructions(&mut self, questions: &Questions, answers: &Answers) {
        let Some(original) = &answers.original else { return };
        let expected = |answers| bleu_of_expected(&questions.all, answers);
        self.add(
            Retained::instructions(&answers.model, original),
            "the original has no right answer to an instruction",
        );
        let bleu = [expected(&answers.model), expected(original)];
        if bleu[0].is_some() {
            self.add(Retained::bleu(bleu[0], bleu[1]), "BLEU of the original's answers is 0");
        }
    }

    /// Questions were answered.
    pub(super) fn choices(&mut self, scores: &Scores) {
        let Some(original) = &scores.original else { return };
        self.add(
            Retained::choices(&scores.model, original),
            "the original's choices are no better than guesses would be by chance (two standard errors)",
        );
    }

    fn add(&mut self, retained: Option<Retained>, why_not: &str) {
        match retained {
            Some(retained) => self.retained.push(retained),
            None => self.missing.push(why_not.into()),
        }
    }

    /// Whether there is anything to say.
    pub(super) fn is_empty(&self) -> bool {
        self.retained.is_empty() && self.missing.is_empty()
    }

    /// For people.
    pub(super) fn text_of(&self) -> String {
        let Some(worst) = worst(&self.retained) else {
            return self.missing.iter().map(|why| format!("no verdict: {why}\n")).collect();
        };
        let mut text = format!("quality retained: {:.1} % ({})\n", 100.0 * worst.ratio, worst.score.name());
        for Retained { score, model, original, ratio, error } in &self.retained {
            let error = error.map(|error| format!(" ± {:.1}", 100.0 * error)).unwrap_or_default();
            let name = score.name();
            text += &format!("  {name:<40} {:>6.1} %{error}  ({model:.4}, original {original:.4})\n", 100.0 * ratio);
        }
        self.missing.iter().for_each(|why| text += &format!("  not counted: {why}\n"));
        text
    }

    /// For programs.
    pub(super) fn json(&self, args: &EvaluateArgs) -> Value {
        let ratio = |one: &Retained| {
            json!({
                "score": one.score.name(),
                "model": one.model,
                "original": one.original,
                "retained": one.ratio,
                "retained_error": one.error,
            })
        };
        json!({
            "retained": worst(&self.retained).map(|worst| worst.ratio),
            "worst": worst(&self.retained).map(|worst| worst.score.name()),
            "scores": self.retained.iter().map(ratio).collect::<Vec<_>>(),
            "not_counted": self.missing,
            "required": args.require.map(|required| required / 100.0),
            "passed": args.require.map(|required| require(&self.retained, required / 100.0).is_ok()),
        })
    }

    /// Tells people.
    ///
    /// # Errors
    /// A closed pipe.
    pub(super) fn tell(&self) -> Result<()> {
        Ok(output::answer(&self.text_of())?)
    }

    /// Fails if less is kept than was required.
    ///
    /// # Errors
    /// That, or nothing is known.
    pub(super) fn check(&self, args: &EvaluateArgs) -> Result<()> {
        Ok(args.require.map_or(Ok(()), |required| require(&self.retained, required / 100.0))?)
    }
}
