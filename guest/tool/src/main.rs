// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ivsmc-guest`: SMC-D for the user of a guest.

use clap::{CommandFactory, Parser, Subcommand};
use ivsmc_guest::boot::{self, Settings};
use ivsmc_guest::enable::policy::Policy;
use ivsmc_guest::owners::Owner;
use ivsmc_guest::statistics::Statistics;
use ivsmc_guest::status::Status;
use ivsmc_guest::{check, enable, run, sigpipe, ueid, warm};
use ivsmc_toolkit::manual;
use std::ffi::OsString;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Programs over SMC-D, and the truth about their connections.
#[derive(Parser)]
#[command(version)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a program, its TCP sockets made SMC sockets; children included
    ///
    /// TCP and MPTCP sockets that it and its children open become SMC sockets, which fall back to TCP where there is no
    /// SMC-D. Sockets that it inherits or opens through io_uring stay as they are. It takes the place of this process; two
    /// small processes beside it, "ivsmc-guest: supervisor of process PID", give it its sockets and end with it. One of
    /// them may be killed, not both. Where that cannot work the program is run without it.
    Run {
        /// Another protocol than SMC, for tests
        #[arg(long, hide = true, value_name = "NUMBER", default_value_t = ivsmc_guest::IPPROTO_SMC)]
        protocol: i32,
        /// The program and its arguments
        // One list: what follows the program is its own, -h and --help included.
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            required = true,
            value_names = ["PROGRAM", "ARGUMENTS"]
        )]
        command: Vec<OsString>,
    },
    /// Have all TCP sockets be SMC sockets, or those of some cgroups: services, containers, whoever starts them
    ///
    /// A BPF program in the kernel does it, until `disable` or the system's end; no process stays. It is for sockets that are
    /// opened from now on, in all network namespaces. Sockets opened through io_uring stay as they are. A policy that is there
    /// is replaced. A process is decided upon by the innermost cgroup around it that is named.
    Enable {
        /// A cgroup's name, such as nginx.service, or the start of one: libpod-*; without any, everything
        #[arg(value_name = "CGROUP")]
        cgroups: Vec<String>,
        /// A cgroup whose sockets stay as they are
        #[arg(long, value_name = "CGROUP")]
        except: Vec<String>,
        /// A TOML file with these names: cgroups = ["nginx.service", "libpod-*"], except = ["backup.service"]
        #[arg(long, value_name = "FILE", conflicts_with_all = ["cgroups", "except"])]
        policy: Option<PathBuf>,
        /// Another protocol than SMC, for tests
        #[arg(long, hide = true, value_name = "NUMBER", default_value_t = ivsmc_guest::IPPROTO_SMC)]
        protocol: i32,
    },
    /// End what `enable` began; sockets that are open stay as they are
    Disable,
    /// Say of every SMC connection how its data moves, why it fell back to TCP, and which process has it
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// In all network namespaces, as containers have them; needs root
        #[arg(long)]
        all: bool,
    },
    /// Keep one SMC-D connection to each peer, and make it anew when its link comes up again; all peers have to do
    /// the same. A Linux without ivsmc's patches needs it to open many connections at once
    Warm {
        /// The peers' addresses; the guest's own may be among them
        #[arg(required_unless_present = "config")]
        peers: Vec<IpAddr>,
        /// Take them and the port from the configuration
        #[arg(long, value_name = "FILE", conflicts_with_all = ["peers", "port"])]
        config: Option<PathBuf>,
        /// The port on which all of them do it
        #[arg(long, default_value_t = warm::PORT, value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
    },
    /// Look whether all is there that SMC-D needs, and say what mends what is not
    ///
    /// With an address, a connection is opened to it over TCP, then one over SMC, and it is said why that is not SMC-D, if
    /// it is not. Ends with status 1 if something is missing or wrong.
    Check {
        /// A peer's address
        address: Option<IpAddr>,
        /// A port on which the peer has a server with SMC sockets
        #[arg(long, requires = "address", default_value_t = warm::PORT, value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Set what a guest needs once for each boot: UEIDs, sizes of buffers, what is enabled
    ///
    /// The configuration says what; without one, its defaults are set. Modules are loaded before: smc, ivpci.
    Boot {
        /// The configuration
        #[arg(long, value_name = "FILE", default_value = boot::FILE)]
        config: PathBuf,
    },
    /// Write manual pages, and completions for bash and zsh, into a folder
    #[command(hide = true)]
    Manual {
        /// The folder
        folder: PathBuf,
    },
    /// The user EIDs: two systems need one in common
    Ueid {
        #[command(subcommand)]
        change: Ueid,
    },
}

#[derive(Subcommand)]
enum Ueid {
    /// Add one (at most 4)
    Add {
        /// 1 to 32 characters out of A-Z, 0-9, '.' and '-'
        name: String,
    },
    /// Take one away
    Del {
        /// As it was added
        name: String,
    },
    /// List them
    List,
}

fn main() -> ExitCode {
    // `status | head` is to end, and not to panic.
    sigpipe::end();
    let done: Result<(), Box<dyn std::error::Error>> = match Options::parse().command {
        Command::Run { protocol, command } => match command.split_first() {
            Some((program, arguments)) => Err(run::run(program, arguments, protocol).into()),
            None => Err("run: the program is missing".into()),
        },
        Command::Enable {
            cgroups,
            except,
            policy,
            protocol,
        } => {
            let policy = match policy {
                Some(file) => Policy::read(&file),
                None => Policy::new(&cgroups, &except),
            };
            let enabled = policy.map_err(enable::Error::from);
            match enabled.and_then(|policy| enable::enable(&policy, protocol)) {
                Ok(0) => Ok(()),
                Ok(skipped) => writeln!(
                    io::stderr(),
                    "ivsmc-guest: in {skipped} network namespaces connections could not be chosen"
                )
                .map_err(Into::into),
                Err(error) => Err(error.into()),
            }
        }
        Command::Disable => match enable::disable() {
            Ok(true) => Ok(()),
            Ok(false) => {
                writeln!(io::stderr(), "ivsmc-guest: nothing was enabled").map_err(Into::into)
            }
            Err(error) => Err(error.into()),
        },
        Command::Status { json, all } => status(json, all),
        Command::Check {
            address,
            port,
            json,
        } => {
            let peer = address.map(|address| SocketAddr::new(address, port));
            match check(peer, json) {
                Ok(code) => return code,
                Err(error) => Err(error),
            }
        }
        Command::Boot { config } => set_up(&config),
        Command::Manual { folder } => {
            manual::write(Options::command(), &folder).map_err(Into::into)
        }
        Command::Warm {
            peers,
            port,
            config,
        } => {
            let (peers, port) = match config.map(|file| kept_peers(&file)).transpose() {
                Ok(configured) => configured.unwrap_or((peers, port)),
                Err(error) => return failed(&*error),
            };
            // A service goes on when nobody reads what it says.
            sigpipe::ignore();
            let tell = |line: &str| {
                let _ = writeln!(io::stdout(), "ivsmc-guest warm: {line}");
            };
            match warm::keep(&peers, port, tell) {
                Err(error) => Err(error.into()),
            }
        }
        Command::Ueid { change } => change_ueid(&change),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&*error),
    }
}

/// Says why it failed.
fn failed(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    let _ = writeln!(io::stderr(), "ivsmc-guest: {error}");
    // What shells give for a program that cannot be run.
    match error.downcast_ref() {
        Some(run::Error::Execute { source, .. }) => match source.kind() {
            io::ErrorKind::NotFound => ExitCode::from(127),
            _ => ExitCode::from(126),
        },
        _ => ExitCode::FAILURE,
    }
}

/// The peers to which the configuration has a connection kept, and the port.
fn kept_peers(config: &Path) -> Result<(Vec<IpAddr>, u16), Box<dyn std::error::Error>> {
    let Settings { peers, port, .. } = Settings::read(config)?;
    if peers.is_empty() {
        let file = config.display();
        return Err(format!("warm: {file} has no peers; add [warm], peers = [\"ADDRESS\"]").into());
    }
    Ok((peers, port))
}

/// Says how all is, and how a connection to this peer.
fn check(peer: Option<SocketAddr>, json: bool) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut report = check::guest();
    if let Some(peer) = peer {
        check::trial::check(peer, &mut report);
    }
    if json {
        writeln!(io::stdout(), "{}", serde_json::to_string(&report)?)?;
    } else {
        write!(io::stdout(), "{report}")?;
    }
    Ok(report.exit_code())
}

/// Sets what the configuration says.
fn set_up(config: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let errors = Settings::read(config)?.apply();
    let Some((last, others)) = errors.split_last() else {
        return Ok(());
    };
    for error in others {
        writeln!(io::stderr(), "ivsmc-guest: {error}")?;
    }
    Err(last.to_string().into())
}

fn change_ueid(change: &Ueid) -> Result<(), Box<dyn std::error::Error>> {
    match change {
        Ueid::Add { name } => ueid::add(name)?,
        Ueid::Del { name } => ueid::remove(name)?,
        Ueid::List => {
            for name in ueid::list()? {
                writeln!(io::stdout(), "{name}")?;
            }
        }
    }
    Ok(())
}

fn status(json: bool, all: bool) -> Result<(), Box<dyn std::error::Error>> {
    let status = if all {
        Status::everywhere()?
    } else {
        Status::now()?
    };
    if json {
        writeln!(io::stdout(), "{}", serde_json::to_string(&status)?)?;
    } else {
        print_status(&status, &mut io::stdout())?;
    }
    Ok(())
}

fn print_status(status: &Status, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "SMC-D devices:")?;
    for device in &status.devices {
        writeln!(
            out,
            "  {}, used by {} connections",
            device.pci_id, device.connections
        )?;
    }
    if status.devices.is_empty() {
        writeln!(
            out,
            "  none: is ivpci loaded, and does the VM have --ivsmc?"
        )?;
    }
    for device in &status.pci {
        let address = &device.address;
        match device.driver.as_deref() {
            None => writeln!(
                out,
                "  {address}: no driver has taken it; dmesg | grep {address} says why"
            )?,
            Some("ivpci") => {}
            Some(other) => writeln!(out, "  {address}: the driver {other} has it")?,
        }
        for link in &device.links {
            writeln!(out, "  {address}: link {link}")?;
        }
    }
    let ueids = match status.ueids.as_slice() {
        [] => {
            "none; connections to other systems will fall back (ivsmc-guest ueid add NAME)".into()
        }
        names => names.join(", "),
    };
    writeln!(out, "UEIDs: {ueids}")?;
    if let Some(enabled) = &status.enabled {
        writeln!(
            out,
            "Enabled by user {} for {}: {} sockets made SMC sockets, {} left TCP",
            enabled.uid, enabled.policy, enabled.made, enabled.left
        )?;
    }
    let Statistics {
        client_connections,
        server_connections,
        client_fallbacks,
        server_fallbacks,
        ..
    } = status.statistics;
    writeln!(
        out,
        "So far: {client_connections} opened and {server_connections} accepted over SMC-D; \
         {client_fallbacks} and {server_fallbacks} fell back to TCP"
    )?;
    writeln!(out, "Connections:")?;
    writeln!(
        out,
        "  {:<6} {:<8} {:<24} {:<24} {:<20} detail",
        "mode", "state", "local", "peer", "process"
    )?;
    for connection in &status.connections {
        let detail = match &connection.dmb {
            Some(dmb) => format!("token {:016x}, peer's {:016x}", dmb.token, dmb.peer_token),
            None => connection.reason.clone(),
        };
        writeln!(
            out,
            "  {:<6} {:<8} {:<24} {:<24} {:<20} {detail}",
            connection.mode,
            connection.state,
            endpoint(connection.local_address, connection.local_port),
            endpoint(connection.peer_address, connection.peer_port),
            owners(&connection.owners),
        )?;
    }
    if status.skipped > 0 {
        writeln!(
            out,
            "{} network namespaces could not be looked into: run this as root",
            status.skipped
        )?;
    }
    Ok(())
}

fn endpoint(address: Option<IpAddr>, port: u16) -> String {
    match address {
        _ if port == 0 => "-".into(),
        Some(IpAddr::V6(address)) => format!("[{address}]:{port}"),
        Some(address) => format!("{address}:{port}"),
        None => format!("*:{port}"),
    }
}

/// The first of them, and how many more there are.
fn owners(owners: &[Owner]) -> String {
    match owners {
        [] => "-".into(),
        [only] => only.words(),
        [first, more @ ..] => format!("{} +{}", first.words(), more.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_options_are_its_own() {
        let line = [
            "ivsmc-guest",
            "run",
            "redis-benchmark",
            "-h",
            "10.0.0.1",
            "--help",
        ];
        let Ok(Options {
            command: Command::Run { command, .. },
        }) = Options::try_parse_from(line)
        else {
            panic!("not a run");
        };
        assert_eq!(command, line[2..]);
        assert!(Options::try_parse_from(["ivsmc-guest", "run"]).is_err());
    }
}
