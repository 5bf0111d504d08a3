//! The extensions of a sliding sync: what is told beside rooms' events.
//!
//! An extension asks [`Look`] for what it needs: the snapshot and its reader (`view`), the user's own part of a sync between
//! the position that the app knows and the snapshot (`own`), that position (`since`, none for a first answer), what the
//! request asked for, and which rooms it concerns ([`Look::concerns`]). [`Plan::rooms`] are the rooms that this answer tells
//! of, the newest first.
//!
//! - [`Extensions::parse`] reads the canonical text of `extensions`, which is kept while the request waits ([`Extensions::bytes`]).
//! - [`Extensions::acknowledge`] comes first of all, before anything is read.
//! - [`Extensions::is_behind`] says that an extension has to tell more than what changed since the connection's position:
//!   it has a position of its own that is older, or was not asked for before. The account of what changed does not do for it
//!   then, and everything is read.
//! - [`Extensions::has_news`] decides whether a request that waits is answered. What it does not count as news may still be
//!   written, when there is an answer for another reason.
//! - [`Extensions::write`] writes the members of the object `extensions`, with a pause after each item of a list. Nothing
//!   that the number of rooms or members decides is kept in memory on the way.
//!
//! An extension whose position is the connection's has no rows of its own: everything after `since` is told by each answer,
//! for all rooms that the connection was told of, whether they stand in a window now or not. So nothing is missed when a room
//! comes back into a window. A room that this answer tells of whole is told whole here too. Which extensions were asked for
//! before stands in the position that the app has ([`SlidingToken::extensions`]).
//!
//! to_device is MSC3885, e2ee MSC3884, account_data MSC3959, receipts MSC3960, typing MSC3961,
//! thread_subscriptions MSC4308, profiles MSC4262, sticky_events MSC4354.

use std::sync::Arc;

use super::super::{ephemeral, user};
use super::bad;
use super::lists::{Look, Plan};
use super::request::hash;
use super::rooms::{Starts, of_client};
use crate::base::{ChunkError, ChunkWriter, comma};
use crate::client::room::thread;
use crate::client::{Client, Error, Requester};
use crate::http::ErrorResponse;
use crate::matrix::json::{self, read};
use crate::room::{Filter, Membership, Position, RoomNum, SlidingToken, ThreadChanges, UserRoom, thread_changes};
use crate::user::ProfileQuery;

/// Names in one list of a request; what the whole request may keep bounds them too.
const NAMES_MAX: usize = 100;
const NAME_BYTES_MAX: usize = 255;
/// What a list or a text costs beside its letters.
const TEXT_BYTES: usize = 48;

/// Changed threads in one answer, whatever the app asks for: some 200 bytes each, and as many as text.
const THREADS_MAX: usize = 100;

// The names while MSC4308, MSC4262 and MSC4354 are proposals.
const THREADS: &str = "io.element.msc4308.thread_subscriptions";
const PROFILES: &str = "org.matrix.msc4262.profiles";
const STICKY: &str = "org.matrix.msc4354.sticky_events";

/// The parsed object `extensions` of a request: those that are enabled.
#[derive(Debug, Default)]
pub struct Extensions {
    to_device: Option<ToDevice>,
    e2ee: bool,
    account_data: Option<Scope>,
    receipts: Option<Scope>,
    typing: Option<Scope>,
    /// The most changes in one answer.
    threads: Option<usize>,
    profiles: Option<Profiles>,
    sticky: Option<StickyEvents>,
}

/// The sticky events of all joined rooms, with a position of their own.
#[derive(Debug)]
struct StickyEvents {
    /// Up to here the app was told of them.
    since: Option<Position>,
}

#[derive(Debug)]
struct ToDevice {
    /// Up to here the app has received its messages.
    since: Option<Position>,
    limit: usize,
}

#[derive(Debug)]
struct Profiles {
    /// None for all fields.
    fields: Option<Vec<String>>,
}

/// The rooms that an extension is for, by lists and subscriptions; `*` stands for all of them.
#[derive(Debug)]
struct Scope {
    lists: Vec<String>,
    rooms: Vec<String>,
}

// ---- the request -------------------------------------------------------------------------------------------------

impl Extensions {
    /// Reads canonical JSON; unknown extensions are passed over. `M_BAD_JSON` for the wrong shape, `M_INVALID_PARAM` beyond
    /// the bounds.
    pub fn parse(text: &[u8]) -> Result<Extensions, ErrorResponse> {
        if !text.starts_with(b"{") {
            return Err(bad("extensions", "an object"));
        }
        let scope = |name| enabled(text, name)?.map(Scope::parse).transpose();
        Ok(Extensions {
            to_device: enabled(text, "to_device")?.map(ToDevice::parse).transpose()?,
            e2ee: enabled(text, "e2ee")?.is_some(),
            account_data: scope("account_data")?,
            receipts: scope("receipts")?,
            typing: scope("typing")?,
            threads: enabled(text, THREADS)?.map(limit).transpose()?.map(|limit| limit.clamp(1, THREADS_MAX)),
            profiles: enabled(text, PROFILES)?.map(Profiles::parse).transpose()?,
            sticky: enabled(text, STICKY)?.map(StickyEvents::parse).transpose()?,
        })
    }

    /// The memory it keeps.
    pub fn bytes(&self) -> usize {
        let scopes = [&self.account_data, &self.receipts, &self.typing].into_iter().flatten();
        let lists = scopes.flat_map(|scope| [&scope.lists, &scope.rooms]);
        let fields = self.profiles.iter().flat_map(|profiles| &profiles.fields);
        lists
            .chain(fields)
            .map(|names| names.iter().map(|name| name.len() + TEXT_BYTES).sum::<usize>() + TEXT_BYTES)
            .sum()
    }

    /// Takes note of what the app says it has received: messages to the device up to there are removed.
    pub async fn acknowledge(&self, client: &Arc<Client>, requester: &Requester) -> Result<(), Error> {
        if let Some(since) = self.to_device.as_ref().and_then(|to_device| to_device.since) {
            client.users.to_device_arrived(requester.user_num, &requester.device_id, since, since).await?;
        }
        Ok(())
    }

    /// The position up to which the app has received its messages, when it asks for them.
    pub fn received(&self) -> Option<Position> {
        self.to_device.as_ref().map(|to_device| to_device.since.unwrap_or_default())
    }

    /// Whether something is asked for beyond what changed since a position of the connection.
    pub fn is_behind(&self, since: SlidingToken) -> bool {
        let sticky = self.sticky.as_ref().map(|sticky| sticky.since.unwrap_or_default());
        self.received().into_iter().chain(sticky).any(|upto| upto < since.at)
            || self.asked().adds_to(Asked(since.extensions))
    }

    /// Which extensions are asked for, to stand in the position of the answer.
    pub fn asked(&self) -> Asked {
        let mut asked = 0;
        let kinds = [
            (Kind::AccountData, self.account_data.is_some()),
            (Kind::Receipts, self.receipts.is_some()),
            (Kind::Typing, self.typing.is_some()),
            (Kind::Threads, self.threads.is_some()),
            (Kind::Profiles, self.profiles.is_some()),
            (Kind::E2ee, self.e2ee),
        ];
        for (kind, is_asked) in kinds {
            asked |= u64::from(is_asked) << kind as u32;
        }
        if let Some(fields) = self.profiles.as_ref().and_then(|profiles| profiles.fields.as_ref()) {
            let fields: Vec<&[u8]> = fields.iter().map(String::as_bytes).collect();
            asked |= hash(&fields) & !KINDS;
        }
        Asked(asked)
    }
}

/// The extensions that have something to tell when they are asked for anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    AccountData,
    Receipts,
    Typing,
    Threads,
    Profiles,
    E2ee,
}

/// The bits of [`Asked`] that stand for kinds; the others are of a hash of the wanted profile fields.
const KINDS: u64 = 0xff;

/// Which extensions a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked(pub u64);

impl Asked {
    fn has(self, kind: Kind) -> bool {
        self.0 >> kind as u32 & 1 != 0
    }

    /// Whether one is asked for that was not before, or for other fields.
    fn adds_to(self, before: Asked) -> bool {
        self.0 & !before.0 & KINDS != 0 || self.has(Kind::Profiles) && self.is_new(Kind::Profiles, before)
    }

    /// Whether an extension was not asked for before, or for other fields.
    fn is_new(self, kind: Kind, before: Asked) -> bool {
        !before.has(kind) || kind == Kind::Profiles && self.0 & !KINDS != before.0 & !KINDS
    }
}

/// The object of an extension, when it is enabled.
fn enabled<'t>(text: &'t [u8], name: &str) -> Result<Option<&'t [u8]>, ErrorResponse> {
    let Some(extension) = given(text, name) else { return Ok(None) };
    if !extension.starts_with(b"{") {
        return Err(bad(name, "an object"));
    }
    match given(extension, "enabled") {
        Some(b"true") => Ok(Some(extension)),
        Some(b"false") | None => Ok(None),
        Some(_) => Err(bad("enabled", "true or false")),
    }
}

fn given<'t>(text: &'t [u8], name: &str) -> Option<&'t [u8]> {
    read::get(text, name).filter(|value| *value != b"null")
}

fn limit(extension: &[u8]) -> Result<usize, ErrorResponse> {
    let Some(limit) = given(extension, "limit") else { return Ok(usize::MAX) };
    let limit = read::integer(limit).and_then(|limit| usize::try_from(limit).ok());
    limit.ok_or_else(|| bad("limit", "a number that is not negative"))
}

fn names(extension: &[u8], member: &str) -> Result<Option<Vec<String>>, ErrorResponse> {
    let Some(list) = given(extension, member) else { return Ok(None) };
    if !list.starts_with(b"[") {
        return Err(bad(member, "a list of texts"));
    }
    let mut names = Vec::new();
    for name in read::items(list) {
        let name = read::text(name).ok_or_else(|| bad(member, "a list of texts"))?;
        if names.len() == NAMES_MAX || name.len() > NAME_BYTES_MAX {
            return Err(ErrorResponse::invalid_param(format!("{member} may have 100 names of 255 bytes")));
        }
        names.push(name.into_owned());
    }
    Ok(Some(names))
}

impl ToDevice {
    fn parse(extension: &[u8]) -> Result<ToDevice, ErrorResponse> {
        let since = match given(extension, "since").map(read::text) {
            None => None,
            Some(since) => {
                let since = since.and_then(|since| since.parse().ok().map(Position));
                Some(
                    since
                        .ok_or_else(|| ErrorResponse::invalid_param("since is no token for messages to the device"))?,
                )
            }
        };
        Ok(ToDevice { since, limit: limit(extension)? })
    }
}

impl StickyEvents {
    fn parse(extension: &[u8]) -> Result<StickyEvents, ErrorResponse> {
        let wrong = || ErrorResponse::invalid_param("since is no token for sticky events");
        let Some(since) = given(extension, "since") else { return Ok(StickyEvents { since: None }) };
        let since = read::text(since).ok_or_else(wrong)?;
        let since = since.strip_prefix("sticky_").and_then(|since| since.parse().ok()).ok_or_else(wrong)?;
        Ok(StickyEvents { since: Some(Position(since)) })
    }

    /// The next joined room behind `after` with events to tell. Reads a row or two of each on the way.
    fn next(&self, look: &Look, after: Option<RoomNum>) -> crate::room::Result<Option<RoomNum>> {
        let view = &look.view;
        let is_wanted =
            |room: &UserRoom| Ok(room.membership() == Membership::Join && view.has_sticky(room.num, self.after(room))?);
        Ok(view.find_room(after, is_wanted)?.map(|room| room.num))
    }

    /// From where a room's events are told: all of one that was joined since.
    fn after(&self, room: &UserRoom) -> Position {
        self.since.filter(|since| room.since() <= *since).unwrap_or_default()
    }

    async fn write(&self, pen: &ChunkWriter, look: &Look) -> Result<(), ChunkError> {
        let view = &look.view;
        pen.text(&format!("\"next_batch\":\"sticky_{}\",\"rooms\":{{", view.now.at));
        let (mut first, mut after) = (true, None);
        let joined = |room: &UserRoom| Ok(room.membership() == Membership::Join);
        while let Some(room) = view.find_room(after, joined)? {
            after = Some(room.num);
            let sticky = view.sticky(room.num, Some(self.after(&room)), None)?;
            if sticky.is_empty() {
                continue;
            }
            let id = view.room_id(room.num)?;
            pen.with(|out| {
                comma(out, &mut first);
                json::write_string(out, &id);
                out.extend_from_slice(b":{\"events\":[");
            });
            view.open(room.num, &Filter::default())?.write_sticky(pen, &sticky).await?;
            pen.text("]}");
            pen.pause().await;
        }
        pen.text("}}");
        Ok(())
    }
}

impl Profiles {
    fn parse(extension: &[u8]) -> Result<Profiles, ErrorResponse> {
        let mut fields = names(extension, "fields")?;
        fields.iter_mut().for_each(|fields| fields.sort_unstable());
        Ok(Profiles { fields })
    }

    fn query(&self, whole: bool) -> ProfileQuery<'_> {
        ProfileQuery { fields: self.fields.as_deref(), whole }
    }
}

impl Scope {
    fn parse(extension: &[u8]) -> Result<Scope, ErrorResponse> {
        let all = || vec!["*".to_owned()];
        Ok(Scope {
            lists: names(extension, "lists")?.unwrap_or_else(all),
            rooms: names(extension, "rooms")?.unwrap_or_else(all),
        })
    }
}

// ---- the answer --------------------------------------------------------------------------------------------------

impl Extensions {
    /// Whether there is something for which a waiting request is answered.
    pub fn has_news(&self, look: &Look, plan: &Plan) -> Result<bool, Error> {
        let Some(since) = look.since else { return Ok(true) };
        let own = &look.own;
        if self.asked().adds_to(Asked(since.extensions))
            || self.to_device.is_some() && own.any_messages()?
            || self.e2ee && (own.any_devices()? || own.any_newcomers()?)
            || self.account_data.is_some() && own.any_account_data(|_| true)?
        {
            return Ok(true);
        }
        if let Some(profiles) = &self.profiles
            && own.any_profiles(profiles.query(false))?
        {
            return Ok(true);
        }
        if self.threads.is_some() && !changed_threads(look, false, 1)?.list.is_empty() {
            return Ok(true);
        }
        if let Some(sticky) = &self.sticky
            && sticky.next(look, None)?.is_some()
        {
            return Ok(true);
        }
        let starts = Starts::default();
        let telling = Telling::new(self.asked(), look, plan, &starts)?;
        for (kind, scope) in self.scopes() {
            if telling.next(kind, scope, None)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The extensions of rooms.
    fn scopes(&self) -> impl Iterator<Item = (Kind, &Scope)> {
        let all =
            [(Kind::AccountData, &self.account_data), (Kind::Receipts, &self.receipts), (Kind::Typing, &self.typing)];
        all.into_iter().filter_map(|(kind, scope)| Some((kind, scope.as_ref()?)))
    }

    /// Writes the members of the object `extensions`. `starts`: where the timelines begin of rooms that are told whole.
    pub async fn write(&self, pen: &ChunkWriter, look: &Look, plan: &Plan, starts: &Starts) -> Result<(), ChunkError> {
        let mut first = true;
        let mut begin = |name: &str| {
            pen.with(|out| {
                comma(out, &mut first);
                json::write_string(out, name);
                out.extend_from_slice(b":{");
            });
        };
        if let Some(to_device) = &self.to_device {
            begin("to_device");
            let end = look.own.messages_end(to_device.limit)?;
            pen.text(&format!("\"next_batch\":\"{end}\",\"events\":["));
            user::write_to_device(pen, &look.own, end).await?;
            pen.text("]}");
        }
        if self.e2ee {
            begin("e2ee");
            // A first answer tells nothing of devices: an app that begins asks for those it needs. One that goes on is told what
            // changed since its position, though it asks for the first time: it does not know that anything is missing.
            if look.since.is_some() && !look.own.is_quiet() {
                pen.text("\"device_lists\":{");
                user::write_device_lists(pen, &look.own).await?;
                pen.text("},");
            }
            pen.with(|out| user::write_keys(out, &look.own))?;
            pen.text("}");
        }
        let telling = Telling::new(self.asked(), look, plan, starts).map_err(of_client)?;
        for (kind, scope) in self.scopes() {
            match kind {
                Kind::AccountData => {
                    begin("account_data");
                    pen.text("\"global\":[");
                    user::write_account_data(pen, &look.own, None, telling.is_new(kind), |_| true, true).await?;
                    pen.text("],");
                }
                Kind::Receipts => begin("receipts"),
                _ => begin("typing"),
            }
            pen.text("\"rooms\":{");
            telling.write_rooms(pen, kind, scope).await?;
            pen.text("}}");
        }
        if let Some(limit) = self.threads {
            let changes = changed_threads(look, telling.is_new(Kind::Threads), limit).map_err(of_client)?;
            if !changes.list.is_empty() || changes.next.is_some() {
                begin(THREADS);
                pen.with(|out| write_threads(out, changes));
                pen.pause().await;
            }
        }
        if let Some(profiles) = &self.profiles {
            begin(PROFILES);
            pen.text("\"users\":");
            look.own.write_profiles(pen, profiles.query(telling.is_new(Kind::Profiles))).await?;
            pen.text("}");
        }
        if let Some(sticky) = &self.sticky {
            begin(STICKY);
            sticky.write(pen, look).await?;
        }
        Ok(())
    }
}

/// The threads whose subscription changed since the connection's position, or at any time: the latest of them.
fn changed_threads(look: &Look, whole: bool, most: usize) -> Result<ThreadChanges, Error> {
    if look.own.is_quiet() && !whole {
        return Ok(ThreadChanges::default());
    }
    let since = look.since.filter(|_| !whole).map_or(Position(0), |since| since.at);
    let changes = thread_changes(&*look.view.read, look.view.reader.user, since, look.view.now.at, most);
    Ok(changes.map_err(crate::room::Error::from)?)
}

/// Ends the extension's object.
fn write_threads(out: &mut Vec<u8>, changes: ThreadChanges) {
    let mut first = true;
    thread::write_changes(out, &mut first, changes.list);
    if let Some(next) = changes.next {
        comma(out, &mut first);
        out.extend_from_slice(format!("\"prev_batch\":\"{}\"", thread::token(next)).as_bytes());
    }
    out.push(b'}');
}

/// What was noted of changes leaves none out: compared with reading everything. `all`: a look at everything.
#[cfg(debug_assertions)]
pub fn check_few(extensions: &Extensions, look: &Look, all: &Look, plan: &Plan) -> Result<(), Error> {
    let own = &all.own;
    let (profiles, starts) = (ProfileQuery { fields: None, whole: false }, Starts::default());
    let is_told = own.any_messages()? || own.any_devices()? || own.any_account_data(|_| true)?;
    assert!(!is_told && !own.any_profiles(profiles)?, "what changed beside the rooms was noted");
    assert!(changed_threads(all, false, 1)?.list.is_empty(), "what changed of threads was noted");
    let telling = Telling::new(extensions.asked(), all, plan, &starts)?;
    for (kind, scope) in extensions.scopes().filter(|(kind, _)| *kind != Kind::Typing) {
        let mut after = None;
        while let Some((room, _)) = telling.next(kind, scope, after)? {
            after = Some(room.num);
            let is_noted = look.only.as_ref().is_none_or(|(_, only)| only.contains(&room.num));
            assert!(is_noted || telling.planned.contains(&room.num), "the change of room {:?} was noted", room.num);
        }
    }
    Ok(())
}

/// How much is told of a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    /// What changed since the connection's position.
    Changes,
    /// Everything: the app knows nothing of the room.
    Whole,
}

/// The part of an answer that extensions tell room by room.
struct Telling<'a> {
    look: &'a Look,
    plan: &'a Plan,
    starts: &'a Starts,
    asked: Asked,
    since: Option<SlidingToken>,
    /// The rooms that the answer tells of, in order.
    planned: Vec<RoomNum>,
    /// The rooms that alone can have something to tell, in order, when that is known.
    only: Option<Vec<RoomNum>>,
    /// The rooms with changed account data, in order. Bounded by the cap on entries of one user.
    account_data: Vec<RoomNum>,
}

impl<'a> Telling<'a> {
    fn new(asked: Asked, look: &'a Look, plan: &'a Plan, starts: &'a Starts) -> Result<Telling<'a>, Error> {
        let mut planned: Vec<RoomNum> = plan.rooms.iter().map(|room| room.num).collect();
        planned.sort_unstable();
        let only = look.only.as_ref().map(|(_, only)| {
            let mut only = [&only[..], &planned].concat();
            only.sort_unstable();
            only.dedup();
            only
        });
        let account_data = look.own.rooms(|_| true)?;
        Ok(Telling { look, plan, starts, asked, since: look.since, planned, only, account_data })
    }

    /// Whether the extension was not asked for by the request before.
    fn is_new(&self, kind: Kind) -> bool {
        self.since.is_none_or(|since| self.asked.is_new(kind, Asked(since.extensions)))
    }

    /// The position to tell changes from.
    fn known(&self) -> Position {
        self.since.map_or(Position(0), |since| since.at)
    }

    /// The next room behind `after` of which the extension has something to tell, and how much.
    fn next(&self, kind: Kind, scope: &Scope, after: Option<RoomNum>) -> Result<Option<(UserRoom, Share)>, Error> {
        let (mut share, mut failed) = (None, None);
        let mut is_wanted = |room: &UserRoom| match self.share(kind, scope, room) {
            Ok(found) => {
                share = found;
                Ok(found.is_some())
            }
            Err(wrong) => {
                failed = Some(wrong);
                Ok(true)
            }
        };
        let found = match &self.only {
            Some(only) => self.look.view.find_room_of(only, after, &mut is_wanted)?,
            None => self.look.view.find_room(after, &mut is_wanted)?,
        };
        match failed {
            Some(failed) => Err(failed),
            None => Ok(found.zip(share)),
        }
    }

    /// How much an extension tells of a room; none for nothing.
    fn share(&self, kind: Kind, scope: &Scope, room: &UserRoom) -> Result<Option<Share>, Error> {
        if kind != Kind::AccountData && room.membership() != Membership::Join {
            return Ok(None);
        }
        // Asked before anything of the room is read: of most rooms there is nothing to tell.
        let (is_planned, is_new) = (self.planned.binary_search(&room.num).is_ok(), self.is_new(kind));
        if !is_planned && !is_new && !self.has_changed(kind, room.num)? {
            return Ok(None);
        }
        let share = match self.look.told(room.num)? {
            None if !is_planned => return Ok(None),
            None => Share::Whole,
            Some(told) => {
                let came_back = room.membership() == Membership::Join && room.since() > self.look.told_upto(&told);
                if is_new || is_planned && came_back { Share::Whole } else { Share::Changes }
            }
        };
        let tells = match share {
            Share::Whole => self.has_any(kind, room.num)?,
            Share::Changes if kind == Kind::Receipts && self.starts.contains_key(&room.num) => true,
            Share::Changes => self.has_changed(kind, room.num)?,
        };
        Ok((tells && self.look.concerns(self.plan, room.num, &scope.lists, &scope.rooms)?).then_some(share))
    }

    fn has_changed(&self, kind: Kind, room: RoomNum) -> Result<bool, Error> {
        let (view, since) = (&self.look.view, self.known());
        Ok(match kind {
            Kind::AccountData => {
                self.account_data.binary_search(&room).is_ok() || view.fully_read(room, Some(since))?.is_some()
            }
            Kind::Receipts => view.has_receipts(room, since)?,
            Kind::Typing => view.has_typing(room, self.since.map_or(0, |since| since.typing)),
            Kind::Threads | Kind::Profiles | Kind::E2ee => false,
        })
    }

    fn has_any(&self, kind: Kind, room: RoomNum) -> Result<bool, Error> {
        let view = &self.look.view;
        Ok(match kind {
            Kind::AccountData => {
                !self.look.own.account_data_types(Some(room), true)?.is_empty()
                    || view.fully_read(room, None)?.is_some()
            }
            Kind::Receipts => view.has_receipts(room, Position(0))?,
            Kind::Typing => view.typing_users(room, None)?.is_some(),
            Kind::Threads | Kind::Profiles | Kind::E2ee => false,
        })
    }

    /// Writes the members of an extension's object `rooms`.
    async fn write_rooms(&self, pen: &ChunkWriter, kind: Kind, scope: &Scope) -> Result<(), ChunkError> {
        let (mut first, mut after) = (true, None);
        while let Some((room, share)) = self.next(kind, scope, after).map_err(of_client)? {
            after = Some(room.num);
            match kind {
                Kind::AccountData => self.write_account_data(pen, room.num, share, &mut first).await?,
                Kind::Receipts => self.write_receipts(pen, room.num, share, &mut first)?,
                _ => self.write_typing(pen, room.num, share, &mut first)?,
            }
            pen.pause().await;
        }
        Ok(())
    }

    fn begin(&self, pen: &ChunkWriter, room: RoomNum, first: &mut bool) -> crate::room::Result<()> {
        let id = self.look.view.room_id(room)?;
        pen.with(|out| {
            comma(out, first);
            json::write_string(out, &id);
            out.push(b':');
        });
        Ok(())
    }

    async fn write_account_data(
        &self,
        pen: &ChunkWriter,
        room: RoomNum,
        share: Share,
        first: &mut bool,
    ) -> Result<(), ChunkError> {
        self.begin(pen, room, first)?;
        let whole = share == Share::Whole;
        let marker = self.look.view.fully_read(room, (!whole).then(|| self.known()))?;
        pen.text("[");
        if let Some(event_id) = &marker {
            pen.text("{\"type\":\"m.fully_read\",\"content\":{\"event_id\":");
            pen.with(|out| json::write_string(out, event_id));
            pen.text("}}");
        }
        user::write_account_data(pen, &self.look.own, Some(room), whole, |_| true, marker.is_none()).await?;
        pen.text("]");
        Ok(())
    }

    /// Of a room whose timeline is told anew, the receipts since its first event came, and the user's own.
    fn write_receipts(
        &self,
        pen: &ChunkWriter,
        room: RoomNum,
        share: Share,
        first: &mut bool,
    ) -> crate::room::Result<()> {
        let view = &self.look.view;
        let receipts = match (share, self.starts.get(&room)) {
            (Share::Changes, None) => view.receipts(room, self.known())?,
            (Share::Changes, Some(start)) => view.first_receipts(room, self.known().min(*start))?,
            (Share::Whole, start) => view.first_receipts(room, start.copied().unwrap_or(view.now.at))?,
        };
        if !receipts.is_empty() {
            self.begin(pen, room, first)?;
            ephemeral::write_receipts(pen, view, &receipts)?;
        }
        Ok(())
    }

    fn write_typing(
        &self,
        pen: &ChunkWriter,
        room: RoomNum,
        share: Share,
        first: &mut bool,
    ) -> crate::room::Result<()> {
        let since = self.since.filter(|_| share == Share::Changes).map(|since| since.typing);
        if let Some(users) = self.look.view.typing_users(room, since)? {
            self.begin(pen, room, first)?;
            ephemeral::write_typing(pen, &users);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::base::any_bytes::any_bytes;
    use crate::matrix::json::{Mode, canonical};

    fn parsed(extensions: &Value) -> Result<Extensions, ErrorResponse> {
        Extensions::parse(&canonical(extensions.to_string().as_bytes(), Mode::Lenient).unwrap())
    }

    #[test]
    fn what_is_not_enabled_or_not_known_is_passed_over() {
        let none = json!({ "typing": { "enabled": false }, "receipts": {}, "e2ee": null, "org.example": 5 });
        let extensions = parsed(&none).unwrap();
        assert_eq!((extensions.asked(), extensions.received(), extensions.scopes().count()), (Asked(0), None, 0));
        let all = json!({ "typing": { "enabled": true }, "to_device": { "enabled": true, "since": "7", "limit": 3 } });
        let extensions = parsed(&all).unwrap();
        let scope = extensions.typing.as_ref().unwrap();
        assert_eq!((&scope.lists[..], &scope.rooms[..]), (&["*".to_owned()][..], &["*".to_owned()][..]));
        assert_eq!(extensions.received(), Some(Position(7)));
        let since = SlidingToken { num: Position(0), at: Position(7), typing: 0, complete: Position(7), extensions: 0 };
        let known = SlidingToken { extensions: extensions.asked().0, ..since };
        assert!(extensions.is_behind(since) && !extensions.is_behind(known));
        assert!(extensions.is_behind(SlidingToken { at: Position(8), ..known }));
    }

    #[test]
    fn other_profile_fields_are_something_new() {
        let asking =
            |fields: Value| parsed(&json!({ PROFILES: { "enabled": true, "fields": fields } })).unwrap().asked();
        let (one, two) = (asking(json!(["a"])), asking(json!(["a", "b"])));
        assert!(two.adds_to(one) && one.adds_to(asking(Value::Null)) && one.adds_to(Asked(0)));
        assert!(!two.adds_to(asking(json!(["b", "a"]))));
        assert!(!two.is_new(Kind::Profiles, Asked(two.0 & !1)), "another extension is none of its business");
        let text =
            SlidingToken { num: Position(1), at: Position(2), typing: 3, complete: Position(2), extensions: two.0 };
        assert_eq!(SlidingToken::parse(&text.to_string()), Some(text));
    }

    #[test]
    fn wrong_shapes_and_long_lists_are_refused() {
        let names = |count: usize, bytes: usize| vec!["x".repeat(bytes); count];
        for wrong in [
            json!({ "typing": 1 }),
            json!({ "typing": { "enabled": 1 } }),
            json!({ "typing": { "enabled": true, "lists": "*" } }),
            json!({ "typing": { "enabled": true, "rooms": [1] } }),
            json!({ "typing": { "enabled": true, "rooms": names(101, 1) } }),
            json!({ PROFILES: { "enabled": true, "fields": names(1, 256) } }),
            json!({ THREADS: { "enabled": true, "limit": -1 } }),
            json!({ "to_device": { "enabled": true, "since": "s5" } }),
            json!({ STICKY: { "enabled": true, "since": "5" } }),
        ] {
            assert!(parsed(&wrong).is_err(), "{wrong}");
        }
        parsed(&json!({ "typing": { "enabled": true, "rooms": names(100, 255) } })).unwrap();
        let all =
            json!({ "to_device": { "enabled": true, "since": "5" }, "receipts": { "enabled": true, "lists": ["a"] } });
        any_bytes(&[all.to_string().as_bytes(), b"{}"], |bytes| {
            if let Ok(text) = canonical(bytes, Mode::Lenient) {
                let _ = Extensions::parse(&text).map(|extensions| (extensions.asked(), extensions.bytes()));
            }
        });
    }
}
