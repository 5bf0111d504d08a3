// What an app's menus ask for, in Node and then in Chromium: run by ../menus.py, which starts the server.
import zlib from "node:zlib";
import "fake-indexeddb/auto";
import "./older-node.mjs";
import { chromium } from "playwright-core";
import { menus } from "./parts.mjs";
import { serve, site, switches } from "./site.mjs";
import { logger, say } from "./steps.mjs";

/** A PNG of so many pixels, in colours that run. */
function png(width, height) {
    const row = (y) => Buffer.from([0, ...Array.from({ length: width }, (_, x) => [(x * 255) / width, (y * 255) / height, 128]).flat()]);
    const chunk = (kind, data) => {
        const body = Buffer.concat([Buffer.from(kind), data]), out = Buffer.alloc(body.length + 8);
        out.writeUInt32BE(data.length, 0);
        body.copy(out, 4);
        out.writeUInt32BE(zlib.crc32(body) >>> 0, body.length + 4);
        return out;
    };
    const head = Buffer.from([0, 0, 0, 0, 0, 0, 0, 0, 8, 2, 0, 0, 0]);
    head.writeUInt32BE(width, 0);
    head.writeUInt32BE(height, 4);
    const pixels = zlib.deflateSync(Buffer.concat(Array.from({ length: height }, (_, y) => row(y))));
    return Buffer.concat([Buffer.from("\x89PNG\r\n\x1a\n", "latin1"), chunk("IHDR", head), chunk("IDAT", pixels), chunk("IEND", Buffer.alloc(0))]);
}

const recipes = `<html><head><title>Not this</title><meta property="og:title" content="Bread &amp; soup">
    <meta property="og:description" content="Two recipes"><meta property="og:image" content="/bread.png"></head><body>…</body></html>`;

async function main() {
    const files = { "/recipes.html": recipes, "/sunset.png": png(900, 600), "/bread.png": png(300, 200) };
    const lab = { base: process.env.SNUG_BASE, name: process.env.SNUG_NAME, site: await serve((name) => ({ text: files[name] }), process.env.SITE) };
    const failed = await menus({ ...lab, people: "", said: say, logger });

    say("-- the same in a browser");
    const browser = await chromium.launch(switches);
    const page = await browser.newPage();
    page.on("console", (m) => ["error", "warning"].includes(m.type()) && console.warn(m.text()));
    await page.exposeFunction("said", say);
    await page.goto(`${await site("menus")}menus.html`);
    failed.push(...await page.evaluate((lab) => window.menus({ ...lab, people: "-web" }), lab));
    await browser.close();
    if (failed.length) throw new Error(`these went wrong: ${failed.join(", ")}`);
}

main().then(
    () => process.exit(0),
    (error) => {
        say(`FAILED ${error.stack}`);
        process.exit(1);
    },
);
