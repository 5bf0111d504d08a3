// A moderation bot on matrix-bot-sdk, with the calls that Draupnir and Mjolnir make: run by ../bot_sdk.py, which starts the server.
import path from "node:path";
import { AutojoinRoomsMixin, LogLevel, LogService, MatrixClient, SimpleFsStorageProvider } from "@vector-im/matrix-bot-sdk";

const { SNUG_BASE: base, SNUG_NAME: server, LAB_DIR: folder, TOKENS } = process.env;
const tokens = JSON.parse(TOKENS);
LogService.setLevel(LogLevel.WARN);
const say = (text) => console.log(text);
const check = (holds, what) => {
    if (!holds) throw new Error(`NOT SO: ${what}`);
    say(`ok    ${what}`);
};
const pause = (ms) => new Promise((ready) => setTimeout(ready, ms));
/** What `found` gives, once it gives something. */
async function wait(what, found, seconds = 60) {
    for (let n = 0; n < seconds * 5; n++) {
        try {
            const got = await found();
            if (got) return check(true, what), got;
        } catch (error) {
            if (n + 1 === seconds * 5) throw error;
        }
        await pause(200);
    }
    throw new Error(`never: ${what}`);
}
const client = (name) => new MatrixClient(base, tokens[name], new SimpleFsStorageProvider(path.join(folder, `${name}.json`)));
const person = (name) => `@${name}:${server}`;
const [boss, alice, mallory, warden] = ["boss", "alice", "mallory", "warden"].map(client);

/** The bot: it keeps a list of rules and applies it to the rooms that it protects. */
class Warden {
    constructor(sdk) {
        Object.assign(this, { sdk, rooms: new Set(), heard: [] });
    }

    async start(management) {
        this.management = management;
        AutojoinRoomsMixin.setupOnClient(this.sdk);
        this.sdk.on("room.message", (room, event) => this.message(room, event).catch((error) => this.tell(`failed: ${error.message}`)));
        this.sdk.on("room.event", (room, event) => room === this.list && event.type.startsWith("m.policy.rule.") && this.apply(event));
        await this.sdk.start();
    }

    tell = (body) => this.sdk.sendNotice(this.management, body);

    async apply(rule) {
        for (const room of this.rooms) {
            for (const user of await this.sdk.getJoinedRoomMembers(room)) {
                if (user === rule.content.entity) await this.sdk.banUser(user, room, rule.content.reason);
            }
        }
        await this.tell(`applied ${rule.content.entity}`);
    }

    async message(room, event) {
        if (room !== this.management) return this.heard.push(event);
        const [word, ...rest] = (event.content?.body ?? "").split(" ");
        if (!word.startsWith("!") || event.sender === person("warden")) return;
        await this[word.slice(1)](...rest);
        await this.sdk.unstableApis.addReactionToEvent(room, event.event_id, "✅");
    }

    async create(alias) {
        this.list = await this.sdk.createRoom({ preset: "public_chat", room_alias_name: alias, name: "Rules" });
        await this.sdk.sendStateEvent(this.list, "org.matrix.mjolnir.shortcode", "", { shortcode: alias });
    }

    async protect(room) {
        this.rooms.add(await this.sdk.joinRoom(room));
        await this.sdk.setAccountData("org.matrix.mjolnir.protected_rooms", { rooms: [...this.rooms] });
        await this.sdk.sendStateEvent(room, "m.room.server_acl", "", { deny: ["evil.example"], allow: ["*"] });
    }

    ban = (user, reason) => this.sdk.sendStateEvent(this.list, "m.policy.rule.user", `rule:${user}`, { entity: user, recommendation: "m.ban", reason });

    async redact(user, room) {
        const { chunk } = await this.sdk.doRequest("GET", `/_matrix/client/v3/rooms/${encodeURIComponent(room)}/messages`, { dir: "b", limit: 100, filter: JSON.stringify({ senders: [user] }) });
        for (const event of chunk.filter((event) => event.type === "m.room.message" && event.content.body)) await this.sdk.redactEvent(room, event.event_id, "spam");
    }

    hijack = (room, user) => this.sdk.adminApis.synapse.makeRoomAdmin(room, user);
    shutdown = (room) => this.sdk.doRequest("DELETE", `/_synapse/admin/v2/rooms/${encodeURIComponent(room)}`, null, { new_room_user_id: person("warden"), block: true, message: "bad" });
    suspend = (user) => this.sdk.doRequest("PUT", `/_synapse/admin/v1/suspend/${encodeURIComponent(user)}`, null, { suspend: true });
    deactivate = (user) => this.sdk.doRequest("POST", `/_synapse/admin/v1/deactivate/${encodeURIComponent(user)}`, null, { erase: true });

    /** The reports since the last look, as they are polled. */
    async reports() {
        const found = await this.sdk.doRequest("GET", "/_synapse/admin/v1/event_reports", { dir: "f", from: String(this.from ?? 0) });
        this.from = found.next_token ?? (this.from ?? 0) + found.event_reports.length;
        for (const report of found.event_reports) {
            const { event } = await this.sdk.doRequest("GET", `/_synapse/admin/v1/rooms/${report.room_id}/context/${report.event_id}?limit=1`);
            await this.tell(`report of ${event.content.body}: ${report.reason}`);
        }
    }
}

const bot = new Warden(warden);
const management = await boss.createRoom({ preset: "trusted_private_chat", name: "Management", invite: [person("warden")] });
await warden.joinRoom(management);
await bot.start(management);
/** An order, and what comes of it: the bot's mark below it, and `done`. */
async function order(text, what, done = () => true) {
    const event = await boss.sendText(management, `!${text}`);
    await wait(`!${text}: it is obeyed`, async () => (await boss.getRelationsForEvent(management, event, "m.annotation")).chunk.length);
    if (what) await wait(what, done);
}

const rooms = [];
for (const name of ["Tea", "Coffee"]) {
    const room = await alice.createRoom({ preset: "public_chat", name, invite: [person("warden")] });
    await wait(`the bot comes to ${name} when it is invited`, async () => (await alice.getJoinedRoomMembers(room)).includes(person("warden")));
    await alice.setUserPowerLevel(person("warden"), room, 100);
    await mallory.joinRoom(room);
    rooms.push(room);
}
await order("create rules");
for (const room of rooms) await order(`protect ${room}`);
check((await warden.getAccountData("org.matrix.mjolnir.protected_rooms")).rooms.length === 2, "two rooms are protected");
for (const room of rooms) await mallory.sendText(room, "cheap pills");
await wait("the bot hears it", () => bot.heard.length === 2);
const is = async (room, user, what) => (await alice.getRoomStateEvent(room, "m.room.member", user)).membership === what;
await order(`ban ${person("mallory")} spam`, "who is on the list is banned in both rooms", async () => (await is(rooms[0], person("mallory"), "ban")) && (await is(rooms[1], person("mallory"), "ban")));
const bodies = async (room) => (await alice.doRequest("GET", `/_matrix/client/v3/rooms/${encodeURIComponent(room)}/messages`, { dir: "b", limit: 50 })).chunk.map((event) => event.content.body).filter(Boolean);
await order(`redact ${person("mallory")} ${rooms[0]}`, "what was said is taken back", async () => !(await bodies(rooms[0])).includes("cheap pills"));
const worse = await alice.sendText(rooms[1], "a bad word");
await boss.joinRoom(rooms[1]);
await boss.doRequest("POST", `/_matrix/client/v3/rooms/${encodeURIComponent(rooms[1])}/report/${encodeURIComponent(worse)}`, null, { reason: "rude", score: -100 });
const told = async (text) => (await boss.doRequest("GET", `/_matrix/client/v3/rooms/${encodeURIComponent(management)}/messages`, { dir: "b", limit: 30 })).chunk.some((event) => event.content.body === text);
await order("reports", "the report comes to the bot's room", () => told("report of a bad word: rude"));

const lost = await mallory.createRoom({ preset: "public_chat", name: "Lost" });
await order(`hijack ${lost} ${person("boss")}`, "an administrator is given a room", async () => (await boss.joinRoom(lost)) && (await boss.getRoomStateEvent(lost, "m.room.power_levels", "")).users[person("boss")] === 100);
await order(`shutdown ${lost}`, "nobody is in the room that was closed", async () => !(await boss.getJoinedRooms()).includes(lost));
const admin = warden.adminApis.synapse;
await wait("which is done after a while", async () => (await admin.getDeleteRoomState(lost))[0].status === "complete");
await order(`suspend ${person("mallory")}`, "an account is suspended", async () => (await admin.getUser(person("mallory"))).suspended);
await order(`deactivate ${person("mallory")}`, "an account is closed", async () => (await admin.getUser(person("mallory"))).deactivated);

check(await admin.isSelfAdmin(), "the bot is an administrator");
check((await admin.upsertUser(person("carol"), { password: "a long secret", displayname: "Carol" })).displayname === "Carol", "it makes an account");
const all = [];
for await (const user of admin.listAllUsers({ limit: 2 })) all.push(user.name);
check(all.length === (await admin.listUsers("0", 100)).total && new Set(all).size === all.length, "it lists all accounts, two at a time");
check((await admin.listRooms("Tea")).rooms[0].room_id === rooms[0], "it finds a room");
check((await admin.getRoomState(rooms[0])).some((event) => event.type === "m.room.create"), "it sees the state of a room");
const { token } = await admin.createRegistrationToken({ uses_allowed: 1 });
check((await admin.getRegistrationToken(token)).uses_allowed === 1 && (await admin.getRegistrationToken("nothing")) === null, "it makes a registration token");
await admin.updateRegistrationToken(token, { uses_allowed: 2 });
check((await admin.listRegistrationTokens(true)).length === 1, "and lists it");
await admin.deleteRegistrationToken(token);
check((await admin.getEventNearestToTimestamp(rooms[0], 1, "f")).event_id.startsWith("$"), "it finds an event by its time");
process.exit(0);
