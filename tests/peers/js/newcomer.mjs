// What a newcomer does in a browser, a step at a time: run by ../newcomer.py with the name of the step.
import "./older-node.mjs";
import fs from "node:fs";
import { execFileSync } from "node:child_process";
import path from "node:path";
import { chromium } from "playwright-core";
import { enter, sdk } from "./client.mjs";
import { add, api, backUpNow, base, check, choose, firstAccount, must, password, removeRoom, root, says, server, signIn, visitor, wrong } from "./pages.mjs";
import { switches } from "./site.mjs";
import { say } from "./steps.mjs";
import { talk, withMicrophone } from "./talk.mjs";

const { FIRST: first, RELAY: relay, LAB_DIR: dir } = process.env;
// The authority of a test is believed by its key; a browser at home believes the real one by itself.
const believed = process.env.SPKI ? [`--ignore-certificate-errors-spki-list=${process.env.SPKI}`] : [];
const launch = async () => chromium.launch({ ...switches, args: [...switches.args, ...believed] });

/** Reads a QR code from a picture of the page, as a phone's camera does. */
async function scanned(page) {
    const picture = path.join(dir, "code.png");
    await page.locator("svg.qr").screenshot({ path: picture });
    const found = execFileSync("zbarimg", ["--quiet", "--raw", picture], { encoding: "utf8" }).trim();
    fs.unlinkSync(picture);
    return found;
}

const session = async (user) => await enter(base, "login", user, password, "A phone");
const client = (session) => sdk.createClient({ baseUrl: base, accessToken: session.access_token, userId: session.user_id });

const steps = {
    /** The link of the first start, then the sign-in to the page. */
    async account() {
        const browser = await launch();
        const page = await visitor(browser);
        await firstAccount(page, first, "anna");
        await page.click('a:text-is("Look after this server")');
        await signIn(page, "anna");
        check(page.url() === root && await says(page, "Memory"), "and its owner signs in to the page");
        await browser.close();
    },

    /** Somebody with a phone, who reads the QR code off the screen. */
    async person() {
        const browser = await launch();
        const admin = await visitor(browser, { viewport: { width: 1280, height: 860 } });
        await signIn(admin, "anna");
        await add(admin, "bert");
        const link = await scanned(admin);
        check(link === (await admin.textContent("#link")).trim(), `the QR code on the screen is the link: ${link.replace(/[^/]+$/, "…")}`);
        const phone = await visitor(browser, { isMobile: true, hasTouch: true });
        await phone.goto(link);
        check(await says(phone, `@bert:${server}`), "the phone opens it");
        await choose(phone);
        check(await says(phone, "Your user name is bert"), "bert has chosen a password");
        check((await api("POST", "/login", { type: "m.login.password", identifier: { type: "m.id.user", user: "bert" }, password })).status === 200, "and logs in with an app");
        await browser.close();
    },

    /** Both talk in a room, and then in a call. */
    async call() {
        const both = [await session("anna"), await session("bert")];
        const [hers, his] = both.map(client);
        const { room_id } = await hers.createRoom({ name: "Kitchen", invite: [both[1].user_id], preset: "trusted_private_chat" });
        await his.joinRoom(room_id);
        await hers.sendTextMessage(room_id, "Who has seen the cat?");
        await his.sendTextMessage(room_id, "She is on the stove.");
        const browser = await chromium.launch(withMicrophone(believed));
        await talk(browser, base, both, room_id, relay);
        await browser.close();
        // Something that takes space, for later.
        const { room_id: old } = await hers.createRoom({ name: "Moving house" });
        const { access_token: token } = both[0];
        for (let n = 0; n < 400; n++) {
            const body = `Box ${n}: ${[...crypto.getRandomValues(new Uint8Array(20_000))].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
            await must("PUT", `/rooms/${encodeURIComponent(old)}/send/m.room.message/${n}`, { msgtype: "m.text", body }, token);
        }
        say(`ok    ${room_id} has messages, and ${old} has 400 long ones`);
    },

    async backup() {
        const browser = await launch();
        const admin = await visitor(browser);
        await signIn(admin, "anna");
        await backUpNow(admin);
        check(await says(admin, "backup"), "a backup is made by the button, and read back");
        await browser.close();
    },

    /** Elsewhere: both log in, and what they wrote is there. */
    async there() {
        const bert = await session("bert");
        const [room, ...others] = (await must("GET", "/joined_rooms", undefined, bert.access_token)).joined_rooms;
        check(room && others.length === 0, "bert is in his room");
        const newest = async (who, limit) => await must("GET", `/rooms/${encodeURIComponent(room)}/messages?dir=b&limit=${limit}`, undefined, who.access_token);
        const read = await newest(bert, 50);
        const bodies = read.chunk.map((event) => event.content.body).filter(Boolean);
        check(["She is on the stove.", "Who has seen the cat?"].every((body) => bodies.includes(body)), "and reads what was said before the backup");
        await client(bert).sendTextMessage(room, "We are back.");
        check((await newest(await session("anna"), 1)).chunk[0].content.body === "We are back.", "and writes, which anna reads");
    },

    /** The old room goes, on the page. */
    async purge() {
        const browser = await launch();
        const admin = await visitor(browser);
        await signIn(admin, "anna");
        await admin.goto(`${root}rooms/?find=Moving`);
        await admin.click("a.row");
        const room = decodeURIComponent(admin.url().split("/of/")[1]);
        await removeRoom(admin, room, "One person here leaves it first");
        say(`ok    ${(await admin.textContent("#purging")).replace(/\s+/g, " ").trim()}`);
        await browser.close();
    },
};

steps[process.argv[2]]().then(
    () => {
        if (wrong.length) say(`FAILED a page complained: ${wrong.join("; ")}`);
        process.exit(wrong.length ? 1 : 0);
    },
    (error) => {
        say(`FAILED ${error.stack}`);
        process.exit(1);
    },
);
