//! `[terms]`: what whoever has an account agrees to.

use toml::de::{DeTable, DeValue};

use super::given::Given;
use super::setting::{Setting, optional, setting, url};
use crate::client::{Policy, PolicyPlace, PolicyText, TERMS_BYTES_MAX};

pub const SETTINGS: &[Setting] = &[
    optional(
        "terms.policies",
        r#"{ privacy_policy = { version = "1.0", en = { name = "Privacy policy", url = "https://example.org/privacy" } } }"#,
        "Policies to which everybody agrees who makes an account, each with a version, and in each language a name and a url; or a \
         file with the text, which this server shows then: en = { name = \"Privacy policy\", file = \"/etc/snug/privacy.txt\" }. \
         With a new version everybody has to agree again.",
        |config, given| Ok(config.apps.terms.policies = policies(given)?),
    )
    .live(),
    setting(
        "terms.required_to_send",
        "true",
        "Whether accounts that have not agreed to the present versions can send nothing until they do: those that were there before, \
         or that you have made. Their apps show them where to agree.",
        |config, given| Ok(config.apps.terms.required_to_send = given.flag()?),
    )
    .live(),
    setting(
        "terms.notice",
        "true",
        "Whether those who use this server and have not agreed to the present versions are told so, once for each change, in their \
         room of notices, with a link to where they agree.",
        |config, given| Ok(config.apps.terms.notice = given.flag()?),
    ),
];

fn policies(given: &Given<'_>) -> Result<Vec<Policy>, String> {
    let wrong = || format!("must be a table of policies, such as {}", given.example);
    let table = given.value.as_table().ok_or_else(wrong)?;
    let mut policies = Vec::new();
    for (id, policy) in table.iter() {
        let (id, policy) = (id.get_ref().to_string(), policy.get_ref().as_table().ok_or_else(wrong)?);
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
            return Err(format!("{id:?} is not a name of letters, digits, and any of . _ -"));
        }
        let version = policy.get("version").and_then(|version| version.get_ref().as_str());
        let version = version.ok_or_else(|| format!("{id} needs a version, such as version = \"1.0\""))?.to_owned();
        let texts = policy.iter().filter(|(key, _)| key.get_ref() != "version");
        let texts: Vec<_> = texts
            .map(|(language, text)| policy_text(given, &id, language.get_ref(), text.get_ref()))
            .collect::<Result<_, _>>()?;
        if texts.is_empty() {
            return Err(format!("{id} needs a language, such as en = {{ name = \"…\", url = \"https://…\" }}"));
        }
        policies.push(Policy { id, version, texts });
    }
    Ok(policies)
}

fn policy_text(given: &Given<'_>, id: &str, language: &str, text: &DeValue<'_>) -> Result<PolicyText, String> {
    let wrong =
        || format!("{id}.{language} needs a name, and a url or a file: {{ name = \"…\", url = \"https://…\" }}");
    let text = text.as_table().ok_or_else(wrong)?;
    if !language.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err(format!("{id}.{language} is not a language such as en or pt-br"));
    }
    let of = |name: &str| member(text, name);
    let place = match (of("url"), of("file")) {
        (Some(address), None) => PolicyPlace::Url(url(address)?),
        (None, Some(file)) => {
            let file = given.folder.join(file);
            let length = std::fs::metadata(&file).map_err(|error| format!("{}: {error}", file.display()))?.len();
            if length > TERMS_BYTES_MAX {
                return Err(format!("{} is longer than {TERMS_BYTES_MAX} bytes", file.display()));
            }
            PolicyPlace::File(file)
        }
        _ => return Err(wrong()),
    };
    let name = of("name").ok_or_else(wrong)?.to_owned();
    Ok(PolicyText { language: language.to_owned(), name, place })
}

fn member<'a>(table: &'a DeTable<'_>, name: &str) -> Option<&'a str> {
    table.get(name).and_then(|value| value.get_ref().as_str())
}
