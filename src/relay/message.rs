//! STUN messages and ChannelData, read where they lie and written into a buffer of the caller's (RFC 8489, RFC 8656).
//!
//! Nothing here takes memory that a sender chooses: a message is a slice, and its attributes are walked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use md5::{Digest, Md5};
use ring::hmac;
use subtle::ConstantTimeEq;

const COOKIE: u32 = 0x2112_a442;
pub const HEADER_BYTES: usize = 20;
const INTEGRITY_BYTES: usize = 4 + 20;
const FINGERPRINT_BYTES: usize = 4 + 4;
const FINGERPRINT_XOR: u32 = 0x5354_554e;
/// The longest message: what a network carries in one piece is less.
pub const MESSAGE_BYTES_MAX: usize = 2048;
/// The longest user name that is looked at (RFC 8489: less than 509 bytes).
pub const USERNAME_BYTES_MAX: usize = 508;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Request,
    Indication,
    Success,
    Error,
}

/// The methods, as numbers.
pub mod method {
    pub const BINDING: u16 = 0x001;
    pub const ALLOCATE: u16 = 0x003;
    pub const REFRESH: u16 = 0x004;
    pub const SEND: u16 = 0x006;
    pub const DATA: u16 = 0x007;
    pub const CREATE_PERMISSION: u16 = 0x008;
    pub const CHANNEL_BIND: u16 = 0x009;
}

/// The attributes, as numbers.
pub mod attribute {
    pub const USERNAME: u16 = 0x0006;
    pub const MESSAGE_INTEGRITY: u16 = 0x0008;
    pub const ERROR_CODE: u16 = 0x0009;
    pub const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
    pub const CHANNEL_NUMBER: u16 = 0x000c;
    pub const LIFETIME: u16 = 0x000d;
    pub const XOR_PEER_ADDRESS: u16 = 0x0012;
    pub const DATA: u16 = 0x0013;
    pub const REALM: u16 = 0x0014;
    pub const NONCE: u16 = 0x0015;
    pub const XOR_RELAYED_ADDRESS: u16 = 0x0016;
    pub const REQUESTED_ADDRESS_FAMILY: u16 = 0x0017;
    pub const EVEN_PORT: u16 = 0x0018;
    pub const REQUESTED_TRANSPORT: u16 = 0x0019;
    pub const MESSAGE_INTEGRITY_SHA256: u16 = 0x001c;
    pub const XOR_MAPPED_ADDRESS: u16 = 0x0020;
    pub const RESERVATION_TOKEN: u16 = 0x0022;
    pub const FINGERPRINT: u16 = 0x8028;
}

/// Bytes of a stream that are no message, or a longer one than is taken: what follows cannot be told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotOurs;

/// What arrived, in place.
#[derive(Debug, Clone, Copy)]
pub enum Arrived<'a> {
    Message(Message<'a>),
    /// The number of a channel, and what is to be passed on.
    Channel(u16, &'a [u8]),
}

/// A message whose attributes all lie within it.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    pub class: Class,
    pub method: u16,
    whole: &'a [u8],
}

/// What a datagram is; none for what is neither.
pub fn read(datagram: &[u8]) -> Option<Arrived<'_>> {
    match datagram.first()? {
        0..=0x3f => Message::read(datagram).map(Arrived::Message),
        0x40..=0x7f => {
            let (number, length) = (be16(datagram, 0)?, be16(datagram, 2)? as usize);
            Some(Arrived::Channel(number, datagram.get(4..4 + length)?))
        }
        _ => None,
    }
}

/// How long the message at the beginning of a stream is, padding included; `Ok(None)` when too little is there to tell, and
/// an error for what is none or longer than we take.
pub fn length_in_stream(bytes: &[u8]) -> Result<Option<usize>, NotOurs> {
    let (Some(first), Some(length)) = (bytes.first(), be16(bytes, 2)) else { return Ok(None) };
    let length = match first {
        0..=0x3f if length % 4 == 0 => HEADER_BYTES + length as usize,
        0x40..=0x7f => 4 + (length as usize).next_multiple_of(4),
        _ => return Err(NotOurs),
    };
    if length <= MESSAGE_BYTES_MAX { Ok(Some(length)) } else { Err(NotOurs) }
}

impl<'a> Message<'a> {
    fn read(whole: &'a [u8]) -> Option<Message<'a>> {
        let (kind, length) = (be16(whole, 0)?, be16(whole, 2)? as usize);
        let is_whole = whole.len() == HEADER_BYTES + length && length % 4 == 0;
        if kind & 0xc000 != 0 || !is_whole || whole.len() > MESSAGE_BYTES_MAX || be32(whole, 4)? != COOKIE {
            return None;
        }
        let class = match kind & 0x0110 {
            0x0000 => Class::Request,
            0x0010 => Class::Indication,
            0x0100 => Class::Success,
            _ => Class::Error,
        };
        let method = kind & 0x000f | (kind & 0x00e0) >> 1 | (kind & 0x3e00) >> 2;
        let message = Message { class, method, whole };
        let walked =
            message.attributes().fold(HEADER_BYTES, |_, (at, _, value)| at + 4 + value.len().next_multiple_of(4));
        (walked == whole.len()).then_some(message)
    }

    pub fn transaction(&self) -> [u8; 12] {
        let mut id = [0; 12];
        id.copy_from_slice(&self.whole[8..HEADER_BYTES]);
        id
    }

    /// Offset, number and value of each. Ends where one would leave the message.
    fn attributes(&self) -> impl Iterator<Item = (usize, u16, &'a [u8])> {
        let (whole, mut at) = (self.whole, HEADER_BYTES);
        std::iter::from_fn(move || {
            let (number, length) = (be16(whole, at)?, be16(whole, at + 2)? as usize);
            let value = whole.get(at + 4..at + 4 + length)?;
            let here = at;
            at += 4 + length.next_multiple_of(4);
            Some((here, number, value))
        })
    }

    /// The attributes that count: what follows the signature is nobody's, the fingerprint aside.
    fn signed(&self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let signature = |number| matches!(number, attribute::MESSAGE_INTEGRITY | attribute::MESSAGE_INTEGRITY_SHA256);
        let mut is_over = false;
        self.attributes().map_while(move |(_, number, value)| {
            let counts = !is_over;
            is_over |= signature(number);
            counts.then_some((number, value))
        })
    }

    /// The first attribute of this number.
    pub fn get(&self, wanted: u16) -> Option<&'a [u8]> {
        self.signed().find(|(number, _)| *number == wanted).map(|(_, value)| value)
    }

    /// All attributes of a number, as addresses; `None` for one that is none.
    pub fn addresses(&self, wanted: u16) -> impl Iterator<Item = Option<SocketAddr>> {
        let message = *self;
        self.signed().filter(move |(number, _)| *number == wanted).map(move |(_, value)| message.unmasked(value))
    }

    pub fn address(&self, wanted: u16) -> Option<SocketAddr> {
        self.addresses(wanted).next().flatten()
    }

    pub fn number(&self, wanted: u16) -> Option<u32> {
        self.get(wanted).filter(|value| value.len() == 4).and_then(|value| be32(value, 0))
    }

    pub fn text(&self, wanted: u16) -> Option<&'a str> {
        self.get(wanted).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Numbers of attributes that must be understood and are not among `known`; eight at most.
    pub fn unknown(&self, known: &[u16]) -> impl Iterator<Item = u16> {
        self.signed()
            .map(|(number, _)| number)
            .filter(move |number| *number < 0x8000 && !known.contains(number))
            .take(8)
    }

    pub fn is_signed(&self) -> bool {
        self.attributes().any(|(_, number, _)| number == attribute::MESSAGE_INTEGRITY)
    }

    /// Whether MESSAGE-INTEGRITY is made with this key. The length in the header then counts up to its end.
    pub fn is_signed_with(&self, key: &Key) -> bool {
        let found = self.attributes().find(|(_, number, _)| *number == attribute::MESSAGE_INTEGRITY);
        let Some((at, _, tag)) = found else { return false };
        let mut head = [0; HEADER_BYTES];
        head.copy_from_slice(&self.whole[..HEADER_BYTES]);
        head[2..4].copy_from_slice(&((at + INTEGRITY_BYTES - HEADER_BYTES) as u16).to_be_bytes());
        let mut made = hmac::Context::with_key(&key.0);
        made.update(&head);
        made.update(&self.whole[HEADER_BYTES..at]);
        made.sign().as_ref().ct_eq(tag).into()
    }

    /// False for a fingerprint that does not fit; a message need not have one.
    pub fn is_intact(&self) -> bool {
        let found = self.attributes().find(|(_, number, _)| *number == attribute::FINGERPRINT);
        found.is_none_or(|(at, _, value)| {
            at + FINGERPRINT_BYTES == self.whole.len()
                && be32(value, 0) == Some(crc32(&self.whole[..at]) ^ FINGERPRINT_XOR)
        })
    }

    fn unmasked(&self, value: &[u8]) -> Option<SocketAddr> {
        let port = be16(value, 2)? ^ (COOKIE >> 16) as u16;
        let ip = match (value.get(1)?, value.len()) {
            (1, 8) => IpAddr::V4(Ipv4Addr::from(be32(value, 4)? ^ COOKIE)),
            (2, 20) => {
                let mut ip: [u8; 16] = value[4..].try_into().ok()?;
                ip.iter_mut().zip(&self.whole[4..HEADER_BYTES]).for_each(|(byte, mask)| *byte ^= mask);
                IpAddr::V6(Ipv6Addr::from(ip))
            }
            _ => return None,
        };
        Some(SocketAddr::new(ip, port))
    }
}

/// What a user name, a realm and a password make together: the key of long-term credentials.
pub struct Key(hmac::Key);

impl Key {
    pub fn of(username: &str, realm: &str, password: &str) -> Key {
        let key = Md5::new()
            .chain_update(username)
            .chain_update(":")
            .chain_update(realm)
            .chain_update(":")
            .chain_update(password)
            .finalize();
        Key(hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &key))
    }
}

/// Writes one message. What does not fit is left out, which `finish` then answers.
pub struct Writer<'b> {
    out: &'b mut [u8],
    length: usize,
    fits: bool,
}

impl<'b> Writer<'b> {
    pub fn new(out: &'b mut [u8], class: Class, method: u16, transaction: [u8; 12]) -> Writer<'b> {
        let class = match class {
            Class::Request => 0x0000,
            Class::Indication => 0x0010,
            Class::Success => 0x0100,
            Class::Error => 0x0110,
        };
        let kind = method & 0x000f | (method & 0x0070) << 1 | (method & 0x0f80) << 2 | class;
        let mut writer = Writer { out, length: 0, fits: true };
        writer.put(&kind.to_be_bytes());
        writer.put(&[0, 0]);
        writer.put(&COOKIE.to_be_bytes());
        writer.put(&transaction);
        writer
    }

    fn put(&mut self, bytes: &[u8]) {
        match self.out.get_mut(self.length..self.length + bytes.len()) {
            Some(place) if self.fits => {
                place.copy_from_slice(bytes);
                self.length += bytes.len();
            }
            _ => self.fits = false,
        }
    }

    pub fn attribute(mut self, number: u16, value: &[u8]) -> Self {
        self.put(&number.to_be_bytes());
        self.put(&(value.len() as u16).to_be_bytes());
        self.put(value);
        self.put(&[0; 3][..value.len().next_multiple_of(4) - value.len()]);
        self.note_length(0);
        self
    }

    pub fn number(self, number: u16, value: u32) -> Self {
        self.attribute(number, &value.to_be_bytes())
    }

    /// An address under the mask of the cookie and the transaction.
    pub fn address(self, number: u16, address: SocketAddr) -> Self {
        let mut value = [0; 20];
        value[2..4].copy_from_slice(&(address.port() ^ (COOKIE >> 16) as u16).to_be_bytes());
        let length = match address.ip() {
            IpAddr::V4(ip) => {
                value[1] = 1;
                value[4..8].copy_from_slice(&(u32::from(ip) ^ COOKIE).to_be_bytes());
                8
            }
            IpAddr::V6(ip) => {
                value[1] = 2;
                let mask = self.out.get(4..HEADER_BYTES).unwrap_or_default();
                let masked = ip.octets().into_iter().zip(mask).map(|(byte, mask)| byte ^ mask);
                value[4..].iter_mut().zip(masked).for_each(|(place, byte)| *place = byte);
                20
            }
        };
        self.attribute(number, &value[..length])
    }

    pub fn error(self, code: u16, reason: &str) -> Self {
        let mut value = [0; 64];
        value[2] = (code / 100) as u8;
        value[3] = (code % 100) as u8;
        let length = reason.len().min(60);
        value[4..4 + length].copy_from_slice(&reason.as_bytes()[..length]);
        self.attribute(attribute::ERROR_CODE, &value[..4 + length])
    }

    /// The length in the header, as if `more` bytes followed.
    fn note_length(&mut self, more: usize) {
        let length = (self.length + more).saturating_sub(HEADER_BYTES) as u16;
        if let Some(place) = self.out.get_mut(2..4) {
            place.copy_from_slice(&length.to_be_bytes());
        }
    }

    /// Signs what is there so far.
    pub fn signed(mut self, key: &Key) -> Self {
        self.note_length(INTEGRITY_BYTES);
        let tag = hmac::sign(&key.0, &self.out[..self.length]);
        self.attribute(attribute::MESSAGE_INTEGRITY, tag.as_ref())
    }

    /// Adds the fingerprint. How long the message is; none when it did not fit.
    pub fn finish(mut self) -> Option<usize> {
        self.note_length(FINGERPRINT_BYTES);
        let sum = crc32(&self.out[..self.length]) ^ FINGERPRINT_XOR;
        self.without_fingerprint_after(attribute::FINGERPRINT, &sum.to_be_bytes())
    }

    fn without_fingerprint_after(self, number: u16, value: &[u8]) -> Option<usize> {
        self.attribute(number, value).plain()
    }

    /// Without a fingerprint, as indications go.
    pub fn plain(self) -> Option<usize> {
        self.fits.then_some(self.length)
    }
}

/// Writes ChannelData, padded as a stream needs it. How long it is; none when it does not fit.
pub fn write_channel(out: &mut [u8], number: u16, data: &[u8], is_stream: bool) -> Option<usize> {
    let padding = if is_stream { data.len().next_multiple_of(4) - data.len() } else { 0 };
    let length = 4 + data.len() + padding;
    let out = out.get_mut(..length)?;
    out[..2].copy_from_slice(&number.to_be_bytes());
    out[2..4].copy_from_slice(&u16::try_from(data.len()).ok()?.to_be_bytes());
    out[4..4 + data.len()].copy_from_slice(data);
    out[4 + data.len()..].fill(0);
    Some(length)
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The checksum of ISO 3309, a half byte at a time: messages are short, and few have one.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 16] = {
        let (mut table, mut at) = ([0; 16], 0);
        while at < 16 {
            let (mut value, mut bit) = (at as u32, 0);
            while bit < 4 {
                value = if value & 1 == 1 { value >> 1 ^ 0xedb8_8320 } else { value >> 1 };
                bit += 1;
            }
            table[at] = value;
            at += 1;
        }
        table
    };
    let step = |sum: u32, half: u8| sum >> 4 ^ TABLE[((sum ^ u32::from(half)) & 15) as usize];
    !bytes.iter().fold(!0, |sum, byte| step(step(sum, byte & 15), byte >> 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 5769, 2.4: a request with long-term credentials.
    const SAMPLE: &str = "000100602112a44278ad3433c6ad72c029da412e00060012e3839ee38388e383aae38383e382afe382b900000015001c\
        662f2f3439396b39353464364f4c33346f4c3946535476793634734100140\
        00b6578616d706c652e6f72670000080014f67024656dd64a3e02b8e0712e85c9a28ca89666";

    fn bytes(hex: &str) -> Vec<u8> {
        let hex: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        hex.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
    }

    fn message(bytes: &[u8]) -> Message<'_> {
        match read(bytes) {
            Some(Arrived::Message(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_sample_of_the_standard_is_read() {
        let sample = bytes(SAMPLE);
        let message = message(&sample);
        assert_eq!((message.class, message.method), (Class::Request, method::BINDING));
        assert_eq!(message.text(attribute::REALM), Some("example.org"));
        let name = "\u{30DE}\u{30C8}\u{30EA}\u{30C3}\u{30AF}\u{30B9}";
        assert_eq!(message.text(attribute::USERNAME), Some(name));
        assert!(message.is_signed_with(&Key::of(name, "example.org", "TheMatrIX")));
        assert!(!message.is_signed_with(&Key::of(name, "example.org", "TheMatrix")));
        assert!(message.is_intact() && message.is_signed());
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut out = [0; 512];
        let key = Key::of("a", "b", "c");
        for address in ["192.0.2.1:32853", "[2001:db8:1234:5678:11:2233:4455:6677]:32853"] {
            let address: SocketAddr = address.parse().unwrap();
            let length = Writer::new(&mut out, Class::Success, method::CHANNEL_BIND, [7; 12])
                .address(attribute::XOR_PEER_ADDRESS, address)
                .number(attribute::LIFETIME, 600)
                .error(437, "odd")
                .signed(&key)
                .finish();
            let message = message(&out[..length.unwrap()]);
            assert_eq!(
                (message.class, message.method, message.transaction()),
                (Class::Success, method::CHANNEL_BIND, [7; 12])
            );
            assert_eq!(message.address(attribute::XOR_PEER_ADDRESS), Some(address));
            assert_eq!(message.number(attribute::LIFETIME), Some(600));
            assert_eq!(message.get(attribute::ERROR_CODE), Some(&[0, 0, 4, 37, b'o', b'd', b'd'][..]));
            assert!(message.is_signed_with(&key) && message.is_intact());
        }
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(Writer::new(&mut [0; 30], Class::Success, 1, [0; 12]).number(attribute::LIFETIME, 1).finish(), None);
        assert_eq!(write_channel(&mut out, 0x4001, b"abcde", true), Some(12));
        assert!(matches!(read(&out[..12]), Some(Arrived::Channel(0x4001, b"abcde"))));
        assert_eq!((length_in_stream(&out[..4]), length_in_stream(&out[..3])), (Ok(Some(12)), Ok(None)));
        assert_eq!((length_in_stream(&[0xff; 4]), length_in_stream(&[0, 0, 0xff, 0xfc])), (Err(NotOurs), Err(NotOurs)));
    }

    /// What follows the signature is not covered by it.
    #[test]
    fn nothing_behind_the_signature_counts() {
        let mut out = [0; 256];
        let key = Key::of("a", "b", "c");
        let length = Writer::new(&mut out, Class::Request, method::REFRESH, [1; 12])
            .signed(&key)
            .number(attribute::LIFETIME, 5)
            .finish();
        let message = message(&out[..length.unwrap()]);
        assert!(message.is_signed_with(&key));
        assert_eq!((message.number(attribute::LIFETIME), message.unknown(&[]).count()), (None, 1));
    }

    #[test]
    fn any_bytes_are_a_message_or_none() {
        let (sample, key) = (bytes(SAMPLE), Key::of("a", "b", "c"));
        let mut channel = [0; 64];
        let length = write_channel(&mut channel, 0x4001, b"abcde", true).unwrap_or_default();
        crate::base::any_bytes::any_bytes(&[&sample, &channel[..length]], |bytes| {
            let _ = length_in_stream(bytes);
            let mut whole = bytes.to_vec();
            // The length is put right, or nothing would be read any more.
            let rest = (whole.len().saturating_sub(HEADER_BYTES) / 4 * 4) as u16;
            if let Some(place) = whole.get_mut(2..4) {
                place.copy_from_slice(&rest.to_be_bytes());
            }
            for bytes in [bytes, &whole] {
                let Some(Arrived::Message(message)) = read(bytes) else { continue };
                let _ = (message.is_signed_with(&key), message.is_intact(), message.unknown(&[]).count());
                for number in 0..0x30 {
                    let _ = (message.get(number), message.number(number), message.text(number));
                    let _ = message.addresses(number).count();
                }
            }
        });
    }
}
