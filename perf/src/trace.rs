// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the time of a message goes: events of a guest's kernel, and whose the time between them is.
//!
//! The kernel has to have tracing (`--kernel traced`). Each event costs time as well, so the parts matter, not their sum.

use crate::costs::Value;
use crate::results::Better;
use anyhow::{Result, ensure};
use ivsmc_lab::guest::Running;
use ivsmc_traffic::agent::Command;
use std::collections::{BTreeMap, HashMap};

/// The function's entry and return, and whose time is between them. The first two also say how many bytes they copy.
const FUNCTIONS: [(&str, &str, Part); 9] = [
    ("from_user", "_copy_from_iter", Part::Copies),
    ("to_user", "_copy_to_iter", Part::Copies),
    ("send", "smc_tx_sendmsg", Part::Smc),
    ("receive", "smc_rx_recvmsg", Part::Smc),
    ("news", "smcd_cdc_rx_tsklet", Part::Smc),
    ("move", "ivpci_move_data", Part::Ivpci),
    ("ring", "ivpci_link_ring", Part::Doorbell),
    ("rung", "ivpci_irq_doorbell", Part::Interrupt),
    ("guard", "ivpci_guard", Part::Ivpci),
];
/// Functions that copy the bytes of a message out of the program's memory, and into it.
const COPIES: [&str; 2] = ["from_user", "to_user"];
/// The kernel's own events.
const EVENTS: [&str; 6] = [
    "raw_syscalls/sys_enter",
    "raw_syscalls/sys_exit",
    "sched/sched_waking",
    "sched/sched_switch",
    "irq_vectors/local_timer_entry",
    "irq_vectors/local_timer_exit",
];
/// Where they are.
const TRACING: &str = "/sys/kernel/tracing";
/// How large the buffer is, in KiB: of more than that the oldest is lost.
const BUFFER: u32 = 24 << 10;
/// The most of what was recorded that is looked at, in bytes: a whole number of messages it need not be.
const MOST: u32 = 7 << 20;

/// Seconds for which the program runs.
pub const SECONDS: u32 = 8;
/// Seconds until it records, by when the slowest program has begun and none has ended, and for which it does.
const DELAY: f64 = 6.0;
const TIME: f64 = 0.2;

/// Whose time it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    User,
    SystemCall,
    Smc,
    Copies,
    Ivpci,
    Doorbell,
    Interrupt,
    Polling,
    WakeUp,
    Timer,
    Others,
    Idle,
}

impl Part {
    fn words(self) -> &'static str {
        match self {
            Part::User => "the program itself",
            Part::SystemCall => "system calls, scheduling",
            Part::Smc => "SMC",
            Part::Copies => "copies from and to user memory",
            Part::Ivpci => "ivpci",
            Part::Doorbell => "doorbell: the exit",
            Part::Interrupt => "doorbell: the interrupt",
            Part::Polling => "ivpci polls",
            Part::WakeUp => "wake-up, until it runs",
            Part::Timer => "timer interrupts",
            Part::Others => "other programs and threads",
            Part::Idle => "idle",
        }
    }
}

/// Makes a guest ready to record. ivpci has to be loaded, as its functions are looked up.
pub fn prepare(guest: &mut Running) -> Result<()> {
    let mut line = format!(
        "[ -e {TRACING}/trace ] || mount -t tracefs tracefs {TRACING}; cd {TRACING} && [ -e kprobe_events ] || exit 3; \
         echo 0 >tracing_on; echo 0 >events/enable; echo >kprobe_events; echo {BUFFER} >buffer_size_kb; "
    );
    for (name, function, _) in FUNCTIONS {
        let bytes = if COPIES.contains(&name) {
            " bytes=$arg2:u64"
        } else {
            ""
        };
        line += &format!(
            "echo 'p:{name} {function}{bytes}' >>kprobe_events && echo 'r:{name}_end {function}' >>kprobe_events || exit 4; "
        );
    }
    line += "echo 1 >events/kprobes/enable; ";
    for event in EVENTS {
        line += &format!("echo 1 >events/{event}/enable || exit 5; ");
    }
    let outcome = guest.agent().run(&Command::shell(&line))?;
    ensure!(
        outcome.status != Some(3),
        "the guests' kernel has no tracing: --only trace wants --kernel traced"
    );
    ensure!(outcome.success(), "cannot set up tracing: {outcome}");
    Ok(())
}

/// Has a guest record a part of a program's run that is about to begin; gives the number of what does it.
pub fn record(guest: &mut Running) -> Result<u64> {
    let line = format!(
        "cd {TRACING}; echo >trace; sleep {DELAY}; echo 1 >tracing_on; sleep {TIME}; echo 0 >tracing_on"
    );
    Ok(guest.agent().spawn(&Command::shell(&line))?)
}

/// What was recorded, and whose the time was, for each message of so many bytes that the program of this name sent or
/// received.
pub fn read(guest: &mut Running, program: &str, size: u64) -> Result<Vec<Value>> {
    let text = guest.shell(&format!("head -c {MOST} {TRACING}/trace"))?;
    let trace = Trace::of(&text, program);
    trace.values(size)
}

/// A line of what was recorded.
struct Event<'a> {
    /// The name of the task that ran, and its number: 0 for none.
    comm: &'a str,
    pid: u64,
    cpu: &'a str,
    /// In microseconds.
    time: f64,
    name: &'a str,
    /// The rest of the line.
    detail: &'a str,
}

impl<'a> Event<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let (task, rest) = line.split_once(" [")?;
        let (comm, pid) = task.trim().rsplit_once('-')?;
        let (cpu, rest) = rest.split_once("] ")?;
        // Flags come before the time.
        let (time, rest) = rest.split_once(": ")?;
        let time: f64 = time.split_whitespace().last()?.parse().ok()?;
        let (name, detail) = rest.split_once(": ")?;
        Some(Event {
            comm,
            pid: pid.parse().ok()?,
            cpu,
            time: time * 1e6,
            name: name.trim(),
            detail,
        })
    }
}

/// The number after a mark.
fn number(detail: &str, mark: &str) -> Option<u64> {
    let rest = detail.split_once(mark)?.1;
    rest.split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

/// What a processor does.
#[derive(Default)]
struct Processor {
    /// When the last event was.
    since: f64,
    /// The task that runs, once that is known.
    runs: Option<u64>,
    /// It has woken another, which does not run yet.
    has_woken: bool,
}

/// What was recorded, taken apart.
#[derive(Debug, Default)]
struct Trace {
    /// In microseconds.
    time: BTreeMap<Part, f64>,
    /// The bytes that the program had copied, by the functions of [`COPIES`].
    copied: BTreeMap<&'static str, u64>,
}

impl Trace {
    fn of(text: &str, program: &str) -> Self {
        let mut trace = Trace::default();
        // What each task is in, innermost last; interrupts come on top of what they interrupt.
        let mut inside: HashMap<u64, Vec<Part>> = HashMap::new();
        let mut processors: HashMap<&str, Processor> = HashMap::new();
        for event in text.lines().filter_map(Event::of) {
            let processor = processors.entry(event.cpu).or_default();
            let stack = inside.entry(event.pid).or_default();
            let polls = event.comm.starts_with("ivpci/");
            if processor.runs == Some(event.pid) {
                let part = match stack.last() {
                    _ if processor.has_woken => Part::WakeUp,
                    Some(&part) => part,
                    None if event.pid == 0 => Part::Idle,
                    None if polls => Part::Polling,
                    None if event.comm.starts_with(program) => Part::User,
                    None => Part::Others,
                };
                *trace.time.entry(part).or_default() += event.time - processor.since;
            }
            processor.since = event.time;
            processor.runs = Some(event.pid);
            let mut leave = |part| {
                if let Some(at) = stack.iter().rposition(|&p| p == part) {
                    stack.truncate(at);
                }
            };
            match event.name {
                // A system call begins and ends with nothing around it.
                "sys_enter" => *stack = vec![Part::SystemCall],
                "sys_exit" => stack.clear(),
                // Whoever does nothing else is about to make way.
                "sched_waking" => processor.has_woken = polls || event.pid == 0,
                "sched_switch" => {
                    processor.runs = number(event.detail, "next_pid=");
                    processor.has_woken = false;
                }
                "local_timer_entry" => stack.push(Part::Timer),
                "local_timer_exit" => leave(Part::Timer),
                name => {
                    let function = name.strip_suffix("_end").unwrap_or(name);
                    let Some(&(function, _, part)) = FUNCTIONS.iter().find(|f| f.0 == function)
                    else {
                        continue;
                    };
                    if name != function {
                        leave(part);
                        continue;
                    }
                    stack.push(part);
                    if let Some(bytes) = number(event.detail, "bytes=")
                        && event.comm.starts_with(program)
                    {
                        *trace.copied.entry(function).or_default() += bytes;
                    }
                }
            }
        }
        trace
    }

    fn values(&self, size: u64) -> Result<Vec<Value>> {
        let copied = COPIES.map(|which| self.copied.get(which).copied().unwrap_or_default() as f64);
        let bytes = copied[0].max(copied[1]);
        let messages = bytes / size as f64;
        ensure!(messages >= 10.0, "only {messages} messages were recorded");
        let times = self.time.iter().map(|(part, time)| {
            let name = part.words().to_owned();
            (name, "us/message", Better::Lower, time / messages)
        });
        let copies = ["from", "to"].into_iter().zip(copied).map(|(way, copied)| {
            let name = format!("bytes copied {way} user memory");
            (name, "/byte", Better::Lower, copied / bytes)
        });
        Ok(times.chain(copies).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "\
# tracer: nop
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
        sockperf-77      [000] ...1.    10.000000: sys_enter: NR 44 (3, 1, 40, 0, 0, 0)
        sockperf-77      [000] ...1.    10.000002: send: (smc_tx_sendmsg+0x4/0x900)
        sockperf-77      [000] ...1.    10.000003: from_user: (_copy_from_iter+0x4/0x500) bytes=64
        sockperf-77      [000] d..1.    10.000013: from_user_end: (smc_tx_sendmsg+0x1/0x900 <- _copy_from_iter)
        sockperf-77      [000] ...1.    10.000014: move: (ivpci_move_data+0x0/0x300 [ivpci])
        sockperf-77      [000] d..1.    10.000016: move_end: (smcd_tx_ism_write+0x40/0x60 <- ivpci_move_data)
        sockperf-77      [000] ...1.    10.000017: send_end: (smc_sendmsg+0x40/0x60 <- smc_tx_sendmsg)
        sockperf-77      [000] ...1.    10.000020: sys_exit: NR 44 = 64
        sockperf-77      [000] ...1.    10.000021: sys_enter: NR 45 (3, 1, 40, 0, 0, 0)
        sockperf-77      [000] ...1.    10.000022: receive: (smc_rx_recvmsg+0x4/0x900)
        sockperf-77      [000] d..2.    10.000023: sched_switch: prev_comm=sockperf prev_pid=77 prev_prio=120 prev_state=S ==> next_comm=ivpci/0000:00:0 next_pid=55 next_prio=120
 ivpci/0000:00:0-55      [000] d..1.    10.000030: local_timer_entry: vector=236
 ivpci/0000:00:0-55      [000] d..1.    10.000034: local_timer_exit: vector=236
 ivpci/0000:00:0-55      [000] ..s1.    10.000040: news: (smcd_cdc_rx_tsklet+0x0/0x80)
 ivpci/0000:00:0-55      [000] d.s2.    10.000041: sched_waking: comm=sockperf pid=77 prio=120 target_cpu=000
 ivpci/0000:00:0-55      [000] d.s1.    10.000042: news_end: (tasklet_action_common+0x0/0x80 <- smcd_cdc_rx_tsklet)
 ivpci/0000:00:0-55      [000] d..2.    10.000044: sched_switch: prev_comm=ivpci/0000:00:0 prev_pid=55 prev_prio=120 prev_state=R ==> next_comm=sockperf next_pid=77 next_prio=120
        sockperf-77      [000] ...1.    10.000046: to_user: (_copy_to_iter+0x4/0x500) bytes=64
        sockperf-77      [000] ...1.    10.000050: to_user_end: (smc_rx_recvmsg+0x1/0x900 <- _copy_to_iter)
              sh-80      [000] ...1.    10.000060: sys_exit: NR 1 = 1
";

    #[test]
    fn time_is_whose_it_is() {
        let trace = Trace::of(TRACE, "sockperf");
        let us = |part| trace.time.get(&part).map_or(0.0, |us| us.round());
        assert_eq!(us(Part::SystemCall), 2.0 + 3.0 + 1.0);
        assert_eq!(us(Part::Smc), 1.0 + 1.0 + 1.0 + 1.0 + 2.0 + 1.0);
        assert_eq!(us(Part::Copies), 10.0 + 4.0);
        assert_eq!(us(Part::Ivpci), 2.0);
        assert_eq!(us(Part::User), 1.0);
        assert_eq!(us(Part::Polling), 7.0 + 6.0);
        assert_eq!(us(Part::Timer), 4.0);
        assert_eq!(us(Part::WakeUp), 1.0 + 2.0);
        assert_eq!(trace.copied["from_user"], 64);
        assert_eq!(trace.copied["to_user"], 64);
        assert!(trace.values(64).is_err(), "one message is not enough");
        let values = trace.values(4).unwrap();
        assert!(
            values
                .iter()
                .any(|v| v.0 == "ivpci polls" && v.1 == "us/message")
        );
    }
}
