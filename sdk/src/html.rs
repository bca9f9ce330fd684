//! Text into HTML, safely.
//!
//! ```
//! use pulse_notifier_sdk::html;
//!
//! assert_eq!(html::escape("<b>&"), "&lt;b&gt;&amp;");
//! assert_eq!(html::fill("<p>{{ name }}</p>", &[("name", "a < b")]), "<p>a &lt; b</p>");
//! ```

use std::fmt::Write;

/// The text with every character that means something in HTML replaced by its entity.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// A link that shows its own address; a text that is no web address stays text.
#[must_use]
pub fn link(url: &str) -> String {
    let url_escaped = escape(url);
    if url.starts_with("https://") || url.starts_with("http://") {
        format!("<a href=\"{url_escaped}\">{url_escaped}</a>")
    } else {
        url_escaped
    }
}

/// A template with each `{{ name }}` replaced by its value, escaped; names it does not know stay as they are.
///
/// A value for a name that begins with `html:` is put in as it stands: `("html:logs", …)` fills `{{ logs }}`.
#[must_use]
pub fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut filled = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        filled.push_str(before);
        let Some((name, after_name)) = after.split_once("}}") else {
            filled.push_str("{{");
            rest = after;
            continue;
        };
        match values.iter().find(|(known, _)| known.strip_prefix("html:").unwrap_or(known) == name.trim()) {
            Some((known, value)) if known.starts_with("html:") => filled.push_str(value),
            Some((_, value)) => filled.push_str(&escape(value)),
            None => _ = write!(filled, "{{{{{name}}}}}"),
        }
        rest = after_name;
    }
    filled.push_str(rest);
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_escaped_and_not_filled_again() {
        assert_eq!(fill("{{a}}{{ b }}", &[("a", "{{ b }}<"), ("b", "x")]), "{{ b }}&lt;x");
    }

    #[test]
    fn unknown_names_and_open_braces_stay() {
        assert_eq!(fill("{{ what }} {{ open", &[("a", "x")]), "{{ what }} {{ open");
    }

    #[test]
    fn only_web_addresses_become_links() {
        assert_eq!(link("javascript:alert(1)"), "javascript:alert(1)");
        assert_eq!(link("https://x/?a&b"), "<a href=\"https://x/?a&amp;b\">https://x/?a&amp;b</a>");
    }
}
