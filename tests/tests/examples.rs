//! Plugins in other languages than Rust, in the service: admitted when their limits say so, and their mails arrive.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use end_to_end::{Broker, World, example};
use pulse_notifier::grant::Grant;
use pulse_notifier::sandbox::{AdmissionError, ComponentLimits, Sandbox};
use serde_json::json;

const SOON: Duration = Duration::from_secs(120);
/// What an interpreter that is compiled to WebAssembly needs beyond the usual.
const LIMITS_OF_PYTHON: &str = "[plugins.python_mail.limits]
component_bytes = 33554432
core_instances = 256
table_elements = 100000
compile_seconds = 120
compile_memory_bytes = 4294967296
";

#[tokio::test]
async fn mails_of_plugins_in_javascript_and_python_arrive() -> Result<()> {
    let world = World::new(Broker::shared().await?, &[]).await?;
    for name in ["javascript_mail", "python_mail"] {
        fs::copy(example(name)?, world.plugin_folder().join(format!("{name}.wasm")))?;
    }
    let plugins: [(&str, &[&str]); 2] = [("javascript_mail", &["*@example.com"]), ("python_mail", &["*@example.com"])];
    let tenant = world.tenant("one", &plugins) + LIMITS_OF_PYTHON;
    let mut service = world.service_of_tenants(&[("one", &tenant)])?;
    service.start()?;
    service.wait_for_output("consuming", SOON).await?;
    for round in 0..3 {
        for plugin in ["javascript_mail", "python_mail"] {
            let section = json!({"plugins": [plugin], "emails": [format!("{plugin}-{round}@example.com")],
                "subject": "It failed ☃", "message": "{task_id} failed"});
            world.publish(&world.failed_task_of("one", &section).1).await?;
        }
    }
    let mails = world.smtp.wait_for_mails(6, SOON).await?;
    let mut recipients: Vec<_> = mails.iter().flat_map(|mail| mail.to.clone()).collect();
    recipients.sort();
    let expected = ["javascript_mail", "python_mail"].map(|name| [0, 1, 2].map(|n| format!("{name}-{n}@example.com")));
    assert_eq!(recipients, expected.concat());
    Ok(())
}

#[test]
fn an_interpreter_is_not_let_in_by_the_usual_limits_which_says_what_to_set() -> Result<()> {
    let python = fs::read(example("python_mail")?)?;
    let admitted = Sandbox::start()?.admit("python_mail", &python, &Grant::towards(&[]), &ComponentLimits::default());
    let why = admitted.map(drop).map_err(|error: AdmissionError| error.to_string());
    assert!(why.as_ref().is_err_and(|why| why.contains("component_bytes")), "{why:?}");
    Ok(())
}
