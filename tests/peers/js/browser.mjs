// The page of ./page in Chromium, as people use it: run by ../browser.py, which starts the server and kills it when a line asks.
// Screenshots go to $SHOTS, to be looked at.
import fs from "node:fs";
import path from "node:path";
import { chromium } from "playwright-core";
import { site, switches } from "./site.mjs";
import { ask, say } from "./steps.mjs";

const shots = process.env.SHOTS;
const done = (text) => say("ok    " + text);

const sizes = { desk: { viewport: { width: 1280, height: 800 } }, phone: { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true } };

class Person {
    static async open(browser, url, name, size, colorScheme) {
        const context = await browser.newContext({ ...sizes[size], colorScheme });
        const page = await context.newPage();
        page.setDefaultTimeout(45_000);
        page.on("console", (m) => ["error", "warning"].includes(m.type()) && fs.writeSync(2, `${name}: ${m.text().slice(0, 500)}\n`));
        page.on("pageerror", (e) => fs.writeSync(2, `${name}: ${e.stack}\n`));
        await page.goto(url);
        return Object.assign(new Person(), { page, name, size, colorScheme });
    }
    async enter(user, how) {
        await this.page.fill("input[name=user]", user);
        await this.page.fill("input[name=password]", "correct horse");
        await this.page.click(`button[value=${how}]`);
        await this.page.waitForSelector("#me:not(:empty)");
        this.id = await this.page.textContent("#me");
    }
    async shot(name) {
        await this.page.waitForTimeout(300);
        await this.page.screenshot({ path: path.join(shots, `${name}-${this.size}-${this.colorScheme}.png`) });
    }
    settings() { return this.page.click("#menu"); }
    close() { return this.page.click("#close"); }
    async openRoom(name) {
        await this.page.click(`#rooms button:has-text("${name}")`);
        await this.page.waitForSelector(`#title:text-is("${name}")`);
    }
    back() { return this.size === "phone" ? this.page.click("#back") : undefined; }
    async send(text) {
        await this.page.fill("#send input", text);
        await this.page.press("#send input", "Enter");
        await this.reads(text);
    }
    reads(text) { return this.page.waitForSelector(`#timeline li:has-text("${text}")`); }
    keys(state) { return this.page.waitForSelector(`body[data-keys=${state}]`); }
}

async function main() {
    fs.mkdirSync(shots, { recursive: true });
    const url = `${await site("page")}?server=${encodeURIComponent(process.env.SNUG_BASE)}`;
    const browser = await chromium.launch(switches);
    const alice = await Person.open(browser, url, "alice", "desk", "light");
    await alice.shot("1-enter");
    await alice.enter("alice", "register");
    const bob = await Person.open(browser, url, "bob", "phone", "dark");
    await bob.enter("bob", "register");
    done("alice and bob make accounts in a browser");

    await alice.settings();
    await alice.keys("none");
    await alice.page.click("#set-up");
    await alice.keys("ready");
    const recoveryKey = await alice.page.textContent("#recovery-key");
    await alice.shot("2-keys");
    await alice.close();
    done("alice sets up keys and is shown a recovery key");

    await alice.page.fill("#create input[name=name]", "Kitchen");
    await alice.page.fill("#create input[name=invite]", bob.id);
    await alice.page.click("#create button");
    await alice.page.waitForSelector('#title:text-is("Kitchen")');
    await bob.openRoom("Kitchen");
    await alice.page.waitForSelector('#timeline li:has-text("bob: join")');
    await alice.send("Soup is ready");
    await bob.reads("Soup is ready");
    await bob.send("On my way");
    await alice.reads("On my way");
    done("they talk in an encrypted room");
    await ask("kill");
    await alice.send("Still warm");
    await bob.reads("Still warm");
    await bob.shot("3-room");
    await alice.shot("3-room");
    done("and go on after the server was killed");

    // A second device, verified by emoji.
    const phone = await Person.open(browser, url, "alice's phone", "phone", "light");
    await phone.enter("alice", "login");
    await phone.openRoom("Kitchen");
    await phone.reads("cannot be read yet");
    await phone.shot("4-locked");
    await phone.back();
    await phone.settings();
    await phone.keys("locked");
    await alice.page.waitForSelector('body[data-devices="2"]'); // a request of a device that it does not know is ignored
    await phone.page.click("#verify");
    const [there, here] = await Promise.all([phone, alice].map(async (one) => {
        await one.page.waitForSelector("#emoji[open]");
        return await one.page.textContent("#pictures");
    }));
    if (there !== here) throw new Error(`emoji differ: ${there} and ${here}`);
    await phone.shot("5-emoji");
    await Promise.all([phone, alice].map((one) => one.page.click("#match")));
    await phone.keys("ready");
    await phone.openRoom("Kitchen");
    await phone.reads("Soup is ready");
    done(`a second device is verified by ${here} and reads the past`);

    // A badge and a ring; muted, none. The desk looks at another room, or it would read the message first.
    await alice.page.fill("#create input[name=name]", "Notes");
    await alice.page.click("#create button");
    await alice.page.waitForSelector('#title:text-is("Notes")');
    await phone.back();
    await bob.send("Is there bread?");
    await phone.page.waitForSelector("#rooms .badge");
    await phone.page.waitForSelector('#toast.shown:has-text("bread")');
    await phone.shot("6-rings");
    await phone.openRoom("Kitchen");
    await phone.reads("Is there bread?");
    await phone.page.check("#mute");
    await phone.page.waitForSelector("#mute:not(:disabled)");
    await phone.back();
    await phone.page.waitForSelector("#rooms .badge", { state: "detached" });
    await bob.send("Never mind");
    await phone.page.waitForTimeout(2000);
    if (await phone.page.$("#rooms .badge")) throw new Error("a muted room has a badge");
    done("a message rings and counts; a muted room does not");
    await phone.settings();
    const rule = 'input[data-rule=".m.rule.invite_for_me"]';
    await phone.page.waitForSelector(rule);
    const was = await phone.page.isChecked(rule);
    await phone.page.click(rule);
    await phone.page.waitForFunction(([r, was]) => document.querySelector(r).checked !== was && !document.querySelector(r).disabled, [rule, was]);
    await phone.page.locator(rule).scrollIntoViewIfNeeded();
    await phone.shot("7-rules");
    await phone.page.reload();
    await phone.page.waitForSelector("#me:not(:empty)");
    await phone.settings();
    await phone.page.waitForSelector(rule);
    if ((await phone.page.isChecked(rule)) === was) throw new Error("the push rule was not kept");
    await phone.close();
    await phone.openRoom("Kitchen");
    await phone.reads("Soup is ready");
    done("notification settings are shown and changed, and kept when the page is opened again, as is what was read");

    // Everything of alice's logged out; a fresh log-in with the recovery key.
    await phone.back();
    await phone.settings();
    await phone.page.click("#logout");
    await phone.page.waitForSelector("#enter:not([hidden])");
    await alice.settings();
    await alice.page.click("#logout");
    await alice.page.waitForSelector("#enter:not([hidden])");
    await ask("restart");
    const fresh = await Person.open(browser, url, "alice again", "desk", "dark");
    await fresh.enter("alice", "login");
    await fresh.openRoom("Kitchen");
    await fresh.reads("cannot be read yet");
    await fresh.settings();
    await fresh.keys("locked");
    await fresh.page.fill("#recover input[name=key]", recoveryKey);
    await fresh.shot("8-recover");
    await fresh.page.click("#recover button:not([type=button])");
    await fresh.keys("ready");
    await fresh.close();
    for (const text of ["Soup is ready", "On my way", "Is there bread?", "Never mind"]) await fresh.reads(text);
    await fresh.shot("9-history");
    await fresh.send("All here");
    await bob.reads("All here");
    done("logged out everywhere and in again, the recovery key brings the history back");
    await browser.close();
}

main().then(() => process.exit(0), (error) => {
    say(`FAILED ${error.stack}`);
    process.exit(1);
});
