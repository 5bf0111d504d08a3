"""matrix-nio: two users on two devices each chat in an encrypted room, across a restart of the server.

  PEERS_PYTHON tests/peers/nio_chat.py     needs matrix-nio[e2e]; SNUG=path of the binary
"""
import asyncio
import os

from lab import check, main, say
from nio import (AsyncClient, AsyncClientConfig, InviteMemberEvent, JoinResponse, LoginResponse, MegolmEvent, RoomCreateResponse,
                 RoomMessageText, RoomSendResponse, SyncResponse)


class Device:
    """One device of one user: a nio client with its own crypto store, and the texts it could read."""

    def __init__(self, lab, base, user, name):
        store = os.path.join(lab.dir, "nio-%s-%s" % (user.replace(":", "_").strip("@"), name))
        os.makedirs(store)
        config = AsyncClientConfig(store_sync_tokens=True, encryption_enabled=True)
        self.name, self.read, self.undecryptable = name, [], []
        self.client = AsyncClient(base, user, store_path=store, config=config)
        self.client.add_event_callback(lambda room, event: self.read.append(event.body), RoomMessageText)
        self.client.add_event_callback(lambda room, event: self.undecryptable.append(event.event_id), MegolmEvent)

    async def login(self, password):
        answer = await self.client.login(password, device_name=self.name)
        check(isinstance(answer, LoginResponse), "%s logs in as %s (%s)" % (self.name, self.client.user_id, getattr(answer, "device_id", answer)))
        await self.sync()

    async def sync(self):
        answer = await self.client.sync(timeout=500, full_state=False)
        assert isinstance(answer, SyncResponse), "sync answered %s" % answer
        if self.client.should_upload_keys:
            await self.client.keys_upload()
        if self.client.should_query_keys:
            await self.client.keys_query()
        if self.client.should_claim_keys:
            await self.client.keys_claim(self.client.get_users_for_key_claiming())
        await self.client.send_to_device_messages()

    async def say(self, room, text):
        answer = await self.client.room_send(room, "m.room.message", {"msgtype": "m.text", "body": text},
                                             ignore_unverified_devices=True)
        assert isinstance(answer, RoomSendResponse), "send answered %s" % answer

    async def reads(self, text, rounds=40):
        for _ in range(rounds):
            if text in self.read:
                say("ok    %s reads %r" % (self.name, text))
                return
            await self.sync()
        raise AssertionError("%s could not read %r (undecryptable: %s)" % (self.name, text, self.undecryptable))


async def chat(lab, server, restart):
    for user in ("alice", "bob"):
        server.register(user)
    alice, bob = "@alice:" + server.server_name, "@bob:" + server.server_name
    devices = {n: Device(lab, server.base, u, n) for n, u in
               (("alice-phone", alice), ("alice-laptop", alice), ("bob-phone", bob), ("bob-laptop", bob))}
    for device in devices.values():
        await device.login("correct horse")
    phone, friend = devices["alice-phone"], devices["bob-phone"]
    answer = await phone.client.room_create(
        name="secrets", invite=[bob],
        initial_state=[{"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}])
    assert isinstance(answer, RoomCreateResponse), "createRoom answered %s" % answer
    room = answer.room_id
    await friend.sync()
    check(room in friend.client.invited_rooms, "bob sees the invite")
    answer = await friend.client.join(room)
    check(isinstance(answer, JoinResponse), "bob joins")
    for _ in range(3):
        for device in devices.values():
            await device.sync()
    check(phone.client.rooms[room].encrypted and friend.client.rooms[room].encrypted, "both know the room is encrypted")
    check(len(phone.client.rooms[room].users) == 2, "alice's phone lists two members")

    async def round_of_talk(tag):
        for name, device in devices.items():
            text = "%s from %s" % (tag, name)
            await device.say(room, text)
            for other in devices.values():
                if other is not device:
                    await other.reads(text)

    await round_of_talk("before the restart")
    restart()
    say("-- the server was restarted")
    await round_of_talk("after the restart")
    for device in devices.values():
        check(not device.undecryptable, "%s could decrypt everything" % device.name)
        await device.client.close()


def story(lab):
    server = lab.snug()
    asyncio.run(chat(lab, server, server.restart))


if __name__ == "__main__":
    main("nio-chat", story)
