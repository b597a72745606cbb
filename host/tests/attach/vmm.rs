// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VMM that has an API socket, ivsmc devices that listen, and no VM.

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::net::{bind, connect, listen, socket_with};
use serde_json::{Value, json};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

/// What it does to who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// What Cloud Hypervisor does.
    Good,
    /// Takes a connection and never says a word.
    Silent,
    /// Stops in the middle of an answer.
    Half,
    /// Ends in the middle of an answer.
    Cut,
    /// Says that an answer has no end, and goes on.
    EndlessBody,
    /// A head without an end.
    EndlessHead,
    /// Interim answers without an end.
    EndlessInterim,
    /// Not HTTP.
    Garbage,
    /// HTTP, but no JSON.
    NotJson,
    /// JSON of something else.
    OtherJson,
    /// A status for everything.
    Status(u16),
    /// The call that adds a device is not known.
    NoCall,
    /// Its VM is deleted before it is added to.
    Deletes,
    /// Adds a device, and does not say so.
    AddsSilently,
    /// Never answers who asks for links, or drops one.
    SilentLinks,
}

/// How it is with such a VMM.
pub struct State {
    pub mode: Mode,
    /// None: there is no VM yet, and that is told with status 404, or 500.
    pub vm: Result<&'static str, u16>,
    /// The VM's devices, as they were asked for.
    pub devices: Vec<Value>,
    /// The links of each of them, and the peers that it refuses.
    pub links: Vec<Value>,
    pub refused: Vec<Value>,
    /// What vm.ivsmc-links is answered instead.
    pub odd_links: Option<(u16, String)>,
    /// Calls of vm.drop-ivsmc-link.
    pub drops: Vec<Value>,
    /// Calls of vm.add-ivsmc.
    pub adds: usize,
    /// Connections that there were.
    pub calls: usize,
    listeners: Vec<OwnedFd>,
}

/// A VMM, which is killed when this is dropped.
pub struct Vmm {
    pub socket: PathBuf,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

impl Vmm {
    /// One with a VM that runs.
    pub fn start(socket: impl AsRef<Path>) -> Self {
        Self::with(socket, Mode::Good, Ok("Running"))
    }

    pub fn with(socket: impl AsRef<Path>, mode: Mode, vm: Result<&'static str, u16>) -> Self {
        let socket = socket.as_ref().to_path_buf();
        fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let state = Arc::new(Mutex::new(State {
            mode,
            vm,
            devices: Vec::new(),
            links: Vec::new(),
            refused: Vec::new(),
            odd_links: None,
            drops: Vec::new(),
            adds: 0,
            calls: 0,
            listeners: Vec::new(),
        }));
        let task = tokio::spawn(serve(listener, state.clone()));
        Vmm {
            socket,
            state,
            task,
        }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Where its devices listen.
    pub fn paths(&self) -> Vec<String> {
        let path = |device: &Value| device["path"].as_str().unwrap_or_default().to_string();
        self.state().devices.iter().map(path).collect()
    }
}

impl Drop for Vmm {
    /// As by SIGKILL: files stay.
    fn drop(&mut self) {
        self.task.abort();
        self.state().listeners.clear();
    }
}

/// A device's socket.
pub fn listen_at(path: &Path) -> Result<OwnedFd, String> {
    let new = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
    };
    let address = SocketAddrUnix::new(path).map_err(|error| error.to_string())?;
    if connect(new().unwrap(), &address).is_ok() {
        return Err("the path is in use".into());
    }
    let _ = fs::remove_file(path);
    let socket = new().unwrap();
    bind(&socket, &address).map_err(|error| error.to_string())?;
    listen(&socket, 8).map_err(|error| error.to_string())?;
    Ok(socket)
}

async fn serve(listener: UnixListener, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        state.lock().unwrap().calls += 1;
        connections.spawn(answer(stream, state.clone()));
    }
}

async fn answer(mut stream: UnixStream, state: Arc<Mutex<State>>) {
    let mode = state.lock().unwrap().mode;
    let head = "HTTP/1.1 200 \r\nServer: x\r\nContent-Type: application/json\r\n";
    let (first, again) = match mode {
        Mode::Silent => (String::new(), ""),
        Mode::Half => (format!("{head}Content-Length: 1000\r\n\r\n{{"), ""),
        Mode::EndlessBody => (
            format!("{head}Content-Length: 99999999999\r\n\r\n"),
            "[[[[[[",
        ),
        Mode::EndlessHead => (head.into(), "X: y\r\n"),
        Mode::EndlessInterim => (String::new(), "HTTP/1.1 100 Continue\r\n\r\n"),
        Mode::Garbage => ("SSH-2.0-what\r\n".into(), "\0\0\0\0"),
        Mode::Cut => {
            let _ = stream
                .write_all(format!("{head}Content-Length: 9\r\n\r\n{{").as_bytes())
                .await;
            return;
        }
        _ => {
            let _ = call(&mut stream, &state).await;
            return;
        }
    };
    let _ = stream.write_all(first.as_bytes()).await;
    // Until the other end has enough of it.
    let mut sink = [0; 1024];
    if again.is_empty() {
        while stream.read(&mut sink).await.is_ok_and(|read| read > 0) {}
    } else {
        let many = again.repeat(1000);
        while stream.write_all(many.as_bytes()).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }
}

async fn call(stream: &mut UnixStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut request = Vec::new();
    let (line, body) = loop {
        if let Some((line, body)) = whole(&request) {
            break (line, body);
        }
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    };
    let (status, said) = state.lock().unwrap().call(&line, &body);
    if status == 0 {
        // Holds the connection for as long as the other end does.
        let _ = stream.read(&mut [0; 16]).await;
        return Ok(());
    }
    let length = match status {
        204 => String::new(),
        _ => format!("Content-Length: {}\r\n", said.len()),
    };
    let answer = format!(
        "HTTP/1.1 {status} \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\
         Content-Type: application/json\r\n{length}\r\n{said}"
    );
    stream.write_all(answer.as_bytes()).await?;
    // As Cloud Hypervisor, which leaves it to the client to close a connection.
    tokio::time::timeout(Duration::from_secs(60), stream.read(&mut [0; 16])).await??;
    Ok(())
}

/// A request's first line and its body, when it is all there.
fn whole(request: &[u8]) -> Option<(String, Vec<u8>)> {
    let end = request.windows(4).position(|at| at == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&request[..end]).to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.map_or(0, |length| length.trim().parse().unwrap());
    let body = request.get(end..end + length)?;
    Some((head.lines().next()?.into(), body.into()))
}

impl State {
    fn call(&mut self, line: &str, body: &[u8]) -> (u16, String) {
        match self.mode {
            Mode::NotJson => return (200, "it is well".into()),
            Mode::OtherJson => return (200, json!({"config": [], "state": 7}).to_string()),
            Mode::Status(status) => return (status, json!(["no"]).to_string()),
            _ => {}
        }
        if line.starts_with("get /api/v1/vm.info ") {
            return match self.vm {
                Ok(vm) => {
                    let config = json!({"cpus": {"boot_vcpus": 1}, "ivsmc": self.devices});
                    (200, json!({"config": config, "state": vm}).to_string())
                }
                Err(status) => (status, no_vm()),
            };
        }
        if self.mode == Mode::NoCall {
            return (404, String::new());
        }
        if line.starts_with("get /api/v1/vm.ivsmc-links ") {
            return self.links();
        }
        if line.starts_with("put /api/v1/vm.drop-ivsmc-link ") {
            return self.drop_link(body);
        }
        if !line.starts_with("put /api/v1/vm.add-ivsmc ") {
            return (404, String::new());
        }
        self.adds += 1;
        if self.mode == Mode::Deletes {
            self.vm = Err(404);
        }
        let Ok(vm) = self.vm else {
            return (404, no_vm());
        };
        let device: Value = serde_json::from_slice(body).unwrap();
        let is_same = |other: &Value| other["id"] == device["id"];
        if self.devices.iter().any(is_same) {
            return (
                409,
                json!(["Error from API", "the id is taken"]).to_string(),
            );
        }
        if vm == "Running" {
            match listen_at(Path::new(device["path"].as_str().unwrap())) {
                Ok(listener) => self.listeners.push(listener),
                Err(error) => return (500, json!(["Error from API", error]).to_string()),
            }
        }
        self.devices.push(device);
        match (self.mode, vm) {
            (Mode::AddsSilently, _) => (0, String::new()),
            (_, "Created") => (204, String::new()),
            _ => (
                200,
                json!({"id": "ivsmc-host", "bdf": "0000:00:06.0"}).to_string(),
            ),
        }
    }
}

impl State {
    fn links(&self) -> (u16, String) {
        if self.mode == Mode::SilentLinks {
            return (0, String::new());
        }
        match (&self.odd_links, self.vm) {
            (Some(odd), _) => odd.clone(),
            (None, Err(_)) => (404, no_vm()),
            (None, Ok("Created")) => (
                500,
                json!(["Error from API", "VM is not running"]).to_string(),
            ),
            (None, Ok(_)) => {
                let told = |device: &Value| {
                    json!({
                        "id": device["id"], "path": device["path"], "gid": GID, "doorbells_trapped": 3,
                        "links": self.links, "refused": self.refused, "later": "more",
                    })
                };
                let all: Vec<_> = self.devices.iter().map(told).collect();
                (200, Value::from(all).to_string())
            }
        }
    }

    fn drop_link(&mut self, body: &[u8]) -> (u16, String) {
        let link: Value = serde_json::from_slice(body).unwrap();
        self.drops.push(link.clone());
        if self.mode == Mode::SilentLinks {
            return (0, String::new());
        }
        let is_its = |other: &Value| other["peer"] == link["peer"];
        let dropped = self.links.iter().find(|other| is_its(other));
        let refused = dropped.map(|other| json!({"peer": other["peer"], "path": other["path"]}));
        if refused.is_none() && !self.refused.iter().any(is_its) {
            return (
                500,
                json!(["Error from API", "there is no link"]).to_string(),
            );
        }
        if link["refuse"] == true {
            self.refused.extend(refused);
        } else {
            self.refused.retain(|other| !is_its(other));
        }
        self.links.retain(|other| !is_its(other));
        (204, String::new())
    }
}

/// The GID of each device, which is nobody's business.
const GID: &str = "5a5a5a5a-0000-4000-8000-000000000000";

fn no_vm() -> String {
    json!([
        "Error from API",
        "The VM info is not available",
        "VM is not created"
    ])
    .to_string()
}
