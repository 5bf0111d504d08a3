// A person with devices, on matrix-js-sdk and its Rust crypto: used by story.mjs (Node) and page.mjs (a browser).
import * as sdk from "matrix-js-sdk";
import { decodeRecoveryKey, VerifierEvent, VerificationPhase, VerificationRequestEvent, CryptoEvent } from "matrix-js-sdk/lib/crypto-api/index.js";

export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/** Wait until `probe` gives something true; fail with `what` after `seconds`. */
export async function until(what, probe, seconds = 60) {
    const end = Date.now() + seconds * 1000;
    let last;
    while (Date.now() < end) {
        try {
            const got = await probe();
            if (got) return got;
            last = got;
        } catch (error) {
            last = error;
        }
        await sleep(100);
    }
    throw new Error(`timed out: ${what} (${last instanceof Error ? last.stack : JSON.stringify(last)})`);
}

/** Do what may be too much at once for the server, and again after the time that it says. */
export async function patient(work) {
    for (;;) {
        try {
            return await work();
        } catch (error) {
            if (error.httpStatus !== 429) throw error;
            await sleep(error.data.retry_after_ms ?? 1000);
        }
    }
}

/** Register or log in; the answer has user_id, access_token and device_id. */
export async function enter(base, how, user, password, deviceName) {
    const client = sdk.createClient({ baseUrl: base, logger: quiet });
    if (how === "register") {
        const body = { username: user, password, initial_device_display_name: deviceName };
        let session;
        try {
            return await patient(() => client.registerRequest(body));
        } catch (error) {
            if (error.httpStatus !== 401) throw error;
            session = error.data.session;
        }
        return await patient(() => client.registerRequest({ ...body, auth: { type: "m.login.dummy", session } }));
    }
    return await client.loginRequest({
        type: "m.login.password",
        identifier: { type: "m.id.user", user },
        password,
        initial_device_display_name: deviceName,
    });
}

const nothing = () => {};
export const quiet = { trace: nothing, debug: nothing, info: nothing, warn: nothing, error: nothing, log: nothing, getChild: () => quiet };

/** One device: a client with keys of its own. */
export class Device {
    constructor(base, session, password, logger = quiet, label = session.device_id) {
        this.session = session;
        this.password = password;
        this.label = label;
        this.secretKeys = new Map();
        this.client = sdk.createClient({
            baseUrl: base,
            userId: session.user_id,
            deviceId: session.device_id,
            accessToken: session.access_token,
            timelineSupport: true,
            logger,
            verificationMethods: ["m.sas.v1"],
            cryptoCallbacks: {
                getSecretStorageKey: async ({ keys }) => {
                    for (const id of Object.keys(keys)) if (this.secretKeys.has(id)) return [id, this.secretKeys.get(id)];
                    if (!this.recoveryKey) return null;
                    const wanted = (await this.client.secretStorage.getDefaultKeyId()) ?? Object.keys(keys)[0];
                    return wanted in keys ? [wanted, decodeRecoveryKey(this.recoveryKey)] : null;
                },
                cacheSecretStorageKey: (id, _info, key) => this.secretKeys.set(id, key),
            },
        });
    }

    get crypto() {
        return this.client.getCrypto();
    }

    /** Start syncing; `options` go to startClient. Stores are in memory unless `crypto` says otherwise. */
    async start(options = {}, crypto = { useIndexedDB: false }) {
        await this.client.initRustCrypto(crypto);
        this.client.on(CryptoEvent.VerificationRequestReceived, (request) => (this.request = request));
        await this.client.startClient({ initialSyncLimit: 20, ...options });
        await until(`${this.label} syncs`, () => ["PREPARED", "SYNCING"].includes(this.client.getSyncState()));
    }

    /** What the specification calls user-interactive authentication, with the password. */
    authenticate = async (request) => {
        try {
            return await request(null);
        } catch (error) {
            if (error.httpStatus !== 401) throw error;
            const identifier = { type: "m.id.user", user: this.session.user_id };
            return await request({ type: "m.login.password", identifier, password: this.password, session: error.data.session });
        }
    };

    /** Cross-signing, secret storage and a backup, as an app does for a new account; gives the recovery key. */
    async setUpKeys() {
        await this.crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys: this.authenticate });
        let made;
        await this.crypto.bootstrapSecretStorage({
            createSecretStorageKey: async () => (made = await this.crypto.createRecoveryKeyFromPassphrase()),
            setupNewSecretStorage: true,
            setupNewKeyBackup: true,
        });
        this.recoveryKey = made.encodedPrivateKey;
        return this.recoveryKey;
    }

    /** What an app does when somebody types the recovery key in after a log-in. */
    async recover(recoveryKey) {
        this.recoveryKey = recoveryKey;
        if (!(await this.crypto.userHasCrossSigningKeys())) throw new Error("the server has no cross-signing keys");
        await this.crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys: this.authenticate });
        await this.crypto.loadSessionBackupPrivateKeyFromSecretStorage();
        const enabled = await this.crypto.checkKeyBackupAndEnable();
        if (!enabled?.trustInfo.trusted && !enabled?.trustInfo.matchesDecryptionKey) {
            throw new Error(`the backup is not trusted: ${JSON.stringify(enabled)}`);
        }
        return await this.crypto.restoreKeyBackup();
    }

    /** The backup as the server has it now (the library answers from what it remembers); null when there is none. */
    async backup() {
        try {
            return await this.client.http.authedRequest(sdk.Method.Get, "/room_keys/version", undefined, undefined, { prefix: "/_matrix/client/v3" });
        } catch (error) {
            if (error.errcode === "M_NOT_FOUND") return null;
            throw error;
        }
    }

    /** Wait until the backup has every key of this device. */
    backedUp() {
        return until(`${this.label}'s keys are backed up`, async () => (await this.backup()).count >= (await this.crypto.exportRoomKeys()).length);
    }

    room(id) {
        return this.client.getRoom(id);
    }

    async createEncryptedRoom(name, invite) {
        const made = await this.client.createRoom({
            name,
            invite,
            preset: "trusted_private_chat",
            initial_state: [{ type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } }],
        });
        await until(`${this.label} sees its room`, async () => this.room(made.room_id) && (await this.crypto.isEncryptionEnabledInRoom(made.room_id)));
        return made.room_id;
    }

    async join(room) {
        await until(`${this.label} sees the invite`, () => this.room(room)?.getMyMembership() === "invite");
        await this.client.joinRoom(room);
        await until(`${this.label} sees its join`, () => this.room(room)?.getMyMembership() === "join");
    }

    send(room, body) {
        return this.client.sendTextMessage(room, body).then((sent) => sent.event_id);
    }

    events(room) {
        return this.room(room)?.getLiveTimeline().getEvents() ?? [];
    }

    /** The texts of the room's messages that this device could read, oldest first. */
    texts(room) {
        return this.events(room).filter((e) => e.getType() === "m.room.message").map((e) => e.getContent().body);
    }

    async reads(room, body, seconds = 60) {
        const find = () => this.events(room).find((event) => {
            // With sliding sync the library decrypts what is shown, as apps ask for it.
            this.client.decryptEventIfNeeded(event).catch(nothing);
            return event.getContent().body === body && !event.isDecryptionFailure();
        });
        try {
            return await until(`${this.label} reads ${JSON.stringify(body)}`, find, seconds);
        } catch (error) {
            const tail = this.events(room).slice(-4).map((e) => [e.getType(), e.getContent().body, e.decryptionFailureReason].join(" "));
            throw new Error(`${error.message}; the last events are ${tail.join(" | ")}`);
        }
    }

    /** Page back until the room's first event is there. */
    async whole(room) {
        await until(`${this.label} sees the room`, () => this.room(room));
        for (let i = 0; i < 50 && !this.events(room).some((e) => e.getType() === "m.room.create"); i++) {
            await this.client.scrollback(this.room(room), 50);
        }
        for (const event of this.events(room)) await event.getDecryptionPromise();
    }

    async isVerified(device = this.session.device_id, user = this.session.user_id) {
        return Boolean((await this.crypto.getDeviceVerificationStatus(user, device))?.crossSigningVerified);
    }

    stop() {
        this.client.stopClient();
    }
}

/** Compare emoji: `asking` has sent `request`, `asked` accepts what arrives there. Gives the emoji both showed. */
export async function compareEmoji(asking, request, asked) {
    const theirs = await until(`${asked.label} sees the request`, () => asked.request?.transactionId === request.transactionId && asked.request);
    await theirs.accept();
    await until("both are ready", () => request.phase === VerificationPhase.Ready && theirs.phase === VerificationPhase.Ready);
    const ours = await request.startVerification("m.sas.v1");
    const answer = await until(`${asked.label} sees the start`, () => theirs.verifier);
    const shown = [ours, answer].map(async (verifier) => {
        const sas = new Promise((done) => verifier.once(VerifierEvent.ShowSas, done));
        const shows = verifier.getShowSasCallbacks();
        return shows ?? (await sas);
    });
    const runs = [ours.verify(), answer.verify()];
    const failed = Promise.all(runs).then(() => new Promise(nothing)); // rejects when either fails, else stays silent
    const [a, b] = await Promise.race([Promise.all(shown), failed]);
    const [left, right] = [a, b].map((s) => s.sas.emoji.map(([picture]) => picture).join(" "));
    if (left !== right) throw new Error(`emoji differ: ${left} and ${right}`);
    await Promise.all([a.confirm(), b.confirm()]);
    await Promise.all(runs);
    await until("both are done", () => request.phase === VerificationPhase.Done && theirs.phase === VerificationPhase.Done);
    asked.request = undefined;
    return left;
}

export { sdk, VerificationRequestEvent };
