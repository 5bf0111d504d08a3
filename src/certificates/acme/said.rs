//! What an authority refuses, in words for people: what to do about it, and the authority's own sentence, bounded.

use instant_acme::{ChallengeType, Error, Problem};

use crate::base::bounded;
use crate::remote::web::WebFailed;

/// Of an authority's own sentence.
const SENTENCE_CHARS_MAX: usize = 300;

/// An order that came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missed {
    /// Sentences for the operator.
    pub said: String,
    /// The names that were refused; empty when it was not about names.
    pub bad: Vec<String>,
    /// For so long the authority wants to hear nothing.
    pub wait_ms: Option<u64>,
    /// It has had enough of us for a while.
    pub is_limited: bool,
    /// Nobody is to blame, and the next try costs nothing.
    pub is_soon: bool,
}

impl Missed {
    pub fn of(said: impl Into<String>) -> Missed {
        Missed { said: said.into(), bad: Vec::new(), wait_ms: None, is_limited: false, is_soon: false }
    }

    pub fn soon(said: impl Into<String>) -> Missed {
        Missed { is_soon: true, ..Missed::of(said) }
    }

    pub fn about(self, bad: Vec<String>) -> Missed {
        Missed { bad, ..self }
    }
}

/// The last word of a problem's type: `connection` of `urn:ietf:params:acme:error:connection`.
fn kind(problem: &Problem) -> &str {
    problem.r#type.as_deref().unwrap_or_default().rsplit(':').next().unwrap_or_default()
}

pub fn problem_of(error: &Error) -> Option<&str> {
    match error {
        Error::Api(problem) => Some(kind(problem)),
        _ => None,
    }
}

/// The authority's own sentence, in quotes.
fn own_words(problem: &Problem) -> String {
    let mut details: Vec<&str> = problem.detail.iter().map(String::as_str).collect();
    details.extend(problem.subproblems.iter().take(3).filter_map(|problem| problem.detail.as_deref()));
    match details.is_empty() {
        true => String::new(),
        false => format!(" It said: \u{201c}{}\u{201d}", bounded(details.join("; "), SENTENCE_CHARS_MAX)),
    }
}

/// Why an authority did not find that a name is ours.
pub fn refused(from: &str, name: &str, by: &ChallengeType, problem: &Problem) -> Missed {
    let is_http = *by == ChallengeType::Http01;
    let place = match is_http {
        true => format!("http://{name}/.well-known/acme-challenge/\u{2026}"),
        false => format!("https://{name}/"),
    };
    let port = if is_http { "80" } else { "443" };
    let why = match kind(problem) {
        "connection" | "tls" if is_http || kind(problem) == "connection" => format!(
            "{from} could not reach {place}: port {port} must be forwarded to this board, and its firewall must let it in."
        ),
        "unauthorized" | "incorrectResponse" | "tls" => format!(
            "Another machine or program answered {from} at {place}: {name} must lead to this board, and its port {port} to Snug."
        ),
        "dns" => format!(
            "{from} found no address for {name} in the DNS: it needs an A or AAAA record with the address of this house."
        ),
        "caa" => {
            format!("The DNS of {name} lets only other authorities give certificates (a CAA record), and not {from}.")
        }
        "rejectedIdentifier" => format!("{from} gives no certificate for {name}."),
        _ => format!("{from} could not check {name}."),
    };
    let is_limited = kind(problem) == "rateLimited";
    let is_soon = matches!(kind(problem), "serverInternal" | "badNonce");
    Missed { is_limited, is_soon, ..Missed::of(why + &own_words(problem)).about(vec![name.to_owned()]) }
}

/// Why an authority does nothing for us.
pub fn said_by(from: &str, error: &Error) -> Missed {
    let problem = match error {
        Error::Api(problem) => problem,
        Error::Other(other) => {
            let failed = other.downcast_ref::<WebFailed>();
            let said = match failed {
                Some(WebFailed::Forbidden(_)) => {
                    format!("{from} may not be asked: {}.", bounded(other, SENTENCE_CHARS_MAX))
                }
                Some(failed) => format!("{from} {}.", bounded(failed, SENTENCE_CHARS_MAX)),
                None => format!("{from}: {}.", bounded(other, SENTENCE_CHARS_MAX)),
            };
            // What is too long or not allowed is so a moment later, too.
            let stays = matches!(failed, Some(WebFailed::Forbidden(_) | WebFailed::TooLarge { .. }));
            return if stays { Missed::of(said) } else { Missed::soon(said) };
        }
        other => {
            let other = bounded(other, SENTENCE_CHARS_MAX);
            return Missed::soon(format!("{from} sent something that cannot be used: {other}."));
        }
    };
    let why = match kind(problem) {
        "rateLimited" => format!("{from} gives this server no more certificates for a while."),
        "externalAccountRequired" => format!(
            "{from} wants to know whose account this is: set acme.eab_key_id and acme.eab_key, which one gets on its web page."
        ),
        "userActionRequired" => format!("{from} wants its new terms to be agreed to by hand."),
        "rejectedIdentifier" | "malformed" => format!("{from} does not take the order."),
        "unsupportedContact" | "invalidContact" => format!("{from} does not take the address in acme.email."),
        "accountDoesNotExist" => format!("{from} does not know this server's account any more: a new one is made."),
        "unauthorized" => format!("{from} refuses this server's account or its order."),
        "badNonce" | "serverInternal" => format!("{from} has a fault of its own."),
        "caa" => format!("The DNS lets only other authorities give certificates (a CAA record), and not {from}."),
        _ => format!("{from} refuses."),
    };
    let bad: Vec<String> = problem.subproblems.iter().take(super::super::NAMES_MAX).filter_map(name).collect();
    let is_limited = kind(problem) == "rateLimited";
    let is_soon = matches!(kind(problem), "badNonce" | "serverInternal");
    Missed { is_limited, is_soon, ..Missed::of(why + &own_words(problem)).about(bad) }
}

fn name(problem: &instant_acme::Subproblem) -> Option<String> {
    match &problem.identifier {
        Some(instant_acme::Identifier::Dns(name)) => Some(name.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn problem(kind: &str, detail: &str) -> Problem {
        serde_json::from_value(json!({ "type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail }))
            .unwrap()
    }

    #[test]
    fn an_owner_is_told_what_to_do() {
        let said =
            |kind, by| refused("Let's Encrypt", "example.org", &by, &problem(kind, "Timeout during connect")).said;
        assert_eq!(
            said("connection", ChallengeType::Http01),
            "Let's Encrypt could not reach http://example.org/.well-known/acme-challenge/\u{2026}: port 80 must be forwarded to this \
             board, and its firewall must let it in. It said: \u{201c}Timeout during connect\u{201d}"
        );
        assert!(
            said("connection", ChallengeType::TlsAlpn01).contains("https://example.org/: port 443 must be forwarded")
        );
        assert!(said("unauthorized", ChallengeType::Http01).starts_with("Another machine or program answered"));
        assert!(said("dns", ChallengeType::Http01).contains("no address for example.org in the DNS"));
        let eab = said_by("ca.test", &Error::Api(problem("externalAccountRequired", "")));
        assert!(eab.said.contains("acme.eab_key_id") && !eab.is_limited, "{eab:?}");
        assert!(said_by("ca.test", &Error::Api(problem("rateLimited", "too many"))).is_limited);
    }

    /// What an authority says is a line of bounded length, whatever it is.
    #[test]
    fn an_authoritys_words_are_bounded() {
        let long = "x\u{1b}\n".repeat(5_000);
        let missed = refused("ca.test", "a.test", &ChallengeType::Http01, &problem("odd", &long));
        assert!(missed.said.len() < 1_000 && !missed.said.contains('\u{1b}'), "{}", missed.said);
        let failed = said_by("ca.test", &Error::Other(WebFailed::BadAnswer(long.clone()).into()));
        assert!(failed.said.len() < 1_000 && failed.is_soon, "{}", failed.said);
    }
}
