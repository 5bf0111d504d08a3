"""Ketesa, once Synapse Admin, in headless Chromium on Snug: logs in, lists accounts, an account's page with its tabs, rooms, a room's
page, reports, statistics, tokens, destinations; deletes a room.

  KETESA=folder python3 tests/peers/ketesa.py     needs `npm ci` in tests/peers/js and chromium; SNUG=path of the binary; the folder
                                                  holds the built page, which is in no package registry; SHOTS=folder for pictures
"""
import os
import subprocess

from lab import HERE, drive, http, main, q

SETTINGS = """
registration_shared_secret = "lab"
"""


def story(lab):
    server = lab.snug(more=SETTINGS)
    root, alice = server.register("root"), server.register("alice")
    for number in range(6):
        server.register("guest%d" % number)
    done = subprocess.run([server.binary, "user", "admin", "root", "--config", server.config], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tea = alice.create_room(preset="public_chat", name="Tea", topic="Leaves", room_alias_name="tea", visibility="public")
    alice.create_room(preset="public_chat", name="Doomed")
    root.join(tea)
    event = alice.send(tea, "hello")
    root.call("POST", "/rooms/%s/report/%s" % (q(tea), q(event)), {"reason": "rude"})
    http("POST", server.base + "/_matrix/media/v3/upload?filename=a.txt", alice.token, raw=b"{}")
    http("POST", server.base + "/_synapse/admin/v1/registration_tokens/new", root.token, {"token": "opensesame"})
    people = http("GET", server.base + "/_synapse/admin/v2/users", root.token)["total"]
    drive(lab, ["node", os.path.join(HERE, "js", "ketesa.mjs")], server, dict(PEOPLE=str(people)))


if __name__ == "__main__":
    main("ketesa", story)
