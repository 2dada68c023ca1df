//! Measures parts of the engine on a device. `LAPIDARY_VULKAN_DEVICE` chooses the device by number.
//!
//! - `lab [TOKENS] [plain]`: products of matrices;
//! - `lab matvec`: what a decoding pass consists of, in several variants;
//! - `lab layer`: a layer's products and norms in decoding, one behind the other;
//! - `lab attention`: a token's attention at several depths;
//! - `lab columns FORMAT COLUMNS…`: a layer's products with several columns, by integers and by matrices;
//! - `lab trellis`: a layer's products with trellis weights;
//! - `lab ffn [HIDDEN INNER]`: a feed-forward layer beside plain shaders, by default that of the 27B model;
//! - `lab upload FILE|cold:FILE|mapped:FILE|GIB [every]`: weights onto the device, from a file or from memory, beside
//!   reading and copying alone; of `cold` files the system remembers nothing, `mapped` ones are read through a mapping
//!   with page faults; with many numbers of threads and sizes of staging memory.

#![allow(clippy::print_stderr, reason = "a program's errors go there")]

use std::error::Error;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;
use tensor::{DType, WeightBytes, WeightError};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let Err(error) = run(&arguments) {
        eprintln!("error: {error}");
        let mut cause = error.source();
        while let Some(error) = cause {
            eprintln!("  because: {error}");
            cause = error.source();
        }
        std::process::exit(1);
    }
}

fn run(arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    let index = std::env::var("LAPIDARY_VULKAN_DEVICE").ok().and_then(|number| number.parse().ok());
    let out = &mut io::stdout();
    match arguments {
        ["matvec", ..] => backend_vulkan::measure_matvec(index, out)?,
        ["layer", ..] => backend_vulkan::measure_layer(index, out)?,
        ["attention"] => backend_vulkan::measure_attention(index, out)?,
        ["columns", format, columns @ ..] => {
            let dtype = DType::ALL.into_iter().find(|dtype| dtype.to_string() == *format).ok_or("no such format")?;
            for columns in columns {
                backend_vulkan::measure_columns(index, dtype, columns.parse()?, out)?;
            }
        }
        ["trellis"] => backend_vulkan::measure_trellis(index, out)?,
        ["ffn"] => drop(backend_vulkan::measure_ffn(index, 5376, 21_504, out)?),
        ["ffn", hidden, inner] => drop(backend_vulkan::measure_ffn(index, hidden.parse()?, inner.parse()?, out)?),
        ["upload", source] => upload(index, source, false, out)?,
        ["upload", source, "every"] => upload(index, source, true, out)?,
        _ => {
            let tokens = arguments.first().and_then(|number| number.parse().ok()).unwrap_or(512);
            backend_vulkan::measure_matmul(index, tokens, arguments.contains(&"plain"), out)?;
        }
    }
    Ok(())
}

fn upload(index: Option<usize>, source: &str, every: bool, out: &mut dyn io::Write) -> Result<(), Box<dyn Error>> {
    let open: &mut dyn FnMut() -> io::Result<Arc<dyn WeightBytes>> = match source.parse::<f64>() {
        Ok(gib) => {
            // Pages that were never written would all be the same one.
            let bytes = Arc::new(vec![0x5a_u8; (gib * f64::from(1 << 30)) as usize]);
            &mut move || Ok(bytes.clone())
        }
        Err(_) => {
            let (way, path) = source.split_once(':').unwrap_or(("", source));
            let way = match way {
                "" => Way::Read,
                "mapped" => Way::Map,
                "cold" => Way::ReadCold,
                other => return Err(format!("expected `mapped` or `cold` before the file, found `{other}`").into()),
            };
            &mut move || Ok(Arc::new(Source::open(path, way)?))
        }
    };
    backend_vulkan::measure_upload(index, open, every, out)?;
    Ok(())
}

/// How a file is read.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// By calls, as checkpoints are; what the system remembers of it stays.
    Read,
    /// The same, with nothing of it in memory at first.
    ReadCold,
    /// Through its mapping.
    Map,
}

/// An open file.
struct Source {
    file: File,
    map: Mmap,
    way: Way,
}

impl Source {
    fn open(path: &str, way: Way) -> io::Result<Source> {
        let file = File::open(path)?;
        #[cfg(target_os = "linux")]
        if way == Way::ReadCold {
            use std::os::fd::AsRawFd;
            // SAFETY: a call with an open file; it only lets the system forget what it has read of it.
            unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        }
        // SAFETY: a measurement; whoever changes the file meanwhile measures something else.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Source { file, map, way })
    }
}

impl WeightBytes for Source {
    fn bytes(&self) -> &[u8] {
        &self.map
    }

    fn read(&self, range: Range<usize>, into: &mut [u8]) -> Result<(), WeightError> {
        #[cfg(unix)]
        if self.way != Way::Map {
            use std::os::unix::fs::FileExt;
            return Ok(self.file.read_exact_at(into, range.start as u64)?);
        }
        into.copy_from_slice(&self.map[range.clone()]);
        #[cfg(unix)]
        {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: pages of a file that is only read: what is read again comes from the file.
            let _ = unsafe { self.map.unchecked_advise_range(advice, range.start, range.len()) };
        }
        Ok(())
    }
}
