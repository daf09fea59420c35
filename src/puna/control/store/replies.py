"""The store's part about replies that are kept for a day, so that the same call asked again is not done again."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from puna.control.store.database import Database
from puna.control.store.schema import REPLIES

MOST = 20_000
"""Replies kept; the oldest go first."""


@dataclass(frozen=True)
class KeptReply:
    """A reply as it is kept."""

    id: str
    """Fingerprint of caller and idempotency key."""
    fingerprint: str
    """Of the request: route and body."""
    route: str
    sealed: bytes
    """Status, headers and body: some replies hold a new key's text."""
    at: float


class ReplyStore(Database):
    """Replies to calls that came with an idempotency key."""

    def keep_reply(self, reply: KeptReply, expired: float) -> None:
        """Keep a reply, in place of an expired one; those from before `expired` go."""
        with self._write(routes=False) as connection:
            connection.execute(REPLIES.delete().where((REPLIES.c.at < expired) | (REPLIES.c.id == reply.id)))
            connection.execute(REPLIES.insert().values(**reply.__dict__))
            newest = select(REPLIES.c.at).order_by(REPLIES.c.at.desc()).offset(MOST).limit(1)
            oldest = connection.execute(newest).scalar()
            if oldest is not None:
                connection.execute(REPLIES.delete().where(REPLIES.c.at <= oldest))

    def kept_reply(self, reply_id: str, expired: float) -> KeptReply | None:
        """The reply kept under `reply_id`, unless it is from before `expired`."""
        mine = (REPLIES.c.id == reply_id) & (REPLIES.c.at >= expired)
        with self._read() as connection:
            row = connection.execute(select(REPLIES).where(mine)).first()
        return None if row is None else KeptReply(**{**row._mapping, "sealed": bytes(row.sealed)})

    def prune_replies(self, expired: float) -> None:
        """Forget replies from before `expired`."""
        with self._write(routes=False) as connection:
            connection.execute(REPLIES.delete().where(REPLIES.c.at < expired))
