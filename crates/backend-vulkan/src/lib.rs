//! Runs programs on any GPU with Vulkan 1.3.

mod commands;
mod context;
mod dispatch;
mod features;
mod kernel;
mod lab;
mod layout;
mod memory;
mod pipeline;
mod place;
mod plan;
mod upload;

pub use context::DeviceInfo;
pub use features::{DeviceKind, Features, MatrixShape};
