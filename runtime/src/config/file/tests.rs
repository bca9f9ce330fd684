use std::collections::BTreeSet;

use proptest::prelude::*;
use toml::de::{DeTable, DeValue};

use super::super::{Account, EXAMPLE, Secret};
use super::*;

const ENVIRONMENT: [(&str, &str); 8] = [
    ("PULSE_PASSWORD", "hunter1"),
    ("SMTP_PASSWD", "hunter2"),
    ("AWS_SECRET", "hunter3"),
    ("IRC_PASS", "hunter4"),
    ("RABBITMQ_PASSWORD", "hunter5"),
    ("SLACK_URL", "https://hooks.example.com/hunter6"),
    ("SLACK_TOKEN", "hunter7"),
    ("SLACK_HMAC", "hunter8"),
];

const LEAST: &str = r##"
tenants = {}
[broker]
login = "me"
password = "${PULSE_PASSWORD}"
[tenants.one]
[tenants.one.queue]
name = "q"
[tenants.one.accounts.mail]
kind = "smtp"
host = "mail.example.com"
from = "ci@example.com"
[tenants.one.plugins.smtp.grant.email]
account = "mail"
recipients = ["*@example.com"]
"##;

fn least() -> String {
    LEAST.replacen("tenants = {}\n", "", 1)
}

fn environment() -> Environment {
    ENVIRONMENT.into_iter().collect()
}

fn read_text(text: &str) -> Result<Config, ConfigError> {
    parse("pn.toml", Ok(text), &environment(), Role::All, None)
}

fn problems(text: &str) -> Vec<String> {
    let problems = read_text(text).map(|config| config.notes).unwrap_err().problems;
    problems.into_iter().map(|problem| format!("{}: {}", problem.place, problem.what)).collect()
}

fn changed(from: &str, to: &str) -> String {
    let text = least();
    assert!(text.contains(from), "{from}");
    text.replacen(from, to, 1)
}

/// The example with the other ways to say things instead of being comments.
fn uncommented() -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) && !rest.starts_with("tenants") => {
            rest.to_owned()
        }
        _ => line.to_owned(),
    };
    EXAMPLE.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn keys(table: &DeTable<'_>, general: &str, keys_found: &mut BTreeSet<String>) {
    let named = ["tenants", "tenants.*.accounts", "tenants.*.plugins"].contains(&general);
    for (key, value) in table {
        let key = if named { "*" } else { key.get_ref().as_ref() };
        let path = if general.is_empty() { key.to_owned() } else { format!("{general}.{key}") };
        if !named {
            keys_found.insert(path.clone());
        }
        let is_free = ["identities", "settings", "settings_files", "sources", "headers", "headers_files", "endpoints"]
            .contains(&key);
        if let (DeValue::Table(table), false) = (value.get_ref(), is_free) {
            keys(table, &path, keys_found);
        }
    }
}

#[test]
fn the_example_is_a_good_configuration() {
    let config = read_text(EXAMPLE).unwrap();
    let destinations: Vec<_> = config.accounts.keys().map(String::as_str).collect();
    assert_eq!(
        destinations,
        [
            "amqp/release.pulse",
            "email/release.amazon",
            "email/release.mail",
            "irc/release.chat",
            "s3/release.logs",
            "sns/release.topics",
            "webhook/release.slack",
            "webhook/release.web"
        ]
    );
    let Account::Smtp(smtp) = &config.accounts["email/release.mail"] else { panic!() };
    assert_eq!(smtp.login, Some(("ci@example.com".to_owned(), Secret::new("hunter2".to_owned()))));
    let shown = format!("{config:?}");
    assert!(!shown.contains("hunter"), "{shown}");
    assert!(!shown.contains("Hello"), "{shown}");
}

#[test]
fn the_example_has_every_key_and_no_other() {
    let environment = environment();
    let findings = Findings::new(&environment, Role::All);
    service(&findings, "example.toml", EXAMPLE, None);
    let text = uncommented();
    let mut in_example = BTreeSet::new();
    keys(DeTable::parse(&text).unwrap().get_ref(), "", &mut in_example);
    assert_eq!(in_example, findings.asked());
}

#[test]
fn no_plugin_is_given_more_than_the_operator_lets_any_have() {
    let with = |ceiling: &str, limits: &str| {
        format!("{}[tenants.one.plugins.smtp.limits]\n{limits}\n[limits]\n{ceiling}\n", least())
    };
    let limits = |ceiling, limits| read_text(&with(ceiling, limits)).unwrap().tenants[0].plugins["smtp"].limits;
    assert_eq!(limits("cpu_ms = 200", "cpu_ms = 200").cpu, Duration::from_millis(200));
    // What is usual is more than the operator lets anybody have.
    assert_eq!(limits("cpu_ms = 20", "").cpu, Duration::from_millis(20));
    assert_eq!(limits("component_bytes = 67108864", "component_bytes = 67108864").component.bytes_max, 64 << 20);
    for (ceiling, wish, what) in [
        ("cpu_ms = 200", "cpu_ms = 201", "limits.cpu_ms: expected milliseconds from 1 to 200, found 201"),
        ("core_instances = 8", "core_instances = 9", "limits.core_instances: expected a number from 1 to 8, found 9"),
        ("", "compile_seconds = 601", "limits.compile_seconds: expected a number of seconds from 1 to 600, found 601"),
        ("tables = 33", "", "limits.tables: expected a number from 1 to 32, found 33"),
        ("core_instance = 8", "", "limits.core_instance: expected one of cpu_ms"),
    ] {
        let found = problems(&with(ceiling, wish));
        assert!(found.len() == 1 && found[0].contains(what), "{found:?}");
    }
}

#[test]
fn the_examples_ceiling_is_what_there_is_room_for() {
    let environment = environment();
    let findings = Findings::new(&environment, Role::All);
    let document = Document::parse(&findings, "example.toml", EXAMPLE).unwrap();
    let root = document.root("");
    root.forgive();
    assert!(root.has("limits"));
    assert_eq!(limits::ceiling(&root.section("limits")), crate::sandbox::Limits::MOST);
}

#[test]
fn what_a_refused_plugin_is_told_to_want_can_be_pasted() {
    for capability in ["email", "sns", "s3", "irc", "amqp", "webhook"] {
        let keys = crate::grant::Grant::example(capability).unwrap();
        let text = format!("{EXAMPLE}\n[tenants.release.plugins.new.grant.{capability}]\n{keys}\n");
        let config = read_text(&text).unwrap();
        assert!(config.tenants[0].plugins["new"].grant.covers(capability), "{capability}");
    }
    assert_eq!(crate::grant::Grant::example("log"), None);
}

#[test]
fn the_examples_limits_are_the_usual_ones() {
    let config = read_text(EXAMPLE).unwrap();
    assert_eq!(config.tenants[0].plugins["smtp"].limits, crate::sandbox::Limits::default());
}

#[test]
fn a_problem_names_file_line_key_and_what_was_expected() {
    let cases = [
        ("login = \"me\"", "", "pn.toml:2: broker.login: expected a name of at most 255 bytes"),
        ("login = \"me\"", "login = 3", "pn.toml:3: broker.login: expected a name of at most 255 bytes"),
        (
            "login",
            "lgoin",
            "pn.toml:3: broker.lgoin: expected one of host, port, tls, vhost, login, password, \
          password_file, found an unknown key: did you mean login?",
        ),
        ("[broker]", "[broker]\nport = 0", "pn.toml:3: broker.port: expected a port from 1 to 65535, found 0"),
        (
            "[broker]",
            "[broker]\nport = \"many\"",
            "pn.toml:3: broker.port: expected a port (a whole number), found \"many\"",
        ),
        ("[broker]", "[broker]\ntls = 1", "pn.toml:3: broker.tls: expected true or false, found 1"),
        (
            "[broker]",
            "delivery = \"sent\"\n[broker]",
            "pn.toml:2: delivery: expected one of send, capture, found \"sent\": did you mean send?",
        ),
        (
            "[broker]",
            "keep_days = 0\n[broker]",
            "pn.toml:2: keep_days: expected a number of days from 1 to 10000, found 0",
        ),
        (
            "[broker]",
            "[taskcluster]\nroot_url = \"ftp://x\"\n[broker]",
            "pn.toml:3: taskcluster.root_url: expected an http or https URL",
        ),
        (
            "[broker]",
            "[store]\nurl = \"mysql://u:hunter9@h/d\"\n[broker]",
            "pn.toml:3: store.url: expected sqlite:<path>, a file, found a text",
        ),
        (
            "[broker]",
            "[store]\nurl = \"sqlite:nowhere/at/all.db\"\n[broker]",
            "the store: expected a folder that exists, found no nowhere/at",
        ),
        (
            "[broker]",
            "[admin]\nlisten = \"8787\"\n[broker]",
            "pn.toml:3: admin.listen: expected an address such as 127.0.0.1:8787, or none, found \"8787\"",
        ),
        ("[broker]", "broker = 3\n[other]", "pn.toml:2: broker: expected a table, found a whole number"),
        (
            "${PULSE_PASSWORD}",
            "${PULSE_PASSWROD}",
            "pn.toml:4: broker.password: expected the variable PULSE_PASSWROD to be set",
        ),
        ("${PULSE_PASSWORD}", "${oh no}", "pn.toml:4: broker.password: expected ${VARIABLE}"),
        (
            "\"${PULSE_PASSWORD}\"",
            "12345",
            "pn.toml:4: broker.password: expected the user's password, found a whole number",
        ),
        (
            "password = ",
            "password_file = \"nowhere\"\npassword = ",
            "pn.toml:4: broker.password_file: expected one of password and password_file, found both",
        ),
        (
            "password = \"${PULSE_PASSWORD}\"",
            "password_file = \"nowhere\"",
            "pn.toml:4: broker.password_file: read nowhere",
        ),
        ("name = \"q\"", "", "pn.toml:6: tenants.one.queue.name: expected the queue's name"),
        (
            "name = \"q\"",
            "name = \"q\"\ntype = \"quorun\"",
            "tenants.one.queue.type: expected one of plain, classic, quorum, found \"quorun\": did you mean quorum?",
        ),
        (
            "name = \"q\"",
            "name = \"q\"\nrouting_keys = \"#\"",
            "pn.toml:8: tenants.one.queue.routing_keys: expected a list of routing keys, found \"#\"",
        ),
        (
            "\"smtp\"",
            "\"stmp\"",
            "tenants.one.accounts.mail.kind: expected one of smtp, ses, sns, s3, irc, amqp, webhook, found \"stmp\": did you mean smtp?",
        ),
        ("ci@example.com", "nobody", "tenants.one.accounts.mail.from: expected a mail address, found \"nobody\""),
        (
            "account = \"mail\"",
            "account = \"mial\"",
            "pn.toml:13: tenants.one.plugins.smtp.grant.email.account: expected an account for email: mail, found another name: did you mean mail?",
        ),
        (
            "grant.email",
            "grant.irc",
            "tenants.one.plugins.smtp.grant.irc.account: expected an account for irc (the tenant has none), found mail, which is for email",
        ),
        (
            "*@example.com",
            "example com",
            "pn.toml:14: tenants.one.plugins.smtp.grant.email.recipients: expected a list of addresses",
        ),
        (
            "[\"*@example.com\"]",
            "[]",
            "tenants.one.plugins.smtp.grant.email.recipients: expected a list of addresses, * standing for anything, found an empty one",
        ),
        (
            "[tenants.one]",
            "[tenants.one]\nlogs = {source = \"{taskId}\", bucket = \"b\"}",
            "tenants.one.logs.source: expected the name of an artifact or an address",
        ),
        (
            "[tenants.one]",
            "[tenants.one]\nidentities = {r = {emails = [3]}}",
            "pn.toml:6: tenants.one.identities.r: r: emails: expected a list of texts",
        ),
        ("[tenants.one]", "[tenants.one]\nidentities = {default = {}}", "an identity may not be named default"),
        ("[tenants.one]", "[tenants.\"a b\"]\n[tenants.one]", "pn.toml:5: tenants.\"a b\": expected a name"),
        (
            "[tenants.one]",
            "[tenants.two]\nqueue.name = \"q\"\n[tenants.one]",
            "expected a queue for each tenant, found queue/me/q with both one and two",
        ),
        ("login = \"me\"", "login = \"me", "pn.toml:3: expected TOML: "),
        ("login = \"me\"", "login = \"me\"\nlogin = \"you\"", "pn.toml:4: expected TOML: duplicate key"),
    ];
    for (from, to, expected) in cases {
        let found = problems(&changed(from, to));
        assert!(found.iter().any(|problem| problem.contains(expected)), "{to}\n{expected}\n{found:#?}");
        assert!(found.iter().all(|problem| !problem.contains("hunter") && !problem.contains("12345")), "{found:#?}");
    }
}

#[test]
fn a_secret_in_the_wrong_place_is_not_shown() {
    let cases = [
        changed("password = ", "password_file = "),
        changed("[broker]", "[store]\nurl = \"sqlite:${PULSE_PASSWORD}/x.db\"\n[broker]"),
        changed("[tenants.one]", "[tenants.one]\nidentities_file = \"${PULSE_PASSWORD}\""),
        changed("[tenants.one.queue]", "[tenants.one.queue]\nexchanges = [\"${PULSE_PASSWORD}\", 3]"),
        changed("host = \"mail", "host = \"a@${PULSE_PASSWORD}"),
    ];
    for text in cases {
        let found = problems(&text).join("\n");
        assert!(!found.contains("hunter"), "{found}");
    }
}

#[test]
fn every_problem_is_told_at_once_in_the_order_of_the_file() {
    let text = changed("login", "lgoin").replace("\"smtp\"", "\"stmp\"").replace("name = \"q\"", "");
    let found = problems(&text);
    assert_eq!(found.len(), 4, "{found:#?}");
    let lines: Vec<_> =
        found.iter().map(|problem| problem.split(':').nth(1).unwrap().parse::<u32>().unwrap()).collect();
    assert!(lines.is_sorted(), "{found:#?}");
}

#[test]
fn nothing_and_too_much_are_no_configuration() {
    assert_eq!(problems("").len(), 3);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pn.toml");
    let read_path = || Config::from_file(&path, &environment()).unwrap_err().to_string();
    assert!(read_path().contains("expected a file of TOML"), "{}", read_path());
    std::fs::write(&path, "#".repeat(2 << 20)).unwrap();
    assert!(read_path().contains("expected a file of at most"), "{}", read_path());
    std::fs::write(&path, b"\xff").unwrap();
    assert!(read_path().contains("expected a file of TOML"), "{}", read_path());
    problems(&format!("a = {}", "[".repeat(100_000)));
    problems(&format!("{}\n", "[a.b.c]\n".repeat(10_000)));
    assert!(problems(&(0..10_000).map(|n| format!("k{n} = 1\n")).collect::<String>()).len() <= 100);
}

#[test]
fn a_secret_can_be_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    let text = changed("password = \"${PULSE_PASSWORD}\"", &format!("password_file = \"{}\"", path.display()));
    for (content, expected) in [("a b\n", "a b"), ("a b\r\n", "a b"), ("a b", "a b"), ("a\n\n", "a\n")] {
        std::fs::write(&path, content).unwrap();
        assert_eq!(read_text(&text).unwrap().broker.password.expose(), expected);
    }
    std::fs::write(&path, "\n").unwrap();
    assert!(problems(&text)[0].contains("expected the user's password in the file, found nothing"));
}

#[test]
fn tenants_can_have_files_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let tenants = folder.path().join("tenants");
    std::fs::create_dir(&tenants).unwrap();
    let main = format!("tenants = \"{}\"\n[broker]\nlogin = \"me\"\npassword = \"x\"\n", tenants.display());
    let empty = read_text(&main).unwrap();
    assert!(empty.tenants.is_empty() && empty.notes[0].contains("nothing is consumed"), "{:?}", empty.notes);
    let tenant = least().lines().skip(6).collect::<Vec<_>>().join("\n").replace("tenants.one.", "");
    let tenant = format!("[queue]\n{}", tenant.trim_start_matches("[queue]"));
    std::fs::write(tenants.join("one.toml"), &tenant).unwrap();
    std::fs::write(tenants.join("two.toml"), tenant.replace("\"q\"", "\"r\"")).unwrap();
    std::fs::write(tenants.join(".two.toml"), "left by an editor").unwrap();
    let config = read_text(&main).unwrap();
    let destinations: Vec<_> = config.accounts.keys().map(String::as_str).collect();
    assert_eq!(destinations, ["email/one.mail", "email/two.mail"], "the same name is another account");
    let grant = |tenant: usize| config.tenants[tenant].plugins["smtp"].grant.email.as_ref().unwrap().account.clone();
    assert_eq!((grant(0), grant(1)), ("one.mail".to_owned(), "two.mail".to_owned()));
    std::fs::write(tenants.join("two.toml"), tenant.replace("host", "hots")).unwrap();
    let found = problems(&main);
    assert!(found.iter().any(|problem| problem.contains("two.toml:5: accounts.mail.hots: ")), "{found:#?}");
    std::fs::write(tenants.join("three four.toml"), &tenant).unwrap();
    assert!(problems(&main).iter().any(|problem| problem.contains("the file is named after its tenant")));
}

#[test]
fn a_tenants_file_that_is_none_of_the_folder_is_refused_and_one_linked_within_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let (tenants, elsewhere) = (folder.path().join("tenants"), folder.path().join("elsewhere.toml"));
    std::fs::create_dir_all(tenants.join("..data")).unwrap();
    let main = format!("tenants = \"{}\"\n[broker]\nlogin = \"me\"\npassword = \"x\"\n", tenants.display());
    let tenant = "[queue]\nname = \"q\"\n[plugins.smtp]\n";
    std::fs::write(tenants.join("..data/one.toml"), tenant).unwrap();
    std::os::unix::fs::symlink("..data/one.toml", tenants.join("one.toml")).unwrap();
    assert_eq!(read_text(&main).unwrap().tenants[0].name, "one");
    let place = tenants.join("two.toml");
    let cases: [(&dyn Fn(), &str); 5] = [
        (&|| std::os::unix::fs::symlink(&elsewhere, &place).unwrap(), "it leads out of its directory, to "),
        (&|| std::os::unix::fs::symlink("nowhere", &place).unwrap(), "read it: No such file"),
        (&|| std::fs::write(&place, [0xff; 9]).unwrap(), "found no UTF-8"),
        (&|| std::fs::write(&place, vec![b'#'; (1 << 20) + 1]).unwrap(), "1048577 bytes, more than 1048576"),
        (&|| std::fs::create_dir(&place).unwrap(), "expected a regular file"),
    ];
    std::fs::write(&elsewhere, tenant.replace("\"q\"", "\"r\"")).unwrap();
    for (put, expected) in cases {
        put();
        let found = problems(&main);
        assert!(found.len() == 1 && found[0].contains("two.toml") && found[0].contains(expected), "{found:#?}");
        drop(std::fs::remove_file(&place));
    }
}

#[test]
fn what_only_a_start_can_change_does_not_change_for_tenants_that_run() {
    let text = least();
    let running = read_text(&text).unwrap();
    let text = text.replacen("login = \"me\"", "login = \"you\"", 1)
        + "\n[tenants.two.queue]\nname = \"r\"\n[tenants.two.plugins.smtp]\n";
    let again = parse("pn.toml", Ok(&text), &environment(), Role::All, Some(&running)).unwrap();
    assert_eq!(again.waits_for_a_start(&running), ["broker"]);
    let queues: Vec<_> = again.tenants.iter().map(|tenant| tenant.queue.name.as_str()).collect();
    assert_eq!(queues, ["queue/me/q", "queue/me/r"]);
    assert!(running.waits_for_a_start(&running).is_empty());
}

#[test]
fn a_dollar_can_be_meant() {
    let config = read_text(&changed("login = \"me\"", "login = \"$${me}$$${x}$\"")).unwrap();
    assert_eq!(config.broker.login, "${me}$${x}$");
}

#[test]
fn loops_open_the_exchanges_the_tenant_consumes_from() {
    let closed = |loops| {
        let text = EXAMPLE.replace("loops = false", loops);
        read_text(&text).unwrap().tenants[0].plugins["repulse"].grant.amqp.clone().unwrap().closed
    };
    assert_eq!(closed("loops = false").len(), 3);
    assert!(closed("loops = true").is_empty());
}

#[test]
fn an_amqp_account_of_which_nothing_is_said_is_the_broker() {
    let text = format!("{}\n[tenants.one.accounts.pulse]\nkind = \"amqp\"\n", least());
    let config = read_text(&text).unwrap();
    assert_eq!(config.accounts["amqp/one.pulse"], Account::Amqp(config.broker.clone()));
    assert_eq!(problems(&format!("{text}port = 1\n")).len(), 3, "host, login, password");
}

fn with_webhook(account: &str, grant: &str) -> String {
    format!(
        "{}\n[tenants.one.accounts.web]\nkind = \"webhook\"\n{account}\n[tenants.one.plugins.smtp.grant.webhook]\n{grant}\n",
        least()
    )
}

#[test]
fn a_webhook_is_a_receiver_with_its_secrets_or_a_way_to_post_where_plugins_say() {
    let account =
        "url = \"https://hooks.example.com/hunter1\"\nheaders = { X-Token = \"hunter2\" }\nhmac_secret = \"hunter3\"";
    let config = read_text(&with_webhook(account, "endpoints = { alerts = \"web\" }")).unwrap();
    let Account::Webhook(web) = &config.accounts["webhook/one.web"] else { panic!() };
    assert_eq!(web.url.as_ref().unwrap().expose().as_str(), "https://hooks.example.com/hunter1");
    assert_eq!(web.headers["x-token"], "hunter2");
    assert!(!format!("{config:?}").contains("hunter"));
    let urls = "account = \"web\"\nurls = [\"https://hooks.example.com\"]";
    let config = read_text(&with_webhook("private = true", urls)).unwrap();
    let Account::Webhook(web) = &config.accounts["webhook/one.web"] else { panic!() };
    assert!(web.url.is_none() && web.private);
}

#[test]
fn what_makes_no_webhook_says_why() {
    let (url, endpoints) = ("url = \"https://hooks.example.com/hunter1\"", "endpoints = { alerts = \"web\" }");
    let urls = "account = \"web\"\nurls = [\"https://hooks.example.com\"]";
    for (account, grant, expected) in [
        ("url = \"hunter1\"", endpoints, "accounts.web.url: expected an https URL, found a text"),
        ("url = \"ftp://hunter1/\"", endpoints, "accounts.web.url: expected an https URL, found a text"),
        ("url = 1", endpoints, "accounts.web.url: expected an https URL, found a whole number"),
        ("url = \"https://10.0.0.1/hunter1\"", endpoints, "out in the world, or private = true"),
        ("url = \"https://169.254.169.254/\"\nprivate = true", endpoints, "out in the world, or private = true"),
        ("url_file = \"/nowhere\"", endpoints, "accounts.web.url_file: read /nowhere"),
        (&format!("{url}\nurl_file = \"a\""), endpoints, "expected one of url and url_file, found both"),
        (
            &format!("{url}\nheaders = {{ Host = \"hunter2\" }}"),
            endpoints,
            "headers.Host: expected the name of a header",
        ),
        (&format!("{url}\nheaders = {{ \"a b\" = \"c\" }}"), endpoints, "expected the name of a header"),
        (&format!("{url}\nheaders = {{ a = \"hunter2\\n\" }}"), endpoints, "headers.a: expected one line"),
        (&format!("{url}\nheaders = {{ a = \"b\", A = \"b\" }}"), endpoints, "expected it once"),
        (&format!("{url}\nheaders = [\"a: b\"]"), endpoints, "headers: expected a table, found a list"),
        (&format!("{url}\nprivate = \"yes\""), endpoints, "private: expected true or false"),
        (url, "", "grant.webhook: expected endpoints, urls or both, found neither"),
        (url, "endpoints = { \"a b\" = \"web\" }", "expected a name of A-Z a-z 0-9 - _"),
        (
            url,
            "endpoints = { alerts = \"wep\" }",
            "endpoints.alerts: expected an account for webhook: web, found another name: did you mean web?",
        ),
        (url, "endpoints = { alerts = \"mail\" }", "found mail, which is for email"),
        ("", endpoints, "endpoints.alerts: expected an account with a url"),
        (url, urls, "account: expected an account without a url"),
        ("", "urls = [\"https://hooks.example.com\"]", "account: expected the name of an account"),
        ("", "account = \"web\"", "account: expected urls beside it"),
        ("", "account = \"web\"\nurls = [\"hooks.example.com\"]", "urls: expected a list of addresses"),
        ("private = true", "account = \"web\"\nurls = [\"*\"]", "urls: expected hosts where the account is private"),
    ] {
        let found = problems(&with_webhook(account, grant));
        assert!(found.iter().any(|problem| problem.contains(expected)), "{account} {grant}: {found:#?}");
        assert!(!found.iter().any(|problem| problem.contains("hunter")), "{found:#?}");
    }
}

#[test]
fn variables_that_a_file_hides_are_noted() {
    let environment = [("PULSE_PASSWORD", "x"), ("PULSE_HOST", "h"), ("LOG_LEVEL", "loud")].into_iter().collect();
    let notes = parse("pn.toml", Ok(&least()), &environment, Role::All, None).unwrap().notes;
    assert!(notes.iter().any(|note| note.ends_with(": PULSE_HOST")), "{notes:?}");
    assert!(notes.iter().any(|note| note.starts_with("LOG_LEVEL is none of")), "{notes:?}");
}

#[derive(Clone, Debug)]
enum Edit {
    Insert(String),
    Delete(usize),
    Double(usize),
    Cut,
}

fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, Edit)>> {
    let hostile = prop::sample::select(vec![
        "\"",
        "'",
        "\"\"\"",
        "[",
        "]",
        "[[",
        "{",
        "}",
        "=",
        ".",
        "#",
        "\n",
        "\r",
        "\0",
        "\u{1b}[31m",
        "\u{202e}",
        "${",
        "${}",
        "${PULSE_PASSWORD}",
        "$${",
        "\\u{110000}",
        "-1",
        "99999999999999999999",
        "1e999",
        "nan",
        "inf",
        "0x",
        "1979-05-27",
        "true",
        "*",
        "tenants",
        "x = 1\n",
        "[broker]\n",
        "\u{feff}",
        "\u{7f}",
        "é",
    ]);
    let edit = prop_oneof![
        hostile.prop_map(|text| Edit::Insert(text.to_owned())),
        any::<String>().prop_map(Edit::Insert),
        (1..200_usize).prop_map(Edit::Delete),
        (1..200_usize).prop_map(Edit::Double),
        Just(Edit::Cut),
    ];
    prop::collection::vec((any::<prop::sample::Index>(), edit), 1..6)
}

fn mutated(edits: &[(prop::sample::Index, Edit)]) -> String {
    let mut text: Vec<char> = EXAMPLE.chars().collect();
    for (index, edit) in edits {
        if text.is_empty() {
            break;
        }
        let at = index.index(text.len());
        match edit {
            Edit::Insert(more) => _ = text.splice(at..at, more.chars()),
            Edit::Delete(count) => _ = text.drain(at..(at + count).min(text.len())),
            Edit::Double(count) => {
                let twice: Vec<_> = text[at..(at + count).min(text.len())].to_vec();
                text.splice(at..at, twice);
            }
            Edit::Cut => text.truncate(at),
        }
    }
    text.into_iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_mutation_of_the_example_makes_it_panic_or_show_a_secret(edits in edits()) {
        if let Err(error) = read_text(&mutated(&edits)) {
            prop_assert!(!error.problems.is_empty());
            let text = error.to_string();
            prop_assert!(!text.contains("hunter"), "{text}");
            prop_assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        }
    }
}

const ACCOUNTS: &str = r##"
[broker]
login = "me"
password = "${PULSE_PASSWORD}"

[tenants.one.queue]
name = "q"

[tenants.one.accounts.mail]
kind = "smtp"
host = "mail.example.com"
from = "ci@example.com"
password = "${MAIL_PW}"

[tenants.one.accounts.hooks]
kind = "webhook"
url = "${HOOK_URL}"
hmac_secret_file = "/nowhere/at/all"
headers = { accept = "text/plain", authorization = "Bearer ${HOOK_TOKEN}" }

[tenants.one.accounts.other]
kind = "amqp"
host = "rabbitmq.example.com"
login = "ci"
password = "${OTHER_PW}"

[tenants.one.plugins.slack.grant.webhook]
endpoints = { alerts = "hooks" }
"##;

fn as_intake(text: &str, more: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let variables = [("PULSE_PASSWORD", "hunter1")];
    parse("pn.toml", Ok(text), &variables.iter().chain(more).copied().collect(), Role::Intake, None)
}

#[test]
fn the_intake_does_without_the_accounts_secrets_and_each_that_it_sees_is_a_problem() {
    let unseen = as_intake(ACCOUNTS, &[]).unwrap();
    assert_eq!(unseen.tenants[0].plugins["slack"].grant.webhook.as_ref().unwrap().endpoints.len(), 1);
    for (variable, place) in [
        ("MAIL_PW", "pn.toml:13: tenants.one.accounts.mail.password: "),
        ("HOOK_URL", "pn.toml:17: tenants.one.accounts.hooks.url: "),
        ("HOOK_TOKEN", "pn.toml:19: tenants.one.accounts.hooks.headers.authorization: "),
        ("OTHER_PW", "pn.toml:25: tenants.one.accounts.other.password: "),
    ] {
        let said = as_intake(ACCOUNTS, &[(variable, "https://swordfish.example.com")]).unwrap_err().to_string();
        assert!(said.contains(&format!("{place}expected to be out of the intake role's sight")), "{variable}: {said}");
        assert!(!said.contains("swordfish"), "{said}");
        // A secret that is the broker's is the intake's own.
        if variable.ends_with("PW") {
            assert!(as_intake(ACCOUNTS, &[(variable, "hunter1")]).is_ok());
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, "swordfish\n").unwrap();
    let text = ACCOUNTS.replace("/nowhere/at/all", &file.display().to_string());
    let said = as_intake(&text, &[]).unwrap_err().to_string();
    assert!(said.contains("accounts.hooks.hmac_secret_file: expected to be out of") && !said.contains("swordfish"));
    // What is wrong is wrong all the same.
    let said = as_intake(&ACCOUNTS.replace("${MAIL_PW}", "${oh no}"), &[]).unwrap_err().to_string();
    assert!(said.contains("accounts.mail.password: expected ${VARIABLE}"), "{said}");
    let said = as_intake(&ACCOUNTS.replace("\"${MAIL_PW}\"", "7"), &[]).unwrap_err().to_string();
    assert!(said.contains("accounts.mail.password: expected a text"), "{said}");
    assert!(as_intake(&ACCOUNTS.replace("[broker]\n", "[broker]\nhost = 7\n"), &[]).is_err());
    let without = parse("pn.toml", Ok(ACCOUNTS), &Environment::default(), Role::Intake, None).unwrap_err().to_string();
    assert!(without.contains("broker.password: expected the variable PULSE_PASSWORD"), "{without}");
}

#[test]
fn the_courier_does_without_the_brokers_password_but_not_without_an_accounts() {
    let all = [("MAIL_PW", "a"), ("HOOK_URL", "https://hooks.example.com/x"), ("HOOK_TOKEN", "b"), ("OTHER_PW", "c")];
    let text = ACCOUNTS.replace("hmac_secret_file = \"/nowhere/at/all\"\n", "");
    let as_courier = |text: &str, variables: &[(&str, &str)]| {
        parse("pn.toml", Ok(text), &variables.iter().copied().collect(), Role::Courier, None)
    };
    assert!(as_courier(&text, &all).unwrap().broker.password.expose().is_empty());
    assert!(as_courier(&text.replace("password = \"${PULSE_PASSWORD}\"\n", ""), &all).is_ok());
    let said = as_courier(&text, &all[1..]).unwrap_err().to_string();
    assert!(said.contains("accounts.mail.password: expected the variable MAIL_PW"), "{said}");
    let own = text.replace("host = \"rabbitmq.example.com\"\nlogin = \"ci\"\npassword = \"${OTHER_PW}\"\n", "");
    let said = as_courier(&own, &all).unwrap_err().to_string();
    assert!(said.contains("accounts.other: expected the password of the service's broker"), "{said}");
}
