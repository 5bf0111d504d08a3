// One end of a call: `?server=` and a session in the rest of the query; calls that come are answered. Driven by ../calls.mjs.
import { sdk } from "../client.mjs";

const query = Object.fromEntries(new URLSearchParams(location.search));
const client = sdk.createClient({ baseUrl: query.server, userId: query.user_id, deviceId: query.device_id, accessToken: query.access_token, forceTURN: true });
let call;

client.on("Call.incoming", (incoming) => {
    call = incoming;
    call.answer(true, false);
});
window.start = async () => {
    await client.startClient({ initialSyncLimit: 10 });
    await new Promise((done) => client.on("sync", (state) => ["PREPARED", "SYNCING"].includes(state) && done()));
    await client.checkTurnServers();
    return client.getTurnServers();
};
window.place = async (room) => {
    call = client.createCall(room);
    await call.placeVoiceCall();
};
window.hangUp = () => call.hangup("user_hangup", false);
/** The call's state, by which kinds of address the sound travels, and how many packets of it came. */
window.look = async () => {
    const looked = { state: call?.state };
    const stats = call?.peerConn && new Map([...(await call.peerConn.getStats())]);
    for (const one of stats?.values() ?? []) {
        if (one.type === "candidate-pair" && one.nominated && one.state === "succeeded") {
            looked.ways = [stats.get(one.localCandidateId)?.candidateType, stats.get(one.remoteCandidateId)?.candidateType];
        }
        if (one.type === "inbound-rtp" && one.kind === "audio") looked.packets = one.packetsReceived;
    }
    return looked;
};
