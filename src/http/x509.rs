//! What is read of an X.509 certificate (RFC 5280, section 4.1): its times, its serial number, its subject and its
//! issuer's key.
//!
//! Certificates come from files and from authorities: every length is checked, and nothing is copied.

/// The two times of an X.509 certificate (RFC 5280, section 4.1): certificate → signed part → version, serial number,
/// algorithm, issuer, and then the validity.
pub fn validity_ms(der: &[u8]) -> Option<(u64, u64)> {
    // Serial number, algorithm, issuer.
    let mut rest = inside(der)?;
    for _ in 0..3 {
        rest = element(rest)?.2;
    }
    let (_, validity, _) = element(rest)?;
    let (kind, from, rest) = element(validity)?;
    let (kind_until, until, _) = element(rest)?;
    Some((time_ms(kind, from)?, time_ms(kind_until, until)?))
}

/// The first DER element: its tag, its content, and the bytes behind it.
pub fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = der.split_first_chunk::<2>()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (inside, behind) = rest.split_at_checked(len)?;
    Some((tag, inside, behind))
}

/// `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ`.
pub fn time_ms(tag: u8, text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, rest) = match tag {
        0x17 => {
            let (year, rest) = text.split_at_checked(2)?;
            let year: u64 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        0x18 => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    let part = |at: usize| rest.get(at..at + 2)?.parse::<u64>().ok();
    let (month, day) = (part(0)?, part(2)?);
    let seconds = part(4)? * 3600 + part(6)? * 60 + part(8)?;
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year < 1970 {
        return None;
    }
    // Years counted from March end with the leap day, which makes the months before it 153 days in each five.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    let unix_days = days.checked_sub(719_468)?;
    Some((unix_days * 86_400 + seconds) * 1000)
}

/// The signed part behind its version: serial number, algorithm, issuer, validity, subject, key, extensions.
fn inside(der: &[u8]) -> Option<&[u8]> {
    let (_, certificate, _) = element(der)?;
    let (_, rest, _) = element(certificate)?;
    // The version is left out in version 1.
    match rest.first() {
        Some(0xa0) => Some(element(rest)?.2),
        _ => Some(rest),
    }
}

/// The bytes of the serial number.
pub fn serial(der: &[u8]) -> Option<&[u8]> {
    Some(element(inside(der)?)?.1)
}

/// The last common name of the subject, where it is UTF-8.
pub fn common_name(der: &[u8]) -> Option<&str> {
    const COMMON_NAME: [u8; 3] = [0x55, 4, 3];
    let mut rest = inside(der)?;
    for _ in 0..4 {
        rest = element(rest)?.2;
    }
    let (_, mut sets, _) = element(rest)?;
    let mut found = None;
    while let Some((_, set, rest)) = element(sets) {
        sets = rest;
        // A set has one attribute: a sequence of its kind and its value.
        let (kind, value) = pair(element(set)?.1)?;
        if kind == COMMON_NAME {
            found = std::str::from_utf8(value).ok();
        }
    }
    found
}

/// The identifier of the key that signed it (section 4.2.1.1), which not every certificate has.
pub fn authority_key(der: &[u8]) -> Option<&[u8]> {
    const AUTHORITY_KEY: [u8; 3] = [0x55, 0x1d, 35];
    let mut rest = inside(der)?;
    for _ in 0..6 {
        rest = element(rest)?.2;
    }
    // Identifiers of issuer and subject may stand before the extensions.
    loop {
        let (tag, content, behind) = element(rest)?;
        if tag == 0xa3 {
            rest = element(content)?.1;
            break;
        }
        rest = behind;
    }
    while let Some((_, extension, behind)) = element(rest) {
        rest = behind;
        let (_, kind, mut value) = element(extension)?;
        if kind != AUTHORITY_KEY {
            continue;
        }
        let mut content = element(value)?;
        // Whether it is critical may stand before it.
        if content.0 == 0x01 {
            value = content.2;
            content = element(value)?;
        }
        let (tag, key, _) = element(element(content.1)?.1)?;
        return (tag == 0x80).then_some(key);
    }
    None
}

/// The contents of two elements in a row.
fn pair(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (_, first, rest) = element(der)?;
    Some((first, element(rest)?.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read() {
        assert_eq!(time_ms(0x17, b"700101000000Z"), Some(0));
        assert_eq!(time_ms(0x18, b"20240229123456Z"), Some(1_709_210_096_000));
        assert_eq!(time_ms(0x17, b"rubbish"), None);
    }

    fn made() -> rcgen::Certificate {
        let mut parameters = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(2060, 1, 1);
        parameters.serial_number = Some(rcgen::SerialNumber::from_slice(&[5, 6, 7]));
        parameters.use_authority_key_identifier_extension = true;
        parameters.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(vec![1, 2, 3]);
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "the house");
        parameters.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap()
    }

    #[test]
    fn what_renewal_information_is_asked_by_is_found() {
        let made = made();
        assert_eq!(serial(made.der()), Some(&[5, 6, 7][..]));
        assert_eq!(authority_key(made.der()), Some(&[1, 2, 3][..]));
        assert_eq!(common_name(made.der()), Some("the house"));
        let plain = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        assert_eq!(authority_key(plain.cert.der()), None);
    }

    #[test]
    fn any_bytes_have_dates_or_none() {
        let made = made();
        assert!(validity_ms(made.der()).is_some());
        crate::base::any_bytes::any_bytes(&[made.der(), b"240101000000Z", b"20600101000000Z"], |bytes| {
            let _ = (validity_ms(bytes), element(bytes), time_ms(0x17, bytes), time_ms(0x18, bytes));
            let _ = (serial(bytes), common_name(bytes), authority_key(bytes));
        });
    }
}
