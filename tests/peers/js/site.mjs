// The pages of ./page, bundled and served on the loopback for Chromium.
import fs from "node:fs";
import http from "node:http";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = path.dirname(fileURLToPath(import.meta.url));

/** How Chromium is started. */
export const switches = {
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
};

/** Bundle `page/<name>.mjs` and serve it with the files beside it; gives the address, with a slash at its end. */
export async function site(name) {
    const out = path.join(process.env.LAB_DIR, "page");
    fs.cpSync(path.join(here, "page"), out, { recursive: true });
    fs.cpSync(path.join(here, "node_modules/@matrix-org/matrix-sdk-crypto-wasm/pkg"), path.join(out, "pkg"), { recursive: true });
    await build({ entryPoints: [path.join(here, `page/${name}.mjs`)], bundle: true, format: "esm", outfile: path.join(out, `${name}.js`), logLevel: "warning" });
    const kinds = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".wasm": "application/wasm" };
    const server = http.createServer((request, answer) => {
        const name = new URL(request.url, "http://x").pathname.replace(/^\/$/, "/index.html");
        const file = path.join(out, path.normalize(name));
        if (!file.startsWith(out) || !fs.existsSync(file)) return answer.writeHead(404).end();
        answer.writeHead(200, { "content-type": kinds[path.extname(file)] ?? "application/octet-stream" });
        fs.createReadStream(file).pipe(answer);
    });
    await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
    return `http://127.0.0.1:${server.address().port}/`;
}
