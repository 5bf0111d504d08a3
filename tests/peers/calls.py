"""A call between two people in headless Chromium, whose sound passes through a TURN server that the settings name (Debian's
coturn), and Element Call's page, which finds its media server through Snug.

  python3 tests/peers/calls.py     needs `npm ci` in tests/peers/js, chromium and coturn; SNUG=path of the binary
"""
import os

from lab import HERE, drive, free_port, main

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


def story(lab):
    port = free_port()
    named = dict(relay="turn:127.0.0.1:%d?transport=udp" % port, livekit="ws://127.0.0.1:%d" % free_port())
    lab.start("coturn", ["turnserver", "-n", "--listening-ip=127.0.0.1", "--relay-ip=127.0.0.1", "--listening-port=%d" % port,
                         "--use-auth-secret", "--static-auth-secret=lab", "--realm=lab", "--allow-loopback-peers", "--cli-password=lab",
                         "--no-cli", "--no-tls", "--no-dtls", "--log-file=stdout", "--pidfile=%s/coturn.pid" % lab.dir, "--userdb=%s/coturn.db" % lab.dir])
    drive(lab, ["node", os.path.join(HERE, "js", "calls.mjs")], lab.server(snug=SNUG % named, synapse=SYNAPSE % named), dict(RELAY=named["relay"], LIVEKIT=named["livekit"]))


if __name__ == "__main__":
    main("calls", story)
