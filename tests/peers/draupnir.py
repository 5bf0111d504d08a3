"""Draupnir as a moderation bot on Snug: protections, a policy list, a spammer banned across two protected rooms, redactions, reports,
and what it asks of the administration API.

  DRAUPNIR=folder tests/peers/draupnir.py     SNUG=path of the binary; the folder holds a built Draupnir, which is in no package
                                              registry; NODE=path of a node that it runs on
"""
import json
import os
import subprocess

from lab import check, http, main, q, say, wait_for

SETTINGS = """
registration_shared_secret = "lab"
[rates]
message = { per_second = 50, burst_count = 200 }
"""


class Draupnir:
    """The bot, and whoever speaks to it in the management room."""

    def __init__(self, lab, server, boss, room, token):
        self.boss, self.room = boss, room
        data = os.path.join(lab.dir, "draupnir")
        os.makedirs(os.path.join(data, "storage"))
        config = {
            "homeserverUrl": server.base, "rawHomeserverUrl": server.base, "accessToken": token, "dataPath": os.path.join(data, "storage"),
            "managementRoom": room, "logLevel": "INFO", "admin": {"enableMakeRoomAdminCommand": True}, "pollReports": True,
            "displayReports": True, "backgroundDelayMS": 50, "roomStateBackingStore": {"enabled": False}, "protectAllJoinedRooms": False,
        }
        path = os.path.join(data, "config.json")
        with open(path, "w") as file:
            json.dump(config, file)
        folder = os.environ["DRAUPNIR"]
        env = dict(os.environ, NODE_ENV="production", NODE_CONFIG_DIR=os.path.join(folder, "config"))
        self.args = [os.environ.get("NODE", "node"), os.path.join(folder, "apps", "draupnir", "dist", "index.js"), "--draupnir-config", path]
        self.child = lab.start("draupnir", self.args, env)

    def told(self):
        """What the bot said in the management room, by event."""
        page = self.boss.call("GET", "/rooms/%s/messages?dir=b&limit=100" % q(self.room))
        said = [event for event in page["chunk"] if event["type"] == "m.room.message" and event["sender"] != self.boss.user_id]
        return [event["content"].get("body", "") for event in reversed(said)]

    def obeys(self, command, what, done, seconds=60):
        self.boss.send(self.room, "!draupnir " + command)
        try:
            return wait_for("!draupnir %s: %s" % (command, what), done, seconds)
        except AssertionError:
            say("the bot said last: " + json.dumps([body[:300] for body in self.told()[-8:]]))
            raise

    def says(self, command, words, seconds=60):
        before = len(self.told())
        has = lambda: any(words.lower() in body.lower() for body in self.told()[before:])
        return self.obeys(command, "it says %r" % words, has, seconds)


def member(person, room, user):
    event = person.state(room).get(("m.room.member", user))
    return event["content"]["membership"] if event else None


def story(lab):
    server = lab.snug(budget="pi-3", more=SETTINGS)
    boss, alice, mallory = server.register("boss"), server.register("alice"), server.register("mallory")
    made = subprocess.run([server.binary, "user", "add", "draupnir", "--bot", "--config", server.config], capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    token, bot = made.stdout.strip().splitlines()[-1].strip(), "@draupnir:" + server.server_name
    for name in ["draupnir", "boss"]:
        done = subprocess.run([server.binary, "user", "admin", name, "--config", server.config], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    as_bot = lambda method, path, body=None: http(method, server.base + "/_matrix/client/v3" + path, token, body)

    management = boss.create_room(preset="trusted_private_chat", name="Management", invite=[bot])
    as_bot("POST", "/join/%s" % q(management), {})
    rooms = [alice.create_room(preset="public_chat", name=name) for name in ("Tea", "Coffee")]
    for room in rooms:
        alice.invite(room, bot)
        as_bot("POST", "/join/%s" % q(room), {})
        levels = alice.state(room)[("m.room.power_levels", "")]["content"]
        levels.setdefault("users", {})[bot] = 100
        alice.put_state(room, "m.room.power_levels", levels)
        mallory.join(room)
    draupnir = Draupnir(lab, server, boss, management, token)
    wait_for("Draupnir speaks in its room", draupnir.told, 120)

    draupnir.obeys("list create spam spam-list", "the list is there",
                   lambda: http("GET", server.base + "/_matrix/client/v3/directory/room/" + q("#spam-list:" + server.server_name), boss.token).get("room_id"))
    wait_for("the list is watched", lambda: as_bot("GET", "/user/%s/account_data/org.matrix.mjolnir.watched_lists" % q(bot)).get("references"))
    for room in rooms:
        protected = lambda: room in json.dumps(as_bot("GET", "/user/%s/account_data/org.matrix.mjolnir.protected_rooms" % q(bot)))
        draupnir.obeys("rooms add " + room, "it is protected", protected)
    draupnir.says("protections", "BasicFloodingProtection")
    draupnir.obeys("protections enable BasicFloodingProtection", "it is on",
                   lambda: "BasicFloodingProtection" in json.dumps(as_bot("GET", "/user/%s/account_data/org.matrix.mjolnir.enabled_protections" % q(bot))))
    draupnir.says("status", "Protected")

    said = [mallory.send(room, "cheap pills") for room in rooms]
    draupnir.obeys("ban %s spam spam" % mallory.user_id, "mallory is banned in both rooms",
                   lambda: all(member(alice, room, mallory.user_id) == "ban" for room in rooms))
    gone = lambda: all("body" not in alice.call("GET", "/rooms/%s/event/%s" % (q(room), q(event)))["content"] for room, event in zip(rooms, said))
    wait_for("what mallory said is redacted, since the reason is spam", gone)
    mallory.call("POST", "/join/%s" % q(rooms[0]), {}, ok=(403,))

    eve = server.register("eve")
    eve.join(rooms[0])
    words = [eve.send(rooms[0], "eve says %d" % number) for number in range(5)]
    none = lambda: not [body for body in alice.history(rooms[0]) if body and body.startswith("eve says")]
    draupnir.obeys("redact %s --room %s" % (eve.user_id, rooms[0]), "nothing of what eve said is left", none)

    worse = eve.send(rooms[0], "a bad word")
    before = len(draupnir.told())
    alice.call("POST", "/rooms/%s/report/%s" % (q(rooms[0]), q(worse)), {"reason": "a very bad word"})
    wait_for("the report comes to the management room", lambda: any("a very bad word" in body for body in draupnir.told()[before:]), 120)

    for number in range(20):
        try:
            eve.send(rooms[0], "flood %d" % number)
        except AssertionError:
            break
    wait_for("who floods a room is banned there", lambda: member(alice, rooms[0], eve.user_id) == "ban", 60)

    lost = server.register("lost")
    orphan = lost.create_room(preset="public_chat", name="Orphan")
    boss.join(orphan)
    power = lambda: boss.state(orphan)[("m.room.power_levels", "")]["content"].get("users", {}).get(boss.user_id, 0) >= 100
    draupnir.obeys("hijack room %s %s" % (orphan, boss.user_id), "the boss has power there", power)
    draupnir.obeys("shutdown room %s bad" % orphan, "everybody is out", lambda: orphan not in boss.call("GET", "/joined_rooms")["joined_rooms"])
    admin = server.base + "/_synapse/admin/v2/users/"
    draupnir.obeys("suspend %s --no-confirm" % lost.user_id, "the account is suspended", lambda: http("GET", admin + q(lost.user_id), boss.token)["suspended"])
    draupnir.obeys("deactivate %s --no-confirm" % lost.user_id, "the account is closed", lambda: http("GET", admin + q(lost.user_id), boss.token)["deactivated"])
    check(draupnir.child.poll() is None, "Draupnir still runs")


if __name__ == "__main__":
    main("draupnir", story)
