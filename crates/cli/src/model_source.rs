//! What `MODEL` on the command line stands for.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use checkpoint::{Checkpoint, StaticFile};

/// The folder of the model that is part of the program.
static BUILT_IN: &[StaticFile] = &[
    ("config.json", include_bytes!("../model/tiny/config.json")),
    ("generation_config.json", include_bytes!("../model/tiny/generation_config.json")),
    ("model.safetensors", include_bytes!("../model/tiny/model.safetensors")),
    ("tokenizer.model", include_bytes!("../model/tiny/tokenizer.model")),
    ("tokenizer_config.json", include_bytes!("../model/tiny/tokenizer_config.json")),
];
const BUILT_IN_NAME: &str = "built-in model";

/// An opened checkpoint and what to call it.
#[derive(Debug)]
pub(crate) struct Model {
    /// For people: the last part of the path, `owner/repo`, or `built-in model`.
    pub(crate) name: String,
    /// Its files.
    pub(crate) checkpoint: Checkpoint,
}

impl Model {
    /// Opens what `MODEL` stands for: something on disk, `owner/repo[:QUANT]` in the local Hugging Face cache, or the
    /// built-in model.
    ///
    /// # Errors
    /// Nothing there, or something that is no checkpoint.
    pub(crate) fn open(argument: Option<&str>) -> Result<Model> {
        let Some(argument) = argument else {
            let checkpoint = Checkpoint::from_static(BUILT_IN).context("the built-in model is damaged")?;
            return Ok(Model { name: BUILT_IN_NAME.into(), checkpoint });
        };
        let path = Path::new(argument);
        if path.exists() || path.is_symlink() {
            let name = path.file_name().map_or(argument.into(), |name| name.to_string_lossy().into_owned());
            return Ok(Model { name, checkpoint: Checkpoint::open(path)? });
        }
        match Repository::parse(argument) {
            Some(repository) => {
                let path = repository.find(&cache_folder()?)?;
                Ok(Model { name: argument.into(), checkpoint: Checkpoint::open(&path)? })
            }
            None => Err(anyhow!("`{argument}` does not exist{}", not_found_hint(argument))),
        }
    }
}

/// Whether an argument is meant to be a model and not a prompt.
pub(crate) fn looks_like_model(argument: &str) -> bool {
    let path = Path::new(argument);
    let marks = ["./", "../", "/", "~/", ".\\", "..\\"];
    let one_word = !argument.contains(char::is_whitespace);
    (!argument.is_empty() && path.exists())
        || argument.to_ascii_lowercase().ends_with(".gguf")
        || one_word && marks.iter().any(|mark| argument.starts_with(mark))
        || Repository::parse(argument).is_some()
}

fn not_found_hint(argument: &str) -> &'static str {
    if argument.contains(char::is_whitespace) {
        "\n\nhint: with two arguments the first is the model; put the whole prompt into one pair of quotes"
    } else {
        "\n\nhint: a model is a folder, a .gguf file or owner/repo; if this was meant as the prompt, put all of it \
         into quotes"
    }
}

/// `owner/repo` on the Hugging Face hub, and maybe which of its files.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Repository {
    owner: String,
    name: String,
    /// A part of a file's name: `Q4_K_M`.
    quant: Option<String>,
}

impl Repository {
    /// Reads `owner/repo[:QUANT]`.
    fn parse(argument: &str) -> Option<Repository> {
        let (path, quant) = match argument.split_once(':') {
            Some((path, quant)) => (path, Some(quant)),
            None => (argument, None),
        };
        let (owner, name) = path.split_once('/')?;
        let is_name = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !part.is_empty() && part.chars().all(allowed) && !part.starts_with('.') && !part.contains("..")
        };
        let valid = is_name(owner) && is_name(name) && quant.is_none_or(is_name);
        valid.then(|| Repository { owner: owner.into(), name: name.into(), quant: quant.map(str::to_owned) })
    }

    /// The folder or file in the cache.
    fn find(&self, cache: &Path) -> Result<PathBuf> {
        let Repository { owner, name, .. } = self;
        let folder = cache.join(format!("models--{owner}--{name}"));
        let Some(snapshot) = snapshot(&folder) else {
            bail!(
                "`{owner}/{name}` is not in the local Hugging Face cache (`{}`)\n\nhint: {}",
                cache.display(),
                self.download_hint()
            );
        };
        if self.quant.is_none() && snapshot.join("config.json").exists() {
            return Ok(snapshot);
        }
        let files = gguf_files(&snapshot)?;
        let wanted = self.quant.as_ref().map(|quant| quant.to_lowercase());
        let fits = |file: &&PathBuf| wanted.as_ref().is_none_or(|quant| has_quant(&file_name(file), quant));
        let found: Vec<&PathBuf> = files.iter().filter(fits).collect();
        match found[..] {
            [file] => Ok(file.clone()),
            [first, ..] if found.iter().all(|file| is_split(file)) => Ok(first.clone()),
            [] if files.is_empty() => bail!(
                "`{}` has neither config.json nor a .gguf file\n\nhint: {}",
                snapshot.display(),
                self.download_hint()
            ),
            [] => bail!("`{owner}/{name}` has no such file in the cache\n\nhint: it has {}", names(&files)),
            _ => bail!(
                "`{owner}/{name}` has several .gguf files in the cache\n\nhint: say which, as in \
                 `{owner}/{name}:Q4_0`; it has {}",
                names(&files)
            ),
        }
    }

    /// How to get it, and where its licence is.
    fn download_hint(&self) -> String {
        let Repository { owner, name, quant } = self;
        let files = quant.as_ref().map(|quant| format!(" --include \"*{quant}*\"")).unwrap_or_default();
        format!(
            "`hf download {owner}/{name}{files}` downloads it; its licence is at https://huggingface.co/{owner}/{name}"
        )
    }
}

/// Where the Hugging Face libraries keep what they download.
fn cache_folder() -> Result<PathBuf> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = variable("HF_HUB_CACHE") {
        return Ok(folder);
    }
    if let Some(folder) = variable("HF_HOME") {
        return Ok(folder.join("hub"));
    }
    let base = variable("XDG_CACHE_HOME").or_else(|| Some(env::home_dir()?.join(".cache")));
    let base = base.context("there is no home folder\n\nhint: set HF_HOME to the Hugging Face cache")?;
    Ok(base.join("huggingface").join("hub"))
}

/// The revision that `main` stands for, or the only one that is there.
fn snapshot(folder: &Path) -> Option<PathBuf> {
    let snapshots = folder.join("snapshots");
    if let Ok(revision) = fs::read_to_string(folder.join("refs").join("main")) {
        let named = snapshots.join(revision.trim());
        if named.is_dir() {
            return Some(named);
        }
    }
    let mut all: Vec<PathBuf> = fs::read_dir(snapshots).ok()?.flatten().map(|entry| entry.path()).collect();
    all.retain(|path| path.is_dir());
    all.sort();
    all.pop()
}

/// The models among the files of a folder, without the files of vision encoders.
fn gguf_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("can't list `{}`", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| {
        let name = file_name(file).to_lowercase();
        name.ends_with(".gguf") && !name.starts_with("mmproj")
    });
    files.sort();
    Ok(files)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn names(files: &[PathBuf]) -> String {
    files.iter().map(|file| format!("`{}`", file_name(file))).collect::<Vec<_>>().join(", ")
}

/// Whether a file's name has the quant as a whole part: `q4_0`, but not inside `q4_0_4_4`.
fn has_quant(name: &str, quant: &str) -> bool {
    let name = name.to_lowercase();
    let border = |c: Option<char>| c.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_');
    name.match_indices(quant)
        .any(|(at, _)| border(name[..at].chars().next_back()) && border(name[at + quant.len()..].chars().next()))
}

/// Whether a file is one of several that make a model.
fn is_split(file: &Path) -> bool {
    file_name(file).contains("-of-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_and_prompts_are_told_apart() {
        for model in ["a/b", "google/gemma-3-1b-it:Q4_0", "x.gguf", "./missing", "/missing", "src", "My Model.gguf"] {
            assert!(looks_like_model(model), "{model}");
        }
        for prompt in ["Hello", "What is 3/4?", "and/or what", "", "Hello/", "a/b/c d", "see ./x", "Really?"] {
            assert!(!looks_like_model(prompt), "{prompt}");
        }
    }

    #[test]
    fn repositories_are_found_in_the_cache() {
        let cache = env::temp_dir().join(format!("lapidary-cache-{}", std::process::id()));
        let repository = |text| Repository::parse(text).unwrap();
        let error = repository("google/gemma-3-1b-it").find(&cache).unwrap_err().to_string();
        assert!(error.contains("hf download google/gemma-3-1b-it"), "{error}");
        assert!(error.contains("https://huggingface.co/google/gemma-3-1b-it"), "{error}");

        let snapshot = cache.join("models--a--b/snapshots/1234");
        fs::create_dir_all(&snapshot).unwrap();
        for name in ["b-q4_0.gguf", "b-Q8_0.gguf", "b-q4_0_4_4.gguf", "mmproj-b.gguf"] {
            fs::write(snapshot.join(name), "").unwrap();
        }
        assert_eq!(repository("a/b:Q4_0").find(&cache).unwrap(), snapshot.join("b-q4_0.gguf"));
        assert_eq!(repository("a/b:q8_0").find(&cache).unwrap(), snapshot.join("b-Q8_0.gguf"));
        assert!(repository("a/b").find(&cache).unwrap_err().to_string().contains("several"));
        assert!(repository("a/b:Q2_K").find(&cache).unwrap_err().to_string().contains("`b-q4_0.gguf`"));
        fs::write(snapshot.join("config.json"), "").unwrap();
        assert_eq!(repository("a/b").find(&cache).unwrap(), snapshot);
        fs::remove_dir_all(cache).unwrap();
    }

    #[test]
    fn what_is_no_repository() {
        for text in ["a", "a/b/c", "../b", "a/..", "a b/c", "a/b:", "a/b?", "/b"] {
            assert_eq!(Repository::parse(text), None, "{text}");
        }
    }
}
