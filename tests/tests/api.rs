//! The admin API: who may see and do what, and what comes of anything else.

use std::cell::Cell;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use end_to_end::stamped::{LIVE, admin_port, put, said, stamp, version};
use end_to_end::tenants::lines;
use end_to_end::world::{mail_to, store};
use end_to_end::{Behaviour, Broker, Service, World, bombs, guest, raw_request, wait};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SOON: Duration = Duration::from_secs(60);
const CONFIG: [&str; 2] = ["--config", "pn.toml"];

/// Method, path and body; status, place and what is said.
type Case<'a> = (&'a str, &'a str, &'a [u8], u16, &'a str, &'a str);

/// A service with two tenants, and a token for each of them and for the operator.
struct Api {
    world: World,
    service: Service,
    port: u16,
    operator: String,
    red: String,
    blue: String,
}

impl Api {
    async fn new() -> Result<Self> {
        let world = World::new(Broker::shared().await?, &["smtp", "stamped", "hostile"]).await?;
        let plugins: &[(&str, &[&str])] =
            &[("smtp", &["*@example.com"]), ("stamped", &["*@example.com"]), ("hostile", &["*@example.com"])];
        // It imports IRC too; nobody listens there.
        let irc = "[accounts.chat]\nkind = \"irc\"\nhost = \"localhost\"\nport = 1\nnick = \"pulse\"\n\
                   [plugins.hostile.grant.irc]\naccount = \"chat\"\nchannels = [\"#ci\"]\n";
        let (red, blue) = (world.tenant("red", plugins) + irc, world.tenant("blue", plugins) + irc);
        let mut service = world.service_of_tenants(&[("red", &red), ("blue", &blue)])?;
        service.start()?;
        let count = |service: &Service| service.output().matches("\"consuming\"").count();
        wait::until("both are consumed", SOON, async || {
            ensure!(service.exit_status()?.is_none(), "it runs");
            Ok(count(&service) >= 2)
        })
        .await?;
        let port = admin_port(&service)?;
        let token = |whose: &[&str]| {
            let arguments = [&["token", "new"], whose, &CONFIG].concat();
            anyhow::Ok(service.command(&arguments)?.trim().to_owned())
        };
        let (operator, red, blue) =
            (token(&["--operator"])?, token(&["--tenant", "red"])?, token(&["--tenant", "blue"])?);
        Ok(Self { world, service, port, operator, red, blue })
    }

    /// An answer's status, and what it says.
    async fn ask(&self, token: &str, method: &str, path: &str, body: &[u8]) -> Result<(u16, Value)> {
        let authorization = format!("authorization: Bearer {token}");
        let answer = raw_request(self.port, method, path, &[&authorization], body).await?;
        ensure!(answer.header("content-type") == Some("application/json"), "{}", answer.head);
        Ok((answer.status, serde_json::from_slice(&answer.body)?))
    }

    async fn read(&self, token: &str, path: &str) -> Result<Value> {
        let (status, said) = self.ask(token, "GET", path, &[]).await?;
        ensure!(status == 200, "{path}: {status} {said}");
        Ok(said)
    }

    /// A task of a tenant that wants something said, once its outcome is in the database.
    async fn settle(&self, tenant: &str, section: &Value) -> Result<String> {
        let store = store(&self.service);
        let before = store.count("SELECT COUNT(*) FROM invocation")?;
        let (task_id, message) = self.world.failed_task_of(tenant, section);
        self.world.publish(&message).await?;
        wait::until("it is settled", SOON, async || Ok(store.count("SELECT COUNT(*) FROM invocation")? > before))
            .await?;
        Ok(task_id)
    }
}

#[tokio::test]
async fn without_a_token_nobody_learns_anything_and_with_a_tenants_nothing_of_another() -> Result<()> {
    let api = Api::new().await?;
    let plugin = "/api/tenants/red/plugins/smtp";
    let (deploy, rollback) = (format!("{plugin}/versions"), format!("{plugin}/rollback"));
    let (quarantine, release) = (format!("{plugin}/quarantine"), format!("{plugin}/release"));
    let all = [
        ("GET", "/api/plugins"),
        ("GET", "/api/tenants/red/plugins"),
        ("GET", plugin),
        ("POST", &deploy),
        ("POST", &rollback),
        ("POST", &quarantine),
        ("POST", &release),
        ("GET", "/api/tenants/red/invocations"),
        ("GET", "/api/tenants/red/effects"),
        ("GET", "/api/tenants/red/dead_deliveries"),
    ];
    let (id, secret) = api.red.rsplit_once('_').context("a secret after an id")?;
    let (other_id, _) = api.blue.rsplit_once('_').context("a secret after an id")?;
    let wrong = [
        String::new(),
        "pn_0123456789abcdef_".to_owned() + &"0".repeat(64),
        format!("{id}_{}", "0".repeat(64)),
        format!("{other_id}_{secret}"),
        format!("{}x", api.red),
        api.red.to_uppercase(),
    ];
    for (method, path) in all {
        let bare = raw_request(api.port, method, path, &[], b"").await?;
        assert_eq!((bare.status, bare.header("www-authenticate")), (401, Some("Bearer")), "{method} {path}");
        for token in &wrong {
            let (status, said) = api.ask(token, method, path, b"").await?;
            assert_eq!((status, &said["place"]), (401, &"authorization".into()), "{method} {path} {token}");
        }
        let basic = raw_request(api.port, method, path, &[&format!("authorization: Basic {}", api.red)], b"").await?;
        assert_eq!(basic.status, 401);
        if path != "/api/plugins" {
            // Whether there is such a tenant or plugin makes no difference to somebody else.
            let there = api.ask(&api.blue, method, path, b"").await?;
            let nowhere = api.ask(&api.blue, method, &path.replace("red", "green"), b"").await?;
            assert_eq!(there.0, 403, "{method} {path}");
            assert_eq!(there, nowhere);
            assert_eq!(there, api.ask(&api.blue, method, &path.replace("smtp", "green"), b"").await?);
            assert_eq!(api.ask(&api.operator, method, &path.replace("red", "green"), b"").await?.0, 404);
        }
    }
    let plugins = api.read(&api.blue, "/api/plugins").await?;
    let tenants = |said: &Value| {
        let plugins = said["plugins"].as_array().cloned().unwrap_or_default();
        plugins.iter().map(|plugin| plugin["tenant"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(tenants(&plugins), ["blue", "blue", "blue"]);
    assert_eq!(tenants(&api.read(&api.operator, "/api/plugins").await?).len(), 6);
    // A token that is revoked is as good as none.
    let id = id.trim_start_matches("pn_");
    assert!(api.service.command(&["token", "list", "--config", "pn.toml"])?.contains(&format!("{id}  tenant red")));
    api.service.command(&["token", "revoke", id, "--config", "pn.toml"])?;
    assert_eq!(api.ask(&api.red, "GET", "/api/plugins", b"").await?.0, 401);
    let database = fs::read(api.service.directory().join("pulse-notifier.db"))?;
    let wal = fs::read(api.service.directory().join("pulse-notifier.db-wal"))?;
    for token in [&api.operator, &api.blue] {
        let secret = token.rsplit_once('_').context("a secret")?.1.as_bytes();
        let is_in = |bytes: &[u8]| bytes.windows(secret.len()).any(|window| window == secret);
        assert!(!is_in(&database) && !is_in(&wal), "the secret is nowhere");
        assert!(!is_in(api.service.output().as_bytes()));
    }
    Ok(())
}

#[tokio::test]
async fn a_tenant_deploys_for_itself_alone_goes_back_and_stops_what_it_has() -> Result<()> {
    let api = Api::new().await?;
    let at_start = lines(&api.service, LIVE).len();
    let plugin = "/api/tenants/red/plugins/stamped";
    let versions = format!("{plugin}/versions");
    let wasm = version(3)?;
    let (status, deployed) = api.ask(&api.red, "POST", &versions, &wasm).await?;
    assert_eq!((status, &deployed["new"]), (200, &json!(true)), "{deployed}");
    let live = said(&api.service, LIVE, at_start + 1).await?;
    assert_eq!(
        (&live["tenant"], &live["digest"], &live["source"]),
        (&"red".into(), &deployed["digest"], &"api".into())
    );
    assert_eq!(api.ask(&api.red, "POST", &versions, &wasm).await?.1["new"], json!(false));
    let subject = async |tenant: &str, address: &str| {
        let section = json!({"plugins": ["stamped"], "emails": [address]});
        api.settle(tenant, &section).await?;
        let mail = wait::until_some("the mail has come", SOON, async || {
            Ok(api.world.smtp.mails()?.into_iter().find(|mail| mail.to == [address]))
        });
        mail.await?.header("Subject").context("it has a subject")
    };
    assert_eq!(subject("red", "a@example.com").await?, stamp(3));
    assert_eq!(subject("blue", "b@example.com").await?, stamp(0), "the other one's is as it was");
    let seen = api.read(&api.red, plugin).await?;
    assert_eq!((&seen["source"], &seen["own"]), (&"api".into(), &json!(true)));
    assert_eq!(seen["versions"].as_array().map(Vec::len), Some(2), "{seen}");

    let rollback = format!("{plugin}/rollback");
    let (status, back) = api.ask(&api.red, "POST", &rollback, b"").await?;
    assert_eq!(status, 200, "{back}");
    said(&api.service, LIVE, at_start + 2).await?;
    assert_eq!(subject("red", "c@example.com").await?, stamp(0));
    assert_eq!(api.ask(&api.red, "POST", &rollback, b"").await?.0, 409, "there is nothing before it");
    let to = json!({"to": deployed["digest"]}).to_string();
    assert_eq!(api.ask(&api.red, "POST", &rollback, to.as_bytes()).await?.0, 200);
    said(&api.service, LIVE, at_start + 3).await?;
    // What it went back to is its own: a file for all does not replace it.
    put(&api.world.plugin_folder().join("stamped.wasm"), &version(7)?)?;
    assert_eq!(said(&api.service, LIVE, at_start + 4).await?["tenant"], "blue");
    assert_eq!(subject("red", "e@example.com").await?, stamp(3));
    assert_eq!(subject("blue", "f@example.com").await?, stamp(7));

    let (quarantine, release) = (format!("{plugin}/quarantine"), format!("{plugin}/release"));
    for (who, whom, status) in
        [(&api.red, &api.red, 200), (&api.operator, &api.red, 403), (&api.red, &api.operator, 200)]
    {
        assert_eq!(api.ask(who, "POST", &quarantine, b"").await?.0, 200);
        let reason = &api.read(&api.red, plugin).await?["quarantined"]["reason"];
        assert!(reason.as_str().is_some_and(|reason| reason.starts_with("by order of the ")), "{reason}");
        assert_eq!(api.ask(whom, "POST", &release, b"").await?.0, status);
    }
    assert_eq!(api.read(&api.red, plugin).await?["quarantined"], Value::Null);

    // What the operator stopped, no other version starts.
    assert_eq!(api.ask(&api.operator, "POST", &quarantine, b"").await?.0, 200);
    assert_eq!(api.ask(&api.red, "POST", &versions, &version(4)?).await?.0, 200);
    said(&api.service, LIVE, at_start + 5).await?;
    assert_eq!(api.ask(&api.red, "POST", &rollback, b"").await?.0, 200);
    said(&api.service, LIVE, at_start + 6).await?;
    assert_eq!(api.read(&api.red, plugin).await?["quarantined"]["reason"], "by order of the operator");
    api.settle("red", &json!({"plugins": ["stamped"], "emails": ["d@example.com"]})).await?;
    let last = "SELECT state FROM invocation ORDER BY id DESC LIMIT 1";
    assert_eq!(store(&api.service).rows(last)?, ["refused"]);
    Ok(())
}

#[tokio::test]
async fn whoever_goes_away_while_his_version_is_compiled_keeps_his_place() -> Result<()> {
    let api = Api::new().await?;
    let versions = "/api/tenants/red/plugins/stamped/versions";
    let bomb = bombs::functions(100, &bombs::slow_body(100 << 10));
    let head = format!(
        "POST {versions} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n",
        api.red,
        bomb.len()
    );
    let mut connection = TcpStream::connect(("127.0.0.1", api.port)).await?;
    connection.write_all(head.as_bytes()).await?;
    connection.write_all(&bomb).await?;
    wait::until("it is compiled", SOON, async || Ok(api.service.children()?.len() == 1)).await?;
    drop(connection);
    let (done, most) = (Cell::new(false), Cell::new(0));
    let ask = async {
        let answer = api.ask(&api.red, "POST", versions, &version(1)?).await;
        done.set(true);
        answer
    };
    let count = wait::until("there is an answer", SOON, async || {
        most.set(api.service.children()?.len().max(most.get()));
        Ok(done.get())
    });
    let (answer, ()) = tokio::try_join!(ask, count)?;
    assert_eq!((answer.0, most.get()), (200, 1), "one at a time");
    Ok(())
}

#[tokio::test]
async fn what_is_sent_to_it_is_bounded_and_what_is_wrong_is_named() -> Result<()> {
    let api = Api::new().await?;
    let at_start = lines(&api.service, LIVE).len();
    let plugin = "/api/tenants/red/plugins/stamped";
    let versions = format!("{plugin}/versions");
    let rollback = format!("{plugin}/rollback");
    let sns = fs::read(guest("sns")?)?;
    let cases: [Case<'_>; 16] = [
        ("POST", &versions, b"garbage", 422, "body", "expected a WebAssembly component"),
        ("POST", &versions, b"", 422, "body", "expected a WebAssembly component"),
        ("POST", &versions, &sns, 422, "body", "[plugins.stamped.grant.sns]\naccount = "),
        ("POST", &versions, &bombs::functions(100_000, &[]), 422, "body", "100000 functions, more than the 50000"),
        ("POST", &versions, &vec![0; 11 << 20], 413, "body", "expected at most 10485760 bytes"),
        ("POST", "/api/tenants/red/plugins/green/versions", b"", 404, "plugin", "expected the name of a plugin"),
        ("POST", &rollback, b"{", 400, "body", "expected nothing, or {\"to\": DIGEST}"),
        ("POST", &rollback, b"{\"two\": 1}", 400, "body", "unknown field"),
        ("POST", &rollback, b"{\"to\": \"../..\"}", 400, "to", "expected 8 to 64 hexadecimal digits"),
        ("POST", &rollback, &vec![b' '; 5_000], 413, "body", "expected at most 4096 bytes"),
        ("GET", "/api/tenants/red/effects?limit=0", b"", 400, "limit", "expected a whole number from 1 to 200"),
        ("GET", "/api/tenants/red/effects?before=%27", b"", 400, "before", "expected a whole number from 0"),
        ("GET", "/api/tenants/red/effects?state=done", b"", 400, "state", "expected one of pending, claimed"),
        ("GET", "/api/tenants/red/invocations?refused=1", b"", 400, "refused", "expected true or false"),
        ("GET", "/api/tenants/red/invocations?page=1", b"", 400, "query", "expected no parameters but limit, before"),
        ("GET", "/api/nothing", b"", 404, "path", "expected a path of the API"),
    ];
    for (method, path, body, status, place, what) in cases {
        let answer = api.ask(&api.red, method, path, body).await?;
        assert_eq!((answer.0, &answer.1["place"]), (status, &place.into()), "{method} {path}: {}", answer.1);
        assert!(answer.1["error"].as_str().is_some_and(|error| error.contains(what)), "{path}: {}", answer.1);
    }
    assert_eq!(api.ask(&api.red, "DELETE", plugin, b"").await?.0, 405);
    assert_eq!(lines(&api.service, LIVE).len(), at_start, "nothing is live but what was");
    // Somebody who sends a version byte by byte, again and again, keeps nobody else from sending one.
    let head = format!(
        "POST {versions} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nconnection: close\r\n\
         content-length: 90000\r\n\r\n\0",
        api.red
    );
    let mut slow = Vec::new();
    wait::until("there is no place for another", Duration::from_secs(20), async || {
        let mut connection = TcpStream::connect(("127.0.0.1", api.port)).await?;
        connection.write_all(head.as_bytes()).await?;
        slow.push(connection);
        Ok(api.ask(&api.red, "POST", &versions, b"garbage").await?.0 == 503)
    })
    .await?;
    assert!(slow.len() >= 2);
    api.read(&api.red, plugin).await?;
    assert_eq!(api.ask(&api.operator, "POST", &versions, b"garbage").await?.0, 422, "there is a place for another");
    let mut too_slow = 0;
    for mut connection in slow {
        let mut answer = String::new();
        tokio::time::timeout(SOON, connection.read_to_string(&mut answer)).await??;
        too_slow += u32::from(answer.starts_with("HTTP/1.1 408 "));
    }
    assert_eq!(too_slow, 2, "the others had no place");
    Ok(())
}

#[tokio::test]
async fn a_tenant_sees_what_became_of_its_events_page_by_page_and_no_setting() -> Result<()> {
    let api = Api::new().await?;
    api.world.smtp.behave_for("gone@example.com", Behaviour::Reply("550 no such user".into()))?;
    let hostile = |what: &str| json!({"plugins": {"hostile": {"message": what}}, "emails": ["a@example.com"]});
    let trapped = api.settle("red", &hostile("trap")).await?;
    let injected = api.settle("red", &hostile("inject")).await?;
    let logged = api.settle("red", &hostile("log injection")).await?;
    let refused = api.settle("red", &mail_to("gone@example.com")).await?;
    api.settle("blue", &mail_to("sheriff-of-blue@example.com")).await?;
    api.world.vhost.publish("exchange/taskcluster-queue/v1/task-failed", "red.x", &[], b"no event").await?;

    let all = api.read(&api.red, "/api/tenants/red/invocations").await?;
    let of = |said: &Value, task: &str| {
        let all = said["invocations"].as_array().or(said["effects"].as_array()).cloned().unwrap_or_default();
        all.into_iter().find(|one| one["task"] == task).unwrap_or_default()
    };
    assert_eq!(all["invocations"].as_array().map(Vec::len), Some(4), "{all}");
    let fault = of(&all, &trapped);
    assert_eq!(fault["state"], "faulted");
    assert!(fault["reason"].as_str().is_some_and(|reason| reason.starts_with("trap: ")), "{fault}");
    assert_eq!(of(&all, &injected)["refusals"].as_array().map(Vec::len), Some(2));
    assert!(of(&all, &logged)["log"].to_string().contains("one"));
    for (query, count) in [("state=faulted", 1), ("plugin=smtp", 1), ("refused=true", 1), ("plugin=green", 0)] {
        let some = api.read(&api.red, &format!("/api/tenants/red/invocations?{query}")).await?;
        assert_eq!(some["invocations"].as_array().map(Vec::len), Some(count), "{query}: {some}");
    }
    // Page by page, each once.
    let (mut path, mut ids) = ("/api/tenants/red/invocations?limit=1".to_owned(), Vec::new());
    loop {
        let page = api.read(&api.red, &path).await?;
        let Some(before) = page["before"].as_i64() else { break };
        ids.extend(page["invocations"].as_array().into_iter().flatten().filter_map(|one| one["id"].as_i64()));
        path = format!("/api/tenants/red/invocations?limit=1&before={before}");
    }
    let expected: Vec<_> =
        all["invocations"].as_array().into_iter().flatten().filter_map(|one| one["id"].as_i64()).collect();
    assert_eq!(ids, expected);

    let dead = wait::until_some("the recipient was turned down", SOON, async || {
        let dead = api.read(&api.red, "/api/tenants/red/effects?state=dead").await?;
        Ok(Some(of(&dead, &refused)).filter(|dead| *dead != Value::Null))
    })
    .await?;
    assert_eq!(
        (&dead["recipient"], &dead["effect"]["subject"]),
        (&"gone@example.com".into(), &"It failed".into()),
        "{dead}"
    );
    assert_eq!(dead["attempts"][0]["outcome"], "permanent");
    assert!(dead["attempts"][0]["answer"].as_str().is_some_and(|answer| answer.contains("no such user")), "{dead}");
    let buried = wait::until_some("it is kept", SOON, async || {
        let dead = api.read(&api.red, "/api/tenants/red/dead_deliveries").await?;
        Ok(dead["dead_deliveries"].get(0).cloned())
    })
    .await?;
    assert_eq!((&buried["body"], &buried["bytes"]), (&"no event".into(), &json!(8)));
    let seen = api.read(&api.red, "/api/tenants/red/plugins/hostile").await?;
    assert_eq!(seen["faults"][0]["task"], trapped);
    // Nothing of it is another's, and no secret is in any of it.
    let mut everything = String::new();
    for path in ["plugins", "plugins/smtp", "invocations", "effects", "dead_deliveries"] {
        everything += &api.read(&api.red, &format!("/api/tenants/red/{path}")).await?.to_string();
    }
    assert!(!everything.contains("blue"), "{everything}");
    assert!(!everything.contains(api.world.smtp.password()));
    Ok(())
}
