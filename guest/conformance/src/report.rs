// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `docs/tcp.md`: what runs have seen, side by side.

use crate::differences;
use crate::outcome::{Outcome, Run, Transport};
use std::fmt::Write;

const INTRODUCTION: &str = "\
# What a program sees of SMC-D, beside TCP

`ivsmc-conformance` makes the same system calls over TCP and over SMC, and notes what a program sees: `c:` the client, `s:` the
server. TCP's outcome is the right one. This page is written by `cargo xtask conformance`, which runs all cases between two
guests and within one, on a mainline kernel and on one with the patches of `guest/linux-patches/smc` (\"mended\"). The reasons are in
`guest/conformance/src/differences/known.rs`. A case on the mended kernel that is not as TCP, and has no reason there, fails the tests; so does
one that has a reason and needs none any more.

`recv waits` means that the call had not come back when everything else had; `recv=hangs` that it never did. `+SIGPIPE` is a
signal that came with the call. `in time` and `early` say whether a timeout was kept. **Bold** is what TCP does not do.
A case that does not begin with a connection that SMC's diagnosis has shown to be SMC-D says so.
";

/// How a run is called.
fn label(run: &Run) -> String {
    let kernel = if run.is_mended() {
        "mended"
    } else {
        "mainline"
    };
    let place = if run.within {
        "within one guest"
    } else {
        "between two guests"
    };
    match run.transport {
        Transport::Tcp => format!("TCP, {place}, {kernel}"),
        Transport::Smc => format!("SMC-D, {place}, {kernel}"),
        Transport::Fallback => format!("SMC that fell back, {place}, {kernel}"),
    }
}

/// What runs have seen.
pub struct Report<'a> {
    runs: &'a [Run],
}

/// The page.
pub fn markdown(runs: &[Run]) -> String {
    Report { runs }.page()
}

impl Report<'_> {
    /// The run over TCP in the same place, on the same kernel if there is one.
    fn tcp(&self, run: &Run) -> Option<&Run> {
        let fits = |tcp: &&Run| tcp.transport == Transport::Tcp && tcp.within == run.within;
        let same = |tcp: &&Run| tcp.kernel == run.kernel;
        let mut all = self.runs.iter().filter(fits);
        all.clone().find(same).or_else(|| all.next())
    }

    /// The run over SMC-D on such a kernel: between two guests, or within one if there are not both kernels' between two.
    fn smc(&self, is_mended: bool) -> Option<&Run> {
        let find = |is_mended: bool, within: bool| {
            self.runs.iter().find(|run| {
                run.transport == Transport::Smc
                    && run.is_mended() == is_mended
                    && run.within == within
            })
        };
        let within = find(false, false).is_none() || find(true, false).is_none();
        find(is_mended, within)
    }

    fn page(&self) -> String {
        let mut page = INTRODUCTION.to_owned();
        // Writing to a String does not fail.
        let _ = self.write(&mut page);
        page
    }

    fn write(&self, page: &mut String) -> std::fmt::Result {
        page.write_str("\n## How many\n| run | cases | as TCP | not as TCP | of these hang |\n|---|---|---|---|---|\n")?;
        for run in self.runs {
            let Some(tcp) = self.tcp(run).filter(|_| run.transport != Transport::Tcp) else {
                continue;
            };
            let differing = run.differing(tcp);
            let hanging = differing.iter().filter(|case| case.hangs()).count();
            writeln!(
                page,
                "| {} | {} | {} | {} | {hanging} |",
                label(run),
                run.cases.len(),
                run.cases.len() - differing.len(),
                differing.len()
            )?;
        }
        let (mainline, mended) = (self.smc(false), self.smc(true));
        let Some(tcp) = mainline.or(mended).and_then(|run| self.tcp(run)) else {
            return page.write_str("\nThere is no run over TCP and one over SMC-D.\n");
        };
        let mut groups: Vec<&str> = Vec::new();
        for case in &tcp.cases {
            if !groups.contains(&case.group.as_str()) {
                groups.push(&case.group);
            }
        }
        for group in groups {
            self.group(page, group, tcp, mainline, mended)?;
        }
        page.write_str("\n# Other places\n")?;
        for run in self.runs {
            self.other(page, run)?;
        }
        Ok(())
    }

    /// The cases of one group: what differs in a table, the rest in a line.
    fn group(
        &self,
        page: &mut String,
        group: &str,
        tcp: &Run,
        mainline: Option<&Run>,
        mended: Option<&Run>,
    ) -> std::fmt::Result {
        let mut equal = Vec::new();
        let mut rows = String::new();
        for case in tcp.cases.iter().filter(|case| case.group == group) {
            let find = |run: Option<&Run>| run.and_then(|run| run.find(&case.name).cloned());
            let (on_mainline, on_mended) = (find(mainline), find(mended));
            let is_as_tcp =
                |seen: &Option<Outcome>| seen.as_ref().is_none_or(|seen| seen.is_as(case));
            if is_as_tcp(&on_mainline) && is_as_tcp(&on_mended) {
                equal.push(case.name.clone());
                continue;
            }
            let cell = |seen: &Option<Outcome>| match seen {
                None => String::new(),
                Some(seen) if seen.is_as(case) => "as TCP".into(),
                Some(seen) => observations(seen, Some(case)),
            };
            writeln!(
                rows,
                "| {} | {} | {} | {} | {} |",
                case.name,
                observations(case, None),
                cell(&on_mainline),
                cell(&on_mended),
                differences::reason(&case.name).unwrap_or_default()
            )?;
        }
        writeln!(page, "\n## {group}")?;
        if !rows.is_empty() {
            let name = |run: Option<&Run>| run.map_or_else(String::new, label);
            writeln!(
                page,
                "| case | TCP | {} | {} | why |\n|---|---|---|---|---|",
                name(mainline),
                name(mended)
            )?;
            page.write_str(&rows)?;
        }
        if !equal.is_empty() {
            let blank = if rows.is_empty() { "" } else { "\n" };
            writeln!(page, "{blank}As TCP on both: {}.", equal.join("; "))?;
        }
        Ok(())
    }

    /// A run that is not one of the table's columns: what is not as there.
    fn other(&self, page: &mut String, run: &Run) -> std::fmt::Result {
        let column = self.smc(run.is_mended());
        let Some(tcp) = self.tcp(run) else {
            return Ok(());
        };
        if run.transport == Transport::Tcp || column == Some(run) {
            return Ok(());
        }
        let mut rows = String::new();
        for seen in run.differing(tcp) {
            let between = column.and_then(|column| column.find(&seen.name));
            let is_listed = run.transport == Transport::Smc
                && between.is_some_and(|between| between.observations == seen.observations);
            if let Some(right) = tcp.find(&seen.name).filter(|_| !is_listed) {
                let (right_text, text) =
                    (observations(right, None), observations(seen, Some(right)));
                writeln!(rows, "| {} | {right_text} | {text} |", seen.name)?;
            }
        }
        writeln!(page, "\n## {}", label(run))?;
        let note = match run.transport {
            Transport::Smc => "as in the tables above",
            _ => "as TCP",
        };
        if rows.is_empty() {
            return writeln!(page, "All is {note}.");
        }
        writeln!(
            page,
            "All is {note} but:\n\n| case | TCP | here |\n|---|---|---|\n{rows}"
        )
    }
}

/// What was seen, in a cell of a table; what is not as in `right` is bold.
fn observations(seen: &Outcome, right: Option<&Outcome>) -> String {
    let mut words: Vec<String> = Vec::new();
    for (index, text) in seen.observations.iter().enumerate() {
        let text = text.replace('|', "\\|");
        let is_new = right
            .is_some_and(|right| right.observations.get(index) != seen.observations.get(index));
        words.push(if is_new {
            format!("**`{text}`**")
        } else {
            format!("`{text}`")
        });
    }
    if !seen.proved && !seen.via.is_empty() {
        words.push(format!("(the connection is: {})", seen.via.join(", ")));
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(transport: Transport, kernel: &str, seen: &[(&str, &str)]) -> Run {
        let case = |(name, text): &(&str, &str)| Outcome {
            name: (*name).into(),
            group: "g".into(),
            observations: text.split(' ').map(Into::into).collect(),
            via: vec![transport.expected().into()],
            proved: true,
        };
        Run {
            transport,
            within: false,
            kernel: kernel.into(),
            cases: seen.iter().map(case).collect(),
        }
    }

    #[test]
    fn what_differs_is_shown_and_the_rest_listed() {
        let runs = [
            run(
                Transport::Tcp,
                "mainline",
                &[("x", "c:send=5 c:recv=0"), ("y", "c:poll=IN|OUT")],
            ),
            run(
                Transport::Smc,
                "mainline",
                &[("x", "c:send=5 c:recv=hangs"), ("y", "c:poll=IN|OUT")],
            ),
            run(
                Transport::Smc,
                "mended",
                &[("x", "c:send=5 c:recv=0"), ("y", "c:poll=IN|OUT")],
            ),
        ];
        let page = markdown(&runs);
        assert!(
            page.contains("| x | `c:send=5` `c:recv=0` | `c:send=5` **`c:recv=hangs`** | as TCP |"),
            "{page}"
        );
        assert!(page.contains("As TCP on both: y."), "{page}");
        assert!(
            page.contains("| SMC-D, between two guests, mainline | 2 | 1 | 1 | 1 |"),
            "{page}"
        );
    }
}
