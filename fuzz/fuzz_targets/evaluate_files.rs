//! Any text as instructions, answers and questions: an error, or what can be judged.
#![no_main]

use evaluate::{bleu, parse_answers, parse_choices, parse_instructions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(found) = parse_instructions(text) {
        for instruction in &found.all {
            let judged = instruction.judge(text.to_owned(), None);
            assert!(judged.constraints[0] <= judged.constraints[1]);
        }
        let _ = parse_answers(text, &found.all);
    }
    for question in parse_choices(text).unwrap_or_default() {
        assert!(question.answer < question.choices.len());
    }
    let _ = bleu([(text, text)]);
});
