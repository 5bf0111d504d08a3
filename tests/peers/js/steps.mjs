// Steps that a script in Node prints for ../lab.py, and what it asks of it.
import fs from "node:fs";
import readline from "node:readline";
import { logger as global } from "matrix-js-sdk/lib/logger.js";

const answers = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();

export const say = (text) => fs.writeSync(1, text + "\n");
export function check(condition, text) {
    if (!condition) throw new Error("NOT SO: " + text);
    say("ok    " + text);
}
export async function ask(what) {
    say("@" + what);
    await answers.next();
}

/** Everything the library logs goes to stderr, which the lab keeps and shows when a step fails. */
const line = (level, name) => (...words) => {
    const text = words.map((w) => (w instanceof Error ? w.stack : typeof w === "string" ? w : JSON.stringify(w))).join(" ");
    fs.writeSync(2, `${new Date().toISOString().slice(11, 23)} ${level} [${name}] ${text.slice(0, 400)}\n`);
};
export const logger = (name) => ({
    trace() {}, debug: line("DEBUG", name), info: line("INFO", name), log: line("INFO", name), warn: line("WARN", name), error: line("ERROR", name),
    getChild: (child) => logger(`${name} ${child}`),
});
for (const level of ["debug", "log", "info", "warn", "error"]) console[level] = line(level.toUpperCase(), "console");
global.methodFactory = (level) => line(level.toUpperCase(), "sdk");
global.setLevel("info");
