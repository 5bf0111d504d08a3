//! What `snug check` has found, line by line.

/// The findings, in the order of the checks.
#[derive(Default)]
pub struct Report {
    pub lines: String,
    pub bad: usize,
}

impl Report {
    pub fn good(&mut self, text: impl AsRef<str>) {
        self.line("ok   ", text.as_ref());
    }

    /// A finding that is worth knowing and no fault.
    pub fn note(&mut self, text: impl AsRef<str>) {
        self.line("note ", text.as_ref());
    }

    /// A fault.
    pub fn bad(&mut self, text: impl AsRef<str>) {
        self.bad += 1;
        self.line("BAD  ", text.as_ref());
    }

    fn line(&mut self, mark: &str, text: &str) {
        self.lines.push_str(&format!("{mark} {text}\n"));
    }
}
