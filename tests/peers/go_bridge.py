"""A bridge on mautrix's framework for Go, which most bridges of today are built on: it registers its users, is told what is said over
the end of either side, and speaks as a ghost at the time it wants.

  python3 tests/peers/go_bridge.py     needs go, and what go/go.mod names; SNUG=path of the binary
"""
import os
import subprocess
import time

from lab import HERE, check, free_port, main, say, wait_for


class Bridge:
    def __init__(self, lab, server, registration, port):
        self.lab, self.args = lab, [lab.echo, registration, server.server_name, server.base, str(port)]
        self.out, self.boots = "", 0
        self.boot()

    def boot(self):
        self.boots += 1
        self.log = os.path.join(self.lab.dir, "go-%d.out" % self.boots)
        self.child = subprocess.Popen(self.args, stdout=open(self.log, "w"), stderr=subprocess.STDOUT)
        self.lab.children.append(self.child)
        wait_for("the bridge is ready", lambda: "READY" in self.said(), 60)

    def said(self):
        with open(self.log) as f:
            text = f.read()
        assert "FAILED" not in text, text
        return text

    def kill(self):
        self.child.kill()
        self.child.wait()


def story(lab):
    lab.echo = os.path.join(lab.dir, "echo")
    subprocess.run(["go", "build", "-o", lab.echo, "."], cwd=os.path.join(HERE, "go"), check=True)
    port, registration = free_port(), os.path.join(lab.dir, "go.yaml")
    with open(registration, "w") as f:
        f.write("id: go\nurl: http://127.0.0.1:%d\nas_token: %s\nhs_token: %s\nsender_localpart: gobot\nnamespaces:\n  users:\n  - exclusive: true\n"
                "    regex: '@go_.*'\nreceive_ephemeral: true\nde.sorunome.msc2409.push_ephemeral: true\n" % (port, "a" * 40, "h" * 40))
    server = lab.snug(more='appservices = ["%s"]\n' % registration)
    anna = server.register("anna")
    bridge = Bridge(lab, server, registration, port)
    say("-- " + bridge.said().splitlines()[0])
    room = anna.create_room(preset="private_chat", invite=["@gobot:" + server.server_name])
    wait_for("the bridge joins the room it is invited to", lambda: "JOINED" in bridge.said(), 30)
    anna.call("PUT", "/rooms/%s/state/m.room.join_rules/" % room, {"join_rule": "public"})
    for text, between in (("one", None), ("two", server.kill), ("three", bridge.kill)):
        if between == server.kill:
            server.kill()
            server.boot()
        elif between:
            bridge.kill()
        anna.send(room, text)
        if between == bridge.kill:
            time.sleep(1)
            bridge.boot()
        anna.sees_text(room, "echo: " + text)
    page = anna.call("GET", "/rooms/%s/messages?dir=b&limit=100" % room)
    told = [event for event in page["chunk"] if event["type"] == "m.room.message"]
    ghost = "@go_anna:" + server.server_name
    echoes = {event["content"]["body"]: event for event in told if event["sender"] == ghost}
    said = {event["content"]["body"]: event for event in told if event["sender"] != ghost}
    check(sorted(echoes) == ["echo: one", "echo: three", "echo: two"], "each was repeated once")
    check(all(echoes["echo: " + text]["origin_server_ts"] == said[text]["origin_server_ts"] - 1000 for text in ("one", "two", "three")),
          "at the time that the bridge wanted")
    bridge.kill()


if __name__ == "__main__":
    main("go_bridge", story)
