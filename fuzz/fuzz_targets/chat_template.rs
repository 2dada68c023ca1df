//! Any text as a chat template: an error, or a text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use text::{ChatTemplate, Message};

fuzz_target!(|text: &str| {
    let Ok(template) = ChatTemplate::from_text(text) else { return };
    let messages = [Message { role: "user".into(), content: "hello".into() }];
    // Templates can refuse messages; they must not panic.
    let _ = template.render(&messages, true);
});
