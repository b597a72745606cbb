// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a tool's `check` has found: what is as it has to be, what is not, and what mends it.

use serde::Serialize;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The files of a system that is looked at.
#[derive(Debug, Clone)]
pub struct System {
    root: PathBuf,
}

impl System {
    /// This one.
    pub fn here() -> Self {
        System::at("/")
    }

    /// One whose files are in a folder.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        System { root: root.into() }
    }

    /// Where one of its files is.
    pub fn path(&self, file: &str) -> PathBuf {
        self.root
            .join(Path::new(file).strip_prefix("/").unwrap_or(Path::new(file)))
    }

    /// Whether it has a file.
    pub fn exists(&self, file: &str) -> bool {
        self.path(file).exists()
    }

    /// What a file has in it, without the space around that.
    pub fn read(&self, file: &str) -> Option<String> {
        let text = fs::read_to_string(self.path(file)).ok()?;
        Some(text.trim().to_owned())
    }
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it has to be.
    Ok,
    /// It works, but could be better, or it could not be looked at.
    Note,
    /// It is not there.
    Missing,
    /// It is there, and not as it has to be.
    Wrong,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How it is.
    pub state: State,
    /// What was looked at.
    pub what: String,
    /// What was seen.
    pub seen: String,
    /// What mends it: a command, or what to set. None if nothing is amiss.
    pub remedy: Option<String>,
}

/// All that was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In the order in which it was looked at.
    pub findings: Vec<Finding>,
}

impl Report {
    fn add(&mut self, state: State, what: &str, seen: String, remedy: Option<String>) {
        self.findings.push(Finding {
            state,
            what: what.into(),
            seen,
            remedy,
        });
    }

    /// It is as it has to be.
    pub fn ok(&mut self, what: &str, seen: impl Into<String>) {
        self.add(State::Ok, what, seen.into(), None);
    }

    /// It works, but could be better.
    pub fn note(&mut self, what: &str, seen: impl Into<String>, remedy: impl Into<String>) {
        self.add(State::Note, what, seen.into(), Some(remedy.into()));
    }

    /// It is not there.
    pub fn missing(&mut self, what: &str, seen: impl Into<String>, remedy: impl Into<String>) {
        self.add(State::Missing, what, seen.into(), Some(remedy.into()));
    }

    /// It is there, and not as it has to be.
    pub fn wrong(&mut self, what: &str, seen: impl Into<String>, remedy: impl Into<String>) {
        self.add(State::Wrong, what, seen.into(), Some(remedy.into()));
    }

    /// Whether nothing is missing or wrong.
    pub fn is_good(&self) -> bool {
        let good = |finding: &Finding| matches!(finding.state, State::Ok | State::Note);
        self.findings.iter().all(good)
    }

    /// Whether something that was looked at is in this state, with this in what mends it.
    pub fn says(&self, state: State, what: &str, remedy: &str) -> bool {
        self.findings.iter().any(|finding| {
            let mends = finding.remedy.as_deref().unwrap_or("");
            finding.state == state && finding.what == what && mends.contains(remedy)
        })
    }

    /// The status with which the tool ends: 0 if nothing is missing or wrong, else 1.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(u8::from(!self.is_good()))
    }
}

/// A line for each finding, and one below it for what mends it.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let state = match finding.state {
                State::Ok => "ok",
                State::Note => "note",
                State::Missing => "missing",
                State::Wrong => "wrong",
            };
            writeln!(f, "{state:<8} {}: {}", finding.what, finding.seen)?;
            if let Some(remedy) = &finding.remedy {
                writeln!(f, "{:8} -> {remedy}", "")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_those_of_the_system() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("proc")).unwrap();
        fs::write(folder.path().join("proc/version"), " 1\n").unwrap();
        let system = System::at(folder.path());
        assert_eq!(system.read("/proc/version").as_deref(), Some("1"));
        assert!(system.exists("/proc") && !system.exists("/proc/self"));
        assert_eq!(System::here().path("/proc"), Path::new("/proc"));
    }

    #[test]
    fn what_is_amiss_is_shown_and_decides() {
        let mut report = Report::default();
        report.ok("SMC", "there");
        report.note("vCPUs", "1", "give it 2");
        assert!(report.is_good());
        report.missing("UEID", "none", "ivsmc-guest ueid add NAME");
        assert!(!report.is_good());
        assert!(report.says(State::Missing, "UEID", "ueid add"));
        assert!(!report.says(State::Wrong, "UEID", "ueid add"));
        assert!(!report.says(State::Ok, "SMC", "ueid add"));
        assert_eq!(
            report.to_string(),
            "ok       SMC: there\n\
             note     vCPUs: 1\n         -> give it 2\n\
             missing  UEID: none\n         -> ivsmc-guest ueid add NAME\n"
        );
    }
}
