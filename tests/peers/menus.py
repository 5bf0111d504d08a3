"""What an app's menus ask for beyond chat, by matrix-js-sdk in Node and in headless Chromium: search, a space, thumbnails, a
link's preview, reports, presence, threads, delayed events, profile fields, blocked invites, sessions let in and refreshed,
guests, relays for calls.

  python3 tests/peers/menus.py     needs `npm ci` in tests/peers/js, chromium, unshare and ip; SNUG=path of the binary

It runs in a network namespace of its own, where the linked page can have an address that is not a private one.
"""
import os
import subprocess
import sys

from lab import HERE, drive, main

SITE = "5.6.7.8"

SNUG = """
guests = true
search_all_users = true
presence = "local"
[turn]
uris = ["turn:turn.example.org"]
shared_secret = "lab"
[rtc]
livekit_service_urls = ["https://rtc.example.org"]
"""

SYNAPSE = """
allow_guest_access: true
turn_uris: ["turn:turn.example.org"]
turn_shared_secret: lab
url_preview_enabled: true
url_preview_ip_range_blacklist: ["203.0.113.0/24"]
max_event_delay_duration: 24h
login_via_existing_session: {enabled: true, require_ui_auth: true}
user_directory: {enabled: true, search_all_users: true}
presence: {enabled: true}
matrix_rtc: {transports: [{type: livekit, livekit_service_url: "https://rtc.example.org"}]}
"""


def story(lab):
    drive(lab, ["node", os.path.join(HERE, "js", "menus.mjs")], lab.server(snug=SNUG, synapse=SYNAPSE), dict(SITE=SITE))


if __name__ == "__main__":
    if not os.environ.get("APART"):
        how = ["unshare", "--net"] + (["--map-root-user"] if os.getuid() else [])
        os.execvpe("unshare", how + [sys.executable] + sys.argv, dict(os.environ, APART="1"))
    for words in (["link", "set", "lo", "up"], ["addr", "add", SITE + "/32", "dev", "lo"]):
        subprocess.run(["ip"] + words, check=True)
    main("menus", story)
