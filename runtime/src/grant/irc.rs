//! `irc`: in which channels lines may be said.

use super::{Grant, Pattern, Refusal, not_granted};
use crate::effect::{Effect, Irc, Origin, Planned};

/// Where lines may be said, and through which account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IrcGrant {
    /// The account that says them.
    pub account: String,
    /// Patterns, of which a channel must match one.
    pub channels: Vec<Pattern>,
}

/// Lines as a guest asks for them.
#[derive(Clone, Debug, Default)]
pub struct IrcRequest {
    /// The channel.
    pub channel: String,
    /// The lines.
    pub lines: Vec<String>,
}

/// Makes lines for one channel an effect.
///
/// # Errors
/// A [`Refusal`] when the channel is none or not granted, or a line is not well-formed.
pub fn plan(grant: &Grant, origin: &Origin, index: u32, request: IrcRequest) -> Result<Vec<Planned>, Refusal> {
    let grant = grant.irc.as_ref().ok_or_else(|| not_granted("irc"))?;
    let IrcRequest { channel, lines } = request;
    grant.channel(&channel)?;
    if lines.is_empty() || lines.len() > IRC_LINES_MAX {
        return Err(Refusal::Invalid(format!("expected 1 to {IRC_LINES_MAX} lines, found {}", lines.len())));
    }
    for line in &lines {
        check_irc_line(line)?;
    }
    Ok(vec![Planned {
        id: origin.effect(index, &channel),
        call: origin.call(index),
        effect: Effect::Irc(Irc { account: grant.account.clone(), channel, lines }),
        refused: None,
    }])
}

impl IrcGrant {
    pub(super) fn channel(&self, channel: &str) -> Result<(), Refusal> {
        if !is_channel(channel) {
            let shown: String = channel.chars().take(60).collect();
            return Err(Refusal::Invalid(format!("expected a channel such as #ci, found {shown:?}")));
        }
        if self.channels.iter().any(|pattern| pattern.matches(channel)) {
            Ok(())
        } else {
            Err(Refusal::NotGranted(format!("lines in {channel}")))
        }
    }
}

/// `#` or `&` and a name, and nothing that would end it.
#[must_use]
pub fn is_channel(text: &str) -> bool {
    let strange = |c: char| c.is_control() || c.is_whitespace() || matches!(c, ',' | ':');
    let named = text.strip_prefix(['#', '&']).is_some_and(|name| !name.is_empty());
    named && text.len() <= IRC_CHANNEL_BYTES_MAX && !text.contains(strange)
}

fn check_irc_line(line: &str) -> Result<(), Refusal> {
    // \x01 would make it a request to the channel's clients (CTCP).
    if line.contains(['\r', '\n', '\0', '\u{1}']) {
        return Err(Refusal::Invalid("a line break, NUL or \\x01 in a line".into()));
    }
    if line.trim().is_empty() || line.len() > IRC_LINE_BYTES_MAX {
        return Err(Refusal::Invalid(format!(
            "expected a line of 1 to {IRC_LINE_BYTES_MAX} bytes, found {}",
            line.len()
        )));
    }
    Ok(())
}

const IRC_LINES_MAX: usize = 32;
/// What is left of a message's 512 bytes once the server has put the sender and the channel before it.
const IRC_LINE_BYTES_MAX: usize = 420;
const IRC_CHANNEL_BYTES_MAX: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::Hash;

    fn say(channel: &str, lines: &[&str]) -> Result<Vec<Planned>, Refusal> {
        let channels = vec![Pattern::new("#ci*")];
        let grant = Grant { irc: Some(IrcGrant { account: "irc".into(), channels }), ..Grant::default() };
        let event = Hash::of_bytes(b"event");
        let origin = Origin { event, generation: 0, identity: "default".into(), plugin: "irc".into() };
        let lines = lines.iter().map(|&line| line.to_owned()).collect();
        plan(&grant, &origin, 0, IrcRequest { channel: channel.to_owned(), lines })
    }

    #[test]
    fn lines_go_to_granted_channels_only_and_to_nobody_else() {
        assert_eq!(say("#ci-builds", &["a", "\u{3}03b\u{3}03"]).unwrap().len(), 1);
        assert!(matches!(say("#other", &["a"]), Err(Refusal::NotGranted(_))));
        for channel in ["NickServ", "somebody", "#", "", "#ci,#other", "#ci x", "#ci\r\nQUIT", "#ci\u{7}", ":#ci"] {
            assert!(matches!(say(channel, &["a"]), Err(Refusal::Invalid(_))), "{channel:?}");
        }
    }

    #[test]
    fn a_line_cannot_become_two() {
        let long = "x".repeat(421);
        for lines in
            [&["a\r\nQUIT"][..], &["a\nb"], &["a\0"], &["\u{1}VERSION\u{1}"], &[""], &[" "], &[&long], &[], &["a"; 33]]
        {
            assert!(matches!(say("#ci", lines), Err(Refusal::Invalid(_))), "{lines:?}");
        }
    }
}
