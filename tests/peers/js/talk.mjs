// A call between two Chromium pages through a relay alone, in a room that both are in: for calls.mjs and newcomer.mjs.
import { until } from "./client.mjs";
import { site, switches } from "./site.mjs";
import { check, say } from "./steps.mjs";

/** More switches for Chromium: a microphone that is none. */
export const withMicrophone = (more = []) => ({ ...switches, args: [...switches.args, "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", ...more] });

/** The one whose session is first calls the other; both must be given `relay`, the address of a relay. */
export async function talk(browser, base, sessions, room, relay) {
    const url = await site("call");
    const [left, right] = await Promise.all(sessions.map(async (session) => {
        const page = await (await browser.newContext({ permissions: ["microphone"] })).newPage();
        page.on("console", (m) => ["error", "warning"].includes(m.type()) && console.error(`${session.user_id}: ${m.text().slice(0, 500)}`));
        await page.goto(`${url}call.html?${new URLSearchParams({ server: base, ...session })}`);
        const [given] = await page.evaluate(() => window.start());
        check(given?.urls[0] === relay && given.credential, `${session.user_id}'s page is given the relay: ${given?.urls[0]}`);
        return page;
    }));
    await left.evaluate((room) => window.place(room), room);
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
}
