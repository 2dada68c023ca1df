//! The command line.

use std::path::PathBuf;
use std::thread::available_parallelism;

use anyhow::{Context, Result, bail, ensure};

/// What is to be measured, and by which programs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Options {
    pub(super) model: Option<PathBuf>,
    pub(super) shape: String,
    pub(super) format: String,
    /// Lists, as both programs read them.
    pub(super) prompt_tokens: String,
    pub(super) decode_tokens: String,
    pub(super) depth: String,
    pub(super) threads: usize,
    pub(super) device: String,
    pub(super) rounds: usize,
    pub(super) repeat: usize,
    pub(super) llama_bench: Option<PathBuf>,
    pub(super) lapidary: Option<PathBuf>,
    /// The original that the model's quality is measured against.
    pub(super) quality: Option<PathBuf>,
    pub(super) text: Option<PathBuf>,
    pub(super) llama_perplexity: Option<PathBuf>,
    pub(super) print: bool,
}

impl Options {
    /// How many layers llama.cpp puts on its GPU, as it takes it: all or none.
    pub(super) fn gpu_layers(&self) -> &'static str {
        if self.device == "cpu" { "0" } else { "999" }
    }

    fn new() -> Options {
        Options {
            model: None,
            shape: "1b".into(),
            format: "q4_0".into(),
            prompt_tokens: "128".into(),
            decode_tokens: "64".into(),
            depth: "0".into(),
            threads: available_parallelism().map_or(1, usize::from),
            device: "cpu".into(),
            rounds: 2,
            repeat: 5,
            llama_bench: None,
            lapidary: None,
            quality: None,
            text: None,
            llama_perplexity: None,
            print: false,
        }
    }

    /// Reads them.
    ///
    /// # Errors
    /// An option that does not exist or has no value of its kind.
    pub(super) fn parse(arguments: &[&str]) -> Result<Options> {
        let mut options = Options::new();
        let mut rest = arguments.iter();
        while let Some(&name) = rest.next() {
            if name == "--print" {
                options.print = true;
                continue;
            }
            let value = || format!("`{name}` needs a value");
            let value = *rest.clone().next().filter(|value| !value.starts_with("--")).with_context(value)?;
            rest.next();
            options.set(name, value).with_context(|| format!("`{name} {value}`"))?;
        }
        let needs_model = options.quality.is_some() && (options.model.is_none() || options.text.is_none());
        ensure!(!needs_model, "`--quality` needs `--model` and `--text`: random weights have no quality");
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        match name {
            "--model" => self.model = Some(value.into()),
            "--shape" => self.shape = value.into(),
            "--format" => self.format = value.into(),
            "--prompt-tokens" => self.prompt_tokens = list(value)?,
            "--decode-tokens" => self.decode_tokens = list(value)?,
            "--depth" => self.depth = list(value)?,
            "--threads" => self.threads = count(value)?,
            "--device" => self.device = value.into(),
            "--rounds" => self.rounds = count(value)?,
            "--repeat" => self.repeat = count(value)?,
            "--llama-bench" => self.llama_bench = Some(value.into()),
            "--lapidary" => self.lapidary = Some(value.into()),
            "--quality" => self.quality = Some(value.into()),
            "--text" => self.text = Some(value.into()),
            "--llama-perplexity" => self.llama_perplexity = Some(value.into()),
            _ => bail!("there is no such option\n\n{}", super::USAGE),
        }
        Ok(())
    }
}

fn count(value: &str) -> Result<usize> {
    value.parse().ok().filter(|count| (1..=1024).contains(count)).context("expected a number from 1 to 1024")
}

/// Numbers with commas between them.
fn list(value: &str) -> Result<String> {
    let is_number = |part: &str| part.parse::<u32>().is_ok();
    ensure!(value.split(',').all(is_number), "expected numbers with commas between them");
    Ok(value.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_have_values_of_their_kind() {
        let options = Options::parse(&["--threads", "2", "--prompt-tokens", "128,512", "--print"]).unwrap();
        assert_eq!(options, Options { threads: 2, prompt_tokens: "128,512".into(), print: true, ..Options::new() });
        for (arguments, part) in [
            (&["--threads", "0"][..], "1 to 1024"),
            (&["--depth", "1,x"], "numbers with commas"),
            (&["--model"], "needs a value"),
            (&["--model", "--print"], "needs a value"),
            (&["--modell", "x"], "no such option"),
            (&["--quality", "f16.gguf", "--text", "t"], "needs `--model`"),
        ] {
            let error = format!("{:#}", Options::parse(arguments).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }
}
