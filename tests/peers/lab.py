"""A lab on the loopback: a certificate authority, a Snug, a Synapse, a small HTTP client, and a way to run clients in other languages.

Used by the other scripts in this folder. Every step is printed as it happens; the first thing that is not as it should be
ends the run with exit status 1 and the tail of the servers' logs.
"""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from urllib.parse import quote

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))


def say(text):
    print("[%s] %s" % (time.strftime("%H:%M:%S"), text), flush=True)


def check(condition, text):
    """Print the step when it holds, raise when it does not."""
    if not condition:
        raise AssertionError("NOT SO: " + text)
    say("ok    " + text)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def q(text):
    return quote(text, safe="")


def answer(method, url, token=None, body=None, raw=None, timeout=60, kind="application/json"):
    """Status and JSON of the answer to one request, which is sent again while its rate is limited."""
    data = raw if raw is not None else (json.dumps(body).encode() if body is not None else None)
    headers = {"Content-Type": kind}
    if token:
        headers["Authorization"] = "Bearer " + token
    request = urllib.request.Request(url, data=data, method=method, headers=headers)
    for _ in range(60):
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answered:
                status, text = answered.status, answered.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        if status != 429:
            break
        time.sleep(0.5)
    try:
        return status, json.loads(text) if text else {}
    except ValueError:
        return status, {"not_json": text[:300].decode("utf-8", "replace")}


def http(method, url, token=None, body=None, raw=None, timeout=60, ok=(200,)):
    """One JSON request; raises with status and body when the status is not among `ok`."""
    status, value = answer(method, url, token, body, raw, timeout)
    if status not in ok:
        raise AssertionError("%s %s answered %s %s" % (method, url, status, json.dumps(value)[:600]))
    return value


class Person:
    """A logged-in user of either server, and the few verbs the scripts need."""

    def __init__(self, base, user_id, token, device_id):
        self.base, self.user_id, self.token, self.device_id = base, user_id, token, device_id
        self.since, self.txn = None, 0

    def call(self, method, path, body=None, **more):
        return http(method, self.base + "/_matrix/client/v3" + path, self.token, body, **more)

    def create_room(self, **options):
        return self.call("POST", "/createRoom", options)["room_id"]

    def invite(self, room, user):
        self.call("POST", "/rooms/%s/invite" % q(room), {"user_id": user})

    def join(self, room, via=None, timeout=180):
        path = "/join/%s" % q(room) + ("?server_name=%s&via=%s" % (q(via), q(via)) if via else "")
        return self.call("POST", path, {}, timeout=timeout)["room_id"]

    def leave(self, room):
        self.call("POST", "/rooms/%s/leave" % q(room), {})

    def send(self, room, text):
        self.txn += 1
        path = "/rooms/%s/send/m.room.message/%s-%d" % (q(room), self.device_id, self.txn)
        return self.call("PUT", path, {"msgtype": "m.text", "body": text})["event_id"]

    def put_state(self, room, kind, content, key=""):
        return self.call("PUT", "/rooms/%s/state/%s/%s" % (q(room), kind, q(key)), content)["event_id"]

    def state(self, room):
        return {(e["type"], e["state_key"]): e for e in self.call("GET", "/rooms/%s/state" % q(room))}

    def joined(self, room):
        return set(self.call("GET", "/rooms/%s/joined_members" % q(room))["joined"])

    def history(self, room, limit=200):
        """Message bodies, oldest first, paging backwards until the start."""
        bodies, token = [], None
        for _ in range(50):
            path = "/rooms/%s/messages?dir=b&limit=%d" % (q(room), limit) + ("&from=" + q(token) if token else "")
            page = self.call("GET", path, timeout=120)
            bodies += [e["content"].get("body") for e in page["chunk"] if e["type"] == "m.room.message"]
            token = page.get("end")
            if not token or not page["chunk"]:
                break
        return list(reversed(bodies))

    def sync(self, timeout_ms=0):
        path = "/sync?timeout=%d" % timeout_ms + ("&since=" + q(self.since) if self.since else "")
        answer = self.call("GET", path, timeout=90)
        self.since = answer["next_batch"]
        return answer

    def until(self, what, found, seconds=60):
        """Sync until `found(answer)` gives something; fail after `seconds`."""
        end = time.time() + seconds
        while time.time() < end:
            got = found(self.sync(2000))
            if got:
                say("ok    %s: %s" % (self.user_id, what))
                return got
        raise AssertionError("%s never saw: %s" % (self.user_id, what))

    def sees_text(self, room, text, seconds=60):
        def found(answer):
            events = answer.get("rooms", {}).get("join", {}).get(room, {}).get("timeline", {}).get("events", [])
            return [e for e in events if e.get("content", {}).get("body") == text]
        return self.until("message %r" % text, found, seconds)[0]

    def sees_invite(self, room, seconds=60):
        return self.until("invite to %s" % room, lambda a: a.get("rooms", {}).get("invite", {}).get(room), seconds)


def wait_for(what, probe, seconds=60):
    end, last = time.time() + seconds, None
    while time.time() < end:
        try:
            got = probe()
            if got:
                say("ok    " + what)
                return got
        except (AssertionError, OSError, KeyError) as error:
            last = error
        time.sleep(0.3)
    raise AssertionError("timed out: %s (%s)" % (what, last))


class Lab:
    def __init__(self, name):
        self.dir = tempfile.mkdtemp(prefix="snug-%s-" % name)
        self.logs, self.children = [], []
        self.make_ca()

    def run(self, *args):
        subprocess.run(args, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def make_ca(self):
        at = lambda n: os.path.join(self.dir, n)
        self.ca, self.cert, self.key = at("ca.pem"), at("localhost.pem"), at("localhost.key")
        self.run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                 "-subj", "/CN=Snug lab CA", "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=keyCertSign",
                 "-keyout", at("ca.key"), "-out", self.ca)
        self.run("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost",
                 "-keyout", self.key, "-out", at("localhost.csr"))
        with open(at("ext"), "w") as f:
            f.write("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
        self.run("openssl", "x509", "-req", "-in", at("localhost.csr"), "-CA", self.ca, "-CAkey", at("ca.key"),
                 "-CAcreateserial", "-days", "2", "-extfile", at("ext"), "-out", self.cert)

    def start(self, name, args, env=None):
        log = os.path.join(self.dir, name + ".log")
        self.logs.append(log)
        child = subprocess.Popen(args, stdout=open(log, "ab"), stderr=subprocess.STDOUT, env=env, cwd=self.dir)
        self.children.append(child)
        return child

    def snug(self, name="snug", budget="pi-zero-2w", server_name=None, more=""):
        return Snug(self, name, budget, server_name, more)

    def synapse(self, name="synapse", server_name=None, more=""):
        return Synapse(self, name, server_name, more)

    def server(self, snug="", synapse=""):
        """Snug; with SERVER=synapse in the environment the reference, which tells whether a story itself is right. More text
        for the settings of either."""
        return self.synapse(more=synapse) if os.environ.get("SERVER") == "synapse" else self.snug(more=snug)

    def close(self, failed):
        for child in self.children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        for child in self.children:
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
        if failed:
            for log in self.logs:
                with open(log, errors="replace") as f:
                    print("---- last lines of %s\n%s" % (os.path.basename(log), "".join(f.readlines()[-60:])), flush=True)
        if failed and os.environ.get("KEEP"):
            print("kept: " + self.dir)
        else:
            shutil.rmtree(self.dir, ignore_errors=True)


class Snug:
    """The server under test, from $SNUG or the release build."""

    def __init__(self, lab, name, budget, server_name=None, more=""):
        self.lab, self.name, self.budget = lab, name, budget
        self.port, self.fed = free_port(), free_port()
        self.server_name = server_name or "localhost:%d" % self.fed
        self.base = "http://127.0.0.1:%d" % self.port
        self.binary = os.environ.get("SNUG", os.path.join(TOP, "target", "release", "snug"))
        self.data = os.path.join(lab.dir, name)
        os.makedirs(self.data, exist_ok=True)
        self.config = os.path.join(self.data, "snug.toml")
        with open(self.config, "w") as f:
            f.write(CONFIG % dict(server_name=self.server_name, port=self.port, fed=self.fed, data=self.data,
                                  budget=budget, cert=lab.cert, key=lab.key, ca=lab.ca, more=more))
        self.boot()

    def boot(self):
        self.child = self.lab.start(self.name, [self.binary, "serve", "--config", self.config])
        wait_for("%s answers" % self.name, lambda: http("GET", self.base + "/_matrix/client/versions"))

    def restart(self):
        self.child.send_signal(signal.SIGTERM)
        self.child.wait(30)
        self.boot()

    def kill(self):
        """As a power cut ends it, for the program; `boot` starts it again."""
        self.child.kill()
        self.child.wait(30)

    def register(self, localpart, password="correct horse"):
        url = self.base + "/_matrix/client/v3/register"
        body = {"username": localpart, "password": password}
        first = http("POST", url, body=body, ok=(401,))
        body["auth"] = {"type": "m.login.dummy", "session": first["session"]}
        got = http("POST", url, body=body)
        return Person(self.base, got["user_id"], got["access_token"], got["device_id"])

    def peak_kib(self):
        with open("/proc/%d/status" % self.child.pid) as f:
            return int(next(l for l in f if l.startswith("VmHWM")).split()[1])


CONFIG = """
server_name = "%(server_name)s"
listen = ["127.0.0.1:%(port)d"]
data_dir = "%(data)s"
budget = "%(budget)s"
registration = "open"
%(more)s
[federation]
listen = ["127.0.0.1:%(fed)d"]
tls_certificate = "%(cert)s"
tls_private_key = "%(key)s"
extra_ca_file = "%(ca)s"
allow_private_addresses = true
"""


class Synapse:
    """A real Synapse on SQLite, speaking to the lab only."""

    def __init__(self, lab, name, server_name=None, more=""):
        self.lab, self.name = lab, name
        self.port, self.fed = free_port(), free_port()
        self.server_name = server_name or "localhost:%d" % self.fed
        self.base = "http://127.0.0.1:%d" % self.port
        self.dir = os.path.join(lab.dir, name)
        os.makedirs(self.dir, exist_ok=True)
        self.python = os.environ.get("PEERS_PYTHON", sys.executable)
        with open(os.path.join(self.dir, "homeserver.yaml"), "w") as f:
            f.write(SYNAPSE % dict(server_name=self.server_name, port=self.port, fed=self.fed, dir=self.dir, cert=lab.cert,
                                   key=lab.key, ca=lab.ca) + more)
        with open(os.path.join(self.dir, "log.yaml"), "w") as f:
            f.write("version: 1\nformatters: {p: {format: '%(asctime)s %(levelname)s %(name)s %(request)s %(message)s'}}\n"
                    "filters: {c: {(): synapse.logging.context.LoggingContextFilter, request: ''}}\n"
                    "handlers: {h: {class: logging.StreamHandler, formatter: p, filters: [c]}}\n"
                    "root: {level: INFO, handlers: [h]}\n")
        conf = os.path.join(self.dir, "homeserver.yaml")
        lab.run(self.python, "-m", "synapse.app.homeserver", "-c", conf, "--generate-keys")
        self.boot()

    def boot(self):
        conf = os.path.join(self.dir, "homeserver.yaml")
        self.child = self.lab.start(self.name, [self.python, "-m", "synapse.app.homeserver", "-c", conf])
        wait_for("Synapse answers", lambda: http("GET", self.base + "/_matrix/client/versions"), 90)

    def restart(self):
        self.child.send_signal(signal.SIGTERM)
        self.child.wait(30)
        self.boot()

    kill = Snug.kill

    def register(self, localpart, password="correct horse"):
        body = {"username": localpart, "password": password, "auth": {"type": "m.login.dummy"}}
        got = http("POST", self.base + "/_matrix/client/v3/register", body=body)
        return Person(self.base, got["user_id"], got["access_token"], got["device_id"])


SYNAPSE = """
server_name: "%(server_name)s"
pid_file: %(dir)s/pid
signing_key_path: %(dir)s/signing.key
log_config: %(dir)s/log.yaml
media_store_path: %(dir)s/media
database: {name: sqlite3, args: {database: "%(dir)s/db"}}
tls_certificate_path: %(cert)s
tls_private_key_path: %(key)s
federation_custom_ca_list: [%(ca)s]
ip_range_blacklist: []
federation_ip_range_blacklist: []
trusted_key_servers: []
suppress_key_server_warning: true
report_stats: false
enable_registration: true
enable_registration_without_verification: true
macaroon_secret_key: lab
registration_shared_secret: lab
form_secret: lab
listeners:
  - {port: %(port)d, type: http, tls: false, bind_addresses: ['127.0.0.1'], resources: [{names: [client]}]}
  - {port: %(fed)d, type: http, tls: true, bind_addresses: ['127.0.0.1'], resources: [{names: [federation, keys]}]}
experimental_features: {msc3814_enabled: true, msc3881_enabled: true, msc4306_enabled: true, msc4143_enabled: true, msc2666_enabled: true}
rc_message: {per_second: 1000, burst_count: 1000}
rc_registration: {per_second: 1000, burst_count: 1000}
rc_login: {address: {per_second: 1000, burst_count: 1000}, account: {per_second: 1000, burst_count: 1000}, failed_attempts: {per_second: 1000, burst_count: 1000}}
rc_joins: {local: {per_second: 1000, burst_count: 1000}, remote: {per_second: 1000, burst_count: 1000}}
rc_room_creation: {per_second: 1000, burst_count: 1000}
rc_joins_per_room: {per_second: 1000, burst_count: 1000}
rc_invites: {per_room: {per_second: 1000, burst_count: 1000}, per_user: {per_second: 1000, burst_count: 1000}, per_issuer: {per_second: 1000, burst_count: 1000}}
rc_federation: {window_size: 1000, sleep_limit: 1000, sleep_delay: 0, reject_limit: 1000, concurrent: 100}
federation: {destination_min_retry_interval: 1s, destination_max_retry_interval: 5s, client_timeout: 30s}
"""


def drive(lab, args, server, env=None, seconds=600, cwd=None):
    """Run a client program that prints its steps. A line "@kill" or "@restart" from it asks for that to be done to `server`;
    it goes on when it reads "done"."""
    log = open(os.path.join(lab.dir, "client.log"), "ab")
    lab.logs.append(log.name)
    env = dict(os.environ, SNUG_BASE=server.base, SNUG_NAME=server.server_name, LAB_DIR=lab.dir, **(env or {}))
    child = subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=env, cwd=cwd, text=True)
    lab.children.append(child)
    too_long = threading.Timer(seconds, child.kill)
    too_long.start()
    try:
        for line in child.stdout:
            line = line.rstrip("\n")
            if line in ("@kill", "@restart"):
                if line == "@kill":
                    server.kill()
                    server.boot()
                else:
                    server.restart()
                say("-- the server was %s" % ("killed and started again" if line == "@kill" else "restarted"))
                child.stdin.write("done\n")
                child.stdin.flush()
            else:
                say(line)
    finally:
        too_long.cancel()
    status = child.wait()
    if status != 0:
        raise AssertionError("the client program ended with status %s (at most %d s were given)" % (status, seconds))


def main(name, story):
    """Run `story(lab)`; print the verdict and exit accordingly."""
    lab, failed = Lab(name), True
    began = time.time()
    try:
        story(lab)
        failed = False
    except Exception as error:  # the verdict, whatever went wrong
        import traceback
        traceback.print_exc()
        say("FAILED %s: %s" % (name, error))
    finally:
        lab.close(failed)
    if not failed:
        say("PASSED %s in %.0f s" % (name, time.time() - began))
    sys.exit(1 if failed else 0)
