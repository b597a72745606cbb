// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A program cannot tell SMC-D from TCP, but where that is known: `docs/tcp.md` has the cases.

use super::Suite;
use crate::conformance::{compared, prepare, run};
use crate::guest::Mode;
use crate::lab::Lab;
use crate::pair::Pair;
use anyhow::{Result, ensure};
use ivsmc_conformance::differences;
use ivsmc_conformance::outcome::Transport;

pub(super) fn add(suite: &mut Suite) {
    suite.add("conformance::between_guests", |fixture| {
        fixture.with_pair(Mode::NoCopy, |pair| between_guests(&fixture.lab, pair))
    });
}

fn between_guests(lab: &Lab, pair: &mut Pair) -> Result<()> {
    prepare(pair)?;
    let tcp = run(lab, pair, Transport::Tcp, false, None);
    let smc = compared(lab, pair, Transport::Smc, &tcp);
    let proved = smc.cases.iter().filter(|case| case.proved).count();
    // Else nothing would have been compared.
    ensure!(
        proved * 2 > smc.cases.len(),
        "only {proved} of {} cases were shown to be over SMC-D",
        smc.cases.len()
    );
    let wrong = differences::unexpected(&smc, &tcp);
    ensure!(
        wrong.is_empty(),
        "{} cases are not as guest/conformance/src/differences/known.rs says:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    Ok(())
}
