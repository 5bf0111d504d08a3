"""A moderation bot on matrix-bot-sdk: a list of rules that it applies to the rooms it protects, redactions, reports, and what such bots
ask of the administration API. Draupnir itself is in no package registry: see draupnir.py.

  python3 tests/peers/bot_sdk.py     needs `npm ci` in tests/peers/bot-sdk; SNUG=path of the binary
"""
import json
import os
import subprocess

from lab import HERE, drive, main

SETTINGS = """
[rates]
message = { per_second = 50, burst_count = 200 }
"""


def story(lab):
    server = lab.server(snug=SETTINGS)
    tokens = {name: server.register(name).token for name in ["boss", "alice", "mallory", "warden"]}
    for name in ["boss", "warden"]:
        subprocess.run([server.binary, "user", "admin", name, "--config", server.config], check=True, stdout=subprocess.DEVNULL)
    drive(lab, ["node", os.path.join(HERE, "bot-sdk", "warden.mjs")], server, dict(TOKENS=json.dumps(tokens)))


if __name__ == "__main__":
    main("bot_sdk", story)
