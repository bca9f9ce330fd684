//! A plugin that attacks: the notification's message names the attack. Each first asks for a mail, which must go out
//! only when `notify` returns ok.

#![expect(clippy::disallowed_methods, clippy::disallowed_macros, reason = "it looks around on purpose")]

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pulse_notifier_sdk::{Event, Failure, Mail, Result, irc, log, plugin, settings};

plugin!(notify);

static CALLS: AtomicU32 = AtomicU32::new(0);

fn notify(event: &Event) -> Result {
    let calls = CALLS.fetch_add(1, Ordering::Relaxed) + 1;
    let subject = format!("{} {calls}", event.notification.message);
    let mail = |subject: &str| Mail::to(&event.notification.emails).subject(subject).text("text");
    mail(&subject).send()?;
    match event.notification.message.as_str() {
        "behave" => Ok(()),
        "loop" => endless(0),
        "recurse" => Err(Failure::Failed(recurse(1).to_string())),
        "eat memory" => eat(),
        "trap" => panic_now(),
        "fail" => Err(Failure::Failed("as the task wished".into())),
        "retry" => Err(Failure::Retry("the world is not ready".into())),
        "many effects" => (0..1_000_000).try_for_each(|_| mail("again").send().map(drop)).map_err(Into::into),
        "large effect" => mail("large").html("x".repeat(300 << 10)).send().map(drop).map_err(Into::into),
        "many calls" => (0..1_000_000).try_for_each(|_| settings::get("nothing").map_or(Ok(()), |_| Ok(()))),
        "megabytes" => {
            // Refused from the fifth on, and on record; what was accepted before goes out.
            (0..60).for_each(|_| drop(mail("again").html("x".repeat(250 << 10)).send()));
            Ok(())
        }
        "large text" => {
            log::info(&"x".repeat(40 << 20));
            Ok(())
        }
        "sleep" => {
            std::thread::sleep(Duration::from_secs(60));
            Ok(())
        }
        "foreign recipient" => {
            for foreign in ["b@blue.example.com", "b@blue.example.com, a@red.example.com", "a@red.example.com@b.c", ""]
            {
                drop(Mail::to([foreign]).subject("s").text("t").send());
            }
            Ok(())
        }
        "shuffle" => {
            let numbers: HashSet<u32> = (0..32).collect();
            log::info(&format!("{numbers:?}"));
            Ok(())
        }
        "settings" => {
            let all: Vec<_> = settings::all().into_iter().map(|(name, _)| name).collect();
            log::info(&format!("{all:?} {:?}", settings::get("blue")));
            Ok(())
        }
        "log flood" => {
            (0..900).for_each(|_| log::info(&"x".repeat(1 << 10)));
            Ok(())
        }
        "log injection" => {
            log::info("one\nerror: two\r\u{1b}[2J");
            Ok(())
        }
        "inject" => {
            // Both are refused and on record; what is well-formed still goes out.
            drop(mail("a\r\nBcc: everyone@example.com").send());
            drop(Mail::to(["a@example.com\r\nRCPT TO:<b@example.com>"]).subject("s").text("t").send());
            Ok(())
        }
        "inject into IRC" => {
            // All but the last are refused and on record.
            for line in
                ["one\r\nQUIT :two", "one\nPRIVMSG NickServ :two", "nul\0", "\u{1}VERSION\u{1}", &"x".repeat(421)]
            {
                drop(irc::say("#ci", [line.to_owned()]));
            }
            for channel in ["NickServ", "reader", "#ci,NickServ", "#ci\r\nQUIT", "#ci NickServ", "@#ci", ""] {
                drop(irc::say(channel, ["IDENTIFY hunter2".to_owned()]));
            }
            drop(irc::say("#ci", std::iter::repeat_n("x".to_owned(), 33)));
            irc::say("#ci", ["only this".to_owned()]).map(drop).map_err(Into::into)
        }
        "look around" => {
            log::info(&format!("{:?}", std::env::vars().chain(std::env::args().map(|a| (a, String::new()))).next()));
            log::info(&format!("{:?}", std::fs::read_dir("/").is_ok()));
            log::info(&format!("{:?}", std::time::SystemTime::now()));
            println!("said on standard output");
            Ok(())
        }
        other => Err(Failure::Failed(format!("unknown attack {other:?}"))),
    }
}

fn endless(mut number: u64) -> Result {
    loop {
        number = std::hint::black_box(number.wrapping_mul(31).wrapping_add(7));
        if number == 1 {
            return Ok(());
        }
    }
}

#[expect(unconditional_recursion, reason = "that is the attack")]
fn recurse(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    frame.iter().sum::<u64>() + recurse(depth + 1)
}

fn eat() -> Result {
    let mut kept = Vec::new();
    loop {
        kept.push(std::hint::black_box(Vec::<u8>::with_capacity(1 << 20)));
    }
}

#[expect(clippy::panic, reason = "that is the attack")]
fn panic_now() -> Result {
    panic!("on purpose")
}
