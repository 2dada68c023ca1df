//! What chat templates expect of Python: methods of strings and maps, `trim`, dates.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Rest, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind};

/// Python's white space: Unicode's, and the four separators U+001C to U+001F.
pub(crate) fn is_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{1c}'..='\u{1f}')
}

/// Python's `str.strip()`.
pub(crate) fn trim(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Jinja's `trim` filter.
pub(crate) fn trim_filter(text: String, characters: Option<String>) -> String {
    strip(&text, characters.as_deref(), true, true).to_string()
}

fn strip<'a>(text: &'a str, characters: Option<&str>, start: bool, end: bool) -> &'a str {
    let matches = |character| characters.map_or_else(|| is_space(character), |set| set.contains(character));
    let text = if start { text.trim_start_matches(matches) } else { text };
    if end { text.trim_end_matches(matches) } else { text }
}

/// A method of a string or a map that Jinja itself does not have.
pub(crate) fn method(value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    match value.as_str() {
        Some(text) => string_method(text, name, arguments),
        None if value.kind() == ValueKind::Map => map_method(value, name, arguments),
        None => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn string_method(text: &str, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    Ok(match name {
        "strip" | "lstrip" | "rstrip" => {
            let (characters,): (Option<&str>,) = from_args(arguments)?;
            Value::from(strip(text, characters, name != "rstrip", name != "lstrip"))
        }
        "startswith" | "endswith" => {
            let (affix,): (&str,) = from_args(arguments)?;
            Value::from(if name == "startswith" { text.starts_with(affix) } else { text.ends_with(affix) })
        }
        "split" => {
            let (separator, most): (Option<&str>, Option<usize>) = from_args(arguments)?;
            let most = most.map_or(usize::MAX, |most| most.saturating_add(1));
            match separator {
                Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
                Some(separator) => text.splitn(most, separator).map(Value::from).collect(),
                None => text.split(is_space).filter(|word| !word.is_empty()).map(Value::from).collect(),
            }
        }
        "replace" => {
            let (old, new): (&str, &str) = from_args(arguments)?;
            Value::from(text.replace(old, new))
        }
        "upper" | "lower" => {
            let (): () = from_args(arguments)?;
            Value::from(if name == "upper" { text.to_uppercase() } else { text.to_lowercase() })
        }
        "find" => {
            let (part,): (&str,) = from_args(arguments)?;
            Value::from(text.find(part).map_or(-1, |at| text[..at].chars().count() as i64))
        }
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

fn map_method(map: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    match name {
        "get" => {
            let (key, Rest(default)): (Value, Rest<Value>) = from_args(arguments)?;
            let found = map.get_item(&key).ok().filter(|value| !value.is_undefined());
            Ok(found.or_else(|| default.first().cloned()).unwrap_or_else(|| Value::from(())))
        }
        "keys" => Ok(map.try_iter()?.collect()),
        "values" => map.try_iter()?.map(|key| map.get_item(&key)).collect(),
        "items" => map.try_iter()?.map(|key| Ok(Value::from(vec![key.clone(), map.get_item(&key)?]))).collect(),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// The time in UTC by the common parts of Python's `strftime`; unknown ones stay as they are.
pub(crate) fn strftime(format: &str, time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |duration| duration.as_secs());
    let (year, month, day) = civil_date(seconds / 86_400);
    let month_name = MONTHS[month as usize - 1];
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        match characters.next() {
            Some('Y') => text += &year.to_string(),
            Some('m') => text += &format!("{month:02}"),
            Some('d') => text += &format!("{day:02}"),
            Some('B') => text += month_name,
            Some('b') => text += &month_name[..3],
            Some('H') => text += &format!("{:02}", seconds / 3600 % 24),
            Some('M') => text += &format!("{:02}", seconds / 60 % 60),
            Some('S') => text += &format!("{:02}", seconds % 60),
            Some('%') => text.push('%'),
            Some(other) => text.extend(['%', other]),
            None => text.push('%'),
        }
    }
    text
}

/// Year, month and day of a day counted from 1970-01-01.
///
/// Years are counted from March, so that the leap day is the last one, in eras of 400 years (146,097 days). See
/// Howard Hinnant, "chrono-compatible low-level date algorithms".
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (days / 146_097 * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates() {
        let at =
            |seconds| strftime("%Y-%m-%d %H:%M:%S, %d %b (%B) 100%% %q%", UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01 00:00:00, 01 Jan (January) 100% %q%");
        assert_eq!(at(951_868_799), "2000-02-29 23:59:59, 29 Feb (February) 100% %q%");
        assert_eq!(at(4_102_444_800), "2100-01-01 00:00:00, 01 Jan (January) 100% %q%");
    }

    #[test]
    fn python_strips_separators() {
        assert_eq!(trim("\u{1c} \u{a0}\u{3000}a b\u{85}\n\u{1f}"), "a b");
        assert_eq!(trim("\u{200b}a"), "\u{200b}a");
    }
}
