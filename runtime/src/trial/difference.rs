//! Where a JSON value is not what was expected, in words for people. Pure.

use std::fmt;

use serde_json::Value;

/// One place where what came is not what was expected.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference {
    place: String,
    expected: Vec<String>,
    found: Vec<String>,
}

impl Difference {
    /// All of them, in the order of the values.
    pub(super) fn between(expected: &Value, found: &Value) -> Vec<Self> {
        let mut differences = Vec::new();
        compare("", expected, found, &mut differences);
        differences
    }

    fn at<'a>(
        place: String,
        expected: impl IntoIterator<Item = &'a Value>,
        found: impl IntoIterator<Item = &'a Value>,
    ) -> Self {
        let texts = |values: Vec<&Value>| values.into_iter().map(|value| format!("{value:#}")).collect();
        Self { place, expected: texts(expected.into_iter().collect()), found: texts(found.into_iter().collect()) }
    }
}

/// The place, then what was expected after `-` and what came after `+`, line by line.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place)?;
        for (sign, values) in [('-', &self.expected), ('+', &self.found)] {
            for line in values.iter().flat_map(|value| value.lines()) {
                write!(f, "\n  {sign} {line}")?;
            }
        }
        Ok(())
    }
}

fn compare(place: &str, expected: &Value, found: &Value, differences: &mut Vec<Difference>) {
    match (expected, found) {
        _ if expected == found => {}
        (Value::Object(expected), Value::Object(found)) => {
            let added = found.keys().filter(|name| !expected.contains_key(*name));
            for name in expected.keys().chain(added) {
                let place = if place.is_empty() { name.clone() } else { format!("{place}.{name}") };
                match (expected.get(name), found.get(name)) {
                    (Some(expected), Some(found)) => compare(&place, expected, found, differences),
                    (expected, found) => differences.push(Difference::at(place, expected, found)),
                }
            }
        }
        (Value::Array(expected), Value::Array(found)) => compare_lists(place, expected, found, differences),
        (expected, found) => differences.push(Difference::at(place.to_owned(), [expected], [found])),
    }
}

/// Lists of the same length differ element by element, others by what stands between what they have in common.
fn compare_lists(place: &str, expected: &[Value], found: &[Value], differences: &mut Vec<Difference>) {
    if expected.len() == found.len() {
        for (index, (expected, found)) in expected.iter().zip(found).enumerate() {
            compare(&format!("{place}[{index}]"), expected, found, differences);
        }
        return;
    }
    let equal = |(one, other): &(&Value, &Value)| one == other;
    let before = expected.iter().zip(found).take_while(equal).count();
    let rest = expected.len().min(found.len()) - before;
    let after = expected.iter().rev().zip(found.iter().rev()).take(rest).take_while(equal).count();
    let between = |list: &[Value]| list.iter().take(list.len() - after).skip(before).cloned().collect::<Vec<_>>();
    let place = format!("{place}[{before}…]");
    differences.push(Difference::at(place, &between(expected), &between(found)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn differences(expected: Value, found: Value) -> Vec<String> {
        Difference::between(&expected, &found).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_same_does_not_differ() {
        let value = json!([{"ending": "done", "effects": [{"text": ["a", "b"]}]}]);
        assert_eq!(differences(value.clone(), value), Vec::<String>::new());
    }

    #[test]
    fn a_difference_says_where_and_what() {
        let expected = json!([{"ending": "done", "effects": [{"subject": "a", "text": ["1", "2", "3"]}]}]);
        let found = json!([{"ending": "done", "effects": [{"subject": "b", "text": ["1", "2", "three"]}]}]);
        assert_eq!(
            differences(expected, found),
            ["[0].effects[0].subject\n  - \"a\"\n  + \"b\"", "[0].effects[0].text[2]\n  - \"3\"\n  + \"three\""]
        );
    }

    #[test]
    fn a_line_too_many_or_too_few_is_the_only_difference() {
        assert_eq!(differences(json!(["1", "2", "3"]), json!(["1", "3"])), ["[1…]\n  - \"2\""]);
        assert_eq!(differences(json!(["1", "3"]), json!(["1", "2", "3"])), ["[1…]\n  + \"2\""]);
        assert_eq!(differences(json!(["x", "x"]), json!(["x"])), ["[1…]\n  - \"x\""]);
    }

    #[test]
    fn a_field_that_came_or_went_is_a_difference() {
        assert_eq!(
            differences(json!({"reason": "r"}), json!({"refused": "f"})),
            ["reason\n  - \"r\"", "refused\n  + \"f\""]
        );
        assert_eq!(differences(json!({"text": ["1", "2"]}), json!({"text": "1"})).len(), 1);
    }
}
