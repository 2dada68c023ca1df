//! Chat templates: messages to a prompt, and to ids.

use std::collections::HashSet;
use std::ops::Range;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::Deserialize;

use crate::error::TextError;
use crate::python;
use crate::tokenizer::{Special, Tokenizer, Verdict};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A message of any role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }

    /// What the user said.
    pub fn user(content: impl Into<String>) -> Message {
        Message::new("user", content)
    }

    /// What the model answered.
    pub fn assistant(content: impl Into<String>) -> Message {
        Message::new("assistant", content)
    }

    /// An instruction before the conversation.
    pub fn system(content: impl Into<String>) -> Message {
        Message::new("system", content)
    }
}

/// Gemma's format, for checkpoints that bring no template: turns between markers, the model's called `model`, and
/// a system message as the first paragraph of the first user turn.
const GEMMA: &str = "{{ bos_token }}
{%- set turns = namespace(prefix='', first=0) %}
{%- if messages and messages[0].role == 'system' %}
{%- set turns.prefix = messages[0].content ~ '\n\n' %}
{%- set turns.first = 1 %}
{%- endif %}
{%- for message in messages[turns.first:] %}
{%- if message.role != ('user' if loop.index is odd else 'assistant') %}
{{- raise_exception('the turns of a conversation must alternate, and the first must be the user\\'s') }}
{%- endif %}
{{- '<start_of_turn>' ~ ('model' if message.role == 'assistant' else 'user') ~ '\n' }}
{{- turns.prefix if loop.first }}
{{- message.content | trim ~ '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<start_of_turn>model\n' }}
{%- endif %}
";

/// Steps of the template engine that one rendering may take: enough for thousands of messages, and an end to
/// nested loops.
const FUEL: u64 = 20_000_000;

/// The longest template; known ones stay below 20 KiB. With [`STACK_BYTES`] it bounds the depth of expressions.
const SOURCE_BYTES_MAX: usize = 32 * 1024;

/// The template engine follows chains such as `a.b.c` or `- - 1` by recursion, at most one level for each byte of
/// the template and measured at 500 bytes a level: this is four times as much.
const STACK_BYTES: usize = SOURCE_BYTES_MAX * 2048;

/// A checkpoint's chat template, in Jinja as Hugging Face's `apply_chat_template` runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatTemplate {
    source: String,
    bos_token: String,
    eos_token: String,
}

/// What is read of `tokenizer_config.json`.
#[derive(Deserialize)]
struct TokenizerConfig {
    chat_template: Option<Templates>,
    bos_token: Option<NamedToken>,
    eos_token: Option<NamedToken>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NamedToken {
    Text(String),
    Added { content: String },
}

impl NamedToken {
    fn text(self) -> String {
        match self {
            NamedToken::Text(text) | NamedToken::Added { content: text } => text,
        }
    }
}

impl ChatTemplate {
    /// Gemma's own format, for checkpoints without a template.
    pub fn gemma() -> ChatTemplate {
        ChatTemplate { source: GEMMA.into(), bos_token: "<bos>".into(), eos_token: "<eos>".into() }
    }

    /// From the template's text (`chat_template.jinja`, or GGUF's `tokenizer.chat_template`).
    ///
    /// # Errors
    /// If it is not a template.
    pub fn from_text(source: &str) -> Result<ChatTemplate, TextError> {
        if source.len() > SOURCE_BYTES_MAX {
            let what = format!("expected at most {SOURCE_BYTES_MAX} bytes, found {}", source.len());
            return Err(TextError::Template { what });
        }
        with_stack(|| environment().template_from_str(source).map(|_| ()))?;
        Ok(ChatTemplate { source: source.into(), ..ChatTemplate::gemma() })
    }

    /// From a `tokenizer_config.json`; nothing if that has no template.
    ///
    /// # Errors
    /// If it is not valid JSON, or its template is not one.
    pub fn from_tokenizer_config(bytes: &[u8]) -> Result<Option<ChatTemplate>, TextError> {
        let config: TokenizerConfig = serde_json::from_slice(bytes)
            .map_err(|source| TextError::Json { file: "tokenizer_config.json", source })?;
        let source = match config.chat_template {
            None => return Ok(None),
            Some(Templates::One(source)) => source,
            Some(Templates::Named(named)) => match named.into_iter().find(|template| template.name == "default") {
                Some(default) => default.template,
                None => return Ok(None),
            },
        };
        let mut template = ChatTemplate::from_text(&source)?;
        if let Some(token) = config.bos_token {
            template.bos_token = token.text();
        }
        if let Some(token) = config.eos_token {
            template.eos_token = token.text();
        }
        Ok(Some(template))
    }

    /// With other texts for the template's `bos_token` and `eos_token` than `<bos>` and `<eos>`.
    pub fn with_tokens(mut self, bos_token: impl Into<String>, eos_token: impl Into<String>) -> ChatTemplate {
        self.bos_token = bos_token.into();
        self.eos_token = eos_token.into();
        self
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt for a conversation; with `add_generation_prompt` it ends where the model's answer begins.
    ///
    /// # Errors
    /// If the template refuses the messages (two user turns in a row), or fails.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TextError> {
        with_stack(|| {
            let pairs = |message: &Message| [("role", message.role.clone()), ("content", message.content.clone())];
            let messages: Vec<Value> = messages.iter().map(|message| Value::from_pairs(pairs(message))).collect();
            environment().template_from_str(&self.source)?.render(context! {
                messages,
                add_generation_prompt,
                bos_token => self.bos_token.as_str(),
                eos_token => self.eos_token.as_str(),
            })
        })
    }
}

/// Runs the template engine where it has stack enough: a thread of its own, whose stack takes memory only where it
/// is used.
fn with_stack<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, TextError> {
    let failed = |what: &str| TextError::Template { what: what.into() };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("chat template".into()).stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, work).map_err(|error| failed(&format!("no thread for it: {error}")))?;
        let result = thread.join().map_err(|_| failed("the template engine failed"))?;
        result.map_err(|error| TextError::template(&error))
    })
}

/// The template engine, set up as `apply_chat_template` does it.
fn environment<'a>() -> Environment<'a> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().unwrap_or_default());
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.add_filter("trim", python::trim_filter);
    environment.add_function("raise_exception", |reason: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, reason))
    });
    environment.add_function("strftime_now", |format: String| python::strftime(&format, std::time::SystemTime::now()));
    environment.set_unknown_method_callback(|_, value, method, arguments| python::method(value, method, arguments));
    environment
}

/// The ids of a conversation.
///
/// They are those of the rendered text as a whole, merges across the borders of the messages included. The
/// template's own special tokens are parsed; those in message contents only with [`Special::Parse`], so that no
/// message can pretend to be another turn.
///
/// # Errors
/// If the template fails, or if it rewrites contents in such a way that special tokens in them cannot be told
/// from its own.
pub fn encode_chat(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    messages: &[Message],
    add_generation_prompt: bool,
    content: Special,
) -> Result<Vec<u32>, TextError> {
    let text = template.render(messages, add_generation_prompt)?;
    if content == Special::Parse {
        return Ok(tokenizer.encode(&text, Special::Parse));
    }
    let Some(contents) = content_ranges(template, messages, add_generation_prompt, &text) else {
        return match messages.iter().find_map(|message| tokenizer.special_in(&message.content)) {
            Some(token) => Err(TextError::SpecialInContent { token: token.into() }),
            None => Ok(tokenizer.encode(&text, Special::Parse)),
        };
    };
    Ok(tokenizer.encode_where(&text, |found| judge(&text, &contents, found)))
}

/// A special token is one where it does not touch what a message says.
fn judge(text: &str, contents: &[Range<usize>], found: Range<usize>) -> Verdict {
    let index = contents.partition_point(|content| content.end <= found.start);
    match contents.get(index) {
        Some(content) if content.start < found.end => {
            if content.start <= found.start && found.end <= content.end {
                Verdict::TextUntil(found.end)
            } else {
                // It reaches into the template, whose own tokens may begin inside.
                let first = text[found.start..].chars().next().map_or(1, char::len_utf8);
                Verdict::TextUntil(found.start + first)
            }
        }
        _ => Verdict::Token,
    }
}

/// Where in the rendered text the messages' contents stand, without white space around them; nothing if the
/// template does more with contents than to place and trim them.
///
/// The conversation is rendered once more with a mark before and one behind what each message says, inside its
/// outer white space, so that trimming does the same. If the text without the marks is the same as before, the
/// marks tell the places.
fn content_ranges(
    template: &ChatTemplate,
    messages: &[Message],
    add_generation_prompt: bool,
    text: &str,
) -> Option<Vec<Range<usize>>> {
    let (start, end) = unused_characters(text, messages)?;
    let mark = |message: &Message| {
        let core = python::trim(&message.content);
        let at = message.content.len() - message.content.trim_start_matches(python::is_space).len();
        let (before, after) = (&message.content[..at], &message.content[at + core.len()..]);
        let content =
            if core.is_empty() { message.content.clone() } else { format!("{before}{start}{core}{end}{after}") };
        Message { role: message.role.clone(), content }
    };
    let marked: Vec<Message> = messages.iter().map(mark).collect();
    let marked = template.render(&marked, add_generation_prompt).ok()?;
    let mut plain = String::with_capacity(text.len());
    let mut ranges = Vec::new();
    let mut open = None;
    for character in marked.chars() {
        if character == start {
            if open.replace(plain.len()).is_some() {
                return None;
            }
        } else if character == end {
            ranges.push(open.take()?..plain.len());
        } else {
            plain.push(character);
        }
    }
    (open.is_none() && plain == text).then_some(ranges)
}

/// Two characters of the private use areas that are in none of the texts.
fn unused_characters(text: &str, messages: &[Message]) -> Option<(char, char)> {
    let is_private = |character: &char| matches!(character, '\u{E000}'..='\u{F8FF}' | '\u{F0000}'..='\u{FFFFD}');
    let texts = messages.iter().map(|message| message.content.as_str()).chain([text]);
    let used: HashSet<char> = texts.flat_map(str::chars).filter(is_private).collect();
    let mut unused = ('\u{E000}'..='\u{F8FF}').chain('\u{F0000}'..='\u{FFFFD}').filter(|c| !used.contains(c));
    Some((unused.next()?, unused.next()?))
}
