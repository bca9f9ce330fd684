// Mails what a task wants said, as plain text: the message, the task's link, its collected logs and the date.
// The world is `mailer` in wit/small.wit; `componentize-qjs` makes a component of this file.

import email from "pulse:notifier/email@0.1.0";
import log from "pulse:notifier/log@0.1.0";
import settings from "pulse:notifier/settings@0.1.0";

export function notify(event) {
  const wanted = event.notification;
  if (wanted.emails.length === 0) {
    log.write("info", "nobody to tell: the notification names no address");
    return;
  }
  // `signature`: the operator's, at the end of each mail.
  const signature = settings.get("signature");
  const mail = {
    to: wanted.emails,
    subject: wanted.subject,
    text: text(event) + (signature === null ? "" : `\n${signature}\n`),
    html: null,
    thread: event.taskGroupId,
  };
  try {
    email.send(mail);
  } catch (error) {
    // A refused effect is a reason to fail: this asked for what it may not have. A bug is none: it traps.
    if (error.payload === undefined) {
      throw error;
    }
    throw { tag: "failed", val: `${error.payload.tag}: ${error.payload.val}` };
  }
}

function text(event) {
  const logs = event.logs.map((log) => `Log: ${log.url}`);
  const lines = [event.notification.message.trimEnd(), "", `Task: ${event.taskUrl}`, ...logs, `Date: ${date(event.time)}`];
  return lines.join("\n") + "\n";
}

/** The day something happened, as people write it: `Jan 30, 2018`. */
function date(time) {
  const [year, month, day] = time.slice(0, 10).split("-");
  return `${MONTHS[Number(month) - 1]} ${day}, ${year}`;
}

const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
