"""The newcomer's way: a fresh data folder and a browser, and no more than the README says. Start, the first account in the page, a second
person by QR code, a certificate from an authority (Pebble, the ACME project's test server), a call through the relay inside, a
backup, a restore elsewhere, a removed room whose space comes back.

  python3 tests/peers/newcomer.py      SNUG=path of the binary, PEBBLE=folder with pebble and pebble-challtestsrv; needs `npm ci` in
                                       tests/peers/js, chromium and zbarimg (Debian's zbar-tools)

Runs itself in a namespace of its own for network and files (as root, or with user namespaces): the house is one machine at HOME whose
name is in its hosts file, and nothing leaves it.
"""
import base64
import hashlib
import os
import re
import signal
import subprocess
import sys

if __name__ == "__main__" and os.environ.get("IN_NAMESPACE") != "1":
    os.environ["IN_NAMESPACE"] = "1"
    root = [] if os.getuid() == 0 else ["--map-root-user"]
    os.execvp("unshare", ["unshare", "--net", "--mount", *root, sys.executable, os.path.abspath(__file__)])

from certificates import DIRECTORY, HOME, Pebble, lab_top, shown  # noqa: E402
from lab import HERE, check, drive, http, main, say, wait_for  # noqa: E402

NAME = "home.snug.test"


def network(lab):
    """The house: one address that is not the loopback's, and a name for it."""
    for words in (["link", "set", "lo", "up"], ["link", "add", "house", "type", "veth", "peer", "name", "street"],
                  ["addr", "add", HOME + "/24", "dev", "house"], ["link", "set", "house", "up"], ["link", "set", "street", "up"]):
        subprocess.run(["ip", *words], check=True)
    hosts = os.path.join(lab.dir, "hosts")
    with open(hosts, "w") as f:
        f.write("127.0.0.1 localhost\n%s %s\n" % (HOME, NAME))
    subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)


class Newcomer:
    """A server that is started with nothing but a folder to be in."""

    def __init__(self, lab, name):
        self.lab, self.name, self.server_name = lab, name, "localhost"
        self.binary = os.environ.get("SNUG", os.path.join(lab_top(), "target", "release", "snug"))
        self.cwd = os.path.join(lab.dir, name)
        self.data = os.path.join(self.cwd, "snug-data")
        self.config = os.path.join(self.data, "snug.toml")
        self.log = os.path.join(lab.dir, name + ".log")
        self.base = "http://localhost:8008"
        os.makedirs(self.cwd)
        lab.logs.append(self.log)

    def start(self):
        with open(self.log, "ab") as out:
            self.child = subprocess.Popen([self.binary], cwd=self.cwd, stdout=out, stderr=subprocess.STDOUT)
        self.lab.children.append(self.child)
        # Its certificate is believed in the way every program here believes one.
        wait_for("%s answers at %s" % (self.name, self.base), lambda: http("GET", self.base + "/_matrix/client/versions"))

    def stop(self):
        self.child.send_signal(signal.SIGTERM)
        check(self.child.wait(30) == 0, "it stops in order")

    def command(self, *words):
        done = subprocess.run([self.binary, *words], cwd=self.cwd, capture_output=True, text=True, timeout=300)
        check(done.returncode == 0, "`snug %s` works%s" % (" ".join(words), "" if done.returncode == 0 else ": " + done.stdout + done.stderr))
        return done.stdout

    def said(self, pattern):
        with open(self.log, errors="replace") as f:
            return re.findall(pattern, f.read())[-1]

    def write(self, pattern, line):
        """A line of the config file in place of one that is there, commented out or not."""
        with open(self.config) as f:
            text = f.read()
        new, count = re.subn(r"(?m)^(# )?%s.*$" % pattern, lambda _: line, text, count=1)
        check(count == 1, "the config file has a line for it: %s" % line.splitlines()[0])
        with open(self.config, "w") as f:
            f.write(new)

    def add(self, text):
        with open(self.config, "a") as f:
            f.write(text)

    def browse(self, step, env=None):
        env = dict(PAGE=self.base + "/_snug/", **(env or {}))
        drive(self.lab, ["node", os.path.join(HERE, "js", "newcomer.mjs"), step], self, env)

    def bytes(self):
        """Of the database's file."""
        return os.path.getsize(os.path.join(self.data, "database"))


def key_of(pem):
    """What Chromium calls a key by."""
    der = subprocess.run(["openssl", "x509", "-pubkey", "-noout"], input=pem.encode(), capture_output=True, check=True).stdout
    der = subprocess.run(["openssl", "pkey", "-pubin", "-outform", "der"], input=der, capture_output=True, check=True).stdout
    return base64.b64encode(hashlib.sha256(der).digest()).decode()


def human(count):
    return "%.1f MiB" % (count / 1048576)


def story(lab):
    network(lab)
    say("-- start")
    one = Newcomer(lab, "one")
    one.start()
    check(os.path.exists(one.config), "the first start has written %s" % os.path.relpath(one.config, one.cwd))
    one.write("server_name", 'server_name = "%s"' % NAME)
    one.stop()
    one.start()
    one.server_name = NAME
    check(NAME in one.said(r"Snug is open, as (\S+), at"), "it is called %s" % NAME)

    say("-- the first account, in the page")
    first = one.said(r"http://\S+/_snug/first/\S+")
    one.browse("account", dict(FIRST=first))

    say("-- a second person, by QR code")
    one.browse("person")

    say("-- a certificate")
    pebble = Pebble(lab)
    one.stop()
    one.write("certificates", 'certificates = "acme"')
    # For a test's authority alone: who has a name in the DNS says nothing of this.
    one.add('\n[acme]\ndirectory = "%s"\nextra_ca_file = "%s"\n' % (DIRECTORY, lab.ca))
    roots = os.path.join(lab.dir, "pebble-roots.pem")
    with open(roots, "w") as f:
        f.write(pebble.roots)
    os.environ["SSL_CERT_FILE"] = roots
    one.base = "https://" + NAME
    one.start()
    shown(pebble, NAME)
    pem = open(os.path.join(one.data, "certificates", "acme.pem")).read()
    chain = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", pem, re.S)
    secure = dict(SPKI=key_of(chain[1] if len(chain) > 1 else chain[0]), NODE_EXTRA_CA_CERTS=roots)

    say("-- a call, through the relay inside")
    one.stop()
    one.add('\n[turn]\nlisten = ["%s:3478"]\n' % HOME)
    backups = os.path.join(lab.dir, "stick")
    one.add('\n[backup]\ntarget = "%s"\n' % backups)
    one.start()
    one.browse("call", dict(secure, RELAY="turn:%s:3478?transport=udp" % NAME))

    say("-- a backup, on the page")
    one.browse("backup", secure)
    one.stop()

    say("-- a restore, elsewhere")
    two = Newcomer(lab, "two")
    two.server_name = NAME
    said = two.command("restore", backups, "--data-dir", two.data)
    say("      " + " ".join(said.split())[:300])
    two.base = one.base
    two.start()
    shown(pebble, NAME)
    two.browse("there", secure)

    say("-- a room goes, and its space comes back")
    before = two.bytes()
    disk = two.command("disk")
    check("Moving house" in disk, "`snug disk` names the room that takes the most")
    two.browse("purge", secure)
    after = two.bytes()
    two.stop()
    say("      " + " ".join(two.command("compact").split())[:200])
    compacted = two.bytes()
    check(compacted < before / 2, "the database took %s, after the removal %s, compacted %s" % tuple(map(human, (before, after, compacted))))
    two.start()
    two.browse("there", secure)
    pebble.stop()


if __name__ == "__main__":
    main("newcomer", story)
