//! The connection of a command to the server of a data folder.
//!
//! A command reaches a running server through its socket. When no server runs, the command itself is the server for a
//! moment: it opens the same database, answers on the same socket, and stops when it is done. So there is one way to do
//! each thing.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::base::{Clock, Random};
use crate::budget::Budget;
use crate::config::Config;
use crate::remote::encode;
use crate::serve::{self, SOCKET, Server};

/// How long a command waits. Hashing a password takes some seconds on a small board, and may have to wait for others.
const PATIENCE: Duration = Duration::from_secs(90);
/// The same for work on all of the database.
const LONG_PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// The longest answer. A page of rows is far smaller.
const ANSWER_BYTES_MAX: usize = 4 << 20;

pub struct Local {
    runtime: Runtime,
    requests: SendRequest<Full<Bytes>>,
    /// Set when this process is the server.
    server: Option<Server>,
}

impl Local {
    /// Connects to the running server, or starts the stopped one. A server that never ran is an error: the folder is
    /// the wrong one.
    pub fn connect(config: &Config) -> Result<Local, String> {
        if let Some(local) = Local::running(config)? {
            return Ok(local);
        }
        if !serve::has_data(&config.data_dir).map_err(|error| error.to_string())? {
            return Err(nobody_home(config));
        }
        Local::stopped(config)
    }

    /// Like [`Local::connect`], but makes a server that never ran, unless another one has its
    /// address. Answers whether the server is new.
    pub fn connect_or_make(config: &Config) -> Result<(Local, bool), String> {
        if let Some(local) = Local::running(config)? {
            return Ok((local, false));
        }
        let new = !serve::has_data(&config.data_dir).map_err(|error| error.to_string())?;
        if new && let Some(taken) = serve::ports::taken(&config.listen) {
            return Err(format!(
                "no server has its data in {}, and {taken} is in use: a server seems to run with another folder. Name that one with \
                 --data-dir, or its config file with --config. A new server beside it needs another --listen",
                config.data_dir.display()
            ));
        }
        Ok((Local::stopped(config)?, new))
    }

    fn stopped(config: &Config) -> Result<Local, String> {
        let runtime = runtime()?;
        let profile = serve::profile(config).map_err(|error| error.to_string())?;
        let (server, requests) = runtime.block_on(async {
            let budget = Budget::from_profile(profile);
            let built = Server::build(config, Clock::real(), Random::os(), budget).await;
            let mut server = built.map_err(|error| error.to_string())?;
            server.open_local().map_err(|error| error.to_string())?;
            let requests = requests(config).await.map_err(|error| error.to_string())?;
            Ok::<_, String>((server, requests))
        })?;
        Ok(Local { runtime, requests, server: Some(server) })
    }

    /// The running server, when there is one.
    pub fn running(config: &Config) -> Result<Option<Local>, String> {
        let runtime = runtime()?;
        match runtime.block_on(requests(config)) {
            Ok(requests) => Ok(Some(Local { runtime, requests, server: None })),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
            Err(error) => {
                let socket = config.data_dir.join(SOCKET);
                let hint = match error.kind() {
                    ErrorKind::PermissionDenied => " (only the user the server runs as, and root, may use it)",
                    _ => "",
                };
                Err(format!("{}: {error}{hint}", socket.display()))
            }
        }
    }

    /// Whether the server runs for this command only.
    pub fn is_stopped(&self) -> bool {
        self.server.is_some()
    }

    pub fn get(&mut self, path: &str) -> Result<Value, String> {
        self.ask("GET", path, Bytes::new())
    }

    pub fn post(&mut self, path: &str, body: Value) -> Result<Value, String> {
        self.ask("POST", path, body.to_string().into())
    }

    /// What may take as long as the database is large.
    pub fn post_long(&mut self, path: &str, body: Value) -> Result<Value, String> {
        self.ask_for(LONG_PATIENCE, "POST", path, body.to_string().into())
    }

    /// Lets time pass; a server in this process works meanwhile.
    pub fn wait(&mut self, length: Duration) {
        self.runtime.block_on(Clock::real().sleep(length));
    }

    /// Every page of a list, in order.
    pub fn pages(&mut self, path: &str, visit: &mut dyn FnMut(&Value)) -> Result<(), String> {
        let mut target = path.to_owned();
        loop {
            let page = self.get(&target)?;
            visit(&page);
            match page["next"].as_str() {
                Some(next) => target = format!("{path}?after={}", encode(next)),
                None => return Ok(()),
            }
        }
    }

    /// Stops the server, when this process is the server.
    pub fn close(self) {
        if let Some(server) = self.server {
            drop(self.requests);
            self.runtime.block_on(server.stop());
        }
    }

    fn ask(&mut self, method: &str, path: &str, body: Bytes) -> Result<Value, String> {
        self.ask_for(PATIENCE, method, path, body)
    }

    fn ask_for(&mut self, patience: Duration, method: &str, path: &str, body: Bytes) -> Result<Value, String> {
        let request = hyper::Request::builder().method(method).uri(path).header("host", "snug").body(Full::new(body));
        let request = request.map_err(|error| error.to_string())?;
        let requests = &mut self.requests;
        let asking = async {
            let gone = |error: hyper::Error| format!("the server does not answer: {error}");
            let answer = requests.send_request(request).await.map_err(gone)?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| format!("the server's answer cannot be read: {error}"))?.to_bytes();
            let value: Value = serde_json::from_slice(&body).unwrap_or_default();
            match status.is_success() {
                true => Ok(value),
                false => Err(value["error"].as_str().map_or(format!("the server answers {status}"), str::to_owned)),
            }
        };
        let answered = self.runtime.block_on(async { Clock::real().timeout(patience, asking).await });
        answered.unwrap_or_else(|| {
            let seconds = patience.as_secs();
            Err(format!("the server runs, but did not answer within {seconds} seconds: it is very busy, or stuck; its log may say why"))
        })
    }
}

/// The message that the configured data folder has no server's data.
pub fn nobody_home(config: &Config) -> String {
    format!(
        "no server has its data in {}. Name its folder with --data-dir, or its config file with --config; the first start or \
         `snug user add` begins a new server",
        config.data_dir.display()
    )
}

/// One thread is enough for one command.
fn runtime() -> Result<Runtime, String> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())
}

async fn requests(config: &Config) -> std::io::Result<SendRequest<Full<Bytes>>> {
    let stream = UnixStream::connect(config.data_dir.join(SOCKET)).await?;
    let (requests, connection) = handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    tokio::spawn(connection);
    Ok(requests)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket that takes connections and never answers.
    #[test]
    fn a_server_that_is_stuck_is_said_to_be() {
        let folder = std::env::temp_dir().join(format!("snug-stuck-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let _ = std::fs::remove_file(folder.join(SOCKET));
        let _listener = std::os::unix::net::UnixListener::bind(folder.join(SOCKET)).unwrap();
        let overrides = crate::config::Overrides { data_dir: Some(folder.clone()), ..Default::default() };
        let config = Config::load(&overrides).unwrap();
        let mut local = Local::running(&config).unwrap().unwrap();
        let said = local.ask_for(Duration::from_millis(1), "GET", "/rooms", Bytes::new()).unwrap_err();
        assert!(said.contains("did not answer"), "{said}");
        let _ = std::fs::remove_dir_all(&folder);
    }
}
