//! Text in and out: tokenizers, chat templates, streaming detokenization and stop strings.
//!
//! [`Tokenizer`] reads Gemma 3's byte-fallback BPE from the three forms in which checkpoints carry it
//! (`tokenizer.json`, SentencePiece's `tokenizer.model`, a GGUF's own vocabulary) and gives the same ids from
//! all three. [`ChatTemplate`] turns messages into a prompt, and [`encode_chat`] into ids, so that special
//! tokens typed by a user stay text. [`StreamingDetokenizer`] and [`StopStrings`] turn a stream of ids back
//! into text.
//!
//! Everything here is a function of bytes: no files, no tensors. Every reader takes arbitrary
//! bytes and answers malformed ones with a [`TextError`]: [`Tokenizer::from_json`],
//! [`Tokenizer::from_sentencepiece`], [`Tokenizer::from_vocabulary`], [`ChatTemplate::from_text`] and
//! [`ChatTemplate::from_tokenizer_config`] are what a fuzzer calls.

mod added;
mod bpe;
mod chat;
mod detokenizer;
mod error;
mod json;
mod kind;
mod merges;
mod pieces;
mod python;
mod sentencepiece;
mod stop;
mod tokenizer;
mod vocabulary;

pub use chat::{ChatTemplate, Message, encode_chat};
pub use detokenizer::StreamingDetokenizer;
pub use error::TextError;
pub use kind::TokenKind;
pub use pieces::Pieces;
pub use stop::{StopOutput, StopStrings};
pub use tokenizer::{Special, Token, Tokenizer};
pub use vocabulary::Vocabulary;
