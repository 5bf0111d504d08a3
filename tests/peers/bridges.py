"""Real application services: heisenbridge between Matrix and an IRC server, and a bridge on the mautrix framework that speaks
in an encrypted room.

  PEERS_PYTHON tests/peers/bridges.py     needs heisenbridge and mautrix[encryption] beside that python, and ngircd; SNUG=path of
                                          the binary

One person is on IRC, by a socket of this script, and one in Matrix. Each of the three programs is restarted or killed between
what they say. The mautrix bridge (`echo_bridge.py`) makes ghosts, tells old messages with their times, and repeats what it
hears, encrypted.
"""
import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time

from lab import check, free_port, main, q, say, wait_for
from nio_chat import Device

HERE = os.path.dirname(os.path.abspath(__file__))
PYTHON = os.environ.get("PEERS_PYTHON", sys.executable)


class Irc:
    """A person on IRC, one line at a time."""

    def __init__(self, port, nick):
        self.port, self.nick, self.seen, self.rest = port, nick, [], b""
        wait_for("IRC answers", self.connect, 30)

    def connect(self):
        end = time.time() + 20
        while True:
            try:
                self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=1)
                break
            except ConnectionRefusedError:
                assert time.time() < end, "the IRC server does not answer"
                time.sleep(0.1)
        self.say("NICK " + self.nick)
        self.say("USER %s 0 * :%s" % (self.nick, self.nick))
        return True

    def say(self, line):
        self.socket.sendall(line.encode() + b"\r\n")

    def read(self):
        try:
            self.rest += self.socket.recv(65536)
        except socket.timeout:
            pass
        *lines, self.rest = self.rest.split(b"\r\n")
        for line in lines:
            line = line.decode("utf-8", "replace")
            if line.startswith("PING"):
                self.say("PONG" + line[4:])
            self.seen.append(line)

    def hears(self, text, seconds=60):
        def heard():
            self.read()
            return [line for line in self.seen if text in line]
        return wait_for("%s hears %r on IRC" % (self.nick, text), heard, seconds)


class Program:
    """One program that can be stopped and started again."""

    def __init__(self, lab, name, args, env=None):
        self.lab, self.name, self.args, self.env = lab, name, args, env
        self.boot()

    def boot(self):
        self.child = self.lab.start(self.name, self.args, env=self.env)

    def restart(self):
        self.child.terminate()
        self.child.wait(30)
        self.boot()

    def kill(self):
        self.child.kill()
        self.child.wait(30)


def snug(server, *args):
    done = subprocess.run([server.binary, "--config", server.config] + list(args), capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise AssertionError("snug %s: %s%s" % (" ".join(args), done.stdout, done.stderr))
    return done.stdout


def ircd(lab):
    port = free_port()
    conf = os.path.join(lab.dir, "ngircd.conf")
    with open(conf, "w") as f:
        f.write("[Global]\nName = irc.test\nInfo = lab\nListen = 127.0.0.1\nPorts = %d\nServerGID = nogroup\nServerUID = nobody\n"
                "[Limits]\nMaxConnectionsIP = 0\nMaxPenaltyTime = 0\n[Options]\nDNS = no\nIdent = no\nPAM = no\n" % port)
    ngircd = shutil.which("ngircd") or "/usr/sbin/ngircd"
    return Program(lab, "ngircd", [ngircd, "-n", "-f", conf]), port


def command(person, room, text, answer, seconds=60):
    """Says something to the bridge and waits for an answer with `answer` in it."""
    person.send(room, text)

    def found(sync):
        events = sync.get("rooms", {}).get("join", {}).get(room, {}).get("timeline", {}).get("events", [])
        return [e for e in events if answer.lower() in str(e.get("content", {}).get("body", "")).lower() and e["sender"] != person.user_id]
    return person.until("%r is answered with %r" % (text, answer), found, seconds)


def heisenbridge(lab, server):
    registration = os.path.join(lab.dir, "heisenbridge.yaml")
    tool = os.path.join(os.path.dirname(PYTHON), "heisenbridge")
    port = free_port()
    lab.run(tool, "-c", registration, "-p", str(port), "--generate")
    said = snug(server, "appservice", "add", registration)
    check("heisenbridge is registered" in said, "the registration that heisenbridge makes is taken: " + said.strip()[:80])
    check("heisenbridge" in snug(server, "appservice", "list"), "it is listed")
    bridge = Program(lab, "heisenbridge", [tool, "-v", "-c", registration, "-p", str(port), server.base])
    network, irc_port = ircd(lab)
    ivo = Irc(irc_port, "ivo")
    ivo.say("JOIN #lab")
    anna = server.register("anna")

    bot = "@heisenbridge:" + server.server_name
    control = anna.create_room(preset="trusted_private_chat", is_direct=True, invite=[bot])
    wait_for("the bridge joins", lambda: bot in anna.joined(control))
    anna.sync()
    command(anna, control, "ADDNETWORK lab", "network")
    command(anna, control, "ADDSERVER lab 127.0.0.1 %d" % irc_port, "server")
    anna.send(control, "OPEN lab")

    def invited(answer):
        return [room for room in answer.get("rooms", {}).get("invite", {})]
    net_room = anna.until("invite to the network's room", invited)[0]
    anna.join(net_room)
    command(anna, net_room, "NICK anna", "nick")
    anna.send(net_room, "CONNECT")

    def online():
        ivo.say("ISON anna")
        ivo.read()
        return any(" 303 " in line and line.rstrip().endswith("anna") for line in ivo.seen[-1:])
    wait_for("the bridge brings anna to IRC", online, 60)
    anna.send(net_room, "JOIN #lab")
    channel = anna.until("invite to the channel", invited)[0]
    anna.join(channel)
    ivo.hears("JOIN")
    time.sleep(1)

    def talk(tag):
        anna.send(channel, tag + " from Matrix")
        ivo.hears(tag + " from Matrix")
        ivo.say("PRIVMSG #lab :%s from IRC" % tag)
        seen = anna.sees_text(channel, tag + " from IRC")
        check(seen["sender"].startswith("@irc_"), "it comes from a ghost: " + seen["sender"])

    talk("first")
    server.restart()
    say("-- Snug was restarted")
    talk("after a restart of Snug")
    server.kill()
    ivo.say("PRIVMSG #lab :while Snug was away")
    time.sleep(1)
    server.boot()
    say("-- Snug was killed and started again")
    talk("after a kill of Snug")
    bridge.kill()
    wait_for("the bridge's person is gone from IRC", lambda: not online(), 60)
    bridge.boot()
    say("-- heisenbridge was killed and started again")
    wait_for("the bridge is back on IRC", online, 120)
    time.sleep(2)
    talk("after a kill of the bridge")
    network.restart()
    say("-- ngircd was restarted")
    ivo.connect()
    ivo.say("JOIN #lab")

    def back():
        ivo.say("NAMES #lab")
        ivo.read()
        return any(" 353 " in line and "anna" in line for line in ivo.seen[-20:])
    wait_for("the bridge is back on IRC", back, 180)
    talk("after a restart of IRC")
    bridge.kill()
    network.kill()


def mautrix(lab, server):
    port = free_port()
    registration = os.path.join(lab.dir, "echo.yaml")
    with open(registration, "w") as f:
        f.write("id: echo\nurl: http://127.0.0.1:%d\nas_token: %s\nhs_token: %s\nsender_localpart: echobot\nrate_limited: false\n"
                "namespaces:\n  users:\n  - exclusive: true\n    regex: '@echo_.*:%s'\n  aliases:\n  - exclusive: true\n"
                "    regex: '#echo_.*:%s'\nreceive_ephemeral: true\nde.sorunome.msc2409.push_ephemeral: true\n"
                "org.matrix.msc3202: true\nio.element.msc4190: true\n"
                % (port, "a" * 40, "h" * 40, server.server_name, server.server_name))
    snug(server, "appservice", "add", registration)
    env = dict(os.environ, ECHO_BASE=server.base, ECHO_DOMAIN=server.server_name, ECHO_PORT=str(port), ECHO_DIR=lab.dir)
    bridge = Program(lab, "echo", [PYTHON, os.path.join(HERE, "echo_bridge.py")], env=env)
    bert = server.register("bert")
    alias = "#echo_old:" + server.server_name
    # Not there: the bridge is asked for it, makes the room and tells what was said in it long ago.
    room = wait_for("an alias that the bridge makes", lambda: bert.join(alias), 60)
    wait_for("old messages", lambda: "from 2001" in bert.history(room), 60)
    page = bert.call("GET", "/rooms/%s/messages?dir=b&limit=50" % q(room))["chunk"]
    old = next(e for e in page if e.get("content", {}).get("body") == "from 2001")
    check(old["origin_server_ts"] == 978307200000 and old["sender"] == "@echo_ghost:" + server.server_name,
          "a ghost said it in 2001")
    bert.send(room, "hello bridge")
    bert.sees_text(room, "echo: hello bridge")

    # Encrypted, with the framework's own olm machine on the bridge's side and matrix-nio on the person's.
    asyncio.run(encrypted(lab, server))
    server.kill()
    server.boot()
    say("-- Snug was killed and started again")
    bert.send(room, "still there?")
    bert.sees_text(room, "echo: still there?", 120)
    bridge.kill()
    bert.send(room, "said to a dead bridge")
    bridge.boot()
    bert.sees_text(room, "echo: said to a dead bridge", 120)
    check(bert.history(room).count("echo: said to a dead bridge") == 1, "it was told once")
    bridge.kill()


async def encrypted(lab, server):
    """A person with matrix-nio and the bridge, in a room that is encrypted from its beginning."""
    bot = "@echobot:" + server.server_name
    server.register("carla")
    carla = Device(lab, server.base, "@carla:" + server.server_name, "carla-phone")
    await carla.login("correct horse")
    made = await carla.client.room_create(
        invite=[bot], initial_state=[{"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}])
    room = made.room_id
    for _ in range(60):
        await carla.sync()
        members = await carla.client.joined_members(room)
        if bot in [member.user_id for member in members.members]:
            break
    check(carla.client.rooms[room].encrypted, "the room is encrypted and the bridge is in it")
    for number in range(3):
        await carla.say(room, "secret %d" % number)
        await carla.reads("echo: secret %d" % number, 80)
    await carla.client.close()


def story(lab):
    server = lab.snug()
    if "heisenbridge" in os.environ.get("ONLY", "heisenbridge mautrix"):
        heisenbridge(lab, server)
    if "mautrix" in os.environ.get("ONLY", "heisenbridge mautrix"):
        mautrix(lab, server)


if __name__ == "__main__":
    main("bridges", story)
