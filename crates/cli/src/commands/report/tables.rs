//! Tables, as data, as Markdown and as HTML.

use super::input::{Energy, Evaluation, Input, benches, evaluations};
use crate::output;
use crate::plot::number;

/// A table whose first columns are text and whose others are numbers.
pub(super) struct Table {
    title: &'static str,
    /// How many columns are text.
    texts: usize,
    headers: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// A score's name, and what it says of a model; empty where that is not known.
type Column<'a> = (String, Box<dyn Fn(&Evaluation) -> String + 'a>);

impl Table {
    /// Columns in which nothing is known are left out.
    fn new(title: &'static str, texts: usize, headers: Vec<String>, rows: Vec<Vec<String>>) -> Option<Table> {
        let known: Vec<bool> =
            (0..headers.len()).map(|column| rows.iter().any(|row| !row[column].is_empty())).collect();
        let keep = |cells: Vec<String>| -> Vec<String> {
            cells.into_iter().zip(&known).filter(|(_, known)| **known).map(|(cell, _)| cell).collect()
        };
        let rows: Vec<Vec<String>> = rows.into_iter().map(&keep).collect();
        let texts = known[..texts].iter().filter(|known| **known).count();
        (!rows.is_empty()).then(|| Table { title, texts, headers: keep(headers), rows })
    }

    fn markdown(&self) -> String {
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|").replace('\n', " ")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let numbers = self.headers.len() - self.texts;
        let rule = format!("|{}{}\n", "---|".repeat(self.texts), "---:|".repeat(numbers));
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!("## {}\n\n{}{rule}{rows}", self.title, line(&self.headers))
    }

    /// `escape` makes text safe.
    pub(super) fn html(&self, escape: &dyn Fn(&str) -> String) -> String {
        let cells = |tag: &str, row: &[String]| -> String {
            let class = |column: usize| if column < self.texts { " class=\"text\"" } else { "" };
            let cell = |(column, cell): (usize, &String)| format!("<{tag}{}>{}</{tag}>", class(column), escape(cell));
            row.iter().enumerate().map(cell).collect()
        };
        let rows: String = self.rows.iter().map(|row| format!("<tr>{}</tr>\n", cells("td", row))).collect();
        format!(
            "<h2>{}</h2>\n<div class=\"wide\"><table>\n<thead><tr>{}</tr></thead>\n<tbody>\n{rows}</tbody></table>\
             </div>\n",
            escape(self.title),
            cells("th", &self.headers)
        )
    }
}

/// All tables of some measurements.
pub(super) fn all(inputs: &[Input]) -> Vec<Table> {
    [quality(inputs), retained(inputs), speed(inputs)].into_iter().flatten().collect()
}

/// All tables as Markdown.
pub(super) fn markdown(inputs: &[Input]) -> String {
    all(inputs).iter().map(Table::markdown).collect::<Vec<_>>().join("\n")
}

fn percent(share: Option<f64>, decimals: usize) -> String {
    share.map(|share| format!("{:.decimals$} %", 100.0 * share)).unwrap_or_default()
}

fn fixed(value: Option<f64>, decimals: usize) -> String {
    value.map(|value| format!("{value:.decimals$}")).unwrap_or_default()
}

fn with_error(value: Option<f64>, error: Option<f64>, decimals: usize) -> String {
    let error = error.filter(|error| *error > 0.0).map(|error| format!(" ± {error:.decimals$}"));
    fixed(value, decimals) + &error.unwrap_or_default()
}

fn quality(inputs: &[Input]) -> Option<Table> {
    let mut names: Vec<&String> = evaluations(inputs).flat_map(|one| one.text.keys()).collect();
    names.sort();
    names.dedup();
    let mut columns: Vec<Column<'_>> = vec![
        ("against".into(), Box::new(|one| one.against.clone().unwrap_or_default())),
        ("size".into(), Box::new(|one| one.file_bytes.map(output::bytes).unwrap_or_default())),
        ("bits per weight".into(), Box::new(|one| fixed(one.bits_per_weight(), 2))),
        ("quality retained".into(), Box::new(|one| percent(one.verdict.as_ref().and_then(|found| found.retained), 1))),
    ];
    columns.extend(names.into_iter().flat_map(text_columns));
    columns.extend(answer_columns());
    // Models beside each other: there are more scores than models.
    let models: Vec<&Evaluation> = evaluations(inputs).collect();
    let header = std::iter::once(String::new()).chain(models.iter().map(|one| one.label.clone()));
    let row = |(name, cell): &Column<'_>| -> Vec<String> {
        std::iter::once(name.clone()).chain(models.iter().map(|one| cell(one))).collect()
    };
    let rows = columns.iter().map(row).filter(|row| row[1..].iter().any(|cell| !cell.is_empty()));
    let table = Table { title: "Quality", texts: 1, headers: header.collect(), rows: rows.collect() };
    (!models.is_empty()).then_some(table)
}

fn text_columns(name: &String) -> Vec<Column<'_>> {
    let kl = move |one: &Evaluation, cell: &dyn Fn(&super::input::Kl) -> String| {
        one.text.get(name).and_then(|text| text.kl.as_ref()).map(cell).unwrap_or_default()
    };
    vec![
        (
            format!("{name}: perplexity"),
            Box::new(move |one| {
                one.text.get(name).map(|text| with_error(text.perplexity, text.perplexity_error, 2)).unwrap_or_default()
            }),
        ),
        (
            format!("{name}: perplexity of the original"),
            Box::new(move |one| one.text.get(name).map(|text| fixed(text.original_perplexity, 2)).unwrap_or_default()),
        ),
        (
            format!("{name}: KL divergence, mean, nats"),
            Box::new(move |one| kl(one, &|found| with_error(found.mean, found.mean_error, 4))),
        ),
        (format!("{name}: KL divergence, 99 %, nats"), Box::new(move |one| kl(one, &|found| fixed(found.p99, 3)))),
        (
            format!("{name}: same top token"),
            Box::new(move |one| one.text.get(name).map(|text| percent(text.same_top, 1)).unwrap_or_default()),
        ),
    ]
}

fn answer_columns() -> Vec<Column<'static>> {
    let of = |one: &Evaluation, cell: &dyn Fn(&super::input::Instructions) -> String| {
        one.instructions.as_ref().map(cell).unwrap_or_default()
    };
    vec![
        (
            "instructions answered rightly".into(),
            Box::new(move |one| of(one, &|found| format!("{} of {}", found.passed, found.total))),
        ),
        (
            "instructions, the original".into(),
            Box::new(move |one| {
                of(one, &|found| found.original.as_ref().map(|found| found.passed.to_string()).unwrap_or_default())
            }),
        ),
        (
            "BLEU against expected answers".into(),
            Box::new(move |one| of(one, &|found| fixed(found.bleu_of_expected_answers, 2))),
        ),
        (
            "BLEU against the original's answers".into(),
            Box::new(move |one| of(one, &|found| fixed(found.bleu_of_original_answers, 2))),
        ),
        (
            "4-grams repeated in answers".into(),
            Box::new(move |one| of(one, &|found| percent(found.coherence.repetition, 1))),
        ),
        (
            "distinct pairs of words".into(),
            Box::new(move |one| of(one, &|found| percent(found.coherence.distinct_2, 1))),
        ),
        (
            "answers that did not stop".into(),
            Box::new(move |one| of(one, &|found| percent(found.coherence.not_stopped, 1))),
        ),
        ("multiple choice".into(), Box::new(|one| percent(one.choices.as_ref().and_then(|found| found.accuracy), 1))),
        (
            "multiple choice, by length".into(),
            Box::new(|one| percent(one.choices.as_ref().and_then(|found| found.accuracy_normalized), 1)),
        ),
        (
            "multiple choice, by chance".into(),
            Box::new(|one| percent(one.choices.as_ref().and_then(|found| found.chance), 1)),
        ),
        (
            "multiple choice, the original".into(),
            Box::new(|one| percent(one.choices.as_ref().and_then(|found| found.original.as_ref()?.accuracy), 1)),
        ),
    ]
}

/// What is retained, score by score.
fn retained(inputs: &[Input]) -> Option<Table> {
    let headers = ["model", "score", "retained", "the worst"].map(Into::into).into();
    let rows = evaluations(inputs).flat_map(|one| {
        let verdict = one.verdict.as_ref();
        verdict.into_iter().flat_map(move |verdict| {
            verdict.scores.iter().map(move |score| {
                let error = score.retained_error.map(|error| 100.0 * error);
                let value = with_error(score.retained.map(|retained| 100.0 * retained), error, 1);
                let is_worst = verdict.worst.as_ref() == Some(&score.score);
                let mark = if is_worst { "decides" } else { "" };
                vec![one.label.clone(), score.score.clone(), format!("{value} %"), mark.into()]
            })
        })
    });
    Table::new("What is retained of the original's quality, score by score", 2, headers, rows.collect())
}

fn speed(inputs: &[Input]) -> Option<Table> {
    let headers = [
        "model",
        "device",
        "test",
        "threads",
        "tokens",
        "in the cache before",
        "conversations",
        "tokens/s",
        "slowest to fastest",
        "share of memory's speed",
        "J per token",
        "W",
        "energy of",
    ];
    let rows = benches(inputs).flat_map(|bench| {
        bench.results.iter().map(|one| {
            let rate = &one.tokens_per_second;
            let digits = |value: f64| number(value, value / 100.0);
            let energy = |cell: &dyn Fn(&Energy) -> String| one.energy.first().map(cell).unwrap_or_default();
            vec![
                bench.model.clone(),
                bench.device.clone().unwrap_or_default(),
                one.test.clone(),
                one.threads.map(|threads| threads.to_string()).unwrap_or_default(),
                one.tokens.to_string(),
                one.depth.to_string(),
                one.sequences.to_string(),
                digits(rate.median),
                format!("{} to {}", digits(rate.slowest), digits(rate.fastest)),
                percent(one.share_of_memory_bandwidth, 0),
                energy(&|energy| digits(energy.joules_per_token)),
                energy(&|energy| digits(energy.watts)),
                energy(&|energy| energy.counter.clone()),
            ]
        })
    });
    Table::new("Speed", 3, headers.map(Into::into).into(), rows.collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_without_values_are_left_out() {
        let text = json!({ "t": { "perplexity": 4.5 } });
        let value = json!({ "model": "a|b", "file_bytes": 1_000_000, "parameters": 2_000_000, "text": text });
        let text = markdown(&[Input::new("f", value).unwrap()]);
        let lines = "| size | 1.0 MB |\n| bits per weight | 4.00 |\n| t: perplexity | 4.50 |\n";
        assert_eq!(text, format!("## Quality\n\n|  | a\\|b |\n|---|---:|\n{lines}"));
    }
}
