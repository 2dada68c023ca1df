//! From a request to text that streams.

use anyhow::Result;
use engine::{Engine, Event, FinishReason, Request, SequenceId, Statistics};
use serde_json::{Value, json};
use text::{StopStrings, StreamingDetokenizer, Tokenizer};

use crate::runner::{RESTARTS, Runner};
use crate::{output, resident};

/// A finished answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// Its text, without stop strings.
    pub(crate) text: String,
    /// Its tokens, without stop tokens.
    pub(crate) tokens: Vec<u32>,
    /// Why it ended.
    pub(crate) end: End,
    /// How long it took.
    pub(crate) statistics: Statistics,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// At a stop token or a stop string.
    Stop,
    /// At the limit of its length.
    MaxTokens,
    /// At the end of the context.
    ContextFull,
    /// Ctrl-C.
    Cancelled,
}

impl End {
    /// The name in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            End::Stop => "stop",
            End::MaxTokens => "max_tokens",
            End::ContextFull => "context_full",
            End::Cancelled => "cancelled",
        }
    }
}

impl From<FinishReason> for End {
    fn from(reason: FinishReason) -> End {
        match reason {
            FinishReason::Stop { .. } => End::Stop,
            FinishReason::MaxTokens => End::MaxTokens,
            FinishReason::ContextFull => End::ContextFull,
            FinishReason::Cancelled => End::Cancelled,
        }
    }
}

/// Takes up a request: as a new sequence, or where `kept` names one, as its continuation.
///
/// # Errors
/// As [`Engine::submit`].
pub(crate) fn submit(engine: &mut Engine, kept: Option<SequenceId>, request: Request) -> Result<SequenceId> {
    match kept {
        Some(id) => {
            engine.extend(id, request)?;
            Ok(id)
        }
        None => Ok(engine.submit(request)?),
    }
}

/// Works on a sequence until it is finished, and gives its text to `show` as soon as it is certain. A GPU that fails
/// meanwhile changes nothing but the time.
///
/// # Errors
/// As [`Runner::step`], or what `show` says.
pub(crate) fn answer(
    runner: &mut Runner,
    tokenizer: &Tokenizer,
    id: SequenceId,
    stops: &[String],
    show: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<Answer> {
    let mut detokenizer = StreamingDetokenizer::new(tokenizer, true);
    let mut matcher = StopStrings::new(stops);
    let (mut text, mut tokens, mut stopped) = (String::new(), Vec::new(), false);
    let mut restarts = RESTARTS;
    loop {
        for event in runner.step(&mut restarts)? {
            match event {
                Event::Token { id: of, token } if of == id && !stopped => {
                    tokens.push(token);
                    let found = matcher.push(&detokenizer.push(token));
                    stopped = found.stop.is_some();
                    if stopped {
                        runner.engine.cancel(id);
                    }
                    text += &found.text;
                    show(&found.text)?;
                }
                Event::Finished { id: of, reason, statistics } if of == id => {
                    if !stopped {
                        let found = matcher.push(&detokenizer.flush());
                        stopped = found.stop.is_some();
                        let rest = found.text + &matcher.flush();
                        text += &rest;
                        show(&rest)?;
                    }
                    let end = if stopped { End::Stop } else { reason.into() };
                    return Ok(Answer { text, tokens, end, statistics });
                }
                _ => {}
            }
        }
    }
}

/// One line about speed and memory.
pub(crate) fn summary(runner: &Runner, statistics: &Statistics) -> String {
    let used = runner.engine.memory();
    let used = used.weights + used.caches + used.scratch;
    let memory = match runner.home.device.gpu() {
        Some(gpu) => format!("{} of {}", output::bytes(used), gpu.features.name),
        None => output::bytes(resident::peak().unwrap_or(used)),
    };
    let reused = match statistics.reused_tokens {
        0 => String::new(),
        reused => format!(" (+ {reused} from the cache)"),
    };
    format!(
        "prefill {} tokens{reused}, {} tokens/s · decode {} tokens, {} tokens/s · memory {memory}",
        statistics.prefill_tokens,
        output::rate(statistics.prefill_rate()),
        statistics.decode_tokens,
        output::rate(statistics.decode_rate()),
    )
}

/// The same for programs.
pub(crate) fn summary_json(runner: &Runner, statistics: &Statistics) -> Value {
    let used = runner.engine.memory();
    json!({
        "device": runner.home.device.gpu().map_or("cpu".into(), |gpu| format!("vulkan:{}", gpu.index)),
        "device_name": runner.home.device.gpu().map(|gpu| gpu.features.name.as_str()),
        "prompt_tokens": statistics.prompt_tokens,
        "reused_tokens": statistics.reused_tokens,
        "prefill": {
            "tokens": statistics.prefill_tokens,
            "seconds": statistics.prefill_time.as_secs_f64(),
            "tokens_per_second": statistics.prefill_rate(),
        },
        "decode": {
            "tokens": statistics.decode_tokens,
            "seconds": statistics.decode_time.as_secs_f64(),
            "tokens_per_second": statistics.decode_rate(),
        },
        "memory": {
            "peak_resident_bytes": resident::peak(),
            "weights_bytes": used.weights,
            "caches_bytes": used.caches,
            "scratch_bytes": used.scratch,
        },
    })
}
