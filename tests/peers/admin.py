"""Synapse's administration API at Synapse and at Snug: each call goes to both, and statuses, names and types are compared. The
accounts are made by register_new_matrix_user; then synadm works on Snug.

  PEERS_PYTHON tests/peers/admin.py     needs matrix-synapse; SNUG=path of the binary; SYNADM=path of synadm, without which that
                                        part is left out

What may differ stands in ALLOWED, each with its reason; a line of it that nothing needs is an error too.
"""
import json
import os
import re
import subprocess
import sys
import time

from lab import Person, answer, check, main, q, say, wait_for

SNUG = """
registration_shared_secret = "lab"
[media]
local_unused_days = 365
[rates]
login = { per_second = 1000, burst_count = 1000 }
"""
SYNAPSE = """
server_notices: {system_mxid_localpart: notices, system_mxid_display_name: Notices, room_name: Notices}
enable_room_list_search: true
room_list_publication_rules: [{action: allow}]
"""
A = "/_synapse/admin/v1"
B = "/_synapse/admin/v2"

# (pattern for the call's name, pattern for the difference, why)
ALLOWED = [
    (r"GET .*/(users|users/(<\w+>|BANNED|DEACTIVATED))(\?.*| \(.*\))?", r"(users\[\]\.)?last_seen_ts: (int|null)",
     "Synapse writes down when somebody was seen a while later"),
    (r"GET .*/users(\?.*| \(.*\))?", r"users\[\]\.suspended: bool", "more is said here of those who are listed"),
    (r"GET .*/v2/users\?from=2&limit=2", r"next_token: str", "the account that notices come from is one here"),
    (r"GET .*limit=0", r"next_(token|batch): \w+", "behind a page of no rows there is no next one"),
    (r"PUT .*/users/@carol:<server>", r"status 400, here 200", "null for the administrator's flag is as if it were not there"),
    (r"PUT .*/users/GONE", r"avatar_url: (str|null)", "a closed account has no profile here"),
    (r"(GET|POST|DELETE) .*(/@nobody:<server>/admin|/whois/@nobody:<server>|/!nothing:<server>(/.*)?|/rooms/nothing|quarantine/<server>/nothing)",
     r"status (200|400|404), here (404|400)", "what is not there is said not to be there"),
    (r"POST .*/(media/protect/nothing|users/@nobody:<server>/shadow_ban)", r"errcode is .*", "the same"),
    (r"GET .*/whois/<bob>|GET .*/devices(/<bob_device>)?", r".*user_agent: \w+|devices\[\]\.last_seen_(ip|ts): null",
     "the names that apps give themselves in requests are not kept; Synapse writes down when somebody was seen a while later"),
    (r"GET .*/pushers", r"pushers\[\]\.(device_id|enabled|org\..*): \w+", "MSC3881 has the names of its proposal here"),
    (r"GET .*/media.*", r"media(_info|\[\])\.(authenticated|safe_from_quarantine): (int|bool)", "truth values are numbers with SQLite, not with PostgreSQL"),
    (r"GET .*/(sent_invite_count|cumulative_joined_room_count).*|GET .*/media/quarantine_changes|POST .*/account_validity/validity"
     r"|POST .*/background_updates/(enabled|start_job)|DELETE .*/forward_extremities", r"status \d+, here 40[45]", "not there, and said so"),
    (r"POST .*/_allow_cross_signing.*|GET .*/(auth_providers|threepid)/.*", r"errcode is .*", "not there, and said so"),
    (r"GET .*/whoami", r"device_id: str", "the session of an administrator has a device, which its user sees"),
    (r"POST .*/users/<bob>/login", r"status 200, here 400", "no token is given out that has ended"),
    (r"GET .*/(state|messages|context)\b.*", r".*\b(age|user_id|unsigned\.membership): \w+", "events have the form that apps see, not the oldest one"),
    (r"GET .*/forward_extremities", r"results\[\]\.(received_ts|state_group): int", "there are no groups of state here"),
    (r"GET .*/(fetch_event|event_reports)/<\w+>", r"event(_json)?\.unsigned.*", "the event is as servers exchange it"),
    (r"POST .*/media/quarantine/<server>/<media>", r"status 200, here 403", "a file that was protected is not said to be withheld"),
    (r"PUT .*/suspend/<admin>", r"status 200, here 403", "nobody suspends themselves"),
    (r"GET .*/scheduled_tasks.*", r"scheduled_tasks\[\]\.(resource_id: null|result\.failed_redactions.*)", "redactions are no tasks here; their status tells"),
    (r"GET .*/statistics/database/rooms", r"status 400, here 200", "Synapse needs PostgreSQL for it"),
]


class Side:
    """One of the two servers, and what has been learnt of it: names for the templates of calls."""

    def __init__(self, name, server):
        self.name, self.server, self.base = name, server, server.base
        self.names = {"server": server.server_name, "now": str(int(time.time() * 1000))}

    def fill(self, value):
        if isinstance(value, str):
            return re.sub(r"<(\w+)>", lambda match: self.names[match.group(1)], value)
        if isinstance(value, list):
            return [self.fill(one) for one in value]
        if isinstance(value, dict):
            return {self.fill(key): self.fill(one) for key, one in value.items()}
        return value

    def path(self, path):
        return re.sub(r"<(\w+)>", lambda match: q(self.names[match.group(1)]), path)


# An error that says that a request is not as it should be: which of these words it is differs from call to call in Synapse.
BAD_REQUEST = {"M_UNKNOWN", "M_BAD_JSON", "M_NOT_JSON", "M_MISSING_PARAM", "M_INVALID_PARAM", "M_INVALID_USERNAME", "M_TOO_LARGE"}


def facts(status, value, at="", found=None):
    """The paths in a value with the types there: `users[].name: str`. Keys that are IDs, names of servers, of keys or of devices count
    as one; what an event says is its author's."""
    found = set() if found is None else found
    if isinstance(value, dict):
        found.add("%s: object" % at)
        for key, one in value.items():
            if re.match(r"[@!$#].*", key):
                key = key[0] + "ID"
            key = re.sub(r"@\S+?:localhost:\d+", "@ID", key)
            key = re.sub(r"^(localhost:\d+|ed25519:.*)$", "NAME", key)
            if at == "devices":
                key = "DEVICE"
            # What Synapse is at changes from moment to moment.
            if at == "current_updates":
                continue
            if not (key == "content" and ("event" in at or "chunk" in at or "state" in at)):
                facts(status, one, "%s.%s" % (at, key) if at else key, found)
    elif isinstance(value, list):
        found.add("%s: list" % at)
        for one in value:
            facts(status, one, at + "[]", found)
    elif at == "errcode":
        found.add("errcode is " + ("one of a bad request" if status == 400 and value in BAD_REQUEST else str(value)))
    else:
        kinds = {bool: "bool", int: "int", float: "float", str: "str", type(None): "null"}
        found.add("%s: %s" % (at, kinds[type(value)]))
    return found


class Both:
    """The two servers side by side."""

    def __init__(self, synapse, snug):
        self.sides = [synapse, snug]
        self.calls, self.wrong, self.used = 0, [], set()

    def name(self, **names):
        """Names by side: `name(room=lambda side: …)`."""
        for side in self.sides:
            for key, make in names.items():
                side.names[key] = make(side) if callable(make) else make

    def call(self, method, path, body=None, by="admin", take=None, until=None, label=None, expect=None):
        """The call at both. `take` maps names to keys of the answer, dotted. `until` is asked again for, at each, while it is not so."""
        answers = []
        for side in self.sides:
            token = side.names.get(by + "_token") if by else None
            where, what = side.path(path), side.fill(body)
            end = time.time() + 60
            while True:
                status, value = answer(method, side.base + where, token, what)
                if until is None or until(value) or time.time() > end:
                    break
                time.sleep(0.2)
            answers.append((status, value))
            for key, way in (take or {}).items():
                got = value
                for step in way.split("."):
                    got = got[int(step)] if isinstance(got, list) else got.get(step) if isinstance(got, dict) else None
                side.names[key] = str(got)
        self.compare("%s %s" % (method, label or path), *answers)
        if expect is not None:
            for side, (status, value) in zip(self.sides, answers):
                assert status == expect, "%s: %s %s answered %s %s" % (side.name, method, path, status, value)
        return answers

    def same_total(self, query, answers):
        """Lists count the same rows."""
        if answers[0][0] != 200:
            return
        counts = [{key: value.get(key) for key in ("total", "total_rooms")} for _, value in answers]
        # The account that notices come from is one here.
        ours = dict(counts[1], total=counts[1]["total"] - 1) if counts[1]["total"] == (counts[0]["total"] or 0) + 1 else counts[1]
        if counts[0] != ours:
            self.wrong.append(query)
            say("DIFFERS in what it counts: %s: %s, here %s" % (query, *counts))

    def compare(self, name, synapse, snug):
        self.calls += 1
        differs = []
        if synapse[0] != snug[0]:
            differs.append("status %s, here %s" % (synapse[0], snug[0]))
            if not self.allowed(name, differs[0]):
                say("%s: %s / %s" % (name, json.dumps(synapse[1])[:200], json.dumps(snug[1])[:200]))
        ours, theirs = facts(*snug), facts(*synapse)
        # Of an answer with another status nothing is alike.
        if synapse[0] == snug[0]:
            differs += ["not here: " + one for one in sorted(theirs - ours)]
            differs += ["only here: " + one for one in sorted(ours - theirs)]
        left = [one for one in differs if not self.allowed(name, one)]
        if left:
            self.wrong.append(name)
            say("DIFFERS %s" % name)
            for one in left:
                say("        " + one)

    def allowed(self, name, difference):
        for number, (call, what, _) in enumerate(ALLOWED):
            if re.fullmatch(call, name) and re.fullmatch(r"(not here: |only here: )?(" + what + ")", difference):
                self.used.add(number)
                return True
        return False


def make_accounts(side, secret):
    """register_new_matrix_user makes the administrator and the first accounts."""
    tool = os.path.join(os.path.dirname(sys.executable), "register_new_matrix_user")
    for name, more in [("root", ["-a"]), ("alice", ["--no-admin"]), ("bob", ["--no-admin"]), ("bot", ["--no-admin", "-t", "bot"])]:
        done = subprocess.run([tool, "-u", name, "-p", "correct horse", "-k", secret, *more, side.base], capture_output=True, text=True)
        assert done.returncode == 0, "%s: %s" % (side.name, done.stdout + done.stderr)
        assert "Success!" in done.stdout, done.stdout
    again = subprocess.run([tool, "-u", "bob", "-p", "correct horse", "-k", secret, "--no-admin", side.base], capture_output=True, text=True)
    assert again.returncode != 0 and "ERROR" in again.stdout, again.stdout + again.stderr
    again = subprocess.run([tool, "-u", "bob", "-p", "correct horse", "-k", secret, "--no-admin", "--exists-ok", side.base], capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    wrong = subprocess.run([tool, "-u", "eve", "-p", "x", "-k", "wrong", "--no-admin", side.base], capture_output=True, text=True)
    assert wrong.returncode != 0 and "403" in wrong.stdout, wrong.stdout + wrong.stderr
    say("ok    register_new_matrix_user at %s" % side.name)


def log_in(side, name):
    body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": name}, "password": "correct horse"}
    status, got = answer("POST", side.base + "/_matrix/client/v3/login", None, body)
    assert status == 200, got
    side.names[name], side.names[name + "_token"], side.names[name + "_device"] = got["user_id"], got["access_token"], got["device_id"]
    return Person(side.base, got["user_id"], got["access_token"], got["device_id"])


def upload(side, name, data, kind="image/png", title="a.png"):
    token = side.names[name + "_token"]
    status, got = answer("POST", side.base + "/_matrix/media/v3/upload?filename=" + title, token, raw=data, kind=kind)
    assert status == 200, got
    return got["content_uri"].rsplit("/", 1)[1]


PNG = bytes.fromhex("89504e470d0a1a0a0000000d4948445200000001000000010806000000 1f15c4890000000d49444154789c6360f8ffff3f0005fe02fea7 35".replace(" ", ""))


def furnish(side):
    people = {name: log_in(side, name) for name in ["root", "alice", "bob", "bot"]}
    side.names.update(admin=side.names["root"], admin_token=side.names["root_token"])
    alice, bob, root = people["alice"], people["bob"], people["root"]
    alice.call("PUT", "/profile/%s/displayname" % q(alice.user_id), {"displayname": "Alice"})
    alice.call("PUT", "/profile/%s/avatar_url" % q(alice.user_id), {"avatar_url": "mxc://%s/%s" % (side.names["server"], upload(side, "alice", PNG))})
    room = alice.create_room(preset="public_chat", name="Tea", topic="Leaves", room_alias_name="tea", visibility="public")
    bob.join(room)
    side.names.update(room=room, alias="#tea:" + side.names["server"])
    side.names["event"] = bob.send(room, "hello")
    side.names["media"] = upload(side, "bob", PNG + b"1")
    side.names["media2"] = upload(side, "bob", PNG + b"2", title="b.png")
    body = {"msgtype": "m.image", "body": "a.png", "url": "mxc://%s/%s" % (side.names["server"], side.names["media"])}
    bob.call("PUT", "/rooms/%s/send/m.room.message/image" % q(room), body)
    side.names["private"] = bob.create_room(preset="private_chat", name="Den", initial_state=[
        {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}])
    side.names["doomed"] = alice.create_room(preset="public_chat", name="Doomed", room_alias_name="doomed")
    side.names["doomed2"] = alice.create_room(preset="public_chat", name="Doomed too", room_alias_name="doomed2")
    bob.join(side.names["doomed"])
    bob.join(side.names["doomed2"])
    side.names["space"] = alice.create_room(preset="public_chat", name="House", creation_content={"type": "m.space"})
    alice.put_state(side.names["space"], "m.space.child", {"via": [side.names["server"]]}, room)
    # The accounts and rooms that notices come with.
    status, told = answer("POST", side.base + A + "/send_server_notice", side.names["root_token"], {"user_id": root.user_id, "content": {"msgtype": "m.text", "body": "Hello"}})
    assert status == 200, told
    bob.call("POST", "/rooms/%s/report/%s" % (q(room), q(side.names["event"])), {"reason": "rude", "score": -100})
    bob.call("POST", "/users/%s/report" % q(alice.user_id), {"reason": "rude"})
    bob.call("POST", "/pushers/set", {"app_id": "app", "pushkey": "key", "kind": "http", "app_display_name": "App", "device_display_name": "Phone",
                                      "lang": "en", "data": {"url": "http://127.0.0.1:9/_matrix/push/v1/notify"}, "profile_tag": "x"})
    bob.call("PUT", "/user/%s/account_data/im.example" % q(bob.user_id), {"a": 1})
    bob.call("PUT", "/user/%s/rooms/%s/account_data/im.example" % (q(bob.user_id), q(room)), {"a": 1})
    bob.sync()
    return people


def users(both):
    for query in ["", "?limit=2", "?from=2&limit=2", "?from=100", "?limit=0", "?limit=-1", "?from=-1", "?limit=x", "?guests=false", "?admins=true", "?admins=false", "?deactivated=true",
                  "?name=ali", "?user_id=bob", "?locked=true", "?order_by=creation_ts&dir=b", "?order_by=nothing", "?dir=x", "?guests=x",
                  "?not_user_type=bot", "?not_user_type=", "?order_by=shadow_banned", "?order_by=user_type"]:
        answers = both.call("GET", B + "/users" + query)
        both.same_total(query, answers)
    for query in ["", "?deactivated=false", "?deactivated=true"]:
        both.call("GET", "/_synapse/admin/v3/users" + query)
    both.call("GET", B + "/users", by=None)
    both.call("GET", B + "/users", by="bob")
    both.call("GET", B + "/users/<alice>")
    both.call("GET", B + "/users/@nobody:<server>")
    both.call("GET", B + "/users/@nobody:example.org")
    both.call("GET", B + "/users/nobody")
    both.call("PUT", B + "/users/@carol:<server>", {"password": "a long secret", "displayname": "Carol", "admin": False}, label=B + "/users/NEW", expect=201)
    both.call("PUT", B + "/users/@carol:<server>", {"displayname": "Caroline", "avatar_url": "mxc://example.org/abc"}, expect=200)
    both.call("PUT", B + "/users/@carol:<server>", {"admin": True})
    both.call("PUT", B + "/users/@carol:<server>", {"admin": "yes"})
    both.call("PUT", B + "/users/@carol:<server>", {"admin": None})
    both.call("PUT", B + "/users/@carol:<server>", {"password": "another secret", "logout_devices": False})
    both.call("PUT", B + "/users/@carol:<server>", {"locked": True})
    both.call("PUT", B + "/users/@carol:<server>", {"locked": False})
    both.call("PUT", B + "/users/@carol:<server>", {"user_type": "nonsense"})
    both.call("PUT", B + "/users/@carol:<server>", {"user_type": "bot"})
    both.call("PUT", B + "/users/@carol:<server>", {"user_type": None})
    both.call("PUT", B + "/users/@carol:<server>", {"displayname": ""})
    both.call("PUT", B + "/users/@carol:<server>", {"threepids": [], "external_ids": []})
    both.call("PUT", B + "/users/@carol:<server>", {"deactivated": True, "locked": True})
    both.call("PUT", B + "/users/@carol:<server>", {"deactivated": "yes"})
    both.call("PUT", B + "/users/@dave:<server>", {}, expect=201)
    both.call("PUT", B + "/users/@dave:example.org", {})
    both.call("PUT", B + "/users/<admin>", {"admin": False})
    both.call("GET", A + "/users/<alice>/admin")
    both.call("GET", A + "/users/@nobody:<server>/admin")
    both.call("PUT", A + "/users/<alice>/admin", {"admin": True})
    both.call("PUT", A + "/users/<alice>/admin", {"admin": False})
    both.call("PUT", A + "/users/<admin>/admin", {"admin": False})
    both.call("PUT", A + "/users/<alice>/admin", {})
    both.call("GET", A + "/whois/<bob>")
    both.call("GET", A + "/whois/@nobody:<server>")
    both.call("GET", A + "/whois/@nobody:example.org")
    both.call("GET", "/_matrix/client/v3/admin/whois/<bob>")
    for who in ["<bob>", "@nobody:<server>", "@nobody:example.org"]:
        both.call("GET", A + "/users/" + who + "/joined_rooms")
        both.call("GET", A + "/users/" + who + "/memberships")
        both.call("GET", A + "/users/" + who + "/pushers")
        both.call("GET", A + "/users/" + who + "/accountdata")
        both.call("GET", A + "/users/" + who + "/media")
        both.call("GET", A + "/users/" + who + "/sent_invite_count?from_ts=1")
        both.call("GET", A + "/users/" + who + "/cumulative_joined_room_count?from_ts=1")
    both.call("GET", A + "/users/<bob>/sent_invite_count")
    both.call("GET", A + "/users/<bob>/cumulative_joined_room_count")
    both.call("GET", A + "/username_available?username=free")
    both.call("GET", A + "/username_available?username=bob")
    both.call("GET", A + "/username_available?username=B%C3%B6b")
    both.call("GET", A + "/username_available")


def devices(both):
    both.call("GET", B + "/users/<bob>/devices")
    both.call("GET", B + "/users/@nobody:<server>/devices")
    both.call("GET", B + "/users/<bob>/devices/<bob_device>")
    both.call("GET", B + "/users/<bob>/devices/NOTHING")
    both.call("PUT", B + "/users/<bob>/devices/<bob_device>", {"display_name": "Telephone"})
    both.call("PUT", B + "/users/<bob>/devices/<bob_device>", {"display_name": "x" * 200})
    both.call("PUT", B + "/users/<bob>/devices/NOTHING", {"display_name": "Telephone"})
    both.call("POST", B + "/users/<bob>/devices", {"device_id": "MADE"}, label=B + "/users/<bob>/devices (made)")
    both.call("DELETE", B + "/users/<bob>/devices/NOTHING")
    both.call("POST", B + "/users/<bob>/delete_devices", {"devices": ["NOTHING"]})
    both.call("POST", B + "/users/<bob>/delete_devices", {})
    both.call("POST", A + "/users/<bob>/login", {}, take={"as_bob_token": "access_token"})
    both.call("GET", "/_matrix/client/v3/account/whoami", by="as_bob")
    both.call("POST", A + "/users/<bob>/login", {"valid_until_ms": 1})
    both.call("POST", A + "/users/<admin>/login", {})
    both.call("POST", A + "/users/@nobody:<server>/login", {})


def rooms(both):
    for query in ["", "?limit=2", "?from=2&limit=2", "?from=100", "?limit=0", "?limit=-1", "?search_term=tea", "?search_term=", "?search_term=<room>", "?search_term=nothing", "?public_rooms=true",
                  "?public_rooms=false", "?empty_rooms=true", "?empty_rooms=false", "?order_by=joined_members&dir=b", "?order_by=nothing"]:
        answers = both.call("GET", A + "/rooms" + query)
        both.same_total(query, answers)
    both.call("GET", A + "/rooms/<room>")
    both.call("GET", A + "/rooms/<space>")
    both.call("GET", A + "/rooms/<private>")
    both.call("GET", A + "/rooms/!nothing:<server>")
    both.call("GET", A + "/rooms/nothing")
    both.call("GET", A + "/rooms/<room>/members")
    both.call("GET", A + "/rooms/!nothing:<server>/members")
    both.call("GET", A + "/rooms/<room>/state")
    both.call("GET", A + "/rooms/<room>/state?type=m.room.name")
    both.call("GET", A + "/rooms/!nothing:<server>/state")
    both.call("GET", A + "/rooms/<private>/messages?dir=b&limit=5")
    both.call("GET", A + "/rooms/!nothing:<server>/messages?dir=b")
    both.call("GET", A + "/rooms/<room>/context/<event>?limit=4")
    both.call("GET", A + "/rooms/<room>/context/$nothing")
    both.call("GET", A + "/rooms/<room>/timestamp_to_event?ts=<now>&dir=f")
    both.call("GET", A + "/rooms/<room>/timestamp_to_event?ts=1&dir=b")
    both.call("GET", A + "/rooms/<space>/hierarchy")
    both.call("GET", A + "/rooms/<room>/forward_extremities")
    both.call("DELETE", A + "/rooms/<room>/forward_extremities")
    both.call("GET", A + "/rooms/!nothing:<server>/forward_extremities")
    both.call("GET", A + "/fetch_event/<event>")
    both.call("GET", A + "/fetch_event/$nothing")
    both.call("POST", A + "/join/<room>", {"user_id": "@carol:<server>"})
    both.call("POST", A + "/join/<alias>", {"user_id": "@carol:<server>"})
    both.call("POST", A + "/join/<room>", {"user_id": "@carol:example.org"})
    both.call("POST", A + "/join/<room>", {"user_id": "@nobody:<server>"})
    both.call("POST", A + "/join/<room>", {})
    both.call("POST", A + "/join/%23nothing:<server>", {"user_id": "@carol:<server>"})
    both.call("POST", A + "/rooms/<room>/make_room_admin", {"user_id": "<bob>"})
    both.call("POST", A + "/rooms/<alias>/make_room_admin", {})
    both.call("POST", A + "/rooms/!nothing:<server>/make_room_admin", {})
    both.call("GET", A + "/rooms/<room>/block")
    both.call("PUT", A + "/rooms/<room>/block", {"block": True})
    both.call("GET", A + "/rooms/<room>/block")
    both.call("PUT", A + "/rooms/<room>/block", {"block": False})
    both.call("PUT", A + "/rooms/!other:<server>/block", {"block": True})
    both.call("PUT", A + "/rooms/<room>/block", {"block": "yes"})
    both.call("GET", A + "/rooms/!nothing:<server>/block")
    over = lambda value: value.get("status") in ("complete", "failed") or "errcode" in value
    both.call("POST", A + "/purge_history/<room>", {"purge_up_to_event_id": "<event>"}, take={"purge": "purge_id"})
    both.call("GET", A + "/purge_history_status/<purge>", until=over)
    both.call("POST", A + "/purge_history/<room>/<event>", {"delete_local_events": True}, take={"purge": "purge_id"})
    both.call("GET", A + "/purge_history_status/<purge>", until=over)
    both.call("POST", A + "/purge_history/<room>", {})
    both.call("POST", A + "/purge_history/<room>/$nothing", {})
    both.call("POST", A + "/purge_history/!nothing:<server>", {"purge_up_to_ts": 1})
    both.call("GET", A + "/purge_history_status/nothing")
    both.call("DELETE", B + "/rooms/<doomed>", {"block": True, "purge": True, "new_room_user_id": "<bot>", "room_name": "Gone", "message": "Sorry"}, take={"delete": "delete_id"})
    both.call("GET", B + "/rooms/delete_status/<delete>", until=over)
    both.call("GET", B + "/rooms/<doomed>/delete_status")
    both.call("GET", B + "/rooms/<room>/delete_status")
    both.call("GET", B + "/rooms/delete_status/nothing")
    both.call("GET", A + "/rooms/<doomed>")
    both.call("DELETE", A + "/rooms/<doomed2>", {"purge": True})
    both.call("DELETE", A + "/rooms/!nothing:<server>", {})
    both.call("DELETE", B + "/rooms/!nothing:<server>", {})
    both.call("DELETE", A + "/rooms/nothing", {})
    both.call("DELETE", A + "/rooms/<space>", {"block": "yes"})


def media(both):
    both.call("GET", A + "/room/<room>/media")
    both.call("GET", A + "/room/!nothing:<server>/media")
    for query in ["?limit=1", "?order_by=media_length&dir=f", "?order_by=nothing"]:
        both.call("GET", A + "/users/<bob>/media" + query)
    both.call("GET", A + "/media/<server>/<media>")
    both.call("GET", A + "/media/<server>/nothing")
    both.call("GET", A + "/statistics/users/media")
    for query in ["?limit=1", "?search_term=bob", "?order_by=media_length&dir=b", "?order_by=nothing", "?from_ts=1&until_ts=2", "?from_ts=2&until_ts=1"]:
        both.call("GET", A + "/statistics/users/media" + query)
    both.call("POST", A + "/media/protect/<media>", {})
    both.call("POST", A + "/media/quarantine/<server>/<media>", {})
    both.call("GET", A + "/media/<server>/<media>", label=A + "/media/<server>/<media> (protected)")
    both.call("POST", A + "/media/unprotect/<media>", {})
    both.call("POST", A + "/media/quarantine/<server>/<media>", {})
    both.call("GET", A + "/media/<server>/<media>", label=A + "/media/<server>/<media> (quarantined)")
    both.call("POST", A + "/media/unquarantine/<server>/<media>", {})
    both.call("POST", A + "/media/quarantine/<server>/nothing", {})
    both.call("POST", A + "/media/protect/nothing", {})
    both.call("POST", A + "/user/<bob>/media/quarantine", {})
    both.call("POST", A + "/room/<room>/media/quarantine", {})
    both.call("POST", A + "/quarantine_media/<room>", {})
    both.call("GET", A + "/media/quarantine_changes")
    both.call("DELETE", A + "/media/<server>/<media>")
    both.call("DELETE", A + "/media/<server>/<media>", label=A + "/media/<server>/<media> (again)")
    both.call("DELETE", A + "/media/example.org/abc")
    both.call("DELETE", A + "/users/<bob>/media?limit=1")
    both.call("POST", A + "/media/delete?before_ts=1&dry_run=true", {})
    both.call("POST", A + "/media/delete", {})
    both.call("POST", A + "/media/delete?before_ts=-1", {})
    both.call("POST", A + "/media/example.org/delete?before_ts=1", {})
    both.call("POST", A + "/purge_media_cache?before_ts=1000", {})
    both.call("POST", A + "/purge_media_cache", {})


def moderation(both):
    both.call("GET", A + "/users/<bob>/override_ratelimit")
    both.call("POST", A + "/users/<bob>/override_ratelimit", {"messages_per_second": 0, "burst_count": 0})
    both.call("GET", A + "/users/<bob>/override_ratelimit", label=A + "/users/<bob>/override_ratelimit (set)")
    both.call("POST", A + "/users/<bob>/override_ratelimit", {"messages_per_second": -1})
    both.call("POST", A + "/users/<bob>/override_ratelimit", {"messages_per_second": "x"})
    both.call("POST", A + "/users/@nobody:<server>/override_ratelimit", {})
    both.call("DELETE", A + "/users/<bob>/override_ratelimit")
    both.call("POST", A + "/users/@dave:<server>/shadow_ban", {})
    both.call("GET", B + "/users/@dave:<server>", label=B + "/users/BANNED")
    both.call("DELETE", A + "/users/@dave:<server>/shadow_ban")
    both.call("POST", A + "/users/@nobody:<server>/shadow_ban", {})
    both.call("POST", A + "/users/@nobody:example.org/shadow_ban", {})
    both.call("PUT", A + "/suspend/@dave:<server>", {"suspend": True})
    both.call("PUT", A + "/suspend/@dave:<server>", {"suspend": False})
    both.call("PUT", A + "/suspend/<admin>", {"suspend": True})
    both.call("PUT", A + "/suspend/@nobody:example.org", {"suspend": True})
    both.call("PUT", A + "/suspend/@dave:<server>", {})
    both.call("POST", A + "/user/<bob>/redact", {"rooms": []}, take={"redact": "redact_id"})
    both.call("GET", A + "/user/redact_status/<redact>", until=lambda value: value.get("status") != "active" and value.get("status") != "scheduled")
    both.call("GET", A + "/user/redact_status/nothing")
    both.call("POST", A + "/user/<bob>/redact", {})
    both.call("POST", A + "/user/<bob>/redact", {"rooms": [], "limit": -1})
    both.call("POST", A + "/reset_password/@dave:<server>", {"new_password": "a third secret", "logout_devices": True})
    both.call("POST", A + "/reset_password/@dave:<server>", {})
    both.call("POST", A + "/reset_password/@nobody:<server>", {"new_password": "a third secret"})
    both.call("GET", A + "/experimental_features/<bob>")
    both.call("PUT", A + "/experimental_features/<bob>", {"features": {"msc3881": True}})
    both.call("PUT", A + "/experimental_features/<bob>", {"features": {"nonsense": True}})
    both.call("POST", A + "/users/<bob>/_allow_cross_signing_replacement_without_uia", {})
    both.call("GET", A + "/auth_providers/oidc/users/1")
    both.call("GET", A + "/threepid/email/users/bob@example.org")
    both.call("POST", A + "/account_validity/validity", {"user_id": "<bob>"})


def reports(both):
    for query in ["", "?dir=f", "?user_id=bob", "?room_id=<room>", "?limit=1", "?limit=-1", "?from=5", "?dir=x"]:
        both.call("GET", A + "/event_reports" + query)
    both.call("GET", A + "/event_reports", take={"report": "event_reports.0.id"})
    both.call("GET", A + "/event_reports/<report>")
    both.call("GET", A + "/event_reports/77777")
    both.call("GET", A + "/event_reports/x")
    both.call("DELETE", A + "/event_reports/<report>")
    both.call("DELETE", A + "/event_reports/<report>", label=A + "/event_reports/<report> (again)")
    both.call("GET", A + "/user_reports", take={"report": "user_reports.0.id"})
    both.call("GET", A + "/user_reports?target_user_id=<alice>")
    both.call("GET", A + "/user_reports/<report>")
    both.call("GET", A + "/user_reports/77777")
    both.call("DELETE", A + "/user_reports/<report>")
    both.call("DELETE", A + "/user_reports/<report>", label=A + "/user_reports/<report> (again)")


def tokens(both):
    both.call("GET", A + "/registration_tokens")
    both.call("POST", A + "/registration_tokens/new", {"token": "abcd", "uses_allowed": 2})
    both.call("POST", A + "/registration_tokens/new", {"token": "abcd"})
    both.call("POST", A + "/registration_tokens/new", {"token": "a b"})
    both.call("POST", A + "/registration_tokens/new", {"length": 100})
    both.call("POST", A + "/registration_tokens/new", {"uses_allowed": -1})
    both.call("POST", A + "/registration_tokens/new", {"uses_allowed": "x"})
    both.call("POST", A + "/registration_tokens/new", {"expiry_time": 1})
    both.call("POST", A + "/registration_tokens/new", {"token": ""})
    both.call("POST", A + "/registration_tokens/new", {}, take={"token": "token"})
    both.call("GET", A + "/registration_tokens?valid=true")
    both.call("GET", A + "/registration_tokens?valid=x")
    both.call("GET", A + "/registration_tokens/abcd")
    both.call("GET", A + "/registration_tokens/nothing")
    both.call("PUT", A + "/registration_tokens/abcd", {"uses_allowed": None, "expiry_time": 4102444800000})
    both.call("PUT", A + "/registration_tokens/abcd", {})
    both.call("PUT", A + "/registration_tokens/abcd", {"expiry_time": 1})
    both.call("PUT", A + "/registration_tokens/nothing", {"uses_allowed": 1})
    both.call("DELETE", A + "/registration_tokens/<token>")
    both.call("DELETE", A + "/registration_tokens/nothing")


def rest(both):
    both.call("GET", A + "/server_version")
    both.call("GET", A + "/server_version", by=None)
    both.call("GET", A + "/background_updates/enabled")
    both.call("GET", A + "/background_updates/status")
    both.call("POST", A + "/background_updates/enabled", {"enabled": True})
    both.call("POST", A + "/background_updates/start_job", {"job_name": "nothing"})
    both.call("GET", A + "/scheduled_tasks")
    both.call("GET", A + "/scheduled_tasks?status=complete")
    both.call("GET", A + "/statistics/database/rooms")
    both.call("GET", A + "/register", by=None)
    both.call("POST", A + "/register", {"nonce": "x", "username": "eve", "password": "x", "mac": "00"}, by=None)
    both.call("POST", A + "/register", {}, by=None)
    both.call("POST", A + "/send_server_notice", {"user_id": "<bob>", "content": {"msgtype": "m.text", "body": "Hear, hear"}})
    both.call("PUT", A + "/send_server_notice/1", {"user_id": "<bob>", "content": {"msgtype": "m.text", "body": "Hear, hear"}})
    both.call("POST", A + "/send_server_notice", {"user_id": "@nobody:<server>", "content": {"msgtype": "m.text", "body": "Hear"}})
    both.call("POST", A + "/send_server_notice", {"user_id": "@nobody:example.org", "content": {"msgtype": "m.text", "body": "Hear"}})
    both.call("POST", A + "/send_server_notice", {"user_id": "<bob>"})
    both.call("GET", A + "/nothing_of_the_kind")


def federation(both):
    for query in ["", "?order_by=retry_last_ts&dir=b", "?destination=local", "?order_by=nothing", "?limit=-1"]:
        both.call("GET", A + "/federation/destinations" + query)
    both.call("GET", A + "/federation/destinations/<other>")
    both.call("GET", A + "/federation/destinations/example.org")
    both.call("GET", A + "/federation/destinations/<other>/rooms")
    both.call("GET", A + "/federation/destinations/example.org/rooms")
    both.call("POST", A + "/federation/destinations/<other>/reset_connection", {})
    both.call("POST", A + "/federation/destinations/example.org/reset_connection", {})


def endings(both):
    both.call("POST", A + "/deactivate/@dave:<server>", {"erase": True})
    both.call("GET", B + "/users/@dave:<server>", label=B + "/users/DEACTIVATED")
    both.call("POST", A + "/deactivate/@nobody:<server>", {})
    both.call("POST", A + "/deactivate/@nobody:example.org", {})
    both.call("POST", A + "/deactivate/<bot>", {"erase": "yes"})
    both.call("PUT", B + "/users/@carol:<server>", {"deactivated": True}, label=B + "/users/GONE")
    both.call("GET", B + "/users?deactivated=true", label=B + "/users (deactivated)")
    both.call("DELETE", B + "/users/<bob>/devices/<bob_device>")


def side_by_side(synapse, snug):
    both = Both(synapse, snug)
    people = [furnish(side) for side in both.sides]
    # In a room of each other, so that each has somebody to tell of.
    people[1]["alice"].join(synapse.names["room"], via=synapse.names["server"])
    people[0]["alice"].join(snug.names["room"], via=snug.names["server"])
    synapse.names["other"], snug.names["other"] = snug.names["server"], synapse.names["server"]
    people[0]["bob"].send(synapse.names["room"], "welcome")
    wait_for("they federate", lambda: "welcome" in people[1]["alice"].history(synapse.names["room"]))
    for part in [users, devices, rooms, media, moderation, reports, tokens, rest, federation, endings]:
        part(both)
    for number, (call, what, why) in enumerate(ALLOWED):
        if number not in both.used:
            both.wrong.append("ALLOWED has a line that nothing needs: %s %s" % (call, what))
            say(both.wrong[-1])
    check(not both.wrong, "%d calls are answered as Synapse answers them, but for %d allowed differences" % (both.calls, len(ALLOWED)))


SYNADM = """
user: root
token: %s
base_url: %s
admin_path: /_synapse/admin
matrix_path: /_matrix
timeout: 60
server_discovery: well-known
homeserver: %s
format: json
ssl_verify: true
"""


def synadm(side, folder):
    """What an operator does with synadm."""
    config = os.path.join(folder, "synadm.yaml")
    with open(config, "w") as file:
        file.write(SYNADM % (side.names["admin_token"], side.base, side.names["server"]))
    os.chmod(config, 0o600)

    def run(*words, fails=False):
        words = [side.fill(word) for word in words]
        done = subprocess.run([os.environ["SYNADM"], "-c", config, "--batch", "-o", "json", *words], capture_output=True, text=True, timeout=120)
        assert (done.returncode != 0) == fails, "synadm %s: %s" % (" ".join(words), done.stdout[-600:] + done.stderr[-1200:])
        say("ok    synadm " + " ".join(words[:2]))
        # Some commands print several answers: the last is theirs.
        text, last = done.stdout.strip(), None
        while text:
            try:
                last, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                return last if last is not None else done.stdout
            text = text[end:].strip()
        return last

    check("Snug" in json.dumps(run("version")), "synadm tells the version")
    run("user", "modify", "<frank>", "-P", "a long secret", "-n", "Frank")
    shown = run("user", "details", "<frank>")
    check(shown["displayname"] == "Frank" and shown["admin"] is False, "synadm makes an account")
    run("user", "modify", "<frank>", "-a", "-n", "Francis")
    shown = run("user", "details", "<frank>")
    check(shown["displayname"] == "Francis" and shown["admin"] is True, "synadm changes it")
    run("user", "modify", "<frank>", "-u")
    run("user", "password", "<frank>", "-p", "another long secret")
    body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "frank"}, "password": "another long secret"}
    status, got = answer("POST", side.base + "/_matrix/client/v3/login", None, body)
    check(status == 200, "the password is the one that synadm set")
    frank = Person(side.base, got["user_id"], got["access_token"], got["device_id"])
    listed = run("user", "list")
    check(any(user["name"] == frank.user_id for user in listed["users"]), "synadm lists it")
    check("@frank:" in json.dumps(run("user", "search", "franc")), "and finds it")
    check(len(run("user", "list", "-l", "2")["users"]) == 2, "a page of accounts")
    side.names["kitchen"] = frank.create_room(preset="public_chat", name="Kitchen", room_alias_name="kitchen")
    event = frank.send(side.names["kitchen"], "old")
    for number in range(3):
        frank.send(side.names["kitchen"], "newer")
    side.names["frank_token"], side.names["old"] = got["access_token"], event
    side.names["spoon"] = upload(side, "frank", PNG + b"spoon")
    frank.call("PUT", "/rooms/%s/send/m.room.message/spoon" % q(side.names["kitchen"]),
               {"msgtype": "m.image", "body": "spoon", "url": "mxc://%s/%s" % (side.names["server"], side.names["spoon"])})
    check(any(room["room_id"] == side.names["kitchen"] for room in run("room", "list", "-l", "100")["rooms"]), "synadm lists rooms")
    check("Kitchen" in json.dumps(run("room", "search", "Kitchen")), "and finds one")
    check(run("room", "details", "<kitchen>")["name"] == "Kitchen", "a room's details")
    check(frank.user_id in run("room", "members", "<kitchen>")["members"], "its members")
    run("room", "state", "<kitchen>")
    run("room", "join", "<kitchen>", "<alice>")
    check(len(run("room", "members", "<kitchen>")["members"]) == 2, "synadm has somebody join")
    run("room", "make-admin", "<kitchen>", "-u", "<alice>")
    run("room", "block", "<kitchen>", "-b")
    check(run("room", "block-status", "<kitchen>")["block"] is True, "synadm blocks a room")
    run("room", "block", "<kitchen>", "-u")
    purge = run("history", "purge", "<kitchen>", "-i", "<old>", "--delete-local")
    wait_for("old messages go", lambda: run("history", "purge-status", purge["purge_id"])["status"] == "complete")
    check(len(run("media", "list", "-r", "<kitchen>")["local"]) == 1, "synadm lists the files of a room")
    check(run("media", "list", "-u", "<frank>")["total"] == 1, "and of a person")
    run("media", "quarantine", "-i", "<spoon>", "-s", "<server>")
    run("media", "unquarantine", "-i", "<spoon>", "-s", "<server>")
    run("media", "protect", "<spoon>")
    run("media", "delete", "-i", "<spoon>")
    check(run("media", "list", "-u", "<frank>")["total"] == 0, "synadm deletes a file")
    run("media", "purge", "-d", "30")
    run("notice", "send", "<frank>", "Hear, hear", "Hear, hear")
    run("regtok", "new", "-n", "opensesame", "-u", "3")
    check(run("regtok", "details", "opensesame")["uses_allowed"] == 3, "synadm makes a registration token")
    run("regtok", "update", "opensesame", "-u", "4")
    check(any(one["token"] == "opensesame" for one in run("regtok", "list")["registration_tokens"]), "and lists it")
    run("regtok", "delete", "opensesame")
    run("user", "membership", "<frank>")
    run("user", "whois", "<frank>")
    run("user", "media", "<frank>")
    run("user", "shadow-ban", "<frank>")
    run("user", "shadow-ban", "-u", "<frank>")
    check("access_token" in run("user", "login", "<frank>", "--expire-days", "1"), "synadm logs in as somebody")
    run("user", "prune-devices", "<frank>")
    redacted = run("user", "redact", "<frank>", "--reason", "spam")
    wait_for("what was said goes", lambda: run("user", "redact-status", redacted["redact_id"])["status"] == "complete")
    gone = run("room", "delete", "<kitchen>", "-b")
    wait_for("the room goes", lambda: run("room", "delete-status", "-d", gone["delete_id"])["status"] == "complete")
    run("user", "deactivate", "<frank>", "-e")
    check(run("user", "details", "<frank>")["deactivated"] is True, "synadm closes an account")


def story(lab):
    sides = [Side("Synapse", lab.synapse(more=SYNAPSE)), Side("Snug", lab.snug(more=SNUG))]
    for side in sides:
        make_accounts(side, "lab")
    side_by_side(*sides)
    if os.environ.get("SYNADM"):
        sides[1].names["frank"] = "@frank:" + sides[1].names["server"]
        synadm(sides[1], lab.dir)


if __name__ == "__main__":
    main("admin", story)
