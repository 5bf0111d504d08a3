"""A small bridge on the mautrix framework, for bridges.py: repeats what it hears, makes a room for an alias that is asked for and
tells in it what a ghost said in 2001, and reads and writes encrypted rooms with the framework's olm machine in appservice mode:
messages to devices, changed devices and counts of keys come in transactions, and its device is made without a log-in (MSC4190).
"""
import asyncio
import logging
import os
import sys

from mautrix.appservice import AppService
from mautrix.bridge.e2ee import EncryptionManager
from mautrix.types import EventType, MessageType, RoomAlias, RoomCreatePreset, TextMessageEventContent, UserID
from mautrix.util.async_db import Database

BASE, DOMAIN, PORT, DIR = (os.environ["ECHO_" + name] for name in ("BASE", "DOMAIN", "PORT", "DIR"))
GHOST = "@echo_ghost:" + DOMAIN


class Settings(dict):
    def get(self, key, default=None):
        return super().get(key, default)


class Bridge:
    """As much of a bridge as the framework's encryption asks for."""

    def __init__(self, az, store):
        self.az, self.loop, self.name, self.state_store = az, az.loop, "echo", store
        levels = {"send": "unverified", "share": "unverified", "receive": "unverified"}
        self.config = Settings({
            "bridge.encryption.verification_levels": levels, "bridge.encryption.allow_key_sharing": True,
            "bridge.encryption.appservice": True, "bridge.encryption.msc4190": True, "bridge.encryption.delete_keys": None,
            "bridge.encryption.rotation.disable_device_change_key_rotation": False, "homeserver.http_retry_count": 4,
        })

    async def get_portal(self, room_id):
        return None

    def _log_db_error(self, error):
        raise error


async def main():
    logging.basicConfig(level=logging.INFO, stream=sys.stdout)
    from mautrix.appservice.state_store.asyncpg import PgASStateStore
    from mautrix.client.state_store.asyncpg import PgStateStore

    database = Database.create("sqlite:" + os.path.join(DIR, "echo.db"), upgrade_table=PgStateStore.upgrade_table)
    await database.start()
    # The framework's encryption looks for the rooms that a bridge keeps in a table of its own.
    await database.execute("CREATE TABLE IF NOT EXISTS portal (mxid TEXT, encrypted BOOLEAN)")
    store = PgASStateStore(database)
    az = AppService(server=BASE, domain=DOMAIN, as_token="a" * 40, hs_token="h" * 40, bot_localpart="echobot", id="echo",
                    state_store=store, ephemeral_events=True, encryption_events=True, default_http_retry_count=10)
    e2ee = EncryptionManager(Bridge(az, store), BASE, "@echo_", ":" + DOMAIN, "sqlite:" + os.path.join(DIR, "echo.db"))

    async def query_alias(alias: RoomAlias):
        room = await az.intent.create_room(alias_localpart=alias[1:].split(":")[0], is_direct=False, preset=RoomCreatePreset.PUBLIC, invitees=[])
        ghost = az.intent.user(UserID(GHOST))
        await ghost.ensure_joined(room)
        await ghost.send_message(room, TextMessageEventContent(msgtype=MessageType.TEXT, body="from 2001"), timestamp=978307200000)
        return {}

    async def answer(room, content):
        kind = EventType.ROOM_MESSAGE
        if await store.is_encrypted(room):
            kind, content = await e2ee.encrypt(room, kind, content)
        await az.intent.send_message_event(room, kind, content)

    async def handle(event):
        try:
            if event.sender == az.bot_mxid or event.sender.startswith("@echo_"):
                return
            if event.type == EventType.ROOM_MEMBER and event.state_key == az.bot_mxid and event.content.membership.value == "invite":
                await az.intent.join_room(event.room_id)
                # The members are known to whom the keys are for.
                await az.intent.get_members(event.room_id)
                await az.intent.get_state(event.room_id)
                await database.execute("INSERT INTO portal (mxid, encrypted) VALUES ($1, $2)", event.room_id, await store.is_encrypted(event.room_id))
                return
            if event.type == EventType.ROOM_ENCRYPTED:
                event = await e2ee.decrypt(event, wait_session_timeout=30)
            if event.type == EventType.ROOM_MESSAGE:
                text = "echo: " + event.content.body
                await answer(event.room_id, TextMessageEventContent(msgtype=MessageType.TEXT, body=text))
        except Exception:
            logging.exception("an event was not handled")

    az.query_alias = query_alias
    az.matrix_event_handler(handle)
    await az.start("127.0.0.1", int(PORT))
    while True:
        try:
            await az.intent.ensure_registered()
            await az.ping_self() if hasattr(az, "ping_self") else await az.intent.appservice_ping("echo")
            break
        except Exception:
            logging.exception("the server is not there yet")
            await asyncio.sleep(1)
    await e2ee.start()
    az.ready = True
    logging.info("the bridge is ready")
    await asyncio.Event().wait()


asyncio.run(main())
