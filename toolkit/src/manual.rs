// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Manual pages, and completions for shells, made of what a tool knows of its own options.

use clap::Command;
use clap_complete::{Shell, generate_to};
use std::fs;
use std::io;
use std::path::Path;

/// Writes a page for the tool and for each of its commands (`NAME-COMMAND.1`), and a file for bash (`NAME.bash`) and zsh
/// (`_NAME`), into a folder, which is made.
///
/// # Errors
/// What the file system says.
pub fn write(command: Command, folder: &Path) -> io::Result<()> {
    // Nobody wants pages about `help`.
    let mut command = command.disable_help_subcommand(true);
    fs::create_dir_all(folder)?;
    let name = command.get_name().to_owned();
    for shell in [Shell::Bash, Shell::Zsh] {
        generate_to(shell, &mut command, &name, folder)?;
    }
    clap_mangen::generate_to(command, folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_pages() {
        let folder = tempfile::tempdir().unwrap();
        let command = Command::new("tool").subcommand(Command::new("go").about("Goes"));
        write(command, &folder.path().join("made")).unwrap();
        let mut names: Vec<_> = fs::read_dir(folder.path().join("made"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["_tool", "tool-go.1", "tool.1", "tool.bash"]);
    }
}
