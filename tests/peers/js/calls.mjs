// A call between two Chromiums through a relay alone: run by ../calls.py, which starts the server and the relay.
import { chromium } from "playwright-core";
import { enter, sdk, until } from "./client.mjs";
import { site, switches } from "./site.mjs";
import { check, say } from "./steps.mjs";

async function main() {
    const base = process.env.SNUG_BASE;
    const [alice, bob] = await Promise.all(["alice", "bob"].map((user) => enter(base, "register", user, "correct horse", "browser")));
    const [hers, his] = [alice, bob].map((session) => sdk.createClient({ baseUrl: base, accessToken: session.access_token, userId: session.user_id }));
    const { room_id } = await hers.createRoom({ invite: [bob.user_id], preset: "trusted_private_chat" });
    await his.joinRoom(room_id);

    const url = await site("call");
    const browser = await chromium.launch({ ...switches, args: [...switches.args, "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"] });
    const [left, right] = await Promise.all([alice, bob].map(async (session) => {
        const page = await (await browser.newContext({ permissions: ["microphone"] })).newPage();
        page.on("console", (m) => ["error", "warning"].includes(m.type()) && console.error(`${session.user_id}: ${m.text().slice(0, 500)}`));
        await page.goto(`${url}call.html?${new URLSearchParams({ server: base, ...session })}`);
        const [relay] = await page.evaluate(() => window.start());
        check(relay?.urls[0] === process.env.RELAY && relay.credential, `${session.user_id}'s page is given the relay: ${relay?.urls[0]}`);
        return page;
    }));
    await left.evaluate((room) => window.place(room), room_id);
    const look = (page) => page.evaluate(() => window.look());
    for (const page of [left, right]) {
        const seen = await until("sound arrives", async () => {
            const seen = await look(page);
            return seen.state === "connected" && seen.packets > 50 && seen.ways ? seen : undefined;
        });
        check(seen.ways.join() === "relay,relay", `sound arrives (${seen.packets} packets) through the relay at both ends`);
    }
    await left.evaluate(() => window.hangUp());
    await until("the other side sees the end", async () => (await look(right)).state === "ended");
    say("ok    and the call ends for both");
    await browser.close();
}

main().then(
    () => process.exit(0),
    (error) => {
        say(`FAILED ${error.stack}`);
        process.exit(1);
    },
);
