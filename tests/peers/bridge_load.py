"""What a large bridge costs: 5,000 ghosts in 300 rooms, 200 messages a second from the bridge and as many from Matrix, under
pi-zero-2w, while either side is killed again and again. Nothing may be lost or come twice.

  PEERS_PYTHON tests/peers/bridge_load.py [--short] [--ghosts 5000] [--rooms 300] [--rate 200] [--seconds 60] [--kills 20] [--idle 30]

Needs aiohttp; SNUG=path of a release binary. Prints the delay of a transaction behind its event, the peak of the server's memory,
its processor time for each message, and what a bridge costs that says nothing; with how busy the machine was, since both sides
run on it. Before that, what a service may do wrong: answer a transaction slowly, at length, with nonsense, or not at all, beside
one that works. `--short`, for `.ci/run`, is a minute of it, with 200 ghosts in 20 rooms, and its times are not judged.
"""
import argparse
import asyncio
import os
import random
import time

import aiohttp
from aiohttp import web
from lab import check, free_port, main, say

AS, HS = "a" * 40, "h" * 40
CLIENT = "/_matrix/client/v3"
# The whole process, of the profile.
CAP_KIB = 48 << 10
# A transaction behind its event, in the middle.
BEHIND_MS = 50


class Bridge:
    """The service: what it was told, each transaction once."""

    def __init__(self, port):
        self.port, self.ids, self.heard, self.twice, self.delays, self.runner, self.tries = port, set(), {}, 0, [], None, 0

    async def start(self):
        app = web.Application(client_max_size=8 << 20)
        app.router.add_put("/_matrix/app/v1/transactions/{id}", self.take)
        app.router.add_post("/_matrix/app/v1/ping", lambda request: web.json_response({}))
        self.runner = web.AppRunner(app, access_log=None)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.port).start()

    async def stop(self):
        await self.runner.cleanup()

    async def take(self, request):
        now, body = time.time(), await request.json()
        self.tries += 1
        if request.match_info["id"] not in self.ids:
            self.ids.add(request.match_info["id"])
            for event in body["events"]:
                text = event["content"].get("body", "")
                if text.startswith("load "):
                    self.twice += text in self.heard
                    self.heard[text] = now
                    self.delays.append(now - event["origin_server_ts"] / 1000)
        return web.json_response({})


class Load:
    def __init__(self, server, wanted):
        self.server, self.wanted, self.sent, self.busy = server, wanted, {}, 0

    async def call(self, method, path, token=AS, body=None, patience=120):
        """Until it is answered: a server that was killed is asked again, with the same transaction id."""
        end = time.time() + patience
        while True:
            try:
                headers = {"Authorization": "Bearer " + token}
                async with self.http.request(method, self.server.base + CLIENT + path, json=body or {}, headers=headers) as answer:
                    value = await answer.json()
                    if answer.status == 200 or value.get("errcode") == "M_USER_IN_USE":
                        return value
                    if answer.status not in (429, 500, 502, 503):
                        raise AssertionError("%s %s: %s %s" % (method, path, answer.status, value))
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
                pass
            if time.time() > end:
                raise AssertionError("%s %s was never answered" % (method, path))
            await asyncio.sleep(0.2)

    async def prepare(self):
        gate = asyncio.Semaphore(8)

        async def ghost(number):
            async with gate:
                await self.call("POST", "/register", body={"type": "m.login.application_service", "username": "load_%d" % number, "inhibit_login": True})
        await asyncio.gather(*(ghost(number) for number in range(self.wanted.ghosts)))
        self.rooms = []

        async def room(number):
            async with gate:
                made = await self.call("POST", "/createRoom", self.person.token, {"preset": "public_chat"})
                self.rooms.append(made["room_id"])
                for ghost in range(number, self.wanted.ghosts, self.wanted.rooms):
                    await self.call("POST", "/join/%s?user_id=@load_%d:%s" % (made["room_id"], ghost, self.server.server_name))
                if len(self.rooms) % 50 == 0:
                    say("-- %d rooms" % len(self.rooms))
        await asyncio.gather(*(room(number) for number in range(self.wanted.rooms)))

    async def say(self, number, from_matrix):
        at = number % len(self.rooms)
        text, room = "load %d" % number, self.rooms[at]
        path = "/rooms/%s/send/m.room.message/t%d" % (room, number)
        token = self.person.token
        if not from_matrix:
            # A ghost of that room.
            token, path = AS, path + "?user_id=" + self.members[room][number % len(self.members[room])]
        await self.call("PUT", path, token, {"msgtype": "m.text", "body": text})
        self.sent[text] = time.time()
        self.busy -= 1

    async def run(self, bridge):
        interval, number, began = 1 / self.wanted.rate, 0, time.time()
        self.pending = set()
        while time.time() - began < self.wanted.seconds:
            for from_matrix in (True, False):
                if self.busy < 400:
                    self.busy += 1
                    task = asyncio.create_task(self.say(number, from_matrix))
                    self.pending.add(task)
                    task.add_done_callback(self.pending.discard)
                number += 1
            await asyncio.sleep(max(0, began + number / 2 * interval - time.time()))
        await asyncio.gather(*self.pending)


def cpu(server):
    with open("/proc/%d/stat" % server.child.pid) as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load_of_machine():
    return "%.1f" % os.getloadavg()[0]


class Ill:
    """A service that does one thing wrong with each transaction."""

    def __init__(self, how):
        self.how, self.port, self.asked = how, free_port(), 0

    async def start(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", self.port)

    async def serve(self, reader, writer):
        self.asked += 1
        try:
            await reader.readuntil(b"\r\n\r\n")
            if self.how == "silent":
                await asyncio.sleep(3600)
            elif self.how == "slow":
                # A byte at a time, for ever.
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
                while True:
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.5)
            elif self.how == "endless":
                writer.write(b"HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n")
                while True:
                    writer.write(b"4000\r\n" + b"y" * 0x4000 + b"\r\n")
                    await writer.drain()
            else:
                writer.write(os.urandom(4096))
                await writer.drain()
            writer.close()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass

    def registration(self, folder):
        name = os.path.join(folder, self.how + ".yaml")
        with open(name, "w") as f:
            f.write("id: %s\nurl: http://127.0.0.1:%d\nas_token: %s\nhs_token: %s\nsender_localpart: %s\nnamespaces:\n  users:\n  - exclusive: "
                    "false\n    regex: '@.*'\n" % (self.how, self.port, self.how + "a" * 30, self.how + "h" * 30, self.how))
        return name


async def beside_ill_ones(lab, bridge, registration):
    """One that works is told at once, whatever others do."""
    ill = [Ill(how) for how in ("silent", "slow", "endless", "nonsense")]
    files = [registration] + [one.registration(lab.dir) for one in ill]
    server = lab.snug("ill", more="appservices = %s\nrate_limits = false\n" % str(files).replace("'", '"'))
    person = server.register("anna")
    for one in ill:
        await one.start()
    await bridge.start()
    wanted = argparse.Namespace(ghosts=4, rooms=1, rate=20, seconds=15)
    load = Load(server, wanted)
    load.person = person
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as load.http:
        await load.prepare()
        load.members = {load.rooms[0]: ["@load_%d:%s" % (number, server.server_name) for number in range(4)]}
        await load.run(bridge)
        await wait_until(load, bridge, 60)
    check(not set(load.sent) - set(bridge.heard), "%d messages are told beside four services that do all wrong" % len(load.sent))
    check(all(one.asked for one in ill), "which were told too: %s requests" % [one.asked for one in ill])
    check(server.peak_kib() < CAP_KIB, "the server took %d KiB" % server.peak_kib())
    delays = sorted(bridge.delays)
    say("-- a transaction is %.0f ms behind its event in the middle" % (delays[len(delays) // 2] * 1000))
    await bridge.stop()
    server.kill()


async def measure(lab, server, bridge, wanted):
    load = Load(server, wanted)
    load.person = server.register("anna")
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60), connector=aiohttp.TCPConnector(limit=64)) as load.http:
        # What the server does by itself: it looks at its own memory some times a second.
        await asyncio.sleep(min(5, wanted.idle))
        alone = cpu(server)
        await asyncio.sleep(wanted.idle)
        alone = (cpu(server) - alone) * 1000
        await bridge.start()
        began = time.time()
        await load.prepare()
        load.members = {}
        for room in load.rooms:
            joined = await load.call("GET", "/rooms/%s/joined_members" % room, load.person.token)
            load.members[room] = [user for user in joined["joined"] if user.startswith("@load_")]
        say("-- %d ghosts in %d rooms after %.0f s, peak %d KiB" % (wanted.ghosts, wanted.rooms, time.time() - began, server.peak_kib()))
        # As it is, and then with kills of both sides.
        before, began = cpu(server), time.time()
        await load.run(bridge)
        await wait_until(load, bridge)
        used, count = cpu(server) - before, len(load.sent)
        delays = sorted(bridge.delays)
        middle = delays[len(delays) // 2] * 1000
        say("-- the machine's load is " + load_of_machine())
        say("-- %d messages in %.0f s: %.2f ms of processor each; a transaction is %.0f ms behind its event in the middle, %.0f ms for one of "
            "a hundred; %d transactions; peak %d KiB" % (count, time.time() - began, used * 1000 / count, delays[len(delays) // 2] * 1000,
                                                        delays[len(delays) * 99 // 100] * 1000, len(bridge.ids), server.peak_kib()))
        check(server.peak_kib() < CAP_KIB, "all of it inside the cap of %d KiB" % CAP_KIB)
        check(wanted.short or middle <= BEHIND_MS, "a transaction is within %d ms of its event" % BEHIND_MS)
        check(set(load.sent) <= set(bridge.heard), "nothing of %d messages is lost" % count)
        kills = 0

        async def killer():
            nonlocal kills
            while kills < wanted.kills:
                await asyncio.sleep(random.uniform(0.5, wanted.seconds / max(1, wanted.kills)))
                kills += 1
                if kills % 5 == 0:
                    say("-- %d kills, %d messages" % (kills, len(load.sent)))
                if kills % 2:
                    await asyncio.to_thread(server.kill)
                    await asyncio.to_thread(server.boot)
                else:
                    await bridge.stop()
                    await asyncio.sleep(random.uniform(0.1, 2))
                    await bridge.start()
        first = load.sent
        load.sent = {}
        say("-- killing either side %d times" % wanted.kills)
        original = load.say
        load.say = lambda number, from_matrix: original(number + 1_000_000, from_matrix)
        await asyncio.gather(load.run(bridge), killer())
        load.sent.update(first)
        await wait_until(load, bridge)
        check(not set(load.sent) - set(bridge.heard), "nothing of %d messages is lost over %d kills" % (len(load.sent), kills))
        check(bridge.twice == 0, "nothing came twice under another transaction id")
        check(server.peak_kib() < CAP_KIB, "the server took %d KiB since its last start" % server.peak_kib())
        # What is written down a minute later is no part of it.
        await asyncio.sleep(min(70, 2 * wanted.idle))
        idle = cpu(server)
        await asyncio.sleep(wanted.idle)
        used = (cpu(server) - idle) * 1000
        say("-- idle: %.0f ms of processor in %d seconds, %.0f before the bridge came" % (used, wanted.idle, alone))
        check(wanted.short or used <= alone + 30, "an idle bridge costs nothing")
        await bridge.stop()


async def wait_until(load, bridge, seconds=300):
    end = time.time() + seconds
    while set(load.sent) - set(bridge.heard) and time.time() < end:
        await asyncio.sleep(0.2)


def story(lab):
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true")
    for name, value, short in (("ghosts", 5000, 200), ("rooms", 300, 20), ("rate", 200, 50), ("seconds", 60, 10), ("kills", 20, 4), ("idle", 30, 5)):
        parser.add_argument("--" + name, type=int, default=None)
        parser.set_defaults(**{name + "_": (value, short)})
    wanted, port = parser.parse_args(), free_port()
    for name in ("ghosts", "rooms", "rate", "seconds", "kills", "idle"):
        if getattr(wanted, name) is None:
            setattr(wanted, name, getattr(wanted, name + "_")[wanted.short])
    registration = os.path.join(lab.dir, "load.yaml")
    with open(registration, "w") as f:
        f.write("id: load\nurl: http://127.0.0.1:%d\nas_token: %s\nhs_token: %s\nsender_localpart: loadbot\nrate_limited: false\nnamespaces:\n"
                "  users:\n  - exclusive: true\n    regex: '@load_.*'\n" % (port, AS, HS))
    asyncio.run(beside_ill_ones(lab, Bridge(port), registration))
    server = lab.snug(more='appservices = ["%s"]\nrate_limits = false\n' % registration)
    asyncio.run(measure(lab, server, Bridge(port), wanted))


if __name__ == "__main__":
    main("bridge_load", story)
