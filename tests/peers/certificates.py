"""Certificates from an authority that checks for itself: Pebble, the ACME project's test server, in a network of its own.

  python3 tests/peers/certificates.py      SNUG=path of the binary, PEBBLE=folder with pebble and pebble-challtestsrv

Runs itself in a network namespace (as root, or with user namespaces), so that ports 80, 443 and 8448 are free and nothing
leaves the machine. Each part prints its steps; ONLY=name runs one of them.
"""
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request

HOME = "10.77.0.1"
NOBODY = "10.77.0.99"
DIRECTORY = "https://127.0.0.1:14000/dir"

if __name__ == "__main__" and os.environ.get("IN_NAMESPACE") != "1":
    os.environ["IN_NAMESPACE"] = "1"
    root = [] if os.getuid() == 0 else ["--map-root-user"]
    os.execvp("unshare", ["unshare", "--net", *root, sys.executable, os.path.abspath(__file__)])

from lab import Snug, check, free_port, main, say, wait_for  # noqa: E402


def network():
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "addr", "add", HOME + "/32", "dev", "lo"], check=True)
    # Connections to an address that nobody has fail at once.
    subprocess.run(["ip", "route", "add", "unreachable", NOBODY + "/32"], check=True)


class Pebble:
    """The authority, and the name server that it asks."""

    def __init__(self, lab, life_s=7776000, env=None, eab=None):
        self.lab, self.env = lab, dict(os.environ, PEBBLE_VA_NOSLEEP="1", PEBBLE_AUTHZREUSE="0", PEBBLE_WFE_NONCEREJECT="20")
        self.env.update(env or {})
        self.bin = os.environ.get("PEBBLE", os.path.join(lab_top(), "target", "pebble"))
        self.config = os.path.join(lab.dir, "pebble-%d.json" % life_s)
        settings = {
            "listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000", "certificate": lab.cert,
            "privateKey": lab.key, "httpPort": 80, "tlsPort": 443, "ocspResponderURL": "", "domainBlocklist": ["blocked.test"],
            "externalAccountBindingRequired": bool(eab), "externalAccountMACKeys": eab or {}, "keyAlgorithm": "ecdsa",
            "retryAfter": {"authz": 1, "order": 1},
            "profiles": {"default": {"description": "usual", "validityPeriod": life_s}},
        }
        with open(self.config, "w") as f:
            json.dump({"pebble": settings}, f)
        self.names = lab.start("challtestsrv", [
            os.path.join(self.bin, "pebble-challtestsrv"), "-defaultIPv4", HOME, "-defaultIPv6", "", "-dnsserver", "127.0.0.1:8053",
            "-management", "127.0.0.1:8055", "-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", ""])
        self.boot()

    def boot(self):
        self.child = self.lab.start("pebble", [
            os.path.join(self.bin, "pebble"), "-config", self.config, "-dnsserver", "127.0.0.1:8053"], env=self.env)
        wait_for("Pebble answers", self.ask)
        self.roots = self.ask()

    def ask(self):
        context = ssl.create_default_context(cafile=self.lab.ca)
        with urllib.request.urlopen("https://127.0.0.1:15000/roots/0", context=context, timeout=5) as answer:
            return answer.read().decode()

    def point(self, name, address):
        for what in ("clear-a", "add-a"):
            data = json.dumps({"host": name + ".", "addresses": [address]}).encode()
            urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:8055/" + what, data=data, method="POST"), timeout=5)

    def stop(self):
        for child in (self.child, self.names):
            if child.poll() is None:
                child.kill()
            child.wait(10)

    def log(self):
        with open(os.path.join(self.lab.dir, "pebble.log"), errors="replace") as f:
            return f.read()


def lab_top():
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Home(Snug):
    """A Snug that gets its certificates itself: HTTPS at HOME, plain HTTP for this script on the loopback."""

    def __init__(self, lab, name, server_name, more="", acme="", plain='["%s:80"]' % HOME, wait=True):
        self.lab, self.name, self.server_name, self.port = lab, name, server_name, free_port()
        self.base = "http://127.0.0.1:%d" % self.port
        self.binary = os.environ.get("SNUG", os.path.join(lab_top(), "target", "release", "snug"))
        self.data = os.path.join(lab.dir, name)
        os.makedirs(self.data, exist_ok=True)
        self.config = os.path.join(self.data, "snug.toml")
        with open(self.config, "w") as f:
            f.write("""
server_name = "%s"
certificates = "acme"
listen = ["%s:443", "127.0.0.1:%d"]
plain_listen = %s
data_dir = "%s"
budget = "pi-zero-2w"
registration = "open"
%s
[federation]
listen = ["%s:8448"]
[acme]
directory = "%s"
extra_ca_file = "%s"
%s
""" % (server_name, HOME, self.port, plain, self.data, more, HOME, DIRECTORY, lab.ca, acme))
        if wait:
            self.boot()

    def state(self):
        with open(os.path.join(self.data, "certificates", "acme.json")) as f:
            return json.load(f)

    def check(self):
        got = subprocess.run([self.binary, "check", "--config", self.config], capture_output=True, text=True, timeout=60)
        return got.stdout + got.stderr

    def stop(self):
        self.child.send_signal(signal.SIGTERM)
        self.child.wait(30)


def serial(pebble, name, port=443):
    """The serial number of the certificate shown at HOME, believed under Pebble's root for this name."""
    context = ssl.create_default_context(cadata=pebble.roots)
    with socket.create_connection((HOME, port), timeout=10) as plain, context.wrap_socket(plain, server_hostname=name) as tls:
        return tls.getpeercert()["serialNumber"]


def shown(pebble, name, seconds=60, port=443):
    def probe():
        try:
            return serial(pebble, name, port)
        except (ssl.SSLError, OSError):
            return None
    return wait_for("a certificate of Pebble for %s on port %d" % (name, port), probe, seconds)


class Poll(threading.Thread):
    """A long poll over HTTPS, as it is open while the certificate changes."""

    def __init__(self, pebble, name, token, since):
        super().__init__()
        context = ssl.create_default_context(cadata=pebble.roots)
        self.tls = context.wrap_socket(socket.create_connection((HOME, 443), timeout=90), server_hostname=name)
        self.ask = ("GET /_matrix/client/v3/sync?timeout=75000&since=%s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n"
                    "Connection: close\r\n\r\n" % (since, name, token)).encode()
        self.answer = b""
        self.start()

    def run(self):
        self.tls.sendall(self.ask)
        while True:
            piece = self.tls.recv(65536)
            if not piece:
                return
            self.answer += piece


def renewal(lab):
    say("-- HTTP-01 for two names, then a renewal with both listeners swapped while a long poll is open")
    pebble = Pebble(lab, life_s=90)
    home = Home(lab, "renewed", "chat.snug.test", 'public_url = "https://matrix.snug.test"', 'challenge = "http-01"')
    first = shown(pebble, "chat.snug.test")
    check(serial(pebble, "matrix.snug.test") == first, "it is for the name in public_url too")
    check(serial(pebble, "chat.snug.test", 8448) == first, "other servers are shown the same on port 8448")
    check("validate w/ HTTP" in pebble.log(), "Pebble asked over HTTP")
    for file in ("acme.pem", "acme.json"):
        mode = os.stat(os.path.join(home.data, "certificates", file)).st_mode & 0o777
        check(mode == 0o600, "%s is its owner's alone" % file)
    with Plain() as got:
        check(got.status == 301 and got.to == "https://%s/some/where?a=b" % HOME, "a browser is led to HTTPS")
    alice = home.register("alice")
    room = alice.create_room(preset="private_chat")
    alice.sync()
    poll = Poll(pebble, "chat.snug.test", alice.token, alice.since)
    def changed():
        now = serial(pebble, "chat.snug.test")
        return now if now != first else None
    second = wait_for("the certificate was renewed with a third of its life left", changed, 85)
    check(serial(pebble, "chat.snug.test", 8448) == second, "both listeners show the new one")
    check(poll.is_alive(), "the long poll is still open")
    alice.send(room, "over the old connection")
    poll.join(20)
    check(b"over the old connection" in poll.answer, "and brings a message over the old connection")
    check("is valid until" in home.check() or "ends in" in home.check(), "`snug check` says until when")
    gone(lab, pebble, home, second)
    home.stop()
    pebble.stop()


class Plain:
    """What the plain address answers a browser."""

    def __enter__(self):
        with socket.create_connection((HOME, 80), timeout=5) as s:
            s.sendall(("GET /some/where?a=b HTTP/1.0\r\nHost: %s\r\n\r\n" % HOME).encode())
            head = b""
            while b"\r\n\r\n" not in head:
                piece = s.recv(4096)
                if not piece:
                    break
                head += piece
        text = head.decode()
        self.status = int(text.split()[1])
        self.to = next((l.split(": ", 1)[1] for l in text.split("\r\n") if l.lower().startswith("location:")), None)
        return self

    def __exit__(self, *_):
        pass


def gone(lab, pebble, home, was):
    say("-- the authority is gone when a renewal is due, and comes back as another that knows no account")
    pebble.child.kill()
    pebble.child.wait(10)
    def said():
        text = home.check()
        return "127.0.0.1:14000" in text and "tried again" in text and text
    text = wait_for("`snug check` says that the authority cannot be reached", said, 85)
    say("      " + next(l for l in text.splitlines() if "14000" in l)[:160])
    check(serial(pebble, "chat.snug.test") == was, "the old certificate is shown meanwhile")
    pebble.boot()
    new = shown(pebble, "chat.snug.test", 150)
    check(new != was, "a new account was made, and a new certificate is shown")


def by_tls(lab):
    say("-- TLS-ALPN-01 alone, without port 80")
    pebble = Pebble(lab)
    before = len(pebble.log())  # of the parts before this one
    home = Home(lab, "by-tls", "tls.snug.test", acme='challenge = "tls-alpn-01"', plain="[]")
    first = shown(pebble, "tls.snug.test")
    check("validate w/ HTTP" not in pebble.log()[before:], "Pebble did not ask over HTTP")
    home.restart()
    check(shown(pebble, "tls.snug.test") == first, "a restart shows the certificate that was kept")
    home.stop()
    pebble.stop()


def refused(lab):
    say("-- one name of two leads elsewhere: the other gets its certificate, the owner is told, and later both have one")
    pebble = Pebble(lab)
    pebble.point("bad.snug.test", NOBODY)
    more = 'certificate_names = ["good.snug.test", "bad.snug.test"]'
    home = Home(lab, "refused", "good.snug.test", more, acme='challenge = "http-01"')
    shown(pebble, "good.snug.test")
    def said():
        text = home.check()
        return "could not reach http://bad.snug.test/.well-known/acme-challenge/" in text and text
    text = wait_for("`snug check` says what to do", said, 30)
    line = next(l for l in text.splitlines() if "bad.snug.test/.well" in l)
    check("port 80 must be forwarded" in line and "It said:" in line and "tried again in" in line, line[:300])
    pebble.point("bad.snug.test", HOME)
    shown(pebble, "bad.snug.test", 120)
    check("could not reach" not in home.check(), "nothing is said any more")
    home.stop()
    say("-- an authority that gives none for a name")
    home = Home(lab, "blocked", "blocked.test")
    wait_for("`snug check` says so", lambda: "gives no certificate" in home.check() or "does not take" in home.check(), 30)
    home.stop()
    pebble.stop()


def account(lab):
    say("-- an authority that wants to know whose account it is")
    key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
    pebble = Pebble(lab, eab={"kid-1": key})
    home = Home(lab, "unknown", "eab.snug.test")
    wait_for("without a key `snug check` says what to set", lambda: "acme.eab_key_id" in home.check(), 30)
    home.stop()
    bound = 'eab_key_id = "kid-1"\neab_key = "%s"\nemail = "me@snug.test"' % key
    home = Home(lab, "known", "eab.snug.test", acme=bound)
    shown(pebble, "eab.snug.test")
    home.stop()
    pebble.stop()


def killed(lab):
    say("-- killed at every step of an order, again and again")
    pebble = Pebble(lab, env={"PEBBLE_VA_NOSLEEP": "0", "PEBBLE_VA_SLEEPTIME": "8"})
    home = Home(lab, "killed", "killed.snug.test", wait=False)
    for tenths in (1, 3, 6, 10, 16):
        home.child = lab.start("killed", [home.binary, "serve", "--config", home.config])
        time.sleep(tenths / 10 + 0.2)
        home.kill()
        folder = os.path.join(home.data, "certificates")
        if os.path.exists(os.path.join(folder, "acme.json")):
            home.state()
    check(True, "what is kept was whole each time")
    home.child = lab.start("killed", [home.binary, "serve", "--config", home.config])
    def ordered():
        try:
            return home.state().get("order")
        except OSError:
            return None
    end = time.time() + 60
    while time.time() < end and not ordered():
        time.sleep(0.002)
    home.kill()
    kept = os.path.exists(os.path.join(home.data, "certificates", "acme.pem"))
    check(ordered() is not None and not kept, "killed between the order and its certificate")
    time.sleep(2)
    home.boot()
    shown(pebble, "killed.snug.test", 90)
    accounts = len(re.findall(r"POST /sign-me-up", pebble.log()))
    say("      %d accounts were asked for in all" % accounts)
    home.stop()
    pebble.stop()


def own(lab):
    say("-- two houses with authorities of their own, each of which believes the other alone")
    names = {"one": "one.lan", "two": "two.lan"}
    homes = {}
    for at, (name, server) in enumerate(names.items(), 1):
        address = "10.78.0.%d" % at
        subprocess.run(["ip", "addr", "add", address + "/32", "dev", "lo"], check=True)
        home = Home(lab, name, server, wait=False)
        with open(home.config) as f:
            text = f.read().replace('"acme"', '"own"').replace(HOME, address).split("[acme]")[0]
        other = "two" if name == "one" else "one"
        root = os.path.join(lab.dir, other + "-root.pem")
        text += 'overrides = { "%s" = { address = "10.78.0.%d:8448", root = "%s" } }\n' % (names[other], 3 - at, root)
        with open(home.config, "w") as f:
            f.write(text)
        home.address = address
        homes[name] = home
    # Roots are there before either starts for good.
    for name, home in homes.items():
        for other in names:
            path = os.path.join(lab.dir, other + "-root.pem")
            if not os.path.exists(path):
                open(path, "w").close()
        home.boot()
        with urllib.request.urlopen("http://%s/_snug/certificate.pem" % home.address, timeout=5) as answer:
            check(answer.headers["content-type"] == "application/x-pem-file", "%s offers its root at a plain address" % name)
            home.root = answer.read().decode()
        home.stop()
    for name, home in homes.items():
        with open(os.path.join(lab.dir, name + "-root.pem"), "w") as f:
            f.write(home.root)
    for home in homes.values():
        home.boot()
        context = ssl.create_default_context(cadata=home.root)
        for shown_name in (home.server_name, "snug.local"):
            with socket.create_connection((home.address, 443), timeout=10) as plain:
                context.wrap_socket(plain, server_hostname=shown_name).close()
        check(True, "%s is believed under its root" % home.server_name)
    for kind, said in (("", b"<h1>Let this device"), (".crt", b"\x30"), (".mobileconfig", b"<?xml")):
        with urllib.request.urlopen("http://10.78.0.1/_snug/certificate" + kind, timeout=5) as answer:
            check(said in answer.read(), "certificate%s is there" % kind)
    alice, bob = homes["one"].register("alice"), homes["two"].register("bob")
    room = alice.create_room(preset="private_chat", invite=[bob.user_id])
    bob.sees_invite(room)
    bob.join(room)
    alice.send(room, "from house to house")
    bob.sees_text(room, "from house to house")
    bob.send(room, "and back")
    alice.sees_text(room, "and back")
    for home in homes.values():
        home.stop()


def story(lab):
    network()
    parts = [renewal, by_tls, refused, account, killed, own]
    for part in parts:
        if os.environ.get("ONLY", part.__name__) == part.__name__:
            part(lab)


if __name__ == "__main__":
    main("certificates", story)
