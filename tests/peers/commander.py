"""matrix-commander, an ordinary command-line client: two users chat in an encrypted room across a restart of the server.

  PEERS_PYTHON tests/peers/commander.py     needs matrix-commander beside that python; SNUG=path of the binary
"""
import os
import subprocess
import sys

from lab import check, main, say


class Commander:
    def __init__(self, lab, server, user, password="correct horse"):
        self.tool = os.path.join(os.path.dirname(os.environ.get("PEERS_PYTHON", sys.executable)), "matrix-commander")
        self.dir = os.path.join(lab.dir, "commander-" + user)
        os.makedirs(self.dir)
        self.server, self.user, self.password = server, user, password

    def run(self, *args, timeout=120):
        where = ["--credentials", os.path.join(self.dir, "credentials.json"), "--store", os.path.join(self.dir, "store"), "--no-ssl"]
        done = subprocess.run([self.tool] + where + list(args), capture_output=True, text=True, timeout=timeout, cwd=self.dir)
        if done.returncode != 0:
            raise AssertionError("matrix-commander %s ended with %d\n%s\n%s" % (args, done.returncode, done.stdout, done.stderr))
        return done.stdout

    def login(self):
        self.run("--login", "password", "--homeserver", self.server.base, "--user-login", "@%s:%s" % (self.user, self.server.server_name), "--password", self.password,
                 "--device", "commander", "--room-default", "!none:%s" % self.server.server_name)


def talk(alice, bob, room, tag):
    for speaker, listener in ((alice, bob), (bob, alice)):
        text = "%s from %s" % (tag, speaker.user)
        speaker.run("--room", room, "--message", text)
        heard = listener.run("--listen", "once", "--listen-self")
        check(text in heard, "%s hears %r" % (listener.user, text))


def chat(lab, server, restart):
    people = {n: server.register(n) for n in ("carol", "dave")}
    carol, dave = Commander(lab, server, "carol"), Commander(lab, server, "dave")
    for each in (carol, dave):
        each.login()
        each.run("--listen", "once")
        say("ok    %s logged in" % each.user)
    room = people["carol"].create_room(
        preset="private_chat", room_version="11", invite=[people["dave"].user_id],
        initial_state=[{"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}])
    dave.run("--room-join", room)
    check(people["dave"].user_id in people["carol"].joined(room), "dave joined with matrix-commander")
    for each in (carol, dave):
        each.run("--listen", "once")
    talk(carol, dave, room, "before the restart")
    restart()
    talk(dave, carol, room, "after the restart")
    sent = carol.run("--room", room, "--message", "with a file", "--file", __file__)
    say("ok    an encrypted file was uploaded and sent %s" % sent.strip()[:60])


def story(lab):
    # The tool wants room ids with exactly one colon: a server name without a port, and no version 12 room.
    server = lab.snug(server_name="localhost")
    chat(lab, server, server.restart)


if __name__ == "__main__":
    main("commander", story)
