//! Malformed and hostile files: an error, never a panic, and never more memory or time than the file is worth.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use text::{ChatTemplate, Message, Pieces, Special, TextError, Tokenizer, Vocabulary};

/// A small `tokenizer.json` with the given parts of the model and added tokens.
fn json(vocab: &str, merges: &str, added: &str) -> String {
    format!(
        r#"{{"added_tokens": {added},
            "normalizer": {{"type": "Replace", "pattern": {{"String": " "}}, "content": "▁"}},
            "pre_tokenizer": null,
            "decoder": {{"type": "Sequence", "decoders": [
                {{"type": "Replace", "pattern": {{"String": "▁"}}, "content": " "}},
                {{"type": "ByteFallback"}}, {{"type": "Fuse"}}]}},
            "model": {{"type": "BPE", "unk_token": null, "vocab": {vocab}, "merges": {merges}}}}}"#
    )
}

const VOCAB: &str = r#"{"a": 0, "b": 1, "ab": 2, "▁": 3}"#;

fn message(result: Result<Tokenizer, TextError>) -> String {
    result.expect_err("it should not be accepted").to_string()
}

#[track_caller]
fn refuses(json: &str, expected: &str) {
    let message = message(Tokenizer::from_json(json.as_bytes()));
    assert!(message.contains(expected), "{message:?} does not say {expected:?}");
}

#[test]
fn small_files_are_read() {
    for merges in [r#"[["a", "b"]]"#, r#"["a b"]"#] {
        let tokenizer = Tokenizer::from_json(json(VOCAB, merges, "[]").as_bytes()).unwrap();
        assert_eq!(tokenizer.encode("abba ab", Special::Text), [2, 1, 0, 3, 2]);
    }
    // Merges may come before the vocabulary, and ids in any order.
    let text = json(r#"{"▁": 3, "ab": 2, "b": 1, "a": 0}"#, r#"["a b"]"#, "[]");
    let tokenizer = Tokenizer::from_json(text.as_bytes()).unwrap();
    assert_eq!(tokenizer.encode("ab", Special::Text), [2]);
}

#[test]
fn characters_without_a_piece() {
    // No bytes and no unknown token: they vanish, as with `tokenizers`. With an unknown token a row is one.
    let plain = json(VOCAB, "[]", "[]");
    let tokenizer = Tokenizer::from_json(plain.as_bytes()).unwrap();
    assert_eq!(tokenizer.encode("aéb", Special::Text), [0, 1]);
    let fused = plain.replace(r#""unk_token": null"#, r#""unk_token": "ab", "fuse_unk": true"#);
    let tokenizer = Tokenizer::from_json(fused.as_bytes()).unwrap();
    assert_eq!(tokenizer.encode("aéé éb", Special::Text), [0, 2, 3, 2, 1]);
    let apart = fused.replace(r#""fuse_unk": true"#, r#""fuse_unk": false"#);
    let tokenizer = Tokenizer::from_json(apart.as_bytes()).unwrap();
    assert_eq!(tokenizer.encode("aééb", Special::Text), [0, 2, 2, 1]);
}

#[test]
fn added_tokens_behind_the_vocabulary() {
    let added = r#"[{"id": 5, "content": "<x>", "special": true}, {"id": 6, "content": "b b", "normalized": true}]"#;
    let tokenizer = Tokenizer::from_json(json(VOCAB, "[]", added).as_bytes()).unwrap();
    assert_eq!(tokenizer.vocabulary_len(), 7);
    assert_eq!(tokenizer.encode("a<x>ab bb", Special::Parse), [0, 5, 0, 6, 1]);
    assert_eq!(tokenizer.decode(&[0, 4, 5, 6, 7, u32::MAX], false), "a<x>b b");
    assert_eq!(tokenizer.decode(&[0, 4, 5, 6, 7, u32::MAX], true), "ab b");
}

#[test]
fn json_that_is_wrong() {
    refuses("", "`tokenizer.json` is not valid");
    refuses("{}", "missing field `model`");
    refuses("[1, 2]", "`tokenizer.json` is not valid");
    refuses(&json("{}", "[]", "[]"), "expected pieces, found none");
    refuses(&json(r#"["a"]"#, "[]", "[]"), "a map from piece to id");
    refuses(&json(r#"{"a": "0"}"#, "[]", "[]"), "invalid type");
    refuses(&json(r#"{"a": -1}"#, "[]", "[]"), "invalid value");
    refuses(&json(r#"{"a": 4294967296}"#, "[]", "[]"), "invalid value");
    refuses(&json(r#"{"a": 4294967295}"#, "[]", "[]"), "far outside");
    refuses(&json(r#"{"a": 0, "b": 0}"#, "[]", "[]"), "the id 0 is there twice");
    refuses(&json(r#"{"a": 0, "a": 1}"#, "[]", "[]"), "the piece `a` is there twice");
    refuses(&json(VOCAB, "3", "[]"), "a list of merges");
    refuses(&json(VOCAB, "[3]", "[]"), "a merge: `\"left right\"`");
    refuses(&json(VOCAB, r#"["ab"]"#, "[]"), "expected a merge `left right`");
    refuses(&json(VOCAB, r#"["a b c"]"#, "[]"), "expected a merge `left right`");
    refuses(&json(VOCAB, r#"[["a"]]"#, "[]"), "found fewer");
    refuses(&json(VOCAB, r#"[["a", "b", "c"]]"#, "[]"), "found more");
    refuses(&json(VOCAB, r#"["a z"]"#, "[]"), "merge 0: `z` is not a piece");
    refuses(&json(VOCAB, r#"["b a"]"#, "[]"), "merge 0: `ba` is not a piece");
    refuses(&json(VOCAB, "[]", r#"[{"id": 0, "content": "b"}]"#), "the added token `b` has id 0, but 1");
    refuses(&json(VOCAB, "[]", r#"[{"id": 0, "content": "x"}]"#), "the id 0 of the added token `x` is taken");
    refuses(&json(VOCAB, "[]", r#"[{"id": 9, "content": "x"}, {"id": 9, "content": "y"}]"#), "is taken");
    refuses(&json(VOCAB, "[]", r#"[{"id": 4000000000, "content": "x"}]"#), "far outside");
    refuses(&json(VOCAB, "[]", r#"[{"id": 1, "content": "b", "lstrip": true}]"#), "one of them true for `b`");
    refuses(&json(VOCAB, "[]", "[]").replace("\"BPE\"", "\"Unigram\""), "expected `BPE`, found `Unigram`");
    refuses(
        &json(VOCAB, "[]", "[]").replace("\"pre_tokenizer\": null", r#""pre_tokenizer": {"type": "ByteLevel"}"#),
        "ByteLevel",
    );
    refuses(&json(VOCAB, "[]", "[]").replace("ByteFallback", "Strip"), "Strip");
    refuses(&json(VOCAB, "[]", "[]").replace("\"unk_token\": null", "\"unk_token\": \"?\""), "unknown token `?`");
}

#[test]
fn json_that_is_deep() {
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
        let deep = format!("{}0{}", open.repeat(200_000), close.repeat(200_000));
        assert!(Tokenizer::from_json(deep.as_bytes()).is_err());
        refuses(&json(VOCAB, &deep, "[]"), "`tokenizer.json` is not valid");
        let config = format!("{{\"chat_template\": {deep}}}");
        assert!(ChatTemplate::from_tokenizer_config(config.as_bytes()).is_err());
        // Where nothing is read, depth does no harm.
        let unknown = json(VOCAB, "[]", "[]").replacen('{', &format!("{{\"x\": {deep},"), 1);
        assert!(Tokenizer::from_json(unknown.as_bytes()).is_ok());
    }
    let stage = r#"{"type": "Sequence", "normalizers": ["#.repeat(5000);
    refuses(
        &json(VOCAB, "[]", "[]").replace("\"pre_tokenizer\": null", &format!("\"pre_tokenizer\": {stage}")),
        "not valid",
    );
}

/// A field of a protocol buffer with a length.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        field.push(length as u8 | 0x80);
        length >>= 7;
    }
    field.push(length as u8);
    field.extend(bytes);
    field
}

/// A small SentencePiece model: `<unk>`, `a`, `b`, `ab`.
fn sentencepiece() -> Vec<u8> {
    let mut model = Vec::new();
    for (piece, score, kind) in [("<unk>", 0.0_f32, 2), ("a", -1.0, 1), ("b", -2.0, 1), ("ab", 0.0, 1)] {
        let mut message = field(1, piece.as_bytes());
        message.push(2 << 3 | 5);
        message.extend(score.to_le_bytes());
        message.extend([3 << 3, kind]);
        model.extend(field(1, &message));
    }
    model.extend(field(2, &[3 << 3, 2]));
    model.extend(field(3, &[3 << 3, 0, 4 << 3, 0]));
    model
}

#[test]
fn protobuf_that_is_wrong() {
    let model = sentencepiece();
    let tokenizer = Tokenizer::from_sentencepiece(&model).unwrap();
    assert_eq!(tokenizer.encode("abba", Special::Text), [3, 2, 1]);
    for length in 0..model.len() {
        // Cut between fields it may still be a model, only another.
        let _ = Tokenizer::from_sentencepiece(&model[..length]);
    }
    let says = |bytes: &[u8], expected: &str| {
        let message = message(Tokenizer::from_sentencepiece(bytes));
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    };
    says(b"", "expected bpe, found unigram");
    says(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], "a length beyond the end at byte 11");
    says(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], "more than ten bytes");
    says(&[0x0b], "unknown wire type");
    says(&[0x02, 0x00], "field with number 0");
    says(&field(1, &field(1, b"\xff\xfe")), "not UTF-8 at byte 4");
    says(&[&model[..], &field(2, &[3 << 3, 1])].concat(), "expected bpe, found unigram");
    says(&[&model[..], &field(3, &[])].concat(), "extra spaces removed");
    says(&[&model[..], &field(3, &[2 << 3 | 2, 1, 9])].concat(), "a character map");
    says(&[&model[..], &field(1, &[3 << 3, 9])].concat(), "token 4: expected a token type from 1 to 6, found 9");
    says(b"{\"version\": \"1.0\"}", "is not a valid SentencePiece model");
}

#[test]
fn vocabularies_that_are_wrong() {
    let tokens = || Pieces::from_iter(["a", "b", "ab"]);
    let base = || Vocabulary { tokens: tokens(), scores: Some(vec![0.0; 3]), ..Vocabulary::default() };
    assert!(Tokenizer::from_vocabulary(base()).is_ok());
    let says = |vocabulary: Vocabulary, expected: &str| {
        let message = message(Tokenizer::from_vocabulary(vocabulary));
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    };
    says(Vocabulary::default(), "expected tokens, found none");
    says(Vocabulary { scores: None, ..base() }, "expected scores or merges");
    says(Vocabulary { scores: Some(vec![0.0]), ..base() }, "expected 3 scores, found 1");
    says(Vocabulary { types: Some(vec![1; 4]), ..base() }, "expected 3 token types, found 4");
    says(Vocabulary { types: Some(vec![1, 1, -7]), ..base() }, "found -7");
    says(Vocabulary { bos: Some(3), ..base() }, "id 3 is outside the vocabulary of 3 tokens");
    says(Vocabulary { eos: vec![u32::MAX], ..base() }, "outside");
    says(Vocabulary { merges: Some(Pieces::from_iter(["ab"])), ..base() }, "merge 0: expected `left right`");
    says(Vocabulary { merges: Some(Pieces::from_iter(["b a"])), ..base() }, "`ba` is not in the vocabulary");
    says(
        Vocabulary { tokens: Pieces::from_iter(["a".repeat(2000)]), scores: Some(vec![0.0]), ..Vocabulary::default() },
        "2000 bytes",
    );
    let odd = Vocabulary { scores: Some(vec![f32::NAN, f32::INFINITY, f32::NAN]), ..base() };
    assert_eq!(Tokenizer::from_vocabulary(odd).unwrap().encode("ab", Special::Text), [2]);
}

#[test]
fn long_texts_take_little_time() {
    let tokenizer = Tokenizer::from_sentencepiece(&sentencepiece()).unwrap();
    for text in ["ab".repeat(500_000), "a".repeat(1_000_000), "<".repeat(1_000_000), " ".repeat(1_000_000)] {
        let start = Instant::now();
        let ids = tokenizer.encode(&text, Special::Parse);
        assert!(!ids.is_empty() && start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
}

#[test]
fn templates_that_are_wrong() {
    let user = [Message::user("Hi")];
    for source in ["{{", "{% if %}", "{% for x in %}", "{{ a b }}", "{% unknown %}", "{{ x | nofilter }}"] {
        let result = ChatTemplate::from_text(source).and_then(|template| template.render(&user, true));
        assert!(matches!(result, Err(TextError::Template { .. })), "{source}: {result:?}");
    }
    for source in [
        "{{ raise_exception('because') }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ messages[0].content.nothing() }}",
        "{{ 'a'.split('') }}",
    ] {
        let result = ChatTemplate::from_text(source).unwrap().render(&user, true);
        assert!(matches!(result, Err(TextError::Template { .. })), "{source}: {result:?}");
    }
    let long = ChatTemplate::from_text(&"x".repeat(40_000)).unwrap_err();
    assert!(long.to_string().contains("expected at most 32768 bytes, found 40000"), "{long}");
}

/// As deep as the longest template can be, on the small stack of a test's thread.
#[test]
fn templates_that_are_deep() {
    let user = [Message::user("Hi")];
    let tags = [("{% if 1 %}", "{% endif %}"), ("{% elif 1 %}", ""), ("{% for a in 'a' %}", "{% endfor %}")];
    let chains =
        [("(", ")"), ("[", "]"), ("-", ""), ("not ", ""), ("a.", ""), ("1+", ""), ("1**", ""), ("1 if 1 else ", "")];
    let room = 32_700;
    for (open, close) in tags {
        let count = room / (open.len() + close.len());
        let source = format!("{{% if 1 %}}{}{}{{% endif %}}", open.repeat(count), close.repeat(count));
        let _ = ChatTemplate::from_text(&source).and_then(|template| template.render(&user, true));
    }
    for (open, close) in chains {
        let count = room / (open.len() + close.len());
        let source = format!("{{{{ {}1{} }}}}", open.repeat(count), close.repeat(count));
        let _ = ChatTemplate::from_text(&source).and_then(|template| template.render(&user, true));
    }
}

#[test]
fn templates_that_refuse_messages() {
    let error = ChatTemplate::gemma().render(&[Message::user("a"), Message::user("b")], true).unwrap_err();
    assert!(error.to_string().contains("must alternate"), "{error}");
    assert!(ChatTemplate::gemma().render(&[Message::assistant("a")], true).is_err());
    assert_eq!(ChatTemplate::gemma().render(&[], false).unwrap(), "<bos>");
}

#[test]
fn config_with_odd_templates() {
    let read = |json: &str| ChatTemplate::from_tokenizer_config(json.as_bytes());
    assert_eq!(read("{}").unwrap(), None);
    assert_eq!(read(r#"{"chat_template": null}"#).unwrap(), None);
    assert_eq!(read(r#"{"chat_template": [{"name": "tools", "template": "x"}]}"#).unwrap(), None);
    let config = r#"{"bos_token": {"content": "<B>"}, "eos_token": "<E>",
        "chat_template": [{"name": "default", "template": "{{ bos_token }}{{ eos_token }}"}]}"#;
    assert_eq!(read(config).unwrap().unwrap().render(&[], true).unwrap(), "<B><E>");
    assert!(read(r#"{"chat_template": 3}"#).is_err());
    assert!(read(r#"{"chat_template": "{{"}"#).is_err());
}

#[test]
fn templates_may_use_python() {
    let source = "{% set m = messages[0] %}{{ m.content.strip().upper() }} {{ m.content.startswith(' h') }} \
                  {{ 'a,b,c'.split(',')[-1] }} {{ m.get('role') }} {{ m.get('no', 'none') }} \
                  {{ 'x-y'.replace('-', '+') }} {% for k, v in m.items() %}{{ k }}={{ v | trim }};{% endfor %} \
                  {{ '__x_'.strip('_') }} {{ 'abc'.find('c') }}";
    let template = ChatTemplate::from_text(source).unwrap();
    let text = template.render(&[Message::user(" hi ")], true).unwrap();
    assert_eq!(text, "HI True c user none x+y content=hi;role=user; x 2");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_the_readers_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Tokenizer::from_json(&bytes);
        let _ = Tokenizer::from_sentencepiece(&bytes);
        let _ = ChatTemplate::from_tokenizer_config(&bytes);
        let _ = ChatTemplate::from_text(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn no_changed_model_makes_the_reader_panic(changes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..6)) {
        let mut bytes = sentencepiece();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if let Ok(tokenizer) = Tokenizer::from_sentencepiece(&bytes) {
            let ids = tokenizer.encode("abba <unk> é", Special::Parse);
            tokenizer.decode(&ids, false);
        }
    }
}
