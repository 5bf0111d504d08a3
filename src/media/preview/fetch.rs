//! Asking for what a preview is made of: each address on the way is looked at, and what its site asks of programs.
//!
//! robots.txt is asked in the same way as a page, with the same address policy. RFC 9309 is about programs that find their pages
//! by themselves, and this one asks for a page that somebody here came across; but who wrote the link need not be who wants it
//! read, and a site that says no mostly answers programs with a page to log in. So it is followed unless the settings say otherwise, with
//! this choice: a site whose robots.txt fails (5xx) or does not come is not asked for the page either, as section 2.3.1.4 says. It is
//! a sign of a site that has no time for us, the page would mostly fail the same way and take another 20 s to do so, and it is
//! tried again after ten minutes.

use std::time::Duration;

use http::{HeaderValue, header};
use parking_lot::Mutex;
use url::Url;

use super::robots::{self, Reader, Rules};
use super::{FAILED_KEPT_MS, KEPT_MS, NoPreview, PICTURE_BYTES_MAX, failed};
use crate::media::Media;
use crate::remote::web::{Plain, WebAnswer, WebFailed, WebLimits, WebRequest};

/// For all until the body was read, with redirects and what robots.txt says.
const TIME: Duration = Duration::from_secs(20);
/// The same with the wait for the connections' memory, which others than web servers may have.
const TIME_WITH_MEMORY: Duration = Duration::from_secs(25);
/// Of those, for one site's robots.txt. Half of what a page has, so that time for it is left.
const RULES_TIME: Duration = Duration::from_secs(5);
/// Of a page, and of robots.txt (RFC 9309, 2.3.1.2: at least five).
const REDIRECTS_MAX: u32 = 5;

const RULES_PATH: &str = "/robots.txt";

/// What the rules of all sites may take that are kept: those of the sites that people here link to. A fixed bound, since it is small.
const KNOWN_BYTES_MAX: usize = 8 << 10;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// The link itself.
    Page,
    /// The picture that a page names to be shown with links to it. So robots.txt is not asked about it.
    Picture,
    /// robots.txt itself, which anybody may read (2.2.2).
    Rules,
}

impl What {
    fn accept(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            What::Page => "text/html, application/xhtml+xml, image/*;q=0.9, */*;q=0.1",
            What::Picture => "image/*",
            What::Rules => "text/plain, */*;q=0.1",
        })
    }
}

/// What sites asked of programs, the one used last at the end.
#[derive(Default)]
pub(super) struct KnownRules(Mutex<Vec<Known>>);

struct Known {
    origin: String,
    until_ms: u64,
    says: Says,
}

#[derive(Clone)]
enum Says {
    Rules(Rules),
    /// robots.txt failed, with this status.
    Fails(u16),
}

impl Known {
    fn bytes(&self) -> usize {
        let rules = match &self.says {
            Says::Rules(rules) => rules.bytes(),
            Says::Fails(_) => 0,
        };
        size_of::<Known>() + self.origin.len() + rules
    }
}

impl KnownRules {
    /// Whether a site leaves a page to programs, when it is known.
    fn look(&self, origin: &str, path: &str, now_ms: u64) -> Option<Result<(), NoPreview>> {
        let mut all = self.0.lock();
        let at = all.iter().position(|known| known.origin == origin && known.until_ms > now_ms)?;
        let known = all.remove(at);
        let said = match &known.says {
            Says::Rules(rules) => wanted(rules.allow(path)),
            Says::Fails(status) => Err(fails(*status)),
        };
        all.push(known);
        Some(said)
    }

    fn keep(&self, known: Known) {
        let mut all = self.0.lock();
        all.retain(|other| other.origin != known.origin);
        all.push(known);
        let mut bytes: usize = all.iter().map(Known::bytes).sum();
        while bytes > KNOWN_BYTES_MAX {
            bytes -= all.remove(0).bytes();
        }
        all.shrink_to_fit();
    }
}

fn wanted(is: bool) -> Result<(), NoPreview> {
    if is { Ok(()) } else { Err(NoPreview::Unwanted) }
}

fn fails(status: u16) -> NoPreview {
    NoPreview::Failed(format!("does not say whether programs may read it: its robots.txt fails with {status}"))
}

/// Where an answer leads.
fn leads_to(answer: &WebAnswer) -> Option<&str> {
    let is_redirect = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
    answer.headers.get(header::LOCATION).filter(|_| is_redirect)?.to_str().ok()
}

impl Media {
    /// Asks for a page or a picture. Its answer is a good one.
    pub(super) async fn ask(&self, url: &Url, what: What) -> Result<WebAnswer, NoPreview> {
        let asked = self.0.parts.clock.timeout(TIME_WITH_MEMORY, self.follow(url, what));
        asked.await.unwrap_or(Err(NoPreview::Busy))
    }

    async fn follow(&self, url: &Url, what: What) -> Result<WebAnswer, NoPreview> {
        let clock = &self.0.parts.clock;
        let (mut url, until) = (url.clone(), clock.instant() + TIME);
        for _ in 0..=REDIRECTS_MAX {
            if what == What::Page {
                self.check_rules(&url).await?;
            }
            let answer = self.ask_once(&url, what, until).await.map_err(failed)?;
            match (leads_to(&answer), answer.status) {
                (Some(to), _) => {
                    let to = url.join(to).map_err(|_| NoPreview::Failed("redirects to no address".to_owned()))?;
                    url = self.allowed_url(to)?;
                }
                (None, 200..=299) => return Ok(answer),
                (None, status) => return Err(NoPreview::Failed(format!("answers with {status}"))),
            }
        }
        Err(failed(WebFailed::TooManyRedirects))
    }

    /// Follows nothing: a host of the home network that may be asked leads to no other there.
    async fn ask_once(&self, url: &Url, what: What, until: Duration) -> Result<WebAnswer, WebFailed> {
        let is_listed = self.is_private_host(url);
        let limits = WebLimits {
            time: until.saturating_sub(self.0.parts.clock.instant()),
            // robots.txt is read so far, and not refused for its length.
            body_bytes_max: if what == What::Rules { u64::MAX } else { PICTURE_BYTES_MAX },
            redirects_max: 0,
            plain: Plain::Everywhere,
            allow_private: is_listed || self.0.previews.options.get().allow_private,
            ..WebLimits::default()
        };
        let mut request = WebRequest::get(url.as_str().to_owned());
        request.headers.insert(header::ACCEPT, what.accept());
        self.0.parts.remote.web().ask(request, limits).await
    }

    /// Whether the settings name the host of a URL as one of the home network that may be asked.
    fn is_private_host(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default().trim_end_matches('.');
        self.0.previews.options.get().private_hosts.iter().any(|one| one.eq_ignore_ascii_case(host))
    }

    /// Whether the site of a page leaves it to programs. What the settings name is asked whatever it says.
    async fn check_rules(&self, url: &Url) -> Result<(), NoPreview> {
        if !self.0.previews.options.get().robots_txt || self.is_private_host(url) || url.path() == RULES_PATH {
            return Ok(());
        }
        let (origin, path) = (url.origin().ascii_serialization(), robots::path(url));
        let (known, now_ms) = (&self.0.previews.known_rules, self.0.parts.clock.now_ms());
        if let Some(said) = known.look(&origin, &path, now_ms) {
            return said;
        }
        let mut origins = Vec::new();
        let (is_wanted, says) = self.rules_of(url, &path, &mut origins).await?;
        let kept_ms = if matches!(says, Some(Says::Fails(_))) { FAILED_KEPT_MS } else { KEPT_MS };
        let said = match says {
            Some(Says::Fails(status)) => Err(fails(status)),
            _ => wanted(is_wanted),
        };
        if let Some(says) = says {
            // No longer than a day (2.4).
            for origin in origins {
                known.keep(Known { origin, until_ms: now_ms + kept_ms, says: says.clone() });
            }
        }
        said
    }

    /// Reads the rules of a page's site for that page: whether they allow it, and what can be kept. `origins`: whose they are,
    /// which are the sites on the way that were asked for their own: a page under http mostly leads to one under https, as this does.
    async fn rules_of(
        &self,
        url: &Url,
        path: &str,
        origins: &mut Vec<String>,
    ) -> Result<(bool, Option<Says>), NoPreview> {
        let all = || Ok((true, Some(Says::Rules(Rules::NONE))));
        let until = self.0.parts.clock.instant() + RULES_TIME;
        let mut at = url.join(RULES_PATH).map_err(|_| NoPreview::Failed("has no address".to_owned()))?;
        for redirects in 0..=REDIRECTS_MAX {
            if at.path() == RULES_PATH && at.query().is_none() {
                origins.push(at.origin().ascii_serialization());
            }
            let mut answer = match self.ask_once(&at, What::Rules, until).await {
                Ok(answer) => answer,
                // It leads where nobody may go: there is none (2.3.1.3).
                Err(WebFailed::Forbidden(_) | WebFailed::BadUrl(_)) if redirects > 0 => return all(),
                Err(unreachable) => return Err(failed(unreachable)),
            };
            if let Some(to) = leads_to(&answer) {
                match at.join(to).ok().and_then(|to| self.allowed_url(to).ok()) {
                    Some(to) => at = to,
                    None => return all(),
                }
                continue;
            }
            return match answer.status {
                200..=299 => {
                    let (mut reader, mut bytes) = (Reader::new(path), 0);
                    while let Some(piece) = answer.next().await.map_err(failed)? {
                        bytes += piece.len() as u64;
                        reader.read(&piece);
                        if bytes >= robots::FILE_BYTES_MAX {
                            let (is_wanted, rules) = reader.cut();
                            return Ok((is_wanted, rules.map(Says::Rules)));
                        }
                    }
                    let (is_wanted, rules) = reader.end();
                    Ok((is_wanted, rules.map(Says::Rules)))
                }
                status @ 500.. => Ok((false, Some(Says::Fails(status)))),
                // There is none, or none for us (2.3.1.3).
                _ => all(),
            };
        }
        all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rules of any number of sites take a fixed number of bytes, and count for their time alone.
    #[test]
    fn rules_are_kept_of_so_many_sites() {
        let known = KnownRules::default();
        let rules = |text: &str| {
            let mut reader = Reader::new("/");
            reader.read(b"user-agent: *\n");
            reader.read(text.as_bytes());
            Says::Rules(reader.end().1.unwrap())
        };
        let keep = |origin: &str, says: Says| known.keep(Known { origin: origin.to_owned(), until_ms: 10, says });
        let look = |origin: &str, now_ms: u64| known.look(origin, "/page", now_ms).map(|said| said.is_ok());
        keep("https://a.test", rules("disallow: /page"));
        keep("https://b.test", rules("disallow: /p\nallow: /page"));
        keep("https://c.test", Says::Fails(503));
        for (origin, said) in [("a", Some(false)), ("b", Some(true)), ("c", Some(false)), ("d", None)] {
            assert_eq!(look(&format!("https://{origin}.test"), 9), said, "{origin}");
        }
        assert_eq!((look("https://a.test", 10), look("http://a.test", 9)), (None, None));
        keep("https://a.test", rules(""));
        assert_eq!(look("https://a.test", 9), Some(true), "a later word counts");
        for at in 0..1000 {
            keep(&format!("https://{at}.test"), rules(&"disallow: /a-longer-rule\n".repeat(at % 50)));
            assert_eq!(look("https://a.test", 9), Some(true), "used again and again");
            let bytes: usize = known.0.lock().iter().map(Known::bytes).sum();
            assert!(bytes <= KNOWN_BYTES_MAX);
        }
    }
}
