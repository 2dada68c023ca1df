//! BLEU of a corpus (Papineni et al., 2002), the numbers of the `sacrebleu` package with its default settings: one
//! reference each, the tokens of mteval-v13a, n-grams up to 4, upper and lower case told apart, exponential smoothing.

use std::collections::HashMap;

/// The longest n-grams.
const ORDER: usize = 4;

/// BLEU, and what it is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bleu {
    /// From 0 to 100.
    pub score: f64,
    /// Shares of n-grams that are in the reference, for n from 1 to 4, smoothed, in per cent.
    pub precisions: [f64; ORDER],
    /// What the score is multiplied by because texts are shorter than their references.
    pub brevity_penalty: f64,
    /// Tokens of all texts.
    pub tokens: usize,
    /// Tokens of all references.
    pub reference_tokens: usize,
}

/// BLEU of texts and the reference of each, as one corpus.
pub fn bleu<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Bleu {
    let mut found = Bleu::default();
    let (mut correct, mut total) = ([0; ORDER], [0; ORDER]);
    for (text, reference) in pairs {
        let (text, reference) = (tokens(text), tokens(reference));
        found.tokens += text.len();
        found.reference_tokens += reference.len();
        for order in 1..=ORDER {
            let wanted = ngrams(&reference, order);
            let clipped =
                |(ngram, count): (&&[String], &usize)| wanted.get(ngram).map_or(0, |wanted| *wanted.min(count));
            correct[order - 1] += ngrams(&text, order).iter().map(clipped).sum::<usize>();
            total[order - 1] += (text.len() + 1).saturating_sub(order);
        }
    }
    let ratio = found.reference_tokens as f64 / found.tokens as f64;
    found.brevity_penalty = match found.tokens {
        0 => f64::from(u8::from(found.reference_tokens == 0)),
        _ => (1.0 - ratio).min(0.0).exp(),
    };
    if correct[0] > 0 {
        let mut smoothing = 1.0;
        for order in 0..ORDER {
            // Without n-grams of an order the precision is 0, and so is the score.
            if total[order] > 0 {
                let correct = if correct[order] > 0 {
                    correct[order] as f64
                } else {
                    smoothing /= 2.0;
                    smoothing
                };
                found.precisions[order] = 100.0 * correct / total[order] as f64;
            }
        }
        let mean_ln = found.precisions.iter().map(|precision| precision.ln()).sum::<f64>() / ORDER as f64;
        found.score = found.brevity_penalty * mean_ln.exp();
    }
    found
}

fn ngrams(tokens: &[String], order: usize) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    for ngram in tokens.windows(order) {
        *counts.entry(ngram).or_default() += 1;
    }
    counts
}

/// The tokens of mteval-v13a: punctuation stands alone, but for `.` and `,` between digits, hyphens that no digit is
/// before, and apostrophes.
fn tokens(text: &str) -> Vec<String> {
    let mut text = text.trim_end_matches(is_space).replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    for (entity, character) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
        text = text.replace(entity, character);
    }
    let mut spaced = vec![' '];
    for c in text.chars() {
        if stands_alone(c) { spaced.extend([' ', c, ' ']) } else { spaced.push(c) }
    }
    spaced.push(' ');
    let is_point = |c: char| matches!(c, '.' | ',');
    let is_digit = |c: char| c.is_ascii_digit();
    // Pairs are looked for one after the other, from left to right: each rule sees what the one before has made.
    let spaced = replace_pairs(&spaced, |a, b| !is_digit(a) && is_point(b), |a, b| vec![a, ' ', b, ' ']);
    let spaced = replace_pairs(&spaced, |a, b| is_point(a) && !is_digit(b), |a, b| vec![' ', a, ' ', b]);
    let spaced = replace_pairs(&spaced, |a, b| is_digit(a) && b == '-', |a, b| vec![a, ' ', b, ' ']);
    let tokens = spaced.split(|c| is_space(*c)).filter(|token| !token.is_empty());
    tokens.map(|token| token.iter().collect()).collect()
}

/// Punctuation and symbols of ASCII but for `'`, `,`, `-` and `.`.
fn stands_alone(c: char) -> bool {
    matches!(c, ' '..='&' | '('..='+' | '/' | ':'..='@' | '['..='`' | '{'..='~')
}

/// White space as Python has it.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// Replaces pairs of neighbours, none of which overlap.
fn replace_pairs(
    chars: &[char],
    is_pair: impl Fn(char, char) -> bool,
    replaced: impl Fn(char, char) -> Vec<char>,
) -> Vec<char> {
    let (mut result, mut place) = (Vec::with_capacity(2 * chars.len()), 0);
    while place < chars.len() {
        match chars.get(place + 1) {
            Some(&next) if is_pair(chars[place], next) => {
                result.extend(replaced(chars[place], next));
                place += 2;
            }
            _ => {
                result.push(chars[place]);
                place += 1;
            }
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn punctuation_is_split_off_but_not_in_numbers() {
        assert_eq!(tokens("Hello, world (1,000.5)."), ["Hello", ",", "world", "(", "1,000.5", ")", "."]);
        assert_eq!(tokens("10-20 well-known &lt;b&gt; it's"), ["10", "-", "20", "well-known", "<", "b", ">", "it's"]);
        assert_eq!(tokens(" \n\u{a0}"), [""; 0]);
    }

    #[test]
    fn a_score_by_hand() {
        // 4 of 5, 2 of 4, 1 of 3, 0 of 2 (smoothed to 1/2 of 2): (0.8 · 0.5 · 1/3 · 0.25)^(1/4).
        let found = bleu([("a b c x d", "a b c d e")]);
        assert!((found.score - 100.0 * (0.8 * 0.5 / 3.0 * 0.25f64).powf(0.25)).abs() < 1e-9, "{found:?}");
        assert_eq!(found.brevity_penalty, 1.0);
        let shorter = bleu([("a b c d", "a b c d e")]);
        assert!((shorter.score - 100.0 * (-0.25f64).exp()).abs() < 1e-9, "{shorter:?}");
        assert_eq!(bleu([("", "a")]).score, 0.0);
        assert_eq!(bleu([]).score, 0.0);
    }
}
