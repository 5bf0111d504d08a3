// What an app's menus ask for beyond chat, by matrix-js-sdk: each part takes two people. Used by menus.mjs, in Node and in a browser.
import { Device, enter, patient, sdk, until } from "./client.mjs";

const refused = async (work) => {
    try {
        await work;
    } catch (error) {
        return error.errcode;
    }
    return "nothing refused it";
};

/** Width and height of a PNG or a JPEG. */
function size(bytes) {
    const look = new DataView(bytes.buffer, bytes.byteOffset);
    if (look.getUint32(0) === 0x89504e47) return `${look.getUint32(16)}x${look.getUint32(20)}`;
    for (let at = 2; at < bytes.length; at += 2 + look.getUint16(at + 2)) {
        if (bytes[at + 1] >= 0xc0 && bytes[at + 1] <= 0xc2) return `${look.getUint16(at + 7)}x${look.getUint16(at + 5)}`;
    }
    throw new Error("neither a PNG nor a JPEG");
}

/**
 * All parts, one after the other. `lab` has the server's `base` and `name`, what people's names end with, how a step is `said`, a
 * `logger(name)`, and a `site` with a page and pictures. Gives the names of the parts that failed.
 */
export async function menus(lab) {
    const { base } = lab, password = "correct horse";
    const say = (text) => lab.said(text);
    function check(condition, text) {
        if (!condition) throw new Error("NOT SO: " + text);
        say("ok    " + text);
    }
    async function device(how, user, name) {
        const session = await enter(base, how, user + lab.people, password, name);
        const made = new Device(base, session, password, lab.logger(`${user} ${name}`), `${user}'s ${name}`);
        await made.start({ lazyLoadMembers: true }, lab.crypto?.(session));
        return made;
    }

    async function room(alice, bob, more) {
        const { room_id } = await alice.client.createRoom({ invite: [bob.session.user_id], ...more });
        await bob.join(room_id);
        await until("alice sees her room", () => alice.room(room_id));
        return room_id;
    }

    async function search(alice, bob) {
        const kitchen = await room(alice, bob, { name: "Kitchen" });
        for (const text of ["The soup is ready", "Who wants bread?", "Grüße aus der Küche", "More soup for BOB"]) await alice.send(kitchen, text);
        const find = (who, term, filter) => who.client.searchRoomEvents({ term, filter });
        const texts = (found) => found.results.map((r) => r.context.getEvent().getContent().body).sort();
        check(texts(await find(bob, "soup")).join() === "More soup for BOB,The soup is ready", "a word is found by who is in the room");
        check(texts(await find(bob, "küche")).length === 1 && texts(await find(bob, "bob")).length === 1, "whatever its case, in every language");
        check(texts(await find(bob, "soup bread")).length === 0, "all words of a search must be there");
        const stranger = await device("register", "carol", "phone");
        check((await find(stranger, "soup")).count === 0, "and it is not found by who is not");
        await until("the user directory finds bob by half his name", async () =>
            (await alice.client.searchUserDirectory({ term: "bo" })).results.some((u) => u.user_id === bob.session.user_id));
        const gone = await alice.send(kitchen, "unsayable words");
        await until("the words are found", async () => (await find(bob, "unsayable")).results.length === 1);
        await alice.client.redactEvent(kitchen, gone);
        await until("redacted words are not found any more", async () => (await find(bob, "unsayable")).results.length === 0);
        for (let i = 0; i < 25; i++) await alice.send(kitchen, `needle ${i}`);
        const many = await find(bob, "needle");
        const first = many.results.length;
        while (many.next_batch) await bob.client.backPaginateRoomEventsSearch(many);
        check(first < 25 && many.results.length === 25 && many.count === 25, `more than a page is paged: ${first}, in the end ${many.results.length} of ${many.count}`);
        stranger.stop();
    }

    async function spaces(alice, bob) {
        const { room_id: space } = await alice.client.createRoom({ name: "House", preset: "public_chat", creation_content: { type: "m.space" } });
        const garden = await alice.client.createRoom({ name: "Garden", topic: "What grows", preset: "public_chat" });
        const cellar = await alice.client.createRoom({ name: "Cellar", preset: "private_chat" });
        const via = [lab.name];
        await alice.client.sendStateEvent(space, "m.space.child", { via, order: "b" }, garden.room_id);
        await alice.client.sendStateEvent(space, "m.space.child", { via, order: "a", suggested: true }, cellar.room_id);
        const names = (page) => page.rooms.map((r) => r.name).join();
        check(names(await alice.client.getRoomHierarchy(space)) === "House,Cellar,Garden", "a space opens, its rooms in order");
        check(names(await bob.client.getRoomHierarchy(space)) === "House,Garden", "without rooms that bob may not know of");
        const page = await alice.client.getRoomHierarchy(space, 2);
        check(names(await alice.client.getRoomHierarchy(space, 2, undefined, false, page.next_batch)) === "Garden", "page by page");
        const summary = await bob.client.getRoomSummary(garden.room_id, via);
        check(summary.name === "Garden" && summary.topic === "What grows" && summary.num_joined_members === 1, "a room has a summary before one joins");
        check((await bob.client._unstable_getSharedRooms(alice.session.user_id)).length === 1, "and both know which rooms they share");
        const at = await alice.client.timestampToEvent(garden.room_id, Date.now(), "b");
        check(at.event_id.startsWith("$"), "a date leads to an event");
    }

    async function fetched(who, url) {
        const answer = await fetch(url, { headers: { authorization: `Bearer ${who.session.access_token}` } });
        if (!answer.ok) throw new Error(`${url} answered ${answer.status} ${await answer.text()}`);
        return new Uint8Array(await answer.arrayBuffer());
    }

    async function pictures(alice) {
        const whole = new Uint8Array(await (await fetch(`${lab.site}sunset.png`)).arrayBuffer());
        const { content_uri } = await alice.client.uploadContent(new Blob([whole], { type: "image/png" }), { name: "sunset.png", type: "image/png" });
        const at = (...size) => alice.client.mxcUrlToHttp(content_uri, ...size, false, true, true);
        check((await fetched(alice, at(undefined, undefined, undefined))).every((byte, i) => byte === whole[i]), "a picture comes back as it was");
        const small = await fetched(alice, at(320, 240, "scale"));
        check(size(small) === "320x213" && small.length < whole.length, `and as a thumbnail of ${size(small)}, ${small.length} bytes of ${whole.length}`);
        check(size(await fetched(alice, at(96, 96, "crop"))) === "96x96", "and cropped to a square");
        const made = await alice.client.http.authedRequest(sdk.Method.Post, "/create", undefined, undefined, { prefix: "/_matrix/media/v1" });
        const late = fetched(alice, alice.client.mxcUrlToHttp(made.content_uri, undefined, undefined, undefined, false, true, true));
        const answer = await fetch(`${base}/_matrix/media/v3/upload/${made.content_uri.slice(6)}`, {
            method: "PUT", body: "later", headers: { authorization: `Bearer ${alice.session.access_token}`, "content-type": "text/plain" },
        });
        check(answer.ok && new TextDecoder().decode(await late) === "later", "a file can be named before it is there, and who asks waits for it");
    }

    async function previews(alice) {
        const shown = await alice.client.getUrlPreview(`${lab.site}recipes.html`, Date.now());
        check(shown["og:title"] === "Bread & soup" && shown["og:description"] === "Two recipes", "a link has a title and a description");
        const url = alice.client.mxcUrlToHttp(shown["og:image"], undefined, undefined, undefined, false, true, true);
        check(size(await fetched(alice, url)) === "300x200" && shown["og:image:width"] === 300, "and its picture is one of the server's");
    }

    async function reports(alice, bob) {
        const hall = await room(alice, bob, { name: "Hall" });
        const rude = await bob.send(hall, "something rude");
        await alice.client.reportEvent(hall, rude, -100, "rude");
        await bob.client.reportRoom(hall, "too loud");
        await bob.client.http.authedRequest(sdk.Method.Post, `/users/${encodeURIComponent(alice.session.user_id)}/report`, undefined, { reason: "reports me" }, { prefix: "/_matrix/client/v3" });
        say("ok    events, rooms and people can be reported");
        const notes = [];
        for (let i = 0; i < 3; i++) notes.push(await bob.send(hall, `note ${i}`));
        await bob.client.sendEvent(hall, "m.reaction", { "m.relates_to": { rel_type: "m.annotation", event_id: notes[0], key: "👍" } });
        await bob.client.redactEvent(hall, notes[0], undefined, { with_rel_types: ["*"] });
        await until("a redaction takes the reactions along", async () => {
            const { chunk } = await bob.client.createMessagesRequest(hall, null, 20, "b");
            return chunk.filter((e) => e.type === "m.reaction").every((e) => e.unsigned?.redacted_because);
        });
    }

    async function presence(alice, bob) {
        await until("alice sees that she herself is online", () => alice.client.getUser(alice.session.user_id)?.presence === "online");
        await bob.client.setPresence({ presence: "unavailable", status_msg: "in the garden" });
        // Bob's next sync makes him online again; what he says stays.
        await until("and where bob is", () => alice.client.getUser(bob.session.user_id)?.presenceStatusMsg === "in the garden");
        check((await alice.client.getPresence(bob.session.user_id)).status_msg === "in the garden", "presence is told, and answered");
    }

    async function threads(alice, bob) {
        const hall = await room(alice, bob, { name: "Threads" });
        const root = await alice.send(hall, "root");
        const path = `/rooms/${encodeURIComponent(hall)}/thread/${encodeURIComponent(root)}/subscription`, prefix = { prefix: "/_matrix/client/unstable/io.element.msc4306" };
        await bob.client.http.authedRequest(sdk.Method.Put, path, undefined, {}, prefix);
        check((await bob.client.http.authedRequest(sdk.Method.Get, path, undefined, undefined, prefix)).automatic === false, "a thread is subscribed to");
        await bob.client.http.authedRequest(sdk.Method.Delete, path, undefined, undefined, prefix);
        check((await refused(bob.client.http.authedRequest(sdk.Method.Get, path, undefined, undefined, prefix))) === "M_NOT_FOUND", "and no more");
    }

    async function later(alice, bob) {
        const hall = await room(alice, bob, { name: "Later" });
        const send = (delay, body) => alice.client._unstable_sendDelayedEvent(hall, { delay }, null, "m.room.message", { msgtype: "m.text", body });
        await send(500, "after half a second");
        await bob.reads(hall, "after half a second");
        const { delay_id } = await send(60_000, "never said");
        check((await alice.client._unstable_getDelayedEvents()).scheduled?.length !== 0, "a delayed event is listed");
        await alice.client._unstable_restartScheduledDelayedEvent(delay_id);
        await alice.client._unstable_cancelScheduledDelayedEvent(delay_id);
        const second = await send(60_000, "said at once");
        await alice.client._unstable_sendScheduledDelayedEvent(second.delay_id);
        await bob.reads(hall, "said at once");
        check(!bob.texts(hall).includes("never said"), "delayed events come late, are restarted, cancelled, or sent at once");
    }

    async function profiles(alice, bob) {
        check(await alice.client.doesServerSupportExtendedProfiles(), "profiles have fields of any name");
        await alice.client.setExtendedProfileProperty("m.tz", "Europe/Berlin");
        check((await bob.client.getExtendedProfileProperty(alice.session.user_id, "m.tz")) === "Europe/Berlin", "bob sees alice's time zone");
        await alice.client.deleteExtendedProfileProperty("m.tz");
        check(!("m.tz" in (await bob.client.getExtendedProfile(alice.session.user_id))), "and that she took it away");
    }

    async function invites(alice, bob) {
        await bob.client.setAccountData("m.invite_permission_config", { default_action: "block" });
        const invite = alice.client.createRoom({ name: "Unwanted" }).then(({ room_id }) => alice.client.invite(room_id, bob.session.user_id));
        check((await refused(invite)) === "M_INVITE_BLOCKED", "invites can be blocked");
        await bob.client.setAccountData("m.invite_permission_config", {});
    }

    async function sessions(alice, bob) {
        const { login_token } = await alice.authenticate((auth) => alice.client.requestLoginToken(auth ?? undefined));
        const client = sdk.createClient({ baseUrl: base });
        const session = await client.loginRequest({ type: "m.login.token", token: login_token, refresh_token: true });
        check(session.user_id === alice.session.user_id && session.refresh_token, "a device lets another one in by a token");
        const fresh = await client.refreshToken(session.refresh_token);
        const tablet = sdk.createClient({ baseUrl: base, accessToken: fresh.access_token, userId: session.user_id, deviceId: session.device_id });
        check((await tablet.whoami()).device_id === session.device_id, "and its session is refreshed");
        await tablet.logout();
        const whois = await bob.client.http.authedRequest(sdk.Method.Get, `/admin/whois/${encodeURIComponent(bob.session.user_id)}`, undefined, undefined, { prefix: "/_matrix/client/v3" });
        check(whois.user_id === bob.session.user_id && whois.devices, "one may ask where one is logged in");
        check(Object.keys(await bob.client.getThirdpartyProtocols()).length === 0, "there are no bridges yet, and that is said");
    }

    async function guests(alice) {
        const { room_id } = await alice.client.createRoom({
            name: "Window", preset: "public_chat",
            initial_state: [
                { type: "m.room.history_visibility", state_key: "", content: { history_visibility: "world_readable" } },
                { type: "m.room.guest_access", state_key: "", content: { guest_access: "can_join" } },
            ],
        });
        await alice.send(room_id, "look in");
        const session = await patient(() => sdk.createClient({ baseUrl: base }).registerGuest());
        const guest = sdk.createClient({ baseUrl: base, userId: session.user_id, accessToken: session.access_token, deviceId: session.device_id, logger: lab.logger("guest") });
        guest.setGuest(true);
        const seen = await guest.peekInRoom(room_id);
        check(seen.getLiveTimeline().getEvents().some((e) => e.getContent().body === "look in"), "a guest looks into a room");
        guest.stopPeeking();
        await guest.joinRoom(room_id);
        await guest.sendTextMessage(room_id, "hello from outside");
        await alice.reads(room_id, "hello from outside");
        check((await refused(guest.createRoom({ name: "Mine" }))) === "M_GUEST_ACCESS_FORBIDDEN", "joins it, talks, and makes no rooms");
        await alice.client.sendStateEvent(room_id, "m.room.guest_access", { guest_access: "forbidden" }, "");
        await until("the guest's stay ends with guest access", () => alice.room(room_id).getMember(session.user_id)?.membership === "leave");
    }

    async function calls(alice) {
        const turn = await alice.client.turnServer();
        check(turn.uris[0] === "turn:turn.example.org" && turn.username && turn.password && turn.ttl > 0, "an app is given the relay");
        const token = await alice.client.getOpenIdToken();
        check(token.access_token && token.matrix_server_name === lab.name, "and a token that says who one is");
        const [transport] = await alice.client._unstable_getRTCTransports();
        check(transport.type === "livekit" && transport.livekit_service_url, `and where group calls meet: ${transport.livekit_service_url}`);
    }

    const alice = await device("register", "alice", "phone");
    const bob = await device("register", "bob", "phone");
    const failed = [];
    for (const part of [search, spaces, pictures, previews, reports, presence, threads, later, profiles, invites, sessions, guests, calls]) {
        await part(alice, bob).catch((error) => {
            failed.push(part.name);
            say(`FAILED ${part.name}: ${error.stack} ${JSON.stringify(error.data) ?? ""}`);
        });
    }
    return failed;
}
