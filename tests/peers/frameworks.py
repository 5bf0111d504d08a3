"""Two ways to make bots, on Snug: maubot, whose account is made with the shared secret, with a small plugin that is invited and answers;
and pantalaimon between a bot that knows no encryption and an encrypted room.

  PEERS_PYTHON tests/peers/frameworks.py     needs matrix-nio[e2e]; SNUG=path of the binary; MAUBOT=python of the environment that maubot
                                             is in, PANTALAIMON=path of pantalaimon: what is not named is left out
"""
import asyncio
import json
import os
import urllib.request
import zipfile

from lab import check, free_port, http, main, q, say, wait_for
from nio import AsyncClient, AsyncClientConfig, LoginResponse, RoomMessageText, RoomSendResponse

SETTINGS = """
registration_shared_secret = "lab"
"""
PLUGIN = '''
from maubot import Plugin, MessageEvent
from maubot.handlers import command, event
from mautrix.types import EventType, StateEvent


class Echo(Plugin):
    @command.new("echo", help="Says it again")
    @command.argument("message", pass_raw=True)
    async def echo(self, evt: MessageEvent, message: str) -> None:
        await evt.reply(message)
        await evt.react("\\N{THUMBS UP SIGN}")
'''
MAUBOT = """
database: sqlite:{folder}/maubot.db
database_opts: {{min_size: 1, max_size: 2}}
plugin_directories: {{upload: {folder}/plugins, load: [{folder}/plugins], trash: {folder}/trash}}
plugin_databases: {{sqlite: {folder}/plugins}}
server: {{hostname: 127.0.0.1, port: {port}, public_url: 'http://127.0.0.1:{port}', unshared_secret: generate}}
homeservers: {{{name}: {{url: '{base}', secret: lab}}}}
admins: {{boss: "a long secret"}}
logging:
  version: 1
  handlers: {{console: {{class: logging.StreamHandler}}}}
  root: {{level: INFO, handlers: [console]}}
"""
PANTALAIMON = """
[Default]
LogLevel = Info

[lab]
Homeserver = {base}
ListenAddress = 127.0.0.1
ListenPort = {port}
SSL = False
UseKeyring = False
IgnoreVerification = True
"""


def maubot(lab, server):
    folder, port = os.path.join(lab.dir, "maubot"), free_port()
    for name in ["plugins", "trash"]:
        os.makedirs(os.path.join(folder, name))
    config = os.path.join(folder, "config.yaml")
    with open(config, "w") as file:
        file.write(MAUBOT.format(folder=folder, port=port, name="'%s'" % server.server_name, base=server.base))
    plugin = os.path.join(folder, "echo.mbp")
    with zipfile.ZipFile(plugin, "w") as archive:
        archive.writestr("maubot.yaml", "maubot: 0.1.0\nid: example.echo\nversion: 0.0.1\nlicense: MIT\nmodules: [echo]\nmain_class: Echo\n")
        archive.writestr("echo.py", PLUGIN)
    lab.start("maubot", [os.environ["MAUBOT"], "-m", "maubot", "-c", config])
    base = "http://127.0.0.1:%d/_matrix/maubot/v1" % port
    wait_for("maubot answers", lambda: http("POST", base + "/auth/login", body={"username": "boss", "password": "a long secret"})["token"])
    token = http("POST", base + "/auth/login", body={"username": "boss", "password": "a long secret"})["token"]
    made = http("POST", base + "/client/auth/%s/register?update_client=true" % q(server.server_name), token,
                {"username": "echobot", "password": "a long secret", "user_type": "bot"}, ok=(200, 201))
    check(made["id"] == "@echobot:" + server.server_name, "maubot made its account with the shared secret, as a bot's")
    logged_in = http("POST", base + "/client/auth/%s/login" % q(server.server_name), token, {"username": "echobot", "password": "a long secret"})
    check("access_token" in logged_in, "maubot logs in")
    with open(plugin, "rb") as file:
        request = urllib.request.Request(base + "/plugins/upload", file.read(), {"Authorization": "Bearer " + token})
    check(json.load(urllib.request.urlopen(request))["id"] == "example.echo", "the plugin is there")
    http("PUT", base + "/client/%s" % q(made["id"]), token, {"autojoin": True, "enabled": True, "started": True}, ok=(200, 201))
    http("PUT", base + "/instance/echo", token, {"id": "echo", "type": "example.echo", "primary_user": made["id"], "enabled": True, "started": True}, ok=(200, 201))
    anna = server.register("anna")
    room = anna.create_room(preset="private_chat", invite=[made["id"]])
    wait_for("the bot comes when it is invited", lambda: made["id"] in anna.joined(room))
    event = anna.send(room, "!echo hello there")
    anna.sees_text(room, "hello there")
    liked = lambda: anna.call("GET", "/rooms/%s/event/%s" % (q(room), q(event))) and http(
        "GET", server.base + "/_matrix/client/v1/rooms/%s/relations/%s/m.annotation" % (q(room), q(event)), anna.token)["chunk"]
    wait_for("and likes it", liked)
    server.restart()
    anna.send(room, "!echo and again")
    anna.sees_text(room, "and again", 120)


async def pantalaimon(lab, server):
    folder, port = os.path.join(lab.dir, "pantalaimon"), free_port()
    os.makedirs(folder)
    config = os.path.join(folder, "pantalaimon.conf")
    with open(config, "w") as file:
        file.write(PANTALAIMON.format(base=server.base, port=port))
    lab.start("pantalaimon", [os.environ["PANTALAIMON"], "-c", config, "--data-path", folder], dict(os.environ, HOME=folder, XDG_DATA_HOME=folder, XDG_CONFIG_HOME=folder))
    between = "http://127.0.0.1:%d" % port
    wait_for("pantalaimon answers", lambda: http("GET", between + "/_matrix/client/versions"))
    for name in ["berta", "plain"]:
        server.register(name)
    berta = AsyncClient(server.base, "@berta:" + server.server_name, store_path=folder, config=AsyncClientConfig(store_sync_tokens=True, encryption_enabled=True))
    bot = AsyncClient(between, "@plain:" + server.server_name)
    for client in [berta, bot]:
        answer = await client.login("correct horse", device_name="X")
        check(isinstance(answer, LoginResponse), "%s logs in at %s" % (client.user_id, client.homeserver))
    heard = []
    for client in [berta, bot]:
        client.add_event_callback(lambda room, event, client=client: heard.append((client.user_id, event.sender, event.body, event.decrypted)), RoomMessageText)
    encrypted = {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
    room = (await berta.room_create(invite=[bot.user_id], initial_state=[encrypted])).room_id
    await bot.join(room)

    async def until(what, found):
        for _ in range(60):
            await bot.sync(timeout=300)
            await berta.sync(timeout=300)
            if berta.should_upload_keys:
                await berta.keys_upload()
            if berta.should_query_keys:
                await berta.keys_query()
            if found():
                return say("ok    " + what)
        raise AssertionError("never: %s; heard: %s" % (what, heard))

    await until("the bot is in the encrypted room", lambda: room in bot.rooms and bot.user_id in berta.rooms[room].users)
    content = {"msgtype": "m.text", "body": "a secret"}
    answer = await berta.room_send(room, "m.room.message", content, ignore_unverified_devices=True)
    check(isinstance(answer, RoomSendResponse), "something encrypted is said")
    await until("the bot reads it without knowing of encryption", lambda: (bot.user_id, berta.user_id, "a secret", False) in heard)
    answer = await bot.room_send(room, "m.room.message", {"msgtype": "m.text", "body": "I heard"})
    check(isinstance(answer, RoomSendResponse), "the bot answers in plain text")
    await until("which comes encrypted", lambda: (berta.user_id, bot.user_id, "I heard", True) in heard)
    for client in [berta, bot]:
        await client.close()


def story(lab):
    server = lab.snug(more=SETTINGS)
    if os.environ.get("MAUBOT"):
        maubot(lab, server)
    if os.environ.get("PANTALAIMON"):
        asyncio.run(pantalaimon(lab, server))


if __name__ == "__main__":
    main("frameworks", story)
