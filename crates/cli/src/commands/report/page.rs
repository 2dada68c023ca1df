//! The page: tables and plots in one file that needs nothing else.

use super::input::{Input, evaluations};
use super::tables;
use crate::plot::{Plot, STYLE, escape};

const PAGE_STYLE: &str = "\
:root{color-scheme:light dark}\
body{margin:2rem auto;max-width:72rem;padding:0 1rem;font:15px/1.5 system-ui,-apple-system,'Segoe UI',sans-serif;\
color:#1b1f24;background:#fff}\
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem}\
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
th,td{padding:.3rem .7rem;border-bottom:1px solid #d8dee4;text-align:right;white-space:nowrap}\
th{font-weight:600;vertical-align:bottom;white-space:normal}.text{text-align:left}\
figure{margin:1.5rem 0;border:1px solid #d8dee4;border-radius:6px;overflow:hidden}\
figure svg{display:block;width:100%;height:auto}\
.note{color:#57606a}\
@media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}th,td,figure{border-color:#30363d}\
.note{color:#9aa5b1}}";

/// The page as HTML.
pub(super) fn html(inputs: &[Input], plots: &[Plot]) -> String {
    let tables: String = tables::all(inputs).iter().map(|table| table.html(&escape)).collect();
    let figures: String = plots.iter().map(|plot| format!("<figure>{}</figure>\n", plot.svg(false))).collect();
    let heading = if plots.is_empty() { "" } else { "<h2>Plots</h2>\n" };
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width\">\n<title>{title}</title>\n<link rel=\"icon\" href=\"data:,\">\n\
         <style>{PAGE_STYLE}{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{}{tables}{heading}{figures}</body>\n\
         </html>\n",
        notes(inputs),
        title = "Measurements of Lapidary"
    )
}

/// What a reader has to know to read the numbers.
fn notes(inputs: &[Input]) -> String {
    let mut notes = Vec::new();
    if evaluations(inputs).any(|one| one.verdict.is_some()) {
        notes.push(
            "Quality retained is the worst ratio of a score to the original's: perplexity of each text, instructions \
             answered rightly, BLEU against expected answers, multiple choice above chance. KL divergence, equal top \
             tokens and BLEU against the original's answers do not count."
                .to_owned(),
        );
    }
    let mut protocols: Vec<&String> = evaluations(inputs).filter_map(|one| one.protocol.as_ref()).collect();
    protocols.sort();
    protocols.dedup();
    if protocols.len() > 1 {
        notes.push("The texts were not cut in one way (--protocol): perplexities can't be compared.".into());
    }
    notes.iter().map(|note| format!("<p class=\"note\">{}</p>\n", escape(note))).collect()
}
