//! Files that anybody may have written, and answers that a model may give: an error or a result, never a panic.

use evaluate::{Coherence, bleu, parse_answers, parse_choices, parse_instructions};
use proptest::prelude::*;

const GOLDENS: &str = include_str!("data/ifeval/goldens.jsonl");

/// Texts that look like parts of the files.
fn parts() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("{\"prompt\": \"p\", \"expected\": "),
        Just("\"question\": \"q\", \"choices\": "),
        Just("[\"a\", \"b\"]"),
        Just("\"answer\": 1"),
        Just("\"instruction_id_list\": "),
        Just("\"kwargs\": "),
        Just("{}"),
        Just("}"),
        Just("["),
        Just(", "),
        Just("\n"),
        Just("\""),
        Just("A"),
        Just("1e999"),
        Just("-0"),
        Just("null"),
        Just("\u{feff}"),
        Just("é"),
    ];
    prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_a_file_or_an_error(text in prop_oneof![parts(), any::<String>()]) {
        let instructions = parse_instructions(&text).map(|found| found.all).unwrap_or_default();
        for instruction in &instructions {
            let judged = instruction.judge(text.clone(), None);
            prop_assert!(judged.constraints[0] <= judged.constraints[1]);
        }
        let _ = parse_answers(&text, &instructions);
        for question in parse_choices(&text).unwrap_or_default() {
            prop_assert!(question.answer < question.choices.len());
        }
    }

    #[test]
    fn any_answer_can_be_judged(answer in prop_oneof![any::<String>(), "[-*\\[\\]<>{}`\"'.,!? \n\taA1é]{0,60}"]) {
        for line in GOLDENS.lines().skip(1) {
            let instruction = parse_instructions(line).expect("an instruction").all.remove(0);
            let judged = instruction.judge(answer.clone(), Some(true));
            prop_assert!(!judged.passed || !answer.trim().is_empty());
        }
        for check in ["json", "number", "contains"] {
            let line = format!("{{\"prompt\": \"p\", \"check\": \"{check}\", \"expected\": \"1\"}}");
            let judged = parse_instructions(&line).expect("an instruction").all.remove(0).judge(answer.clone(), None);
            let coherence = Coherence::of(&[judged]);
            prop_assert!(coherence.repetition.is_none_or(|share| (0.0..=1.0).contains(&share)));
        }
        let score = bleu([(answer.as_str(), answer.as_str())]).score;
        // A text is like itself, if it has the longest n-grams.
        prop_assert!(score == 0.0 || (score - 100.0).abs() < 1e-9, "{}", score);
    }
}
