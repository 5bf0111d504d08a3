"""A real Synapse and a Snug federate over TLS: invite, join, chat, state, leave, backfill, both ways, room versions 6 to 12.

  python3 tests/peers/federation.py        SNUG=path of the binary, PEERS_PYTHON=python with matrix-synapse
"""
from lab import check, main, q, say, wait_for

VERSIONS = ["6", "7", "8", "9", "10", "11", "12"]


def same_state(one, other, room):
    """Both servers hold the same state events, by event id."""
    ids = lambda person: {k: e["event_id"] for k, e in person.state(room).items()}
    wait_for("both servers hold the same state", lambda: ids(one) == ids(other))


def into_synapse_room(snug, synapse, alice, bob, version):
    say("-- room version %s on Synapse: Snug is invited, joins, chats, leaves" % version)
    room = alice.create_room(preset="private_chat", name="v" + version, room_version=version)
    before = ["before %d" % i for i in range(30)]
    for text in before:
        alice.send(room, text)
    alice.invite(room, bob.user_id)
    bob.sees_invite(room)
    bob.join(room)
    check(bob.user_id in alice.joined(room) and alice.user_id in bob.joined(room), "both list both members")
    same_state(alice, bob, room)
    alice.send(room, "from Synapse " + version)
    bob.sees_text(room, "from Synapse " + version)
    bob.send(room, "from Snug " + version)
    alice.sees_text(room, "from Snug " + version)
    alice.put_state(room, "m.room.topic", {"topic": "set by Synapse"})
    wait_for("the topic reaches Snug", lambda: bob.state(room)[("m.room.topic", "")]["content"]["topic"] == "set by Synapse")
    got = bob.history(room)
    check([t for t in got if t in before] == before, "Snug backfills the %d messages from before its join, in order" % len(before))
    bob.leave(room)
    wait_for("Synapse sees Snug leave", lambda: bob.user_id not in alice.joined(room))


def into_snug_room(snug, synapse, alice, bob, version):
    say("-- room version %s on Snug: Synapse joins, chats, leaves" % version)
    room = bob.create_room(preset="public_chat", name="v" + version, room_version=version)
    before = ["early %d" % i for i in range(30)]
    for text in before:
        bob.send(room, text)
    alice.join(room, via=snug.server_name)
    wait_for("Snug lists the Synapse user", lambda: alice.user_id in bob.joined(room))
    same_state(bob, alice, room)
    bob.send(room, "from Snug " + version)
    alice.sees_text(room, "from Snug " + version)
    alice.send(room, "from Synapse " + version)
    bob.sees_text(room, "from Synapse " + version)
    got = alice.history(room)
    check([t for t in got if t in before] == before, "Synapse backfills %d messages from Snug, in order" % len(before))
    bob.put_state(room, "m.room.topic", {"topic": "set by Snug"})
    wait_for("the topic reaches Synapse", lambda: alice.state(room)[("m.room.topic", "")]["content"]["topic"] == "set by Snug")
    same_state(bob, alice, room)
    alice.leave(room)
    wait_for("Snug sees the Synapse user leave", lambda: alice.user_id not in bob.joined(room))


def snug_invites(snug, synapse, alice, bob):
    say("-- a private room on Snug: the Synapse user is invited, declines, is invited again and joins")
    room = bob.create_room(preset="private_chat", name="invited", invite=[alice.user_id])
    alice.sees_invite(room)
    alice.leave(room)
    wait_for("Snug sees the refusal", lambda: bob.state(room)[("m.room.member", alice.user_id)]["content"]["membership"] == "leave")
    bob.invite(room, alice.user_id)
    alice.sees_invite(room)
    alice.join(room)
    wait_for("Snug lists the Synapse user", lambda: alice.user_id in bob.joined(room))
    bob.call("POST", "/rooms/%s/kick" % q(room), {"user_id": alice.user_id})
    wait_for("the kick is in the state", lambda: bob.state(room)[("m.room.member", alice.user_id)]["content"]["membership"] == "leave")


def after_an_outage(snug, synapse, alice, bob):
    say("-- messages sent while Snug was down arrive when it is back, in order")
    room = alice.create_room(preset="public_chat", name="outage")
    bob.join(room, via=synapse.server_name)
    bob.sync()
    snug.child.terminate()
    snug.child.wait(30)
    for n in range(5):
        alice.send(room, "while down %d" % n)
    snug.boot()
    alice.send(room, "back")
    bob.sees_text(room, "back", 120)
    texts = [t for t in bob.history(room) if t and t.startswith("while down")]
    check(texts == ["while down %d" % n for n in range(5)], "all five messages are there, in order")


def story(lab):
    synapse, snug = lab.synapse(), lab.snug()
    alice, bob = synapse.register("alice"), snug.register("bob")
    for version in VERSIONS:
        into_synapse_room(snug, synapse, alice, bob, version)
        into_snug_room(snug, synapse, alice, bob, version)
    snug_invites(snug, synapse, alice, bob)
    after_an_outage(snug, synapse, alice, bob)
    say("peak resident memory of Snug: %.1f MiB" % (snug.peak_kib() / 1024))


if __name__ == "__main__":
    main("federation", story)
