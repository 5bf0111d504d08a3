"""A call between two people in headless Chromium, whose sound passes through a relay alone: a TURN server that the settings
name (Debian's coturn), then the relay inside Snug. And Element Call's page, which finds its media server through Snug. coturn's
own client tools try the relay inside Snug first, over UDP, TCP and TLS.

  python3 tests/peers/calls.py     needs `npm ci` in tests/peers/js, chromium and coturn; SNUG=path of the binary
"""
import base64
import hashlib
import hmac
import os
import re
import subprocess
import time

from lab import HERE, check, drive, free_port, http, main, say

SNUG = """
[turn]
uris = ["%(relay)s"]
shared_secret = "lab"

[rtc]
livekit_url = "%(livekit)s"
livekit_key = "lab"
livekit_secret = "the secret of a lab, long enough for HMAC"
"""
SYNAPSE = """
turn_uris: ["%(relay)s"]
turn_shared_secret: lab
"""
INSIDE = """
[client]
tls_certificate = "%(cert)s"
tls_private_key = "%(key)s"

[turn]
listen = ["127.0.0.1:%(port)d"]
listen_tls = ["127.0.0.1:%(tls)d"]
shared_secret = "lab"
"""
PLAIN = INSIDE[INSIDE.index("[turn]"):].replace('listen_tls = ["127.0.0.1:%(tls)d"]\n', "")


def credentials(seconds=3600, secret="lab"):
    name = "%d:@anna:here.test" % (time.time() + seconds)
    return name, base64.b64encode(hmac.new(secret.encode(), name.encode(), hashlib.sha1).digest()).decode()


def tool(name, *words):
    """A run of one of coturn's tools: its exit status and what it said."""
    try:
        done = subprocess.run([name, *words], capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as late:
        return None, (late.stdout or b"").decode()


def uclient(port, *words, login=None):
    """Two or more clients of coturn's that talk to each other through the relay; how many messages were sent and received."""
    name, password = login or credentials()
    _, text = tool("turnutils_uclient", "-u", name, "-w", password, "-p", str(port), "-c", "-y", "-n", "50", "-z", "5", *words, "127.0.0.1")
    counts = re.findall(r"tot_send_msgs=(\d+), tot_recv_msgs=(\d+)", text)
    return tuple(map(int, counts[-1])) if counts else (0, 0), text


def tools(lab):
    port, tls = free_port(), free_port()
    server = TlsSnug(lab, "tools", INSIDE % dict(port=port, tls=tls, cert=lab.cert, key=lab.key))
    status, text = tool("turnutils_stunclient", "-p", str(port), "127.0.0.1")
    check(status == 0 and "reflexive addr: 127.0.0.1" in text, "turnutils_stunclient is told its address")
    for what, way in (("UDP", [port]), ("TCP", [port, "-t"]), ("TLS", [tls, "-t", "-S"]), ("UDP by Send indications", [port, "-s"])):
        (sent, received), text = uclient(*way)
        check(sent >= 100 and received == sent, "turnutils_uclient over %s: %d messages sent, %d received" % (what, sent, received))
    for what, login in (("a wrong password", (credentials()[0], "wrong")), ("a name of yesterday", credentials(-60)),
                        ("another secret", credentials(secret="south"))):
        (sent, received), text = uclient(port, login=login)
        check(received == 0 and "Cannot complete Allocation" in text, "%s is refused" % what)
    name, password = credentials()
    _, text = tool("turnutils_uclient", "-u", name, "-w", password, "-p", str(port), "-c", "-e", "10.9.8.7", "-r", "3480", "-n", "3", "127.0.0.1")
    check("403" in text, "and so is a peer in a private network")
    return server


class TlsSnug:
    """A Snug whose apps speak TLS, as its relay then does."""

    def __init__(self, lab, name, more):
        from lab import CONFIG
        self.data, self.port = os.path.join(lab.dir, name), free_port()
        os.makedirs(self.data)
        config = os.path.join(self.data, "snug.toml")
        with open(config, "w") as f:
            f.write(CONFIG % dict(server_name="here.test", port=self.port, fed=free_port(), data=self.data, budget="pi-zero-2w",
                                  cert=lab.cert, key=lab.key, ca=lab.ca, more=more))
        binary = os.environ.get("SNUG", os.path.join(os.path.dirname(os.path.dirname(HERE)), "target", "release", "snug"))
        child = lab.start(name, [binary, "serve", "--config", config])
        log = os.path.join(lab.dir, name + ".log")
        end = time.time() + 30
        while "listening for apps" not in open(log).read():
            assert time.time() < end and child.poll() is None, "the server did not start"
            time.sleep(0.2)


def coturn(lab):
    port = free_port()
    named = dict(relay="turn:127.0.0.1:%d?transport=udp" % port, livekit="ws://127.0.0.1:%d" % free_port())
    lab.start("coturn", ["turnserver", "-n", "--listening-ip=127.0.0.1", "--relay-ip=127.0.0.1", "--listening-port=%d" % port,
                         "--use-auth-secret", "--static-auth-secret=lab", "--realm=lab", "--allow-loopback-peers", "--cli-password=lab",
                         "--no-cli", "--no-tls", "--no-dtls", "--log-file=stdout", "--pidfile=%s/coturn.pid" % lab.dir, "--userdb=%s/coturn.db" % lab.dir])
    drive(lab, ["node", os.path.join(HERE, "js", "calls.mjs")], lab.server(snug=SNUG % named, synapse=SYNAPSE % named), dict(RELAY=named["relay"], LIVEKIT=named["livekit"]))


def inside(lab):
    port = free_port()
    server = lab.snug("inside", more=PLAIN % dict(port=port))
    drive(lab, ["node", os.path.join(HERE, "js", "calls.mjs")], server, dict(RELAY="turn:127.0.0.1:%d?transport=udp" % port, LIVEKIT=""))


def story(lab):
    if os.environ.get("SERVER") != "synapse":
        tools(lab)
        say("-- a call through the relay inside")
        inside(lab)
    say("-- a call through coturn")
    coturn(lab)


if __name__ == "__main__":
    main("calls", story)
