//! `webhook`: to which receivers posts may be made.

mod address;

use super::{Grant, Pattern, Refusal, is_content_type, not_granted, shown};
use crate::effect::{Effect, Origin, Planned, Receiver, Webhook};
pub use address::UrlPattern;
use address::address;

/// To which receivers posts may be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WebhookGrant {
    /// Those that the plugin knows by a name, and nothing else of them.
    pub endpoints: Vec<Endpoint>,
    /// Those whose addresses it names itself.
    pub urls: Option<UrlGrant>,
}

/// A receiver under the name a plugin calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The name.
    pub name: Pattern,
    /// The account, which has its address.
    pub account: String,
}

/// Which addresses a plugin may name itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlGrant {
    /// The account that posts there.
    pub account: String,
    /// Patterns, of which an address must match one.
    pub patterns: Vec<UrlPattern>,
}

/// A post as a guest asks for it.
#[derive(Clone, Debug)]
pub struct WebhookRequest {
    /// Whom to tell.
    pub to: Receiver,
    /// Its content type.
    pub content_type: String,
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

/// Makes a post an effect.
///
/// # Errors
/// A [`Refusal`] when the receiver is none or not granted, or a part is not well-formed.
pub fn plan(grant: &Grant, origin: &Origin, index: u32, request: WebhookRequest) -> Result<Vec<Planned>, Refusal> {
    let grant = grant.webhook.as_ref().ok_or_else(|| not_granted("webhook"))?;
    let WebhookRequest { to, content_type, headers, body } = request;
    let to = match to {
        Receiver::Url(text) => Receiver::Url(address(&text)?.into()),
        Receiver::Endpoint(name) => Receiver::Endpoint(name),
    };
    let account = grant.account(&to)?.to_owned();
    if !is_content_type(&content_type) {
        let found = shown(&content_type);
        return Err(Refusal::Invalid(format!("expected a content type such as application/json, found {found}")));
    }
    let headers = checked_headers(headers)?;
    let webhook = Webhook { account, to, content_type, headers, body };
    Ok(vec![Planned {
        id: origin.effect(index, webhook.to.name()),
        call: origin.call(index),
        effect: Effect::Webhook(webhook),
        refused: None,
    }])
}

impl WebhookGrant {
    /// The account by which this receiver may be told.
    pub(super) fn account(&self, to: &Receiver) -> Result<&str, Refusal> {
        match to {
            Receiver::Endpoint(name) => {
                let endpoint = self.endpoints.iter().find(|endpoint| endpoint.name.matches(name));
                let endpoint = endpoint.filter(|_| is_endpoint_name(name));
                let refusal = || Refusal::NotGranted(format!("posts to the endpoint {}", shown(name)));
                endpoint.map(|endpoint| endpoint.account.as_str()).ok_or_else(refusal)
            }
            Receiver::Url(text) => {
                let url = address(text)?;
                let urls = self.urls.as_ref().filter(|urls| urls.patterns.iter().any(|pattern| pattern.matches(&url)));
                let refusal = || Refusal::NotGranted(format!("posts to {}", shown(text)));
                urls.map(|urls| urls.account.as_str()).ok_or_else(refusal)
            }
        }
    }
}

/// The names of endpoints: of `A-Z a-z 0-9 - _`, at most 64 of them.
#[must_use]
pub fn is_endpoint_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

fn checked_headers(headers: Vec<(String, String)>) -> Result<Vec<(String, String)>, Refusal> {
    if headers.len() > HEADERS_MAX {
        return Err(Refusal::OverLimit(format!("more than {HEADERS_MAX} headers")));
    }
    let mut checked: Vec<(String, String)> = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        let name = name.to_ascii_lowercase();
        if !is_header_name(&name) {
            return Err(Refusal::Invalid(format!("expected the name of a header, found {}", shown(&name))));
        }
        if is_hosts_own(&name) {
            return Err(Refusal::NotGranted(format!("the header {name}, which is the host's to set")));
        }
        if !is_header_value(&value) {
            return Err(Refusal::Invalid(format!(
                "expected at most {VALUE_BYTES_MAX} printable ASCII characters in the header {name}, found {}",
                shown(&value)
            )));
        }
        if checked.iter().any(|(other, _)| *other == name) {
            return Err(Refusal::Invalid(format!("the header {name} twice")));
        }
        checked.push((name, value));
    }
    Ok(checked)
}

/// Whether this can be the name of a header.
#[must_use]
pub fn is_header_name(text: &str) -> bool {
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_token)
}

/// Whether this can be the value of a header: nothing in it ends a line, and nothing at its ends is lost.
#[must_use]
pub fn is_header_value(text: &str) -> bool {
    text.len() <= VALUE_BYTES_MAX
        && text.bytes().all(|b| b == b' ' || b.is_ascii_graphic())
        && text.trim_matches(' ').len() == text.len()
}

/// Headers that say who sends a request, how it travels, what it really is or what it is a repetition of.
#[must_use]
pub fn is_hosts_own(name: &str) -> bool {
    HOSTS_OWN.contains(&name) || HOSTS_OWN_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

const HOSTS_OWN: [&str; 20] = [
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "cookie2",
    "date",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "idempotency-key",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
    "x-method-override",
];
const HOSTS_OWN_BEGINNINGS: [&str; 8] =
    ["proxy-", "sec-", "x-forwarded", "x-http-method", "x-original-", "x-pulse-notifier-", "x-real-ip", "x-rewrite-"];
const HEADERS_MAX: usize = 32;
const NAME_BYTES_MAX: usize = 64;
const VALUE_BYTES_MAX: usize = 1 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use url::Url;

    use super::*;
    use crate::grant::tests::origin;

    fn grant(patterns: &[&str]) -> Grant {
        let patterns = patterns.iter().map(|text| UrlPattern::new(text).unwrap()).collect();
        let endpoint =
            |name: &str, account: &str| Endpoint { name: Pattern::to_the_letter(name), account: account.into() };
        let webhook = WebhookGrant {
            endpoints: vec![endpoint("alerts", "slack"), endpoint("builds", "matrix")],
            urls: Some(UrlGrant { account: "web".into(), patterns }),
        };
        Grant { webhook: Some(webhook), ..Grant::default() }
    }

    fn send(to: Receiver, headers: &[(&str, &str)]) -> Result<Webhook, Refusal> {
        let grant = grant(&["https://hooks.example.com/builds/*", "https://*.example.org", "http://intranet:8080/a"]);
        let request = WebhookRequest {
            to,
            content_type: "application/json".into(),
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            body: b"{}".to_vec(),
        };
        let planned = plan(&grant, &origin(), 0, request)?;
        let Effect::Webhook(webhook) = planned[0].effect.clone() else { panic!() };
        assert!(grant.allows(&planned[0].effect).is_ok());
        Ok(webhook)
    }

    fn to_endpoint(name: &str) -> Result<Webhook, Refusal> {
        send(Receiver::Endpoint(name.into()), &[])
    }

    fn to_url(url: &str) -> Result<Webhook, Refusal> {
        send(Receiver::Url(url.into()), &[])
    }

    #[test]
    fn an_endpoint_is_told_by_the_account_that_goes_by_its_name() {
        assert_eq!(to_endpoint("alerts").unwrap().account, "slack");
        assert_eq!(to_endpoint("builds").unwrap().account, "matrix");
        for name in ["", "slack", "Alerts", "alerts ", "*", "alerts/../builds", "https://hooks.example.com/builds/1"] {
            assert!(matches!(to_endpoint(name), Err(Refusal::NotGranted(_))), "{name:?}");
        }
    }

    #[test]
    fn addresses_are_told_within_the_grant_only() {
        for (url, understood) in [
            ("https://hooks.example.com/builds/1?a=b", "https://hooks.example.com/builds/1?a=b"),
            ("HTTPS://HOOKS.example.com:443/builds/1", "https://hooks.example.com/builds/1"),
            ("https://hooks.example.com/x/../builds/1", "https://hooks.example.com/builds/1"),
            ("https://a.example.org", "https://a.example.org/"),
            ("https://a.b.example.org/any?thing", "https://a.b.example.org/any?thing"),
            ("http://intranet:8080/a", "http://intranet:8080/a"),
        ] {
            let webhook = to_url(url).unwrap();
            assert_eq!((webhook.account.as_str(), webhook.to.name()), ("web", understood));
        }
        for url in [
            "http://hooks.example.com/builds/1",
            "https://hooks.example.com:8443/builds/1",
            "https://hooks.example.com/other",
            "https://hooks.example.com/builds/../other",
            "https://hooks.example.com/builds/%2e%2e/other",
            "https://example.org/",
            "https://evil.com/.example.org",
            "https://evil.com?.example.org",
            "https://a.example.org.evil.com/",
            "https://aexample.org/",
            "https://hooks.example.com./builds/1",
            "http://intranet:8080/b",
            "https://127.0.0.1/",
        ] {
            assert!(matches!(to_url(url), Err(Refusal::NotGranted(_))), "{url}: {:?}", to_url(url));
        }
    }

    #[test]
    fn what_two_readers_could_understand_in_two_ways_is_refused() {
        for url in [
            "",
            "hooks.example.com",
            "//hooks.example.com/builds/1",
            "ftp://hooks.example.com/builds/1",
            "file:///etc/passwd",
            "data:text/plain,a",
            "https://me:secret@hooks.example.com/builds/1",
            "https://evil.com@hooks.example.com/builds/1",
            "https://hooks.example.com/builds/1#a",
            "https://hooks.example.com\\@evil.com/builds/1",
            "https://hooks.example.com/builds/1\r\nHost: evil.com",
            "https://hooks.example.com/bu\tilds/1",
            "https://hooks.example.com/builds/ 1",
            "https://hooks.example.com/builds/ü",
            "https://hooks.example.com/builds/..%2Fother",
            "https://hooks.example.com/builds/..%5cother",
            "https://hooks.example.com/builds/%00",
            "https://hooks.example.com/builds/..;/other",
            "https://hooks.example.com/builds/..%3Ba/other",
            "https://hooks.example.com/builds/%2e%2E;/other",
            "https://hooks.example.com/builds/.%2e;a/other",
            "https://hooks.example.com/builds/%0d%0aa",
            &format!("https://hooks.example.com/builds/{}", "x".repeat(2048)),
        ] {
            assert!(matches!(to_url(url), Err(Refusal::Invalid(_))), "{url}: {:?}", to_url(url));
        }
    }

    #[test]
    fn a_header_is_one_line_and_not_the_hosts() {
        let to = || Receiver::Endpoint("alerts".into());
        let sent = send(to(), &[("X-Team", "ci"), ("accept", "*/*")]).unwrap();
        assert_eq!(sent.headers, [("x-team".to_owned(), "ci".to_owned()), ("accept".to_owned(), "*/*".to_owned())]);
        for name in [
            "Host",
            "AUTHORIZATION",
            "Content-Length",
            "Content-Type",
            "Transfer-Encoding",
            "Connection",
            "Proxy-Authorization",
            "Cookie",
            "Idempotency-Key",
            "X-Pulse-Notifier-Effect",
            "X-Pulse-Notifier-Signature",
            "X-Forwarded-For",
            "X-HTTP-Method-Override",
            "Upgrade",
            "Expect",
        ] {
            assert!(matches!(send(to(), &[(name, "a")]), Err(Refusal::NotGranted(_))), "{name}");
        }
        let long = "x".repeat(1025);
        for (name, value) in [
            ("", "a"),
            ("a b", "a"),
            ("a:", "a"),
            ("a\r\nb", "a"),
            ("ü", "a"),
            (&long[..65], "a"),
            ("a", "b\r\nc: d"),
            ("a", "b\n"),
            ("a", "b\0"),
            ("a", " b"),
            ("a", "ü"),
            ("a", &long),
        ] {
            assert!(matches!(send(to(), &[(name, value)]), Err(Refusal::Invalid(_))), "{name:?} {value:?}");
        }
        assert!(matches!(send(to(), &[("a", "1"), ("A", "2")]), Err(Refusal::Invalid(_))));
        let many: Vec<String> = (0..33).map(|number| format!("x-{number}")).collect();
        let many: Vec<_> = many.iter().map(|name| (name.as_str(), "a")).collect();
        assert!(matches!(send(to(), &many), Err(Refusal::OverLimit(_))));
    }

    proptest! {
        #![proptest_config(crate::hostile::thousands())]

        #[test]
        fn whatever_address_a_guest_names_its_host_and_path_are_granted_ones(
            one in crate::hostile::text(),
            other in crate::hostile::text(),
            head in proptest::sample::select(&["", "https://", "https://hooks.example.com", "https://hooks.example.com/builds/", "https://a.example.org"]),
        ) {
            if let Ok(webhook) = to_url(&format!("{head}{one}{other}")) {
                let url: Url = webhook.to.name().parse().unwrap();
                let host = url.host_str().unwrap();
                let granted = (host == "hooks.example.com" && url.path().starts_with("/builds/")) || host.ends_with(".example.org");
                prop_assert!(granted && url.scheme() == "https" && url.port().is_none(), "{url}");
            }
        }

        #[test]
        fn whatever_headers_a_guest_names_none_breaks_out_of_its_line(
            name in crate::hostile::text(),
            value in crate::hostile::text(),
        ) {
            if let Ok(webhook) = send(Receiver::Endpoint("alerts".into()), &[(&name, &value)]) {
                for (name, value) in &webhook.headers {
                    prop_assert!(reqwest::header::HeaderName::from_bytes(name.as_bytes()).is_ok(), "{name:?}");
                    prop_assert!(reqwest::header::HeaderValue::from_str(value).is_ok(), "{value:?}");
                    prop_assert!(!is_hosts_own(name) && value.bytes().all(|b| (b' '..=b'~').contains(&b)));
                }
            }
        }
    }
}
