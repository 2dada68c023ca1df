//! Compiles every pipeline for the published models and prints what the driver says of each, a JSON object a line:
//! `pipelines [--assembly] [START]`, where START is how their names begin. `LAPIDARY_VULKAN_DEVICE` chooses the device
//! by number.

#![allow(clippy::print_stderr, reason = "a program's errors go there")]

use std::io::Write;

use backend_vulkan::pipelines::{Compiled, compile};
use serde_json::{Map, Value, json};

fn main() {
    let with_assembly = std::env::args().any(|argument| argument == "--assembly");
    let start = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let index = std::env::var("LAPIDARY_VULKAN_DEVICE").ok().and_then(|number| number.parse().ok());
    let mut out = std::io::BufWriter::new(std::io::stdout());
    let mut written = Ok(());
    let result = compile(index, &start, &mut |compiled| {
        if written.is_ok() {
            written = writeln!(out, "{}", line(compiled, with_assembly));
        }
    });
    let result = result.map_err(|error| error.to_string());
    let result = result.and_then(|count| {
        written.and_then(|()| out.flush()).map_err(|error| error.to_string())?;
        if count == 0 { Err("no pipelines".into()) } else { Ok(()) }
    });
    if let Err(error) = &result {
        eprintln!("{error}");
    }
    // Not by returning, which unloads drivers: one without its device can't end in order.
    std::process::exit(i32::from(result.is_err()));
}

fn line(compiled: &Compiled, with_assembly: bool) -> Value {
    let specialization: Map<String, Value> =
        compiled.specialization.iter().map(|&(name, value)| (name.into(), value.into())).collect();
    let statistics: Map<String, Value> =
        compiled.statistics.iter().map(|(name, value)| (name.clone(), (*value).into())).collect();
    let mut line = json!({
        "name": compiled.name,
        "specialization": specialization,
        "subgroup": compiled.subgroup,
        "declared_waves": compiled.declared_waves,
        "statistics": statistics,
        "hot_loop": compiled.hot_loop,
    });
    if let Some(weights) = compiled.weights_per_iteration {
        line["weights_per_iteration"] = weights.into();
    }
    if with_assembly && (compiled.hot_loop || compiled.name.contains("_matrix")) {
        line["assembly"] = compiled.assembly.clone().into();
    }
    line
}
