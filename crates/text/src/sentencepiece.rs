//! SentencePiece's `tokenizer.model`: a protocol buffer (`sentencepiece_model.proto`).

use crate::error::TextError;
use crate::pieces::Pieces;
use crate::vocabulary::Vocabulary;

/// The vocabulary in a `tokenizer.model`.
pub(crate) fn read(bytes: &[u8]) -> Result<Vocabulary, TextError> {
    if u32::try_from(bytes.len()).is_err() {
        return Err(TextError::vocabulary("expected a `tokenizer.model` below 4 GiB"));
    }
    let mut model = Model::default();
    let mut reader = Reader { bytes, at: 0, base: 0 };
    while let Some((field, value)) = reader.next()? {
        match (field, value) {
            (1, Value::Bytes(mut piece)) => model.add_piece(&mut piece)?,
            (2, Value::Bytes(mut trainer)) => model.read_trainer(&mut trainer)?,
            (3, Value::Bytes(mut normalizer)) => model.read_normalizer(&mut normalizer)?,
            _ => (),
        }
    }
    if model.model_type != BPE {
        let names = ["none", "unigram", "bpe", "word", "char"];
        let found = names.get(model.model_type as usize).unwrap_or(&"another").to_string();
        return Err(unsupported("model type", "bpe", found));
    }
    let id = |id: Option<u64>| {
        // Minus one, as 64 bits, means that there is none.
        id.and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < model.pieces.len())
    };
    Ok(Vocabulary {
        bos: id(model.bos.or(Some(1))),
        eos: id(model.eos.or(Some(2))).into_iter().collect(),
        unknown: id(model.unknown.or(Some(0))),
        tokens: model.pieces,
        scores: Some(model.scores),
        types: Some(model.types),
        merges: None,
        add_bos: true,
        add_space_prefix: model.add_dummy_prefix,
    })
}

/// `TrainerSpec.ModelType.BPE`.
const BPE: u64 = 2;

/// What is kept of the file.
struct Model {
    pieces: Pieces,
    scores: Vec<f32>,
    types: Vec<i32>,
    model_type: u64,
    unknown: Option<u64>,
    bos: Option<u64>,
    eos: Option<u64>,
    add_dummy_prefix: bool,
}

impl Default for Model {
    /// The defaults of the schema: without a trainer's part the type is unigram.
    fn default() -> Model {
        Model {
            pieces: Pieces::new(),
            scores: Vec::new(),
            types: Vec::new(),
            model_type: 1,
            unknown: None,
            bos: None,
            eos: None,
            add_dummy_prefix: true,
        }
    }
}

impl Model {
    /// `SentencePiece`: 1 piece, 2 score, 3 type.
    fn add_piece(&mut self, reader: &mut Reader) -> Result<(), TextError> {
        let (mut piece, mut score, mut kind) = ("", 0.0, 1);
        while let Some((field, value)) = reader.next()? {
            match (field, value) {
                (1, Value::Bytes(text)) => piece = text.text()?,
                (2, Value::Fixed32(bits)) => score = f32::from_bits(bits),
                (3, Value::Varint(number)) => kind = number,
                _ => (),
            }
        }
        self.pieces.push(piece);
        self.scores.push(score);
        self.types.push(i32::try_from(kind).unwrap_or(-1));
        Ok(())
    }

    /// `TrainerSpec`: 3 model type, 24 whitespace as suffix, 40 to 42 ids.
    fn read_trainer(&mut self, reader: &mut Reader) -> Result<(), TextError> {
        while let Some((field, value)) = reader.next()? {
            match (field, value) {
                (3, Value::Varint(number)) => self.model_type = number,
                (24, Value::Varint(1)) => {
                    return Err(unsupported("whitespace", "before words", "behind words".into()));
                }
                (40, Value::Varint(id)) => self.unknown = Some(id),
                (41, Value::Varint(id)) => self.bos = Some(id),
                (42, Value::Varint(id)) => self.eos = Some(id),
                _ => (),
            }
        }
        Ok(())
    }

    /// `NormalizerSpec`: 2 character map, 3 dummy prefix, 4 remove extra spaces, 5 escape spaces.
    fn read_normalizer(&mut self, reader: &mut Reader) -> Result<(), TextError> {
        let mut remove_spaces = true;
        while let Some((field, value)) = reader.next()? {
            match (field, value) {
                (2, Value::Bytes(map)) if !map.bytes.is_empty() => {
                    return Err(unsupported("normalizer", "identity", "a character map".into()));
                }
                (3, Value::Varint(flag)) => self.add_dummy_prefix = flag != 0,
                (4, Value::Varint(flag)) => remove_spaces = flag != 0,
                (5, Value::Varint(0)) => {
                    return Err(unsupported("normalizer", "spaces escaped", "spaces not escaped".into()));
                }
                _ => (),
            }
        }
        match remove_spaces {
            true => Err(unsupported("normalizer", "all spaces kept", "extra spaces removed".into())),
            false => Ok(()),
        }
    }
}

fn unsupported(part: &'static str, expected: &'static str, found: String) -> TextError {
    TextError::Unsupported { part, expected, found }
}

/// One field of a message.
enum Value<'a> {
    Varint(u64),
    Fixed32(u32),
    /// A string, or a message inside.
    Bytes(Reader<'a>),
    /// Wire type 1: eight bytes that nothing here needs.
    Fixed64,
}

/// Reads the fields of a message one by one.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where `bytes` begins in the file.
    base: usize,
}

impl<'a> Reader<'a> {
    /// The next field's number and value; nothing at the end.
    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, TextError> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed64)?,
            2 => {
                let length = self.varint()?;
                let length = usize::try_from(length).map_err(|_| self.error("a length beyond the end"))?;
                let base = self.base + self.at;
                Value::Bytes(Reader { bytes: self.take(length)?, at: 0, base })
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes"))),
            _ => return Err(self.error("an unknown wire type")),
        };
        if key >> 3 == 0 {
            return Err(self.error("a field with number 0"));
        }
        Ok(Some((key >> 3, value)))
    }

    /// Seven bits a byte, the lowest first; the high bit says that more follow.
    fn varint(&mut self) -> Result<u64, TextError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(self.error("a number of more than ten bytes"))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], TextError> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..length).ok_or_else(|| self.error("a length beyond the end"))?;
        self.at += length;
        Ok(taken)
    }

    fn text(&self) -> Result<&'a str, TextError> {
        std::str::from_utf8(self.bytes).map_err(|_| self.error("a piece that is not UTF-8"))
    }

    fn error(&self, what: &'static str) -> TextError {
        TextError::Protobuf { what, at: self.base + self.at }
    }
}
