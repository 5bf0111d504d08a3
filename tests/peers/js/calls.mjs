// A call between two Chromiums through a relay alone: run by ../calls.py, which starts the server and the relay, in the server or beside it.
import { chromium } from "playwright-core";
import { enter, sdk, until } from "./client.mjs";
import { packaged } from "./site.mjs";
import { check, say } from "./steps.mjs";
import { talk, withMicrophone } from "./talk.mjs";

async function main() {
    const base = process.env.SNUG_BASE;
    const [alice, bob] = await Promise.all(["alice", "bob"].map((user) => enter(base, "register", user, "correct horse", "browser")));
    const [hers, his] = [alice, bob].map((session) => sdk.createClient({ baseUrl: base, accessToken: session.access_token, userId: session.user_id }));
    const { room_id } = await hers.createRoom({ invite: [bob.user_id], preset: "trusted_private_chat" });
    await his.joinRoom(room_id);

    const browser = await chromium.launch(withMicrophone());
    await talk(browser, base, [alice, bob], room_id, process.env.RELAY);
    if (process.env.LIVEKIT && process.env.SERVER !== "synapse") await elementCall(browser, alice, room_id); // Synapse leaves tokens to another program
    await browser.close();
}

/** Element Call's own page finds where the group call is, and gets a token for it. There is no media server behind the address. */
async function elementCall(browser, session, room) {
    const homeserver = { base_url: process.env.SNUG_BASE, server_name: process.env.SNUG_NAME };
    const url = await packaged("@element-hq/element-call-embedded/dist", { default_server_config: { "m.homeserver": homeserver } });
    const page = await (await browser.newContext({ permissions: ["microphone", "camera"] })).newPage();
    const asked = [];
    page.on("console", (m) => console.log(`element call: ${m.text().slice(0, 500)}`));
    page.on("response", (answer) => asked.push([answer.url(), answer.status(), answer]));
    const sockets = [];
    page.on("websocket", (socket) => sockets.push(socket.url()));
    await page.addInitScript((kept) => localStorage.setItem("matrix-auth-store", kept), JSON.stringify({ ...session, passwordlessUser: false }));
    await page.goto(`${url}room/#?roomId=${encodeURIComponent(room)}&viaServers=${process.env.SNUG_NAME}`);
    await page.click("button:has-text(\"Join call\")");
    await until("it asks where calls meet", () => asked.some(([url, status]) => url.includes("rtc/transports") && status === 200));
    say("ok    Element Call asks the server where calls meet");
    const [at, , token] = await until("it gets a token", () => asked.find(([url, status]) => /\/(sfu\/get|get_token)$/.test(url) && status === 200));
    const { url: media, jwt } = await token.json();
    const grant = JSON.parse(Buffer.from(jwt.split(".")[1], "base64url"));
    check(media === process.env.LIVEKIT && grant.video.roomJoin && grant.video.room, `and gets a token for ${media} from ${new URL(at).pathname}`);
    await until("it knocks at the media server", () => sockets.some((socket) => socket.startsWith(media)));
    say("ok    with which it knocks at the media server");
}

main().then(
    () => process.exit(0),
    (error) => {
        say(`FAILED ${error.stack}`);
        process.exit(1);
    },
);
