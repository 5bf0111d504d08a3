//! Registration tokens that administrators make over the API, beside those of the config.

use std::ops::ControlFlow;

use crate::store::Write;
use crate::store::tables::user::registration_token;
use crate::user::{Error, Users};

pub use crate::store::tables::user::registration_token::RegistrationToken;

/// Tokens that there may be: a list of all is a walk over so many rows of 150 bytes at most.
pub const TOKENS_MAX: usize = 1_000;
/// Characters of a token (client-server API, "Token-authenticated registration").
pub const TOKEN_CHARS_MAX: usize = 64;

impl Users {
    /// Whether an account can be made with a token.
    pub async fn is_registration_token(&self, token: &str) -> Result<bool, Error> {
        if token.len() > TOKEN_CHARS_MAX {
            return Ok(false);
        }
        let (token, now_ms) = (token.to_owned(), self.now_ms());
        self.read(move |get| Ok(registration_token::get(get, &token)?.is_some_and(|row| row.is_valid(now_ms)))).await
    }

    /// The next token behind a text, of all or of those that are valid or are not, for a long answer: it blocks.
    pub fn next_registration_token(
        &self,
        after: &str,
        valid: Option<bool>,
    ) -> Result<Option<(String, RegistrationToken)>, Error> {
        let (read, now_ms, mut found) = (self.0.parts.store.read()?, self.now_ms(), None);
        registration_token::each(&read, after, &mut |token, row| {
            if valid.is_some_and(|valid| valid != row.is_valid(now_ms)) {
                return Ok(ControlFlow::Continue(()));
            }
            found = Some((token.to_owned(), row));
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }

    pub async fn registration_token(&self, token: &str) -> Result<Option<RegistrationToken>, Error> {
        let token = token.to_owned();
        self.read(move |get| Ok(registration_token::get(get, &token)?)).await
    }

    /// Makes a token. `M_INVALID_PARAM` for one that is there, that has other characters than a token has, and beyond a thousand.
    pub async fn add_registration_token(&self, token: &str, row: RegistrationToken) -> Result<(), Error> {
        let bad = |why: &str| Err(Error::bad("M_INVALID_PARAM", why));
        let is_char = |c: u8| c.is_ascii_alphanumeric() || b"._~-".contains(&c);
        if token.is_empty() || token.len() > TOKEN_CHARS_MAX || !token.bytes().all(is_char) {
            return bad("token must consist only of A-Z, a-z, 0-9, ., _, ~ and -, of 64 characters at most");
        }
        let token = token.to_owned();
        self.write(move |w| {
            if registration_token::get(w, &token)?.is_some() {
                return bad("Token already exists");
            }
            let mut count = 0;
            registration_token::each(w, "", &mut |_, _| {
                count += 1;
                Ok(ControlFlow::Continue(()))
            })?;
            if count >= TOKENS_MAX {
                return bad("There are a thousand registration tokens: delete those that are used up");
            }
            Ok(registration_token::put(w, &token, &row)?)
        })
        .await
    }

    /// Changes how often and how long a token may be used: what is given, to what it is given as. None when there is no such token.
    pub async fn change_registration_token(
        &self,
        token: &str,
        uses_allowed: Option<Option<u64>>,
        expires_ms: Option<Option<u64>>,
    ) -> Result<Option<RegistrationToken>, Error> {
        let token = token.to_owned();
        self.write(move |w| {
            let Some(mut row) = registration_token::get(w, &token)? else { return Ok(None) };
            row.uses_allowed = uses_allowed.unwrap_or(row.uses_allowed);
            row.expires_ms = expires_ms.unwrap_or(row.expires_ms);
            registration_token::put(w, &token, &row)?;
            Ok(Some(row))
        })
        .await
    }

    /// False when there is no such token.
    pub async fn remove_registration_token(&self, token: &str) -> Result<bool, Error> {
        let token = token.to_owned();
        self.write(move |w| Ok(registration_token::remove(w, &token)?)).await
    }
}

/// Counts an account that is made with a token. `Forbidden` when the last one was made meanwhile, or the time is over.
pub(super) fn spend(w: &mut Write<'_>, token: &str, now_ms: u64) -> Result<(), Error> {
    let row = registration_token::get(w, token)?.filter(|row| row.is_valid(now_ms));
    let Some(mut row) = row else {
        return Err(Error::Forbidden("This registration token is not valid any more".to_owned()));
    };
    row.completed += 1;
    Ok(registration_token::put(w, token, &row)?)
}
