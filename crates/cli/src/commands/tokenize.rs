//! `tokenize`: the ids of a text.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use text::Special;

use crate::args::TokenizeArgs;
use crate::model_source::Model;
use crate::{output, session};

/// Prints ids: as a JSON array, or with spaces between.
///
/// # Errors
/// A model without tokenizer, a text that is no UTF-8.
pub(crate) fn run(args: TokenizeArgs) -> Result<()> {
    let model = Model::open(args.model.as_deref())?;
    let tokenizer = session::tokenizer(&model.checkpoint)?;
    let text = match (args.text, &args.file) {
        (Some(text), _) => text,
        (None, Some(file)) => read_text(file)?,
        (None, None) => bail!("there is no text"),
    };
    let special = if args.special { Special::Parse } else { Special::Text };
    let mut ids: Vec<u32> = Vec::new();
    if args.bos {
        ids.extend(tokenizer.bos());
    }
    ids.extend(tokenizer.encode(&text, special));
    let text = if args.json {
        serde_json::to_string(&ids)?
    } else {
        ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
    };
    Ok(output::answer(&(text + "\n"))?)
}

/// A file's text; `-` is stdin.
fn read_text(path: &Path) -> Result<String> {
    let problem = || format!("can't read `{}`", path.display());
    let bytes = if path == Path::new("-") {
        let mut bytes = Vec::new();
        io::stdin().read_to_end(&mut bytes).with_context(problem)?;
        bytes
    } else {
        fs::read(path).with_context(problem)?
    };
    String::from_utf8(bytes).with_context(|| format!("`{}` is no text in UTF-8", path.display()))
}
