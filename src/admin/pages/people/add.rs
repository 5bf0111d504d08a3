//! A new account, whose password its owner chooses with a link.

use askama::Template;

use crate::admin::error::Error;
use crate::admin::pages::frame::{Form, Frame, Visit, sentence};
use crate::admin::pages::link::Shown;
use crate::admin::users::localpart;
use crate::http::{ErrorResponse, Response, StatusCode};
use crate::user::{self, New};

#[derive(Template)]
#[template(path = "person_add.html")]
struct Add {
    frame: Frame,
    name: String,
    is_admin: bool,
    wrong: Option<String>,
}

#[derive(Template)]
#[template(path = "link_made.html")]
pub struct Made {
    pub frame: Frame,
    pub name: String,
    pub user_id: String,
    pub path: String,
    pub is_new: bool,
    pub link: Shown,
}

/// `GET people/add`
pub async fn show(visit: Visit) -> Result<Response, Error> {
    let frame = visit.frame("people", "Add a person");
    visit.page(&Add { frame, name: String::new(), is_admin: false, wrong: None }).await
}

/// `POST people/add`: the account, and its link. 400 and the form again when the name cannot be.
pub async fn make(visit: Visit, form: Form) -> Result<Response, Error> {
    let (name, is_admin) = (form.text("name"), form.is_ticked("admin"));
    let users = &visit.admin.users;
    let made = async {
        let localpart = localpart(&visit.admin, &name)?;
        Ok::<_, Error>(
            users.create(New { localpart, password: None, admin: is_admin, agreed: 0, bot: false, token: None }).await,
        )
    };
    let wrong = match made.await {
        Ok(Ok(user_id)) => {
            tracing::info!("{} made the account {user_id} on the page", visit.user_id);
            let link = users.make_password_link(&user_id).await?;
            let frame = visit.frame("people", "Send this link");
            let (link, path) = (Shown::new(&visit, link), super::path(&user_id));
            let name = user_id.localpart().to_owned();
            let page = Made { frame, name, user_id: user_id.to_string(), path, is_new: true, link };
            return visit.page(&page).await;
        }
        Ok(Err(failed @ (user::Error::Taken | user::Error::Bad { .. }))) => failed.to_string(),
        Ok(Err(failed)) => return Err(failed.into()),
        Err(failed) => ErrorResponse::from(failed).message,
    };
    let frame = visit.frame("people", "Add a person");
    let page = visit.page(&Add { frame, name, is_admin, wrong: Some(sentence(&wrong)) }).await?;
    Ok(page.with_status(StatusCode::BAD_REQUEST))
}
