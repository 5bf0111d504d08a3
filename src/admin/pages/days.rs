//! What each day brought, as bars.

use askama::Template;

use crate::admin::{Admin, error::Error};
use crate::base::date;
use crate::budget::human;
use crate::http::ErrorResponse;
use crate::room::Day;

/// The days of a picture.
const DAYS: usize = 30;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Of a bar and the gap beside it, in a picture that is 100 high.
const STEP: usize = 10;

#[derive(Template)]
#[template(path = "days.html")]
struct Days {
    title: &'static str,
    today: String,
    most: String,
    from: String,
    width: usize,
    bars: Vec<Bar>,
}

struct Bar {
    x: usize,
    y: u64,
    height: u64,
    class: &'static str,
    label: String,
}

/// Two pictures: messages, and bytes written.
pub async fn pictures(admin: &Admin) -> Result<String, Error> {
    let (today, days) = admin.rooms.days(DAYS).await?;
    let messages = picture("Messages", today, &days, |day| day.messages, |count| count.to_string());
    let bytes = picture("Written to the disk", today, &days, |day| day.bytes, human);
    let written = [messages, bytes].map(|picture| picture.render()).into_iter().collect::<Result<String, _>>();
    Ok(written.map_err(ErrorResponse::internal)?)
}

fn picture(title: &'static str, today: u32, days: &[(u32, Day)], of: fn(&Day) -> u64, say: fn(u64) -> String) -> Days {
    let first = today.saturating_sub(DAYS as u32 - 1);
    let values: Vec<u64> = (first..=today)
        .map(|number| days.iter().find(|(day, _)| *day == number).map_or(0, |(_, day)| of(day)))
        .collect();
    let most = values.iter().copied().max().unwrap_or(0);
    let named = |number: u32| date(u64::from(number) * DAY_MS);
    let bars = values.iter().enumerate().map(|(at, value)| {
        // A day that brought something is seen; one that did not is a line on the ground.
        let height = (u128::from(*value) * 100 / u128::from(most.max(1))) as u64;
        let height = height.max(if *value > 0 { 3 } else { 1 });
        let class = if *value > 0 { "used" } else { "ground-line" };
        let label = format!("{}: {}", named(first + at as u32), say(*value));
        Bar { x: at * STEP, y: 100 - height, height, class, label }
    });
    let bars: Vec<Bar> = bars.collect();
    Days {
        title,
        today: say(values.last().copied().unwrap_or(0)),
        most: say(most),
        from: named(first),
        width: bars.len() * STEP,
        bars,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_without_a_count_are_there_and_the_highest_bar_is_as_high_as_the_picture() {
        let day = |messages| Day { messages, bytes: 0 };
        let days = [(20_000, day(5)), (20_002, day(u64::MAX)), (20_003, day(1))];
        let picture = picture("Messages", 20_003, &days, |day| day.messages, |count| count.to_string());
        assert_eq!(picture.bars.len(), DAYS);
        let last: Vec<_> = picture.bars.iter().rev().take(4).map(|bar| bar.height).collect();
        assert_eq!(last, [3, 100, 1, 3]);
        assert_eq!((picture.today.as_str(), picture.bars[29].label.as_str()), ("1", "2024-10-07: 1"));
        assert!(picture.bars.iter().all(|bar| bar.y + bar.height == 100));
    }
}
