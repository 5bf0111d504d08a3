// The administrators' page in headless Chromium: run by ../page.py, which starts the server.
import fs from "node:fs";
import { chromium } from "playwright-core";
import { switches } from "./site.mjs";
import { add, api, backUpNow, base, check, choose, firstAccount, isRemoved, login, must, password, press, removeRoom, root, says, server, signIn, visitor, wrong } from "./pages.mjs";
import { say } from "./steps.mjs";

const { FIRST: first, SHOTS: shots } = process.env;
/** The figures of a page: at most so long on its way, in the middle of its loads, and so large. */
const MS_MAX = 50, BYTES_MAX = 256 * 1024;

/** The whole way of a person: added, comes by link, is locked and unlocked, made an administrator, closed. */
async function person(browser, admin, name, options) {
    await admin.goto(`${root}people/add`);
    await admin.fill("#name", "No Such Name");
    await press(admin, "Make the account");
    check(await admin.locator("#name-wrong").count() === 1, "a name that cannot be is refused, and says why");
    await add(admin, name);
    const link = (await admin.textContent("#link")).trim();
    check(link.startsWith(`${base}/_snug/password/`), `${name} was made, and has a link`);
    check(await admin.locator("svg.qr path").count() === 1, "the link is there as a QR code");

    const guest = await visitor(browser, options);
    await guest.goto(link);
    check(await says(guest, `@${name}:${server}`), "the link says whose it is");
    await guest.fill("#password", "short1");
    await guest.evaluate(() => document.querySelectorAll("input").forEach((input) => input.removeAttribute("minlength"))).catch(() => {});
    if (options?.javaScriptEnabled !== false) {
        await guest.fill("#again", "short1");
        await guest.click("form button");
        check(await says(guest, "at least 8 characters"), "a short password is refused");
    }
    await choose(guest);
    check(await says(guest, "Your user name is " + name), `${name} has chosen a password`);
    await guest.goto(link);
    check(await says(guest, "This link has ended"), "the link works once");
    const session = await login(name, password);
    check(session.status === 200, `${name} logs in with an app`);
    const whoami = async () => (await api("GET", "/account/whoami", null, session.body.access_token)).status;

    const its = `${root}people/of/${name}`;
    await signIn(guest, name);
    check(await says(guest, "this page is for administrators"), "who is no administrator is told so");
    await admin.goto(`${root}people/?find=${name}`);
    await admin.click("a.row");
    check(admin.url() === its && await says(admin, "Apps and devices"), `${name} is found by name`);
    await press(admin, "Lock");
    check(await says(admin, "is locked") && await whoami() === 401, "locked: the app can do nothing");
    await press(admin, "Unlock");
    check(await whoami() === 200, "unlocked: the app goes on");
    await press(admin, "Suspend");
    check((await api("POST", "/createRoom", {}, session.body.access_token)).status === 403, "suspended: the app may not make a room");
    await press(admin, "Let write again");
    const room = async (size) => {
        await admin.fill("input[name=size]", size);
        await press(admin, "Change");
    };
    const upload = async () => (await fetch(`${base}/_matrix/media/v3/upload`, {
        method: "POST", body: "x".repeat(2000), headers: { authorization: `Bearer ${session.body.access_token}` },
    })).status;
    await room("1 KiB");
    check(await says(admin, "of 1.0 KiB") && await upload() === 403, "its files may take a kilobyte, and two are refused");
    await room("unlimited");
    check(await says(admin, "as much as there is room for") && await upload() === 200, "they may take what there is room for");
    await room("");
    check(await says(admin, "which is the usual"), "and again what everybody's may");
    await press(admin, "Make an administrator");
    await signIn(guest, name);
    check(guest.url() === root, "an administrator signs in");
    await press(admin, "Make an ordinary account");
    await guest.goto(root);
    check(guest.url().startsWith(`${root}sign-in`), "who is none any more is out at once");
    await admin.goto(its);
    await press(admin, "Log out");
    check(await whoami() === 401, "a session that was ended here is over");
    await press(admin, "Make a link");
    const again = (await admin.textContent("#link")).trim();
    await guest.goto(again);
    await choose(guest, "another horse");
    check((await login(name, password)).status === 403 && (await login(name, "another horse")).status === 200, "a reset password is another one");
    await admin.goto(its);
    await admin.click('main a:text-is("Close the account…")');
    check(await says(admin, "This cannot be undone"), "closing an account is asked again");
    await press(admin, "Close it for good");
    check(await says(admin, "closed for good") && (await login(name, "another horse")).status === 403, `${name} is closed`);
    await guest.context().close();
}

async function forged(admin) {
    const cookies = (await admin.context().cookies()).map((cookie) => `${cookie.name}=${cookie.value}`).join("; ");
    await admin.goto(`${root}people/of/anna`);
    const token = await admin.getAttribute('input[name="token"]', "value");
    const post = async (fields, headers = {}) => {
        const answer = await fetch(`${root}people/of/anna`, {
            method: "POST", redirect: "manual", headers: { cookie: cookies, ...headers }, body: new URLSearchParams({ what: "make-admin", ...fields }),
        });
        return answer.status;
    };
    check(await post({}) === 403, "a form without the token is refused");
    check(await post({ token: token.replace(/./g, "0") }) === 403, "and with another token");
    check(await post({ token }, { "sec-fetch-site": "cross-site" }) === 403, "and from a page of another site");
    check(await post({ token }) === 303, "and taken as it should be");
    check(await post({ token }, { cookie: "snug_page=else" }) === 303, "without a session it leads to the sign-in");
    const other = await visitor(admin.context().browser());
    await other.goto(`${root}people/`);
    check(other.url() === `${root}sign-in?next=people/`, "who is not signed in sees nothing");
    const head = (await fetch(`${root}sign-in`)).headers;
    check(/SameSite=Strict/.test(head.get("set-cookie")) && /HttpOnly/.test(head.get("set-cookie")), "cookies are out of reach of scripts and other sites");
    await other.context().close();
}

async function figures(admin, paths) {
    for (const path of paths) {
        const times = [];
        let bytes = 0;
        for (let n = 0; n < 9; n++) {
            const began = performance.now();
            const answer = await admin.context().request.get(root + path);
            bytes = (await answer.body()).length;
            times.push(performance.now() - began);
        }
        const ms = times.sort((a, b) => a - b)[4];
        check(bytes <= BYTES_MAX, `/${path}: ${(bytes / 1024).toFixed(1)} KiB, ${ms.toFixed(1)} ms${ms > MS_MAX ? " (MORE THAN 50)" : ""}`);
    }
}

/** Somebody of another server comes into a room, and that server goes away for good. */
async function gone(join) {
    const { OTHER: there, OTHER_PID: pid } = process.env;
    const { access_token: token } = await must("POST", "/register", { username: "aunt", password, auth: { type: "m.login.dummy" } }, undefined, there);
    await must("POST", join, {}, token, there);
    process.kill(Number(pid), "SIGTERM");
}

/** A house that is lived in: people, rooms with long names, messages, files, reports, and a server that is gone. Gives the paths of its pages. */
async function live() {
    const device = { initial_device_display_name: "Element X on Anna's phone, the old one with the cracked glass" };
    const enter = async (user) => must("POST", "/login", { type: "m.login.password", identifier: { type: "m.id.user", user }, password, ...device });
    const anna = (await enter("anna")).access_token;
    const people = {};
    for (const [name, shown] of [["grandmother", "Großmutter Ägidia"], ["theodora", "Theodora von Hohenlohe-Schillingsfürst und zu Ratibor"], ["tom", "Tom 🦔"], ["kim", "Kim"]]) {
        const { access_token: token } = await must("POST", "/register", { username: name, password, auth: { type: "m.login.dummy" }, ...device });
        await must("PUT", `/profile/@${name}:${server}/displayname`, { displayname: shown }, token);
        people[name] = token;
    }
    await must("PUT", `/profile/@anna:${server}/displayname`, { displayname: "Anna" }, anna);
    const rooms = [];
    const named = [
        ["Kitchen", { topic: "Who cooks, who shops, and where the good knife is" }, Object.keys(people)],
        ["The committee for the summer festival of the allotment garden association, working group on lanterns", { topic: "Lanterns. ".repeat(60) }, ["theodora", "tom"]],
        ["Garten & Bäume 🌳", { preset: "public_chat", room_alias_name: "garten" }, ["grandmother"]],
        ["Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft", {}, ["kim"]],
        ["", {}, ["tom"]],
    ];
    for (const [name, more, who] of named) {
        const invite = who.map((one) => `@${one}:${server}`);
        const { room_id: room } = await must("POST", "/createRoom", { ...(name && { name }), invite, ...more }, anna);
        for (const one of who) await must("POST", `/join/${room}`, {}, people[one]);
        rooms.push(room);
    }
    const send = async (room, token, body) => (await must("PUT", `/rooms/${room}/send/m.room.message/${Math.random()}`, { msgtype: "m.text", body }, token)).event_id;
    for (let n = 0; n < 20; n++) await send(rooms[n % 3], anna, `Who has seen the cat? ${"Not me. ".repeat(n)}`);
    for (let n = 0; n < 3; n++) {
        const answer = await fetch(`${base}/_matrix/media/v3/upload?filename=cat.png`, {
            method: "POST", headers: { authorization: `Bearer ${anna}`, "content-type": "image/png" }, body: crypto.getRandomValues(new Uint8Array(60_000)),
        });
        if (!answer.ok) throw new Error(`an upload answered ${answer.status}`);
    }
    await gone(`/join/${encodeURIComponent(`#garten:${server}`)}?via=${server}`);
    await send(rooms[2], anna, "Where has the aunt gone?");
    const rude = await send(rooms[0], people.tom, "I ate the last piece of the cake, and I would do it again. <b>Nobody</b> can stop me.");
    await must("POST", `/rooms/${rooms[0]}/report/${rude}`, { reason: "He knows exactly whose birthday it was.", score: -100 }, people.kim);
    await must("POST", `/rooms/${rooms[1]}/report/${await send(rooms[1], people.theodora, "Lanterns are for beginners. ".repeat(12))}`, {}, people.tom);
    await api("POST", `/users/@tom:${server}/report`, { reason: "Cake." }, people.kim);
    // A room that everybody has left.
    const { room_id: left } = await must("POST", "/createRoom", { name: "Moving house 2019" }, anna);
    for (let n = 0; n < 5; n++) await send(left, anna, "Where are the boxes?");
    await must("POST", `/rooms/${left}/leave`, {}, anna);
    return { rooms, left, anna };
}

/** A backup is made on the page, and looked at. Gives the path of its page. */
async function backedUp(admin) {
    await admin.goto(`${root}backups/`);
    check(await says(admin, "Backups are made each day") && await says(admin, "1 backup"), "the schedule has made a backup at the start");
    await backUpNow(admin);
    check(await says(admin, "Backups are made each day") && await says(admin, "2 backups"), "a backup is made on the page, and listed");
    await admin.click("main a.row");
    await press(admin, "Look");
    check(await says(admin, "of it are there"), "all of it is there");
    return admin.url().slice(root.length);
}

/** A setting is changed here: in the file nothing else is, and what cannot be is refused. */
async function settings(admin) {
    const file = () => fs.readFileSync(process.env.CONFIG, "utf8");
    const before = file();
    await admin.goto(`${root}settings/in/rooms`);
    await admin.click('main a[href$="settings/of/rooms.admission"]');
    await admin.check('input[value="ask"]');
    await press(admin, "Save");
    check(await says(admin, "it is in force") && file() === `${before}\n[rooms]\nadmission = "ask"\n`, "a setting is changed, and in force");
    await admin.goto(`${root}settings/of/previews.deny`);
    await admin.fill("#value", "tracker.example\nads.example");
    await press(admin, "Save");
    check(file().endsWith('\n[previews]\ndeny = ["tracker.example", "ads.example"]\n'), "a list is written as one");
    await admin.goto(`${root}settings/of/search.enabled`);
    await admin.check('input[value="false"]');
    await press(admin, "Save");
    check(await says(admin, "with the next start"), "it says what needs a restart");
    await admin.goto(`${root}settings/of/log`);
    await admin.fill("#value", 'loud"\\');
    await press(admin, "Save");
    check(await says(admin, "is not one of error, warn, info") && !file().includes("loud"), "what cannot be is refused, and says why");
    for (const name of ["rooms.admission", "previews.deny", "search.enabled"]) {
        await admin.goto(`${root}settings/of/${name}`);
        await press(admin, "Take it out");
    }
    check(file() === `${before}\n[rooms]\n\n[previews]\n\n[search]\n`, "taken out, the file is as it was");
    for (const name of ["registration_shared_secret", "backup.target", "listen", "page.enabled"]) {
        const answer = await admin.context().request.get(`${root}settings/of/${name}`);
        check(answer.status() === 403, `${name} is not changed here`);
    }
}

/** Rooms are blocked, known here or not, and a server is denied. */
async function keepOut(admin, room) {
    await admin.goto(`${root}rooms/blocked`);
    await admin.fill('input[name="room"]', "not a room");
    await press(admin, "Block");
    check(await says(admin, "is no room's id"), "what is no room's id is not blocked");
    await admin.goto(`${root}rooms/blocked`);
    await admin.fill('input[name="room"]', "!far:away.example");
    await press(admin, "Block");
    check(await says(admin, "!far:away.example") && await says(admin, "This room is blocked"), "a room that nobody here knows is blocked");
    await press(admin, "Unblock");
    check(await says(admin, "No room is blocked"), "and unblocked");
    await admin.goto(`${root}rooms/of/${room}`);
    await press(admin, "Block");
    check(await says(admin, "Nobody of this server comes into it: blocked by @anna"), "a room is blocked on its page");
    await press(admin, "Unblock");
    const file = () => fs.readFileSync(process.env.CONFIG, "utf8");
    const before = file();
    await admin.goto(`${root}servers/`);
    await admin.fill('input[name="server"]', "bad.example");
    await press(admin, "Look");
    await press(admin, "Deny");
    check(await says(admin, "Let it in again") && file().includes('denied_servers = ["bad.example"]'), "a server is denied, and the config file says so");
    await admin.goto(`${root}servers/`);
    check(await says(admin, "Denied bad.example"), "it is listed");
    await admin.goto(`${root}servers/of/bad.example`);
    await press(admin, "Let in");
    check(await says(admin, "Deny it") && file() === before, "and let in again: the file is as it was");
    // For the pictures.
    await press(admin, "Deny");
    await admin.goto(`${root}rooms/of/${room}`);
    await press(admin, "Block");
    await admin.goto(`${root}rooms/blocked`);
    await admin.fill('input[name="room"]', `!${"OGEhHVWSdvArJzumhm".repeat(3)}:away.example`);
    await press(admin, "Block");
}

/** Rooms go, and old messages. */
async function removal(admin, rooms, left) {
    await admin.goto(`${root}rooms/of/${rooms[0]}`);
    await admin.fill('input[name="days"]', "30");
    await press(admin, "Shorten…");
    check(await says(admin, "This cannot be undone"), "shortening a room is asked again");
    await press(admin, "Remove them for good");
    check(await says(admin, "0 messages went"), "what was written today stays");
    await removeRoom(admin, left, "Nobody here is in it");
    check((await admin.context().request.get(`${root}rooms/of/${left}`)).status() === 404, "the room is gone");
    await admin.goto(`${root}rooms/of/${rooms[4]}/remove`);
    check(await says(admin, "The 2 people here who are in it leave it first"), "it says who leaves");
    await press(admin, "Remove it for good");
    await isRemoved(admin);
    check(true, "a room with people in it is removed too");
}

/** Somebody with many tabs: nobody is refused for memory. */
async function crowd(admin) {
    await admin.goto(root);
    const paths = ["", "people/", "rooms/", "settings/in/general", "log", "workers", "backups/", "servers/"];
    const asked = [...paths, ...paths, ...paths].map((path) => admin.context().request.get(root + path));
    const failed = (await Promise.all(asked)).filter((answer) => answer.status() !== 200).map((answer) => answer.status());
    check(failed.length === 0, `${asked.length} pages at once are all shown ${failed}`);
}

async function pictures(browser, paths, roomsSeen) {
    for (const colorScheme of ["light", "dark"])
        for (const width of [390, 1280]) {
            const page = await visitor(browser, { viewport: { width, height: width < 500 ? 844 : 860 }, colorScheme });
            const shoot = (name) => page.screenshot({ path: `${shots}/${name || "home"}-${width}-${colorScheme}.png`, fullPage: true });
            await page.goto(root);
            if (shots) await shoot("sign-in");
            await signIn(page, "anna");
            for (const path of paths) {
                await page.goto(root + path);
                const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
                check(over <= 0, `/${path} fits ${width} px, ${colorScheme}`);
                if (shots) await shoot(path.replace(/![\w-]+/, (room) => ["room", "room-long", "room-left"][roomsSeen.indexOf(room)] ?? room).replace(/\W+/g, "-").replace(/-$/, "").slice(0, 60));
            }
            await page.context().close();
        }
}

async function main() {
    if (shots) fs.mkdirSync(shots, { recursive: true });
    const browser = await chromium.launch(switches);
    const admin = await visitor(browser);
    await firstAccount(admin, first, "anna");
    await admin.click('a:text-is("Look after this server")');
    check(admin.url().startsWith(`${root}sign-in`), "its page leads to this one");
    await signIn(admin, "anna", "wrong horse");
    check(await says(admin, "password is wrong"), "a wrong password is refused");
    await signIn(admin, "anna");
    check(admin.url() === root && await says(admin, "Memory"), "the administrator signs in");
    await admin.waitForFunction(() => document.querySelector("#memory .num"));
    const before = await admin.textContent("#memory");
    await api("GET", "/capabilities");
    await admin.waitForFunction((before) => document.querySelector("#memory").textContent !== before, before, { timeout: 60_000 });
    check(true, "what changes is shown while one looks");

    await forged(admin);
    await person(browser, admin, "bert");
    say("-- without scripts");
    const plain = await visitor(browser, { javaScriptEnabled: false });
    await signIn(plain, "anna");
    check(await says(plain, "Memory"), "signed in without scripts");
    await person(browser, plain, "carl", { javaScriptEnabled: false });
    await plain.click(".tabs summary");
    await plain.click('.tabs .menu button');
    check(plain.url() === `${root}sign-in`, "signed out");
    await plain.goto(root);
    check(plain.url().startsWith(`${root}sign-in`), "and out it is");

    for (const name of ["dora", "emil"]) {
        await add(admin, name);
    }
    await admin.goto(`${root}people/of/dora`);
    await admin.fill("input[name=size]", "750.25 MiB");
    await press(admin, "Change");
    const { rooms, left } = await live();
    const backup = await backedUp(admin);
    await keepOut(admin, encodeURIComponent(rooms[1]));
    const paths = [
        "", "people/", "people/add", "people/of/anna", "people/of/dora", "people/of/dora/close", "people/of/bert", "rooms/", `rooms/of/${rooms[0]}`,
        `rooms/of/${rooms[1]}`, `rooms/of/${left}`, "reports/", "servers/", "servers/of/" + encodeURIComponent(process.env.OTHER_NAME),
        "servers/rooms", "servers/rooms?server=" + server, "backups/", backup, `rooms/of/${left}/remove`, `rooms/of/${rooms[0]}/remove`,
        `rooms/of/${rooms[0]}/shorten?days=30`, "rooms/left", "rooms/blocked", "servers/of/bad.example", "settings/of/federation.denied_servers", "settings/of/rates.joins",
        "settings/of/policies.invite", "settings/of/rooms.admission", "settings/of/rooms.history_days",
        "settings/of/previews.deny", "settings/", "settings/in/general", "settings/in/backup", "workers", "log", "nothing",
    ];
    await figures(admin, paths);
    await pictures(browser, paths, [rooms[0], rooms[1], left]);

    say("-- changes");
    await admin.goto(`${root}servers/rooms`);
    check(await says(admin, process.env.OTHER_NAME), "who looks for rooms is shown the servers that are in rooms with us");
    await admin.goto(`${root}reports/`);
    await press(admin, "Remove the message");
    check(await says(admin, "The message is removed"), "a message that was reported is removed");
    await settings(admin);
    await removal(admin, rooms, left);
    await crowd(admin);

    say("-- guessing");
    const thief = await visitor(browser);
    let slowed = false;
    for (let n = 0; n < 12 && !slowed; n++) {
        await signIn(thief, "emil", `guess ${n}`);
        slowed = await says(thief, "many tries");
    }
    check(slowed, "wrong passwords are slowed down");
    check(wrong.length === 0, `no page complained: ${wrong.join("; ")}`);
    await browser.close();
}

main().then(
    () => process.exit(0),
    (error) => {
        say(`FAILED ${error.stack}`);
        process.exit(1);
    },
);
