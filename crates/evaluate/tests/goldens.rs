//! BLEU and constraints beside the programs that others use for them.

use std::path::Path;

use evaluate::{bleu, parse_instructions};
use serde_json::Value;

fn data(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    std::fs::read_to_string(path).expect("a file of goldens")
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

#[test]
fn bleu_is_that_of_sacrebleu() {
    let goldens: Vec<Value> = serde_json::from_str(&data("bleu/goldens.json")).expect("JSON");
    assert!(goldens.len() > 30);
    for golden in goldens {
        let pairs: Vec<(String, String)> = serde_json::from_value(golden["pairs"].clone()).expect("pairs");
        let found = bleu(pairs.iter().map(|(text, reference)| (text.as_str(), reference.as_str())));
        let near = |found: f64, expected: &Value| (found - number(expected)).abs() < 1e-9;
        assert!(near(found.score, &golden["score"]), "{found:?} {golden}");
        assert!(near(found.brevity_penalty, &golden["brevity_penalty"]), "{found:?} {golden}");
        for (found, expected) in found.precisions.iter().zip(golden["precisions"].as_array().expect("a list")) {
            assert!(near(*found, expected), "{found:?} {golden}");
        }
    }
}

#[test]
fn constraints_are_kept_where_ifeval_says_so() {
    let mut seen = [0; 2];
    let goldens = data("ifeval/goldens.jsonl");
    let mut lines = goldens.lines();
    let answers: Vec<String> = serde_json::from_str(lines.next().expect("a line")).expect("answers");
    for line in lines {
        let golden: Value = serde_json::from_str(line).expect("JSON");
        let instruction = parse_instructions(line).expect("an instruction").all.remove(0);
        let kept = golden["kept"].as_str().expect("a string");
        assert_eq!(kept.len(), answers.len());
        for (answer, kept) in answers.iter().zip(kept.chars()).filter(|(_, kept)| *kept != '?') {
            let judged = instruction.judge(answer.clone(), None);
            assert_eq!(judged.passed, kept == '+', "{answer:?} {}", golden["instruction_id_list"]);
            seen[usize::from(judged.passed)] += 1;
        }
    }
    assert!(seen[0] > 300 && seen[1] > 300, "{seen:?}");
}
