// What people do on the pages for a browser, and what they see there: for page.mjs and newcomer.mjs.
import { say } from "./steps.mjs";

/** Where the server is, its name, and the root of the administrators' page. */
export const { SNUG_BASE: base, SNUG_NAME: server, PAGE: root } = process.env;
export const password = "correct horse";

export function check(holds, what) {
    if (!holds) throw new Error(`NOT SO: ${what}`);
    say(`ok    ${what}`);
}

export async function api(method, path, body, token, at = base) {
    const headers = { "content-type": "application/json", ...(token && { authorization: `Bearer ${token}` }) };
    const answer = await fetch(`${at}/_matrix/client/v3${path}`, { method, headers, body: body && JSON.stringify(body) });
    return { status: answer.status, body: await answer.json() };
}
/** The same, again after a moment when there were too many. */
export async function must(...request) {
    for (let n = 0; n < 60; n++) {
        const { status, body } = await api(...request);
        if (status === 200) return body;
        if (status !== 429) throw new Error(`${request[0]} ${request[1]} answered ${status} ${JSON.stringify(body)}`);
        await new Promise((ready) => setTimeout(ready, 500));
    }
    throw new Error("too many requests for half a minute");
}
export const login = (user, password) => api("POST", "/login", { type: "m.login.password", identifier: { type: "m.id.user", user }, password });

/** A browser of its own: cookies, and whether scripts run. */
export async function visitor(browser, options = {}) {
    const context = await browser.newContext({ viewport: { width: 390, height: 844 }, ...options });
    const page = await context.newPage();
    page.on("console", (m) => ["error", "warning"].includes(m.type()) && !/status of 4\d\d/.test(m.text()) && wrong.push(m.text()));
    page.on("pageerror", (error) => wrong.push(error.message));
    return page;
}
export const wrong = [];
export const says = async (page, text) => (await page.textContent("main")).replace(/\s+/g, " ").includes(text);

export async function signIn(page, name, secret = password) {
    await page.goto(root);
    await page.fill("#name", name);
    await page.fill("#password", secret);
    await leads(page, page.click("form button"));
}

/** Waits for the page that a click leads to: what comes next would otherwise cut the form's request off. */
async function leads(page, click) {
    await Promise.all([page.waitForNavigation(), click]);
}

/** Press the button of a form on a person's page. */
export async function press(page, label) {
    await leads(page, page.click(`main button:text-is("${label}")`));
}

/** The first account is made by the link that the server printed; gives nothing, and shows what the page says. */
export async function firstAccount(page, first, name) {
    await page.goto(first);
    await page.fill("#name", name);
    await page.fill("#password", password);
    await page.fill("#again", password);
    await page.click("form button");
    check(await says(page, `@${name}:${server}`), "the first account is made");
}

/** Somebody is added on the page, who is to come by a link. */
export async function add(admin, name) {
    await admin.goto(`${root}people/add`);
    await admin.fill("#name", name);
    await press(admin, "Make the account");
}

/** Whoever has the link chooses a password. */
export async function choose(guest, secret = password) {
    await guest.fill("#password", secret);
    await guest.fill("#again", secret);
    await guest.click("form button");
}

/** A backup is made by the button; the page says when it is whole, without being loaded again. */
export async function backUpNow(admin) {
    await admin.goto(`${root}backups/`);
    await press(admin, "Back up now");
    await admin.waitForFunction(() => document.querySelector("#progress").textContent.includes("is whole and was read back"), null, { timeout: 60_000 });
    await admin.click("#progress a");
}

/** A room is removed on its page. */
export async function removeRoom(admin, room, asked) {
    await admin.goto(`${root}rooms/of/${room}`);
    await admin.click('main a:text-is("Remove the room…")');
    check(await says(admin, asked), `removing a room is asked again: ${asked}`);
    await press(admin, "Remove it for good");
    await isRemoved(admin);
}

/** The page says so by itself. */
export async function isRemoved(admin) {
    await admin.waitForFunction(() => document.querySelector("#purging").textContent.includes("is removed"), null, { timeout: 60_000 });
}
