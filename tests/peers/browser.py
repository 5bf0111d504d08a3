"""A small page around matrix-js-sdk in headless Chromium: accounts, keys, an encrypted room, a second device, notification settings.

  python3 tests/peers/browser.py     needs `npm ci` in tests/peers/js and chromium; SNUG=path of the binary,
                                     SHOTS=folder for the screenshots (target/browser)
"""
import os

from lab import HERE, TOP, drive, main


def story(lab):
    shots = os.environ.get("SHOTS", os.path.join(TOP, "target", "browser"))
    drive(lab, ["node", os.path.join(HERE, "js", "browser.mjs")], lab.server(), dict(SHOTS=shots))


if __name__ == "__main__":
    main("browser", story)
