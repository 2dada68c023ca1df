//! What documents point at is there.

use std::path::Path;

use super::File;
use crate::Problem;

/// The links of a Markdown file that lead to no file, and the paths below `crates/` that it names though they do not
/// exist. A path with a part in capitals (`crates/backend-NAME`) is a pattern.
pub(super) fn dead_paths(root: &Path, file: File<'_>) -> Vec<Problem> {
    if file.extension() != "md" {
        return Vec::new();
    }
    let folder = root.join(file.path).parent().map(Path::to_path_buf).unwrap_or_default();
    let mut problems = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        let links = links(line).filter(|link| !folder.join(link).exists());
        let paths = crate_paths(line).filter(|path| !root.join(path).exists());
        problems.extend(links.chain(paths).map(|path| Problem {
            path: file.path.into(),
            line: index + 1,
            message: format!("`{path}` does not exist"),
        }));
    }
    problems
}

/// The targets of `[text](target)` that are files, without their fragments.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let files = targets.filter(|target| !target.contains("://") && !target.starts_with('#'));
    files.filter_map(|target| target.split('#').next())
}

/// Code spans that are paths below `crates/`.
fn crate_paths(line: &str) -> impl Iterator<Item = &str> {
    let spans = line.split('`').skip(1).step_by(2);
    let is_pattern = |span: &str| {
        let name = |part: &str| part.len() > 1 && part.chars().all(|c| c.is_ascii_uppercase());
        span.split(['/', '-', '.', '_']).any(name) || span.contains(['…', '*', '{', ' '])
    };
    spans.filter(move |span| span.starts_with("crates/") && !is_pattern(span))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_links_and_paths() {
        let line = "see [a](b.md#c), [d](https://e) and [f](#g), `crates/x/y.rs`, `crates/x-NAME/z.rs` or `z`";
        assert_eq!(links(line).collect::<Vec<_>>(), ["b.md"]);
        assert_eq!(crate_paths(line).collect::<Vec<_>>(), ["crates/x/y.rs"]);
    }

    #[test]
    fn reports_what_is_not_there() {
        let text = "[here](README.md)\n[gone](GONE.md)\n`crates/xtask/src/lib.rs` `crates/gone`\n";
        let problems = dead_paths(&crate::root(), File { path: "a.md", text });
        let found: Vec<_> = problems.iter().map(|problem| (problem.line, problem.message.as_str())).collect();
        assert_eq!(found, [(2, "`GONE.md` does not exist"), (3, "`crates/gone` does not exist")]);
    }
}
