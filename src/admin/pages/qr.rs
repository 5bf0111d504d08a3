//! QR codes as SVG.

use qrcode::{Color, EcLevel, QrCode};

/// The quiet edge that readers want, in modules.
const EDGE: usize = 4;
/// Longer texts have no code: it would be too fine for a phone's camera, and its path 20 KiB.
const TEXT_BYTES_MAX: usize = 300;

/// The code of a link, black on white in the dark too; empty for a text that is too long.
pub fn svg(text: &str, label: &str) -> String {
    if text.len() > TEXT_BYTES_MAX {
        return String::new();
    }
    let Ok(code) = QrCode::with_error_correction_level(text, EcLevel::M) else { return String::new() };
    let (width, colors) = (code.width(), code.to_colors());
    let mut path = String::new();
    for (y, row) in colors.chunks(width).enumerate() {
        let mut x = 0;
        while x < width {
            let run = row[x..].iter().take_while(|color| **color == Color::Dark).count();
            if run > 0 {
                path.push_str(&format!("M{} {}h{run}v1h-{run}z", x + EDGE, y + EDGE));
            }
            x += run + 1;
        }
    }
    let size = width + 2 * EDGE;
    let label = crate::http::page::escaped(label);
    format!(
        "<svg class=\"qr\" viewBox=\"0 0 {size} {size}\" shape-rendering=\"crispEdges\" role=\"img\" aria-label=\"{label}\">\
<rect width=\"{size}\" height=\"{size}\" fill=\"#fff\"/><path fill=\"#000\" d=\"{path}\"/></svg>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_as_wide_as_its_text_needs_and_long_texts_have_none() {
        let code = svg("https://m.example.org/_snug/password/abcdefghijklmnopqrstuvwxyz012345", "\"a\"");
        // Version 5 is 37 modules, and the edges are 4 each.
        assert!(code.contains("viewBox=\"0 0 45 45\"") && code.contains("aria-label=\"&quot;a&quot;\""), "{code}");
        // The upper finder's first line: seven modules.
        assert!(code.contains("d=\"M4 4h7v1h-7z"), "{code}");
        assert!(code.len() < 12_000, "{}", code.len());
        assert_eq!(svg(&"x".repeat(301), ""), "");
    }
}
