"""Push over real HTTP: two people, gateways that are slow, dead, and refuse, a restart, and UnifiedPush endpoints.

  python3 tests/peers/push.py     needs nothing but Python; SNUG=path of the binary

The gateways are threads of this script. Snug is allowed to reach them by push.private_urls.
"""
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from lab import Person, check, free_port, http, main, q, say, wait_for

NOTIFY = "/_matrix/push/v1/notify"


class Gateway:
    """A push gateway, or a UnifiedPush distributor: keeps what it is told, as slow and as unwilling as it is set."""

    def __init__(self, port=None):
        self.port = port or free_port()
        self.told, self.delay, self.status, self.rejected = [], 0, 200, []
        self.start()

    @property
    def origin(self):
        return "http://127.0.0.1:%d" % self.port

    @property
    def url(self):
        return self.origin + NOTIFY

    def start(self):
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                text = self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(gateway.delay)
                if gateway.status == 200:
                    gateway.told.append((time.time(), self.path, json.loads(text)["notification"]))
                answer = json.dumps({"rejected": gateway.rejected}).encode()
                try:
                    self.send_response(gateway.status)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)
                except OSError:
                    pass

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def kill(self):
        self.server.shutdown()
        self.server.server_close()

    def bodies(self):
        return [n["content"]["body"] for _, _, n in self.told if n.get("content", {}).get("body")]

    def ids(self):
        return [n.get("event_id") for _, _, n in self.told if n.get("event_id")]

    def badges(self):
        return [n["counts"]["unread"] for _, _, n in self.told if "counts" in n]


def set_pusher(person, url, key, **more):
    data = dict({"url": url}, **more.pop("data", {}))
    body = {"kind": "http", "app_id": "lab.app", "pushkey": key, "app_display_name": "Lab", "device_display_name": "Phone",
            "lang": "en", "data": data}
    body.update(more)
    person.call("POST", "/pushers/set", body)


def pushkeys(person):
    return sorted(p["pushkey"] for p in person.call("GET", "/pushers")["pushers"])


def login(server, name, device):
    body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": name}, "password": "correct horse",
            "device_id": device}
    got = http("POST", server.base + "/_matrix/client/v3/login", body=body)
    return Person(server.base, got["user_id"], got["access_token"], got["device_id"])


def read(person, room, event):
    person.call("POST", "/rooms/%s/receipt/m.read/%s" % (q(room), q(event)), {})


def story(lab):
    living, dead, fickle, distributor = Gateway(), Gateway(), Gateway(), Gateway()
    server = lab.snug()
    with open(server.config, "a") as f:
        f.write("\n[push]\nprivate_urls = %s\n" % json.dumps([g.origin for g in (living, dead, fickle, distributor)]))
    server.restart()
    alice, bob = server.register("alice"), server.register("bob")
    phone = login(server, "bob", "PHONE")
    room = alice.create_room(preset="private_chat", invite=[bob.user_id], name="Kitchen")
    bob.join(room)

    set_pusher(phone, living.url, "phone")
    before = time.time()
    first = alice.send(room, "hello")
    wait_for("the gateway is told", lambda: living.bodies() == ["hello"], 10)
    took = living.told[0][0] - before
    check(took <= 1, "within a second of the message (%d ms)" % (took * 1000))
    told = living.told[0][2]
    check(told["event_id"] == first and told["room_id"] == room and told["sender"] == alice.user_id, "with its ids")
    check(told["room_name"] == "Kitchen" and told["sender_display_name"] == "alice", "with names")
    check(told["counts"]["unread"] == 1 and told["devices"][0]["pushkey"] == "phone", "with the badge and the device")
    check(told["prio"] == "high" and told["devices"][0]["tweaks"]["sound"] == "default", "a room of two rings")
    bob.send(room, "own messages ring nobody")
    wait_for("who has read it sees no badge", lambda: living.badges()[-1] == 0, 10)

    event = alice.send(room, "read elsewhere")
    wait_for("a second message", lambda: living.bodies()[-1] == "read elsewhere", 10)
    read(bob, room, event)
    wait_for("the badge goes when it is read on the laptop", lambda: living.badges()[-2:] == [1, 0], 10)

    other = alice.create_room(preset="private_chat", invite=[bob.user_id], name="Cellar")
    wait_for("an invite rings", lambda: living.told[-1][2].get("membership") == "invite", 10)
    check(living.told[-1][2]["user_is_target"] and living.told[-1][2]["room_name"] == "Cellar", "and says for whom")
    bob.leave(other)
    wait_for("a declined invite leaves no badge", lambda: living.badges()[-1] == 0, 10)

    say("-- gateways that are dead and slow")
    carol = server.register("carol")
    alice.invite(room, carol.user_id)
    carol.join(room)
    dead.kill()
    set_pusher(carol, dead.url, "dead")
    set_pusher(bob, fickle.url, "fickle", data={"format": "event_id_only"})
    for number in range(30):
        bob.send(room, "to the dead %d" % number)
    dead_since = time.time()
    fickle.delay = 4
    before = time.time()
    slow = alice.send(room, "while another is slow")
    wait_for("the living is told", lambda: living.bodies()[-1] == "while another is slow", 10)
    check(living.told[-1][0] - before <= 1, "at once, whatever the others do")
    wait_for("the slow one is told too", lambda: slow in fickle.ids(), 30)
    check(all("content" not in n for _, _, n in fickle.told), "ids alone, as it wishes")
    fickle.delay = 0

    say("-- a gateway fails, the server restarts")
    fickle.status = 503
    missed = [alice.send(room, "missed %d" % number) for number in range(3)]
    wait_for("the living is told of the last", lambda: living.bodies()[-1] == "missed 2", 10)
    check(not set(missed) & set(fickle.ids()), "the failing one took none")
    server.restart()
    fickle.status = 200
    wait_for("after the restart it is told of all, in order",
             lambda: [i for i in fickle.ids() if i in missed] == missed, 60)
    say("-- the dead comes back after %d s" % (time.time() - dead_since))
    revived = Gateway(dead.port)
    wait_for("and is told of what nobody read", lambda: len(revived.bodies()) >= 30, 90)
    check(revived.bodies()[:30] == ["to the dead %d" % n for n in range(30)], "in order")

    say("-- pushers end")
    fickle.rejected = ["fickle"]
    alice.send(room, "to be rejected")
    wait_for("a rejected pushkey is removed", lambda: pushkeys(bob) == ["phone"], 10)
    phone.call("POST", "/logout", {})
    wait_for("a pusher ends with its session", lambda: pushkeys(bob) == [], 10)
    count = len(living.told)
    alice.send(room, "nobody is told")
    time.sleep(1.5)
    check(len(living.told) == count, "and its gateway hears no more")

    say("-- the gateway inside")
    own = server.base + NOTIFY
    found = http("GET", own)
    check(found["unifiedpush"]["gateway"] == "matrix", "it says that it is one")
    endpoint = distributor.origin + "/upAbCd?up=1"
    set_pusher(bob, own, endpoint)
    event = alice.send(room, "to the distributor")
    wait_for("the endpoint is told directly", lambda: distributor.ids() == [event], 10)
    _, path, told = distributor.told[0]
    check(path == "/upAbCd?up=1" and "devices" not in told and told["counts"]["unread"] == 1, "at its own URL")
    distributor.status = 404
    alice.send(room, "gone")
    wait_for("an endpoint that is gone ends its pusher", lambda: pushkeys(bob) == [], 10)
    note = {"notification": {"event_id": "$x", "devices": [{"app_id": "a", "pushkey": endpoint}, {"app_id": "a", "pushkey": "no url"}]}}
    answer = http("POST", own, body=note, ok=(200, 502))
    check(answer.get("rejected") == [endpoint, "no url"], "strangers are told what is no URL, and reach no private address")
    check(len(distributor.told) == 1, "nothing came of it")

    listed = [n["event"]["content"].get("body") for n in bob.call("GET", "/notifications?limit=3")["notifications"]]
    check(listed == ["gone", "to the distributor", "nobody is told"], "the list of notifications, newest first")
    say("peak memory %d KiB" % server.peak_kib())


if __name__ == "__main__":
    main("push", story)
