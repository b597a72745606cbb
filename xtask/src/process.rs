// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Running commands: with a log file, a progress line, a time limit.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::heartbeat::Heartbeat;

/// How often a progress line is renewed on a terminal.
const TICK: Duration = Duration::from_millis(250);
/// How often progress is told where there is no terminal.
const TICK_IN_LOG: Duration = Duration::from_secs(20);
/// How long it may print nothing: longer than any test.
const SILENCE: Duration = Duration::from_secs(15 * 60);
/// Lines of a failed command's output that are shown.
const TAIL: usize = 30;

/// A `Command` as one would type it.
fn typed(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(
        command
            .get_args()
            .map(|word| word.to_string_lossy().into_owned()),
    );
    words.join(" ")
}

/// Runs a command for what it prints.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", typed(command)))?;
    if !output.status.success() {
        bail!(
            "{} failed ({}): {}",
            typed(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command that speaks to the user itself.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {}", typed(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", typed(command));
    }
    Ok(())
}

/// Runs a command with its output in `log` and a progress line on the terminal. `expected` is how many
/// lines the command prints, about, if that says how far it is.
pub fn run_with_progress(
    title: &str,
    command: Command,
    log: &Path,
    expected: Option<usize>,
) -> Result<()> {
    let words = typed(&command);
    let mut progress = Progress::new(title, expected);
    let status = supervise(command, log, None, |output| progress.advance(output))?;
    progress.finish();
    if !status.success() {
        bail!(
            "{words} failed ({status})\n{}the whole output is in {}",
            tail(log),
            log.display()
        );
    }
    println!("{title}: done in {}", duration(progress.started.elapsed()));
    Ok(())
}

/// How long a command may go on.
pub struct Limits<'a> {
    /// In all.
    pub total: Duration,
    /// Its signs of life.
    pub heartbeat: Option<Heartbeat<'a>>,
}

/// A command that was ended as it stood still.
#[derive(Debug)]
pub struct StoodStill(String);

impl fmt::Display for StoodStill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StoodStill {}

/// Runs a command with its output both in `log` and, as it comes, on the terminal. One with limits is also ended when
/// it stands still: the error is [`StoodStill`].
pub fn run_and_show(
    command: Command,
    log: &Path,
    limits: Option<Limits<'_>>,
) -> Result<ExitStatus> {
    supervise(command, log, limits, |output| {
        let mut stdout = io::stdout().lock();
        // Nothing is lost when the terminal is gone: it is in the log.
        let _ = stdout.write_all(output);
        let _ = stdout.flush();
    })
}

/// Runs a command, writes its output to `log` and hands it to `see`, which is also called with nothing now
/// and then.
fn supervise(
    mut command: Command,
    log: &Path,
    mut limits: Option<Limits<'_>>,
    mut see: impl FnMut(&[u8]),
) -> Result<ExitStatus> {
    let words = typed(&command);
    let started = Instant::now();
    let mut file =
        File::create(log).with_context(|| format!("cannot write the log {}", log.display()))?;
    writeln!(file, "$ {words}")?;
    let (mut reader, writer) = io::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {words}"))?;
    drop(command); // and with it our ends of the pipe

    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = reader.read(&mut buffer) {
            if sender.send(buffer[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut printed = Instant::now();
    loop {
        match receiver.recv_timeout(TICK) {
            Ok(output) => {
                file.write_all(&output)?;
                see(&output);
                printed = Instant::now();
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                see(&[]);
                // A process that it left behind may keep the pipe open.
                if child.try_wait()?.is_some() {
                    break;
                }
            }
        }
        let Some(limits) = &mut limits else { continue };
        let now = Instant::now();
        let is_late = started.elapsed() > limits.total;
        let what = if is_late {
            format!("took longer than {}", duration(limits.total))
        } else if let Some(heartbeat) = &mut limits.heartbeat
            && heartbeat.is_still(now)
        {
            format!(
                "gave no sign of life for {}",
                duration(heartbeat.patience())
            )
        } else if now.duration_since(printed) > SILENCE {
            format!("printed nothing for {}", duration(SILENCE))
        } else {
            continue;
        };
        child.kill()?;
        child.wait()?;
        let what = format!("{words} {what} and was ended");
        return Err(if is_late {
            anyhow!(what)
        } else {
            StoodStill(what).into()
        });
    }
    Ok(child.wait()?)
}

/// The last lines of a log.
pub fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..]
        .iter()
        .map(|line| format!("  | {line}\n"))
        .collect()
}

/// "3m05s"
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 {
        format!("{seconds}s")
    } else {
        format!("{}m{:02}s", seconds / 60, seconds % 60)
    }
}

/// The line that says how far a command is.
struct Progress {
    expected: Option<usize>,
    started: Instant,
    shown: Instant,
    lines: usize,
    line: Vec<u8>,
    last: String,
    terminal: bool,
}

impl Progress {
    fn new(title: &str, expected: Option<usize>) -> Self {
        let now = Instant::now();
        println!("{title} ...");
        Self {
            expected,
            started: now,
            shown: now,
            lines: 0,
            line: Vec::new(),
            last: String::new(),
            terminal: io::stdout().is_terminal(),
        }
    }

    fn advance(&mut self, output: &[u8]) {
        for &byte in output {
            if byte == b'\n' {
                self.lines += 1;
                let line = String::from_utf8_lossy(&self.line);
                self.last = line.split_whitespace().collect::<Vec<_>>().join(" ");
                self.line.clear();
            } else {
                self.line.push(byte);
            }
        }
        if self.shown.elapsed() < if self.terminal { TICK } else { TICK_IN_LOG } {
            return;
        }
        self.shown = Instant::now();
        let text = self.text();
        if self.terminal {
            print!("\r\x1b[K{text}");
            let _ = io::stdout().flush();
        } else {
            println!("{text}");
        }
    }

    fn text(&self) -> String {
        let steps = match self.expected {
            Some(expected) => format!(
                ", {} of about {} steps",
                self.lines,
                expected.max(self.lines)
            ),
            None => String::new(),
        };
        let last: String = self.last.chars().take(48).collect();
        format!("  {}{steps}: {last}", duration(self.started.elapsed()))
    }

    fn finish(&self) {
        if self.terminal {
            print!("\r\x1b[K");
            let _ = io::stdout().flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn log(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("ivsmc-xtask-{name}-{}", std::process::id()))
    }

    #[test]
    fn output_and_status_are_seen() {
        let log = log("seen");
        let mut seen = Vec::new();
        let status = supervise(
            shell("echo out; echo err >&2; exit 3"),
            &log,
            None,
            |output| {
                seen.extend_from_slice(output);
            },
        )
        .unwrap();
        assert_eq!(status.code(), Some(3));
        assert_eq!(String::from_utf8(seen).unwrap(), "out\nerr\n");
        assert!(fs::read_to_string(&log).unwrap().ends_with("out\nerr\n"));
        fs::remove_file(log).unwrap();
    }

    #[test]
    fn what_takes_too_long_is_ended() {
        let log = log("long");
        let error = supervise(
            shell("exec sleep 60"),
            &log,
            Some(Limits {
                total: Duration::from_millis(100),
                heartbeat: None,
            }),
            |_| {},
        )
        .unwrap_err();
        assert!(error.to_string().contains("took longer"), "{error}");
        fs::remove_file(log).unwrap();
    }

    #[test]
    fn what_stands_still_is_ended_long_before_its_limit() {
        let log = log("still");
        let none = Path::new("/nonexistent");
        let limits = Limits {
            total: Duration::from_secs(50),
            heartbeat: Some(Heartbeat::new(none, Duration::from_secs(1), Instant::now())),
        };
        let error = supervise(
            shell("echo begun; exec sleep 60"),
            &log,
            Some(limits),
            |_| {},
        )
        .unwrap_err();
        assert!(error.is::<StoodStill>(), "{error}");
        assert!(fs::read_to_string(&log).unwrap().ends_with("begun\n"));
        fs::remove_file(log).unwrap();
    }

    #[test]
    fn a_background_process_does_not_keep_it_waiting() {
        let log = log("background");
        let started = Instant::now();
        supervise(shell("sleep 20 & exit 0"), &log, None, |_| {}).unwrap();
        assert!(started.elapsed() < Duration::from_secs(10));
        fs::remove_file(log).unwrap();
    }

    #[test]
    fn durations() {
        assert_eq!(duration(Duration::from_secs(59)), "59s");
        assert_eq!(duration(Duration::from_secs(185)), "3m05s");
    }

    #[test]
    fn progress_counts_lines_across_pieces() {
        let mut progress = Progress::new("test", Some(10));
        progress.advance(b"  CC  a.o\n  C");
        progress.advance(b"C  b.o\n");
        assert_eq!(progress.lines, 2);
        assert_eq!(progress.text(), "  0s, 2 of about 10 steps: CC b.o");
    }
}
