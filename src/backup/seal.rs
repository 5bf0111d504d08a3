//! Sealed files: the format of age (age-encryption.org/v1), to a recipient's X25519 key or a passphrase. What is sealed here
//! opens with `age -d`, and the other way round.
//!
//! A file's key is wrapped in its head; behind it are pieces of 64 KiB, each authenticated, the last one marked: a file that
//! was cut off does not open to its end.

use std::fs::File;
use std::io::{self, Read, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use curve25519_dalek::MontgomeryPoint;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::{hkdf, hmac};
use sha2::{Digest, Sha256};

use crate::base::Random;

const VERSION: &str = "age-encryption.org/v1";
/// Bytes of a piece, and of its tag.
const PIECE: usize = 64 << 10;
const TAG: usize = 16;
/// The longest head that is read: a head of ours has some 200 bytes, one of age some more for each recipient.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// scrypt's work for a passphrase: 2^12 rounds over blocks of 1 KiB, 4 MiB of memory, which each board has in the account of
/// its passwords. age takes 2^18, which is 256 MiB. What is missing in work a passphrase of some length makes up for.
const WORK: u8 = 12;
/// Memory while a passphrase becomes a key: the blocks, and a little.
pub const PASSPHRASE_BYTES: u64 = (1 << (WORK + 10)) + (64 << 10);
/// Fewer letters can be guessed with that work.
pub const PASSPHRASE_CHARS_MIN: usize = 14;
/// The memory of one file being sealed or opened.
pub const SEAL_BYTES: u64 = 2 * (PIECE + TAG) as u64;

const RECIPIENT: &str = "age";
const IDENTITY: &str = "age-secret-key-";

/// Whom a file is sealed to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Recipient([u8; 32]);

/// Who may open it.
#[derive(Clone, Copy)]
pub struct Identity([u8; 32]);

/// What opens files.
#[derive(Clone)]
pub enum Key {
    Identity(Identity),
    Passphrase(String),
}

impl Recipient {
    pub fn parse(text: &str) -> Option<Recipient> {
        bech32::decode(RECIPIENT, text.trim()).map(Recipient)
    }
}

impl std::fmt::Display for Recipient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&bech32::encode(RECIPIENT, &self.0))
    }
}

impl Identity {
    pub fn new(random: &Random) -> Identity {
        let mut secret = [0; 32];
        random.fill(&mut secret);
        Identity(secret)
    }

    /// The first identity of a file as `age-keygen` makes them.
    pub fn parse(text: &str) -> Option<Identity> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        lines.find_map(|line| bech32::decode(IDENTITY, &line.to_ascii_lowercase())).map(Identity)
    }

    /// The text that [`Identity::parse`] reads; a secret.
    pub fn to_text(self) -> String {
        bech32::encode(IDENTITY, &self.0).to_ascii_uppercase()
    }

    pub fn recipient(self) -> Recipient {
        Recipient(MontgomeryPoint::mul_base_clamped(self.0).to_bytes())
    }
}

/// To whom a file is sealed.
#[derive(Clone)]
pub enum To {
    Recipient(Recipient),
    Passphrase(String),
}

/// The mode of a file that is made: what is not sealed has keys and messages in it, and is for its owner alone.
pub fn mode(to: Option<&To>) -> u32 {
    if to.is_some() { 0o666 } else { 0o600 }
}

/// A file that is written, sealed or not. Its bytes are hashed as they lie.
pub struct Output {
    file: File,
    hash: Sha256,
    bytes: u64,
    sealing: Option<Sealing>,
}

struct Sealing {
    key: LessSafeKey,
    number: u64,
    piece: Vec<u8>,
}

impl Output {
    /// Begins the file. Blocks some seconds for a passphrase.
    pub fn begin(file: File, to: Option<&To>, random: &Random) -> io::Result<Output> {
        let mut out = Output { file, hash: Sha256::new(), bytes: 0, sealing: None };
        let Some(to) = to else { return Ok(out) };
        let mut file_key = [0; 16];
        random.fill(&mut file_key);
        let head = head(to, &file_key, random)?;
        let mut nonce = [0; 16];
        random.fill(&mut nonce);
        out.raw(head.as_bytes())?;
        out.raw(&nonce)?;
        out.sealing = Some(Sealing { key: payload_key(&file_key, &nonce), number: 0, piece: Vec::new() });
        Ok(out)
    }

    fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    fn seal_piece(&mut self, is_last: bool) -> io::Result<()> {
        let Some(mut sealing) = self.sealing.take() else { return Ok(()) };
        let nonce = nonce(sealing.number, is_last);
        let sealed = sealing.key.seal_in_place_append_tag(nonce, Aad::empty(), &mut sealing.piece);
        sealed.map_err(|_| io::Error::other("a piece cannot be sealed"))?;
        self.raw(&sealing.piece)?;
        sealing.piece.clear();
        sealing.number += 1;
        self.sealing = Some(sealing);
        Ok(())
    }

    /// Ends the file, durably. Answers the SHA-256 of what lies there, and its length.
    pub fn finish(mut self) -> io::Result<([u8; 32], u64)> {
        self.seal_piece(true)?;
        self.file.sync_all()?;
        Ok((self.hash.finalize().into(), self.bytes))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(sealing) = &mut self.sealing else { return self.raw(bytes).map(|()| bytes.len()) };
        // A full piece waits for what follows: the last one is sealed as the last.
        if sealing.piece.len() == PIECE {
            self.seal_piece(false)?;
        }
        let Some(sealing) = &mut self.sealing else { return Ok(0) };
        if sealing.piece.capacity() == 0 {
            sealing.piece.reserve_exact(PIECE + TAG);
        }
        let taken = bytes.len().min(PIECE - sealing.piece.len());
        sealing.piece.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file that is read, sealed or not.
pub struct Input {
    file: File,
    opening: Option<Opening>,
}

struct Opening {
    key: LessSafeKey,
    number: u64,
    /// The first byte of the next piece, which tells that there is one.
    ahead: Option<u8>,
    piece: Vec<u8>,
    at: usize,
    is_over: bool,
}

impl Input {
    /// As it lies.
    pub fn plain(file: File) -> Input {
        Input { file, opening: None }
    }

    /// Opens a sealed file.
    pub fn sealed(mut file: File, key: &Key) -> io::Result<Input> {
        let file_key = read_head(&mut file, key)?;
        let mut nonce = [0; 16];
        file.read_exact(&mut nonce)?;
        let mut ahead = [0];
        let ahead = (file.read(&mut ahead)? == 1).then_some(ahead[0]);
        let key = payload_key(&file_key, &nonce);
        let opening = Opening { key, number: 0, ahead, piece: Vec::new(), at: 0, is_over: false };
        Ok(Input { file, opening: Some(opening) })
    }
}

impl Read for Input {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let Some(opening) = &mut self.opening else { return self.file.read(out) };
        if opening.at == opening.piece.len() && !opening.is_over {
            opening.next(&mut self.file)?;
        }
        let taken = out.len().min(opening.piece.len() - opening.at);
        out[..taken].copy_from_slice(&opening.piece[opening.at..opening.at + taken]);
        opening.at += taken;
        Ok(taken)
    }
}

impl Opening {
    fn next(&mut self, file: &mut File) -> io::Result<()> {
        self.piece.clear();
        self.piece.reserve_exact(PIECE + TAG);
        self.piece.extend(self.ahead.take());
        let more = (PIECE + TAG - self.piece.len()) as u64;
        (&*file).take(more).read_to_end(&mut self.piece)?;
        let mut ahead = [0];
        if self.piece.len() == PIECE + TAG && file.read(&mut ahead)? == 1 {
            self.ahead = Some(ahead[0]);
        }
        self.is_over = self.ahead.is_none();
        let nonce = nonce(self.number, self.is_over);
        let opened = self.key.open_in_place(nonce, Aad::empty(), &mut self.piece);
        let length = opened.map_err(|_| wrong("it was cut off or changed after it was sealed"))?.len();
        if length == 0 && self.number > 0 {
            return Err(wrong("it ends with an empty piece"));
        }
        self.piece.truncate(length);
        (self.at, self.number) = (0, self.number + 1);
        Ok(())
    }
}

fn wrong(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

fn nonce(number: u64, is_last: bool) -> Nonce {
    let mut nonce = [0; 12];
    nonce[3..11].copy_from_slice(&number.to_be_bytes());
    nonce[11] = u8::from(is_last);
    Nonce::assume_unique_for_key(nonce)
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

fn derived(secret: &[u8], salt: &[u8], info: &str) -> [u8; 32] {
    let mut key = [0; 32];
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
    let filled = prk.expand(&[info.as_bytes()], Length(32)).and_then(|okm| okm.fill(&mut key));
    filled.expect("HKDF makes up to 8,160 bytes");
    key
}

fn aead(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).expect("ChaCha20-Poly1305 has keys of 32 bytes"))
}

fn payload_key(file_key: &[u8; 16], nonce: &[u8; 16]) -> LessSafeKey {
    aead(&derived(file_key, nonce, "payload"))
}

fn head_mac(file_key: &[u8; 16], head: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &derived(file_key, b"", "header")), head.as_bytes())
}

fn head(to: &To, file_key: &[u8; 16], random: &Random) -> io::Result<String> {
    let (stanza, wrap) = match to {
        To::Recipient(recipient) => {
            let mut secret = [0; 32];
            random.fill(&mut secret);
            let share = MontgomeryPoint::mul_base_clamped(secret).to_bytes();
            let shared = MontgomeryPoint(recipient.0).mul_clamped(secret).to_bytes();
            (format!("X25519 {}", BASE64.encode(share)), x25519_wrap(&shared, &share, recipient)?)
        }
        To::Passphrase(passphrase) => {
            let mut salt = [0; 16];
            random.fill(&mut salt);
            (format!("scrypt {} {WORK}", BASE64.encode(salt)), passphrase_wrap(passphrase, &salt)?)
        }
    };
    let mut body = file_key.to_vec();
    let sealed = aead(&wrap).seal_in_place_append_tag(Nonce::assume_unique_for_key([0; 12]), Aad::empty(), &mut body);
    sealed.map_err(|_| io::Error::other("a key cannot be sealed"))?;
    let head = format!("{VERSION}\n-> {stanza}\n{}\n---", BASE64.encode(body));
    let mac = BASE64.encode(head_mac(file_key, &head));
    Ok(format!("{head} {mac}\n"))
}

fn x25519_wrap(shared: &[u8; 32], share: &[u8; 32], recipient: &Recipient) -> io::Result<[u8; 32]> {
    if *shared == [0; 32] {
        return Err(wrong("its key is none"));
    }
    Ok(derived(shared, &[&share[..], &recipient.0].concat(), "age-encryption.org/v1/X25519"))
}

fn passphrase_wrap(passphrase: &str, salt: &[u8; 16]) -> io::Result<[u8; 32]> {
    let salt = [b"age-encryption.org/v1/scrypt", &salt[..]].concat();
    let params = scrypt::Params::new(WORK, 8, 1).map_err(|_| io::Error::other("scrypt does not do that"))?;
    let mut key = [0; 32];
    scrypt::scrypt(passphrase.as_bytes(), &salt, &params, &mut key)
        .map_err(|_| io::Error::other("scrypt does not do that"))?;
    Ok(key)
}

/// The key of a file out of its head.
fn read_head(file: &mut File, key: &Key) -> io::Result<[u8; 16]> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    // Few bytes, read one by one: nothing behind the head may be taken.
    loop {
        if head.len() == HEAD_BYTES_MAX || file.read(&mut byte)? == 0 {
            return Err(wrong("it is no sealed file of age"));
        }
        head.push(byte[0]);
        let line = head.rsplit(|byte| *byte == b'\n').nth(1).unwrap_or_default();
        if byte[0] == b'\n' && line.starts_with(b"---") {
            break;
        }
    }
    let head = String::from_utf8(head).map_err(|_| wrong("it is no sealed file of age"))?;
    let (rest, mac) = head.trim_end().rsplit_once(' ').ok_or_else(|| wrong("its head has no end"))?;
    let body = rest.strip_prefix(VERSION).and_then(|rest| rest.strip_suffix("\n---"));
    let body = body.ok_or_else(|| wrong("it is no sealed file of age"))?;
    let mac = BASE64.decode(mac).map_err(|_| wrong("its head is damaged"))?;
    let mut why = "it was sealed to somebody else, or the key is another one";
    for stanza in body.split("\n-> ").skip(1) {
        let (words, wrapped) = stanza.split_once('\n').unwrap_or((stanza, ""));
        let words: Vec<&str> = words.split(' ').collect();
        let wrapped: String = wrapped.lines().collect();
        let (Ok(mut wrapped), decode) = (BASE64.decode(wrapped), |text: &str| BASE64.decode(text).ok()) else {
            continue;
        };
        let wrap = match (key, &words[..]) {
            (Key::Identity(identity), ["X25519", share]) => {
                let Some(share) = decode(share).and_then(|share| <[u8; 32]>::try_from(share).ok()) else { continue };
                let shared = MontgomeryPoint(share).mul_clamped(identity.0).to_bytes();
                x25519_wrap(&shared, &share, &identity.recipient())?
            }
            (Key::Passphrase(passphrase), ["scrypt", salt, work]) => {
                if work.parse() != Ok(WORK) {
                    why = "it was sealed by another program, with more work than this board has memory for: open it with age";
                    continue;
                }
                let Some(salt) = decode(salt).and_then(|salt| salt.try_into().ok()) else { continue };
                why = "the passphrase is another one";
                passphrase_wrap(passphrase, &salt)?
            }
            _ => continue,
        };
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let Ok(opened) = aead(&wrap).open_in_place(nonce, Aad::empty(), &mut wrapped) else { continue };
        let Ok(file_key) = <[u8; 16]>::try_from(&*opened) else { continue };
        let mac_key = hmac::Key::new(hmac::HMAC_SHA256, &derived(&file_key, b"", "header"));
        return match hmac::verify(&mac_key, rest.as_bytes(), &mac) {
            Ok(()) => Ok(file_key),
            Err(_) => Err(wrong("its head was changed after it was sealed")),
        };
    }
    Err(wrong(why))
}

/// The texts of keys (BIP 173).
mod bech32 {
    const LETTERS: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";

    fn checksum(kind: &str, values: &[u8]) -> u32 {
        let high = kind.bytes().map(|byte| byte >> 5);
        let low = kind.bytes().map(|byte| byte & 31);
        high.chain([0]).chain(low).chain(values.iter().copied()).fold(1, |sum: u32, value| {
            let top = sum >> 25;
            let sum = (sum & 0x1ff_ffff) << 5 ^ u32::from(value);
            let parts = [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3];
            parts.iter().enumerate().fold(sum, |sum, (bit, part)| if top >> bit & 1 == 1 { sum ^ part } else { sum })
        })
    }

    pub fn encode(kind: &str, bytes: &[u8; 32]) -> String {
        let mut values: Vec<u8> = Vec::new();
        let (mut kept, mut bits) = (0u32, 0);
        for byte in bytes {
            (kept, bits) = (kept << 8 | u32::from(*byte), bits + 8);
            while bits >= 5 {
                bits -= 5;
                values.push((kept >> bits & 31) as u8);
            }
            kept &= (1 << bits) - 1;
        }
        values.push((kept << (5 - bits) & 31) as u8);
        let sum = checksum(kind, &[&values[..], &[0; 6]].concat()) ^ 1;
        values.extend((0..6).map(|at| (sum >> (5 * (5 - at)) & 31) as u8));
        let text: String = values.iter().map(|value| char::from(LETTERS[usize::from(*value)])).collect();
        format!("{kind}1{text}")
    }

    pub fn decode(kind: &str, text: &str) -> Option<[u8; 32]> {
        let letters = text.strip_prefix(kind)?.strip_prefix('1')?;
        let value = |letter: u8| LETTERS.iter().position(|known| *known == letter).map(|at| at as u8);
        let values: Vec<u8> = letters.bytes().map(value).collect::<Option<_>>()?;
        if values.len() != 52 + 6 || checksum(kind, &values) != 1 {
            return None;
        }
        let (mut bytes, mut kept, mut bits) = (Vec::new(), 0u32, 0);
        for value in &values[..52] {
            (kept, bits) = (kept << 5 | u32::from(*value), bits + 5);
            if bits >= 8 {
                bits -= 8;
                bytes.push((kept >> bits) as u8);
                kept &= (1 << bits) - 1;
            }
        }
        if kept != 0 { None } else { bytes.try_into().ok() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(text: &[u8], to: &To) -> Vec<u8> {
        let random = Random::seeded(text.len() as u64 + 5);
        let path = std::env::temp_dir().join(format!("snug-seal-{}-{}", std::process::id(), Random::os().token(8)));
        let mut out = Output::begin(File::create(&path).unwrap(), Some(to), &random).unwrap();
        out.write_all(text).unwrap();
        let (hash, bytes) = out.finish().unwrap();
        let written = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!((<[u8; 32]>::from(Sha256::digest(&written)), written.len() as u64), (hash, bytes));
        written
    }

    fn opened(sealed: &[u8], key: &Key) -> io::Result<Vec<u8>> {
        let mut file = crate::budget::spill::nameless(&std::env::temp_dir())?;
        file.write_all(sealed)?;
        io::Seek::rewind(&mut file)?;
        let mut text = Vec::new();
        Input::sealed(file, key)?.read_to_end(&mut text)?;
        Ok(text)
    }

    /// A key pair as `age-keygen` writes it.
    #[test]
    fn keys_are_those_of_age() {
        let text = "# created: 2021\nAGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX\n";
        let identity = Identity::parse(text).unwrap();
        assert_eq!(identity.0, [0x42; 32]);
        assert_eq!(identity.to_text(), text.lines().nth(1).unwrap());
        let recipient = identity.recipient();
        assert_eq!(recipient.to_string(), "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj");
        assert_eq!(Recipient::parse(&recipient.to_string()), Some(recipient));
        assert_eq!(Recipient::parse("age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwk"), None);
    }

    #[test]
    fn what_is_sealed_opens_for_its_recipient_alone() {
        let (one, other) = (Identity::new(&Random::seeded(1)), Identity::new(&Random::seeded(2)));
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE] {
            let text: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let file = sealed(&text, &To::Recipient(one.recipient()));
            assert_eq!(opened(&file, &Key::Identity(one)).unwrap(), text);
            assert!(opened(&file, &Key::Identity(other)).is_err());
            let cuts = [10, 100, 180, file.len() - PIECE.min(length), file.len() - 1];
            for cut in cuts.into_iter().filter(|cut| *cut < file.len()) {
                assert!(opened(&file[..cut], &Key::Identity(one)).is_err(), "{length} {cut}");
            }
            for at in (0..file.len()).step_by(1 + file.len() / 50) {
                let mut wrong = file.clone();
                wrong[at] ^= 1;
                assert!(opened(&wrong, &Key::Identity(one)).is_err(), "{length} {at}");
            }
        }
    }

    #[test]
    fn a_passphrase_opens_what_it_sealed() {
        let file = sealed(b"all of it", &To::Passphrase("correct horse battery".to_owned()));
        assert_eq!(opened(&file, &Key::Passphrase("correct horse battery".to_owned())).unwrap(), b"all of it");
        let said = opened(&file, &Key::Passphrase("correct horse".to_owned())).unwrap_err().to_string();
        assert!(said.contains("passphrase"), "{said}");
        let more = String::from_utf8_lossy(&file[..100]).replace(&format!(" {WORK}\n"), " 30\n").into_bytes();
        let said = opened(&[&more[..], &file[100..]].concat(), &Key::Passphrase("x".to_owned())).unwrap_err();
        assert!(said.to_string().contains("memory"), "{said}");
    }

    #[test]
    fn any_bytes_are_opened_or_not() {
        let one = Identity::new(&Random::seeded(1));
        let file = sealed(b"text", &To::Recipient(one.recipient()));
        crate::base::any_bytes::any_bytes(&[&file], |bytes| {
            let _ = opened(bytes, &Key::Identity(one));
        });
    }
}
