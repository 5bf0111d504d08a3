//! Backups: which there are, the schedule, one that is being made, and the way back.

use std::path::Path;
use std::sync::Arc;

use askama::Template;

use super::frame::{Form, Frame, LIST_ROWS, Pages, Pieces, Visit, sentence};
use super::people::{ago, moment};
use super::rooms::{grouped, many};
use crate::admin::{Admin, error::Error};
use crate::backup::{Backups, Found, Made, Media, Options, Progress, Stage, Status, stamp};
use crate::base::{blocking, bounded, date, detached, span};
use crate::budget::human;
use crate::http::{ErrorResponse, Response};

/// Of the path of a target, and of an error.
const TEXT_CHARS_MAX: usize = 300;
/// Backups in other places that are shown.
const ELSEWHERE_SHOWN: usize = 5;

pub fn routes(pages: &mut Pages<'_>) {
    pages
        .show("backups/", show)
        .act("backups/", change)
        .show("backups/of/{stamp}", one)
        .act("backups/of/{stamp}", look);
}

#[derive(Template)]
#[template(path = "backups.html")]
struct Page {
    frame: Frame,
    progress: String,
    is_running: bool,
    /// Of the sign: nothing when all is well.
    class: &'static str,
    headline: String,
    about: String,
    schedule: Option<Schedule>,
    trouble: Option<String>,
    rows: Vec<Row>,
    total: String,
    next: Option<usize>,
    is_first: bool,
    elsewhere: Vec<Row>,
    is_sealed: bool,
}

/// What the config file says of them.
struct Schedule {
    target: String,
    facts: Vec<(&'static str, String)>,
}

struct Row {
    path: Option<String>,
    name: String,
    about: String,
    badges: Vec<(&'static str, &'static str)>,
}

impl Row {
    fn new(found: &Found, made: &[Made]) -> Row {
        let made = made.iter().rfind(|made| stamp(made.begun_ms) == found.stamp);
        Row {
            path: Some(format!("backups/of/{}", found.stamp)),
            name: named(&found.stamp),
            about: match made {
                Some(made) => sizes(made),
                None => "made by another server, or too long ago to know more".to_owned(),
            },
            badges: [
                (made.is_some(), ("read back", "")),
                (found.is_sealed, ("sealed", "soft")),
                (!found.is_sealed, ("not sealed", "soft")),
            ]
            .into_iter()
            .filter_map(|(is, badge)| is.then_some(badge))
            .collect(),
        }
    }

    fn elsewhere(made: &Made) -> Row {
        Row {
            path: None,
            name: moment(made.begun_ms),
            about: format!("{} · {}", bounded(&made.target, TEXT_CHARS_MAX), sizes(made)),
            badges: vec![("read back", "")],
        }
    }
}

fn sizes(made: &Made) -> String {
    format!("{} in it, {} of that written", human(made.bytes), human(made.new_bytes.min(made.bytes)))
}

/// The time in the name of a backup, such as `2026-11-30T002517Z`.
fn named(stamp: &str) -> String {
    match (stamp.get(..10), stamp.get(11..13), stamp.get(13..15)) {
        (Some(day), Some(hour), Some(minute)) => format!("{day} {hour}:{minute} UTC"),
        _ => stamp.to_owned(),
    }
}

fn is_stamp(text: &str) -> bool {
    text.len() == 18 && text.bytes().all(|byte| byte.is_ascii_digit() || b"-TZ".contains(&byte))
}

async fn status(backups: &Backups) -> Result<Status, Error> {
    let backups = backups.clone();
    Ok(blocking(move || backups.status()).await?)
}

/// `GET backups/?from=20`: the newest first.
pub async fn show(visit: Visit) -> Result<Response, Error> {
    let (backups, now_ms) = (&visit.admin.backups, visit.admin.clock.settled_ms());
    let from = visit.request.query_as::<u32>("from")?.unwrap_or(0) as usize;
    let status = status(backups).await?;
    let (found, trouble) = match backups.scheduled().await {
        Ok(found) => (found, None),
        Err(failed) => (Vec::new(), Some(sentence(&bounded(failed, TEXT_CHARS_MAX)))),
    };
    let options = backups.options();
    let target = options.target.as_deref().map(Path::to_string_lossy);
    let elsewhere = status.noted.made.iter().rev().filter(|made| target.as_deref() != Some(made.target.as_str()));
    let (class, headline, about) = state(&status, now_ms);
    let until = from.saturating_add(LIST_ROWS);
    let page = Page {
        frame: visit.frame("backups", "Backups").live("backups"),
        progress: progress(&visit.admin, &visit.token).await?,
        is_running: status.running.is_some(),
        class,
        headline,
        about,
        schedule: schedule(options, backups.next_ms(), now_ms),
        trouble,
        total: many(found.len() as u64, "backup"),
        next: (until < found.len()).then_some(until),
        is_first: from == 0,
        rows: found.iter().skip(from).take(LIST_ROWS).map(|found| Row::new(found, &status.noted.made)).collect(),
        elsewhere: elsewhere.take(ELSEWHERE_SHOWN).map(Row::elsewhere).collect(),
        is_sealed: options.recipient.is_some() || options.passphrase_file.is_some(),
    };
    visit.page(&page).await
}

/// How it is, as Home says it of the whole server.
fn state(status: &Status, now_ms: u64) -> (&'static str, String, String) {
    let noted = &status.noted;
    // Where the schedule makes them, one by hand is none of these.
    let made_ms = if status.is_scheduled { noted.scheduled_ms } else { noted.made_ms };
    let last = match made_ms {
        Some(made_ms) if now_ms.saturating_sub(made_ms) < 60_000 => "The last one was made just now.".to_owned(),
        Some(made_ms) => format!("The last one was made {} ago.", span(now_ms.saturating_sub(made_ms))),
        None => "There is none yet.".to_owned(),
    };
    let is_old = made_ms.is_none_or(|made_ms| now_ms.saturating_sub(made_ms) > crate::backup::OLD_MS);
    match (&noted.why, noted.failed_ms) {
        (Some(why), Some(failed_ms)) => {
            let why = bounded(why, TEXT_CHARS_MAX);
            let about = format!("{} {last}", sentence(&format!("It failed {}: {why}", ago(failed_ms, now_ms))));
            ("wrong", "The last backup failed".to_owned(), about)
        }
        _ if !status.is_scheduled => ("look", "No backups are made by themselves".to_owned(), last),
        _ if made_ms.is_none() => ("look", "There is no backup yet".to_owned(), String::new()),
        _ if is_old => ("look", "The last backup is old".to_owned(), last),
        _ => ("", "Backups are made each day".to_owned(), last),
    }
}

fn schedule(options: &Options, next_ms: Option<u64>, now_ms: u64) -> Option<Schedule> {
    let target = options.target.as_ref()?;
    let next = next_ms.map_or(String::new(), |next_ms| format!(", in {}", span(next_ms.saturating_sub(now_ms))));
    let sealed = match (&options.recipient, &options.passphrase_file) {
        (Some(recipient), _) => format!("to {}", bounded(recipient, 100)),
        (None, Some(_)) => "to a passphrase".to_owned(),
        (None, None) => "no: who has the folder can read everything that is not encrypted by apps".to_owned(),
    };
    let facts = vec![
        ("Made", format!("each day at {:02}:{:02} UTC{next}", options.minute / 60, options.minute % 60)),
        (
            "Kept",
            options.keep_days.map_or("all of them".to_owned(), |days| {
                format!("for {}; the newest always", many(days.into(), "day"))
            }),
        ),
        (
            "Pictures and files",
            match options.media {
                Media::Own => "those that people here uploaded",
                Media::All => "all, those of other servers too",
                Media::None => "none",
            }
            .to_owned(),
        ),
        ("Sealed", sealed),
    ];
    Some(Schedule { target: bounded(target.display(), TEXT_CHARS_MAX), facts })
}

#[derive(Template)]
#[template(path = "backup_progress.html")]
struct Running<'a> {
    root: &'a str,
    token: &'a str,
    now: Option<Now>,
    /// How the last one since the start ended, and whether it is whole.
    ended: Option<(bool, String)>,
}

struct Now {
    about: String,
    /// Of a thousand.
    done: u64,
}

impl Now {
    /// The rows are the first two fifths of the bar, files the next two, what is read back the last.
    fn new(progress: &Progress) -> Now {
        let share = |done: u64, of: u64| (u128::from(done.min(of)) * 400 / u128::from(of.max(1))) as u64;
        let of = |done: u64, all: u64| format!("{} of {}", human(done), human(all.max(done)));
        let rows = (progress.rows_done, progress.rows);
        let media = (progress.media_done, progress.media_bytes);
        let (about, done) = match progress.stage {
            Stage::Files => ("Keys and settings".to_owned(), 0),
            Stage::Rows => {
                let about = format!("Messages: {} of {} rows", grouped(rows.0), grouped(rows.1.max(rows.0)));
                (about, share(rows.0, rows.1))
            }
            Stage::Media => (format!("Pictures and files: {}", of(media.0, media.1)), 400 + share(media.0, media.1)),
            Stage::List | Stage::Check => {
                let (done, all) = (progress.checked_bytes, progress.written_bytes);
                (format!("Reading back what was written: {}", of(done, all)), 800 + share(done, all) / 2)
            }
        };
        Now { about, done }
    }
}

async fn progress(admin: &Admin, token: &str) -> Result<String, Error> {
    let status = status(&admin.backups).await?;
    let ended = status.ended.map(|ended| match ended {
        Ok(said) => (true, bounded(said, TEXT_CHARS_MAX)),
        Err(why) => (false, sentence(&bounded(format!("the backup failed: {why}"), TEXT_CHARS_MAX))),
    });
    let now = status.running.as_ref().map(Now::new);
    let page = Running { root: admin.page.root(), token, now, ended };
    Ok(page.render().map_err(ErrorResponse::internal)?)
}

/// What changes while somebody looks.
pub async fn pieces(admin: &Arc<Admin>, token: &str) -> Result<Pieces, Error> {
    Ok(Pieces::from([("progress", progress(admin, token).await?)]))
}

/// `POST backups/`: begins a backup as the schedule would, or ends the one that is being made, by the field `what`. A target
/// is never a field: whoever administers the server need not be who owns the machine.
pub async fn change(visit: Visit, form: Form) -> Result<Response, Error> {
    let backups = visit.admin.backups.clone();
    let what = form.text("what");
    match what.as_str() {
        "backup-now" => {
            if backups.options().target.is_none() {
                return Err(ErrorResponse::bad("M_UNKNOWN", "No folder for backups is set: backup.target").into());
            }
            let turn = backups.begin()?;
            // How it ends is in the status, and in the log.
            detached(async move { drop(backups.make_now(turn).await) });
        }
        "cancel-backup" => {
            if !backups.cancel() {
                return Err(ErrorResponse::not_found("no backup is being made").into());
            }
        }
        _ => return Err(ErrorResponse::invalid_param("this page has no such button").into()),
    }
    tracing::info!("{} on the page: {what}", visit.user_id);
    Ok(visit.done("backups/", &what))
}

#[derive(Template)]
#[template(path = "backup.html")]
struct One {
    frame: Frame,
    path: String,
    name: String,
    stamp: String,
    target: String,
    is_sealed: bool,
    facts: Vec<(&'static str, String)>,
    /// Whether all of it is there, in words, once somebody asked.
    looked: Option<(bool, String)>,
}

/// `GET backups/of/{stamp}`
pub async fn one(visit: Visit) -> Result<Response, Error> {
    let found = found(&visit).await?;
    page(&visit, &found, None).await
}

/// `POST backups/of/{stamp}`: looks whether all of it is there.
pub async fn look(visit: Visit, _: Form) -> Result<Response, Error> {
    let found = found(&visit).await?;
    let looked = match visit.admin.backups.look(found.clone()).await {
        Ok((things, bytes)) => {
            (true, format!("All {} of it are there, {} on that disk.", many(things, "piece"), human(bytes)))
        }
        Err(failed) => (false, sentence(&bounded(failed, TEXT_CHARS_MAX))),
    };
    page(&visit, &found, Some(looked)).await
}

async fn found(visit: &Visit) -> Result<Found, Error> {
    let wanted = visit.request.param("stamp");
    let found = match is_stamp(wanted) {
        true => visit.admin.backups.scheduled().await?.into_iter().find(|found| found.stamp == wanted),
        false => None,
    };
    Ok(found.ok_or_else(|| ErrorResponse::not_found("there is no such backup, or not any more"))?)
}

async fn page(visit: &Visit, found: &Found, looked: Option<(bool, String)>) -> Result<Response, Error> {
    let backups = &visit.admin.backups;
    let status = status(backups).await?;
    let made = status.noted.made.iter().rfind(|made| stamp(made.begun_ms) == found.stamp);
    let mut facts = vec![("Sealed", if found.is_sealed { "yes" } else { "no" }.to_owned())];
    if let Some(made) = made {
        facts.extend([
            ("All that is in it", human(made.bytes)),
            ("New in it", format!("{}; the rest was there", human(made.new_bytes))),
            ("Took", span(made.at_ms.saturating_sub(made.begun_ms))),
            ("Read back", format!("on {}", date(made.at_ms))),
        ]);
    }
    let page = One {
        frame: visit.frame("backups", format!("Backup of {}", named(&found.stamp))),
        path: format!("backups/of/{}", found.stamp),
        name: named(&found.stamp),
        stamp: found.stamp.clone(),
        target: backups.options().target.as_ref().map_or(String::new(), |target| bounded(target.display(), 255)),
        is_sealed: found.is_sealed,
        facts,
        looked,
    };
    visit.page(&page).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_goes_on_from_stage_to_stage() {
        let at = |stage, part: u64| {
            let progress = Progress {
                stage,
                rows_done: part,
                rows: 10,
                media_done: part,
                media_bytes: 10,
                checked_bytes: part,
                written_bytes: 10,
                ..Progress::default()
            };
            Now::new(&progress).done
        };
        let stages = [Stage::Files, Stage::Rows, Stage::Media, Stage::Check];
        let all: Vec<u64> = stages.into_iter().flat_map(|stage| [at(stage, 0), at(stage, 10)]).collect();
        assert_eq!(all, [0, 0, 0, 400, 400, 800, 800, 1000]);
        // More than was thought: files may come while they are copied.
        assert_eq!(at(Stage::Media, u64::MAX), 800);
    }

    #[test]
    fn what_is_wrong_is_said_first() {
        let mut status = Status::default();
        assert_eq!(state(&status, 0).1, "No backups are made by themselves");
        status.is_scheduled = true;
        assert_eq!(state(&status, 0).1, "There is no backup yet");
        status.noted.made_ms = Some(0);
        assert_eq!(state(&status, 0).1, "There is no backup yet", "of the schedule");
        status.noted.scheduled_ms = Some(0);
        assert_eq!(
            state(&status, 5_000),
            ("", "Backups are made each day".into(), "The last one was made just now.".into())
        );
        assert_eq!(state(&status, 3 * 24 * 60 * 60 * 1000).0, "look");
        (status.noted.failed_ms, status.noted.why) = (Some(0), Some("the disk is gone".to_owned()));
        let said = "It failed just now: the disk is gone. The last one was made just now.";
        assert_eq!(state(&status, 5_000), ("wrong", "The last backup failed".into(), said.into()));
    }

    #[test]
    fn a_name_is_a_time() {
        assert_eq!(named("2026-11-30T002517Z"), "2026-11-30 00:25 UTC");
        assert!(is_stamp("2026-11-30T002517Z") && !is_stamp("../../etc/passwd") && !is_stamp(""));
    }
}
