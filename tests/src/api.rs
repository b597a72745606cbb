// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Cloud Hypervisor's REST API: HTTP/1.1 over a Unix socket, one connection for each request.

use serde_json::Value;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long an answer may take. Snapshots write all of a guest's memory.
const TIMEOUT: Duration = Duration::from_secs(120);
/// The longest answer, in bytes.
const MAX_BODY: usize = 16 << 20;

/// Where a VMM serves its API.
#[derive(Debug, Clone)]
pub struct Api {
    socket: PathBuf,
}

/// Why there is no answer that could be used.
#[derive(Debug)]
pub enum Error {
    /// The VMM cannot be reached, or breaks off.
    Io {
        /// What was asked for.
        request: String,
        /// What went wrong.
        source: io::Error,
    },
    /// The VMM refused.
    Refused {
        /// What was asked for.
        request: String,
        /// HTTP's status.
        status: u16,
        /// What the VMM said.
        text: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { request, source } => write!(f, "{request}: {source}"),
            Error::Refused {
                request,
                status,
                text,
            } => write!(f, "{request}: status {status}: {text}"),
        }
    }
}

impl std::error::Error for Error {}

impl Api {
    /// The API behind a socket.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Api {
            socket: socket.into(),
        }
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether it answers.
    pub fn is_up(&self) -> bool {
        self.get("vmm.ping").is_ok()
    }

    /// Asks for something; null if the answer has no body.
    pub fn get(&self, endpoint: &str) -> Result<Value, Error> {
        self.call("GET", endpoint, None)
    }

    /// Has something done that needs no parameters.
    pub fn put(&self, endpoint: &str) -> Result<Value, Error> {
        self.call("PUT", endpoint, None)
    }

    /// Has something done.
    pub fn put_with(&self, endpoint: &str, body: &Value) -> Result<Value, Error> {
        self.call("PUT", endpoint, Some(body))
    }

    fn call(&self, method: &str, endpoint: &str, body: Option<&Value>) -> Result<Value, Error> {
        let request = format!("{method} /api/v1/{endpoint}");
        let answered = UnixStream::connect(&self.socket).and_then(|stream| {
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            exchange(stream, &request, body)
        });
        outcome(request, answered)
    }
}

/// What came of a request that was answered with a status and a body, or not at all.
pub(crate) fn outcome(
    request: String,
    answered: io::Result<(u16, Vec<u8>)>,
) -> Result<Value, Error> {
    match answered {
        Ok((200..=299, text)) if text.is_empty() => Ok(Value::Null),
        Ok((200..=299, text)) => serde_json::from_slice(&text).map_err(|error| Error::Io {
            request,
            source: error.into(),
        }),
        Ok((status, text)) => Err(Error::Refused {
            request,
            status,
            text: words(&text),
        }),
        Err(source) => Err(Error::Io { request, source }),
    }
}

/// What an answer of an error says: a list of causes, or anything.
fn words(text: &[u8]) -> String {
    match serde_json::from_slice::<Vec<String>>(text) {
        Ok(causes) => causes.join(": "),
        Err(_) => String::from_utf8_lossy(text).into_owned(),
    }
}

/// Sends a request and reads the answer: its status and body.
fn exchange(
    stream: impl Read + Write,
    request: &str,
    body: Option<&Value>,
) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = BufReader::new(stream);
    let (head, body) = written(request, body);
    stream.get_mut().write_all((head + &body).as_bytes())?;
    stream.get_mut().flush()?;
    answer(stream)
}

/// The head and the body of a request.
pub(crate) fn written(request: &str, body: Option<&Value>) -> (String, String) {
    let body = body.map_or_else(String::new, Value::to_string);
    let head = format!(
        "{request} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    (head, body)
}

/// Reads an answer: its status and body.
pub(crate) fn answer(mut stream: impl BufRead) -> io::Result<(u16, Vec<u8>)> {
    let mut line = || -> io::Result<String> {
        let mut line = String::new();
        if stream.by_ref().take(8192).read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    };
    let first = line()?;
    let status = first
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1)?.parse().ok())
        .ok_or_else(|| invalid(format!("`{first}` is no answer of HTTP/1")))?;
    let mut length = 0;
    loop {
        let header = line()?;
        if header.is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value
                .trim()
                .parse()
                .ok()
                .filter(|length| *length <= MAX_BODY)
                .ok_or_else(|| invalid(format!("`{header}`")))?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok((status, body))
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// Asks a server that answers with `answer`; gives what it was asked and what came of it.
    fn ask(answer: &'static str, body: Option<&Value>) -> (String, Result<Value, Error>) {
        // A name of its own for each thread, as tests are run at the same time.
        let name = format!(
            "ivsmc-api-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        );
        let socket = std::env::temp_dir().join(name);
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = vec![0; 4096];
            let count = stream.read(&mut asked).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&asked[..count]).into_owned()
        });
        let result = Api::new(&socket).call("PUT", "vm.thing", body);
        std::fs::remove_file(socket).unwrap();
        (server.join().unwrap(), result)
    }

    #[test]
    fn requests_and_answers() {
        let body = serde_json::json!({"id": "x"});
        let answer = "HTTP/1.1 200 \r\nServer: x\r\ncontent-length: 9\r\n\r\n{\"bdf\":1}";
        let (asked, result) = ask(answer, Some(&body));
        assert!(
            asked.starts_with("PUT /api/v1/vm.thing HTTP/1.1\r\n"),
            "{asked}"
        );
        assert!(
            asked.ends_with("Content-Length: 10\r\n\r\n{\"id\":\"x\"}"),
            "{asked}"
        );
        assert_eq!(result.unwrap()["bdf"], 1);
        let (_, result) = ask("HTTP/1.1 204 \r\nServer: x\r\n\r\n", None);
        assert_eq!(result.unwrap(), Value::Null);
    }

    #[test]
    fn refusals_keep_their_words() {
        let (_, result) = ask(
            "HTTP/1.1 500 \r\nContent-Length: 17\r\n\r\n[\"no\", \"because\"]",
            None,
        );
        let error = result.unwrap_err();
        assert_eq!(
            error.to_string(),
            "PUT /api/v1/vm.thing: status 500: no: because"
        );
        assert!(matches!(error, Error::Refused { status: 500, .. }));
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for answer in [
            "",
            "something\r\n",
            "HTTP/1.1 200 \r\nContent-Length: 9\r\n\r\n{",
            "HTTP/1.1 200 \r\nContent-Length: 99999999999\r\n\r\n",
        ] {
            assert!(
                matches!(ask(answer, None).1, Err(Error::Io { .. })),
                "{answer:?}"
            );
        }
    }
}
