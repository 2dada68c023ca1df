//! One number for what a model has kept of the original's quality.
//!
//! Each [`Retained`] is a ratio of two scores, the model's and the original's. The worst of them counts: a model that
//! predicts well but has forgotten how to answer is no good. How much the two differ (KL divergence, other words in
//! answers) does not count: a model may differ and be as good.

use crate::{Answer, Bleu, ChoiceScore, Comparison, Estimate, EvaluateError};

/// A score of a model beside the original's.
#[derive(Clone, Debug, PartialEq)]
pub struct Retained {
    /// Which score.
    pub score: Score,
    /// The model's.
    pub model: f64,
    /// The original's.
    pub original: f64,
    /// What is kept: 1 for all, more where the model is better. Its error is that of the sample, questions and
    /// predictions taken as independent; `None` where it isn't known.
    pub ratio: f64,
    /// Standard error of the ratio.
    pub error: Option<f64>,
}

/// What is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Score {
    /// Perplexity of a text of that name.
    Perplexity(String),
    /// Share of instructions that were answered rightly.
    Instructions,
    /// BLEU of the answers to instructions against those that were expected, from 0 to 100.
    Bleu,
    /// Share of right choices, above what chance gives.
    Choices,
}

impl Score {
    /// Its name for people.
    pub fn name(&self) -> String {
        match self {
            Score::Perplexity(text) => format!("perplexity of {text}"),
            Score::Instructions => "instructions answered rightly".into(),
            Score::Bleu => "BLEU against expected answers".into(),
            Score::Choices => "multiple choice above chance".into(),
        }
    }
}

impl Retained {
    /// The original's perplexity over the model's.
    pub fn perplexity(text: &str, comparison: &Comparison) -> Retained {
        let Estimate { value: ratio, error } =
            Estimate { value: -comparison.ln_ratio.value, ..comparison.ln_ratio }.exp();
        let (model, original) = (comparison.perplexity.value, comparison.original_perplexity.value);
        Retained { score: Score::Perplexity(text.into()), model, original, ratio, error: Some(error) }
    }

    /// The model's share of right answers over the original's, to the same instructions in the same order. `None` if
    /// the original has no right answer.
    pub fn instructions(model: &[Answer], original: &[Answer]) -> Option<Retained> {
        let pairs = model.iter().zip(original).map(|(model, original)| [model.passed, original.passed]);
        Retained::of_shares(Score::Instructions, pairs.map(|pair| pair.map(|passed| f64::from(u8::from(passed)))))
    }

    /// The model's BLEU against expected answers over the original's. `None` if that is 0, or there is no BLEU.
    pub fn bleu(model: Option<Bleu>, original: Option<Bleu>) -> Option<Retained> {
        let (model, original) = (model?.score, original?.score);
        let ratio = model / original;
        (original > 0.0).then_some(Retained { score: Score::Bleu, model, original, ratio, error: None })
    }

    /// The model's share of right choices above chance over the original's, for the same questions in the same order.
    /// `None` if the original is not better than chance: no less than twice the standard error of guesses.
    pub fn choices(model: &ChoiceScore, original: &ChoiceScore) -> Option<Retained> {
        let chance = original.chance;
        let guesses = (chance * (1.0 - chance) / original.right.len().max(1) as f64).sqrt();
        if original.accuracy() <= chance + 2.0 * guesses {
            return None;
        }
        let above = |right: bool| f64::from(u8::from(right)) - chance;
        let pairs = model.right.iter().zip(&original.right);
        Retained::of_shares(Score::Choices, pairs.map(|(model, original)| [above(*model), above(*original)]))
    }

    /// The ratio of two means of paired values. Its error is that of the mean of `model − ratio · original`.
    fn of_shares(score: Score, pairs: impl Iterator<Item = [f64; 2]> + Clone) -> Option<Retained> {
        let model = Estimate::of(pairs.clone().map(|[model, _]| model)).value;
        let original = Estimate::of(pairs.clone().map(|[_, original]| original)).value;
        let ratio = model / original;
        let error = Estimate::of(pairs.map(|[model, original]| model - ratio * original)).error / original;
        (original > 0.0).then_some(Retained { score, model, original, ratio, error: Some(error) })
    }
}

/// The score of which least is kept.
pub fn worst(retained: &[Retained]) -> Option<&Retained> {
    retained.iter().min_by(|one, other| one.ratio.total_cmp(&other.ratio))
}

/// Fails if less is kept than a share.
///
/// # Errors
/// Less is kept, or nothing is known.
pub fn require(retained: &[Retained], share: f64) -> Result<(), EvaluateError> {
    let worst = worst(retained).ok_or(EvaluateError::NoVerdict)?;
    // A ratio that is no number is no quality.
    if worst.ratio >= share {
        return Ok(());
    }
    let (score, found) = (worst.score.name(), 100.0 * worst.ratio);
    Err(EvaluateError::Verdict { found, required: 100.0 * share, score })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Divergence, Tail};

    fn answers(passed: &[bool]) -> Vec<Answer> {
        let answer = |passed: &bool| Answer {
            id: String::new(),
            family: String::new(),
            answer: String::new(),
            passed: *passed,
            constraints: [0; 2],
            stopped: None,
        };
        passed.iter().map(answer).collect()
    }

    fn choices(right: &[bool], chance: f64) -> ChoiceScore {
        ChoiceScore { right: right.into(), right_normalized: right.into(), chance }
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "found {found}, expected {expected}");
    }

    #[test]
    fn ratios_by_hand() {
        // 2 of 4 against 3 of 4: differences to 2/3 of the original's 1/3, 1/3, −2/3, 0, whose mean is 0.
        let found = Retained::instructions(&answers(&[true, true, false, false]), &answers(&[true, true, true, false]))
            .unwrap();
        near(found.ratio, 2.0 / 3.0);
        near(found.error.unwrap(), (6.0f64 / 9.0 / 4.0 / 3.0).sqrt() / 0.75);
        assert_eq!(Retained::instructions(&answers(&[true]), &answers(&[false])), None);

        // 60 and 80 of 100 right, 25 by chance: 35 / 55.
        let right = |count: usize| choices(&(0..100).map(|index| index < count).collect::<Vec<_>>(), 0.25);
        near(Retained::choices(&right(60), &right(80)).unwrap().ratio, 35.0 / 55.0);
        assert!(Retained::choices(&right(10), &right(80)).unwrap().ratio < 0.0);
        // Two standard errors of guesses are 8.66 of 100.
        assert!(Retained::choices(&right(33), &right(33)).is_none());
        near(Retained::choices(&right(34), &right(34)).unwrap().ratio, 1.0);

        let bleu = |score| Some(Bleu { score, ..Bleu::default() });
        near(Retained::bleu(bleu(30.0), bleu(40.0)).unwrap().ratio, 0.75);
        assert!(Retained::bleu(bleu(30.0), bleu(0.0)).is_none() && Retained::bleu(None, bleu(1.0)).is_none());
    }

    #[test]
    fn the_worst_ratio_decides_and_divergence_does_not() {
        let prediction = |nll| Divergence {
            nll,
            original_nll: 1.0,
            kl: 9.0,
            same_top: false,
            token_change: 0.5,
            top_change: 0.5,
            tail: Tail::default(),
        };
        let comparison = Comparison::of(&[prediction(1.1), prediction(0.9), prediction(1.05)]);
        let text = Retained::perplexity("book", &comparison);
        near(text.ratio, (-0.05f64 / 3.0).exp());
        let bleu = |score| Some(Bleu { score, ..Bleu::default() });
        let all = [text, Retained::bleu(bleu(94.0), bleu(100.0)).unwrap()];
        assert_eq!(worst(&all).unwrap().score, Score::Bleu);
        assert!(require(&all, 0.94).is_ok() && require(&all[..1], 0.98).is_ok());
        let error = require(&all, 0.95).unwrap_err().to_string();
        assert_eq!(error, "94.0 % of the quality is retained (BLEU against expected answers), 95 % is required");
        assert!(matches!(require(&[], 0.5), Err(EvaluateError::NoVerdict)));
        let broken = Retained { ratio: f64::NAN, ..all[0].clone() };
        assert!(require(&[broken], 0.5).is_err());
    }
}
