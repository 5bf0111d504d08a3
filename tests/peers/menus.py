"""What an app's menus ask for beyond chat, by matrix-js-sdk in Node and in headless Chromium: search, a space, thumbnails, a link's preview, reports,
presence, threads, delayed events, profile fields, blocked invites, sessions let in and refreshed, guests, relays for calls.

  python3 tests/peers/menus.py     needs `npm ci` in tests/peers/js; SNUG=path of the binary
"""
import os

from lab import HERE, drive, main

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
    drive(lab, ["node", os.path.join(HERE, "js", "menus.mjs")], lab.server(synapse=SYNAPSE))


if __name__ == "__main__":
    main("menus", story)
