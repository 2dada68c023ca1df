//! `chat`: a conversation.

mod input;

use std::path::Path;

use anyhow::{Context, Result, bail};
use checkpoint::AtomicFile;
use engine::{Request, Sampling, SequenceId};
use serde_json::{Value, json};
use text::{Message, Special, encode_chat};

use crate::args::ChatArgs;
use crate::session::Session;
use crate::stream::{self, End};
use crate::{interrupt, output};
use input::Lines;

const HELP: &str = "\
/help           this
/clear          forget the conversation
/system [TEXT]  instruct the model and start anew; without a text, no instruction
/save FILE      write the conversation to a JSON file
/load FILE      go on with a conversation from a file
/bye            leave (or Ctrl-D)
A line that ends in \\ goes on in the next; \"\"\" begins and ends a text of several lines.
Ctrl-C stops an answer; the conversation goes on.";

/// A conversation.
struct Chat {
    session: Session,
    args: ChatArgs,
    sampling: Sampling,
    system: Option<String>,
    turns: Vec<Message>,
    /// The sequence whose cache has the conversation so far.
    kept: Option<SequenceId>,
}

/// Whether to go on.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Continue,
    Leave,
}

/// Talks until the user leaves.
///
/// # Errors
/// A model that can't be loaded, a device that failed, a closed pipe.
pub(crate) fn run(args: ChatArgs) -> Result<()> {
    let session = Session::load(args.model.as_deref(), &args.load)?;
    let sampling = session.sampling(&args.sampling);
    let mut lines = Lines::new();
    if lines.is_terminal() {
        output::notice(&format!("{}, context {}; /help tells more", session.name, session.engine.context()));
    }
    let system = args.answer.system.clone();
    let mut chat = Chat { session, args, sampling, system, turns: Vec::new(), kept: None };
    while let Some(text) = lines.read()? {
        match chat.take(&text) {
            Ok(Next::Continue) => {}
            Ok(Next::Leave) => break,
            // What went wrong with one message is no reason to lose the others; in a script it is.
            Err(error) if lines.is_terminal() => {
                crate::failure::report(&error);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Chat {
    /// Follows a command or answers a message.
    fn take(&mut self, text: &str) -> Result<Next> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(Next::Continue);
        }
        if let Some(command) = text.strip_prefix('/') {
            let (name, argument) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
            return self.command(name, argument.trim());
        }
        self.answer(text)?;
        Ok(Next::Continue)
    }

    fn command(&mut self, name: &str, argument: &str) -> Result<Next> {
        match name {
            "help" | "?" => output::notice(HELP),
            "clear" => self.restart(),
            "system" => {
                self.system = Some(argument.to_owned()).filter(|system| !system.is_empty());
                self.restart();
            }
            "save" => self.save(argument)?,
            "load" => self.load(argument)?,
            "bye" | "exit" | "quit" => return Ok(Next::Leave),
            _ => output::notice(&format!("there is no command /{name}; /help lists all")),
        }
        Ok(Next::Continue)
    }

    /// Forgets all turns.
    fn restart(&mut self) {
        self.turns.clear();
        if let Some(id) = self.kept.take() {
            self.session.engine.release(id);
        }
    }

    /// Answers a message; if that fails, it is as if it had not been said.
    fn answer(&mut self, text: &str) -> Result<()> {
        self.turns.push(Message::user(text));
        let outcome = self.try_answer();
        // A Ctrl-C that came too late is not meant for the next answer.
        interrupt::forget();
        match outcome {
            Ok(Some(answer)) => self.turns.push(Message::assistant(answer)),
            Ok(None) => {
                self.turns.pop();
            }
            Err(error) => {
                self.turns.pop();
                return Err(error);
            }
        }
        Ok(())
    }

    /// The answer's text; `None` if it was stopped before it began.
    fn try_answer(&mut self) -> Result<Option<String>> {
        let special = if self.args.answer.special { Special::Parse } else { Special::Text };
        let prompt = encode_chat(&self.session.tokenizer, &self.session.template, &self.messages(), true, special)?;
        let request = Request {
            sampling: self.sampling,
            max_tokens: self.args.answer.max_tokens,
            stop_tokens: self.session.stop_tokens.clone(),
            keep: true,
            ..Request::new(prompt)
        };
        let engine = &mut self.session.engine;
        // A sequence that was cancelled before its first pass is gone.
        let kept = self.kept.take().filter(|&id| engine.statistics(id).is_some());
        let id = match stream::submit(engine, kept, request) {
            Ok(id) => id,
            Err(error) => {
                self.kept = kept;
                return Err(error.context("the conversation can't go on; /clear starts anew"));
            }
        };
        self.kept = Some(id);
        let mut show = |text: &str| Ok(output::answer(text)?);
        let stops = &self.args.answer.stop;
        let answer = stream::answer(engine, &self.session.tokenizer, id, stops, &mut show)?;
        output::answer("\n")?;
        if answer.end == End::ContextFull {
            output::notice(&format!("the context of {} is full; /clear starts anew", self.session.engine.context()));
        }
        output::notice(&stream::summary(&self.session.engine, &answer.statistics));
        Ok(Some(answer.text).filter(|text| answer.end != End::Cancelled || !text.is_empty()))
    }

    /// Everything that was said, the instruction first.
    fn messages(&self) -> Vec<Message> {
        let system = self.system.iter().map(|system| Message::system(system.as_str()));
        system.chain(self.turns.iter().cloned()).collect()
    }

    fn save(&self, path: &str) -> Result<()> {
        if path.is_empty() {
            bail!("/save: expected the name of a file");
        }
        let message = |message: &Message| json!({ "role": message.role, "content": message.content });
        let document = json!({ "messages": self.messages().iter().map(message).collect::<Vec<_>>() });
        AtomicFile::replace(Path::new(path), format!("{document:#}\n").as_bytes())?;
        output::notice(&format!("saved {} turns to `{path}`", self.turns.len()));
        Ok(())
    }

    fn load(&mut self, path: &str) -> Result<()> {
        if path.is_empty() {
            bail!("/load: expected the name of a file");
        }
        let text = std::fs::read_to_string(path).with_context(|| format!("can't read `{path}`"))?;
        let (system, turns) = parse(&text).with_context(|| format!("`{path}` is no saved conversation"))?;
        self.restart();
        (self.system, self.turns) = (system, turns);
        output::notice(&format!("loaded {} turns from `{path}`", self.turns.len()));
        Ok(())
    }
}

/// A saved conversation: the instruction and the turns, which alternate and end with an answer.
fn parse(text: &str) -> Result<(Option<String>, Vec<Message>)> {
    let document: Value = serde_json::from_str(text)?;
    let messages = document["messages"].as_array().context("expected an object with `messages`")?;
    let mut turns = Vec::new();
    for message in messages {
        let field = |name: &str| message[name].as_str().with_context(|| format!("a message has no `{name}`"));
        turns.push(Message::new(field("role")?, field("content")?));
    }
    let has_system = turns.first().is_some_and(|first| first.role == "system");
    let system = has_system.then(|| turns.remove(0).content);
    let alternate = turns.iter().enumerate().all(|(turn, message)| message.role == ["user", "assistant"][turn % 2]);
    if !alternate || turns.len() % 2 != 0 {
        bail!("expected messages of `user` and `assistant` in turn");
    }
    Ok((system, turns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_conversations_are_read_back() {
        let text = r#"{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"},
                       {"role": "assistant", "content": "A"}]}"#;
        let (system, turns) = parse(text).unwrap();
        assert_eq!((system.as_deref(), turns.len(), turns[1].content.as_str()), (Some("S"), 2, "A"));
        for wrong in ["", "[]", r#"{"messages": [{"role": "user", "content": "U"}]}"#, r#"{"messages": [{"role": 1}]}"#]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
