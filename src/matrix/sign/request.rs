//! The `X-Matrix` authorization header.

use super::*;
use super::{Key, PublicKey};

/// The fields of a header; nothing in it is checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XMatrix {
    pub origin: String,
    /// Missing from very old servers.
    pub destination: Option<String>,
    pub key: String,
    pub sig: String,
}

/// The header value for a request of ours. `target` is the path and query exactly as sent; `content` the JSON body.
pub fn sign(
    key: &Key,
    origin: &ServerName,
    destination: &ServerName,
    method: &str,
    target: &str,
    content: Option<&[u8]>,
) -> Result<String, Reject> {
    let message = message(method, target, origin.as_str(), Some(destination.as_str()), content)?;
    let (sig, id) = (key.sign_base64(&message), key.id());
    Ok(format!("X-Matrix origin=\"{origin}\",destination=\"{destination}\",key=\"{id}\",sig=\"{sig}\""))
}

/// Checks a request sent to us. `target` is the raw request target, before any decoding; `us` our server name, which the
/// header must name if it names one; `content` the raw body, none if it is empty.
pub fn check(
    header: &XMatrix,
    key: &PublicKey,
    us: &ServerName,
    method: &str,
    target: &str,
    content: Option<&[u8]>,
) -> Result<(), Reject> {
    if header.destination.as_deref().is_some_and(|d| d != us.as_str()) {
        return Err(Reject::signature("the destination of the request is another server"));
    }
    // A header without a destination was signed over our name all the same.
    let message = message(method, target, &header.origin, Some(us.as_str()), content)?;
    let wrong = || Reject::signature(format!("the signature of {} on the request is wrong", header.origin));
    let signature = BASE64.decode(&header.sig).ok().and_then(|s| s.try_into().ok()).ok_or_else(wrong)?;
    if key.verify(&message, &signature) { Ok(()) } else { Err(wrong()) }
}

/// A request checked while its content passes, for bodies too long to hold. The content must not be trusted before
/// [`InPieces::finish`] succeeds.
pub struct InPieces {
    verifier: StreamVerifier,
    /// The rest of the signed text after the content.
    behind: Vec<u8>,
    wrong: Reject,
}

impl InPieces {
    /// As [`check`], of a request with content.
    pub fn new(
        header: &XMatrix,
        key: &PublicKey,
        us: &ServerName,
        method: &str,
        target: &str,
    ) -> Result<InPieces, Reject> {
        if header.destination.as_deref().is_some_and(|d| d != us.as_str()) {
            return Err(Reject::signature("the destination of the request is another server"));
        }
        let wrong = Reject::signature(format!("the signature of {} on the request is wrong", header.origin));
        let signature = BASE64.decode(&header.sig).ok().and_then(|s| s.try_into().ok());
        let verifier = signature.and_then(|signature| key.verify_stream(&signature));
        let mut verifier = verifier.ok_or_else(|| wrong.clone())?;
        verifier.update(b"{\"content\":");
        let mut behind = message(method, target, &header.origin, Some(us.as_str()), None)?;
        behind[0] = b',';
        Ok(InPieces { verifier, behind, wrong })
    }

    /// The next piece of the content in canonical form.
    pub fn update(&mut self, content: &[u8]) {
        self.verifier.update(content);
    }

    pub fn finish(mut self) -> Result<(), Reject> {
        self.verifier.update(&self.behind);
        self.verifier.finalize_and_verify().map_err(|_| self.wrong)
    }
}

/// The object that a request's signature covers.
fn message(
    method: &str,
    target: &str,
    origin: &str,
    destination: Option<&str>,
    content: Option<&[u8]>,
) -> Result<Vec<u8>, Reject> {
    let mut text = Vec::with_capacity(256 + content.map_or(0, <[u8]>::len));
    text.push(b'{');
    if let Some(content) = content {
        text.extend_from_slice(b"\"content\":");
        text.extend_from_slice(&json::canonical(content, Mode::Lenient)?);
        text.push(b',');
    }
    if let Some(destination) = destination {
        text.extend_from_slice(b"\"destination\":");
        json::write_string(&mut text, destination);
        text.push(b',');
    }
    for (name, value) in [("method", method), ("origin", origin), ("uri", target)] {
        if name != "method" {
            text.push(b',');
        }
        text.extend_from_slice(format!("\"{name}\":").as_bytes());
        json::write_string(&mut text, value);
    }
    text.push(b'}');
    Ok(text)
}

/// Reads an `Authorization` header: case-insensitive names, quoted strings with escapes or bare words (colons too, as old
/// servers write), blanks round commas, unknown parameters. A parameter that stands twice is an error.
///
/// ruma's parser (0.17) refuses bare words with colons and keys with unusual names, which other servers accept.
pub fn parse(header: &str) -> Result<XMatrix, Reject> {
    let wrong = || Reject::shape("malformed X-Matrix authorization header");
    let (scheme, mut rest) = header.trim().split_once([' ', '\t']).ok_or_else(wrong)?;
    if !scheme.eq_ignore_ascii_case("x-matrix") {
        return Err(Reject::shape("the authorization scheme is not X-Matrix"));
    }
    let (mut origin, mut destination, mut key, mut sig) = (None, None, None, None);
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            break;
        }
        let (name, after) = rest.split_once('=').ok_or_else(wrong)?;
        let (value, after) = parameter(after.trim_start()).ok_or_else(wrong)?;
        rest = after.trim_start();
        if !rest.is_empty() && !rest.starts_with(',') {
            return Err(wrong());
        }
        match name.trim().to_ascii_lowercase().as_str() {
            "origin" => once(&mut origin, value),
            "destination" => once(&mut destination, value),
            "key" => once(&mut key, value),
            "sig" => once(&mut sig, value),
            _ => Some(()),
        }
        .ok_or_else(wrong)?;
    }
    let (Some(origin), Some(key), Some(sig)) = (origin, key, sig) else { return Err(wrong()) };
    <&ServerName>::try_from(origin.as_str()).map_err(|_| wrong())?;
    Ok(XMatrix { origin, destination, key, sig })
}

/// Sets what is not set yet.
fn once(parameter: &mut Option<String>, value: String) -> Option<()> {
    match parameter {
        Some(_) => None,
        None => Some(*parameter = Some(value)),
    }
}

/// A value and the text after it.
fn parameter(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}
