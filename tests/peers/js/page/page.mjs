// The page: log in or register, rooms, a room, keys, notification settings. `?server=` is where the homeserver is.
import { Device, enter, sdk } from "../client.mjs";
import { VerifierEvent } from "matrix-js-sdk/lib/crypto-api/index.js";

const server = new URLSearchParams(location.search).get("server") ?? location.origin;
const at = (id) => document.getElementById(id);
const form = (element) => Object.fromEntries(new FormData(element));
const make = (tag, text, more = {}) => Object.assign(document.createElement(tag), { textContent: text, ...more });
let device, open, seen;

/** Run what a button does; what goes wrong is said, and the button waits meanwhile. */
async function act(button, work) {
    if (button) button.disabled = true;
    try {
        return await work();
    } catch (error) {
        at("problem").textContent = error.data?.error ?? error.message;
        toast(error.data?.error ?? error.message);
        console.error(error);
    } finally {
        if (button) button.disabled = false;
    }
}

let fading;
function toast(text) {
    at("toast").textContent = text;
    at("toast").classList.add("shown");
    clearTimeout(fading);
    fading = setTimeout(() => at("toast").classList.remove("shown"), 6000);
}

async function start(session, password) {
    device = new Device(server, session, password);
    await device.start({}, { cryptoDatabasePrefix: session.device_id });
    at("enter").hidden = true;
    at("app").hidden = false;
    at("me").textContent = session.user_id;
    const { client } = device;
    for (const event of ["Room", "Room.timeline", "Room.name", "Room.receipt", "Room.myMembership", "Event.decrypted", "accountData", "sync"]) client.on(event, redraw);
    client.on("Room.timeline", (event, room, _early, _removed, data) => data.liveEvent && ring(event, room));
    client.on("crypto.verificationRequestReceived", (request) => act(null, () => compare(request)));
    client.on("crypto.devicesUpdated", () => keys());
    redraw();
    keys();
}

/** What a phone would ring for: said in a corner. */
async function ring(event, room) {
    await event.getDecryptionPromise();
    await device.client.decryptEventIfNeeded(event);
    const actions = device.client.getPushActionsForEvent(event, true);
    if (!actions?.notify || event.getSender() === device.session.user_id) return;
    if (!document.hasFocus() || room.roomId !== open) toast(`${room.name}: ${event.getContent().body ?? event.getType()}`);
}

let drawing;
const redraw = () => (drawing ??= requestAnimationFrame(() => { drawing = undefined; draw(); }));

function draw() {
    const rooms = device.client.getVisibleRooms().filter((r) => ["join", "invite"].includes(r.getMyMembership()));
    rooms.sort((a, b) => b.getLastActiveTimestamp() - a.getLastActiveTimestamp());
    at("rooms").replaceChildren(...rooms.map((room) => {
        const button = make("button", "", { onclick: () => enterRoom(room) });
        button.append(make("span", room.name, { className: "name" }));
        const unread = room.getUnreadNotificationCount("total");
        if (room.getMyMembership() === "invite") button.append(make("span", "invite", { className: "badge" }));
        else if (unread) button.append(make("span", String(unread), { className: "badge" }));
        button.setAttribute("aria-current", String(room.roomId === open));
        const item = make("li", "");
        item.append(button);
        return item;
    }));
    const room = open && device.client.getRoom(open);
    at("room").hidden = !room;
    at("nothing").hidden = Boolean(room);
    at("app").classList.toggle("open", Boolean(room));
    if (!room) return;
    at("title").textContent = room.name;
    if (!at("mute").disabled) at("mute").checked = Boolean(device.client.pushRules?.global.override?.some((r) => r.rule_id === open && r.enabled));
    const list = at("timeline"), last = room.getLiveTimeline().getEvents().at(-1);
    list.replaceChildren(...room.getLiveTimeline().getEvents().map(line).filter(Boolean));
    list.scrollTop = list.scrollHeight;
    if (last && last.getId() !== seen && document.visibilityState === "visible" && !last.status) {
        seen = last.getId();
        device.client.sendReadReceipt(last).catch(() => {});
    }
}

function line(event) {
    const who = event.sender?.name ?? event.getSender();
    if (event.isDecryptionFailure()) return make("li", `${who}: cannot be read yet`, { className: "locked" });
    if (event.getType() === "m.room.message" && event.getContent().body) {
        const item = make("li", "", { className: event.getSender() === device.session.user_id ? "own" : "" });
        item.append(make("small", who), event.getContent().body);
        return item;
    }
    if (event.getType() === "m.room.encryption") return make("li", "Messages are encrypted from here on", { className: "note" });
    if (event.getType() === "m.room.member") return make("li", `${event.target?.name ?? event.getStateKey()}: ${event.getContent().membership}`, { className: "note" });
}

async function enterRoom(room) {
    open = room.roomId;
    draw();
    if (room.getMyMembership() === "invite") await act(null, () => device.client.joinRoom(open));
    await act(null, () => device.whole(room.roomId));
    redraw();
}

// Keys.

async function keys() {
    const crypto = device.crypto;
    const [exists, verified, backup] = [await crypto.userHasCrossSigningKeys(device.session.user_id, true), await device.isVerified(), await crypto.getActiveSessionBackupVersion()];
    at("keys").textContent = !exists ? "No keys yet: what you read here is lost when you log out."
        : !verified ? "This device is not verified: it cannot read what was said before."
        : backup ? `This device is verified, and keys are backed up (version ${backup}).` : "This device is verified; there is no backup.";
    at("set-up").hidden = exists;
    at("recover").hidden = !exists || verified;
    const devices = (await crypto.getUserDeviceInfo([device.session.user_id])).get(device.session.user_id);
    document.body.dataset.devices = String(devices?.size ?? 0);
    document.body.dataset.keys = !exists ? "none" : verified && backup ? "ready" : verified ? "verified" : "locked";
}

at("set-up").onclick = ({ target }) => act(target, async () => {
    at("recovery-key").textContent = await device.setUpKeys();
    at("recovery-key").hidden = false;
    await keys();
});
at("recover").onsubmit = (event) => {
    event.preventDefault();
    act(event.submitter, async () => {
        const { imported } = await device.recover(form(at("recover")).key);
        toast(`${imported} keys were restored`);
        await keys();
        redraw();
    });
};
at("verify").onclick = ({ target }) => act(target, async () => compare(await device.crypto.requestOwnUserVerification()));

async function compare(request) {
    if (!request.initiatedByMe) await request.accept();
    else {
        while (request.phase < 3) await new Promise((done) => request.once("change", done));
        await request.startVerification("m.sas.v1");
    }
    while (!request.verifier) await new Promise((done) => request.once("change", done));
    const { verifier } = request;
    const shown = verifier.getShowSasCallbacks() ? Promise.resolve(verifier.getShowSasCallbacks()) : new Promise((done) => verifier.once(VerifierEvent.ShowSas, done));
    const run = verifier.verify();
    const sas = await shown;
    at("settings").close();
    at("pictures").textContent = sas.sas.emoji.map(([picture]) => picture).join(" ");
    at("emoji").showModal();
    at("match").onclick = ({ target }) => act(target, () => sas.confirm());
    await run;
    at("emoji").close();
    toast("The devices trust each other");
    if (request.initiatedByMe) {
        while (!(await device.crypto.getSessionBackupPrivateKey())) await new Promise((done) => setTimeout(done, 200));
        const { imported } = await device.crypto.restoreKeyBackup();
        toast(`${imported} keys were restored`);
        redraw();
    }
    await keys();
}

// Notification settings: the push rules, with a switch each.

const kinds = { override: "always first", content: "words", room: "rooms", sender: "people", underride: "else" };
async function rules() {
    const rules = await device.client.getPushRules();
    device.client.setPushRules(rules);
    at("rules").replaceChildren(...Object.entries(kinds).flatMap(([kind, words]) => (rules.global[kind] ?? []).map((rule) => {
        const item = make("li", ""), label = make("label", "");
        const box = make("input", "", { type: "checkbox", checked: rule.enabled });
        box.dataset.rule = rule.rule_id;
        box.onchange = () => act(box, async () => {
            await device.client.setPushRuleEnabled("global", kind, rule.rule_id, box.checked);
            await rules_again();
        });
        const name = rule.rule_id.startsWith("!") ? `muted: ${device.client.getRoom(rule.rule_id)?.name ?? rule.rule_id}` : rule.rule_id.replace(/^\.(m|org\.matrix\.[a-z0-9]+)\.(rule\.)?/, "").replaceAll("_", " ");
        label.append(box, make("span", `${name} (${words})`));
        item.append(label);
        return item;
    })));
}
const rules_again = () => rules();

at("mute").onchange = ({ target }) => act(target, async () => {
    await device.client.setRoomMutePushRule("global", open, target.checked);
    device.client.setPushRules(await device.client.getPushRules());
    redraw();
});

// The rest.

at("enter").onsubmit = (event) => {
    event.preventDefault();
    act(event.submitter, async () => {
        const { user, password } = form(at("enter"));
        at("problem").textContent = "";
        const session = await enter(server, event.submitter.value, user, password, "Browser");
        localStorage.setItem("session", JSON.stringify(session));
        await start(session, password);
    });
};
at("create").onsubmit = (event) => {
    event.preventDefault();
    act(event.submitter, async () => {
        const { name, invite } = form(at("create"));
        open = await device.createEncryptedRoom(name, invite ? [invite] : []);
        at("create").reset();
        draw();
    });
};
at("send").onsubmit = (event) => {
    event.preventDefault();
    const { text } = form(at("send"));
    at("send").reset();
    if (text) act(null, () => device.send(open, text));
};
at("back").onclick = () => { open = undefined; draw(); };
at("menu").onclick = () => { at("settings").showModal(); act(null, () => Promise.all([keys(), rules()])); };
at("close").onclick = () => at("settings").close();
at("logout").onclick = ({ target }) => act(target, async () => {
    await device.client.logout(true);
    localStorage.clear(); // and what is stored of keys when the page is there again, as nothing holds it then
    location.reload();
});

const session = localStorage.getItem("session");
if (session) act(null, () => start(JSON.parse(session)));
else indexedDB.databases().then((all) => all.forEach(({ name }) => indexedDB.deleteDatabase(name)));
Object.assign(window, { sdk });
