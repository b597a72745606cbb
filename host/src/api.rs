// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Calls of a VMM's API: HTTP over a Unix socket. Whoever listens there may answer anything, or never.

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use vmm_device_ivsmc::{Config, Gid, Links};

/// The most bytes of an answer. A VM's configuration and its tree of devices have some 100 KiB at most; more would
/// let many VMMs use up memory.
const MAX_ANSWER: usize = 1 << 20;
/// The most bytes of an answer's head.
const MAX_HEAD: usize = 64 << 10;
/// The most characters of an answer that an error tells.
const MAX_TOLD: usize = 300;

/// What came of a call that was no answer to it.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Nobody listens, or may be asked.
    #[error("the API socket cannot be connected to: {0}")]
    Connect(#[source] io::Error),
    /// There was no whole answer in time.
    #[error("no answer within {0:?}")]
    Slow(Duration),
    /// What was said is not HTTP, or ended early.
    #[error("no HTTP answer: {}", told(&.0.to_string()))]
    Http(#[from] hyper::Error),
    /// The answer does not end, or could not be understood.
    #[error("an answer of more than 1 MiB")]
    TooLong,
    /// Another status than 200 or 204.
    #[error("status {status}: {}", told(.said))]
    Status {
        /// The status.
        status: u16,
        /// The answer, as much of it as is worth telling.
        said: String,
    },
    /// Not what the API describes.
    #[error("an answer that is none of Cloud Hypervisor's: {}", told(&.0.to_string()))]
    Json(#[from] serde_json::Error),
    /// The request could not be made.
    #[error("the request cannot be made: {0}")]
    Request(#[from] hyper::http::Error),
}

/// What of `vm.info` matters here.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct VmInfo {
    /// The configuration.
    pub config: VmConfig,
    /// Created, Running, Paused and others.
    pub state: String,
}

/// The configuration's devices.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct VmConfig {
    /// ivsmc devices.
    #[serde(default)]
    pub ivsmc: Option<Vec<VmDevice>>,
}

/// An ivsmc device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct VmDevice {
    /// Its name.
    #[serde(default)]
    pub id: Option<String>,
    /// Where it listens.
    #[serde(default)]
    pub path: String,
}

/// What `vm.add-ivsmc` takes.
#[derive(Serialize)]
pub struct NewDevice<'a> {
    /// Its name.
    pub id: &'a str,
    /// The PCI segment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_segment: Option<u16>,
    /// The device's own options.
    #[serde(flatten)]
    pub device: &'a Config,
}

/// A device and its links, of the answer of `vm.ivsmc-links`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct DeviceLinks {
    /// Its name.
    pub id: String,
    /// What it tells.
    #[serde(flatten)]
    pub links: Links,
}

/// What `vm.drop-ivsmc-link` takes.
#[derive(Serialize)]
pub struct DropLink<'a> {
    /// The device's name.
    pub id: &'a str,
    /// The peer.
    pub peer: Gid,
    /// Whether it gets no other link; if not, it may have one again.
    pub refuse: bool,
}

/// Text of somebody else's as one short line without control characters.
pub fn told(text: &str) -> String {
    let mut told: String = text.trim().chars().take(MAX_TOLD).collect();
    if told.len() < text.trim().len() {
        told.push_str("...");
    }
    let mut line = String::new();
    for character in told.chars() {
        match character {
            '"' | '\'' | '\\' => line.push(character),
            _ => line.extend(character.escape_debug()),
        }
    }
    line
}

/// A VMM's API.
pub struct Api {
    /// Its socket, opened as a place (O_PATH).
    pub socket: OwnedFd,
    /// How long a call may take.
    pub limit: Duration,
}

impl Api {
    /// What the VMM says of its VM.
    ///
    /// # Errors
    /// It says that there is none, or nothing useful.
    pub async fn info(&self) -> Result<VmInfo, ApiError> {
        let answer = self.call(Method::GET, "vm.info", Bytes::new()).await?;
        parse_info(&answer)
    }

    /// Gives the VM a device.
    ///
    /// # Errors
    /// It has got none, or will do later if the error is [`ApiError::Slow`].
    pub async fn add(&self, device: &NewDevice<'_>) -> Result<(), ApiError> {
        let body = serde_json::to_vec(device)?.into();
        self.call(Method::PUT, "vm.add-ivsmc", body).await.map(drop)
    }

    /// The links of the VM's devices.
    ///
    /// # Errors
    /// The VMM does not know the call, or says nothing useful.
    pub async fn links(&self) -> Result<Vec<DeviceLinks>, ApiError> {
        let answer = self
            .call(Method::GET, "vm.ivsmc-links", Bytes::new())
            .await?;
        parse_links(&answer)
    }

    /// Ends a link, or allows a peer again.
    ///
    /// # Errors
    /// It does not end, or will do later if the error is [`ApiError::Slow`].
    pub async fn drop_link(&self, link: &DropLink<'_>) -> Result<(), ApiError> {
        let body = serde_json::to_vec(link)?.into();
        let call = self.call(Method::PUT, "vm.drop-ivsmc-link", body);
        call.await.map(drop)
    }

    async fn call(&self, method: Method, name: &str, body: Bytes) -> Result<Bytes, ApiError> {
        match timeout(self.limit, self.exchange(method, name, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(ApiError::Slow(self.limit)),
        }
    }

    /// A connection for each call: a VMM has few, and must not be left with ours.
    async fn exchange(&self, method: Method, name: &str, body: Bytes) -> Result<Bytes, ApiError> {
        let place = format!("/proc/self/fd/{}", self.socket.as_raw_fd());
        let stream = UnixStream::connect(place)
            .await
            .map_err(ApiError::Connect)?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(MAX_HEAD);
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        // It ends with this function, at whichever point that is left.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/api/v1/{name}"))
            .header(HOST, "localhost")
            .header(ACCEPT, "application/json")
            .header(CONNECTION, "close");
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let response = sender.send_request(request.body(Full::new(body))?).await?;
        let status = response.status();
        let collected = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await;
        let answer = match collected {
            Ok(answer) => answer.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => return Err(ApiError::TooLong),
            Err(error) => match error.downcast::<hyper::Error>() {
                Ok(error) => return Err(ApiError::Http(*error)),
                Err(_) => return Err(ApiError::TooLong),
            },
        };
        match status {
            StatusCode::OK | StatusCode::NO_CONTENT => Ok(answer),
            status => Err(ApiError::Status {
                status: status.as_u16(),
                said: String::from_utf8_lossy(&answer[..answer.len().min(4 * MAX_TOLD)]).into(),
            }),
        }
    }
}

/// The answer of `vm.info`.
///
/// # Errors
/// It is something else.
pub fn parse_info(answer: &[u8]) -> Result<VmInfo, ApiError> {
    Ok(serde_json::from_slice(answer)?)
}

/// The answer of `vm.ivsmc-links`.
///
/// # Errors
/// It is something else.
pub fn parse_links(answer: &[u8]) -> Result<Vec<DeviceLinks>, ApiError> {
    Ok(serde_json::from_slice(answer)?)
}

impl ApiError {
    /// Whether `vm.info` has said with this that there is no VM yet.
    pub fn is_no_vm(&self) -> bool {
        matches!(self, ApiError::Status { status: 404, .. }) || self.says_no_vm()
    }

    /// Whether a call has said so in words: with status 404, or with 500 in older releases.
    pub fn says_no_vm(&self) -> bool {
        match self {
            ApiError::Status { said, .. } => said.contains("VM is not created"),
            _ => false,
        }
    }

    /// Whether a call has said in words that the VM is not booted.
    pub fn says_not_booted(&self) -> bool {
        match self {
            ApiError::Status { said, .. } => said.contains("VM is not running"),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_one_short_line() {
        assert_eq!(told(" [\"a\nb\"]\x1b[31m "), "[\"a\\nb\"]\\u{1b}[31m");
        let long = told(&"x".repeat(1000));
        assert_eq!(long.len(), MAX_TOLD + 3);
    }

    #[test]
    fn devices_of_a_configuration() {
        let answer = br#"{"config": {"cpus": {}, "ivsmc": [{"id": "i", "path": "/p", "size": 1}]},
                          "state": "Running", "memory_actual_size": 1}"#;
        let info = parse_info(answer).unwrap();
        assert_eq!(info.state, "Running");
        assert_eq!(info.config.ivsmc.unwrap()[0].path, "/p");
        for none in [
            r#"{"config": {}, "state": "x"}"#,
            r#"{"config": {"ivsmc": null}, "state": "x"}"#,
        ] {
            assert_eq!(parse_info(none.as_bytes()).unwrap().config.ivsmc, None);
        }
        assert!(parse_info(b"").is_err());
        assert!(parse_info(b"[]").is_err());
        // Deeper than any stack.
        assert!(parse_info(&vec![b'['; 1 << 20]).is_err());
    }
}
