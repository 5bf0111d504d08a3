"""matrix-sdk and matrix-sdk-ui, the core of Element X: the room list, timelines, encryption, recovery, notifications, unread counts.

  python3 tests/peers/element_x.py     needs `cargo build` in tests/peers/element-x; SNUG=path of the binary,
                                       ELEMENT_X=path of the client program
"""
import os

from lab import HERE, drive, main

PROGRAM = os.environ.get("ELEMENT_X", os.path.join(HERE, "element-x", "target", "debug", "element-x"))


def story(lab):
    server = lab.server()
    for user in ("alice", "bob"):
        server.register(user)
    drive(lab, [PROGRAM], server)


if __name__ == "__main__":
    main("element-x", story)
