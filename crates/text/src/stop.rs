//! Stop strings over streamed text.

/// What to show after a piece of text has been looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopOutput {
    /// Text that can be shown now.
    pub text: String,
    /// Which of the stop strings was found, by its number; nothing comes after it.
    pub stop: Option<usize>,
}

/// Cuts a stream of text before the first stop string.
///
/// The first is the one that is complete first; of several that end at the same place, the longest. So the result
/// does not depend on how the text arrives in pieces: text that may be the beginning of a stop string is held back
/// until that is decided.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

impl StopStrings {
    /// A matcher for the given strings; empty ones never match.
    pub fn new<S: Into<String>>(stops: impl IntoIterator<Item = S>) -> StopStrings {
        StopStrings { stops: stops.into_iter().map(Into::into).collect(), held: String::new(), stopped: false }
    }

    /// Takes the next piece of text. After a stop string was found, everything is swallowed.
    pub fn push(&mut self, text: &str) -> StopOutput {
        if self.stopped {
            return StopOutput::default();
        }
        self.held.push_str(text);
        if let Some((start, stop)) = self.first_match() {
            self.stopped = true;
            self.held.truncate(start);
            return StopOutput { text: std::mem::take(&mut self.held), stop: Some(stop) };
        }
        let held = self.held.split_off(self.held.len() - self.undecided());
        StopOutput { text: std::mem::replace(&mut self.held, held), stop: None }
    }

    /// The end of the stream: what was held back is text after all.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Start of the match that ends first, the longest of several, and the number of its stop string.
    fn first_match(&self) -> Option<(usize, usize)> {
        let stops = self.stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty());
        let matches = stops.filter_map(|(number, stop)| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, number))
        });
        matches.min().map(|(_, start, number)| (start, number))
    }

    /// Bytes at the end of `held` that begin a stop string.
    fn undecided(&self) -> usize {
        let held = self.held.as_bytes();
        let begins = |length: &usize| {
            let tail = &held[held.len() - length..];
            self.stops.iter().any(|stop| stop.len() > *length && stop.as_bytes().starts_with(tail))
        };
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        (1..=held.len().min(longest.saturating_sub(1))).rev().find(begins).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, over the whole text.
    fn naive(text: &str, stops: &[String]) -> (String, Option<usize>) {
        for end in 0..=text.len() {
            let mut found: Option<(usize, usize)> = None;
            for (number, stop) in stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty()) {
                if text.as_bytes()[..end].ends_with(stop.as_bytes()) {
                    let candidate = (end - stop.len(), number);
                    found = Some(found.map_or(candidate, |best| best.min(candidate)));
                }
            }
            if let Some((start, number)) = found {
                return (text[..start].to_string(), Some(number));
            }
        }
        (text.to_string(), None)
    }

    fn streamed(chunks: &[&str], stops: &[String]) -> (String, Option<usize>) {
        let mut matcher = StopStrings::new(stops.to_vec());
        let (mut text, mut stop) = (String::new(), None);
        for chunk in chunks {
            let output = matcher.push(chunk);
            text.push_str(&output.text);
            stop = stop.or(output.stop);
        }
        text.push_str(&matcher.flush());
        (text, stop)
    }

    #[test]
    fn nothing_that_may_become_a_stop_string_is_shown() {
        let mut matcher = StopStrings::new(["\nUser:"]);
        assert_eq!(matcher.push("Hello\n").text, "Hello");
        assert_eq!(matcher.push("Us").text, "");
        assert_eq!(matcher.push("!").text, "\nUs!");
        let output = matcher.push("a\nUser: b");
        assert_eq!(output, StopOutput { text: "a".into(), stop: Some(0) });
        assert_eq!(matcher.push("more"), StopOutput::default());
        assert_eq!(matcher.flush(), "");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]
        #[test]
        fn chunks_do_not_matter(
            chunks in prop::collection::vec("[abé🌍]{0,4}", 0..12),
            stops in prop::collection::vec("[abé🌍]{0,5}", 0..4),
        ) {
            let chunks: Vec<&str> = chunks.iter().map(String::as_str).collect();
            prop_assert_eq!(streamed(&chunks, &stops), naive(&chunks.concat(), &stops));
        }
    }
}
