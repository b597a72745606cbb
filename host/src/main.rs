// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ivsmc-host`: ivsmc devices for a host's VMs, by a policy.

use clap::{CommandFactory, Parser, Subcommand};
use ivsmc_host::attach::{Timing, attach};
use ivsmc_host::check;
use ivsmc_host::drop_link::{Wanted, Wish, drop_link};
use ivsmc_host::list::list;
use ivsmc_host::policy::Policy;
use ivsmc_toolkit::manual;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::error::Error;
use std::io::{self, Write};
use std::path::{Path, PathBuf, absolute};
use std::process::ExitCode;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

/// Where a host's policy is.
const POLICY: &str = "/etc/ivsmc/host.toml";
/// How long `list`, `drop` and `allow` wait for a VM's answer.
const LIST: Duration = Duration::from_secs(2);

/// Gives the VMs of Cloud Hypervisor ivsmc devices, by a policy.
#[derive(Parser)]
#[command(version)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Watch the folders of API sockets, and give each VM the device that the policy has for it
    ///
    /// It goes on until it is ended, which leaves all devices as they are; started again it finds them.
    Attach {
        #[command(flatten)]
        given: Given,
        /// All waits that many times shorter, for tests
        #[arg(long, hide = true, value_name = "TIMES", default_value_t = 1)]
        faster: u32,
    },
    /// Show fabrics and VMs, which of them have their devices and which links, and why others have not
    List {
        #[command(flatten)]
        given: Given,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// End the link of a VM to a peer, and refuse the peer from now on
    ///
    /// Connections over it end as if the peer's VM had gone; new ones are TCP. The VM's device refuses the peer until
    /// `ivsmc-host allow`, or until one of the two devices is made anew, as when a VM is started anew or reboots. Other links
    /// of the two stay.
    Drop {
        #[command(flatten)]
        link: Link,
    },
    /// Let a peer have a link again that was dropped
    Allow {
        #[command(flatten)]
        link: Link,
    },
    /// Look whether all is there that VMs with ivsmc devices need, and say what mends what is not
    ///
    /// It changes nothing. Ends with status 1 if something is missing or wrong.
    Check {
        #[command(flatten)]
        given: Given,
        /// A VMM, to see whether it has --ivsmc
        #[arg(long, value_name = "FILE")]
        vmm: Option<PathBuf>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Say whether a policy is one, and if not, in which line and why
    CheckPolicy {
        /// The policy
        file: PathBuf,
        /// The folder in which each fabric has its own
        #[arg(long, value_name = "FOLDER", default_value = "/run/ivsmc")]
        run_dir: PathBuf,
    },
    /// Write manual pages, and completions for bash and zsh, into a folder
    #[command(hide = true)]
    Manual {
        /// The folder
        folder: PathBuf,
    },
}

#[derive(clap::Args)]
struct Given {
    /// The policy
    #[arg(long, value_name = "FILE", default_value = POLICY)]
    policy: PathBuf,
    /// The folder in which each fabric has its own
    #[arg(long, value_name = "FOLDER", default_value = "/run/ivsmc")]
    run_dir: PathBuf,
}

#[derive(clap::Args)]
struct Link {
    #[command(flatten)]
    given: Given,
    /// The VM's fabric, if there are VMs of this name in several
    #[arg(long, value_name = "NAME")]
    fabric: Option<String>,
    /// The VM whose device does it, by the name that `list` shows
    vm: String,
    /// The peer: the name of a VM as `list` shows it, or a GID
    peer: String,
}

impl Given {
    fn policy(&self) -> Result<Policy, Box<dyn Error>> {
        read(&self.policy, &self.run_dir)
    }
}

fn main() -> ExitCode {
    let level = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(level).init();
    let done = match Options::parse().command {
        Command::Attach { given, faster } => run_attach(&given, faster),
        Command::List { given, json } => run_list(&given, json),
        Command::Drop { link } => run_drop(link, Wish::Drop),
        Command::Allow { link } => run_drop(link, Wish::Allow),
        Command::Check { given, vmm, json } => match run_check(&given, vmm.as_deref(), json) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::CheckPolicy { file, run_dir } => check_policy(&file, &run_dir),
        Command::Manual { folder } => {
            manual::write(Options::command(), &folder).map_err(Into::into)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // `list | head` has what it wanted.
        Err(error) if is_broken_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "ivsmc-host: {error}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn read(policy: &Path, run_dir: &Path) -> Result<Policy, Box<dyn Error>> {
    // VMMs have folders of their own that they run in.
    Ok(Policy::read(policy, &absolute(run_dir)?)?)
}

fn check_policy(file: &Path, run_dir: &Path) -> Result<(), Box<dyn Error>> {
    let policy = read(file, run_dir)?;
    let fabrics: Vec<_> = policy.fabrics.iter().map(|f| f.name.as_str()).collect();
    writeln!(
        io::stdout(),
        "{}: fabrics {}",
        file.display(),
        fabrics.join(", ")
    )?;
    Ok(())
}

fn run_attach(given: &Given, faster: u32) -> Result<(), Box<dyn Error>> {
    let policy = given.policy()?;
    allow_many_files();
    let runtime = runtime()?;
    let ended: io::Result<()> = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        log::info!("the policy is {}", given.policy.display());
        tokio::select! {
            never = attach(policy, Timing::default().faster(faster)) => match never {},
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    });
    // Threads that a file system keeps waiting are not waited for.
    runtime.shutdown_background();
    Ok(ended?)
}

/// Two for each VM that does not answer can be more than a shell allows at first.
fn allow_many_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // A sandbox may forbid it, and has set what it wants.
    let _ = setrlimit(Resource::Nofile, raised);
}

fn run_list(given: &Given, json: bool) -> Result<(), Box<dyn Error>> {
    let policy = given.policy()?;
    let runtime = runtime()?;
    let listing = runtime.block_on(list(policy, LIST));
    runtime.shutdown_background();
    if json {
        writeln!(io::stdout(), "{}", serde_json::to_string(&listing)?)?;
    } else {
        listing.print(&mut io::stdout())?;
    }
    Ok(())
}

fn run_check(given: &Given, vmm: Option<&Path>, json: bool) -> Result<ExitCode, Box<dyn Error>> {
    let mut report = check::host(vmm);
    let file = given.policy.display().to_string();
    match read(&given.policy, &given.run_dir) {
        Ok(policy) => {
            report.ok(&file, "a policy");
            let runtime = runtime()?;
            let listing = runtime.block_on(list(policy.clone(), LIST));
            runtime.shutdown_background();
            check::fabrics(&policy, &listing, &mut report);
        }
        Err(error) if given.policy == Path::new(POLICY) && !given.policy.exists() => report.note(
            &file,
            error.to_string(),
            "a policy (docs/host.md), or --policy FILE; VMs with an --ivsmc of their own need none",
        ),
        Err(error) => report.wrong(
            &file,
            error.to_string(),
            "docs/host.md has what a policy can say",
        ),
    }
    if json {
        writeln!(io::stdout(), "{}", serde_json::to_string(&report)?)?;
    } else {
        write!(io::stdout(), "{report}")?;
    }
    Ok(report.exit_code())
}

fn run_drop(link: Link, wish: Wish) -> Result<(), Box<dyn Error>> {
    let policy = link.given.policy()?;
    let wanted = Wanted {
        vm: link.vm,
        peer: link.peer,
        fabric: link.fabric,
    };
    let runtime = runtime()?;
    let done = runtime.block_on(drop_link(policy, &wanted, wish, LIST));
    runtime.shutdown_background();
    writeln!(io::stdout(), "{}", done?)?;
    Ok(())
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
