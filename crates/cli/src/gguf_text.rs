//! The tokenizer's part of a GGUF file's metadata, in both directions.

use checkpoint::gguf::{Array, Metadata, StringArray, Value};
use text::{ChatTemplate, Pieces, Tokenizer, Vocabulary};

const PREFIX: &str = "tokenizer.";
const MODEL: &str = "tokenizer.ggml.model";
const TOKENS: &str = "tokenizer.ggml.tokens";
const SCORES: &str = "tokenizer.ggml.scores";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const EOT: &str = "tokenizer.ggml.eot_token_id";
const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
const PADDING: &str = "tokenizer.ggml.padding_token_id";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ADD_SPACE: &str = "tokenizer.ggml.add_space_prefix";
const TEMPLATE: &str = "tokenizer.chat_template";

/// The vocabulary of a GGUF file; `None` if it has none.
pub(crate) fn read_vocabulary(metadata: &Metadata) -> Option<Vocabulary> {
    let array = |key| metadata.get(key).and_then(Value::as_array);
    let strings = |key| array(key).and_then(Array::strings).map(pieces);
    let id = |key| metadata.get(key).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
    let flag = |key| metadata.get(key).and_then(Value::as_bool);
    Some(Vocabulary {
        tokens: strings(TOKENS)?,
        scores: array(SCORES).and_then(Array::f32s).map(<[f32]>::to_vec),
        types: array(TYPES).and_then(Array::i32s).map(<[i32]>::to_vec),
        merges: strings(MERGES),
        bos: id(BOS),
        eos: [EOS, EOT].into_iter().filter_map(id).collect(),
        unknown: id(UNKNOWN),
        add_bos: flag(ADD_BOS).unwrap_or(true),
        // Other models of this kind have it by default, Gemma's files say that they don't.
        add_space_prefix: flag(ADD_SPACE).unwrap_or(false),
    })
}

fn pieces(strings: &StringArray) -> Pieces {
    let mut pieces = Pieces::new();
    strings.iter().for_each(|string| pieces.push(string));
    pieces
}

/// The chat template of a GGUF file, if it has one.
pub(crate) fn read_template(metadata: &Metadata) -> Option<&str> {
    metadata.get(TEMPLATE).and_then(Value::as_str)
}

/// Copies all that one GGUF file says about its tokenizer to another.
pub(crate) fn copy(from: &Metadata, to: &mut Metadata) {
    for (key, value) in from.iter().filter(|(key, _)| key.starts_with(PREFIX)) {
        to.insert(key, value.clone());
    }
}

/// Writes a tokenizer, for an embedding of that many rows, and a chat template.
pub(crate) fn write(tokenizer: &Tokenizer, template: Option<&ChatTemplate>, rows: usize, to: &mut Metadata) {
    let id = |name: &str| tokenizer.id(name).filter(|&id| (id as usize) < rows);
    let vocabulary = tokenizer.vocabulary(rows);
    write_vocabulary(&vocabulary, to);
    let end = id("<eos>").or(vocabulary.eos.first().copied());
    for (key, id) in [(EOS, end), (EOT, id("<end_of_turn>")), (PADDING, id("<pad>"))] {
        if let Some(id) = id {
            to.insert(key, id);
        }
    }
    if let Some(template) = template {
        to.insert(TEMPLATE, template.source());
    }
}

fn write_vocabulary(vocabulary: &Vocabulary, to: &mut Metadata) {
    to.insert(MODEL, "llama");
    to.insert("tokenizer.ggml.pre", "default");
    to.insert(TOKENS, Array::String(vocabulary.tokens.iter().collect()));
    if let Some(scores) = &vocabulary.scores {
        to.insert(SCORES, Array::F32(scores.clone()));
    }
    if let Some(types) = &vocabulary.types {
        to.insert(TYPES, Array::I32(types.clone()));
    }
    for (key, id) in [(BOS, vocabulary.bos), (UNKNOWN, vocabulary.unknown)] {
        if let Some(id) = id {
            to.insert(key, id);
        }
    }
    to.insert(ADD_BOS, vocabulary.add_bos);
    to.insert("tokenizer.ggml.add_eos_token", false);
    to.insert(ADD_SPACE, vocabulary.add_space_prefix);
}

/// A vocabulary of the right form whose words mean nothing, for random models: special tokens, bytes, `t260`, ….
pub(crate) fn write_synthetic(rows: usize, to: &mut Metadata) {
    const SPECIAL: [&str; 4] = ["<pad>", "<eos>", "<bos>", "<unk>"];
    const CONTROL: i32 = 3;
    const TYPE_UNKNOWN: i32 = 2;
    const BYTE: i32 = 6;
    const NORMAL: i32 = 1;
    let name = |row: usize| match row {
        0..4 => SPECIAL[row].to_owned(),
        4..260 => format!("<0x{:02X}>", row - 4),
        _ => format!("t{row}"),
    };
    let kind = |row: usize| match row {
        3 => TYPE_UNKNOWN,
        0..3 => CONTROL,
        4..260 => BYTE,
        _ => NORMAL,
    };
    let mut tokens = Pieces::new();
    (0..rows).for_each(|row| tokens.push(&name(row)));
    let vocabulary = Vocabulary {
        tokens,
        scores: Some((0..rows).map(|row| -(row as f32)).collect()),
        types: Some((0..rows).map(kind).collect()),
        bos: Some(2),
        unknown: Some(3),
        add_bos: true,
        ..Vocabulary::default()
    };
    write_vocabulary(&vocabulary, to);
    to.insert(EOS, 1u32);
    to.insert(PADDING, 0u32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_vocabulary_is_read_back() {
        let mut metadata = Metadata::new();
        write_synthetic(300, &mut metadata);
        let tokenizer = Tokenizer::from_vocabulary(read_vocabulary(&metadata).unwrap()).unwrap();
        assert_eq!(tokenizer.vocabulary_len(), 300);
        assert_eq!((tokenizer.bos(), tokenizer.piece(4 + 0x41), tokenizer.eos()), (Some(2), Some("<0x41>"), &[1][..]));

        let mut again = Metadata::new();
        write(&tokenizer, Some(&ChatTemplate::gemma()), 310, &mut again);
        let rows = again.get(TOKENS).and_then(Value::as_array).unwrap().strings().unwrap();
        assert_eq!((rows.len(), rows.get(299), rows.get(305)), (310, Some("t299"), Some("[PAD305]")));
        assert_eq!(read_template(&again), Some(ChatTemplate::gemma().source()));
        let mut copied = Metadata::new();
        again.insert("general.name", "x");
        copy(&again, &mut copied);
        assert_eq!((copied.len() + 1, copied.get(EOS)), (again.len(), again.get(EOS)));
        assert!(read_vocabulary(&Metadata::new()).is_none());
    }
}
