// Ketesa, the page for administrators of Synapse, in headless Chromium: run by ../ketesa.py, which starts the server.
import path from "node:path";
import { chromium } from "playwright-core";
import { serve, switches } from "./site.mjs";
import { say } from "./steps.mjs";

const { SNUG_BASE: base, KETESA: folder, SHOTS: shots, PEOPLE: people } = process.env;
const check = (holds, what) => {
    if (!holds) throw new Error(`NOT SO: ${what}`);
    say(`ok    ${what}`);
};
const root = await serve((name) => ({ file: path.join(folder, name === "/" ? "index.html" : name) }));
const browser = await chromium.launch(switches);
const page = await (await browser.newContext({ viewport: { width: 1280, height: 1000 }, locale: "en-GB" })).newPage();
const refused = [], asked = new Set();
page.on("response", (answer) => {
    const url = new URL(answer.url());
    if (!url.href.startsWith(base)) return;
    asked.add(`${answer.request().method()} ${url.pathname.replace(/(%40|@|!|%21|%23|%24)[^/]*/g, "ID")}`);
    if (answer.status() >= 400) refused.push(`${answer.request().method()} ${url.pathname}${url.search} answered ${answer.status()}`);
});
page.on("pageerror", (error) => refused.push(error.message));
let number = 0;
const shot = async (name) => shots && (await page.screenshot({ path: path.join(shots, `${String(++number).padStart(2, "0")}-${name}.png`) }));
const sees = async (text, what) => {
    try {
        await page.getByText(text, { exact: false }).first().waitFor({ timeout: 20000 });
    } catch (error) {
        await shot("missing");
        throw new Error(`NOT SO: ${what}: ${(await page.textContent("body")).slice(0, 600)}`);
    }
    say(`ok    ${what}`);
};
const go = async (to, name) => {
    await page.goto(`${root}#/${to}`);
    await page.waitForLoadState("networkidle");
    await shot(name);
};

await page.goto(root);
await page.waitForLoadState("networkidle");
await page.fill('input[name="base_url"]', base);
await page.locator('input[name="base_url"]').blur();
await page.waitForTimeout(1500);
await page.fill('input[name="username"]', "root");
await page.fill('input[name="password"]', "correct horse");
await shot("login");
await page.click('button[type="submit"]');
await sees("alice", "Ketesa logs in, and lists accounts");
await shot("users");
const boxed = async () => await page.locator("tbody tr").count();
check((await boxed()) === Number(people), `all ${people} accounts are on its page`);
await page.getByText("@alice", { exact: false }).first().click();
await sees("Devices", "an account's page");
await page.waitForLoadState("networkidle");
await page.getByRole("tab").first().waitFor();
await shot("user");
for (const tab of ["Devices", "Connections", "Media", "Rooms", "Pushers", "Experimental", "Limits", "Account Data"]) {
    const found = page.getByRole("tab", { name: tab, exact: false }).first();
    if (!(await found.count())) continue;
    await found.click();
    await page.waitForLoadState("networkidle");
    await shot(tab);
    say(`ok    its tab ${tab}`);
}
await go("rooms", "rooms");
await sees("Tea", "the list of rooms");
await page.getByText("Tea", { exact: false }).first().click();
await sees("Members", "a room's page");
await page.waitForLoadState("networkidle");
await page.getByRole("tab").first().waitFor();
for (const tab of ["Members", "Media", "State", "Forward", "Messages", "Hierarchy"]) {
    const found = page.getByRole("tab", { name: tab, exact: false }).first();
    if (!(await found.count())) continue;
    await found.click();
    await page.waitForLoadState("networkidle");
    await shot(`room-${tab}`);
    say(`ok    its tab ${tab}`);
}
for (const [to, text] of [["reports", "@root"], ["user_media_statistics", "alice"], ["registration_tokens", "opensesame"], ["destinations", ""], ["room_directory", "Tea"], ["scheduled_tasks", ""], ["database_room_statistics", ""]]) {
    await go(to, to);
    if (text) await sees(text, `the page ${to}`);
}
await go("rooms", "rooms-again");
await page.locator("tbody tr", { hasText: "Doomed" }).locator('input[type="checkbox"]').first().check();
await shot("checked");
await page.getByRole("button", { name: "Delete", exact: true }).click();
await shot("delete");
await page.getByRole("button", { name: /confirm|delete/i }).last().click();
let left = true;
for (let tries = 0; left && tries < 30; tries++) {
    await page.waitForTimeout(1000);
    await page.reload();
    await sees("Tea", "the list of rooms again");
    left = (await page.locator("tbody").textContent()).includes("Doomed");
}
await shot("rooms-after");
check(!left, "the room that was deleted is gone");
await browser.close();
say(`-- it asked ${asked.size} kinds of things`);
// What a server may not have: discovery, logging in elsewhere; and two counts that Snug does not keep.
const known = /well-known|auth_metadata|sent_invite_count|cumulative_joined_room_count/;
const wrong = refused.filter((one) => !known.test(one));
check(wrong.length === 0, `nothing else was refused: ${wrong.join("; ")}`);
process.exit(0);
