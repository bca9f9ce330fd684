//! Addresses that plugins name themselves, and the patterns that say which they may.

use std::fmt;

use url::Url;

use crate::grant::{Pattern, Refusal, shown};

/// Addresses of the web. Host, path and query are matched each for itself, so that none can pass for another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlPattern {
    text: String,
    scheme: String,
    host: Pattern,
    port: Option<u16>,
    /// The steps of the path.
    path: Vec<Pattern>,
    /// What the query may be, if there may be one.
    query: Option<Pattern>,
}

impl UrlPattern {
    /// The pattern this text is: `https://hooks.example.com/builds/*`, a host without a path for all there is on it, `*`
    /// for every `https` address on the usual port. Within a path, `*` stands for one step or a part of one; at its end,
    /// for all there is, with whatever query.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let whole = if text == "*" { "https://*" } else { text };
        let url = address(whole).ok()?;
        let (_, rest) = whole.split_once("://")?;
        let path = if rest.contains(['/', '?']) { url.path() } else { "/*" };
        let of_query = |query| Pattern::to_the_letter(query);
        Some(Self {
            text: text.to_owned(),
            scheme: url.scheme().to_owned(),
            host: Pattern::new(url.host_str()?),
            port: url.port_or_known_default(),
            path: path.split('/').map(Pattern::to_the_letter).collect(),
            query: url.query().map(of_query).or_else(|| path.ends_with('*').then(|| of_query("*"))),
        })
    }

    pub(super) fn matches(&self, url: &Url) -> bool {
        url.scheme() == self.scheme
            && url.port_or_known_default() == self.port
            && url.host_str().is_some_and(|host| self.host.matches(host))
            && self.is_path(url.path())
            && match (&self.query, url.query()) {
                (None, found) => found.is_none(),
                // What is not there is not what was granted, either.
                (Some(query), found) => query.matches(found.unwrap_or_default()),
            }
    }

    fn is_path(&self, path: &str) -> bool {
        let Some((last, steps)) = self.path.split_last() else { return false };
        let mut found = path.splitn(self.path.len(), '/');
        steps.iter().all(|step| found.next().is_some_and(|found| step.matches(found)))
            && found.next().is_some_and(|rest| {
                let step = rest.split('/').next().unwrap_or_default();
                last.matches(step) && (last.is_open() || step == rest)
            })
    }

    /// Whether it leaves the host open.
    #[must_use]
    pub fn is_any_host(&self) -> bool {
        self.host == Pattern::new("*")
    }
}

impl fmt::Display for UrlPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The address this text is, as everybody who reads it will understand it.
pub(super) fn address(text: &str) -> Result<Url, Refusal> {
    let invalid = |what: &str| Refusal::Invalid(format!("expected {what}, found {}", shown(text)));
    // What a URL parser mends, another one may mend otherwise.
    if text.len() > URL_BYTES_MAX || !text.bytes().all(|b| b.is_ascii_graphic() && b != b'\\') {
        return Err(invalid("an address of at most 2048 printable ASCII characters, without \\"));
    }
    let url = Url::parse(text).map_err(|_| invalid("an address such as https://hooks.example.com/builds"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(invalid("an https address"));
    }
    if !url.username().is_empty() || url.password().is_some() || text.contains('@') || url.fragment().is_some() {
        return Err(invalid("an address without user, password, @ and fragment"));
    }
    // Whether this is a separator is a question of who reads it.
    let path = url.path().to_ascii_lowercase();
    if ["%2f", "%5c", "%0", "%1", "%7f"].iter().any(|code| path.contains(code)) {
        return Err(invalid("an address without encoded slashes and control characters in its path"));
    }
    // Some receivers cut off what follows, and then it is a step up.
    let steps = path.replace("%3b", ";").replace("%2e", ".");
    if steps.split('/').any(|step| step.starts_with(".;") || step.starts_with("..;")) {
        return Err(invalid("an address without steps up in its path"));
    }
    Ok(url)
}

const URL_BYTES_MAX: usize = 2 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_an_address_or_everything() {
        for text in ["", "hooks.example.com", "**", "https://", "https://a@b", "ftp://a/*", "https://a/b c", "*/*"] {
            assert_eq!(UrlPattern::new(text), None, "{text}");
        }
        let matches = |pattern: &str, url: &str| UrlPattern::new(pattern).unwrap().matches(&url.parse().unwrap());
        assert!(UrlPattern::new("*").unwrap().is_any_host());
        assert!(matches("*", "https://anything.example.com/at/all"));
        assert!(!matches("*", "http://anything.example.com/at/all"));
        assert!(!matches("*", "https://anything.example.com:22/"));
        assert!(matches("https://[::1]:8443/", "https://[::1]:8443/"));
        assert!(!matches("https://a.example.com/", "https://a.example.com/b"));
    }

    #[test]
    fn what_stands_for_a_step_is_one_and_a_query_is_no_path() {
        let matches = |pattern: &str, url: &str| UrlPattern::new(pattern).unwrap().matches(&url.parse().unwrap());
        let step = "https://a.example.com/rooms/*/notify";
        for (pattern, url, expected) in [
            (step, "https://a.example.com/rooms/7/notify", true),
            (step, "https://a.example.com/rooms/7/delete?/notify", false),
            (step, "https://a.example.com/rooms/7/members/notify", false),
            (step, "https://a.example.com/rooms/7/notify/more", false),
            (step, "https://a.example.com/rooms/7/notify?a=b", false),
            (step, "https://a.example.com/rooms//notify", true),
            ("https://a.example.com/b-*", "https://a.example.com/b-1/c?d", true),
            ("https://a.example.com/b/*", "https://a.example.com/b", false),
            ("https://a.example.com/*b", "https://a.example.com/c/b", false),
            ("https://a.example.com/*b", "https://a.example.com/cb", true),
            ("https://a.example.com/b?c=*", "https://a.example.com/b?c=d/e", true),
            ("https://a.example.com/b?c=*", "https://a.example.com/b/d?c=1", false),
            ("https://a.example.com/b?c=*", "https://a.example.com/b", false),
            ("https://a.example.com/run?dry=1", "https://a.example.com/run", false),
            ("https://a.example.com/b*", "https://a.example.com/b", true),
            ("https://a.example.com/a-*-b*", "https://a.example.com/a-x/c/y-b", false),
            ("https://a.example.com/a-*-b*", "https://a.example.com/a-x-b/c", true),
            ("https://a.example.com?c", "https://a.example.com/?d", false),
        ] {
            assert_eq!(matches(pattern, url), expected, "{pattern} {url}");
        }
    }
}
