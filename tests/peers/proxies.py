"""Snug behind nginx, HAProxy and Caddy, each with the text of board/proxies: a sync that waits for longer than a minute, an
upload and a download of 20 MiB, the metrics kept inside, and another server that joins through the proxy with names whose
encoding a proxy must not touch.
"""
import hashlib
import os
import shutil
import ssl
import threading
import time
import urllib.error
import urllib.request

import lab
from lab import check, free_port, q, say, wait_for

BOARD = os.path.join(lab.TOP, "board", "proxies")
# Longer than the minute that proxies wait for an answer by default.
WAIT_MS = 70000


def adapted(text, *pairs):
    """The text of the board with the lab's ports and files in it. What is not there any more is a mistake here."""
    for old, new in pairs:
        if old not in text:
            raise AssertionError("board/proxies has no %r any more" % old)
        text = text.replace(old, new)
    return text


def board(name):
    with open(os.path.join(BOARD, name)) as f:
        return f.read()


def write(path, text):
    with open(path, "w") as f:
        f.write(text)
    return path


class Proxy:
    """A proxy with a folder of its own, before a Snug that hears of it at the end."""

    def __init__(self, lab_, name):
        self.lab, self.name = lab_, name
        self.dir = os.path.join(lab_.dir, name)
        os.makedirs(self.dir)
        self.apps, self.fed = free_port(), free_port()

    def start(self, snug):
        backend = ("127.0.0.1:8008", "127.0.0.1:%d" % snug.port)
        getattr(self, "start_" + self.name)(backend)
        wait_for("%s answers" % self.name, lambda: self.get("/_matrix/client/versions")[0] == 200)

    def start_nginx(self, backend):
        site = adapted(
            board("nginx.conf"), backend, ("listen 443 ssl;", "listen 127.0.0.1:%d ssl;" % self.apps),
            ("    listen [::]:443 ssl;\n", ""), ("listen 8448 ssl;", "listen 127.0.0.1:%d ssl;" % self.fed),
            ("    listen [::]:8448 ssl;\n", ""), ("server_name example.org;", "server_name localhost;"),
            ("/etc/letsencrypt/live/example.org/fullchain.pem", self.lab.cert),
            ("/etc/letsencrypt/live/example.org/privkey.pem", self.lab.key))
        paths = "".join("    %s_temp_path %s/%s;\n" % (kind, self.dir, kind)
                        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        conf = write(os.path.join(self.dir, "nginx.conf"),
                     "user root;\ndaemon off;\nworker_processes 1;\npid %s/pid;\nerror_log stderr;\nevents {}\nhttp {\n"
                     "    access_log off;\n%s%s}\n" % (self.dir, paths, site))
        self.lab.start("nginx", ["nginx", "-e", "stderr", "-p", self.dir, "-c", conf])

    def start_haproxy(self, backend):
        pem = os.path.join(self.dir, "both.pem")
        with open(pem, "w") as out:
            for part in (self.lab.cert, self.lab.key):
                out.write(open(part).read())
        text = adapted(board("haproxy.cfg"), backend, ("bind :443 ", "bind 127.0.0.1:%d " % self.apps),
                       ("bind :8448 ", "bind 127.0.0.1:%d " % self.fed), ("/etc/haproxy/example.org.pem", pem))
        conf = write(os.path.join(self.dir, "haproxy.cfg"), text)
        self.lab.start("haproxy", ["haproxy", "-db", "-f", conf])

    def start_caddy(self, backend):
        text = adapted(
            board("Caddyfile"), backend,
            ("example.org, example.org:8448 {",
             "{\n\tadmin off\n\tauto_https disable_redirects\n\thttp_port %d\n}\nhttps://localhost:%d, https://localhost:%d {\n\ttls %s %s"
             % (free_port(), self.apps, self.fed, self.lab.cert, self.lab.key)))
        conf = write(os.path.join(self.dir, "Caddyfile"), text)
        env = dict(os.environ, HOME=self.dir, XDG_DATA_HOME=self.dir, XDG_CONFIG_HOME=self.dir)
        self.lab.start("caddy", ["caddy", "run", "--adapter", "caddyfile", "--config", conf], env=env)

    def get(self, path, token=None, data=None, timeout=120, kind="application/octet-stream"):
        """Status, bytes and headers of one request through the proxy, with the lab's authority trusted."""
        request = urllib.request.Request("https://localhost:%d%s" % (self.apps, path), data=data, method="POST" if data else "GET")
        if token:
            request.add_header("Authorization", "Bearer " + token)
        if data:
            request.add_header("Content-Type", kind)
        context = ssl.create_default_context(cafile=self.lab.ca)
        try:
            with urllib.request.urlopen(request, timeout=timeout, context=context) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


def through(lab_, name):
    proxy = Proxy(lab_, name)
    snug = lab_.snug(name="snug-" + name, server_name="localhost:%d" % proxy.fed,
                     more='trusted_proxies = ["127.0.0.1"]\nupload_bytes_max = "50 MiB"')
    proxy.start(snug)
    anna = snug.register("anna")

    # Somebody to whom nothing happens.
    quiet = snug.register("quiet")
    since = quiet.sync()["next_batch"]
    began = time.time()
    waited = {}

    def wait():
        path = "/_matrix/client/v3/sync?timeout=%d&since=%s" % (WAIT_MS, q(since))
        waited["status"], _ = proxy.get(path, quiet.token)
        waited["seconds"] = time.time() - began

    poll = threading.Thread(target=wait)
    poll.start()

    file = os.urandom(20 << 20)
    status, answer = proxy.get("/_matrix/media/v3/upload?filename=a%2Fb%20c.bin", anna.token, file)
    check(status == 200, "%s: an upload of 20 MiB passes" % name)
    uri = lab.json.loads(answer)["content_uri"]
    status, back = proxy.get("/_matrix/client/v1/media/download/" + uri[len("mxc://"):], anna.token)
    check(status == 200 and hashlib.sha256(back).digest() == hashlib.sha256(file).digest(), "%s: and so does its download" % name)

    check(proxy.get("/_snug/metrics")[0] in (403, 404), "%s: the metrics stay inside" % name)
    check(proxy.get("/_snug/health")[0] == 200, "%s: the health is for everybody" % name)

    # Names whose encoding says something: a slash, a plus and an equals sign in a user's, an exclamation mark and a colon in a
    # room's, and a percent sign in what a person looks for.
    far = lab_.snug(name="far-" + name)
    odd = far.register("od/d+na=me")
    room = anna.create_room(name="proxied", preset="public_chat", room_version="11")
    odd.join(room, via=snug.server_name)
    check(odd.user_id in anna.joined(room), "%s: %s of another server joined %s" % (name, odd.user_id, room))
    odd.send(room, "through the proxy")
    anna.sees_text(room, "through the proxy")
    anna.send(room, "and back")
    odd.sees_text(room, "and back")
    slashed = snug.register("sl/ash+ed")
    slashed.call("PUT", "/profile/%s/displayname" % q(slashed.user_id), {"displayname": "Slashed"})
    profile = odd.call("GET", "/profile/%s" % q(slashed.user_id))
    check(profile.get("displayname") == "Slashed", "%s: a profile behind an odd name is found" % name)

    poll.join(WAIT_MS / 1000 + 60)
    check(waited.get("status") == 200 and waited["seconds"] > 60, "%s: a sync waited %d s and was answered" % (name, waited.get("seconds", 0)))


def story(lab_):
    names = [name for name in ("nginx", "haproxy", "caddy") if shutil.which(name) or os.path.exists("/usr/sbin/" + name)]
    os.environ["PATH"] += ":/usr/sbin"
    check(names == ["nginx", "haproxy", "caddy"], "the proxies are installed: " + ", ".join(names))
    failed = []

    def run(name):
        try:
            through(lab_, name)
        except Exception as error:  # told below, with the name of the proxy
            failed.append("%s: %s" % (name, error))

    threads = [threading.Thread(target=run, args=(name,)) for name in names]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    check(not failed, "all proxies pass everything on" if not failed else "; ".join(failed))


if __name__ == "__main__":
    lab.main("proxies", story)
