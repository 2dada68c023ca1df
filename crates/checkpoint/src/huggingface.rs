//! Folders in the layout of the Hugging Face hub: `config.json` and safetensors files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use crate::checkpoint::Part;
use crate::folder::Folder;
use crate::{CheckpointError, safetensors, sniff};

/// Longest JSON file that is read: the largest indices have a few megabytes.
const JSON_BYTES_MAX: u64 = 64 << 20;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The JSON files of a folder, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HuggingFace {
    /// `config.json`.
    pub config: String,
    /// `generation_config.json`, if there is one.
    pub generation_config: Option<String>,
}

/// Opens a folder and the headers of all its weights.
pub(crate) fn open(folder: &Folder) -> Result<(HuggingFace, Vec<Part>), CheckpointError> {
    let names = folder.names()?;
    if !names.contains("config.json") {
        let gguf = names.iter().find(|name| name.to_lowercase().ends_with(".gguf"));
        let hint = gguf.map_or(String::new(), |name| {
            format!("to open a GGUF file, name it: `{}`", folder.path().join(name).display())
        });
        return Err(CheckpointError::MissingFile { folder: folder.path().into(), what: "`config.json`".into(), hint });
    }
    let config = read_text(folder, "config.json")?;
    let generation = "generation_config.json";
    let generation_config = if names.contains(generation) { Some(read_text(folder, generation)?) } else { None };
    let parts = if names.contains(SINGLE) {
        vec![part(folder, SINGLE)?]
    } else if names.contains(INDEX) {
        open_indexed(folder, &names)?
    } else {
        weight_files(folder, &names)?.iter().map(|name| part(folder, name)).collect::<Result<_, _>>()?
    };
    Ok((HuggingFace { config, generation_config }, parts))
}

/// Reads a JSON file as text.
fn read_text(folder: &Folder, file: &str) -> Result<String, CheckpointError> {
    let name = folder.path().join(file).display().to_string();
    let bytes = folder.read(file, JSON_BYTES_MAX)?;
    if bytes.len() as u64 > JSON_BYTES_MAX {
        return Err(CheckpointError::invalid(&name, format!("it has more than {JSON_BYTES_MAX} bytes")));
    }
    match bytes.trim_ascii_start().first() {
        // An editor on Windows may have put a byte order mark there, which the JSON reader then names.
        Some(b'{' | 0xef) => {
            String::from_utf8(bytes.into_owned()).map_err(|_| CheckpointError::invalid(&name, "it is not valid UTF-8"))
        }
        _ => Err(sniff::wrong_kind(&name, "a JSON object", &bytes)),
    }
}

/// The tensors of a safetensors file, from its header.
fn part(folder: &Folder, name: &str) -> Result<Part, CheckpointError> {
    let (path, storage) = (folder.path().join(name), folder.storage(name)?);
    let tensors = safetensors::parse(&path.display().to_string(), storage.bytes())?;
    Ok(Part::new(&path, storage, tensors))
}

/// Opens the shards that the index names and keeps the tensors that it finds in them.
fn open_indexed(folder: &Folder, names: &BTreeSet<String>) -> Result<Vec<Part>, CheckpointError> {
    let path = folder.path().join(INDEX);
    let index = Index::parse(&path.display().to_string(), read_text(folder, INDEX)?.as_bytes())?;
    let missing: Vec<String> = index.shards.keys().filter(|shard| !names.contains(*shard)).cloned().collect();
    if !missing.is_empty() {
        return Err(CheckpointError::MissingShards { folder: folder.path().to_owned(), missing });
    }
    let mut parts = Vec::new();
    for (shard, wanted) in &index.shards {
        let mut part = part(folder, shard)?;
        // The index decides: a tensor that it doesn't place in this file is left out, as in the transformers library.
        part.tensors.retain(|tensor| wanted.contains(&tensor.name));
        if part.tensors.len() < wanted.len() {
            let found: BTreeSet<&str> = part.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
            let lost = wanted.iter().find(|name| !found.contains(name.as_str())).map_or("", |name| name);
            let problem = format!("tensor `{lost}` is missing, which the index places there");
            return Err(CheckpointError::invalid(&folder.path().join(shard).display().to_string(), problem));
        }
        parts.push(part);
    }
    Ok(parts)
}

/// The weight files of a folder that has neither `model.safetensors` nor an index.
fn weight_files(folder: &Folder, names: &BTreeSet<String>) -> Result<Vec<String>, CheckpointError> {
    let counts: BTreeSet<&str> = names.iter().filter_map(|name| shard_numbers(name)).map(|(_, count)| count).collect();
    let files: Vec<&String> = names.iter().filter(|name| name.ends_with(".safetensors")).collect();
    match (counts.iter().collect::<Vec<_>>().as_slice(), files.as_slice()) {
        ([count], _) => {
            let total: u32 = count.parse().unwrap_or(0);
            let all: Vec<String> =
                (1..=total).map(|number| format!("model-{number:05}-of-{count}.safetensors")).collect();
            let missing: Vec<String> = all.iter().filter(|name| !names.contains(*name)).cloned().collect();
            if !missing.is_empty() {
                return Err(CheckpointError::MissingShards { folder: folder.path().to_owned(), missing });
            }
            Ok(all)
        }
        ([], [file]) => Ok(vec![(*file).clone()]),
        ([], []) => {
            let pickle =
                names.iter().any(|name| name.ends_with(".bin") || name.ends_with(".pt") || name.ends_with(".pth"));
            let hint =
                if pickle { "it has pickle files, which are not read: download the `.safetensors` files" } else { "" };
            let what = format!("`{SINGLE}` or `{INDEX}`");
            Err(CheckpointError::MissingFile { folder: folder.path().to_owned(), what, hint: hint.to_owned() })
        }
        _ => {
            let hint =
                format!("several safetensors files are there, and nothing says which belong together: add `{INDEX}`");
            Err(CheckpointError::MissingFile { folder: folder.path().to_owned(), what: format!("`{INDEX}`"), hint })
        }
    }
}

/// The numbers in `model-00001-of-00005.safetensors`.
fn shard_numbers(name: &str) -> Option<(&str, &str)> {
    let (number, count) = name.strip_prefix("model-")?.strip_suffix(".safetensors")?.split_once("-of-")?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(number) && digits(count)).then_some((number, count))
}

/// `model.safetensors.index.json`: which tensor is in which file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// The tensors of each file.
    pub shards: BTreeMap<String, BTreeSet<String>>,
}

impl Index {
    /// Reads an index; `file` is its name for messages.
    ///
    /// # Errors
    /// Text that is no JSON object with a `weight_map`, a tensor that is there twice, a shard whose name is no plain
    /// file name (it could reach outside the folder), an index without tensors.
    pub fn parse(file: &str, json: &[u8]) -> Result<Index, CheckpointError> {
        #[derive(Deserialize)]
        struct Document {
            weight_map: WeightMap,
        }
        let document: Document = serde_json::from_slice(json)
            .map_err(|error| CheckpointError::invalid(file, format!("it is not what it should be: {error}")))?;
        let mut seen = BTreeSet::new();
        let mut index = Index::default();
        for (tensor, shard) in document.weight_map.0 {
            if !is_plain_name(&shard) {
                let problem = format!("it places `{tensor}` in `{shard}`, a plain file name was expected");
                return Err(CheckpointError::invalid(file, problem));
            }
            if !seen.insert(tensor.clone()) {
                return Err(CheckpointError::invalid(file, format!("it has the tensor `{tensor}` twice")));
            }
            index.shards.entry(shard).or_default().insert(tensor);
        }
        if index.shards.is_empty() {
            return Err(CheckpointError::invalid(file, "its `weight_map` is empty"));
        }
        Ok(index)
    }
}

/// Whether a name can only mean a file inside the folder, on every operating system.
fn is_plain_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\\', ':', '\0'])
}

/// The pairs of a `weight_map`, with duplicates.
struct WeightMap(Vec<(String, String)>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<WeightMap, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(WeightMap(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}
