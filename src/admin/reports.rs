//! The commands of `snug reports`.

use std::sync::Arc;

use serde_json::json;

use super::{Admin, error::Error, page};
use crate::http::{ErrorResponse, Request, Response};

/// Reports of one answer: of the longest, 6 KiB each, the rows and their text are 24 KiB.
const ROWS: usize = 2;

/// `GET /reports?after=1`: the next reports behind a number, oldest first.
pub async fn list(admin: Arc<Admin>, request: Request) -> Result<Response, Error> {
    let after = request.query_as::<u32>("after")?.unwrap_or(0);
    let reports = admin.users.reports(after, ROWS).await?;
    let next = (reports.len() == ROWS).then(|| reports.last().map(|(number, _)| number.to_string())).flatten();
    let reports: Vec<_> =
        reports.into_iter().map(|(number, report)| json!({ "number": number, "report": report })).collect();
    Ok(page(&admin, &json!({ "reports": reports, "next": next })).await?)
}

/// `POST /reports/{number}/remove`
pub async fn remove(admin: Arc<Admin>, request: Request) -> Result<Response, Error> {
    let number = request.param("number").parse().map_err(|_| ErrorResponse::not_found("a report has a number"))?;
    admin.users.remove_report(number).await?;
    Ok(Response::ok())
}
