// matrix-js-sdk with its Rust crypto, in Node: run by ../js_sdk.py, which starts the server and restarts it when a line asks.
import "fake-indexeddb/auto";
import "./older-node.mjs";
import { Device, compareEmoji, enter, sdk, until } from "./client.mjs";
import { ask, check, logger, say } from "./steps.mjs";
import { SlidingSync, SlidingSyncEvent, SlidingSyncState } from "matrix-js-sdk/lib/sliding-sync.js";

const base = process.env.SNUG_BASE;
const password = "correct horse";
async function device(how, user, name, options) {
    const session = await enter(base, how, user, password, name);
    const made = new Device(base, session, password, logger(`${user} ${name}`), `${user}'s ${name}`);
    await made.start(options);
    return made;
}

/** Both say something, and both read it. */
async function talk(room, tag, ...devices) {
    for (const speaker of devices) {
        const text = `${tag}, from ${speaker.label}`;
        await speaker.send(room, text);
        for (const reader of devices) await reader.reads(room, text);
    }
    say(`ok    ${devices.map((d) => d.label).join(", ")} read each other: ${tag}`);
}

async function main() {
    const phone = await device("register", "alice", "phone");
    const bob = await device("register", "bob", "phone");
    check(phone.client.getSyncState() === "PREPARED" || phone.client.getSyncState() === "SYNCING", "alice and bob register and sync");

    // Keys: cross-signing, secret storage behind a recovery key, a backup.
    check((await phone.backup()) === null, "a new account has no backup, said as M_NOT_FOUND");
    const recoveryKey = await phone.setUpKeys();
    const bobsKey = await bob.setUpKeys();
    check(await phone.crypto.isCrossSigningReady(), "alice's cross-signing is ready");
    check(await phone.crypto.isSecretStorageReady(), "her secret storage is ready");
    check(await phone.isVerified(), "her phone is signed by her own key");
    const version = await until("the backup is in use", () => phone.crypto.getActiveSessionBackupVersion());
    check(version, `her backup is in use, version ${version}`);

    // An encrypted room, and a server that is killed in the middle of the talk.
    const room = await phone.createEncryptedRoom("secrets", [bob.session.user_id]);
    await bob.join(room);
    await talk(room, "before the kill", phone, bob);
    await ask("kill");
    await talk(room, "after the kill", phone, bob);
    await phone.backedUp();
    const first = await phone.backup();
    check(first.count >= 2 && first.etag, `the backup counts ${first.count} keys, etag ${first.etag}`);

    // A second device, verified by emoji: it is given the secrets and reads the past from the backup.
    const laptop = await device("login", "alice", "laptop");
    check(!(await laptop.isVerified()), "alice's new laptop is not verified yet");
    const me = phone.session.user_id;
    await until("the phone knows the laptop", async () => // a request of a device that it does not know is ignored
        (await phone.crypto.getUserDeviceInfo([me])).get(me)?.has(laptop.session.device_id));
    const request = await laptop.crypto.requestOwnUserVerification();
    const emoji = await compareEmoji(laptop, request, phone);
    say(`ok    both devices show ${emoji}`);
    await until("the laptop is verified", () => laptop.isVerified());
    check(await phone.isVerified(laptop.session.device_id), "the phone sees the laptop as verified");
    await until("the laptop has the private keys", async () => {
        const { privateKeysCachedLocally: has } = await laptop.crypto.getCrossSigningStatus();
        return has.masterKey && has.selfSigningKey && has.userSigningKey;
    });
    await until("the laptop has the backup's key", () => laptop.crypto.getSessionBackupPrivateKey());
    const restored = await laptop.crypto.restoreKeyBackup();
    check(restored.imported === restored.total && restored.total >= 2, `the laptop takes ${restored.imported} of ${restored.total} keys from the backup`);
    await laptop.whole(room);
    for (const text of ["before the kill, from alice's phone", "after the kill, from bob's phone"]) await laptop.reads(room, text);
    say("ok    the laptop reads the past");
    await ask("restart");
    await talk(room, "three devices", phone, bob, laptop);

    // Two people compare emoji in the room: each signs the other's key.
    const dm = await bob.crypto.requestVerificationDM(phone.session.user_id, room);
    await compareEmoji(bob, dm, phone);
    await until("bob trusts alice", async () => (await bob.crypto.getUserVerificationStatus(phone.session.user_id)).isVerified());
    await until("alice trusts bob, on her other device too", async () =>
        (await laptop.crypto.getUserVerificationStatus(bob.session.user_id)).isVerified());
    say("ok    alice and bob verified each other by emoji in the room");

    // A dehydrated device takes what arrives while nobody is logged in.
    check(await phone.crypto.isDehydrationSupported(), "dehydrated devices are supported");
    await phone.crypto.startDehydration();
    await until("bob sees the dehydrated device", async () =>
        [...(await bob.crypto.getUserDeviceInfo([phone.session.user_id])).get(phone.session.user_id).values()].some((d) => d.dehydrated));
    check(!(await phone.client.getDevices()).devices.some((d) => !d.device_id), "the list of sessions is in order");

    // Everything logged out; a message arrives meanwhile.
    for (const one of [phone, laptop]) await one.backedUp();
    for (const one of [phone, laptop]) await one.client.logout(true);
    await until("bob sees only the dehydrated device", async () =>
        [...(await bob.crypto.getUserDeviceInfo([phone.session.user_id])).get(phone.session.user_id).values()].length === 1);
    await bob.client.getCrypto().forceDiscardSession(room);
    await bob.send(room, "while you were away");
    await bob.backedUp();
    await bob.client.logout(true);
    await ask("kill");

    // A fresh log-in with the recovery key.
    const fresh = await device("login", "alice", "new phone");
    await fresh.whole(room);
    check(!fresh.texts(room).includes("before the kill, from alice's phone"), "a fresh log-in cannot read the past yet");
    const back = await fresh.recover(recoveryKey);
    check(back.imported === back.total && back.total >= 3, `with the recovery key it takes ${back.imported} of ${back.total} keys from the backup`);
    await until("the recovery key verified it", () => fresh.isVerified());
    for (const text of ["before the kill, from alice's phone", "after the kill, from bob's phone", "three devices, from alice's laptop"]) await fresh.reads(room, text);
    say("ok    the new phone reads the past");
    await fresh.crypto.startDehydration();
    await fresh.reads(room, "while you were away");
    say("ok    what arrived while alice was logged out was for the dehydrated device, and is read");
    const again = await device("login", "bob", "new phone");
    await again.recover(bobsKey);
    await again.whole(room);
    await again.reads(room, "three devices, from alice's phone");
    await talk(room, "after the log-ins", fresh, again);

    await fresh.backedUp();
    await slidingSync(room, recoveryKey, again);
    await resets(fresh, room);
    for (const one of [fresh, again]) await one.client.logout(true);
    say("ok    all logged out");
}

/** A third device of alice syncs by the library's own sliding sync client. */
async function slidingSync(room, recoveryKey, bob) {
    const session = await enter(base, "login", "alice", password, "tablet");
    const tablet = new Device(base, session, password, logger("alice tablet"), "alice's tablet");
    const required = [["m.room.create", ""], ["m.room.name", ""], ["m.room.encryption", ""], ["m.room.power_levels", ""], ["m.room.member", "$LAZY"], ["m.room.member", "$ME"]];
    const lists = new Map([["all", { ranges: [[0, 19]], required_state: required, timeline_limit: 20 }]]);
    const sync = new SlidingSync(base, lists, { required_state: required, timeline_limit: 50 }, tablet.client, 10_000);
    let rounds = 0, problems = [];
    sync.on(SlidingSyncEvent.Lifecycle, (state, _answer, error) => {
        if (state === SlidingSyncState.Complete) rounds += 1;
        if (error) problems.push(error);
    });
    await tablet.start({ slidingSync: sync });
    await until("the list is there", () => sync.getListData("all")?.joinedCount >= 1 && tablet.room(room));
    check(tablet.room(room).name === "secrets", "sliding sync: the tablet's list has the room with its name");
    await tablet.recover(recoveryKey);
    sync.modifyRoomSubscriptions(new Set([room]));
    await tablet.reads(room, "after the log-ins, from bob's new phone");
    say("ok    sliding sync: the tablet reads what was said before it logged in");
    await talk(room, "by sliding sync", tablet, bob);
    await bob.client.sendTyping(room, true, 20_000);
    await until("typing arrives", () => tablet.room(room).getMember(bob.session.user_id)?.typing);
    const text = await tablet.reads(room, "by sliding sync, from bob's new phone");
    await tablet.client.sendReadReceipt(text);
    await until("bob sees the receipt", () => bob.room(room).getUsersReadUpTo(bob.room(room).findEventById(text.getId())).includes(session.user_id));
    await bob.client.sendReadReceipt(bob.room(room).findEventById(text.getId()));
    await until("the tablet sees bob's receipt", () => tablet.room(room).getUsersReadUpTo(text).includes(bob.session.user_id));
    await tablet.client.setAccountData("org.snug.test", { hello: "world" });
    await until("account data arrives", () => tablet.client.getAccountData("org.snug.test")?.getContent().hello === "world");
    say("ok    sliding sync: typing, receipts both ways and account data");
    await ask("kill");
    await talk(room, "sliding sync after the kill", tablet, bob);
    const other = await bob.createEncryptedRoom("another", [session.user_id]);
    await until("the invite arrives", () => tablet.room(other)?.getMyMembership() === "invite");
    await tablet.client.joinRoom(other);
    await until("the join arrives", () => tablet.room(other)?.getMyMembership() === "join");
    await talk(other, "in a new room", tablet, bob);
    check(problems.every((e) => !e.httpStatus || e.httpStatus === 400), `sliding sync: ${rounds} rounds, and no answer was an error`);
    await tablet.client.logout(true);
}

/** Backups are replaced and deleted, cross-signing is reset, push rules and pushers are kept. */
async function resets(fresh, room) {
    const before = await fresh.backup();
    await fresh.crypto.resetKeyBackup();
    const after = await until("a new backup", async () => {
        const info = await fresh.backup();
        return info?.version !== before.version && info;
    });
    check(after.version !== before.version, `the backup was made anew: version ${before.version}, then ${after.version}`);
    await fresh.backedUp();
    await fresh.crypto.deleteKeyBackupVersion(after.version);
    check((await fresh.backup()) === null, "a deleted backup is gone");

    await fresh.crypto.resetEncryption(fresh.authenticate);
    await until("the device is signed by new keys", () => fresh.isVerified());
    check((await fresh.backup())?.version, "encryption was reset: new keys and a new backup");

    await fresh.client.setPusher({
        kind: "http", app_id: "org.snug.test", pushkey: "key", app_display_name: "Test", device_display_name: "phone", lang: "en",
        data: { url: "http://127.0.0.1:9/_matrix/push/v1/notify", format: "event_id_only" },
    });
    check((await fresh.client.getPushers()).pushers.some((p) => p.pushkey === "key"), "a pusher is set and listed");
    await fresh.client.removePusher("key", "org.snug.test");
    check((await fresh.client.getPushers()).pushers.length === 0, "and removed");
    const rules = await fresh.client.getPushRules();
    check(rules.global.override.length > 5, "push rules are there");
    await fresh.client.setRoomMutePushRule("global", room, true);
    await until("the room is muted", () => fresh.client.getRoomPushRule("global", room) ||
        fresh.client.pushRules?.global.override.some((r) => r.rule_id === room));
    say("ok    a room is muted by a push rule");
}

main().then(
    () => process.exit(0),
    (error) => {
        say(`FAILED ${error.stack}`);
        if (error.data) say(JSON.stringify(error.data));
        process.exit(1);
    },
);
