//! What the device says about the time that it took.

use std::time::Duration;

use tensor::TraceSpan;

use crate::Engine;

impl Engine {
    /// The device's time for each pass of the last [`Engine::step`], if it was one in which the device went on alone;
    /// empty otherwise, or if the device does not tell.
    pub fn token_times(&mut self) -> Vec<Duration> {
        if self.went_on_alone { self.loaded.token_times() } else { Vec::new() }
    }

    /// Switches tracing on or off; gives whether it is on. See [`tensor::Loaded::set_tracing`].
    pub fn set_tracing(&mut self, on: bool) -> bool {
        self.loaded.set_tracing(on)
    }

    /// The spans of work since tracing was switched on or they were last taken. See [`tensor::Loaded::take_trace`].
    pub fn take_trace(&mut self) -> Vec<TraceSpan> {
        self.loaded.take_trace()
    }
}
