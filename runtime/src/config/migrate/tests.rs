use super::*;

const LEAST: [(&str, &str); 6] = [
    ("PN_SERVICES", "smtp"),
    ("PULSE_LOGIN", "me"),
    ("PULSE_PASSWORD", "hunter2"),
    ("PULSE_QUEUE", "q"),
    ("SMTP_HOST", "mail.example.com"),
    ("SMTP_EMAIL", "ci@example.com"),
];

fn with<'a>(more: &[(&'a str, &'a str)]) -> Environment {
    LEAST.iter().chain(more).copied().collect()
}

/// The file, after looking whether it says what the variables say.
fn same(environment: &Environment) -> String {
    let text = migrate(environment).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pn.toml");
    std::fs::write(&path, &text).unwrap();
    let from_file = Config::from_file(&path, environment).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let from_environment = legacy::read(environment, Role::All).unwrap();
    let without_notes = |config: Config| Config { notes: Vec::new(), ..config };
    assert_eq!(without_notes(from_environment), without_notes(from_file), "{text}");
    assert!(!text.contains("hunter"), "{text}");
    text
}

#[test]
fn the_file_says_what_the_variables_say() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let template = path("mail.html", "<p>{{ message }} ${x}</p>\n");
    let identities = path(
        "ids.yml",
        "release:\n  plugins: [ses]\n  emails: ['a@example.com']\n  other: {n: 1, f: 1.5, t: true, l: [1, '${x} \"\\\\']}\nempty:\n'two words': {message: \"a\\nb\\tc\"}\n",
    );
    let untold = path("null.yml", "release: {message: null, n: 18446744073709551615}\n");
    let store = format!("sqlite:{}", folder.path().join("pn.db").display());
    let everything: Vec<(&str, &str)> = vec![
        ("PN_SERVICES", "smtp:irc:ses:sns:log_collect:repulse:own-plugin"),
        ("PN_PLUGINS", "some/where"),
        ("PN_CACHE", "some/where/else"),
        ("PN_STORE", &store),
        ("PN_IDENTITIES", &identities),
        ("PN_DELIVERY", "capture"),
        ("PN_ADMIN", "0.0.0.0:1"),
        ("PN_DRAIN_SECONDS", "7"),
        ("PN_KEEP_DAYS", "9"),
        ("PULSE_HOST", "pulse.example.com"),
        ("PULSE_PORT", "5672"),
        ("PULSE_SSL", "False"),
        ("PULSE_VHOST", "v h"),
        ("PULSE_EXCHANGES", "task-failed:exchange/other/v1/x:task-failed"),
        ("ROUTING_KEYS", "route.a.#:route.\"b"),
        ("PULSE_QUEUE_TYPE", "quorum"),
        ("TASKCLUSTER_ROOT_URL", "https://tc.example.com"),
        ("SMTP_PORT", "465"),
        ("SMTP_PASSWD", "hunter3"),
        ("SMTP_SECURITY", "tls"),
        ("SMTP_TEMPLATE", &template),
        ("SES_EMAIL", "ses@example.com"),
        ("SNS_ARN", "arn:aws:sns:us-east-1:123456789012:t"),
        ("S3_BUCKET", "logs"),
        ("S3_ACL", "none"),
        ("REPULSE_EXCHANGE", "again"),
        ("REPULSE_ROUTING_KEY", "a.b"),
        ("IRC_HOST", "irc.example.com"),
        ("IRC_NICK", "bot"),
        ("IRC_NAME", "A \"bot\" \\ ${x}"),
        ("IRC_PASS", "hunter4"),
        ("IRC_CHAN", "#ci"),
        ("IRC_TLS", "no"),
        ("IRC_PORT", "6667"),
        ("IRC_BURST", "1"),
        ("IRC_LINE_SECONDS", "0.1"),
        ("EMAIL_THREADING_DOMAIN", "example.com"),
    ];
    let cases: Vec<Vec<(&str, &str)>> = vec![
        vec![],
        everything,
        vec![("PN_IDENTITIES", &untold)],
        vec![
            ("PULSE_EXCHANGES", "\"task-failed:task-running\""),
            ("PULSE_HOST", "'h'"),
            ("SMTP_PASSWD", "\"hunter 5\""),
        ],
        vec![("SMTP_TEMPLATE", "True")],
        vec![("SMTP_TEMPLATE", "False")],
        vec![("PN_SERVICES", "other"), ("SMTP_TEMPLATE", &template)],
        vec![("PULSE_SSL", "True"), ("FLUX_RECORD", "0"), ("INFLUXDB_HOST", "h"), ("LOG_LEVEL", "loud")],
        vec![("PN_ADMIN", "none"), ("TASKCLUSTER_ROOT_URL", "http://tc.example.com/")],
        vec![("PN_SERVICES", "log_collect"), ("S3_BUCKET", "b")],
        vec![("PN_SERVICES", "repulse"), ("REPULSE_EXCHANGE", "x"), ("PULSE_EXCHANGES", "exchange/me/x")],
        vec![("PN_STORE", "sqlite:${x}"), ("PULSE_QUEUE", "q \\ ü\"")],
        vec![("PN_DRAIN_SECONDS", "18446744073709551")],
    ];
    for case in cases {
        same(&with(&case));
    }
}

#[test]
fn only_what_concerns_this_configuration_is_said() {
    let least = same(&with(&[]));
    for expected in
        ["is acked once its outcome is on disk", "plural one wins", "is escaped in mails", "Narrow `recipients`"]
    {
        assert!(least.replace("\n#   ", " ").contains(expected), "{expected}: {least}");
    }
    for other in ["IRC", "SNS", "InfluxDB", "LOG_LEVEL", "PULSE_SSL", "repulse", "S3_ACL"] {
        assert!(!least.contains(other), "{other}: {least}");
    }
    let more = same(&with(&[
        ("INFLUXDB_HOST", "h"),
        ("INFLUXDB_NAME", "n"),
        ("LOG_LEVEL", "loud"),
        ("PULSE_SSL", "0"),
        ("SMTP_OLD", "x"),
    ]));
    for expected in ["InfluxDB in batches", "LOG_LEVEL is none", "PULSE_SSL is read", "SMTP_OLD is set, but nothing"] {
        assert!(more.contains(expected), "{expected}: {more}");
    }
}

#[test]
fn the_problems_of_the_variables_are_told() {
    assert!(migrate(&Environment::default()).unwrap_err().to_string().contains("PULSE_LOGIN"));
}
