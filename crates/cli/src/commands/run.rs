//! `run`: answers one prompt.

use std::io::{self, IsTerminal, Read};

use anyhow::{Context, Result, bail};
use engine::Request;
use serde_json::json;
use text::{Message, Special, encode_chat};

use crate::args::RunArgs;
use crate::failure::Usage;
use crate::model_source::looks_like_model;
use crate::session::Session;
use crate::stream::{self, Answer, End};
use crate::{interrupt, output};

/// What is to be answered, and by which model.
#[derive(Debug, PartialEq, Eq)]
struct Task {
    model: Option<String>,
    /// Each `-` stands for stdin; none at all does too.
    prompt: Vec<String>,
}

impl Task {
    /// Tells the model from the prompt.
    fn of(mut words: Vec<String>) -> Task {
        let with_model = match words.iter().filter(|word| *word != "-").count() {
            0 => false,
            1 => looks_like_model(&words[0]),
            _ => words[0] != "-",
        };
        let model = with_model.then(|| words.remove(0));
        Task { model, prompt: words }
    }
}

/// Answers a prompt.
///
/// # Errors
/// A model that can't be loaded, a prompt that is empty or too long, Ctrl-C.
pub(crate) fn run(args: RunArgs) -> Result<()> {
    let Task { model, prompt } = Task::of(args.words.clone());
    let prompt = read_prompt(&prompt)?;
    let mut session = Session::load(model.as_deref(), &args.load)?;
    let request = request(&session, &args, prompt)?;
    let json = args.json;
    let id = stream::submit(&mut session.engine, None, request)?;
    let mut show = |text: &str| if json { Ok(()) } else { Ok(output::answer(text)?) };
    let answer = stream::answer(&mut session.engine, &session.tokenizer, id, &args.answer.stop, &mut show)?;
    report(&session, &answer, json)?;
    interrupt::check()
}

fn report(session: &Session, answer: &Answer, json: bool) -> Result<()> {
    if !json {
        if !answer.text.ends_with('\n') {
            output::answer("\n")?;
        }
        if answer.end == End::ContextFull {
            output::notice(&format!(
                "the context of {} is full; --context allows up to {}",
                session.engine.context(),
                session.engine.config().context
            ));
        }
        output::notice(&stream::summary(&session.engine, &answer.statistics));
        return Ok(());
    }
    let mut report = json!({
        "model": session.name,
        "text": answer.text,
        "tokens": answer.tokens,
        "finish_reason": answer.end.name(),
        "load_seconds": session.load_time.as_secs_f64(),
    });
    if let (Some(report), Some(statistics)) =
        (report.as_object_mut(), stream::summary_json(&session.engine, &answer.statistics).as_object_mut())
    {
        report.append(statistics);
    }
    Ok(output::json(&report)?)
}

/// The prompt's words with spaces between, and what comes from stdin on lines of its own.
fn read_prompt(words: &[String]) -> Result<String> {
    let from_stdin = words.is_empty() || words.iter().any(|word| word == "-");
    if !from_stdin {
        return not_empty(words.join(" "));
    }
    if words.is_empty() && io::stdin().is_terminal() {
        return Err(Usage(
            "there is no prompt\n\nhint: lapidary run \"Tell me a story about a ship.\", or send the prompt through a \
             pipe; `lapidary chat` is for conversations"
                .into(),
        )
        .into());
    }
    let mut input = String::new();
    io::stdin().read_to_string(&mut input).context("can't read the prompt from stdin")?;
    let input = input.trim_end_matches(['\n', '\r']);
    let mut prompt = String::new();
    for word in words {
        let separator = if prompt.is_empty() {
            ""
        } else if word == "-" {
            "\n\n"
        } else {
            " "
        };
        prompt += separator;
        prompt += if word == "-" { input } else { word };
    }
    not_empty(if words.is_empty() { input.into() } else { prompt })
}

fn not_empty(prompt: String) -> Result<String> {
    if prompt.trim().is_empty() {
        bail!("the prompt is empty");
    }
    Ok(prompt)
}

fn request(session: &Session, args: &RunArgs, prompt: String) -> Result<Request> {
    let special = if args.answer.special { Special::Parse } else { Special::Text };
    let tokens = if args.raw {
        let bos = session.tokenizer.bos().filter(|_| session.tokenizer.add_bos());
        let system = args.answer.system.as_ref().map(|system| format!("{system}\n\n")).unwrap_or_default();
        bos.into_iter().chain(session.tokenizer.encode(&(system + &prompt), special)).collect()
    } else {
        let system = args.answer.system.iter().map(|system| Message::system(system.as_str()));
        let messages: Vec<Message> = system.chain([Message::user(prompt)]).collect();
        encode_chat(&session.tokenizer, &session.template, &messages, true, special)?
    };
    Ok(Request {
        sampling: session.sampling(&args.sampling),
        max_tokens: args.answer.max_tokens,
        stop_tokens: session.stop_tokens.clone(),
        ..Request::new(tokens)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(words: &[&str]) -> (Option<String>, String) {
        let Task { model, prompt } = Task::of(words.iter().map(|&word| word.to_owned()).collect());
        (model, prompt.join(" "))
    }

    #[test]
    fn the_model_is_told_from_the_prompt() {
        assert_eq!(task(&["Tell me a story."]), (None, "Tell me a story.".into()));
        assert_eq!(task(&["owner/repo:Q4_0"]), (Some("owner/repo:Q4_0".into()), String::new()));
        assert_eq!(task(&["missing", "Hello", "there"]), (Some("missing".into()), "Hello there".into()));
        assert_eq!(task(&[]), (None, String::new()));
        assert_eq!(task(&["Summarise this:", "-"]), (None, "Summarise this: -".into()));
        assert_eq!(task(&["-", "a", "b"]), (None, "- a b".into()));
        assert_eq!(task(&["a/b", "-"]), (Some("a/b".into()), "-".into()));
    }

    #[test]
    fn prompts_of_words() {
        assert_eq!(read_prompt(&["a".into(), "b c".into()]).unwrap(), "a b c");
        assert!(read_prompt(&["  ".into()]).is_err());
    }
}
