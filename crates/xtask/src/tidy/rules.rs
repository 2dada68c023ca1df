//! One function per kind of rule.

use super::File;
use crate::Problem;
use crate::source::{self, Function};

const COLUMNS_MAX: usize = 120;
const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_GOAL: usize = 500;
const FILE_LINES_MAX: usize = 1_000;
const FILE_BYTES_MAX: usize = 1 << 20;

/// Models are larger than other files: the one that is built into the binary, and the small ones that tests run.
const BUILT_IN_BYTES_MAX: usize = 20_000_000;
const GOLDEN_BYTES_MAX: usize = 8_000_000;

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 5] = ["util", "utils", "helper", "helpers", "misc"];

/// Macros that are for the moment of writing.
const UNFINISHED: [&str; 3] = ["dbg!", "todo!", "unimplemented!"];

/// Folders of one machine; written without slashes so that this file passes its own rule.
const MACHINE_FOLDERS: [&str; 5] = ["work", "tmp", "root", "home", "Users"];

/// Text that people of the project write: not licences, recorded data or lock files.
pub(super) fn is_written_here(file: File<'_>) -> bool {
    let recorded = file.path.split('/').any(|part| matches!(part, "data" | "corpus" | "goldens" | "snapshots"));
    let licence = file.path.starts_with("LICENSE");
    let source = matches!(file.extension(), "rs" | "py" | "sh");
    (source || !recorded) && !licence && file.extension() != "lock"
}

/// Nothing large is committed.
pub(super) fn file_bytes(path: &str, bytes: usize) -> Option<Problem> {
    let limit = match path.rsplit_once('.') {
        Some((name, "safetensors")) if name.starts_with("crates/cli/model/") => BUILT_IN_BYTES_MAX,
        Some((name, "safetensors")) if name.starts_with("goldens/") => GOLDEN_BYTES_MAX,
        _ => FILE_BYTES_MAX,
    };
    (bytes > limit).then(|| Problem::of_file(path, format!("{bytes} bytes, expected at most {limit}")))
}

/// What holds in every text file: columns, the ends of lines, no folder of one machine.
pub(super) fn text(file: File<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    // A paragraph of prose is one line, and JSON is not for people.
    let columns_count = matches!(file.extension(), "rs" | "toml" | "py" | "sh" | "yml" | "comp" | "glsl");
    for (index, line) in file.text.split('\n').enumerate() {
        let mut report = |message: String| problems.push(Problem { path: file.path.into(), line: index + 1, message });
        let columns = line.chars().count();
        if columns_count && columns > COLUMNS_MAX && !line.contains("://") {
            report(format!("{columns} columns, expected at most {COLUMNS_MAX}"));
        }
        if line.ends_with([' ', '\t', '\r']) {
            report("space at the end of the line".into());
        }
        if let Some(folder) = machine_folder(line) {
            report(format!("`/{folder}` is a folder of one machine"));
        }
    }
    if !file.text.is_empty() && !file.text.ends_with('\n') {
        problems.push(Problem::of_file(file.path, "the last line has no end"));
    }
    problems
}

/// The first part of an absolute path in the line, if it is one of [`MACHINE_FOLDERS`].
fn machine_folder(line: &str) -> Option<&'static str> {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '}' | '~' | '$' | '>');
    MACHINE_FOLDERS.into_iter().find(|folder| {
        line.match_indices(&format!("/{folder}")).any(|(at, found)| {
            let before = line[..at].chars().next_back();
            let after = line[at + found.len()..].chars().next();
            !before.is_some_and(is_part) && !after.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'))
        })
    })
}

/// What holds in Rust code: names, finished code, closed matches, features in the binary only.
pub(super) fn rust(file: File<'_>, masked: &str) -> Vec<Problem> {
    let at = |offset: usize, message: String| Problem {
        path: file.path.into(),
        line: source::line_of(masked, offset),
        message,
    };
    let mut problems = Vec::new();
    for part in file.path.split('/').map(|part| part.trim_end_matches(".rs")) {
        if EMPTY_NAMES.contains(&part) {
            problems.push(Problem::of_file(file.path, format!("`{part}` says nothing about what is inside")));
        }
    }
    for offset in source::words(masked, "mod") {
        let name: String = masked[offset + 3..].trim_start().chars().take_while(|c| c.is_alphanumeric()).collect();
        if EMPTY_NAMES.contains(&name.as_str()) {
            problems.push(at(offset, format!("`mod {name}` says nothing about what is inside")));
        }
    }
    for name in UNFINISHED {
        let macro_name = name.trim_end_matches('!');
        let found = source::words(masked, macro_name).filter(|offset| masked[*offset..].starts_with(name));
        problems.extend(found.map(|offset| at(offset, format!("`{name}` is for the moment of writing"))));
    }
    problems.extend(catch_all_arms(masked).map(|offset| at(offset, "`_` arm in a match on an op: name them".into())));
    if !file.path.starts_with("crates/cli/") {
        let features = masked.match_indices("cfg(feature").map(|(offset, _)| offset);
        problems.extend(features.map(|offset| at(offset, "features are for `crates/cli` only".into())));
    }
    problems
}

/// Where a `match op`, `match *op` or `match &op` that names several ops has an arm for all others: a new op must not
/// compile until every such match has been thought about. One that names a single op only asks whether it is that op.
fn catch_all_arms(masked: &str) -> impl Iterator<Item = usize> + '_ {
    source::words(masked, "match").filter_map(|offset| {
        let subject = masked[offset + "match".len()..].trim_start().trim_start_matches(['*', '&']);
        if !subject.strip_prefix("op").is_some_and(|rest| rest.starts_with(" {")) {
            return None;
        }
        let end = source::body_end(masked, offset)?;
        let mut depth = 0_usize;
        let mut line_start = offset;
        let mut named = 0;
        for line in masked[offset..end].split_inclusive('\n') {
            if depth == 1 {
                named += line.matches("Op::").count();
                if named > 1 && line.trim_start().starts_with("_ ") {
                    return Some(line_start);
                }
            }
            depth += line.matches('{').count();
            depth = depth.saturating_sub(line.matches('}').count());
            line_start += line.len();
        }
        None
    })
}

/// Functions are short enough to be read at once.
pub(super) fn function_lengths(file: File<'_>, functions: &[Function]) -> Vec<Problem> {
    let long = functions.iter().filter(|function| function.length() > FUNCTION_LINES_MAX);
    let problem = |function: &Function| Problem {
        path: file.path.into(),
        line: *function.lines.start(),
        message: format!("`{}` has {} lines, expected at most {FUNCTION_LINES_MAX}", function.name, function.length()),
    };
    long.map(problem).collect()
}

/// Files have an end.
pub(super) fn file_length(file: File<'_>, code_lines: usize) -> Option<Problem> {
    (code_lines > FILE_LINES_MAX).then(|| {
        Problem::of_file(file.path, format!("{code_lines} lines without tests, expected at most {FILE_LINES_MAX}"))
    })
}

/// A file that has begun to be two.
pub(super) fn long_file(file: File<'_>, code_lines: usize) -> Option<Problem> {
    (code_lines > FILE_LINES_GOAL && code_lines <= FILE_LINES_MAX).then(|| {
        Problem::of_file(file.path, format!("{code_lines} lines without tests, better at most {FILE_LINES_GOAL}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::{Report, check_text};

    fn problems(path: &str, text: &str) -> Vec<String> {
        let mut report = Report::default();
        check_text(File { path, text }, &mut report);
        report.problems.into_iter().map(|problem| problem.message).collect()
    }

    fn check(path: &str, text: &str, expected: &[&str]) {
        assert_eq!(problems(path, text), expected, "{path}: {text}");
    }

    #[test]
    fn columns_and_ends_of_lines() {
        let wide = |columns: usize| "x".repeat(columns) + "\n";
        check("a.rs", &format!("//{}", wide(118)), &[]);
        check("a.rs", &format!("//{}", wide(119)), &["121 columns, expected at most 120"]);
        check("a.md", &wide(500), &[]);
        check("a.rs", &format!("// https://{}", wide(200)), &[]);
        check("a.md", "a \nb\t\nc\r\n", &["space at the end of the line"; 3]);
        check("a.md", "a", &["the last line has no end"]);
        check("LICENSE-MIT", "a ", &[]);
        check("crates/x/tests/data/a.txt", "a ", &[]);
    }

    #[test]
    fn folders_of_one_machine() {
        for folder in MACHINE_FOLDERS {
            let expected = format!("`/{folder}` is a folder of one machine");
            check("a.md", &format!("see /{folder}/x\n"), &[&expected]);
            check("a.rs", &format!("// `/{folder}`\n"), &[&expected]);
            check("a.py", &format!("open('/{folder}/a')\n"), &[&expected]);
            check("a.md", &format!("a/{folder}/x ../{folder}/x /{folder}er ~/{folder}\n"), &[]);
        }
    }

    #[test]
    fn unfinished_code_and_empty_names() {
        check("a.rs", "fn f() { todo!() } // dbg!\n", &["`todo!` is for the moment of writing"]);
        check("a.rs", "fn f() { my_dbg!(\"todo!\") }\n", &[]);
        check("a.rs", "mod utils;\n", &["`mod utils` says nothing about what is inside"]);
        check("crates/x/src/helpers.rs", "\n", &["`helpers` says nothing about what is inside"]);
        check("a.rs", "mod utilities_of_gemma;\n", &[]);
    }

    #[test]
    fn a_match_on_an_op_names_every_arm() {
        let arm = "`_` arm in a match on an op: name them";
        let matching =
            |ops: &str| format!("fn f() {{\n    match *op {{\n        {ops} => 1,\n        _ => 2,\n    }}\n}}\n");
        check("a.rs", &matching("Op::Add | Op::Rope"), &[arm]);
        check("a.rs", &matching("Op::Add"), &[]);
        check(
            "a.rs",
            "fn f() {\n    match op {\n        Op::Add(_) => match x {\n            _ => 2,\n        },\n    }\n}\n",
            &[],
        );
        check("a.rs", "fn f() {\n    match operand {\n        _ => 2,\n    }\n}\n", &[]);
    }

    #[test]
    fn features_are_for_the_binary() {
        let text = "#[cfg(feature = \"x\")]\nfn f() {}\n";
        check("crates/cli/src/main.rs", text, &[]);
        check("crates/engine/src/lib.rs", text, &["features are for `crates/cli` only"]);
    }

    #[test]
    fn lengths() {
        let function = |lines: usize| format!("fn f() {{\n{}}}\n", "    g();\n".repeat(lines - 2));
        check("a.rs", &function(70), &[]);
        check("a.rs", &function(71), &["`f` has 71 lines, expected at most 70"]);
        check("a.rs", &"\n".repeat(1_000), &[]);
        check("a.rs", &"\n".repeat(1_001), &["1001 lines without tests, expected at most 1000"]);
        check("tests/a.rs", &"\n".repeat(2_000), &[]);
        let tested = format!("fn f() {{}}\n#[cfg(test)]\nmod tests {{\n{}}}\n", "\n".repeat(2_000));
        check("a.rs", &tested, &[]);
    }

    #[test]
    fn large_files() {
        assert!(file_bytes("a.json", 1 << 20).is_none());
        assert!(file_bytes("a.json", (1 << 20) + 1).is_some());
        assert!(file_bytes("crates/cli/model/a/model.safetensors", 20_000_000).is_none());
        assert!(file_bytes("crates/cli/model/a/model.safetensors", 20_000_001).is_some());
        assert!(file_bytes("goldens/a/model.safetensors", 8_000_000).is_none());
        assert!(file_bytes("goldens/a/model.gguf", 8_000_000).is_some());
    }
}
