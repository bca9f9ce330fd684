"""An SMTP server that journals what happens to it and misbehaves on demand.

smtp_server.py MODE USER PASSWORD, in a directory that holds certificate.pem, key.pem and behaviour.json.
It appends one JSON object a line to journal.ndjson, a mail's before the reply that accepts it.
"""

import asyncio
import json
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult

MODE, USER, PASSWORD = sys.argv[1:]
JOURNAL = open("journal.ndjson", "ab", buffering=0)


def note(phase, **facts):
    JOURNAL.write(json.dumps({"phase": phase, **facts}).encode() + b"\n")


def authenticate(server, session, envelope, mechanism, login):
    return AuthResult(success=login == (USER.encode(), PASSWORD.encode()), handled=False, auth_data=login)


class Server(SMTP):
    connections = 0

    async def _handle_client(self):
        Server.connections += 1
        self.connection = Server.connections
        reply = await self.obey("greeting")
        if reply:
            await self.push(reply)
            self.transport.close()
        else:
            await super()._handle_client()

    async def obey(self, phase, recipient=None):
        """Journals the phase and does what was ordered for it; returns the reply to give, if one was ordered."""
        note(phase, connection=self.connection)
        with open("behaviour.json") as file:
            orders = json.load(file)
        match orders.get(recipient, orders.get(phase)):
            case {"reply": reply}:
                return reply
            case {"delay_ms": delay_ms}:
                await asyncio.sleep(delay_ms / 1000)
            case "hang":
                await asyncio.Event().wait()
            case "drop":
                self.drop()
            case "accept_then_drop":
                self.accept()
                self.drop()

    def drop(self):
        self.transport.abort()
        raise asyncio.CancelledError

    def accept(self):
        envelope, login = self.envelope, self.session.login_data
        note(
            "accepted",
            connection=self.connection,
            tls=MODE == "tls" or self.session.ssl is not None,
            user=login and login.decode(),
            **{"from": envelope.mail_from, "to": envelope.rcpt_tos},
            data=envelope.original_content.decode("latin-1"),
        )


class Handler:
    async def handle_EHLO(self, server, session, envelope, hostname, responses):
        session.host_name = hostname
        return responses[:-1] + ["250-PIPELINING"] * (MODE == "starttls") + responses[-1:]

    async def handle_DATA(self, server, session, envelope):
        reply = await server.obey("dot")
        if not reply:
            server.accept()
        return reply or "250 2.0.0 accepted"


def staged(command, phase):
    """The command of the base class, unless something else was ordered for the phase."""

    async def obeying(self, argument):
        recipient = argument.partition("<")[2].partition(">")[0] if phase == "rcpt" and argument else None
        reply = await self.obey(phase, recipient)
        if reply:
            await self.push(reply)
        else:
            await command(self, argument)

    return obeying


for phase in ("ehlo", "starttls", "auth", "mail", "rcpt", "data"):
    name = f"smtp_{phase.upper()}"
    setattr(Server, name, staged(getattr(SMTP, name), phase))


def session():
    security = {"auth_required": MODE != "plain", "auth_require_tls": MODE == "starttls", "authenticator": authenticate}
    if MODE == "starttls":
        security |= {"tls_context": CONTEXT, "require_starttls": True}
    return Server(Handler(), hostname="localhost", **security)


async def main():
    server = await asyncio.get_running_loop().create_server(
        session, "127.0.0.1", 0, ssl=CONTEXT if MODE == "tls" else None
    )
    note("listening", port=server.sockets[0].getsockname()[1])
    await server.serve_forever()


CONTEXT = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
CONTEXT.load_cert_chain("certificate.pem", "key.pem")
asyncio.run(main())
