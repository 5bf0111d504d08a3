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

/** Serve what `find` gives for a path, a file or its content; gives the address, with a slash at its end. */
export async function serve(find, host = "127.0.0.1") {
    const kinds = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".wasm": "application/wasm", ".json": "application/json", ".png": "image/png", ".svg": "image/svg+xml" };
    const server = http.createServer((request, answer) => {
        const name = path.normalize(new URL(request.url, "http://x").pathname);
        const found = find(name);
        if (found?.text === undefined && !fs.existsSync(found?.file ?? "")) return answer.writeHead(404).end();
        answer.writeHead(200, { "content-type": kinds[path.extname(found.file ?? name)] ?? "application/octet-stream", "access-control-allow-origin": "*" });
        if (found.file) fs.createReadStream(found.file).pipe(answer);
        else answer.end(found.text);
    });
    await new Promise((ready) => server.listen(0, host, ready));
    return `http://${host}:${server.address().port}/`;
}

/** Bundle `page/<name>.mjs` and serve it with the files beside it. */
export async function site(name) {
    const out = path.join(process.env.LAB_DIR, "page");
    fs.cpSync(path.join(here, "page"), out, { recursive: true });
    fs.cpSync(path.join(here, "node_modules/@matrix-org/matrix-sdk-crypto-wasm/pkg"), path.join(out, "pkg"), { recursive: true });
    await build({ entryPoints: [path.join(here, `page/${name}.mjs`)], bundle: true, format: "esm", outfile: path.join(out, `${name}.js`), logLevel: "warning" });
    return await serve((name) => ({ file: path.join(out, name === "/" ? "index.html" : name) }));
}

/** Serve the page of a package from npm, with a configuration of our own. */
export async function packaged(folder, config) {
    const out = path.join(here, "node_modules", folder);
    return await serve((name) => {
        if (name === "/config.json") return { text: JSON.stringify(config) };
        // Its files are named from wherever its page is.
        return { file: path.join(out, path.extname(name) ? name.replace(/^.*\/assets\//, "assets/") : "index.html") };
    });
}
