// The parts of ../parts.mjs in a browser: driven by ../menus.mjs.
import { quiet } from "../client.mjs";
import { menus } from "../parts.mjs";

const crypto = (session) => ({ cryptoDatabasePrefix: session.device_id });
window.menus = (lab) => menus({ ...lab, said: window.said, logger: () => quiet, crypto });
