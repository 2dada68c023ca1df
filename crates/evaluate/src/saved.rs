//! Logits of the original, saved once and compared with many times.
//!
//! A file is a header (8 bytes [`MAGIC`], its length in 4 bytes, JSON) and a record for each scored prediction of each
//! text, all of one size. See [`Keep`] for what a record has; all numbers are little-endian.

use std::io::{self, Read};

use engine::Engine;
use serde::{Deserialize, Serialize};

use crate::compare::{Side, in_parallel, limits, not_finite, run};
use crate::windows::{Output, Walk};
use crate::{Divergence, EvaluateError, NotFinite, Progress, Windows, divergence};

mod record;

use self::record::{Record, encode};

/// The first bytes of a file.
pub const MAGIC: &[u8; 8] = b"LAPLOGIT";
/// The format that is written.
const VERSION: u32 = 1;
/// A longer header is none.
const HEADER_BYTES_MAX: usize = 1 << 20;

/// What is kept of a prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// All logits, F32.
    Full,
    /// The most probable tokens, the others as one mass, and a sample of these: `mass` F32, ln of the probability of
    /// the token that came F32, then for each of the most probable ones, falling, and each of the sample its id in 3
    /// bytes, then for each ln of its probability F32.
    Top {
        /// How many of the most probable tokens.
        entries: usize,
        /// How many of the others, drawn with their probabilities.
        samples: usize,
    },
}

impl Keep {
    /// What takes at most 2,000 bytes for each prediction.
    pub fn top(vocabulary: usize) -> Keep {
        let samples = 32;
        let entries = (2_000 - 8) / 7 - samples;
        if vocabulary <= entries + samples { Keep::Full } else { Keep::Top { entries, samples } }
    }

    /// Bytes of one record.
    pub fn record_bytes(self, vocabulary: usize) -> usize {
        match self {
            Keep::Full => 4 * vocabulary,
            Keep::Top { entries, samples } => 8 + 7 * (entries + samples),
        }
    }

    /// Whether a vocabulary can be saved like this.
    fn fits(self, vocabulary: usize) -> bool {
        match self {
            Keep::Full => true,
            // Ids have 3 bytes, and there are tokens besides the most probable ones.
            Keep::Top { entries, samples } => {
                entries > 0 && samples > 0 && entries.saturating_add(samples) < vocabulary && vocabulary <= 1 << 24
            }
        }
    }
}

/// A text in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedText {
    /// What it was called.
    pub name: String,
    /// [`Windows::hashes`].
    pub windows: Vec<u64>,
    /// Scored predictions of all windows: as many records.
    pub predictions: usize,
}

/// What a file says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedHeader {
    /// Of the format.
    version: u32,
    /// What the model was called.
    pub model: String,
    /// A hash of its weights, so that a file is only gone on with by the model that began it.
    pub weights: u64,
    /// Its layers.
    pub layers: usize,
    /// Width of its residual stream.
    pub hidden: usize,
    /// Tokens that it gives logits of.
    pub vocabulary: usize,
    /// A hash of the tokenizer's entries.
    pub tokenizer: u64,
    /// How the texts were cut: [`crate::Protocol::name`].
    pub protocol: String,
    /// What is kept.
    pub keep: Keep,
    /// The texts, in the order of their records.
    pub texts: Vec<SavedText>,
}

impl SavedHeader {
    /// Describes what is going to be saved.
    pub fn new(engine: &Engine, model: &str, hashes: Hashes, keep: Keep, texts: &[(String, Windows)]) -> SavedHeader {
        let config = engine.config();
        let text = |(name, windows): &(String, Windows)| SavedText {
            name: name.clone(),
            windows: windows.hashes(),
            predictions: windows.predictions(),
        };
        SavedHeader {
            version: VERSION,
            model: model.into(),
            weights: hashes.weights,
            layers: config.layers.len(),
            hidden: config.hidden,
            vocabulary: config.vocabulary,
            tokenizer: hashes.tokenizer,
            protocol: texts.first().map_or("", |(_, windows)| windows.protocol().name()).into(),
            keep,
            texts: texts.iter().map(text).collect(),
        }
    }

    /// The header as it stands in a file.
    pub fn to_bytes(&self) -> Result<Vec<u8>, EvaluateError> {
        let json = serde_json::to_vec(self).map_err(|source| EvaluateError::SavedHeader { source })?;
        Ok([&MAGIC[..], &(json.len() as u32).to_le_bytes(), &json].concat())
    }

    /// Reads the header of a file, and leaves the reader at the first record.
    ///
    /// # Errors
    /// A file that is none of these or can't be read; numbers that make no sense.
    pub fn read(reader: &mut dyn Read) -> Result<SavedHeader, EvaluateError> {
        let mut start = [0; 12];
        reader.read_exact(&mut start)?;
        let len = u32::from_le_bytes([start[8], start[9], start[10], start[11]]) as usize;
        if start[..8] != MAGIC[..] || len > HEADER_BYTES_MAX {
            return Err(EvaluateError::Saved { problem: "it is no file of saved logits".into() });
        }
        let mut json = vec![0; len];
        reader.read_exact(&mut json)?;
        let header: SavedHeader =
            serde_json::from_slice(&json).map_err(|source| EvaluateError::SavedHeader { source })?;
        if header.version != VERSION {
            let problem = format!("it has version {} of the format, expected {VERSION}", header.version);
            return Err(EvaluateError::Saved { problem });
        }
        if header.vocabulary == 0 || !header.keep.fits(header.vocabulary) {
            return Err(EvaluateError::Saved { problem: "its header makes no sense".into() });
        }
        Ok(header)
    }

    /// Bytes of the records of all texts; `None` if there are more than can be counted.
    pub fn records_bytes(&self) -> Option<u64> {
        let predictions = self.texts.iter().try_fold(0u64, |sum, text| sum.checked_add(text.predictions as u64))?;
        predictions.checked_mul(self.keep.record_bytes(self.vocabulary) as u64)
    }

    /// The place of a text's first record, counted in records.
    ///
    /// # Errors
    /// A text, a way of cutting it, a model or a tokenizer that are others than those of the file.
    pub fn find(&self, engine: &Engine, tokenizer: u64, name: &str, windows: &Windows) -> Result<usize, EvaluateError> {
        let config = engine.config();
        let problem = if tokenizer != self.tokenizer || config.vocabulary != self.vocabulary {
            format!("they were made with another tokenizer, of `{}`", self.model)
        } else if (config.layers.len(), config.hidden) != (self.layers, self.hidden) {
            format!(
                "they are those of another model, `{}`: {} layers of width {}, the model has {} of width {}",
                self.model,
                self.layers,
                self.hidden,
                config.layers.len(),
                config.hidden
            )
        } else if windows.protocol().name() != self.protocol {
            format!("they follow the protocol `{}`, asked for is `{}`", self.protocol, windows.protocol().name())
        } else {
            let (mut first, hashes) = (0, windows.hashes());
            for text in &self.texts {
                // Fewer windows of the same text are fine.
                if text.windows.starts_with(&hashes) && text.predictions >= windows.predictions() {
                    return Ok(first);
                }
                first += text.predictions;
            }
            let names: Vec<_> =
                self.texts.iter().map(|text| format!("`{}` ({} predictions)", text.name, text.predictions)).collect();
            format!(
                "they are of other texts than `{name}` with {} predictions: {}",
                windows.predictions(),
                names.join(", ")
            )
        };
        Err(EvaluateError::Saved { problem })
    }
}

/// What a model is recognised by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hashes {
    /// Of its weights.
    pub weights: u64,
    /// Of its tokenizer's entries.
    pub tokenizer: u64,
}

/// A hash that is the same everywhere and always: FNV-1a of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    /// Takes bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// The hash of all bytes so far.
    pub fn value(self) -> u64 {
        self.0
    }
}

/// Gives the records of a text's windows from window `first` on to `sink`, whole windows at a time. Progress counts
/// predictions.
///
/// # Errors
/// A context that is too short, logits that are not numbers, what `recover` gives back, a sink that fails.
pub fn save_logits(
    mut model: Side<'_>,
    windows: &Windows,
    first: usize,
    keep: Keep,
    threads: usize,
    sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    progress: Progress<'_>,
) -> Result<(), EvaluateError> {
    let limits = limits(model.engine)?;
    let vocabulary = model.engine.config().vocabulary;
    let mut walk = Walk::new(windows, first, windows.len(), limits);
    let per_window = windows.protocol().scored().len();
    let (mut done, mut pending) = (first * per_window, Vec::new());
    while walk.advance() {
        let Some(logits) = run(&mut walk, &mut model)? else { continue };
        let outputs: Vec<(usize, Output)> =
            walk.outputs().enumerate().filter(|(_, output)| output.index >= done).collect();
        let found = in_parallel(&outputs, threads, &|(index, output)| {
            encode(&logits[index * vocabulary..][..vocabulary], output, keep)
        });
        for (record, (_, output)) in found.into_iter().zip(&outputs) {
            pending.extend(record.ok_or_else(|| not_finite(NotFinite::Original, windows, output))?);
            done += 1;
            if done % per_window == 0 {
                sink(&pending)?;
                pending.clear();
            }
        }
        progress(done, windows.predictions());
    }
    Ok(())
}

/// Compares a model with saved logits: each scored prediction of the windows, in order. The reader stands at the text's
/// first record. Progress counts predictions.
///
/// # Errors
/// A context that is too short, logits that are not numbers, what `recover` gives back, records that can't be read or
/// make no sense.
pub fn compare_with_saved(
    mut model: Side<'_>,
    windows: &Windows,
    keep: Keep,
    records: &mut dyn Read,
    threads: usize,
    progress: Progress<'_>,
) -> Result<Vec<Divergence>, EvaluateError> {
    let limits = limits(model.engine)?;
    let vocabulary = model.engine.config().vocabulary;
    let record_bytes = keep.record_bytes(vocabulary);
    let mut walk = Walk::new(windows, 0, windows.len(), limits);
    let mut done: Vec<Divergence> = Vec::with_capacity(windows.predictions());
    while walk.advance() {
        let Some(logits) = run(&mut walk, &mut model)? else { continue };
        let outputs: Vec<(usize, Output)> =
            walk.outputs().enumerate().filter(|(_, output)| output.index >= done.len()).collect();
        let mut bytes = vec![0; outputs.len() * record_bytes];
        records.read_exact(&mut bytes)?;
        let start = done.len();
        let found = in_parallel(&outputs, threads, &|(index, output)| {
            let record = &bytes[(output.index - start) * record_bytes..][..record_bytes];
            let logits = &logits[index * vocabulary..][..vocabulary];
            compare_record(record, keep, logits, output)
        });
        for (found, (_, output)) in found.into_iter().zip(&outputs) {
            done.push(found?.map_err(|of| not_finite(of, windows, output))?);
        }
        progress(done.len(), windows.predictions());
    }
    Ok(done)
}

/// One record beside the model's logits.
fn compare_record(
    bytes: &[u8],
    keep: Keep,
    logits: &[f32],
    output: &Output,
) -> Result<Result<Divergence, NotFinite>, EvaluateError> {
    match keep {
        Keep::Full => Ok(divergence(&record::floats(bytes), logits, output.token)),
        Keep::Top { entries, samples } => {
            let damaged =
                || EvaluateError::Saved { problem: format!("the record of prediction {} is damaged", output.index) };
            let record = Record::read(bytes, entries, samples, logits.len()).ok_or_else(damaged)?;
            Ok(record.divergence(logits, output.token))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(keep: Keep) -> SavedHeader {
        let texts = vec![SavedText { name: "a.txt".into(), windows: vec![1, 2], predictions: 510 }];
        SavedHeader {
            version: VERSION,
            model: "m".into(),
            weights: u64::MAX,
            layers: 2,
            hidden: 64,
            vocabulary: 1000,
            tokenizer: 7,
            protocol: "llama.cpp".into(),
            keep,
            texts,
        }
    }

    #[test]
    fn a_record_of_the_real_vocabulary_has_two_kilobytes() {
        assert!((1_900..=2_000).contains(&Keep::top(262_144).record_bytes(262_144)));
        assert_eq!(Keep::top(100), Keep::Full);
    }

    #[test]
    fn headers_are_written_and_read() {
        for keep in [Keep::Full, Keep::Top { entries: 5, samples: 3 }] {
            let bytes = [header(keep).to_bytes().unwrap(), vec![9, 9]].concat();
            let mut reader = &bytes[..];
            assert_eq!(SavedHeader::read(&mut reader).unwrap(), header(keep));
            assert_eq!(reader, [9, 9]);
            for end in 0..bytes.len() - 2 {
                assert!(SavedHeader::read(&mut &bytes[..end]).is_err());
            }
        }
        assert_eq!(header(Keep::Full).records_bytes(), Some(510 * 4000));
    }

    #[test]
    fn headers_that_make_no_sense_are_refused() {
        let refused = |header: SavedHeader| SavedHeader::read(&mut &header.to_bytes().unwrap()[..]).is_err();
        for (entries, samples) in [(0, 1), (1, 0), (usize::MAX, 1), (998, 2)] {
            assert!(refused(header(Keep::Top { entries, samples })));
        }
        assert!(refused(SavedHeader { version: 2, ..header(Keep::Full) }));
        assert!(refused(SavedHeader { vocabulary: 0, ..header(Keep::Full) }));
        let mut many = header(Keep::Full);
        many.texts[0].predictions = usize::MAX;
        assert_eq!(many.records_bytes(), None);
    }
}
