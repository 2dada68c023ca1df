//! Ids, texts and prompts against `tokenizers`, `sentencepiece` and `jinja2` (see `make_goldens.py`).

mod common;

use std::collections::BTreeMap;

use common::{Model, data, fnv};
use proptest::prelude::*;
use serde::Deserialize;
use text::{ChatTemplate, Message, Special, StreamingDetokenizer, TokenKind, Tokenizer, encode_chat};

#[derive(Deserialize)]
struct Texts {
    nasty: Vec<String>,
    random: Vec<String>,
}

#[derive(Deserialize)]
struct Golden {
    nasty: Vec<Ids>,
    random: Vec<Hashes>,
    decode: Vec<Decoded>,
    books: BTreeMap<String, Book>,
}

#[derive(Deserialize)]
struct Ids {
    text: Vec<u32>,
    parse: Vec<u32>,
    sentencepiece: Option<Vec<u32>>,
}

#[derive(Deserialize)]
struct Hashes {
    text: String,
    parse: String,
}

#[derive(Deserialize)]
struct Decoded {
    ids: Vec<u32>,
    keep: String,
    skip: String,
}

#[derive(Deserialize)]
struct Book {
    count: usize,
    hash: String,
}

#[derive(Deserialize)]
struct Talk {
    messages: Vec<BTreeMap<String, String>>,
    generate: bool,
    text: String,
    ids: String,
    parse: String,
}

/// The tokenizer in each form that can be had: from its file, from what a GGUF of ours and of llama.cpp holds, from
/// SentencePiece.
fn forms(model: &Model) -> Vec<(&'static str, Tokenizer)> {
    let json = Tokenizer::from_json(&model.read("tokenizer.json")).unwrap();
    let ours = json.vocabulary(json.vocabulary_len());
    // llama.cpp's converter marks what looks special as control, and gives added tokens the score -1000.
    let mut theirs = ours.clone();
    let types = theirs.types.as_mut().unwrap();
    let scores = theirs.scores.as_mut().unwrap();
    for (id, piece) in ours.tokens.iter().enumerate() {
        if piece.starts_with("<unused") || piece == "<mask>" {
            types[id] = TokenKind::Control as i32;
        }
        if types[id] == 3 || types[id] == 4 {
            scores[id] = -1000.0;
        }
    }
    let mut forms = vec![
        ("a vocabulary", Tokenizer::from_vocabulary(ours).unwrap()),
        ("a vocabulary by llama.cpp", Tokenizer::from_vocabulary(theirs).unwrap()),
        ("tokenizer.json", json),
    ];
    if model.name == "tiny" {
        forms.push(("tokenizer.model", Tokenizer::from_sentencepiece(&model.read("tokenizer.model")).unwrap()));
    }
    forms
}

fn check_encoding(name: &str) {
    let Some(model) = Model::find(name) else { return };
    let texts: Texts = data("texts.json");
    let golden: Golden = data(&format!("{name}.json"));
    for (form, tokenizer) in forms(&model) {
        for (text, ids) in texts.nasty.iter().zip(&golden.nasty) {
            assert_eq!(tokenizer.encode(text, Special::Text), ids.text, "{form}: {text:?}");
            assert_eq!(tokenizer.encode(text, Special::Parse), ids.parse, "{form}, parsed: {text:?}");
            if let Some(pieces) = &ids.sentencepiece {
                assert_eq!(pieces, &ids.text, "sentencepiece: {text:?}");
            }
        }
        for (text, hashes) in texts.random.iter().zip(&golden.random) {
            assert_eq!(fnv(&tokenizer.encode(text, Special::Text)), hashes.text, "{form}: {text:?}");
            assert_eq!(fnv(&tokenizer.encode(text, Special::Parse)), hashes.parse, "{form}, parsed: {text:?}");
        }
        for (book, Book { count, hash }) in &golden.books {
            let text = String::from_utf8(model.read_shared(&format!("eval/{book}.txt"))).unwrap();
            let ids = tokenizer.encode(&text, Special::Text);
            assert_eq!((ids.len(), &fnv(&ids)), (*count, hash), "{form}: {book}");
            assert!(tokenizer.decode(&ids, false) == text, "{form}: {book} does not come back");
        }
    }
    assert_eq!((golden.nasty.len(), golden.random.len()), (texts.nasty.len(), texts.random.len()));
}

#[test]
fn tiny_encodes_as_tokenizers_and_sentencepiece() {
    check_encoding("tiny");
}

#[test]
fn gemma3_encodes_as_tokenizers() {
    check_encoding("gemma3");
}

fn check_decoding(name: &str) {
    let Some(model) = Model::find(name) else { return };
    let golden: Golden = data(&format!("{name}.json"));
    for (form, tokenizer) in forms(&model) {
        for Decoded { ids, keep, skip } in &golden.decode {
            for (skip_special, text) in [(false, keep), (true, skip)] {
                assert_eq!(&tokenizer.decode(ids, skip_special), text, "{form}: {ids:?}, skip {skip_special}");
                let mut stream = StreamingDetokenizer::new(&tokenizer, skip_special);
                let mut streamed: String = ids.iter().map(|id| stream.push(*id)).collect();
                streamed += &stream.flush();
                assert_eq!(&streamed, text, "{form}, streamed: {ids:?}, skip {skip_special}");
            }
        }
    }
    assert!(!golden.decode.is_empty());
}

#[test]
fn tiny_decodes_as_tokenizers() {
    check_decoding("tiny");
}

#[test]
fn gemma3_decodes_as_tokenizers() {
    check_decoding("gemma3");
}

fn messages(talk: &Talk) -> Vec<Message> {
    talk.messages.iter().map(|message| Message::new(&*message["role"], &*message["content"])).collect()
}

fn check_chat(name: &str) {
    let Some(model) = Model::find(name) else { return };
    let tokenizer = Tokenizer::from_json(&model.read("tokenizer.json")).unwrap();
    let from_config = ChatTemplate::from_tokenizer_config(&model.read("tokenizer_config.json")).unwrap().unwrap();
    let talks: Vec<Talk> = data(&format!("chat-{name}.json"));
    for template in [from_config, ChatTemplate::gemma()] {
        for talk in &talks {
            let messages = messages(talk);
            assert_eq!(template.render(&messages, talk.generate).unwrap(), talk.text);
            let ids = |special| fnv(&encode_chat(&tokenizer, &template, &messages, talk.generate, special).unwrap());
            assert_eq!(ids(Special::Text), talk.ids, "{:?}", talk.text);
            assert_eq!(ids(Special::Parse), talk.parse, "{:?}", talk.text);
        }
    }
    assert!(talks.len() > 100);
}

#[test]
fn tiny_chat_as_jinja_and_tokenizers() {
    check_chat("tiny");
}

#[test]
fn gemma3_chat_as_jinja_and_tokenizers() {
    check_chat("gemma3");
}

#[test]
fn gemma3_knows_its_tokens() {
    let Some(model) = Model::find("gemma3") else { return };
    for (form, tokenizer) in forms(&model) {
        assert_eq!(tokenizer.vocabulary_len(), 262_145, "{form}");
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.add_bos()), (Some(2), &[1, 106][..], true), "{form}");
        assert_eq!(tokenizer.id("<start_of_turn>"), Some(105), "{form}");
        assert_eq!(tokenizer.piece(138), Some("▁▁"), "{form}");
        assert_eq!(tokenizer.token_bytes(138).as_deref(), Some(&b"  "[..]), "{form}");
        assert_eq!(tokenizer.kind(262_144), Some(TokenKind::Control), "{form}");
        assert_eq!(tokenizer.kind(4), Some(TokenKind::UserDefined), "{form}");
    }
}

#[test]
fn a_vocabulary_fits_the_rows_of_the_embedding() {
    let Some(model) = Model::find("tiny") else { return };
    let tokenizer = Tokenizer::from_json(&model.read("tokenizer.json")).unwrap();
    for rows in [8192, 8200, 8000] {
        let vocabulary = tokenizer.vocabulary(rows);
        assert_eq!(vocabulary.tokens.len(), rows);
        assert_eq!(vocabulary.scores.as_ref().unwrap().len(), rows);
        let again = Tokenizer::from_vocabulary(vocabulary).unwrap();
        let padded = again.encode("[PAD8195] text", Special::Parse);
        if rows >= 8192 {
            assert_eq!(padded, tokenizer.encode("[PAD8195] text", Special::Parse));
        }
    }
}

/// Scores of the real `tokenizer.model` order as those that are made up from `tokenizer.json`.
#[test]
fn exported_scores_are_sentencepiece_scores() {
    let Some(model) = Model::find("tiny") else { return };
    let tokenizer = Tokenizer::from_json(&model.read("tokenizer.json")).unwrap();
    let pieces = Tokenizer::from_sentencepiece(&model.read("tokenizer.model")).unwrap();
    let tokens = tokenizer.tokens().zip(pieces.tokens());
    for (ours, theirs) in tokens {
        assert_eq!(ours, theirs);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// No text gives a special token unless it is asked for, and every text comes back.
    #[test]
    fn text_stays_text(text in r"(<bos>|<start_of_turn>|<end_of_turn>|turn>|<|[ -~]|\PC|\n| ){0,40}") {
        let Some(model) = Model::find("tiny") else { return Ok(()) };
        thread_local! {
            static TOKENIZER: std::cell::OnceCell<Tokenizer> = const { std::cell::OnceCell::new() };
        }
        TOKENIZER.with(|tokenizer| {
            let tokenizer = tokenizer.get_or_init(|| Tokenizer::from_json(&model.read("tokenizer.json")).unwrap());
            let ids = tokenizer.encode(&text, Special::Text);
            prop_assert!(ids.iter().all(|id| !tokenizer.kind(*id).unwrap().is_special()));
            prop_assert_eq!(tokenizer.decode(&ids, true), text.replace('▁', " "));
            Ok(())
        })?;
    }
}
