"""matrix-js-sdk with its Rust crypto in Node: two people and their devices, cross-signing, secret storage, key backup, a
dehydrated device, emoji, sliding sync, and a server that is killed in between.

  python3 tests/peers/js_sdk.py     needs `npm ci` in tests/peers/js; SNUG=path of the binary
"""
import os

from lab import HERE, drive, main


def story(lab):
    drive(lab, ["node", os.path.join(HERE, "js", "story.mjs")], lab.server())


if __name__ == "__main__":
    main("js-sdk", story)
