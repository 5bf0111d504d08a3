"""The administrators' page in headless Chromium: the first account, signing in, a person who comes by link, locking, wrong
passwords, forged forms; and all of it again with scripts switched off.

  python3 tests/peers/page.py     needs `npm ci` in tests/peers/js and chromium; SNUG=path of the binary
                                  SHOTS=folder keeps a picture of each page at 390 and 1280 px, light and dark
"""
import os

from lab import HERE, drive, http, main, say


def story(lab):
    backups = os.path.join(lab.dir, "backups")
    other = lab.snug(name="other")
    server = lab.snug(more="[page]\npath = \"/house/\"\n[backup]\ntarget = \"%s\"\n" % backups)
    with open(os.path.join(lab.dir, "snug.log"), errors="replace") as log:
        first = next(word for line in log for word in line.split() if "/_snug/first/" in word)
    env = dict(CONFIG=server.config, OTHER=other.base, OTHER_NAME=other.server_name, OTHER_PID=str(other.child.pid), FIRST=server.base + first[first.index("/_snug/first/"):], PAGE=server.base + "/house/")
    drive(lab, ["node", os.path.join(HERE, "js", "page.mjs")], server, env)
    say("-- %d KiB resident at most" % server.peak_kib())
    http("GET", server.base + "/_matrix/client/versions")


if __name__ == "__main__":
    main("page", story)
