//! Every dependency's licence lets people use the program under MIT or Apache-2.0.

use crate::Problem;
use crate::metadata::Package;

/// Licences that ask for no more than a notice.
const ALLOWED: [&str; 14] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "NCSA",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "Unlicense",
    "Zlib",
];

/// The dependencies whose licence is missing or not allowed.
pub fn check(packages: &[Package]) -> Vec<Problem> {
    let theirs = packages.iter().filter(|package| !package.ours);
    let problems = theirs.filter_map(|package| {
        let found = match &package.licence {
            Some(expression) if is_allowed(expression) => return None,
            Some(expression) => format!("licence `{expression}`, expected one of: {}", ALLOWED.join(", ")),
            None => "no licence in its manifest".into(),
        };
        Some(Problem::of_file("Cargo.lock", format!("{} {}: {found}", package.name, package.version)))
    });
    problems.collect()
}

/// Whether an SPDX expression can be satisfied with allowed licences. `/` is the old way to write `OR`. `AND` binds
/// more strongly; parentheses may nest.
pub fn is_allowed(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ").replace(" WITH ", "\u{1}");
    let words: Vec<String> = spaced.split_whitespace().map(|word| word.replace('\u{1}', " WITH ")).collect();
    let mut rest = words.as_slice();
    let allowed = any_of(&mut rest);
    rest.is_empty() && allowed
}

fn any_of(rest: &mut &[String]) -> bool {
    let mut allowed = all_of(rest);
    while take(rest, "OR") {
        allowed |= all_of(rest);
    }
    allowed
}

fn all_of(rest: &mut &[String]) -> bool {
    let mut allowed = one(rest);
    while take(rest, "AND") {
        allowed &= one(rest);
    }
    allowed
}

fn one(rest: &mut &[String]) -> bool {
    if take(rest, "(") {
        let allowed = any_of(rest);
        return take(rest, ")") && allowed;
    }
    match rest.split_first() {
        Some((name, behind)) => {
            *rest = behind;
            ALLOWED.contains(&name.as_str())
        }
        None => false,
    }
}

fn take(rest: &mut &[String], word: &str) -> bool {
    match rest.split_first() {
        Some((first, behind)) if first == word => {
            *rest = behind;
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        let check = |expression: &str, expected: bool| assert_eq!(is_allowed(expression), expected, "{expression}");
        check("MIT", true);
        check("GPL-3.0-only", false);
        check("MIT OR GPL-3.0-only", true);
        check("MIT AND GPL-3.0-only", false);
        check("Unlicense/MIT", true);
        check("(MIT OR Apache-2.0) AND Unicode-3.0", true);
        check("(MIT OR Apache-2.0) AND MPL-2.0", false);
        check("Apache-2.0 WITH LLVM-exception OR MPL-2.0", true);
        check("GPL-2.0 WITH Classpath-exception-2.0", false);
        check("", false);
        check("(MIT", false);
        check("MIT MIT", false);
    }
}
