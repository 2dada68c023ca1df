//! Special tokens in messages, where the template makes it hard.

mod common;

use common::Model;
use text::{ChatTemplate, Message, Special, TextError, Tokenizer, encode_chat};

fn tokenizer() -> Option<Tokenizer> {
    Model::find("tiny").map(|model| Tokenizer::from_json(&model.read("tokenizer.json")).unwrap())
}

#[test]
fn a_template_that_rewrites_contents() {
    let Some(tokenizer) = tokenizer() else { return };
    let template = ChatTemplate::from_text(
        "<bos>{{ messages[0].content | upper | replace('A', 'aa') }}{{ messages[0].content[:3] }}",
    )
    .unwrap();
    let encode = |content: &str| encode_chat(&tokenizer, &template, &[Message::user(content)], true, Special::Text);
    assert_eq!(encode("data").unwrap(), tokenizer.encode("<bos>DaaTaadat", Special::Parse));
    let error = encode("x<bos>").unwrap_err();
    assert!(matches!(&error, TextError::SpecialInContent { token } if token == "<bos>"), "{error}");
}

#[test]
fn a_content_that_completes_the_templates_text() {
    let Some(tokenizer) = tokenizer() else { return };
    let template =
        ChatTemplate::from_text("<bos><b{{ messages[0].content }}<eos>{{ messages[0].content }}s><eos>").unwrap();
    for content in ["os>", "<bo", "<eos><bo", "x<", "<start_of_turn", "<eo"] {
        let messages = [Message::user(content)];
        let ids = encode_chat(&tokenizer, &template, &messages, true, Special::Text).unwrap();
        let names: Vec<_> = ids.iter().filter(|id| tokenizer.kind(**id).unwrap().is_special()).collect();
        // Only `<bos>` and the two `<eos>` that the template itself writes.
        assert_eq!(names, [&2, &1, &1], "{content}");
        assert_eq!(tokenizer.decode(&ids, false), template.render(&messages, true).unwrap());
    }
}

#[test]
fn every_private_character_is_taken() {
    let Some(tokenizer) = tokenizer() else { return };
    let every: String = ('\u{E000}'..='\u{F8FF}').chain('\u{F0000}'..='\u{FFFFD}').collect();
    let encode = |content: String| {
        encode_chat(&tokenizer, &ChatTemplate::gemma(), &[Message::user(content)], true, Special::Text)
    };
    assert!(encode(every.clone()).is_ok());
    assert!(matches!(encode(every + "<bos>"), Err(TextError::SpecialInContent { .. })));
}
