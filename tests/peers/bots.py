"""matrix-nio as a moderation bot: an account made by `snug user add --bot`, with no rate limit and its invites accepted by the server,
kicks and bans a spammer, and takes back what the spammer said.

  PEERS_PYTHON tests/peers/bots.py     needs matrix-nio; SNUG=path of the binary
"""
import asyncio
import subprocess
import urllib.error
import urllib.request

from lab import check, http, main, q, say, wait_for
from nio import AsyncClient, RoomBanResponse, RoomKickResponse, RoomMessageText, RoomRedactResponse, SyncResponse, WhoamiResponse

SETTINGS = """
[rates]
message = { per_second = 0.5, burst_count = 8 }
[rooms]
auto_accept_invites = "all"
[policies]
create_rooms = "administrators"
"""
SPAM = 20
# All that was said since the last sync, and not the newest of it.
ALL = {"room": {"timeline": {"limit": 100}}}


class Bot:
    """Kicks who says "cheap pills", bans who does so again, and obeys `!redact USER` of whoever is above it."""

    def __init__(self, base, user, token, master):
        self.client = AsyncClient(base, user)
        self.client.restore_login(user, "BOT", token)
        self.master, self.said, self.kicked, self.banned, self.redacted = master, {}, set(), set(), 0
        self.client.add_event_callback(self.hears, RoomMessageText)

    async def hears(self, room, event):
        self.said.setdefault(event.sender, []).append(event.event_id)
        if event.body.startswith("!redact ") and event.sender == self.master:
            await self.redact(room.room_id, event.body.split()[1])
        elif "cheap pills" in event.body and event.sender not in self.banned:
            await self.remove(room.room_id, event.sender)

    async def remove(self, room, user):
        members = await self.client.joined_members(room)
        if user not in {member.user_id for member in members.members}:
            return
        if user in self.kicked:
            answer = await self.client.room_ban(room, user, "again")
            check(isinstance(answer, RoomBanResponse), "the bot bans %s" % user)
            self.banned.add(user)
        else:
            answer = await self.client.room_kick(room, user, "no spam here")
            check(isinstance(answer, RoomKickResponse), "the bot kicks %s" % user)
            self.kicked.add(user)

    async def redact(self, room, user):
        for event in self.said.get(user, []):
            answer = await self.client.room_redact(room, event, "spam")
            assert isinstance(answer, RoomRedactResponse), "redact answered %s" % answer
            self.redacted += 1

    async def until(self, what, found, rounds=60):
        for _ in range(rounds):
            answer = await self.client.sync(timeout=500, sync_filter=ALL)
            assert isinstance(answer, SyncResponse), "sync answered %s" % answer
            if found():
                say("ok    " + what)
                return
        raise AssertionError("never: " + what)


def command(server, *arguments):
    done = subprocess.run([server.binary, *arguments, "--config", server.config], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def token_in(said):
    return said.strip().splitlines()[-1].strip()


def taken(person, room, name, many):
    """How many of so many messages are taken before the first that is refused for its rate."""
    for number in range(many):
        url = "%s/_matrix/client/v3/rooms/%s/send/m.room.message/%s%d" % (person["base"], q(room), name, number)
        headers = {"Authorization": "Bearer " + person["token"], "Content-Type": "application/json"}
        request = urllib.request.Request(url, b'{"msgtype":"m.notice","body":"x"}', headers, method="PUT")
        try:
            urllib.request.urlopen(request, timeout=30).read()
        except urllib.error.HTTPError as error:
            assert error.code == 429, error.read()
            return number
    return many


def bodies(person, room):
    return [body for body in person.history(room) if body and body != "x"]


async def story(server):
    alice, mallory = server.register("alice"), server.register("mallory")
    command(server, "user", "admin", "alice")
    said = command(server, "user", "add", "warden", "--bot")
    token, warden = token_in(said), "@warden:" + server.server_name
    check(said.startswith(warden + " was made, for a bot."), "snug user add --bot makes the bot's account")
    check(" bot " in command(server, "user", "list"), "the list says that it is a bot's")

    refused = mallory.call("POST", "/createRoom", {}, ok=(403,))
    check("administrators" in refused["error"], "who may not create rooms is told so: " + refused["error"])
    room = alice.create_room(preset="public_chat", name="Tea")
    alice.invite(room, warden)
    wait_for("the bot's invite is accepted by the server", lambda: warden in alice.joined(room))
    levels = alice.state(room)[("m.room.power_levels", "")]["content"]
    levels.setdefault("users", {})[warden] = 50
    alice.put_state(room, "m.room.power_levels", levels)
    mallory.join(room)

    as_bot = {"base": server.base, "token": token}
    as_mallory = {"base": server.base, "token": mallory.token}
    check(taken(as_bot, room, "fast", 60) == 60, "no rate limits the bot: 60 messages at once")
    check(taken(as_mallory, room, "fast", 60) == 8, "others have the rate of the settings: 8 messages at once")
    command(server, "user", "limit", "mallory", "--messages-per-second", "100", "--burst", "100")

    bot = Bot(server.base, warden, token, alice.user_id)
    answer = await bot.client.whoami()
    check(isinstance(answer, WhoamiResponse) and answer.user_id == warden, "the token is the bot's")
    await bot.client.sync(timeout=0)
    for number in range(SPAM):
        mallory.send(room, "hello %d" % number)
    mallory.send(room, "cheap pills")
    await bot.until("mallory is kicked", lambda: mallory.user_id in bot.kicked)
    check(mallory.user_id not in alice.joined(room), "mallory is out of the room")
    mallory.join(room)
    mallory.send(room, "cheap pills, again")
    await bot.until("mallory is banned", lambda: mallory.user_id in bot.banned)
    mallory.call("POST", "/join/%s" % q(room), {}, ok=(403,))
    say("ok    mallory cannot come back")
    check(len(bodies(alice, room)) >= SPAM + 2, "what mallory said is there")
    alice.send(room, "!redact " + mallory.user_id)
    await bot.until("the bot redacts what it heard", lambda: bot.redacted >= SPAM + 2)
    check(bodies(alice, room) == ["!redact " + mallory.user_id], "nothing of it is left")

    eve = server.register("eve")
    eve.join(room)
    for number in range(5):
        eve.send(room, "eve says %d" % number)
    admin = server.base + "/_synapse/admin/v1"
    asked = http("POST", "%s/user/%s/redact" % (admin, q(eve.user_id)), alice.token, {"rooms": [], "reason": "spam"})
    done = lambda: http("GET", "%s/user/redact_status/%s" % (admin, asked["redact_id"]), alice.token)["status"] == "complete"
    wait_for("the administrator has what eve said redacted", done)
    check(not [body for body in bodies(alice, room) if body.startswith("eve says")], "nothing of it is left")
    http("POST", "%s/users/%s/shadow_ban" % (admin, q(eve.user_id)), alice.token, {})
    eve.send(room, "psst")
    check("psst" not in bodies(alice, room), "who is shadow-banned is heard by nobody")
    http("POST", "%s/users/%s/override_ratelimit" % (admin, q(alice.user_id)), alice.token, {"messages_per_second": 0, "burst_count": 0})
    check(taken({"base": server.base, "token": alice.token}, room, "mine", 30) == 30, "the override holds at once")

    other = token_in(command(server, "user", "token", "warden"))
    http("GET", server.base + "/_matrix/client/v3/account/whoami", token, ok=(401,))
    bot.client.access_token = other
    answer = await bot.client.whoami()
    check(getattr(answer, "user_id", None) == warden, "the bot goes on with another token")
    await bot.client.close()


if __name__ == "__main__":
    main("bots", lambda lab: asyncio.run(story(lab.snug(more=SETTINGS))))
