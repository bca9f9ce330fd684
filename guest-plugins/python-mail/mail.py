"""Mails what a task wants said, as plain text: the message, the task's link, its collected logs and the date.

The world is `mailer` in wit/small.wit; `componentize-py` makes a component of this file.
"""

import wit_world
from componentize_py_types import Err
from wit_world.imports import email, log, settings, types


class WitWorld(wit_world.WitWorld):
    def notify(self, event: types.Event) -> None:
        wanted = event.notification
        if not wanted.emails:
            log.write(log.Level.INFO, "nobody to tell: the notification names no address")
            return
        # `signature`: the operator's, at the end of each mail.
        signature = settings.get("signature")
        text = mail_text(event) + ("" if signature is None else f"\n{signature}\n")
        mail = email.Mail(to=wanted.emails, subject=wanted.subject, text=text, html=None, thread=event.task_group_id)
        try:
            email.send(mail)
        except Err as error:
            # A refused effect is a reason to fail: this asked for what it may not have. A bug is none: it traps.
            raise Err(types.Failure_Failed(f"{REFUSALS[type(error.value)]}: {error.value.value}")) from None


def mail_text(event: types.Event) -> str:
    logs = [f"Log: {log.url}" for log in event.logs]
    lines = [event.notification.message.rstrip(), "", f"Task: {event.task_url}", *logs, f"Date: {date(event.time)}"]
    return "\n".join(lines) + "\n"


def date(time: str) -> str:
    """The day something happened, as people write it: `Jan 30, 2018`."""
    year, month, day = time[:10].split("-")
    return f"{MONTHS[int(month) - 1]} {day}, {year}"


MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
REFUSALS = {
    types.Refusal_NotGranted: "not-granted",
    types.Refusal_Invalid: "invalid",
    types.Refusal_OverLimit: "over-limit",
}
