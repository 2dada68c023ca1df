//! Measures kernels on a device: `lab [TOKENS] [plain]`, or `lab matvec`. `LAPIDARY_VULKAN_DEVICE` chooses the device
//! by number.

#![allow(clippy::print_stderr, reason = "a program's errors go there")]

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let tokens = arguments.first().and_then(|number| number.parse().ok()).unwrap_or(512);
    let plain = arguments.iter().any(|argument| argument == "plain");
    let index = std::env::var("LAPIDARY_VULKAN_DEVICE").ok().and_then(|number| number.parse().ok());
    let out = &mut std::io::stdout();
    let result = match arguments.iter().any(|argument| argument == "matvec") {
        true => backend_vulkan::measure_matvec(index, out),
        false => backend_vulkan::measure_matmul(index, tokens, plain, out),
    };
    if let Err(error) = result {
        eprintln!("{error}");
        std::process::exit(1);
    }
}
