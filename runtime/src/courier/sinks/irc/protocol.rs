//! What a server's messages mean to us, and what it takes of us. Plain functions on plain data: no I/O in here.

use irc_proto::{Command, Message, Prefix};

use crate::courier::Receipt;

/// How long user and host are in `:nick!user@host `, which the server puts before what it passes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) user_bytes: usize,
    pub(super) host_bytes: usize,
}

/// What the server makes of a nick.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Nick {
    Accepted(String),
    Taken,
    /// It is none on this server.
    Erroneous(String),
    /// Whatever the nick, we are not wanted.
    TurnedAway(String),
}

/// The nick, others like it that are no longer, and then some that no server cuts short.
pub(super) fn nicks(nick: &str) -> impl Iterator<Item = String> {
    let like = |bytes_max: usize| {
        let stem = nick.get(..nick.floor_char_boundary(bytes_max - 1)).unwrap_or_default();
        SUFFIXES.map(|suffix| format!("{stem}{suffix}"))
    };
    let as_long = like(nick.len().max(NICK_BYTES_ANYWHERE));
    let short = (nick.len() > NICK_BYTES_ANYWHERE).then(|| like(NICK_BYTES_ANYWHERE));
    std::iter::once(nick.to_owned()).chain(as_long).chain(short.into_iter().flatten())
}

/// Channel names are the same whatever their case.
pub(super) fn folded(channel: &str) -> String {
    channel.to_ascii_lowercase()
}

/// Whether a server may mean this channel by that name. To some, `{}|^` are the small letters of `[]\~` (RFC 1459).
pub(super) fn is_same(channel: &str, named: &str) -> bool {
    let smallest = |byte: u8| match byte {
        b'[' => b'{',
        b']' => b'}',
        b'\\' => b'|',
        b'~' => b'^',
        other => other.to_ascii_lowercase(),
    };
    channel.bytes().map(smallest).eq(named.bytes().map(smallest))
}

/// The code of a numeric reply and its parameters.
pub(super) fn numeric(message: &Message) -> Option<(u16, &[String])> {
    match &message.command {
        Command::Response(response, parameters) => Some((*response as u16, parameters)),
        Command::Raw(code, parameters) => Some((code.parse().ok()?, parameters)),
        _ => None,
    }
}

pub(super) fn answer_to_nick(message: &Message) -> Option<Nick> {
    let (code, parameters) = numeric(message)?;
    let why = || format!("{} ({code})", words(parameters));
    match code {
        1 => Some(Nick::Accepted(parameters.first()?.clone())),
        // In use; in use on another server; not to be had for the moment.
        433 | 436 | 437 => Some(Nick::Taken),
        432 => Some(Nick::Erroneous(why())),
        // Not from this host; a wrong password; banned; about to be.
        463..=466 => Some(Nick::TurnedAway(why())),
        _ => None,
    }
}

/// How we are shown once we are in the channel, or the numeric that says why we are not.
pub(super) fn answer_to_join(message: &Message, nick: &str, channel: &str) -> Option<Result<Shown, (u16, String)>> {
    match (&message.command, &message.prefix) {
        (Command::JOIN(joined, ..), Some(Prefix::Nickname(name, user, host))) => {
            let is_ours = name == nick && is_same(joined, channel);
            is_ours.then_some(Ok(Shown { user_bytes: user.len(), host_bytes: host.len() }))
        }
        _ => error_about(message, channel).map(Err),
    }
}

/// What the server has against something about this channel, known to us or not: its code and its words.
pub(super) fn error_about(message: &Message, channel: &str) -> Option<(u16, String)> {
    let (code, parameters) = numeric(message)?;
    let is_about = parameters.iter().any(|parameter| is_same(parameter, channel));
    (is_error(code) && is_about).then(|| (code, words(parameters)))
}

/// Errors are in these hundreds; those between tell channel operators of this and that.
const fn is_error(code: u16) -> bool {
    matches!(code, 400..=599 | 900..=999)
}

pub(super) fn is_pong(message: &Message, token: &str) -> bool {
    match &message.command {
        Command::PONG(_, Some(answered)) | Command::PONG(answered, None) => answered == token,
        _ => false,
    }
}

/// What it means not to be let into a channel; an error when another connection would fare better.
pub(super) fn not_let_in(code: u16, why: &str) -> Result<Receipt, Receipt> {
    let answer = format!("JOIN: {why} ({code})");
    match code {
        // In too many channels: the next connection is in none.
        405 => Err(Receipt::Transient(answer)),
        // No such channel, forwarded elsewhere, invitation only, banned, a key, a bad name, for registered nicks or over
        // TLS only: about this channel, and no other has to wait for it.
        403 | 470 | 473..=477 | 479 | 489 => Ok(Receipt::Permanent(answer)),
        // Unavailable (437), full (471), whatever else a server may have against it now.
        _ => Ok(Receipt::Transient(answer)),
    }
}

/// How many bytes of a line get through to a channel's members.
pub(super) fn room(nick: &str, shown: Shown, channel: &str) -> usize {
    let around = ":!@ PRIVMSG  :\r\n".len() + nick.len() + shown.user_bytes + shown.host_bytes + channel.len();
    LINE_BYTES_MAX.saturating_sub(around).max(ROOM_MIN)
}

/// As much of a line as there is room for, whole characters, and the rest if there is any.
pub(super) fn cut(line: &str, room: usize) -> (&str, Option<&str>) {
    let (piece, rest) = line.split_at(line.floor_char_boundary(room));
    (piece, (!rest.is_empty()).then_some(rest))
}

/// What a numeric says to a person.
fn words(parameters: &[String]) -> String {
    parameters.last().map_or_else(String::new, |words| printable(words))
}

pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(WORDS_CHARS_MAX).collect()
}

/// From now on we are shown with another host.
pub(super) const HOST_SHOWN: u16 = 396;
const SUFFIXES: [char; 5] = ['_', '2', '3', '4', '5'];
/// RFC 2812.
const NICK_BYTES_ANYWHERE: usize = 9;
/// RFC 2812, with CR LF.
pub(super) const LINE_BYTES_MAX: usize = 512;
const ROOM_MIN: usize = 64;
const WORDS_CHARS_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_known_under_any_spelling_a_server_may_give_it() {
        assert!(is_same("#CI[a]\\~", "#ci{A}|^"));
        assert!(!is_same("#ci", "#ci2"));
    }

    fn message(text: &str) -> Message {
        text.parse().unwrap()
    }

    #[test]
    fn other_nicks_are_no_longer_than_servers_allow() {
        assert_eq!(nicks("pulse").take(3).collect::<Vec<_>>(), ["pulse", "pulse_", "pulse2"]);
        assert_eq!(nicks("ninebytes").nth(1).unwrap(), "ninebyte_");
        assert_eq!(nicks("a-nick-of-20-letters").nth(2).unwrap(), "a-nick-of-20-letter2");
        assert_eq!(nicks("a-nick-of-20-letters").nth(6).unwrap(), "a-nick-o_", "a server may cut the others short");
        assert_eq!((nicks("pulse").count(), nicks("a-nick-of-20-letters").count()), (6, 11));
        assert_eq!(nicks("☃☃☃☃").nth(1).unwrap(), "☃☃☃_");
    }

    #[test]
    fn a_notice_before_the_welcome_is_no_answer() {
        assert_eq!(answer_to_nick(&message(":irc.test NOTICE AUTH :*** Looking up your hostname")), None);
        assert_eq!(answer_to_nick(&message(":irc.test 001 pulse_ :Welcome")), Some(Nick::Accepted("pulse_".into())));
    }

    #[test]
    fn the_answer_to_a_join_is_ours_and_about_this_channel() {
        let answer = |text: &str| answer_to_join(&message(text), "pulse", "#CI");
        assert_eq!(answer(":pulse!~p@host JOIN :#ci"), Some(Ok(Shown { user_bytes: 2, host_bytes: 4 })));
        assert_eq!(answer(":someone!~p@host JOIN :#ci"), None);
        assert_eq!(answer(":pulse!~p@host JOIN :#other"), None);
        assert_eq!(answer(":irc.test 353 pulse = #ci :@pulse"), None);
        assert_eq!(answer(":irc.test 332 pulse #ci :the topic"), None);
        assert_eq!(answer(":irc.test 473 pulse #other :no"), None);
        for code in [403_u16, 405, 437, 470, 471, 473, 477, 489, 499, 926] {
            let refused = answer(&format!(":irc.test {code} pulse #ci :no"));
            assert_eq!(refused, Some(Err((code, "no".to_owned()))), "{code}");
        }
    }

    #[test]
    fn objections_are_errors_about_the_channel() {
        let objects = |text: &str| error_about(&message(text), "#ci").map(|(code, _)| code);
        assert_eq!(objects(":irc.test 404 pulse #CI :Cannot send to channel"), Some(404));
        assert_eq!(objects(":irc.test 401 pulse #ci :No such nick or channel name"), Some(401));
        assert_eq!(objects(":irc.test 408 pulse #ci :You cannot use colors"), Some(408));
        assert_eq!(objects(":irc.test 404 pulse #other :Cannot send to channel"), None);
        assert_eq!(objects(":irc.test 366 pulse #ci :End of NAMES list"), None);
        assert_eq!(objects(":irc.test 710 pulse #ci a!b@c :has asked for an invite"), None);
        assert_eq!(objects(":someone!a@b PRIVMSG #ci :404 pulse #ci"), None);
    }

    #[test]
    fn a_pong_counts_only_with_its_token() {
        assert!(is_pong(&message(":irc.test PONG irc.test :pulse-1"), "pulse-1"));
        assert!(is_pong(&message("PONG :pulse-1"), "pulse-1"));
        assert!(!is_pong(&message(":irc.test PONG irc.test :pulse-2"), "pulse-1"));
    }

    #[test]
    fn a_line_is_cut_between_two_characters_and_not_before_it_must() {
        assert_eq!(cut("short", 400), ("short", None));
        assert_eq!(cut("☃☃☃", 7), ("☃☃", Some("☃")));
        assert_eq!(cut("☃☃☃", 9), ("☃☃☃", None));
        let shown = Shown { user_bytes: 6, host_bytes: 4 };
        assert_eq!(room("pulse", shown, "#ci"), 512 - ":pulse!~pulse@host PRIVMSG #ci :\r\n".len());
        let endless = Shown { user_bytes: 6, host_bytes: 10_000 };
        assert_eq!(room("pulse", endless, "#ci"), ROOM_MIN, "however little room there is, it goes on");
    }

    proptest::proptest! {
        #![proptest_config(crate::hostile::thousands())]

        #[test]
        fn whatever_a_server_or_a_plugin_says_a_line_stays_one_line(
            said in crate::hostile::text(),
            line in crate::hostile::text(),
            bytes in 64_usize..400,
        ) {
            for said in [said.clone(), format!(":irc.test 433 * {said}"), format!(":pulse!u@h JOIN {said}")] {
                let Ok(message) = said.parse::<Message>() else { continue };
                _ = answer_to_nick(&message);
                _ = answer_to_join(&message, "pulse", "#ci");
                if let Some((_, words)) = error_about(&message, "#ci") {
                    proptest::prop_assert!(!words.contains(char::is_control), "{words:?}");
                }
            }
            let (mut left, mut pieces) = (Some(line.as_str()), String::new());
            while let Some(whole) = left.filter(|whole| !whole.is_empty()) {
                let (piece, rest) = cut(whole, bytes);
                proptest::prop_assert!(!piece.is_empty() && piece.len() <= bytes);
                pieces.push_str(piece);
                left = rest;
            }
            proptest::prop_assert_eq!(pieces, line);
        }
    }
}
