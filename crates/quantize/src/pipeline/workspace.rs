//! What an interrupted run leaves, so that the next one goes on.
//!
//! Beside the target `DIR` there is `.DIR.partial` while a run is under way: `settings.json`; `costs.bin`, what the
//! errors of each weight cost; `layer-N.bin`, the tensors of the trellises of layer N, one after another (the head
//! counts as a layer after the last); and `states-N.bin`, the residual stream before layer N, of the newest layer only.
//! Each file appears whole, and ends with a sum of its bytes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkpoint::AtomicFile;
use serde_json::Value;
use tensor::format::trellis::{Codebook, Linear, Parts, Rate};

use super::PipelineError;
use super::states::States;

/// Bytes of the sum at the end of a file.
const SUM_BYTES: usize = 8;

/// A folder that no other run can take.
#[derive(Debug)]
pub(super) struct Lock {
    pub(super) folder: PathBuf,
    _file: File,
}

/// An open `.DIR.partial`.
#[derive(Debug)]
pub(super) struct Workspace {
    pub(super) folder: PathBuf,
    lock: Lock,
}

/// The hidden folder `.NAME.KIND` beside a target `NAME`.
pub(super) fn beside(target: &Path, kind: &str) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.{kind}"))
}

impl Lock {
    /// Takes a folder, which is made if it is not there.
    pub(super) fn take(folder: &Path) -> Result<Lock, PipelineError> {
        fs::create_dir_all(folder).map_err(PipelineError::io("create", folder))?;
        let path = folder.join("lock");
        let file = File::create(&path).map_err(PipelineError::io("create", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(PipelineError::InUse(folder.to_owned())),
            // A file system without locks.
            Err(fs::TryLockError::Error(_)) => {}
        }
        Ok(Lock { folder: folder.to_owned(), _file: file })
    }

    /// Removes the folder and all that is in it.
    pub(super) fn remove(self) -> Result<(), PipelineError> {
        fs::remove_dir_all(&self.folder).map_err(PipelineError::io("remove", &self.folder))
    }
}

impl Workspace {
    /// Opens it, or begins one with these settings.
    pub(super) fn open(target: &Path, settings: &Value) -> Result<Workspace, PipelineError> {
        let lock = Lock::take(&beside(target, "partial"))?;
        let folder = lock.folder.clone();
        let file = folder.join("settings.json");
        match fs::read_to_string(&file) {
            Ok(text) => {
                let before: Value = serde_json::from_str(&text).unwrap_or_default();
                if before != *settings {
                    let difference = difference(&before, settings);
                    return Err(PipelineError::OtherSettings { folder, difference });
                }
            }
            Err(_) => AtomicFile::replace(&file, format!("{settings:#}\n").as_bytes())?,
        }
        Ok(Workspace { folder, lock })
    }

    /// What a file holds; `None` if it is not there or damaged.
    pub(super) fn read(&self, name: &str) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.folder.join(name)).ok()?;
        let length = bytes.len().checked_sub(SUM_BYTES)?;
        let sum = bytes.split_off(length);
        (sum == sum_of(&bytes).to_le_bytes()).then_some(bytes)
    }

    /// Writes a file, whole or not at all.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), PipelineError> {
        let mut file = AtomicFile::create(&self.folder.join(name))?;
        file.append(bytes)?;
        file.append(&sum_of(bytes).to_le_bytes())?;
        Ok(file.finish()?)
    }

    /// The residual stream before a layer.
    pub(super) fn read_states(&self, layer: usize, lengths: &[usize], width: usize) -> Option<States> {
        let bytes = self.read(&states_name(layer))?;
        let values: Vec<f32> = bytes.as_chunks().0.iter().map(|&bytes| f32::from_ne_bytes(bytes)).collect();
        let expected = lengths.iter().sum::<usize>() * width;
        (values.len() == expected).then(|| States { lengths: lengths.to_vec(), values: Arc::new(values) })
    }

    /// Keeps the residual stream before a layer, and no longer that of the layer before.
    pub(super) fn write_states(&self, layer: usize, states: &States) -> Result<(), PipelineError> {
        self.write(&states_name(layer), bytemuck::cast_slice(&states.values))?;
        if layer > 0 {
            let _ = fs::remove_file(self.folder.join(states_name(layer - 1)));
        }
        Ok(())
    }

    /// The trellises of a layer, whose rates and sizes are known.
    pub(super) fn read_layer(&self, layer: usize, shapes: &[(Rate, usize, usize)]) -> Option<Vec<Linear<'static>>> {
        let bytes = self.read(&layer_name(layer))?;
        let mut rest = &bytes[..];
        let linears: Option<Vec<_>> =
            shapes.iter().map(|&(rate, outputs, inputs)| read_linear(&mut rest, rate, outputs, inputs)).collect();
        linears.filter(|_| rest.is_empty())
    }

    /// Keeps the trellises of a layer.
    pub(super) fn write_layer(&self, layer: usize, linears: &[Linear<'_>]) -> Result<(), PipelineError> {
        let mut bytes = Vec::new();
        for tensor in linears.iter().flat_map(Linear::tensors) {
            bytes.extend_from_slice(&tensor.bytes);
        }
        self.write(&layer_name(layer), &bytes)
    }

    /// Removes everything.
    pub(super) fn remove(self) -> Result<(), PipelineError> {
        self.lock.remove()
    }
}

fn states_name(layer: usize) -> String {
    format!("states-{layer}.bin")
}

fn layer_name(layer: usize) -> String {
    format!("layer-{layer}.bin")
}

/// A trellis of the tensors in the order of [`Linear::tensors`].
fn read_linear(bytes: &mut &[u8], rate: Rate, outputs: usize, inputs: usize) -> Option<Linear<'static>> {
    let mut take = |count: usize| bytes.split_off(..count);
    let (suh, svh) = (take(2 * inputs)?, take(2 * outputs)?);
    let tiles = take(inputs / 16 * (outputs / 16) * rate.tile_bytes())?;
    let mul1 = take(4)?;
    let trellis_shape = [inputs / 16, outputs / 16, rate.tile_words()];
    let borrowed = Linear::from_parts(Parts {
        trellis_shape,
        trellis: tiles,
        suh: Some(suh),
        svh: Some(svh),
        su: None,
        sv: None,
        mcg: None,
        mul1: Some(mul1),
        bias: None,
    });
    let borrowed = borrowed.ok()?;
    let mut linear = Linear::new(rate, Codebook::Mul1, borrowed.suh().to_vec(), borrowed.svh().to_vec()).ok()?;
    for row in 0..inputs / 16 {
        for column in 0..outputs / 16 {
            linear.tile_mut(row, column).copy_from_slice(borrowed.tile(row, column));
        }
    }
    Some(linear)
}

/// A sum that a cut, a hole or a changed byte changes (FNV-1a over words of 8 bytes).
pub(super) fn sum_of(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut sum = 0xcbf2_9ce4_8422_2325 ^ bytes.len() as u64;
    let mut add = |word: u64| sum = (sum ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    words.iter().for_each(|&word| add(u64::from_le_bytes(word)));
    rest.iter().for_each(|&byte| add(u64::from(byte)));
    sum
}

/// The first setting that differs.
fn difference(before: &Value, now: &Value) -> String {
    let names = now.as_object().into_iter().flatten().map(|(name, _)| name);
    let other = names.into_iter().find(|name| before.get(name) != now.get(name));
    other.map_or("unreadable ones".into(), |name| {
        let old = before.get(name).map_or("nothing".into(), Value::to_string);
        format!("`{name}` was {old}, is {}", now[name])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_see_every_byte() {
        let bytes: Vec<u8> = (0..100).collect();
        let sum = sum_of(&bytes);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_ne!(sum_of(&changed), sum, "byte {at}");
            assert_ne!(sum_of(&bytes[..at]), sum, "cut at {at}");
        }
    }
}
