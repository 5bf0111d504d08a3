//! The commands `snug appservice list` and those that change the files of application services.

use std::pin::Pin;
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;

use super::{Admin, page};
use crate::http::{ErrorResponse, Request, Response};

/// The reading of all files under way: what is wrong with them, a sentence each.
pub type Reloading = Pin<Box<dyn Future<Output = Vec<String>> + Send>>;

/// The files of application services, which `serve` reads.
pub trait Registrations: Send + Sync {
    fn reload(self: Arc<Self>) -> Reloading;

    fn list(&self) -> Vec<Registered>;
}

/// One file. Without an id there is nothing good in it.
#[derive(Debug, Serialize)]
pub struct Registered {
    pub file: String,
    pub id: Option<String>,
    pub url: Option<String>,
    pub sender: Option<String>,
    pub error: Option<String>,
}

/// GET /appservices: the files, and what waits for each service.
pub async fn list(admin: Arc<Admin>, _: Request) -> Result<Response, ErrorResponse> {
    let rows: Vec<_> = admin
        .registrations
        .list()
        .into_iter()
        .map(|row| {
            let waits = row.id.as_deref().and_then(|id| admin.told.status(id));
            json!({ "registration": row, "status": waits })
        })
        .collect();
    page(&admin, &json!({ "appservices": rows })).await
}

/// POST /appservices/reload: reads the files again. Answers what is wrong with them.
pub async fn reload(admin: Arc<Admin>, _: Request) -> Result<Response, ErrorResponse> {
    let wrong = admin.registrations.clone().reload().await;
    Ok(Response::json(&json!({ "wrong": wrong })))
}
