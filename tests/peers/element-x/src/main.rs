//! The core of Element X as it is used by the app: run by `../element_x.py`, which starts the server and kills it when a line asks.
//!
//! Every step is printed; the first that is not as it should be ends the program with exit status 1.

#![recursion_limit = "256"]

use std::{
    collections::BTreeSet,
    env,
    path::PathBuf,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use futures_util::StreamExt;
use matrix_sdk::{
    Client, Room, RoomState, SessionMeta, SessionTokens, ThreadingSupport,
    authentication::matrix::MatrixSession,
    encryption::{
        BackupDownloadStrategy, EncryptionSettings, VerificationState,
        recovery::RecoveryState,
        verification::{SasState, VerificationRequestState},
    },
    notification_settings::{IsEncrypted, IsOneToOne, RoomNotificationMode},
    ruma::{
        EventId, OwnedEventId, OwnedRoomId, RoomId,
        api::client::{
            push::{Pusher, PusherIds, PusherInit, PusherKind},
            receipt::create_receipt::v3::ReceiptType,
            room::create_room::v3::{Request as CreateRoom, RoomPreset},
        },
        assign,
        events::key::verification::request::ToDeviceKeyVerificationRequestEvent,
        events::{
            AnySyncTimelineEvent, InitialStateEvent, Mentions,
            receipt::{ReceiptThread, ReceiptType as ReceiptKind},
            room::{encryption::RoomEncryptionEventContent, message::RoomMessageEventContent},
        },
        push::HttpPusherData,
    },
    sliding_sync::VersionBuilder,
    store::RoomLoadSettings,
};
use matrix_sdk_ui::{
    Timeline,
    eyeball_im::Vector,
    notification_client::{NotificationClient, NotificationEvent, NotificationProcessSetup, NotificationStatus},
    room_list_service::{RoomListLoadingState, filters::new_filter_non_left},
    sync_service::SyncService,
    timeline::{EncryptedMessage, EventTimelineItem, RoomExt, TimelineEventItemId},
};

const PASSWORD: &str = "correct horse";

fn say(text: impl AsRef<str>) {
    println!("{}", text.as_ref());
}

/// Asks the lab for something to be done to the server, and waits until it is.
async fn ask(what: &str) -> Result<()> {
    println!("@{what}");
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
    Ok(())
}

fn check(holds: bool, text: impl AsRef<str>) -> Result<()> {
    if !holds {
        bail!("NOT SO: {}", text.as_ref());
    }
    say(format!("ok    {}", text.as_ref()));
    Ok(())
}

/// Asks `probe` until it gives something; fails after a minute.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, probe: impl Fn() -> F) -> Result<T> {
    for _ in 0..600 {
        if let Some(got) = probe().await {
            return Ok(got);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("timed out: {what}")
}

/// The app on one device: a client with a store on disk, its sync service, and the list of rooms as the screen shows it.
struct App {
    client: Client,
    sync: Arc<SyncService>,
    list: Arc<Mutex<Vector<OwnedRoomId>>>,
    label: String,
    store: PathBuf,
}

async fn build(store: &PathBuf) -> Result<Client> {
    Ok(Client::builder()
        .homeserver_url(env::var("SNUG_BASE")?)
        .sliding_sync_version_builder(VersionBuilder::DiscoverNative)
        .sqlite_store(store, None)
        .with_threading_support(ThreadingSupport::Enabled { with_subscriptions: true })
        .with_encryption_settings(EncryptionSettings {
            auto_enable_cross_signing: true,
            auto_enable_backups: true,
            backup_download_strategy: BackupDownloadStrategy::AfterDecryptionFailure,
        })
        .build()
        .await?)
}

impl App {
    async fn login(user: &str, device: &str) -> Result<Self> {
        let store = PathBuf::from(env::var("LAB_DIR")?).join(format!("element-x-{user}-{device}"));
        std::fs::create_dir_all(&store)?;
        let client = build(&store).await?;
        client.matrix_auth().login_username(user, PASSWORD).initial_device_display_name(device).await?;
        Self::start(client, format!("{user}'s {device}"), store).await
    }

    /// The app is ended and opened again: another client over the same store.
    async fn reopen(self) -> Result<Self> {
        let session = self.client.matrix_auth().session().context("a session")?;
        let Self { client, sync, label, store, .. } = self;
        sync.stop().await;
        drop((sync, client));
        let client = build(&store).await?;
        let meta = SessionMeta { user_id: session.meta.user_id, device_id: session.meta.device_id };
        let tokens = SessionTokens { access_token: session.tokens.access_token, refresh_token: None };
        client.matrix_auth().restore_session(MatrixSession { meta, tokens }, RoomLoadSettings::default()).await?;
        Self::start(client, label, store).await
    }

    async fn start(client: Client, label: String, store: PathBuf) -> Result<Self> {
        client.event_cache().subscribe()?;
        let sync =
            Arc::new(SyncService::builder(client.clone()).with_offline_mode().with_share_pos(true).build().await?);
        let list = Arc::new(Mutex::new(Vector::new()));
        let (rooms, shown) = (sync.room_list_service().all_rooms().await?, list.clone());
        let mut loading = rooms.loading_state();
        tokio::spawn(async move {
            let (entries, filter) = rooms.entries_with_dynamic_adapters(100);
            filter.set_filter(Box::new(new_filter_non_left()));
            let mut entries = pin!(entries);
            while let Some(diffs) = entries.next().await {
                let mut shown = shown.lock().unwrap();
                for diff in diffs {
                    diff.map(|item| item.into_inner().room_id().to_owned()).apply(&mut shown);
                }
            }
        });
        sync.start().await;
        tokio::time::timeout(Duration::from_secs(60), async {
            loop {
                if let RoomListLoadingState::Loaded { .. } = loading.get() {
                    return;
                }
                if loading.next().await.is_none() {
                    return;
                }
            }
        })
        .await
        .map_err(|_| anyhow!("{label}: the room list is not loaded within a minute"))?;
        client.encryption().wait_for_e2ee_initialization_tasks().await;
        Ok(Self { client, sync, list, label, store })
    }

    fn user(&self) -> &matrix_sdk::ruma::UserId {
        self.client.user_id().expect("logged in")
    }

    fn shown(&self) -> Vec<OwnedRoomId> {
        self.list.lock().unwrap().iter().cloned().collect()
    }

    async fn room(&self, id: &RoomId, state: RoomState) -> Result<Room> {
        let what = format!("{} has {id} as {state:?}", self.label);
        until(&what, || async {
            self.client.get_room(id).filter(|room| room.state() == state && self.shown().iter().any(|r| r == id))
        })
        .await
    }

    async fn open(&self, id: &RoomId) -> Result<Screen> {
        let room = self.room(id, RoomState::Joined).await?;
        self.sync.room_list_service().subscribe_to_rooms(&[id]).await;
        Ok(Screen { timeline: Arc::new(room.timeline().await?), label: self.label.clone() })
    }

    /// Opens a room and pages back until its old messages are read. A message whose key arrives while the page with it is
    /// put on the screen stays locked there until its decryption is tried again.
    async fn reads_past(&self, id: &RoomId, texts: &[&str]) -> Result<Screen> {
        let screen = self.open(id).await?;
        screen.whole().await?;
        for _ in 0..20 {
            let mut locked = false;
            for text in texts {
                locked |= !screen.has(text).await;
            }
            if !locked {
                return Ok(screen);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            screen.retry().await;
        }
        bail!("{} does not read all of {texts:?}", self.label)
    }

    async fn is_verified(&self) -> Result<()> {
        let state = self.client.encryption().verification_state();
        until(&format!("{} is verified", self.label), || async {
            (state.get() == VerificationState::Verified).then_some(())
        })
        .await
    }
}

/// One room as the screen shows it.
#[derive(Clone)]
struct Screen {
    timeline: Arc<Timeline>,
    label: String,
}

impl Screen {
    async fn send(&self, text: &str) -> Result<OwnedEventId> {
        self.post(RoomMessageEventContent::text_plain(text), text).await
    }

    async fn post(&self, content: RoomMessageEventContent, text: &str) -> Result<OwnedEventId> {
        self.timeline.send(content.into()).await?;
        let item = self.sees(text, |item| item.event_id().is_some() && !item.is_local_echo()).await?;
        Ok(item.event_id().expect("just asked").to_owned())
    }

    async fn reads(&self, text: &str) -> Result<EventTimelineItem> {
        self.sees(text, |_| true).await
    }

    async fn sees(&self, text: &str, also: impl Fn(&EventTimelineItem) -> bool) -> Result<EventTimelineItem> {
        let what = format!("{} reads {text:?}", self.label);
        let found = until(&what, || async {
            self.timeline.items().await.iter().rev().find_map(|item| {
                let event = item.as_event()?;
                (event.content().as_message()?.body() == text && also(event)).then(|| event.clone())
            })
        })
        .await;
        match found {
            Ok(item) => Ok(item),
            Err(error) => {
                let items = self.timeline.items().await;
                let shown: Vec<_> = items.iter().filter_map(|item| Some(of(item.as_event()?))).collect();
                let tail: Vec<_> = shown.iter().rev().take(12).rev().map(String::as_str).collect();
                Err(error.context(format!("the last of {} are {}", shown.len(), tail.join(" | "))))
            }
        }
    }

    async fn has(&self, text: &str) -> bool {
        self.timeline
            .items()
            .await
            .iter()
            .any(|item| item.as_event().and_then(|e| e.content().as_message()).is_some_and(|m| m.body() == text))
    }

    /// Tries again to decrypt what could not be.
    async fn retry(&self) {
        let items = self.timeline.items().await;
        let sessions = items.iter().filter_map(|item| match item.as_event()?.content().as_unable_to_decrypt()? {
            EncryptedMessage::MegolmV1AesSha2 { session_id, .. } => Some(session_id.clone()),
            _ => None,
        });
        self.timeline.retry_decryption(sessions).await;
    }

    /// Pages back until the room's beginning is shown.
    async fn whole(&self) -> Result<()> {
        for _ in 0..50 {
            if self.timeline.paginate_backwards(30).await? {
                return Ok(());
            }
        }
        bail!("{}: no beginning after 50 pages", self.label)
    }
}

/// What an item of the timeline is, in a few words.
fn of(event: &EventTimelineItem) -> String {
    let content = event.content();
    match content.as_message() {
        Some(message) => message.body().to_owned(),
        None if content.is_unable_to_decrypt() => "(cannot be decrypted)".to_owned(),
        None => format!("{content:?}").chars().take_while(|c| c.is_alphanumeric()).collect(),
    }
}

/// Both say something, and both read it.
async fn talk(tag: &str, screens: &[&Screen]) -> Result<()> {
    for speaker in screens {
        let text = format!("{tag}, from {}", speaker.label);
        speaker.send(&text).await?;
        for reader in screens {
            reader.reads(&text).await?;
        }
    }
    check(
        true,
        format!("{} read each other: {tag}", screens.iter().map(|s| s.label.as_str()).collect::<Vec<_>>().join(", ")),
    )
}

async fn notification(client: &NotificationClient, room: &RoomId, event: &EventId) -> Result<String> {
    match client.get_notification(room, event).await? {
        NotificationStatus::Event(item) => match item.event {
            NotificationEvent::Timeline(event) => match *event {
                AnySyncTimelineEvent::MessageLike(event) => {
                    Ok(body_of(&event.original_content().context("a content")?)?)
                }
                other => bail!("a notification of a state event {other:?}"),
            },
            NotificationEvent::Invite(invite) => Ok(format!("invite from {}", invite.sender)),
        },
        other => bail!("no event for the notification: {other:?}"),
    }
}

fn body_of(content: &matrix_sdk::ruma::events::AnyMessageLikeEventContent) -> Result<String> {
    match content {
        matrix_sdk::ruma::events::AnyMessageLikeEventContent::RoomMessage(message) => Ok(message.body().to_owned()),
        other => bail!("not a message: {other:?}"),
    }
}

async fn compare_emoji(asking: &App, asked: &App) -> Result<String> {
    let (sent, arrived) = tokio::sync::mpsc::unbounded_channel();
    let handler = asked.client.add_event_handler(move |event: ToDeviceKeyVerificationRequestEvent| async move {
        sent.send(event.content.transaction_id.to_string()).ok();
    });
    let mut arrived = arrived;
    // A request of a device that is not known is ignored.
    let device = asking.client.device_id().context("a device")?;
    until("the other device is known", || async {
        asked.client.encryption().get_device(asking.user(), device).await.ok()?
    })
    .await?;
    let own = asking.client.encryption().get_user_identity(asking.user()).await?.context("own identity")?;
    let request = own.request_verification().await?;
    let flow = tokio::time::timeout(Duration::from_secs(60), arrived.recv()).await?.context("a request")?;
    asked.client.remove_event_handler(handler);
    let theirs =
        asked.client.encryption().get_verification_request(asking.user(), &flow).await.context("the request")?;
    theirs.accept().await?;
    until("the request is ready", || async { request.is_ready().then_some(()) }).await?;
    let ours = request.start_sas().await?.context("SAS")?;
    let answer = until("the start arrives", || async {
        match theirs.state() {
            VerificationRequestState::Transitioned { verification } => verification.sas(),
            _ => None,
        }
    })
    .await?;
    answer.accept().await?;
    let mut shown = Vec::new();
    for sas in [&ours, &answer] {
        let emoji = until("emoji are shown", || async { sas.emoji() }).await?;
        shown.push(emoji.iter().map(|e| e.symbol).collect::<Vec<_>>().join(" "));
    }
    if shown[0] != shown[1] {
        bail!("emoji differ: {} and {}", shown[0], shown[1]);
    }
    tokio::try_join!(ours.confirm(), answer.confirm())?;
    for sas in [&ours, &answer] {
        until("the comparison is done", || async { matches!(sas.state(), SasState::Done { .. }).then_some(()) })
            .await?;
    }
    Ok(shown.remove(0))
}

async fn story() -> Result<()> {
    let phone = App::login("alice", "phone").await?;
    let bob = App::login("bob", "phone").await?;
    check(true, "alice and bob log in, with sliding sync as the server's /versions say; their room lists are loaded")?;
    check(phone.shown().is_empty(), "and empty")?;
    phone.is_verified().await?;
    check(true, "alice's keys were made at the log-in: her phone is verified")?;
    let key = phone.client.encryption().recovery().enable().wait_for_backups_to_upload().await?;
    check(phone.client.encryption().backups().are_enabled().await, "recovery is enabled, and with it the backup")?;
    check(phone.client.encryption().recovery().state() == RecoveryState::Enabled, "and the app shows it so")?;

    // A room of two.
    let encryption = InitialStateEvent::with_empty_state_key(RoomEncryptionEventContent::with_recommended_defaults());
    let request = assign!(CreateRoom::new(), {
        name: Some("secrets".to_owned()), preset: Some(RoomPreset::TrustedPrivateChat), is_direct: true,
        invite: vec![bob.user().to_owned()], initial_state: vec![encryption.to_raw_any()],
    });
    let id = phone.client.create_room(request).await?.room_id().to_owned();
    let invited = bob.room(&id, RoomState::Invited).await?;
    until("the invite says by whom", || async {
        invited.invite_details().await.ok()?.inviter.filter(|m| m.user_id() == phone.user())
    })
    .await?;
    check(true, "bob's list has the invite, and by whom")?;
    invited.join().await?;
    let (alice, friend) = (phone.open(&id).await?, bob.open(&id).await?);
    check(
        bob.client.get_room(&id).context("the room")?.display_name().await?.to_string() == "secrets",
        "bob's list has the room with its name",
    )?;
    talk("before the kill", &[&alice, &friend]).await?;
    ask("kill").await?;
    talk("after the kill", &[&alice, &friend]).await?;

    // What a screen does with a message.
    let sent = alice.send("first wording").await?;
    let item = friend.reads("first wording").await?;
    friend.timeline.toggle_reaction(&item.identifier(), "👍").await?;
    alice
        .sees("first wording", |item| {
            item.content().reactions().is_some_and(|r| r.get("👍").is_some_and(|by| by.contains_key(bob.user())))
        })
        .await?;
    let edited = RoomMessageEventContent::text_plain("second wording");
    alice
        .timeline
        .edit(
            &TimelineEventItemId::EventId(sent.clone()),
            matrix_sdk::room::edit::EditedContent::RoomMessage(edited.into()),
        )
        .await?;
    friend.reads("second wording").await?;
    alice.timeline.redact(&TimelineEventItemId::EventId(sent), None).await?;
    until("the redaction arrives", || async { (!friend.has("second wording").await).then_some(()) }).await?;
    check(true, "a reaction, an edit and a redaction arrive")?;
    let room = phone.client.get_room(&id).context("the room")?;
    let (_guard, mut typing) = room.subscribe_to_typing_notifications();
    bob.client.get_room(&id).context("the room")?.typing_notice(true).await?;
    tokio::time::timeout(Duration::from_secs(30), async {
        while !typing.recv().await.is_ok_and(|who| who.iter().any(|u| u == bob.user())) {}
    })
    .await
    .context("typing")?;
    check(true, "typing arrives")?;

    // Unread, as the app counts and as the server does.
    let unread = bob.client.get_room(&id).context("the room")?;
    friend.timeline.mark_as_read(ReceiptType::Read).await?;
    until("nothing is unread", || async { (unread.num_unread_messages() == 0).then_some(()) }).await?;
    alice.send("one unread").await?;
    let mention = RoomMessageEventContent::text_plain("two unread, to bob")
        .add_mentions(Mentions::with_user_ids([bob.user().to_owned()]));
    let mention = alice.post(mention, "two unread, to bob").await?;
    friend.reads("two unread, to bob").await?;
    let counts = || {
        (
            unread.num_unread_messages(),
            unread.num_unread_notifications(),
            unread.num_unread_mentions(),
            unread.unread_notification_counts(),
        )
    };
    until("two are unread", || async {
        (unread.num_unread_messages() == 2 && unread.num_unread_mentions() == 1).then_some(())
    })
    .await
    .with_context(|| format!("{:?}", counts()))?;
    let served = env::var("SERVER").is_err(); // Synapse always says nought here
    until("the server counts two", || async {
        (!served || unread.unread_notification_counts().notification_count == 2).then_some(())
    })
    .await
    .with_context(|| format!("{:?}", counts()))?;
    check(true, "two messages are unread, one mentions bob, and the server counts two notifications")?;
    friend.timeline.mark_as_read(ReceiptType::Read).await?;
    until("nothing is unread again", || async {
        (unread.num_unread_messages() == 0 && unread.num_unread_notifications() == 0).then_some(())
    })
    .await
    .with_context(|| format!("{:?}", counts()))?;
    until("alice sees bob's receipt", || async {
        let receipt = room.load_user_receipt(ReceiptKind::Read, ReceiptThread::Unthreaded, bob.user()).await.ok()??;
        (receipt.0 == mention).then_some(())
    })
    .await?;
    check(true, "read: nothing is unread, and alice sees the receipt")?;
    unread.set_unread_flag(true).await?;
    until("marked as unread", || async { unread.is_marked_unread().then_some(()) }).await?;
    unread.set_unread_flag(false).await?;
    check(true, "a room is marked as unread, as the app's menu does")?;

    notifications(&phone, &bob, &alice, &id).await?;
    settings(&bob, &id).await?;

    // A second device of alice, verified by emoji, which reads the past.
    phone.client.encryption().backups().wait_for_steady_state().await?;
    let tablet = App::login("alice", "tablet").await?;
    let emoji = compare_emoji(&tablet, &phone).await?;
    check(true, format!("both devices show {emoji}"))?;
    tablet.is_verified().await?;
    until("the tablet has the backup's key", || async {
        tablet.client.encryption().backups().are_enabled().await.then_some(())
    })
    .await?;
    let past =
        tablet.reads_past(&id, &["before the kill, from alice's phone", "after the kill, from bob's phone"]).await?;
    check(true, "the tablet, verified by emoji, reads the past from the backup")?;
    talk("three devices", &[&alice, &friend, &past]).await?;

    let phone = many_rooms(phone, &bob).await?;
    threads(&phone, &bob, &id).await?;

    // Everything logged out but bob; a fresh log-in with the recovery key.
    phone.client.encryption().backups().wait_for_steady_state().await?;
    drop((alice, past));
    for app in [phone, tablet] {
        app.sync.stop().await;
        app.client.matrix_auth().logout().await?;
    }
    ask("kill").await?;
    let fresh = App::login("alice", "new-phone").await?;
    let past = fresh.open(&id).await?;
    check(!past.has("before the kill, from alice's phone").await, "a fresh log-in cannot read the past yet")?;
    check(
        fresh.client.encryption().recovery().state() == RecoveryState::Incomplete,
        "and the app asks for the recovery key",
    )?;
    fresh.client.encryption().recovery().recover(&key).await?;
    fresh.is_verified().await?;
    let past =
        fresh.reads_past(&id, &["before the kill, from alice's phone", "three devices, from alice's tablet"]).await?;
    check(true, "with the recovery key it is verified and reads the past")?;
    let friend = bob.open(&id).await?;
    talk("after the log-in", &[&past, &friend]).await?;

    // Recovery is reset and disabled.
    let newer = fresh.client.encryption().recovery().reset_key().await?;
    check(newer != key, "the recovery key is changed")?;
    fresh.client.encryption().recovery().disable().await?;
    check(
        !fresh.client.encryption().backups().fetch_exists_on_server().await?,
        "recovery is disabled, and the backup is gone from the server",
    )?;
    for app in [fresh, bob] {
        app.sync.stop().await;
        app.client.matrix_auth().logout().await?;
    }
    check(true, "all logged out")
}

/// A push wakes the app: what is shown for an event, with the app's sync running, and with it stopped.
async fn notifications(phone: &App, bob: &App, alice: &Screen, id: &RoomId) -> Result<()> {
    let setup = || NotificationProcessSetup::SingleProcess { sync_service: bob.sync.clone() };
    let event = alice.send("rings while the app is open").await?;
    let client = NotificationClient::new(bob.client.clone(), setup()).await?;
    check(
        notification(&client, id, &event).await? == "rings while the app is open",
        "a notification is decrypted while the app is open",
    )?;
    bob.sync.stop().await;
    let event = alice.send("rings while the app sleeps").await?;
    phone.client.get_room(id).context("the room")?.discard_room_key().await?;
    let newer = alice.send("rings with a key of its own").await?;
    check(
        notification(&client, id, &event).await? == "rings while the app sleeps",
        "a notification is decrypted while the app sleeps",
    )?;
    check(notification(&client, id, &newer).await? == "rings with a key of its own", "and one whose key came since")?;
    let invite = phone
        .client
        .create_room(
            assign!(CreateRoom::new(), { name: Some("party".to_owned()), invite: vec![bob.user().to_owned()] }),
        )
        .await?;
    bob.sync.start().await;
    let party = bob.room(invite.room_id(), RoomState::Invited).await?;
    party.leave().await?;
    until("the invite is gone from the list", || async {
        (!bob.shown().iter().any(|r| r == invite.room_id())).then_some(())
    })
    .await?;
    check(true, "the app wakes, sees an invite and rejects it")?;

    let pusher: Pusher = PusherInit {
        ids: PusherIds::new("a-push-key".to_owned(), "org.snug.test".to_owned()),
        kind: PusherKind::Http(assign!(HttpPusherData::new("http://127.0.0.1:9/_matrix/push/v1/notify".to_owned()), { format: Some(matrix_sdk::ruma::push::PushFormat::EventIdOnly) })),
        app_display_name: "Element X".to_owned(),
        device_display_name: "phone".to_owned(),
        profile_tag: None,
        lang: "en".to_owned(),
    }
    .into();
    bob.client.pusher().set(pusher, false).await?;
    bob.client.pusher().delete(PusherIds::new("a-push-key".to_owned(), "org.snug.test".to_owned())).await?;
    check(true, "a pusher is set and removed")
}

/// The screen of notification settings.
async fn settings(bob: &App, id: &RoomId) -> Result<()> {
    let settings = bob.client.notification_settings().await;
    let default = settings.get_default_room_notification_mode(IsEncrypted::Yes, IsOneToOne::Yes).await;
    check(default == RoomNotificationMode::AllMessages, "by default a room of two rings for all messages")?;
    for mode in
        [RoomNotificationMode::Mute, RoomNotificationMode::MentionsAndKeywordsOnly, RoomNotificationMode::AllMessages]
    {
        settings.set_room_notification_mode(id, mode).await?;
        until("the mode is set", || async {
            (settings.get_user_defined_room_notification_mode(id).await == Some(mode)).then_some(())
        })
        .await?;
    }
    settings.delete_user_defined_room_rules(id).await?;
    settings
        .set_default_room_notification_mode(
            IsEncrypted::Yes,
            IsOneToOne::No,
            RoomNotificationMode::MentionsAndKeywordsOnly,
        )
        .await?;
    settings.add_keyword("snug".to_owned()).await?;
    until("the keyword is there", || async { settings.enabled_keywords().await.contains("snug").then_some(()) })
        .await?;
    settings.remove_keyword("snug").await?;
    check(true, "a room's mode, the default mode and keywords are set, by push rules")
}

/// The list grows past its first window, is sorted by what happened last, and is there at once when the app is opened again.
async fn many_rooms(phone: App, bob: &App) -> Result<App> {
    let mut rooms = Vec::new();
    for n in 0..21 {
        let request =
            assign!(CreateRoom::new(), { name: Some(format!("room {n}")), preset: Some(RoomPreset::PublicChat) });
        rooms.push(phone.client.create_room(request).await?.room_id().to_owned());
    }
    bob.client.join_room_by_id(&rooms[0]).await?;
    until("all rooms are listed", || async { rooms.iter().all(|id| phone.shown().contains(id)).then_some(()) }).await?;
    bob.open(&rooms[0]).await?.send("up").await?;
    until("a message puts its room first", || async { (phone.shown().first() == rooms.first()).then_some(()) }).await?;
    check(true, "21 more rooms are listed, and a message puts its room first")?;
    let before: BTreeSet<_> = phone.shown().into_iter().collect();
    let phone = phone.reopen().await?;
    until("the list is as before", || async {
        (phone.shown().into_iter().collect::<BTreeSet<_>>() == before && phone.shown().first() == rooms.first())
            .then_some(())
    })
    .await?;
    bob.client.get_room(&rooms[0]).context("the room")?.leave().await?;
    check(true, "the app opened again has the same list from its store, and syncs on")?;
    Ok(phone)
}

/// A thread, its list, and a subscription to it.
async fn threads(phone: &App, bob: &App, id: &RoomId) -> Result<()> {
    use matrix_sdk::ruma::events::relation::Thread;
    use matrix_sdk::ruma::events::room::message::Relation;
    let (alice, friend) = (phone.open(id).await?, bob.open(id).await?);
    let root = alice.send("a thread begins").await?;
    friend.reads("a thread begins").await?;
    let room = bob.client.get_room(id).context("the room")?;
    let mut reply = RoomMessageEventContent::text_plain("and goes on");
    reply.relates_to = Some(Relation::Thread(Thread::plain(root.clone(), root.clone())));
    room.send(reply).await?;
    let room = phone.client.get_room(id).context("the room")?;
    until("the thread is listed", || async {
        let threads = room.list_threads(Default::default()).await.ok()?;
        threads.chunk.iter().any(|e| e.event_id().as_ref() == Some(&root)).then_some(())
    })
    .await?;
    room.subscribe_thread(root.clone(), None).await?;
    check(room.fetch_thread_subscription(root.clone()).await?.is_some(), "a thread is listed and subscribed to")?;
    room.unsubscribe_thread(root.clone()).await?;
    check(room.fetch_thread_subscription(root).await?.is_none(), "and unsubscribed from")
}

#[tokio::main]
async fn main() {
    tracing_subscriber::fmt()
        .with_env_filter(env::var("RUST_LOG").unwrap_or_else(|_| "warn,matrix_sdk::http_client=debug".to_owned()))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    if let Err(error) = story().await {
        say(format!("FAILED {error:#}"));
        std::process::exit(1);
    }
}
