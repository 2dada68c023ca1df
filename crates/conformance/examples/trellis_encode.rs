//! Measures the search for trellis tiles on a GPU, beside the processor. `LAPIDARY_VULKAN_DEVICE` chooses the device by
//! number.
//!
//! - `trellis_encode [BITS…]`: tiles per second at these rates, by default 2, 2.5, 3 and 4 bits, for several sizes of
//!   workgroups and batches, and whether the bits are those of the processor;
//! - `trellis_encode layer [INPUTS OUTPUTS]`: the time that a layer takes with a device that answers at once, which is
//!   what is left to the processor, and with the GPU.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program's output goes there")]

use std::error::Error;
use std::sync::Mutex;
use std::time::Instant;

use backend_vulkan::{DeviceKind, TrellisEncoder, VulkanBackend};
use conformance::random::Random;
use half::f16;
use quantize::{Encoder, Factor, Hessian, Settings, TileDevice, TileQueue, Weight, input_scales, quantize};
use tensor::format::trellis::search::{Metric, close};
use tensor::format::trellis::{Codebook, LEN, Rate};

/// Tiles of a batch. The first ones are compared with the processor's.
const BATCHES: [usize; 4] = [8, 336, 1344, 5376];

/// How many.
const COMPARED: usize = 256;

/// Seconds that each batch is repeated for.
const SECONDS: f64 = 0.7;

/// Weights of the linear layers of Gemma 3 27B, the head among them.
const WEIGHTS_27B: f64 = 27.0e9;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        ["layer"] => layer(5376, 1024),
        ["layer", inputs, outputs] => match (inputs.parse(), outputs.parse()) {
            (Ok(inputs), Ok(outputs)) => layer(inputs, outputs),
            _ => Err("expected two numbers".into()),
        },
        [] => search(&["2", "2.5", "3", "4"]),
        ref rates => search(rates),
    };
    if let Err(error) = result {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn open() -> Result<VulkanBackend, Box<dyn Error>> {
    let index = std::env::var("LAPIDARY_VULKAN_DEVICE").ok().and_then(|number| number.parse().ok());
    Ok(VulkanBackend::open(index)?)
}

fn search(rates: &[&str]) -> Result<(), Box<dyn Error>> {
    let backend = open()?;
    let features = &backend.device().features;
    println!(
        "{}: subgroups of {}, {} bytes of shared memory, workgroups of up to {}",
        features.name, features.subgroup, features.shared_bytes, features.workgroup_max
    );
    for bits in rates {
        let half_bits = (2.0 * bits.parse::<f32>()?) as usize;
        let rate = Rate::from_half_bits(half_bits).ok_or_else(|| format!("no rate of {bits} bits"))?;
        // A device that is a program takes a tenth of a second for a tile.
        let (most, compared) = if features.kind == DeviceKind::Software { (8, 8) } else { (5376, COMPARED) };
        let tiles = tiles(most);
        let expected = on_the_processor(rate, &tiles[..compared]);
        for workgroup in [256, 512, 1024] {
            let mut device = backend.trellis_encoder_with(workgroup)?;
            if device.supports(rate) {
                measure(&mut device, rate, workgroup, &tiles, &expected)?;
            } else {
                println!("{rate} bits with workgroups of {workgroup}: not supported");
            }
        }
    }
    Ok(())
}

/// Normal weights of the codebook's deviation.
fn tiles(count: usize) -> Vec<[f32; LEN]> {
    let (mut random, deviation) = (Random::new(1), Codebook::Mul1.deviation());
    (0..count).map(|_| std::array::from_fn(|_| deviation * random.normal())).collect()
}

/// The tiles of the processor, all of whose threads are timed.
fn on_the_processor(rate: Rate, tiles: &[[f32; LEN]]) -> Vec<[u16; LEN]> {
    let encoder = Encoder::new(Codebook::Mul1, rate);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let start = Instant::now();
    let encode = |part: &[[f32; LEN]]| encoder.encode_all(&mut None, part).expect("no device");
    let encode = &encode;
    let found: Vec<_> = std::thread::scope(|scope| {
        let parts = tiles.chunks(tiles.len().div_ceil(threads));
        let parts: Vec<_> = parts.map(|part| scope.spawn(move || encode(part))).collect();
        parts.into_iter().flat_map(|part| part.join().expect("no panic")).collect()
    });
    let rate_of_tiles = tiles.len() as f64 / start.elapsed().as_secs_f64();
    println!("{rate} bits, {} on {threads} threads: {rate_of_tiles:.0} tiles/s", encoder.level());
    found
}

fn measure(
    device: &mut TrellisEncoder,
    rate: Rate,
    workgroup: u32,
    tiles: &[[f32; LEN]],
    expected: &[[u16; LEN]],
) -> Result<(), Box<dyn Error>> {
    let metric = Metric::new(Codebook::Mul1, rate);
    let targets: Vec<_> = tiles.iter().map(|tile| tile.map(|weight| metric.target(weight))).collect();
    let mut found = device.encode(Codebook::Mul1, rate, &targets[..expected.len()])?;
    found.iter_mut().for_each(|states| close(rate, states));
    let same = found.iter().zip(expected).filter(|(found, expected)| found == expected).count();
    let all = expected.len();
    print!("{rate} bits, workgroups of {workgroup:4}: {same} of {all} tiles as on the processor;");
    for batch in BATCHES.into_iter().filter(|&batch| batch <= tiles.len()) {
        let (start, mut batches, mut best) = (Instant::now(), 0, f64::INFINITY);
        while start.elapsed().as_secs_f64() < SECONDS || batches < 2 {
            let start = Instant::now();
            device.encode(Codebook::Mul1, rate, &targets[..batch])?;
            best = best.min(start.elapsed().as_secs_f64());
            batches += 1;
        }
        let mean = start.elapsed().as_secs_f64() / f64::from(batches);
        print!(" {batch}: {:.0} tiles/s (best {:.0})", batch as f64 / mean, batch as f64 / best);
        if batch == tiles.len() {
            let weights = (batch * LEN) as f64 / mean;
            println!("; {:.2} million weights/s, 27B in {:.1} min", weights / 1e6, WEIGHTS_27B / weights / 60.0);
        }
    }
    Ok(())
}

/// A device that finds nothing, and at once.
struct Idle;

impl TileDevice for Idle {
    fn supports(&self, _: Rate) -> bool {
        true
    }

    fn tiles(&self) -> usize {
        8
    }

    fn search(&self, _: Codebook, _: Rate, targets: &[[i16; LEN]]) -> Result<Vec<[u16; LEN]>, String> {
        Ok(vec![[0; LEN]; targets.len()])
    }
}

/// The GPU.
struct Gpu(Mutex<TrellisEncoder>);

impl TileDevice for Gpu {
    fn supports(&self, rate: Rate) -> bool {
        self.0.lock().is_ok_and(|encoder| encoder.supports(rate))
    }

    fn tiles(&self) -> usize {
        self.0.lock().map_or(1, |encoder| encoder.tiles())
    }

    fn search(&self, codebook: Codebook, rate: Rate, targets: &[[i16; LEN]]) -> Result<Vec<[u16; LEN]>, String> {
        let mut encoder = self.0.lock().map_err(|error| error.to_string())?;
        encoder.encode(codebook, rate, targets).map_err(|error| error.to_string())
    }
}

/// When something began.
struct Times {
    start: Instant,
    processor: Option<f64>,
}

impl Times {
    fn now() -> Times {
        Times { start: Instant::now(), processor: processor_seconds() }
    }

    fn print(&self, what: &str) {
        let seconds = self.start.elapsed().as_secs_f64();
        let of_cores = processor_seconds().zip(self.processor).map(|(now, before)| now - before);
        println!(
            "{what}: {seconds:.2} s, {} s of a core",
            of_cores.map_or("?".into(), |seconds| format!("{seconds:.2}"))
        );
    }
}

/// What all threads took of the processor so far, where Linux tells.
fn processor_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Behind the name, which may have any characters; in hundredths of a second.
    let fields: Vec<&str> = text.rsplit(')').next()?.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / 100.0)
}

fn layer(inputs: usize, outputs: usize) -> Result<(), Box<dyn Error>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut random = Random::new(2);
    println!("{inputs} inputs, {outputs} outputs, {threads} threads");
    let tokens = 1024;
    let activations: Vec<f32> = (0..tokens * inputs).map(|_| random.normal()).collect();
    let mut hessian = Hessian::new(inputs)?;
    let start = Times::now();
    hessian.add(&activations, threads)?;
    start.print("the Hessian of 1,024 tokens");
    let values: Vec<f32> = (0..inputs * outputs).map(|_| random.normal()).collect();
    let weight = Weight::new(&values, outputs, inputs)?;
    let suh: Vec<f16> = input_scales(&[weight], 0, 1)?;
    let start = Times::now();
    let factor = Factor::new(&hessian, &suh, 0.025, threads)?;
    start.print("its decomposition");
    let rate = Rate::from_half_bits(5).ok_or("no rate")?;
    let settings = Settings { threads, scale: Some(1.04), ..Settings::default() };
    let parts = [(true, true, "feedback and proxy error"), (true, false, "feedback"), (false, false, "neither")];
    for (feedback, numbers, what) in parts {
        let encoder = Encoder::new(Codebook::Mul1, rate).on(&TileQueue::new(Box::new(Idle)));
        let start = Times::now();
        quantize(&weight, &factor, &encoder, &Settings { feedback, numbers, ..settings })?;
        start.print(what);
    }
    let gpu = TileQueue::new(Box::new(Gpu(Mutex::new(open()?.trellis_encoder()?))));
    let waiting = Settings { threads: threads.max(gpu.tiles().div_ceil(8)), ..settings };
    let encoder = Encoder::new(Codebook::Mul1, rate).on(&gpu);
    let start = Times::now();
    let quantized = quantize(&weight, &factor, &encoder, &waiting)?;
    start.print("all of it with the GPU");
    println!("proxy error {:.5}", quantized.numbers.proxy_error());
    Ok(())
}
