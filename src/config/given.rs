//! The value of a setting, as it was given.

use std::path::{Path, PathBuf};

use toml::de::DeValue;

use crate::budget::parse_bytes;

/// A value of the config file, and the folder that its paths are relative to.
pub struct Given<'a> {
    pub value: &'a DeValue<'a>,
    pub folder: &'a Path,
    pub example: &'static str,
}

impl Given<'_> {
    pub fn text(&self) -> Result<&str, String> {
        self.value.as_str().ok_or_else(|| format!("must be text in quotes, not {}", self.value.type_str()))
    }

    pub fn texts(&self) -> Result<Vec<&str>, String> {
        let example = if self.example == "[]" { "[\"one\", \"two\"]" } else { self.example };
        let wrong = || format!("must be a list of texts in quotes, such as {example}");
        let list = self.value.as_array().ok_or_else(wrong)?;
        list.iter().map(|value| value.get_ref().as_str().ok_or_else(wrong)).collect()
    }

    pub fn pairs(&self) -> Result<Vec<(String, String)>, String> {
        let wrong = || "must be a table of texts, such as { \"a.example\" = \"10.0.0.1:8448\" }".to_owned();
        let table = self.value.as_table().ok_or_else(wrong)?;
        let pair = |value: &DeValue<'_>| value.as_str().map(str::to_owned).ok_or_else(wrong);
        table.iter().map(|(key, value)| Ok((key.get_ref().to_string(), pair(value.get_ref())?))).collect()
    }

    /// Servers with their addresses, and with the file of a root where one is named.
    pub fn places(&self) -> Result<Vec<(String, String, Option<PathBuf>)>, String> {
        let wrong = || {
            "must be a table such as { \"a.example\" = \"10.0.0.1:8448\", \"b.lan\" = { address = \"10.0.0.2:8448\", root = \"b.pem\" } }"
                .to_owned()
        };
        let table = self.value.as_table().ok_or_else(wrong)?;
        let place = |(key, value): (&toml::Spanned<std::borrow::Cow<'_, str>>, &toml::Spanned<DeValue<'_>>)| {
            let name = key.get_ref().to_string();
            if let Some(address) = value.get_ref().as_str() {
                return Ok((name, address.to_owned(), None));
            }
            let inside = value.get_ref().as_table().ok_or_else(wrong)?;
            let text = |name: &str| inside.get(name).and_then(|value| value.get_ref().as_str());
            match (text("address"), text("root"), inside.len()) {
                (Some(address), root, parts) if parts == 1 + usize::from(root.is_some()) => {
                    Ok((name, address.to_owned(), root.map(|root| self.folder.join(root))))
                }
                _ => Err(wrong()),
            }
        };
        table.iter().map(place).collect()
    }

    /// How often something may be done.
    pub fn rate(&self) -> Result<(f64, f64), String> {
        let wrong = || format!("must be a rate such as {}, with a burst_count of 1 or more", self.example);
        let table = self.value.as_table().filter(|table| table.len() == 2).ok_or_else(wrong)?;
        let number = |name: &str| {
            let number: f64 = match table.get(name)?.get_ref() {
                DeValue::Integer(number) => number.as_str().parse().ok()?,
                DeValue::Float(number) => number.as_str().parse().ok()?,
                _ => return None,
            };
            Some(number).filter(|number| number.is_finite())
        };
        match (number("per_second"), number("burst_count")) {
            (Some(per_second), Some(burst)) if per_second > 0.0 && burst >= 1.0 => Ok((per_second, burst)),
            _ => Err(wrong()),
        }
    }

    pub fn flag(&self) -> Result<bool, String> {
        self.value.as_bool().ok_or_else(|| format!("must be true or false, not {}", self.value.type_str()))
    }

    pub fn bytes(&self) -> Result<u64, String> {
        match self.value {
            DeValue::Integer(number) => parse_bytes(number.as_str()),
            DeValue::String(text) => parse_bytes(text),
            other => Err(format!("must be a number of bytes such as 4096 or \"50 MiB\", not {}", other.type_str())),
        }
    }

    pub fn number(&self) -> Result<u64, String> {
        let wrong = || format!("must be a number such as {}", self.example);
        match self.value {
            DeValue::Integer(number) => number.as_str().parse().map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }

    pub fn days(&self) -> Result<Option<u32>, String> {
        let wrong = || format!("must be a number of days such as {}", self.example);
        let DeValue::Integer(number) = self.value else { return Err(wrong()) };
        let days: u32 = number.as_str().parse().map_err(|_| wrong())?;
        Ok(Some(days).filter(|days| *days > 0))
    }

    pub fn path(&self) -> Result<PathBuf, String> {
        match self.text()? {
            "" => Err("must not be empty".to_owned()),
            text => Ok(self.folder.join(text)),
        }
    }

    pub fn one_of<T: Copy>(&self, known: &[(&str, T)]) -> Result<T, String> {
        let text = self.text()?;
        let found = known.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        found.ok_or_else(|| {
            let names: Vec<_> = known.iter().map(|(name, _)| format!("{name:?}")).collect();
            format!("{text:?} is not one of {}", names.join(", "))
        })
    }
}
