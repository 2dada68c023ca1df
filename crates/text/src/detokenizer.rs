//! Ids to text, one at a time.

use crate::bpe::SPACE;
use crate::kind::{TokenKind, byte_of};
use crate::tokenizer::Tokenizer;

/// Turns a stream of ids into text, and never emits half a character.
///
/// All that it emits together is what [`Tokenizer::decode`] makes of all ids: a row of byte tokens is held back
/// until another token or the end shows that it is over, since one wrong byte makes the whole row U+FFFD.
#[derive(Debug)]
pub struct StreamingDetokenizer<'t> {
    tokenizer: &'t Tokenizer,
    skip_special: bool,
    /// The row of bytes that is held back.
    bytes: Vec<u8>,
}

impl<'t> StreamingDetokenizer<'t> {
    /// A new stream; `skip_special` leaves out special tokens such as `<end_of_turn>`.
    pub fn new(tokenizer: &'t Tokenizer, skip_special: bool) -> StreamingDetokenizer<'t> {
        StreamingDetokenizer { tokenizer, skip_special, bytes: Vec::new() }
    }

    /// Takes the next id and gives the text that is now certain; often that of this id, sometimes none.
    pub fn push(&mut self, id: u32) -> String {
        let mut text = String::new();
        self.push_to(id, &mut text);
        text
    }

    /// As [`push`](Self::push), appending to `text`.
    pub fn push_to(&mut self, id: u32, text: &mut String) {
        let (Some(piece), Some(kind)) = (self.tokenizer.piece(id), self.tokenizer.kind(id)) else { return };
        if self.skip_special && kind.is_special() {
            return;
        }
        let byte = if kind == TokenKind::Byte { byte_of(piece) } else { None };
        if let Some(byte) = byte {
            self.bytes.push(byte);
            return;
        }
        self.release(text);
        text.extend(piece.chars().map(|character| if character == SPACE { ' ' } else { character }));
    }

    /// The end of the stream: what was held back.
    pub fn flush(&mut self) -> String {
        let mut text = String::new();
        self.release(&mut text);
        text
    }

    /// Ends a row of bytes.
    fn release(&mut self, text: &mut String) {
        match std::str::from_utf8(&self.bytes) {
            Ok(valid) => text.push_str(valid),
            Err(_) => text.extend(self.bytes.iter().map(|_| char::REPLACEMENT_CHARACTER)),
        }
        self.bytes.clear();
    }
}
