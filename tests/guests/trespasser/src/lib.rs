//! A plugin that reaches for what others own: the notification's message says what. All of it is refused and on record.

use pulse_notifier_sdk::{Event, Failure, Result, amqp, plugin, s3};

plugin!(notify);

fn notify(event: &Event) -> Result {
    match event.notification.message.as_str() {
        "foreign keys" => {
            for key in ["blue/log", "../blue/log", "red/../blue/log", "red//log", "/red/log", "red/a\nb", "red/\0", ""]
            {
                drop(s3::put(key, "text/plain", b"x"));
            }
            drop(s3::put("red/a", "text/plain\r\nx-amz-acl: public-read", b"x"));
            drop(s3::put_gzipped_artifact("red/a", "text/plain", 0, "../../secrets"));
            Ok(())
        }
        "foreign exchanges" => {
            for exchange in ["", "amq.direct", "exchange/taskcluster-queue/v1/task-failed", "exchange/red/granted\0"] {
                drop(amqp::publish(exchange, "key", "text/plain", b"x"));
            }
            drop(amqp::publish("exchange/red/granted", &"k".repeat(256), "text/plain", b"x"));
            drop(amqp::publish("exchange/red/granted", "key", "text/plain\nCC: everybody", b"x"));
            Ok(())
        }
        other => Err(Failure::Failed(format!("unknown attack {other:?}"))),
    }
}
