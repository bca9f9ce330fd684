//! Tenants that come, change and go while the service runs.

use std::time::Duration;

use anyhow::Result;
use end_to_end::tenants::readiness;
use end_to_end::world::mail_to;
use end_to_end::{Broker, World, wait};
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn each_tenant_has_its_own_queue_and_mails_its_own_recipients_alone() -> Result<()> {
    let world = World::new(Broker::shared().await?, &["smtp"]).await?;
    let (red, blue) = (
        world.tenant("red", &[("smtp", &["*@red.example.com"])]),
        world.tenant("blue", &[("smtp", &["*@blue.example.com"])]),
    );
    let mut service = world.service_of_tenants(&[("red", &red), ("blue", &blue)])?;
    service.start()?;
    wait::until("both are consumed", SOON, async || {
        let queues = readiness(&service).await.map(|(_, said)| said["queues"].clone()).unwrap_or_default();
        Ok(queues == json!({"red": "consuming", "blue": "consuming"}))
    })
    .await?;
    for tenant in ["red", "blue"] {
        let both = json!({"plugins": ["smtp"], "emails": ["a@red.example.com", "a@blue.example.com"]});
        world.publish(&world.failed_task_of(tenant, &both).1).await?;
    }
    let mut mails = world.smtp.wait_for_mails(2, SOON).await?;
    mails.sort_by_key(|mail| mail.to.clone());
    let to: Vec<_> = mails.iter().map(|mail| mail.to.concat()).collect();
    assert_eq!(to, ["a@blue.example.com", "a@red.example.com"]);
    world.publish(&world.failed_task_of("red", &mail_to("b@red.example.com")).1).await?;
    world.smtp.wait_for_mails(3, SOON).await?;
    Ok(())
}
