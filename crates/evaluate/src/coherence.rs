//! Whether answers hang together: do they repeat themselves, have they many words, do they end?

use std::collections::HashSet;

use crate::Answer;

/// The n-grams of [`Coherence::repetition`].
const REPEATED: usize = 4;

/// How coherent answers are. Words are what white space divides.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Coherence {
    /// Words of all answers.
    pub words: usize,
    /// Share of an answer's 4-grams that occurred in it before (Welleck et al., 2020, seq-rep-4): the mean over all
    /// answers of at least 4 words; `None` if there are none.
    pub repetition: Option<f64>,
    /// Different n-grams over all of them, for n of 1, 2 and 3 (Li et al., 2016, distinct-n); `None` if there are none.
    pub distinct: [Option<f64>; 3],
    /// Share of the answers that ended because they had as many tokens as they may have; `None` if that is not known
    /// of any.
    pub not_stopped: Option<f64>,
}

impl Coherence {
    /// Of answers.
    pub fn of(answers: &[Answer]) -> Coherence {
        let words: Vec<Vec<&str>> = answers.iter().map(|answer| answer.answer.split_whitespace().collect()).collect();
        let stops: Vec<bool> = answers.iter().filter_map(|answer| answer.stopped).collect();
        let endless = stops.iter().filter(|stopped| !**stopped).count();
        Coherence {
            words: words.iter().map(Vec::len).sum(),
            repetition: mean(words.iter().filter_map(|words| repetition(words))),
            distinct: [1, 2, 3].map(|order| distinct(&words, order)),
            not_stopped: share(endless, stops.len()),
        }
    }
}

fn repetition(words: &[&str]) -> Option<f64> {
    let different: HashSet<_> = words.windows(REPEATED).collect();
    share(different.len(), words.windows(REPEATED).len()).map(|different| 1.0 - different)
}

fn distinct(texts: &[Vec<&str>], order: usize) -> Option<f64> {
    let ngrams = || texts.iter().flat_map(|words| words.windows(order));
    share(ngrams().collect::<HashSet<_>>().len(), ngrams().count())
}

fn share(part: usize, all: usize) -> Option<f64> {
    (all > 0).then(|| part as f64 / all as f64)
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(answer: &str, stopped: Option<bool>) -> Answer {
        let (id, family) = (String::new(), String::new());
        Answer { id, family, answer: answer.into(), passed: false, constraints: [0; 2], stopped }
    }

    #[test]
    fn coherence_by_hand() {
        // 4-grams: "a b a b", "b a b a", "a b a b", "b a b a" of the first, one of the second, none of the third.
        let answers =
            [answer("a b a b a b a", Some(false)), answer("a b c  d", Some(true)), answer("e", None), answer("", None)];
        let found = Coherence::of(&answers);
        assert_eq!(found.words, 12);
        assert_eq!(found.repetition, Some(0.25));
        // Words a, b, c, d, e of 12; pairs ab, ba, bc, cd of 9; triples aba, bab, abc, bcd of 7.
        assert_eq!(found.distinct, [Some(5.0 / 12.0), Some(4.0 / 9.0), Some(4.0 / 7.0)]);
        assert_eq!(found.not_stopped, Some(0.5));
        assert_eq!(Coherence::of(&[]), Coherence::default());
        assert_eq!(Coherence::of(&[answer("a", None)]).not_stopped, None);
    }
}
