//! Measures kernels on a device: `lab [TOKENS] [plain]`. `LAPIDARY_VULKAN_DEVICE` chooses the device by number.

#![allow(clippy::print_stderr, reason = "a program's errors go there")]

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let tokens = arguments.first().and_then(|number| number.parse().ok()).unwrap_or(512);
    let plain = arguments.iter().any(|argument| argument == "plain");
    let index = std::env::var("LAPIDARY_VULKAN_DEVICE").ok().and_then(|number| number.parse().ok());
    if let Err(error) = backend_vulkan::measure_matmul(index, tokens, plain, &mut std::io::stdout()) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}
