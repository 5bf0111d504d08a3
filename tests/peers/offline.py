"""A home without Internet, and a board without a clock. Three Snugs, each in a network namespace of its own: one in a house with a
phone beside it, one in the same house without a public name, one far away behind a name server. The way between them is cut; at home people start the server, log in and
chat, encrypted, with the other server of the house, and in rooms with people far away; then the way is there again and everything arrives. Then the same with a clock
that starts in 1970, and with one that is ten years ahead for a while. And a phone finds the server by multicast DNS, where nobody outside does.

  python3 tests/peers/offline.py    needs unshare, nsenter, ip, libfaketime, matrix-nio[e2e]; root or user namespaces; SNUG=path
  OUTAGE_S=180                      how long the way is cut
"""
import asyncio
import glob
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time

from lab import Person, check, http, main, say, wait_for

OUTAGE_S = int(os.environ.get("OUTAGE_S", "180"))
# An answer that waited for a look-up or for a server that is gone takes a time-out of seconds.
SOON_S = 4
HOME, FAR = "5.6.7.1", "5.6.7.8"  # as the Internet sees them: not private, so an outage concerns them
HOUSE, PHONE = "192.168.77.1", "192.168.77.2"
CONFIG = """
server_name = "%(name)s"
listen = ["0.0.0.0:8008"]
data_dir = "%(data)s"
budget = "pi-zero-2w"
registration = "open"
rate_limits = false
[federation]
listen = %(ips)s
overrides = { %(others)s }
allow_private_addresses = %(private)s
tls_certificate = "%(cert)s"
tls_private_key = "%(key)s"
extra_ca_file = "%(ca)s"
"""


def run(*words):
    subprocess.run(words, check=True)


class Place:
    """A network namespace, held by a process that sleeps."""

    def __init__(self, lab):
        self.holder = subprocess.Popen(["unshare", "--net", "sleep", "100000"])
        lab.children.append(self.holder)
        self.inside = ["nsenter", "--target", str(self.holder.pid), "--net", "--preserve-credentials"]
        mine = os.readlink("/proc/self/ns/net")
        wait_for("a namespace", lambda: os.readlink("/proc/%d/ns/net" % self.holder.pid) != mine)
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *words):
        run(*self.inside, *words)

    def wire(self, here, there, mine, theirs):
        """A wire from this process's namespace to that one."""
        run("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", str(self.holder.pid))
        run("ip", "addr", "add", mine, "dev", here)
        run("ip", "link", "set", here, "up")
        self.run("ip", "addr", "add", theirs, "dev", there)
        self.run("ip", "link", "set", there, "up")


class Server:
    def __init__(self, lab, name, ips, inside=(), others="", private="false"):
        self.lab, self.name, self.inside, self.env = lab, name, list(inside), None
        self.base = "http://127.0.0.1:8008"
        data = os.path.join(lab.dir, name)
        os.makedirs(data)
        self.config = os.path.join(data, "snug.toml")
        with open(self.config, "w") as f:
            f.write(CONFIG % dict(name=name, data=data, ips=["%s:8448" % ip for ip in ips], others=others, private=private, cert=lab.cert, key=lab.key, ca=lab.ca))

    def boot(self):
        binary = os.environ.get("SNUG", "snug")
        env = dict(os.environ, **(self.env or {}))
        self.child = self.lab.start(self.name, self.inside + [binary, "serve", "--config", self.config], env=env)

    def stop(self):
        self.child.send_signal(signal.SIGTERM)
        self.child.wait(30)

    def log(self):
        with open(os.path.join(self.lab.dir, self.name + ".log"), errors="replace") as f:
            return f.read()


class Away(Person):
    """A person at the server far away: each request is made in its namespace, by a small program."""

    place = None

    def call(self, method, path, body=None, **more):
        import json
        words = ["curl", "-sS", "-X", method, self.base + "/_matrix/client/v3" + path, "-H", "Content-Type: application/json"]
        words += ["-H", "Authorization: Bearer " + self.token] if self.token else []
        words += ["-d", json.dumps(body)] if body is not None else []
        answer = json.loads(subprocess.run(self.place.inside + words, check=True, capture_output=True, text=True).stdout)
        if "errcode" in answer and "flows" not in answer:
            raise AssertionError("%s %s: %s" % (method, path, answer))
        return answer


def soon(what, do):
    began = time.time()
    got = do()
    took = time.time() - began
    check(took < SOON_S, "%s, in %.2f s" % (what, took))
    return got


def register(person, user):
    body = {"username": user, "password": "correct horse", "auth": {"type": "m.login.dummy"}}
    got = person.call("POST", "/register", body)
    person.user_id, person.token, person.device_id = got["user_id"], got["access_token"], got["device_id"]
    return person


def login(base, user):
    body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": user}, "password": "correct horse"}
    got = http("POST", base + "/_matrix/client/v3/login", body=body)
    return Person(base, got["user_id"], got["access_token"], got["device_id"])


NAME_SERVER = '''
import socket, struct, sys
known = {b"home.test": "%s", b"far.test": "%s"}
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("%s", 53))
while True:
    asked, who = s.recvfrom(2000)
    at, labels = 12, []
    while asked[at]:
        labels.append(asked[at + 1:at + 1 + asked[at]].lower())
        at += 1 + asked[at]
    kind = struct.unpack(">H", asked[at + 1:at + 3])[0]
    name, question = b".".join(labels), asked[12:at + 5]
    ip = known.get(name)
    answer = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\5\\0\\4" + socket.inet_aton(ip) if ip and kind == 1 else b""
    s.sendto(asked[:2] + struct.pack(">HHHHH", 0x8180 | (0 if ip else 3), 1, 1 if answer else 0, 0, 0) + question + answer, who)
'''


def certificate(lab):
    """For both names, from the lab's authority."""
    at = lambda n: os.path.join(lab.dir, n)
    lab.cert, lab.key = at("both.pem"), at("both.key")
    lab.run("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=both",
            "-keyout", lab.key, "-out", at("both.csr"))
    with open(at("both.ext"), "w") as f:
        f.write("subjectAltName=DNS:home.test,DNS:far.test,DNS:house.lan\nbasicConstraints=CA:FALSE\n")
    lab.run("openssl", "x509", "-req", "-in", at("both.csr"), "-CA", lab.ca, "-CAkey", at("ca.key"), "-CAcreateserial",
            "-days", "2", "-extfile", at("both.ext"), "-out", lab.cert)


ASK = '''
import socket, struct, sys
def name(labels):
    return b"".join(bytes([len(l)]) + l for l in labels) + b"\\0"
ip, port, wanted = "%s", %d, b"%s"
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(ip))
for shared in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
    s.setsockopt(socket.SOL_SOCKET, shared, 1)
s.bind(("" if port == 5353 else ip, port))
if port == 5353:
    s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("224.0.0.251") + socket.inet_aton(ip))
s.settimeout(1)
for labels, kind in (([wanted, b"local"], 1), ([b"_matrix", b"_tcp", b"local"], 12)):
    s.sendto(struct.pack(">HHHHHH", 7, 0, 1, 0, 0, 0) + name(labels) + struct.pack(">HH", kind, 1), ("224.0.0.251", 5353))
    heard = b""
    try:
        while True:
            answer = s.recv(4000)
            if answer[2] & 0x80:  # its own question comes back, too
                heard += answer
    except socket.timeout:
        print(heard.hex() or "nothing")
'''


def found(place, ip, name, port=9353):
    words = place.inside + [sys.executable, "-c", ASK % (ip, port, name)]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()


def timestamps(person, room):
    page = person.call("GET", "/rooms/%s/messages?dir=b&limit=30" % room)
    return [event["origin_server_ts"] for event in reversed(page["chunk"]) if event["sender"] == person.user_id]


async def encrypted(server, users):
    """Two people at home in an encrypted room that somebody far away is in too."""
    from nio_chat import Device
    room = users["room"]
    devices = [Device(server.lab, server.base, user, "offline-" + user[1:6]) for user in users["here"]]
    for device in devices:
        await device.login("correct horse")
    for _ in range(2):
        for device in devices:
            await device.sync()
    for device, other in (devices, reversed(devices)):
        text = "a secret of %s" % device.client.user_id
        began = time.time()
        await device.say(room, text)
        check(time.time() - began < SOON_S, "an encrypted message is sent, in %.2f s" % (time.time() - began))
        await other.reads(text)
    for device in devices:
        await device.client.close()


def story(lab):
    certificate(lab)
    far_away, phone = Place(lab), Place(lab)
    far_away.wire("wan0", "far0", HOME + "/24", FAR + "/24")
    phone.wire("home0", "phone0", HOUSE + "/24", PHONE + "/24")
    lab.start("names", far_away.inside + [sys.executable, "-c", NAME_SERVER % (HOME, FAR, FAR)])
    # The servers of the house find each other by what their settings say.
    home = Server(lab, "home.test", [HOME, HOUSE], others='"house.lan" = "%s:8448"' % PHONE)
    house = Server(lab, "house.lan", [PHONE], phone.inside, '"home.test" = "%s:8448"' % HOUSE)
    far = Server(lab, "far.test", [FAR], far_away.inside)
    Away.place = far_away
    far.boot(), home.boot(), house.boot()
    wait_for("both answer", lambda: http("GET", home.base + "/_matrix/client/versions") and "far.test" in far.log())
    alice, carol = [register(Person(home.base, None, None, None), user) for user in ("alice", "carol")]
    bob = wait_for("bob has an account far away", lambda: register(Away(far.base, None, None, None), "bob"))
    dora = Away(house.base, None, None, None)
    dora.place = phone
    wait_for("dora has one in the same house", lambda: register(dora, "dora"))

    # The name is asked for three times before it is taken.
    known = lambda server: re.findall(r"found on the home network as (\S+)\.local", server.log())[-1:]
    wait_for("both servers of the house have a name", lambda: known(home) and known(house))
    check(sorted(known(home) + known(house)) == ["snug", "snug-2"], "not the same one")
    [name] = known(home)
    heard = found(phone, PHONE, name)
    check(socket.inet_aton(HOUSE).hex() in heard[0], "a phone that asks as ordinary DNS does is told the address of %s.local" % name)
    check(all(text.hex() in heard[1] for text in (b"_matrix", b"home.test", b"house.lan")), "and that both serve Matrix")
    heard = found(phone, PHONE, name, 5353)
    check(all(socket.inet_aton(HOME).hex() not in h for h in heard) and "nothing" not in heard, "and so is its own kind; no public address is said")
    check(found(far_away, FAR, name) == ["nothing", "nothing"], "and from outside nobody finds it")

    room = alice.create_room(preset="public_chat")
    secret = alice.create_room(preset="private_chat", initial_state=[
        {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}])
    for place in (room, secret):
        for user in (bob.user_id, carol.user_id):
            alice.invite(place, user)
        wait_for("carol joins", lambda: carol.join(place))
        wait_for("bob joins from far away", lambda: bob.join(place, "home.test"))
    near = alice.create_room(preset="public_chat")
    alice.invite(near, dora.user_id)
    wait_for("dora joins from the other server of the house", lambda: dora.join(near, "home.test"))
    alice.send(room, "before")
    bob.sees_text(room, "before")

    # ---- the way is cut, and the server starts without it
    home.stop()
    run("ip", "link", "set", "wan0", "down")
    soon("the server starts", lambda: (home.boot(), wait_for("it answers", lambda: http("GET", home.base + "/_matrix/client/versions"))))
    began = time.time()
    alice, carol = [soon("%s logs in" % user, lambda: login(home.base, user)) for user in ("alice", "carol")]
    soon("a first sync", lambda: alice.sync())
    soon("and another person's", lambda: carol.sync())
    local = soon("a room at home", lambda: alice.create_room(preset="public_chat"))
    soon("which carol joins", lambda: carol.join(local))
    soon("a message there", lambda: alice.send(local, "at home"))
    soon("arrives", lambda: carol.sees_text(local, "at home"))
    sent = []
    for number in range(6):
        sent.append("alone %d" % number)
        soon("a message in a room with far people", lambda: alice.send(room, sent[-1]))
        soon("arrives at home", lambda: carol.sees_text(room, sent[-1]))
        bob.send(room, "far away %d" % number)
    alice.send(near, "next door")
    dora.sees_text(near, "next door")
    dora.send(near, "hello, neighbour")
    alice.sees_text(near, "hello, neighbour")
    soon("the members", lambda: alice.joined(room))
    soon("the history", lambda: alice.history(room))
    soon("the devices of a far person are not waited for", lambda: alice.call("POST", "/keys/query", {"device_keys": {bob.user_id: []}}))
    soon("nor is the profile", lambda: alice.call("GET", "/profile/" + bob.user_id, ok=(200, 404, 502, 503, 504)))
    asyncio.run(encrypted(home, dict(room=secret, here=[alice.user_id, carol.user_id])))
    while time.time() - began < OUTAGE_S:
        sent.append("alone %d" % len(sent))
        soon("%.0f s without Internet: a message" % (time.time() - began), lambda: alice.send(room, sent[-1]))
        soon("arrives at home", lambda: carol.sees_text(room, sent[-1]))
        time.sleep(min(15, max(0, OUTAGE_S - (time.time() - began))))

    # ---- and comes back
    run("ip", "link", "set", "wan0", "up")
    back = time.time()
    wait_for("bob has all that alice wrote, in order", lambda: [t for t in bob.history(room) if t in sent] == sent, 180)
    wait_for("alice has all that bob wrote", lambda: all("far away %d" % n in alice.history(room) for n in range(6)), 180)
    say("      %.0f s after the way was there again" % (time.time() - back))

    # ---- no clock
    home.stop()
    clock = os.path.join(lab.dir, "clock")
    with open(clock, "w") as f:
        f.write("@1970-01-01 00:00:20\n")
    preload = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    home.env = dict(LD_PRELOAD=preload[0], FAKETIME_TIMESTAMP_FILE=clock, FAKETIME_NO_CACHE="1", FAKETIME_DONT_FAKE_MONOTONIC="1", TZ="UTC")
    soon("the server starts in 1970", lambda: (home.boot(), wait_for("it answers", lambda: http("GET", home.base + "/_matrix/client/versions"))))
    check("check the date" in home.log(), "it says that the date is wrong")
    alice, carol = [soon("%s logs in" % user, lambda: login(home.base, user)) for user in ("alice", "carol")]
    for number in range(3):
        soon("a message", lambda: alice.send(room, "timeless %d" % number))
        soon("arrives at home", lambda: carol.sees_text(room, "timeless %d" % number))
    time.sleep(8)
    check("timeless 0" not in bob.history(room), "nothing goes to other servers")
    poll = subprocess.Popen(["curl", "-sS", "-o", "/dev/null", "-w", "%{time_total}", "-H", "Authorization: Bearer " + carol.token,
                             home.base + "/_matrix/client/v3/sync?timeout=20000&since=" + carol.since], stdout=subprocess.PIPE, text=True)
    time.sleep(1)
    with open(clock, "w") as f:
        f.write("+0\n")
    say("-- the network tells the time")
    wait_for("bob has what was written without a clock", lambda: all("timeless %d" % n in bob.history(room) for n in range(3)), 90)
    bob.send(room, "after")
    alice.sees_text(room, "after")
    alice.send(room, "timely")
    bob.sees_text(room, "timely")
    poll.wait(60)
    check(poll.returncode == 0, "the poll that was open went on")
    times = timestamps(alice, room)
    check(len(times) > 8 and times == sorted(times), "the times of alice's events never go back")
    check("the clock was set" in home.log() and "panicked" not in home.log(), "and the log says that the clock was set")
    home.stop()

    # ---- a clock that is ten years ahead for a while
    target = os.path.join(lab.dir, "backups")
    with open(home.config, "a") as f:
        f.write("\n[backup]\ntarget = \"%s\"\n" % target)

    def backups():
        return [name for name in (os.listdir(target) if os.path.isdir(target) else []) if name.endswith(".list")]

    def boot_at(offset):
        with open(clock, "w") as f:
            f.write(offset + "\n")
        home.boot()
        wait_for("it answers, with a clock at %s" % offset, lambda: http("GET", home.base + "/_matrix/client/versions"))

    boot_at("+0")
    wait_for("a backup is made", lambda: len(backups()) == 1, 60)
    home.stop()
    made = backups()
    boot_at("+3650d")
    time.sleep(5)
    check("the clock jumped to" in home.log(), "the log says that the clock jumped")
    check(backups() == made, "no backup is removed for it")
    home.stop()
    boot_at("+0")
    alice = login(home.base, "alice")
    alice.send(room, "mended")
    wait_for("with the clock mended bob hears of alice again", lambda: "mended" in bob.history(room), 60)
    home.stop()
    check("panicked" not in far.log(), "nothing panicked")


if __name__ == "__main__":
    if not os.environ.get("APART"):
        how = ["unshare", "--net", "--mount"] + (["--map-root-user"] if os.getuid() else [])
        os.execvpe("unshare", how + [sys.executable] + sys.argv, dict(os.environ, APART="1"))
    run("ip", "link", "set", "lo", "up")
    names = os.path.join(os.environ.get("TMPDIR", "/tmp"), "snug-offline-names-%d" % os.getpid())
    with open(names, "w") as f:
        f.write("nameserver %s\noptions timeout:2 attempts:2\n" % FAR)
    run("mount", "--bind", names, "/etc/resolv.conf")
    os.remove(names)
    main("offline", story)
