//! The part of a document that a program writes.

use anyhow::{Result, ensure};

const BEGIN: &str = "<!-- cargo xtask bench peers: begin -->";
const END: &str = "<!-- cargo xtask bench peers: end -->";

/// Puts a table between the two comments, in place of what is there.
///
/// # Errors
/// A document that has not both of them once, in order.
pub(super) fn renew(document: &str, table: &str) -> Result<String> {
    let one = |mark: &str| document.matches(mark).count() == 1;
    let parts = document.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let parts = parts.filter(|_| one(BEGIN) && one(END));
    ensure!(parts.is_some(), "expected `{BEGIN}` and, after it, `{END}`, once each");
    let (before, after) = parts.unwrap_or_default();
    Ok(format!("{before}{BEGIN}\n{}\n{END}{after}", table.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_comments_changes() {
        let document = format!("a\n\n{BEGIN}\nold\nlines\n{END}\n\nb\n");
        let renewed = renew(&document, "| new |\n").unwrap();
        assert_eq!(renewed, format!("a\n\n{BEGIN}\n| new |\n{END}\n\nb\n"));
        assert_eq!(renew(&renewed, "| new |\n").unwrap(), renewed);
    }

    #[test]
    fn documents_without_them_stay() {
        for document in ["", BEGIN, &format!("{END}{BEGIN}"), &format!("{BEGIN}{END}{BEGIN}{END}")] {
            assert!(renew(document, "new").is_err(), "{document}");
        }
    }
}
