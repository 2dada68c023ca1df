//! Rust source, read just closely enough to measure it: comments and literals blanked out, functions and test
//! modules found by their braces.

use std::ops::RangeInclusive;

/// A function with a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name; of a function that a macro writes, the macro's variable.
    pub name: String,
    /// Lines from `fn` to the closing brace, counted from 1.
    pub lines: RangeInclusive<usize>,
}

impl Function {
    /// Number of lines, from `fn` to the closing brace.
    pub fn length(&self) -> usize {
        self.lines.end() - self.lines.start() + 1
    }
}

/// The source with every comment and every string, byte and character literal turned to spaces, byte for byte, lines
/// kept: what is left of `fn`, braces and names is code.
pub fn mask(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut masked = Vec::with_capacity(bytes.len());
    while masked.len() < bytes.len() {
        let start = masked.len();
        let end = literal_end(bytes, start);
        if end > start {
            masked.extend(bytes[start..end].iter().map(|&byte| if byte == b'\n' { b'\n' } else { b' ' }));
        } else {
            masked.push(bytes[start]);
        }
    }
    String::from_utf8(masked).unwrap_or_default()
}

/// The end of the comment or literal that begins at `at`; `at` itself if none does.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let follows_a_name = at > 0 && is_name(bytes[at - 1]);
    match rest[0] {
        b'/' if rest.starts_with(b"//") => at + rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len()),
        b'/' if rest.starts_with(b"/*") => at + block_comment_len(rest),
        b'"' => at + quoted_len(rest, b'"'),
        b'\'' => at + character_len(rest),
        b'r' | b'b' | b'c' if !follows_a_name => at + prefixed_literal_len(rest),
        _ => at,
    }
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// Length of a block comment; they nest.
fn block_comment_len(rest: &[u8]) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// Length of a literal with escapes, its quotes included.
fn quoted_len(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Length of a character literal; 0 for a lifetime.
fn character_len(rest: &[u8]) -> usize {
    if rest.get(1) == Some(&b'\\') {
        return quoted_len(rest, b'\'');
    }
    let text = String::from_utf8_lossy(&rest[1..rest.len().min(6)]);
    let first = text.chars().next().map_or(0, char::len_utf8);
    if first > 0 && rest.get(1 + first) == Some(&b'\'') { first + 2 } else { 0 }
}

/// Length of `b"…"`, `c"…"`, `b'…'`, `r"…"`, `r#"…"#`, `br#"…"#`; 0 if `rest` begins with a name instead.
fn prefixed_literal_len(rest: &[u8]) -> usize {
    let letters = rest.iter().take_while(|byte| byte.is_ascii_lowercase()).count();
    let hashes = rest[letters..].iter().take_while(|&&byte| byte == b'#').count();
    let open = letters + hashes;
    let raw = matches!(&rest[..letters], b"r" | b"br" | b"cr");
    match rest.get(open) {
        Some(b'"') if raw => {
            let close: Vec<u8> = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
            let body = &rest[open + 1..];
            let length = body.windows(close.len()).position(|window| window == close);
            length.map_or(rest.len(), |length| open + 1 + length + close.len())
        }
        Some(&quote @ (b'"' | b'\'')) if hashes == 0 && letters == 1 && rest[0] != b'r' => {
            letters + quoted_len(&rest[letters..], quote)
        }
        _ => 0,
    }
}

/// Byte offsets at which `word` stands as a whole word.
pub fn words<'a>(masked: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = masked.as_bytes();
    masked.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let before = at.checked_sub(1).map(|before| bytes[before]);
        let after = bytes.get(at + word.len()).copied();
        !before.is_some_and(is_name) && !after.is_some_and(is_name)
    })
}

/// The line of a byte offset, counted from 1.
pub fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count() + 1
}

/// The offset behind the brace that closes the first one at or after `at`; `None` if a `;` ends the item first.
pub fn body_end(masked: &str, at: usize) -> Option<usize> {
    let bytes = masked.as_bytes();
    let mut nesting = 0_usize;
    let mut open = None;
    for (index, byte) in bytes.iter().enumerate().skip(at) {
        match byte {
            b'(' | b'[' => nesting += 1,
            b')' | b']' => nesting = nesting.saturating_sub(1),
            b';' if nesting == 0 => return None,
            b'{' if nesting == 0 => {
                open = Some(index);
                break;
            }
            _ => {}
        }
    }
    let mut depth = 0_usize;
    for (index, byte) in bytes.iter().enumerate().skip(open?) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return Some(index + 1),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Every function with a body, nested ones too.
pub fn functions(masked: &str) -> Vec<Function> {
    let found = words(masked, "fn").filter_map(|at| {
        let name: String = masked[at + 2..]
            .trim_start()
            .chars()
            .take_while(|&c| c.is_alphanumeric() || c == '_' || c == '$')
            .collect();
        if name.is_empty() {
            return None;
        }
        let end = body_end(masked, at)?;
        Some(Function { name, lines: line_of(masked, at)..=line_of(masked, end) })
    });
    found.collect()
}

/// Lines of the items that are compiled for tests only.
pub fn test_lines(masked: &str) -> Vec<RangeInclusive<usize>> {
    let attribute = "#[cfg(test)]";
    let marks = masked.match_indices(attribute).map(|(at, _)| at);
    let ends = marks.filter_map(|at| Some((at, body_end(masked, at + attribute.len())?)));
    ends.map(|(at, end)| line_of(masked, at)..=line_of(masked, end)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_and_lengths(text: &str) -> Vec<(String, usize)> {
        functions(&mask(text)).into_iter().map(|function| (function.name.clone(), function.length())).collect()
    }

    #[test]
    fn masks_comments_and_literals_and_nothing_else() {
        let check = |text: &str, kept: &[&str]| {
            let masked = mask(text);
            assert_eq!(masked.split_whitespace().collect::<Vec<_>>(), kept, "{text}");
            assert_eq!(masked.len(), text.len(), "{text}");
        };
        check("a // {\nb", &["a", "b"]);
        check("a /* { /* } */ { */ b", &["a", "b"]);
        check(r#"f("{ \" {", x)"#, &["f(", ",", "x)"]);
        check(r##"f(r#"{ " {"#)"##, &["f(", ")"]);
        check("b\"{\" br\"{\" 'x' b'{' '\\'' 'é'", &[]);
        check("f<'a>(&'a", &["f<'a>(&'a"]);
        check("number barb r b", &["number", "barb", "r", "b"]);
        check("r#type", &["r#type"]);
    }

    #[test]
    fn measures_functions_by_their_braces() {
        let text = "fn one() {}\ntrait T {\n    fn none(&self);\n}\nfn three(f: fn(u8)) -> [u8; 3] {\n    \"}\";\n}\n";
        assert_eq!(names_and_lengths(text), [("one".into(), 1), ("three".into(), 3)]);
    }

    #[test]
    fn nested_functions_count_on_their_own() {
        let text = "fn outer() {\n    fn inner() {\n    }\n}\n";
        assert_eq!(names_and_lengths(text), [("outer".into(), 4), ("inner".into(), 2)]);
    }

    #[test]
    fn finds_the_lines_of_test_modules() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n#[cfg(test)]\nmod other;\n";
        assert_eq!(test_lines(&mask(text)), [2..=5]);
    }

    #[test]
    fn an_unclosed_literal_ends_with_the_file() {
        for text in ["\"", "r#\"", "/*", "'\\", "b'", "r", "'"] {
            assert_eq!(mask(text).len(), text.len(), "{text}");
        }
    }
}
