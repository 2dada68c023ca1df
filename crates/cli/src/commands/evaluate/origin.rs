//! Where values that are not numbers begin.

use anyhow::Result;

use crate::runner::Runner;

/// Runs tokens and says in which layer, and after which of them, the first hidden state is not finite. The engine must
/// keep hidden states. `None` if all are finite, and the logits too.
///
/// # Errors
/// A device that fails.
pub(super) fn find(runner: &mut Runner, tokens: &[u32]) -> Result<Option<String>> {
    let mut first: Option<(usize, usize)> = None;
    let mut states = 0;
    runner.forward(tokens, &mut |row| {
        states = row.hidden.len();
        let finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
        let bad = row.hidden.iter().position(|state| !finite(state));
        let bad = bad.or_else(|| (!finite(row.logits)).then_some(states));
        if let Some(state) = bad
            && first.is_none_or(|(least, _)| state < least)
        {
            first = Some((state, row.position));
        }
    })?;
    Ok(first.map(|(state, position)| {
        format!("values are not finite from {} on, at position {position} of the window", place(state, states))
    }))
}

/// The name of a hidden state of `states`: the embedding, the state after each layer, the last one after the final
/// norm; behind it are the logits.
fn place(state: usize, states: usize) -> String {
    match state {
        0 => "the embedding".into(),
        state if state == states => "the head".into(),
        state if state + 1 == states => format!("layer {} (the last one) or the final norm", state - 1),
        state => format!("layer {}", state - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_names() {
        let names: Vec<_> = [0, 1, 2, 3, 4].map(|state| place(state, 4)).into();
        let expected = ["the embedding", "layer 0", "layer 1", "layer 2 (the last one) or the final norm", "the head"];
        assert_eq!(names, expected);
    }
}
