"""The disk space of a removed room comes back while the server runs and people go on talking.

Two rooms are filled with messages by turns, so that their rows share pages. One is removed: the database's file gets smaller by
itself, or when asked, with every message of the other room still there. No send meanwhile waits long.

  tests/peers/space.py     SNUG=path of the binary; MESSAGES=12000, BUDGET=pi-zero-2w
"""
import http.client
import json
import os
import random
import subprocess
import threading
import time

from lab import check, main, q, say

MESSAGES = int(os.environ.get("MESSAGES", "12000"))
WORDS = [("%x" % random.Random(n).getrandbits(48))[: 3 + n % 7] for n in range(5000)]


SETTINGS = """
[rates]
message = { per_second = 10000, burst_count = 10000 }
"""


def count(person, room):
    """Messages of a room, paging backwards until the start."""
    found, token = 0, None
    while True:
        page = person.call("GET", "/rooms/%s/messages?dir=b&limit=500%s" % (q(room), "&from=" + q(token) if token else ""))
        found += sum(1 for event in page["chunk"] if event["type"] == "m.room.message")
        token = page.get("end")
        if not token or not page["chunk"]:
            return found


def snug(server, *words):
    done = subprocess.run([server.binary, *words, "--config", server.config], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def size(server):
    return os.path.getsize(os.path.join(server.data, "database"))


class Talker(threading.Thread):
    """Sends by one kept connection, and keeps the longest wait."""

    def __init__(self, person, server, rooms, count=None):
        super().__init__(daemon=True)
        self.person, self.rooms, self.count = person, rooms, count
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        self.sent, self.longest, self.waits, self.ends = 0, 0.0, [], False

    def run(self):
        while not self.ends and (self.count is None or self.sent < self.count):
            text = " ".join(random.choices(WORDS, k=60))
            path = "/_matrix/client/v3/rooms/%s/send/m.room.message/%s-%d" % (
                q(self.rooms[self.sent % len(self.rooms)]), self.name, self.sent)
            began = time.time()
            self.connection.request("PUT", path, json.dumps({"msgtype": "m.text", "body": text}), {
                "Authorization": "Bearer " + self.person.token, "Content-Type": "application/json"})
            answer = self.connection.getresponse()
            said = answer.read()
            if answer.status == 429:
                time.sleep(0.2)
                continue
            assert answer.status == 200, said
            self.waits.append(time.time() - began)
            self.sent += 1
            if self.count is None:
                time.sleep(0.02)


def story(server):
    anna = server.register("anna")
    stays, goes = anna.create_room(name="stays"), anna.create_room(name="goes")
    fill = Talker(anna, server, [stays, goes, goes], MESSAGES)
    fill.run()
    full = size(server)
    say("%d messages: the database has %d KiB" % (MESSAGES, full >> 10))

    talker = Talker(anna, server, [stays])
    talker.start()
    snug(server, "purge", "room", goes, "--force")
    end = time.time() + 900
    while goes in snug(server, "purge") or goes in snug(server, "rooms"):
        assert time.time() < end, "the room is removed"
        time.sleep(1)
    say("the room is removed: the database has %d KiB" % (size(server) >> 10))
    say(snug(server, "purge", "space").strip())
    talker.ends = True
    talker.join()
    small = size(server)
    waits = sorted(talker.waits)
    say("%d sends meanwhile: the median took %.0f ms, 99 of 100 at most %.0f ms, the longest %.0f ms" % (
        len(waits), waits[len(waits) // 2] * 1e3, waits[len(waits) * 99 // 100] * 1e3, waits[-1] * 1e3))
    check(small * 10 < full * 7, "the database is smaller: %d KiB of %d" % (small >> 10, full >> 10))
    said = sum(1 for number in range(MESSAGES) if number % 3 == 0) + talker.sent
    check(count(anna, stays) == said, "all %d messages of the other room are there" % said)
    server.restart()
    say("started again: the database has %d KiB" % (size(server) >> 10))
    anna.send(stays, "and on")


if __name__ == "__main__":
    main("space", lambda lab: story(lab.snug(budget=os.environ.get("BUDGET", "pi-zero-2w"), more=SETTINGS)))
