//! The commands of `snug backup`.

use std::sync::Arc;

use super::{Admin, error::Error};
use crate::backup::{self, Order};
use crate::base::detached;
use crate::http::{ErrorResponse, Request, Response, StatusCode};

/// `GET /backup`: what is being made, how the last one ended, and when one was made last.
pub async fn status(admin: Arc<Admin>, _: Request) -> Result<Response, Error> {
    let backups = admin.backups.clone();
    let status = crate::base::blocking(move || backups.status()).await?;
    Ok(Response::json(&serde_json::to_value(&status).map_err(ErrorResponse::internal)?))
}

/// `POST /backup`: begins a backup, and answers at once; `GET /backup` says how far it is. 409 while another is made.
pub async fn make(admin: Arc<Admin>, mut request: Request) -> Result<Response, Error> {
    let order: Order = request.json().await?;
    let (backups, turn) = (admin.backups.clone(), admin.backups.begin()?);
    // How it ends is in the status, and in the log.
    detached(async move { drop(backups.make_in(turn, order).await) });
    Ok(Response::ok())
}

/// `POST /backup/cancel`: ends the one that is being made. 404 when there is none.
pub async fn cancel(admin: Arc<Admin>, _: Request) -> Result<Response, Error> {
    match admin.backups.cancel() {
        true => Ok(Response::ok()),
        false => Err(ErrorResponse::not_found("no backup is being made").into()),
    }
}

impl From<backup::Error> for Error {
    fn from(failed: backup::Error) -> Error {
        match failed {
            backup::Error::Refused(refused) => ErrorResponse::from(refused).into(),
            failed @ (backup::Error::Running | backup::Error::Busy(_)) => {
                ErrorResponse::new(StatusCode::CONFLICT, "M_UNKNOWN", failed.to_string()).into()
            }
            failed @ backup::Error::Store(_) => ErrorResponse::internal(failed).into(),
            failed => ErrorResponse::bad("M_UNKNOWN", failed.to_string()).into(),
        }
    }
}
