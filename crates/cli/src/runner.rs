//! An engine with the device that it runs on, which may fail in the middle of an answer.

use std::io::{self, IsTerminal};

use anyhow::Result;
use checkpoint::Checkpoint;
use engine::{Engine, EngineError, EngineOptions, Event, ModelSource, Row};
use tensor::{BackendError, Buffer, BufferKind, WeightFormat};

use crate::args::DeviceArg;
use crate::devices::{self, Device, Machine, first_line};
use crate::output;

/// How often a GPU may fail during one answer, text or measurement before the CPU goes on with it.
pub(crate) const RESTARTS: usize = 1;

/// A loaded model.
pub(crate) struct Runner {
    /// Runs it.
    pub(crate) engine: Engine,
    /// Where.
    pub(crate) home: Home,
}

/// The device of an engine, and what is needed to leave it.
pub(crate) struct Home {
    /// The device.
    pub(crate) device: Box<dyn Device>,
    machine: &'static dyn Machine,
    /// The weights, for a device that takes over.
    checkpoint: Option<Checkpoint>,
}

impl Runner {
    /// Loads a checkpoint into the device that was asked for.
    ///
    /// # Errors
    /// As [`devices::load`].
    pub(crate) fn load(
        checkpoint: &Checkpoint,
        machine: &'static dyn Machine,
        wanted: DeviceArg,
        options: &EngineOptions,
    ) -> Result<Runner> {
        let load = |device: &dyn Device, options: &EngineOptions| Engine::load(checkpoint, device, options);
        let (engine, device) = devices::load(machine, wanted, options, &load)?;
        if let Some(text) = decoded(checkpoint, &engine) {
            output::notice(&text);
        }
        Ok(Runner { engine, home: Home { device, machine, checkpoint: None } })
    }

    /// Keeps the checkpoint that the model was loaded from, if the device may fail; or else an answer fails with it.
    pub(crate) fn keep(&mut self, checkpoint: Checkpoint) {
        self.home.keep(checkpoint);
    }

    /// One step. If the GPU fails, nothing happens in it but [`Home::recover`]: the next steps go on with the tokens
    /// that would have come, within the rounding of the devices.
    ///
    /// # Errors
    /// As [`Engine::step`]; a CPU that has no room for the model either.
    pub(crate) fn step(&mut self, restarts: &mut usize) -> Result<Vec<Event>> {
        match self.engine.step() {
            Ok(events) => Ok(events),
            Err(error) => Ok(self.home.recover(&mut self.engine, error, restarts).map(|()| Vec::new())?),
        }
    }

    /// [`Engine::forward`] for all positions of a text. If the GPU fails, it is run again for the rows that are
    /// missing.
    ///
    /// # Errors
    /// As [`Engine::forward`]; a CPU that has no room for the model either.
    pub(crate) fn forward(&mut self, tokens: &[u32], on_row: &mut dyn FnMut(Row<'_>)) -> Result<()> {
        let (mut restarts, mut done) = (RESTARTS, 0);
        while done < tokens.len() {
            let result = self.engine.forward(tokens, done..tokens.len(), &mut |row| {
                done = row.position + 1;
                on_row(row);
            });
            result.or_else(|error| self.home.recover(&mut self.engine, error, &mut restarts))?;
        }
        Ok(())
    }
}

/// What is to be said about trellis weights, if the device does not multiply them as they are.
pub(crate) fn decoded(checkpoint: &Checkpoint, engine: &Engine) -> Option<String> {
    let weights = checkpoint.trellis();
    let is_trellis =
        |buffer: &Buffer| matches!(buffer.kind, BufferKind::Weight { format: WeightFormat::Trellis(_), .. });
    if weights.is_empty() || engine.program().buffers().iter().any(is_trellis) {
        return None;
    }
    let bytes: usize = weights.iter().map(|weight| 2 * weight.inputs * weight.outputs).sum();
    Some(format!(
        "{} EXL3 weights were decoded to f16 while they were loaded and take {}: the device does not multiply them as \
         they are",
        weights.len(),
        output::bytes(bytes as u64)
    ))
}

impl Home {
    fn keep(&mut self, checkpoint: Checkpoint) {
        self.checkpoint = Some(checkpoint).filter(|_| self.device.gpu().is_some());
    }

    /// Loads the model of an engine whose GPU has failed into the same GPU again, as long as there are `restarts` left,
    /// or into the CPU.
    ///
    /// # Errors
    /// The same one, where it is not the GPU's or the checkpoint was not kept; a CPU that has no room for the model.
    pub(crate) fn recover(
        &mut self,
        engine: &mut Engine,
        error: EngineError,
        restarts: &mut usize,
    ) -> Result<(), EngineError> {
        let number = self.device.gpu().map(|gpu| gpu.index);
        match (&error, number, self.checkpoint.take()) {
            (EngineError::Backend(BackendError::Device { .. }), Some(number), Some(checkpoint)) => {
                let outcome = self.load_again(engine, number, &checkpoint, &error, restarts);
                self.keep(checkpoint);
                outcome
            }
            (_, _, checkpoint) => {
                self.checkpoint = checkpoint;
                Err(error)
            }
        }
    }

    fn load_again(
        &mut self,
        engine: &mut Engine,
        number: usize,
        checkpoint: &Checkpoint,
        error: &EngineError,
        restarts: &mut usize,
    ) -> Result<(), EngineError> {
        let mut reason = first_line(&error.to_string()).to_owned();
        if *restarts > 0 {
            *restarts -= 1;
            self.tell(&format!("{reason}; the model is loaded into it again"));
            match self.move_to_gpu(engine, number, checkpoint) {
                Ok(()) => return Ok(()),
                Err(error) => reason = first_line(&error.to_string()).to_owned(),
            }
        }
        self.tell(&format!("{reason}; going on on the CPU"));
        let cpu = self.machine.cpu();
        engine.recover(&ModelSource::open(checkpoint)?, &*cpu)?;
        self.device = cpu;
        Ok(())
    }

    fn move_to_gpu(&mut self, engine: &mut Engine, number: usize, checkpoint: &Checkpoint) -> Result<(), EngineError> {
        let gpu = self.machine.open_gpu(Some(number))?;
        engine.recover(&ModelSource::open(checkpoint)?, &*gpu)?;
        self.device = gpu;
        Ok(())
    }

    /// On a line of its own, where an answer may be half-written.
    fn tell(&self, text: &str) {
        let start = if io::stderr().is_terminal() { "\n" } else { "" };
        self.machine.tell(&format!("{start}{text}"));
    }
}

#[cfg(test)]
mod tests {
    use engine::{Request, Sampling};
    use tensor::BackendError::{Device, OutOfMemory, Unsupported};
    use tensor::Precision;

    use super::*;
    use crate::devices::fake::{Fault, Gpu, gpu, machine, no_memory, no_support, problem};
    use crate::model_source::Model;
    use crate::session;
    use crate::stream::{self, Answer};

    /// An answer on a machine: what was shown, its tokens, and what was said about devices.
    fn answer(wanted: DeviceArg, gpus: Vec<Gpu>) -> (String, Vec<u32>, Vec<String>) {
        answer_of(Model::open(None).unwrap().checkpoint, Precision::Fast, wanted, gpus)
    }

    /// The answer of a model, as text by the built-in model's tokenizer.
    fn answer_of(
        checkpoint: Checkpoint,
        precision: Precision,
        wanted: DeviceArg,
        gpus: Vec<Gpu>,
    ) -> (String, Vec<u32>, Vec<String>) {
        let machine = machine(gpus);
        let tokenizer = session::tokenizer(&Model::open(None).unwrap().checkpoint).unwrap();
        let options = EngineOptions { context: Some(256), precision, ..EngineOptions::default() };
        let mut runner = Runner::load(&checkpoint, machine, wanted, &options).unwrap();
        runner.keep(checkpoint);
        let request = Request {
            sampling: Sampling { seed: 5, ..Sampling::default() },
            max_tokens: Some(12),
            ..Request::new(vec![300, 307, 314, 321])
        };
        let id = runner.engine.submit(request).unwrap();
        let mut shown = String::new();
        let mut show = |text: &str| {
            shown += text;
            Ok(())
        };
        let Answer { text, tokens, .. } = stream::answer(&mut runner, &tokenizer, id, &[], &mut show).unwrap();
        assert_eq!(shown, text);
        (shown, tokens, machine.told())
    }

    /// Passes before the fault: in the prompt, at the first token, in the middle, at the last token.
    const PASSES: [usize; 4] = [0, 1, 5, 11];

    #[test]
    fn a_lost_device_is_started_again_and_the_answer_goes_on() {
        let (text, tokens, told) = answer(DeviceArg::Cpu, vec![]);
        assert!(tokens.len() == 12 && told.is_empty());
        for problem in ["the device was lost during a pass\n\nhint: see the log", "a pass took more than 10 seconds"] {
            for pass in PASSES {
                let fault = Fault::Pass(pass, problem);
                let gpus = vec![Gpu::failing(0, vec![Some(fault), None])];
                let (shown, again, told) = answer(DeviceArg::Vulkan(Some(0)), gpus);
                assert_eq!((&shown, &again), (&text, &tokens), "{problem} {pass}");
                let line = problem.lines().next().unwrap();
                assert_eq!(told, [format!("GPU 0 failed: {line}; the model is loaded into it again")]);
            }
        }
    }

    #[test]
    fn a_real_device_goes_on_where_it_was_lost() {
        if let Err(error) = backend_vulkan::VulkanBackend::open(None) {
            #[expect(clippy::print_stderr, reason = "a test that can't run says so")]
            {
                eprintln!("skipped: {error}");
            }
            return;
        }
        // What was decoded token by token is run as a prompt afterwards, by other kernels: only without the rounding of
        // activations are the numbers so close that the same tokens are drawn. The built-in model's kernels take a
        // device that is a program too long to compile.
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../goldens/text-1b-shape");
        let run = |faults| {
            let (checkpoint, gpus) = (Checkpoint::open(model.as_ref()).unwrap(), vec![Gpu::failing(0, faults).real()]);
            answer_of(checkpoint, Precision::F32, DeviceArg::Vulkan(Some(0)), gpus)
        };
        let (text, tokens, told) = run(vec![None]);
        assert!(tokens.len() == 12 && told.is_empty());
        // One call for the prompt, and at least one for the tokens behind the first.
        for calls in [0, 1, 2] {
            let (shown, again, told) = run(vec![Some(Fault::Pass(calls, "lost")), None]);
            assert_eq!((&shown, &again), (&text, &tokens), "{calls}");
            assert!(told.len() == 1 || (told.is_empty() && calls == 2), "{told:?}");
        }
    }

    #[test]
    fn a_device_that_stays_lost_is_replaced_by_the_cpu() {
        let (text, tokens, _) = answer(DeviceArg::Cpu, vec![]);
        let lost = || Some(Fault::Pass(3, "lost"));
        let seconds = [
            (Fault::Open(problem), "GPU 0 failed: it does not answer; going on on the CPU"),
            (Fault::Load(no_memory), "out of memory on GPU 0"),
            (Fault::Load(no_support), "GPU 0 can't run this"),
            (Fault::Pass(1, "lost again"), "GPU 0 failed: lost again; going on on the CPU"),
        ];
        for (second, expected) in seconds {
            let gpus = vec![Gpu::failing(0, vec![lost(), Some(second)])];
            let (shown, again, told) = answer(DeviceArg::Auto, gpus);
            assert_eq!((shown, again), (text.clone(), tokens.clone()), "{told:?}");
            assert_eq!(told.len(), 2, "{told:?}");
            assert!(told[0].ends_with("lost; the model is loaded into it again"), "{told:?}");
            assert!(told[1].starts_with(expected) && told[1].ends_with("; going on on the CPU"), "{told:?}");
        }
    }

    #[test]
    fn what_a_gpu_can_not_load_the_cpu_does() {
        let (text, tokens, _) = answer(DeviceArg::Cpu, vec![]);
        let gpus = [
            (Gpu::failing(0, vec![Some(Fault::Open(problem))]), "running on the CPU: GPU 0 failed: it does not answer"),
            (
                Gpu::failing(0, vec![Some(Fault::Load(no_memory))]),
                "running on the CPU: out of memory on GPU 0: 100 bytes",
            ),
            (
                Gpu::failing(0, vec![Some(Fault::Load(no_support))]),
                "running on the CPU: GPU 0 can't run this: no kernel",
            ),
            (
                Gpu::with_problem(0, "the driver lacks shaderInt8\n\nhint: x"),
                "running on the CPU: GPU 0: the driver lacks shaderInt8",
            ),
            (Gpu::with_memory(0, 1000), "running on the CPU: the model needs "),
        ];
        for (gpu, line) in gpus {
            let (shown, again, told) = answer(DeviceArg::Auto, vec![gpu]);
            assert_eq!((shown, again), (text.clone(), tokens.clone()), "{told:?}");
            assert!(told.len() == 1 && told[0].starts_with(line) && !told[0].contains('\n'), "{told:?}");
        }
    }

    /// The logits of a text, in passes of 8 tokens.
    fn logits(wanted: DeviceArg, gpus: Vec<Gpu>) -> (Vec<f32>, Vec<String>) {
        let machine = machine(gpus);
        let checkpoint = Model::open(None).unwrap().checkpoint;
        let options = EngineOptions { context: Some(64), chunk: 8, outputs_max: 8, ..EngineOptions::default() };
        let mut runner = Runner::load(&checkpoint, machine, wanted, &options).unwrap();
        runner.keep(checkpoint);
        let tokens: Vec<u32> = (0..30).map(|token| 300 + 7 * token).collect();
        let (mut all, mut position) = (Vec::new(), 0);
        let mut take = |row: Row<'_>| {
            assert_eq!(row.position, position);
            position += 1;
            all.extend_from_slice(row.logits);
        };
        runner.forward(&tokens, &mut take).unwrap();
        assert_eq!(position, 30);
        (all, machine.told())
    }

    #[test]
    fn logits_go_on_where_the_device_was_lost() {
        let (expected, _) = logits(DeviceArg::Cpu, vec![]);
        for pass in 0..4 {
            let (found, told) =
                logits(DeviceArg::Auto, vec![Gpu::failing(0, vec![Some(Fault::Pass(pass, "lost")), None])]);
            assert!(found == expected && told.len() == 1, "{pass}: {told:?}");
        }
        let twice = vec![Some(Fault::Pass(2, "lost")), Some(Fault::Pass(3, "lost"))];
        let (found, told) = logits(DeviceArg::Auto, vec![Gpu::failing(0, twice)]);
        assert!(found == expected && told.len() == 2 && told[1].ends_with("going on on the CPU"), "{told:?}");
    }

    #[test]
    fn errors_that_are_not_the_device_s_stay() {
        let machine = machine(vec![Gpu::failing(0, vec![None])]);
        let checkpoint = Model::open(None).unwrap().checkpoint;
        let options = EngineOptions { context: Some(1 << 30), ..EngineOptions::default() };
        let Err(error) = Runner::load(&checkpoint, machine, DeviceArg::Auto, &options) else { panic!("loaded") };
        assert!(error.to_string().starts_with("context: expected"), "{error}");
        assert!(machine.told().is_empty());
        let kinds = [problem(&gpu(0)), no_memory(&gpu(0)), no_support(&gpu(0))];
        assert!(matches!(kinds, [Device { .. }, OutOfMemory { .. }, Unsupported { .. }]));
    }
}
