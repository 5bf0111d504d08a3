//! `[support]`: who helps the people here, for everybody to find.

use ruma::UserId;

use super::given::Given;
use super::setting::{Setting, optional, url};
use crate::client::Contact;

pub const SETTINGS: &[Setting] = &[
    optional(
        "support.contacts",
        r#"[{ role = "m.role.admin", matrix_id = "@alice:example.org", email_address = "admin@example.org" }]"#,
        "Whom to ask about this server, in /.well-known/matrix/support: each with a role, m.role.admin or m.role.security, and a Matrix \
         ID, an e-mail address or both.",
        |config, given| Ok(config.apps.support.contacts = contacts(given)?),
    )
    .live(),
    optional(
        "support.page",
        r#""https://example.org/help""#,
        "A page that helps people here, published in the same place.",
        |config, given| Ok(config.apps.support.page = Some(url(given.text()?)?)),
    )
    .live(),
];

fn contacts(given: &Given<'_>) -> Result<Vec<Contact>, String> {
    let wrong = || format!("must be a list of contacts, such as {}", given.example);
    let list = given.value.as_array().ok_or_else(wrong)?;
    let mut contacts = Vec::new();
    for contact in list.iter() {
        let table = contact.get_ref().as_table().ok_or_else(wrong)?;
        let known = ["role", "matrix_id", "email_address"];
        if let Some((key, _)) = table.iter().find(|(key, _)| !known.contains(&key.get_ref().as_ref())) {
            return Err(format!("{:?} is not one of role, matrix_id, email_address", key.get_ref()));
        }
        let of = |name: &str| table.get(name).and_then(|value| value.get_ref().as_str()).map(ToOwned::to_owned);
        let (matrix_id, email_address) = (of("matrix_id"), of("email_address"));
        if let Some(id) = matrix_id.as_deref().filter(|id| UserId::parse(*id).is_err()) {
            return Err(format!("{id:?} is not a Matrix ID such as @alice:example.org"));
        }
        if matrix_id.is_none() && email_address.is_none() {
            return Err("a contact needs a matrix_id or an email_address".to_owned());
        }
        let role = of("role").unwrap_or_else(|| "m.role.admin".to_owned());
        contacts.push(Contact { role, matrix_id, email_address });
    }
    Ok(contacts)
}
