//! How a camera was held: the `Orientation` of EXIF (a TIFF header, then entries of twelve bytes).

/// How the stored picture is to be turned for a person to see it upright. Everything else in EXIF (places, times, names) is
/// not looked at, and goes into no thumbnail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Orientation {
    /// Rows and columns change places first.
    pub transposed: bool,
    /// Then left and right.
    pub mirrored: bool,
    /// Then top and bottom.
    pub upended: bool,
}

/// So much of EXIF data is read: what says how the picture is turned stands in the first directory, before the camera's own texts.
pub(super) const BYTES_MAX: usize = 4 << 10;

const ORIENTATION: u16 = 0x0112;

/// Reads the orientation out of EXIF data; upright when it does not say.
pub(super) fn orientation(exif: &[u8]) -> Orientation {
    let of = |transposed, mirrored, upended| Orientation { transposed, mirrored, upended };
    match number(exif) {
        Some(2) => of(false, true, false),
        Some(3) => of(false, true, true),
        Some(4) => of(false, false, true),
        Some(5) => of(true, false, false),
        Some(6) => of(true, true, false),
        Some(7) => of(true, true, true),
        Some(8) => of(true, false, true),
        _ => Orientation::default(),
    }
}

fn number(exif: &[u8]) -> Option<u16> {
    let big = match exif.get(..4)? {
        b"MM\0*" => true,
        b"II*\0" => false,
        _ => return None,
    };
    let u16_at = |at: usize| {
        let bytes: [u8; 2] = exif.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    };
    let u32_at = |at: usize| {
        let bytes: [u8; 4] = exif.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    };
    let directory = u32_at(4)? as usize;
    let entries = u16_at(directory)? as usize;
    let mut places =
        (0..entries).map_while(|nth| directory.checked_add(2 + 12 * nth)).take_while(|at| *at < exif.len());
    u16_at(places.find(|at| u16_at(*at) == Some(ORIENTATION))?.checked_add(8)?)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn of(orientation: u8) -> Vec<u8> {
        [&b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0"[..], &[orientation, 0, 0, 0, 0, 0, 0]].concat()
    }

    #[test]
    fn both_byte_orders_are_read() {
        let turned = Orientation { transposed: true, mirrored: true, upended: false };
        assert_eq!(orientation(&of(6)), turned);
        assert_eq!(orientation(b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"), turned);
        assert_eq!(orientation(&of(1)), Orientation::default());
        assert_eq!(orientation(&of(99)), Orientation::default());
        assert_eq!(orientation(b""), Orientation::default());
    }

    #[test]
    fn any_bytes_have_an_orientation() {
        crate::base::any_bytes::any_bytes(&[&of(6), b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0"], |bytes| {
            orientation(bytes);
        });
    }
}
