//! The text format of OpenMetrics 1.0, written by hand.
//!
//! `prometheus-client` would bring a registry that knows every counter, and a lock and a map of labels around each; here
//! the figures stand in the parts anyway, and the format is these few lines. A label's value may be anybody's text: it is
//! escaped.

use std::fmt::{Display, Write};

pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Metrics as text. The samples of a family stand together, below its head.
#[derive(Default)]
pub struct Text {
    pub out: String,
    name: &'static str,
}

impl Text {
    /// A figure that goes up and down.
    pub fn gauge(&mut self, name: &'static str, help: &str) -> &mut Text {
        self.family(name, "gauge", help)
    }

    /// A figure that only grows; `name` is without `_total`.
    pub fn counter(&mut self, name: &'static str, help: &str) -> &mut Text {
        self.family(name, "counter", help)
    }

    pub fn histogram(&mut self, name: &'static str, help: &str) -> &mut Text {
        self.family(name, "histogram", help)
    }

    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> &mut Text {
        self.name = name;
        let _ = writeln!(self.out, "# TYPE {name} {kind}\n# HELP {name} {help}");
        self
    }

    /// One figure of the gauge whose head was written last.
    pub fn is(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Text {
        self.sample("", labels, value)
    }

    /// One figure of the counter whose head was written last.
    pub fn total(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Text {
        self.sample("_total", labels, value)
    }

    /// One histogram: the counts of its buckets, each for itself, with their upper bounds in milliseconds and one more
    /// for what is above; and the sum of all in seconds.
    pub fn buckets(&mut self, labels: &[(&str, &str)], bounds_ms: &[u32], counts: &[u32], sum_s: f64) {
        let mut below = 0_u64;
        for (at, count) in counts.iter().enumerate() {
            below += u64::from(*count);
            let bound = bounds_ms.get(at).map_or("+Inf".to_owned(), |ms| float(f64::from(*ms) / 1000.0));
            let mut all = labels.to_vec();
            all.push(("le", &bound));
            self.sample("_bucket", &all, below);
        }
        self.sample("_count", labels, below);
        self.sample("_sum", labels, float(sum_s));
    }

    fn sample(&mut self, ending: &str, labels: &[(&str, &str)], value: impl Display) -> &mut Text {
        let _ = write!(self.out, "{}{ending}", self.name);
        for (at, (name, text)) in labels.iter().enumerate() {
            let _ = write!(self.out, "{}{name}=\"", if at == 0 { '{' } else { ',' });
            for char in text.chars() {
                match char {
                    '\\' => self.out.push_str("\\\\"),
                    '"' => self.out.push_str("\\\""),
                    '\n' => self.out.push_str("\\n"),
                    char => self.out.push(char),
                }
            }
            self.out.push('"');
        }
        let _ = writeln!(self.out, "{} {value}", if labels.is_empty() { "" } else { "}" });
        self
    }
}

/// A float always has a point, as canonical floats of the format do.
fn float(value: f64) -> String {
    format!("{value:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_as_the_format_says() {
        let mut text = Text::default();
        text.gauge("a_bytes", "What a takes").is(&[], 7);
        text.counter("b", "How often").total(&[("who", "x\"\\\ny"), ("how", "z")], 3);
        text.histogram("c_seconds", "How long").buckets(&[("m", "GET")], &[5, 1000], &[1, 0, 2], 4.5);
        let wanted = "# TYPE a_bytes gauge\n# HELP a_bytes What a takes\na_bytes 7\n\
            # TYPE b counter\n# HELP b How often\nb_total{who=\"x\\\"\\\\\\ny\",how=\"z\"} 3\n\
            # TYPE c_seconds histogram\n# HELP c_seconds How long\n\
            c_seconds_bucket{m=\"GET\",le=\"0.005\"} 1\nc_seconds_bucket{m=\"GET\",le=\"1.0\"} 1\n\
            c_seconds_bucket{m=\"GET\",le=\"+Inf\"} 3\nc_seconds_count{m=\"GET\"} 3\nc_seconds_sum{m=\"GET\"} 4.5\n";
        assert_eq!(text.out, wanted);
    }
}
