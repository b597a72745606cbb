// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Results as Markdown, and compared with earlier ones.

use crate::goals::{self, Goal};
use crate::results::{Better, Figure, LIMIT, Results, Subject, transports};
use ivsmc_lab::distance;
use ivsmc_lab::measure::{Transport, median};
use std::fmt::Write as _;

const TCP: Subject = Subject::Transport(Transport::TcpVirtioNet);
/// Units of what a user sees; all others are of what it costs.
const SEEN: [&str; 4] = ["us", "MB/s", "1/s", "KiB"];
const BYTE_COSTS: [&str; 2] = ["/MB", "s/GB"];
const MESSAGE_COSTS: [&str; 2] = ["/message", "s/million messages"];
/// What a run in the lab has to say about itself.
pub const LAB_NOTE: &str = "lab: everything is emulated, only ratios and counts carry meaning";

/// What something was measured with, in words.
pub fn name(results: &Results, subject: Subject) -> String {
    match subject {
        Subject::Transport(transport) => transport.words(&results.environment.virtio_net),
        Subject::Limit(_) => "limit".to_owned(),
    }
}

/// Where it was measured, in words.
pub fn place(results: &Results) -> &'static str {
    match results.environment.platform.as_str() {
        "lab" => LAB_NOTE,
        _ => "native KVM",
    }
}

/// A number with as many digits as say something.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 | 100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        0.01.. => 3,
        _ => 5,
    };
    format!("{value:.digits$}")
}

/// Median, range, and deviation.
fn cell(figure: Option<&Figure>) -> String {
    let Some(figure) = figure else {
        return "-".to_owned();
    };
    let (least, greatest) = figure.range();
    if least == greatest {
        return number(least);
    }
    format!(
        "**{}** ({}..{}, ±{:.0} %)",
        number(figure.median()),
        number(least),
        number(greatest),
        100.0 * figure.noise()
    )
}

/// The whole report.
pub fn markdown(results: &Results) -> String {
    let e = &results.environment;
    let mut text = format!(
        "# ivsmc performance\n\n**{}**\n\n| | |\n|---|---|\n",
        place(results)
    );
    for (what, value) in [
        ("date", e.date.clone()),
        ("machine", e.machine.clone()),
        ("platform", e.platform.clone()),
        ("processors under the VMMs", e.host.clone()),
        ("kernel under the VMMs", e.host_kernel.clone()),
        ("VMM", format!("{}, virtio-net: {}", e.vmm, e.virtio_net)),
        ("guests' kernel", e.guest_kernel.clone()),
        ("guests' processors", e.guest_cpus.to_string()),
        ("ivpci's poll_us", e.poll_us.to_string()),
        (
            "repetitions",
            format!("{}{}", e.repetitions, if e.quick { ", quick" } else { "" }),
        ),
        ("workloads", e.workloads.join(", ")),
        (
            "distance of the processors",
            distance::words(&results.distances).unwrap_or_else(|| "not known".to_owned()),
        ),
    ] {
        let _ = writeln!(text, "| {what} | {value} |");
    }
    if !results
        .figures
        .iter()
        .any(|figure| figure.metric == "exits")
    {
        text += "\nVM exits are not available: KVM's statistics in debugfs could not be read.\n";
    }
    let _ = writeln!(
        text,
        "\nEvery value is the **median** of the repetitions, with the range of all of them, and half of them are within ±. \
         Every SMC-D connection was proved to be one by SMC in both guests.\n{}\n\n## Goals\n\n{}",
        noise(results),
        goals_table(&goals::all(results))
    );
    for (title, is_wanted) in [
        ("## What a program sees", true),
        ("## What it costs, of both guests and VMMs together", false),
    ] {
        let _ = writeln!(text, "{title}\n");
        for workload in workloads(results) {
            let rows = rows(results, workload, is_wanted);
            if !rows.is_empty() {
                let names = transports().map(|subject| name(results, subject));
                let names = names.collect::<Vec<_>>().join(" | ");
                let _ = writeln!(
                    text,
                    "### {workload}\n\n| | | unit | {names} | no copy vs TCP |\n|---|---|---|---|---|---|---|\n{rows}"
                );
            }
        }
    }
    let _ = writeln!(
        text,
        "\n## Limits: two programs on the bare window, without SMC and driver\n\n| | | unit | |\n|---|---|---|---|"
    );
    for figure in results
        .figures
        .iter()
        .filter(|figure| figure.transport == LIMIT)
    {
        let Figure {
            workload,
            metric,
            unit,
            ..
        } = figure;
        let _ = writeln!(
            text,
            "| {workload} | {metric} | {unit} | {} |",
            cell(Some(figure))
        );
    }
    text
}

/// The transports' workloads, in the order in which they were measured.
fn workloads(results: &Results) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for figure in results
        .figures
        .iter()
        .filter(|figure| figure.transport != LIMIT)
    {
        if !names.contains(&figure.workload.as_str()) {
            names.push(&figure.workload);
        }
    }
    names
}

/// A workload's rows: what is seen of it, or what it costs. What costs nothing, whatever the transport, is left out, and
/// costs of bytes where messages are the point, and the other way round.
fn rows(results: &Results, workload: &str, is_seen: bool) -> String {
    let mut text = String::new();
    for figure in results
        .figures
        .iter()
        .filter(|figure| figure.workload == workload)
    {
        let unit = figure.unit.as_str();
        let not_the_point = match workload {
            "sockperf-ping-pong" => BYTE_COSTS,
            "sockperf-throughput" | "iperf3" => MESSAGE_COSTS,
            _ => [""; 2],
        };
        let all: Vec<_> = transports()
            .map(|transport| {
                results.figure(
                    workload,
                    &figure.point.name,
                    transport,
                    &figure.metric,
                    unit,
                )
            })
            .collect();
        let is_first = all
            .iter()
            .flatten()
            .next()
            .is_some_and(|first| std::ptr::eq(*first, figure));
        let is_nothing = all
            .iter()
            .flatten()
            .all(|figure| figure.range() == (0.0, 0.0));
        if SEEN.contains(&unit) != is_seen
            || not_the_point.contains(&unit)
            || !is_first
            || is_nothing
        {
            continue;
        }
        let gain = match all[..] {
            [Some(tcp), _, Some(smc)] => gain(tcp, smc),
            _ => String::new(),
        };
        let cells: Vec<_> = all.into_iter().map(cell).collect();
        let (point, metric) = (&figure.point.name, &figure.metric);
        let _ = writeln!(
            text,
            "| {point} | {metric} | {unit} | {} | {gain} |",
            cells.join(" | ")
        );
    }
    text
}

/// How many times as good the second is.
fn gain(first: &Figure, second: &Figure) -> String {
    let (first_value, second_value) = (first.median(), second.median());
    let gain = match first.better {
        Better::Lower => first_value / second_value,
        Better::Higher => second_value / first_value,
    };
    // What only one of them has cannot be compared.
    if gain.is_finite() && gain > 0.0 {
        format!("{gain:.2}")
    } else {
        String::new()
    }
}

/// How far TCP's own figures are apart.
fn noise(results: &Results) -> String {
    let is_tcps =
        |figure: &&Figure| figure.transport == TCP && SEEN.contains(&figure.unit.as_str());
    let all: Vec<f64> = results
        .figures
        .iter()
        .filter(is_tcps)
        .map(Figure::noise)
        .collect();
    match all.iter().copied().reduce(f64::max) {
        None => "No figure of TCP's says how large the noise is.".to_owned(),
        Some(worst) => format!(
            "The noise, as TCP's figures have it: half of the repetitions are within {:.0} % of the median in the middle \
             one of {} figures, and within {:.0} % in the worst.",
            100.0 * median(&all),
            all.len(),
            100.0 * worst
        ),
    }
}

fn goals_table(goals: &[Goal]) -> String {
    let mut text = String::from("| | goal | measured | |\n|---|---|---|---|\n");
    for goal in goals {
        let verdict = match goal.met {
            Some(true) => "met",
            Some(false) => "**not met**",
            None => "",
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {verdict} |",
            goal.what, goal.goal, goal.measured
        );
    }
    text
}

/// The goals, for a terminal.
pub fn summary(results: &Results) -> String {
    let mut text = format!("{}\n", place(results));
    for goal in goals::all(results) {
        let verdict = match goal.met {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None => "",
        };
        let _ = writeln!(
            text,
            "{:<62} {:<36} {:<30} {verdict}",
            goal.what, goal.goal, goal.measured
        );
    }
    text
}

/// What has changed: all that a program sees, and of what it costs what is beyond the noise.
pub fn comparison(old: &Results, new: &Results) -> String {
    let mut text = String::new();
    let (was, is) = (&old.environment, &new.environment);
    for (what, was, is) in [
        ("platform", &was.platform, &is.platform),
        ("machine", &was.machine, &is.machine),
        ("VMM", &was.vmm, &is.vmm),
        ("guests' kernel", &was.guest_kernel, &is.guest_kernel),
    ] {
        if was != is {
            let _ = writeln!(text, "note: {what}: {was:?} then, {is:?} now");
        }
    }
    let _ = writeln!(
        text,
        "{:<66} {:>12} {:>12} {:>9}",
        "against the old results", "old", "new", "change"
    );
    let (mut quiet, mut common) = (0, 0);
    for figure in &new.figures {
        let Some(before) = old.figures.iter().find(|old| old.is_of(figure)) else {
            continue;
        };
        common += 1;
        let change = change(before, figure);
        if !SEEN.contains(&figure.unit.as_str())
            && matches!(change, Change::Noise | Change::Unknown)
        {
            quiet += 1;
            continue;
        }
        let (was, is) = (before.median(), figure.median());
        let part = match 100.0 * (is - was) / was {
            part if part.is_finite() => format!("{part:+.1}%"),
            _ => String::new(),
        };
        let key = format!(
            "{}, {}, {}: {}, {}",
            figure.workload,
            figure.point.name,
            name(new, figure.transport),
            figure.metric,
            figure.unit
        );
        let (was, is) = (number(was), number(is));
        let _ = writeln!(
            text,
            "{key:<66} {was:>12} {is:>12} {part:>9} {}",
            change.words()
        );
    }
    if common == 0 {
        return format!("{text}the two have no figure in common: other workloads were measured\n");
    }
    let _ = writeln!(
        text,
        "{quiet} costs are within the noise, or were measured once only, and are not shown. Within the noise: the ranges of all repetitions overlap."
    );
    text
}

/// What became of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// Nothing that the noise would not explain.
    Noise,
    /// Measured once only, then or now: nobody knows the noise.
    Unknown,
    Better,
    Worse,
}

impl Change {
    fn words(self) -> &'static str {
        match self {
            Change::Noise => "within the noise",
            Change::Unknown => "noise unknown",
            Change::Better => "better",
            Change::Worse => "WORSE",
        }
    }
}

fn change(old: &Figure, new: &Figure) -> Change {
    if old.samples.len() < 2 || new.samples.len() < 2 {
        return Change::Unknown;
    }
    let ((old_least, old_greatest), (least, greatest)) = (old.range(), new.range());
    let is_lower = match () {
        () if greatest < old_least => true,
        () if least > old_greatest => false,
        () => return Change::Noise,
    };
    if is_lower == (new.better == Better::Lower) {
        Change::Better
    } else {
        Change::Worse
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::{figure, results};

    const NOCOPY: Subject = Subject::Transport(Transport::SmcdNocopy);

    const P50: (&str, &str, Better) = ("p50", "us", Better::Lower);
    const RATE: (&str, &str, Better) = ("rate", "1/s", Better::Higher);
    const EXITS: (&str, &str, Better) = ("exits", "/message", Better::Lower);
    const POINT: (&str, u64, u64) = ("64 B", 64, 1);

    #[test]
    fn the_report_has_every_figure_once() {
        let all = results(vec![
            figure("x", POINT, TCP, P50, &[60.0, 90.0, 61.0]),
            figure("x", POINT, TCP, EXITS, &[2.0]),
            figure("x", POINT, NOCOPY, P50, &[10.0]),
            figure("x", POINT, NOCOPY, EXITS, &[0.001]),
            figure("word", ("8 B", 8, 1), LIMIT, P50, &[0.25]),
        ]);
        let text = markdown(&all);
        assert!(
            text.contains("| 64 B | p50 | us | **61.0** (60.0..90.0, ±2 %) | - | 10.0 | 6.10 |"),
            "{text}"
        );
        assert_eq!(text.matches("| 64 B | p50").count(), 1);
        assert!(
            text.contains("| 64 B | exits | /message | 2.00 | - | 0.00100 | 2000.00 |"),
            "{text}"
        );
        assert!(text.contains("| word | p50 | us | 0.250 |"));
        assert!(text.contains(LAB_NOTE) && text.contains("within 2 % in the worst"));
    }

    #[test]
    fn changes_beyond_the_noise_are_told() {
        let old = [
            figure("x", POINT, TCP, P50, &[10.0, 12.0]),
            figure("x", POINT, NOCOPY, P50, &[10.0, 12.0]),
            figure("y", POINT, TCP, RATE, &[100.0, 101.0]),
            figure("x", POINT, TCP, EXITS, &[1.0]),
        ];
        let new = [
            figure("x", POINT, TCP, P50, &[11.0, 13.0]),
            figure("x", POINT, NOCOPY, P50, &[5.0, 6.0]),
            figure("y", POINT, TCP, RATE, &[50.0, 50.5]),
            figure("x", POINT, TCP, EXITS, &[1.0]),
        ];
        let changes: Vec<_> = old
            .iter()
            .zip(&new)
            .map(|(old, new)| change(old, new))
            .collect();
        assert_eq!(
            changes,
            [
                Change::Noise,
                Change::Better,
                Change::Worse,
                Change::Unknown
            ]
        );
        let text = comparison(&results(old.to_vec()), &results(new.to_vec()));
        assert!(
            text.contains("-50.0% better") && text.contains("-50.0% WORSE"),
            "{text}"
        );
        assert!(text.contains("1 costs are within the noise"));
        let other = results(vec![figure("z", POINT, TCP, P50, &[1.0])]);
        assert!(comparison(&other, &results(new.to_vec())).contains("no figure in common"));
    }
}
