//! DNS messages of the home network (RFC 6762, RFC 6763): questions read where they lie, and answers written.
//!
//! A message is a slice of at most [`MESSAGE_BYTES_MAX`]; names are compared and never kept, at most [`NAMES_MAX`] of them
//! are looked at, and a compressed name is followed backwards only.

use std::net::{IpAddr, Ipv4Addr};

use super::{LABEL_BYTES_MAX, Names};

pub const MESSAGE_BYTES_MAX: usize = 1500;
/// Questions and records of one message that are looked at.
const NAMES_MAX: usize = 48;
const A: u16 = 1;
const PTR: u16 = 12;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const SRV: u16 = 33;
pub const ANY: u16 = 255;
const IN: u16 = 1;
/// In a question: answer me alone. In a record: forget others of this name.
const TOP: u16 = 0x8000;
/// For names of machines, and for the rest (RFC 6762, section 10).
pub const HOST_TTL_S: u32 = 120;
pub const SERVICE_TTL_S: u32 = 4500;
/// What is told to those who ask as if it were ordinary DNS.
const LEGACY_TTL_S: u32 = 10;
/// Which services there are.
const SERVICES: &[&str] = &["_services", "_dns-sd", "_udp", "local"];
pub const MATRIX: &[&str] = &["_matrix", "_tcp", "local"];
pub const HTTP: &[&str] = &["_http", "_tcp", "local"];

/// What a message asks of us.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    pub host: bool,
    pub services: bool,
    /// By place in [`Names::services`]: who offers it, and about ours.
    pub kinds: [bool; 2],
    pub instances: [bool; 2],
    /// All questions about us want the answer for themselves.
    pub alone: bool,
    /// Asked from a port that only ordinary DNS uses: the id and the first question are repeated, which is of this type.
    pub id: u16,
    pub kind: u16,
}

impl Asked {
    pub fn all() -> Asked {
        Asked { host: true, services: true, kinds: [true; 2], instances: [true; 2], alone: false, id: 0, kind: ANY }
    }

    pub fn any(&self) -> bool {
        self.host || self.services || self.kinds.contains(&true) || self.instances.contains(&true)
    }
}

/// What a message is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    Asked(Asked),
    /// Somebody else has our name; the address.
    Taken(Option<Ipv4Addr>),
    /// Somebody else wants it, with this address.
    Wanted(Ipv4Addr),
    Nothing,
}

/// Reads a message that came from somebody else. Nothing for what is broken.
pub fn hear(bytes: &[u8], names: &Names) -> Heard {
    Reading { bytes, at: 0 }.hear(names).unwrap_or(Heard::Nothing)
}

struct Reading<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reading<'a> {
    fn hear(&mut self, names: &Names) -> Option<Heard> {
        let (id, flags) = (self.be16()?, self.be16()?);
        let [questions, answers, authorities, _] = [self.be16()?, self.be16()?, self.be16()?, self.be16()?];
        if flags & 0x7800 != 0 {
            return None;
        }
        let host = names.host();
        if flags & 0x8000 != 0 {
            for _ in 0..usize::from(questions).min(NAMES_MAX) {
                self.name()?;
                self.take(4)?;
            }
            return self.rival(&host, answers).map(|found| found.map_or(Heard::Nothing, Heard::Taken));
        }
        let (mut asked, mut alone) = (Asked { id, ..Asked::default() }, true);
        for _ in 0..usize::from(questions).min(NAMES_MAX) {
            let name = self.name()?;
            let (kind, class) = (self.be16()?, self.be16()?);
            let before = asked;
            if class & !TOP != IN && class & !TOP != ANY {
                continue;
            }
            let is = |wanted: u16| kind == wanted || kind == ANY;
            asked.host |= (is(A) || is(AAAA)) && self.is_name(name, &host);
            asked.services |= is(PTR) && self.is_name(name, SERVICES);
            for (place, service) in names.services().into_iter().enumerate() {
                asked.kinds[place] |= is(PTR) && self.is_name(name, service);
                let instance = [&[names.instance.as_str()], service].concat();
                asked.instances[place] |= (is(SRV) || is(TXT)) && self.is_name(name, &instance);
            }
            if (Asked { alone: false, ..before }) != (Asked { alone: false, ..asked }) {
                alone &= class & TOP != 0;
                if !before.any() {
                    asked.kind = kind;
                }
            }
        }
        // A probe says what it wants to have in the part about authorities.
        if authorities > 0 && asked.host {
            for _ in 0..usize::from(answers).min(NAMES_MAX) {
                self.record()?;
            }
            if let Some(Some(ip)) = self.rival(&host, authorities)? {
                return Some(Heard::Wanted(ip));
            }
        }
        asked.alone = alone;
        Some(if asked.any() { Heard::Asked(asked) } else { Heard::Nothing })
    }

    /// Looks for a record of a host's name; its address of IPv4.
    fn rival(&mut self, host: &[&str], count: u16) -> Option<Option<Option<Ipv4Addr>>> {
        let mut found = None;
        for _ in 0..usize::from(count).min(NAMES_MAX) {
            let (name, kind, ttl_s, data) = self.record()?;
            if ttl_s == 0 || !self.is_name(name, host) {
                continue;
            }
            match kind {
                A => found = Some(Some(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?))),
                AAAA => found = found.or(Some(None)),
                _ => {}
            }
        }
        Some(found)
    }

    /// Where its name begins, its type, its time to live and its data.
    fn record(&mut self) -> Option<(usize, u16, u32, &'a [u8])> {
        let name = self.name()?;
        let kind = self.be16()?;
        self.be16()?;
        let ttl_s = u32::from(self.be16()?) << 16 | u32::from(self.be16()?);
        let length = self.be16()?;
        Some((name, kind, ttl_s, self.take(length.into())?))
    }

    fn be16(&mut self) -> Option<u16> {
        self.take(2).map(|two| u16::from_be_bytes([two[0], two[1]]))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at + length)?;
        self.at += length;
        Some(taken)
    }

    /// Passes over a name; where it begins.
    fn name(&mut self) -> Option<usize> {
        let began = self.at;
        loop {
            match self.take(1)?[0] {
                0 => return Some(began),
                length @ 1..=63 => drop(self.take(length.into())?),
                0xc0.. => {
                    self.take(1)?;
                    return Some(began);
                }
                _ => return None,
            }
        }
    }

    /// Whether the name that begins there is this one; letters of ASCII in either case are the same.
    fn is_name(&self, begins: usize, wanted: &[&str]) -> bool {
        let mut wanted = wanted.iter();
        let (mut at, mut limit) = (begins, begins);
        loop {
            let Some(&length) = self.bytes.get(at) else { return false };
            match length {
                0 => return wanted.next().is_none(),
                1..=63 => {
                    let label = self.bytes.get(at + 1..at + 1 + usize::from(length));
                    let is_same = |(label, wanted): (&[u8], &&str)| label.eq_ignore_ascii_case(wanted.as_bytes());
                    if !label.zip(wanted.next()).is_some_and(is_same) {
                        return false;
                    }
                    at += 1 + usize::from(length);
                }
                0xc0.. => {
                    let Some(&low) = self.bytes.get(at + 1) else { return false };
                    let to = usize::from(length & 0x3f) << 8 | usize::from(low);
                    // Only ever further back, so it ends.
                    if to >= limit {
                        return false;
                    }
                    (at, limit) = (to, to);
                }
                _ => return false,
            }
        }
    }
}

/// Writes messages of ours. They have a known length: some names and addresses.
pub struct Writing {
    bytes: Vec<u8>,
    counts: [u16; 4],
    /// The longest time to live.
    ttl_s_max: u32,
    /// Whether records say that there are no others.
    is_whole: bool,
}

impl Writing {
    fn new(is_answer: bool) -> Writing {
        let mut bytes = vec![0; 12];
        bytes[2] = if is_answer { 0x84 } else { 0 };
        Writing { bytes, counts: [0; 4], ttl_s_max: u32::MAX, is_whole: true }
    }

    /// What is asked for, with these addresses of ours. `legacy`: to one who asks as in ordinary DNS.
    pub fn answer(asked: &Asked, names: &Names, addresses: &[IpAddr], ttl_s_max: u32, legacy: bool) -> Vec<u8> {
        let mut writing = Writing::new(true);
        writing.ttl_s_max = ttl_s_max;
        let host = names.host();
        if legacy {
            writing.ttl_s_max = ttl_s_max.min(LEGACY_TTL_S);
            writing.is_whole = false;
            writing.bytes[..2].copy_from_slice(&asked.id.to_be_bytes());
            writing.question(&writing_question(asked, names), asked.kind);
        }
        let mut needs_host = asked.host;
        for (place, service) in names.services().into_iter().enumerate() {
            let instance = [&[names.instance.as_str()], service].concat();
            if asked.services {
                writing.name_record(SERVICES, service);
            }
            if asked.kinds[place] {
                writing.name_record(service, &instance);
            }
            if asked.kinds[place] || asked.instances[place] {
                needs_host = true;
                writing.record(&instance, SRV, true, HOST_TTL_S, |out| {
                    out.extend_from_slice(&[0; 4]);
                    out.extend_from_slice(&names.port.to_be_bytes());
                    put_name(out, &host);
                });
                writing.record(&instance, TXT, true, SERVICE_TTL_S, |out| {
                    for text in [format!("path={}", names.path), format!("server_name={}", names.server_name)] {
                        let text = &text.as_bytes()[..text.len().min(255)];
                        out.push(text.len() as u8);
                        out.extend_from_slice(text);
                    }
                });
            }
        }
        if needs_host {
            writing.addresses(&host, addresses);
        }
        writing.finish()
    }

    /// Asks whether anybody has our name, and says with which addresses we want it.
    pub fn probe(names: &Names, addresses: &[IpAddr]) -> Vec<u8> {
        let mut writing = Writing::new(false);
        let host = names.host();
        writing.question(&host, ANY);
        writing.is_whole = false;
        writing.addresses(&host, addresses);
        writing.counts.swap(1, 2);
        writing.finish()
    }

    fn question(&mut self, name: &[&str], kind: u16) {
        put_name(&mut self.bytes, name);
        self.bytes.extend_from_slice(&kind.to_be_bytes());
        self.bytes.extend_from_slice(&IN.to_be_bytes());
        self.counts[0] += 1;
    }

    fn addresses(&mut self, host: &[&str], addresses: &[IpAddr]) {
        for address in addresses {
            match address {
                IpAddr::V4(ip) => self.record(host, A, true, HOST_TTL_S, |out| out.extend_from_slice(&ip.octets())),
                IpAddr::V6(ip) => self.record(host, AAAA, true, HOST_TTL_S, |out| out.extend_from_slice(&ip.octets())),
            }
        }
    }

    /// One of a list that others add to.
    fn name_record(&mut self, name: &[&str], to: &[&str]) {
        self.record(name, PTR, false, SERVICE_TTL_S, |out| put_name(out, to));
    }

    fn record(&mut self, name: &[&str], kind: u16, is_ours: bool, ttl_s: u32, data: impl FnOnce(&mut Vec<u8>)) {
        put_name(&mut self.bytes, name);
        let class = if is_ours && self.is_whole { IN | TOP } else { IN };
        self.bytes.extend_from_slice(&kind.to_be_bytes());
        self.bytes.extend_from_slice(&class.to_be_bytes());
        self.bytes.extend_from_slice(&ttl_s.min(self.ttl_s_max).to_be_bytes());
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        data(&mut self.bytes);
        let length = (self.bytes.len() - at - 2) as u16;
        self.bytes[at..at + 2].copy_from_slice(&length.to_be_bytes());
        self.counts[1] += 1;
    }

    fn finish(mut self) -> Vec<u8> {
        for (place, count) in self.bytes[4..12].chunks_exact_mut(2).zip(self.counts) {
            place.copy_from_slice(&count.to_be_bytes());
        }
        self.bytes
    }
}

/// The name that was asked for first, as far as that is known.
fn writing_question<'n>(asked: &Asked, names: &'n Names) -> Vec<&'n str> {
    let place = |of: &[bool; 2]| of.iter().position(|asked| *asked).map(|at| names.services()[at]);
    match (asked.host, place(&asked.kinds), place(&asked.instances)) {
        (true, ..) => names.host().to_vec(),
        (_, Some(service), _) => service.to_vec(),
        (_, _, Some(service)) => [&[names.instance.as_str()], service].concat(),
        _ => SERVICES.to_vec(),
    }
}

fn put_name(out: &mut Vec<u8>, name: &[&str]) {
    for label in name {
        let label = &label.as_bytes()[..label.len().min(LABEL_BYTES_MAX)];
        out.push(label.len() as u8);
        out.extend_from_slice(label);
    }
    out.push(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names::new("snug", "example.org", "/", 8008)
    }

    fn question(name: &[&str], kind: u16, class: u16) -> Vec<u8> {
        let mut writing = Writing::new(false);
        writing.question(name, kind);
        let mut bytes = writing.finish();
        let at = bytes.len() - 2;
        bytes[at..].copy_from_slice(&class.to_be_bytes());
        bytes
    }

    fn asked(bytes: &[u8]) -> Asked {
        match hear(bytes, &names()) {
            Heard::Asked(asked) => asked,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn questions_about_us_are_heard() {
        let host = asked(&question(&["SNUG", "Local"], A, IN));
        assert_eq!(host, Asked { host: true, kind: A, ..Asked::default() });
        assert!(asked(&question(&["snug", "local"], AAAA, IN | TOP)).alone);
        assert!(asked(&question(SERVICES, PTR, IN)).services);
        assert_eq!(asked(&question(MATRIX, PTR, IN)).kinds, [true, false]);
        assert_eq!(
            asked(&question(&["Snug on example.org", "_http", "_tcp", "local"], SRV, IN)).instances,
            [false, true]
        );
        for other in
            [question(&["snug2", "local"], A, IN), question(&["snug"], A, IN), question(&["snug", "local"], PTR, IN)]
        {
            assert_eq!(hear(&other, &names()), Heard::Nothing);
        }
        // A compressed name: the second question points into the first.
        let mut bytes = question(MATRIX, PTR, IN);
        bytes[5] = 2;
        bytes.extend_from_slice(&[4, b's', b'n', b'u', b'g', 0xc0, 12 + 8 + 5, 0, 1, 0, 1]);
        let both = asked(&bytes);
        assert!(both.host && both.kinds[0]);
    }

    #[test]
    fn our_answers_are_heard_by_another_of_the_same_name() {
        let (names, mine) = (names(), [IpAddr::from([192, 168, 1, 5]), "fd00::5".parse().unwrap()]);
        let answer = Writing::answer(&Asked::all(), &names, &mine, u32::MAX, false);
        assert!(answer.len() <= 1200, "{}", answer.len());
        assert_eq!(hear(&answer, &names), Heard::Taken(Some([192, 168, 1, 5].into())));
        assert_eq!(hear(&answer, &Names::new("snug-2", "example.org", "/", 8008)), Heard::Nothing);
        assert_eq!(hear(&Writing::probe(&names, &mine), &names), Heard::Wanted([192, 168, 1, 5].into()));
        let gone = Writing::answer(&Asked::all(), &names, &mine, 0, false);
        assert_eq!(hear(&gone, &names), Heard::Nothing, "one that takes its leave has no name");
        let mut asks = question(&["snug", "local"], AAAA, IN);
        asks[1] = 77;
        let legacy = Writing::answer(&asked(&asks), &names, &mine, u32::MAX, true);
        assert_eq!((&legacy[..2], &legacy[4..8]), (&[0, 77][..], &[0, 1, 0, 2][..]));
        assert_eq!(legacy[12..asks.len()], asks[12..], "the question is repeated");
    }

    /// Names that point at themselves among them.
    #[test]
    fn any_bytes_are_heard_or_nothing() {
        let names = names();
        let mut circle = question(MATRIX, PTR, IN);
        circle.truncate(12);
        circle.extend_from_slice(&[0xc0, 12, 0, 12, 0, 1]);
        assert_eq!(hear(&circle, &names), Heard::Nothing);
        let whole = Writing::answer(&Asked::all(), &names, &[[192, 168, 1, 5].into()], u32::MAX, false);
        let probe = Writing::probe(&names, &[[10, 0, 0, 1].into()]);
        crate::base::any_bytes::any_bytes(&[&whole, &probe, &circle], |bytes| {
            let _ = hear(bytes, &names);
        });
    }
}
