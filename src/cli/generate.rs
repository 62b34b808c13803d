//! `completions` and `man`: what shells and `man` need to know of the command line.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};
use clap_mangen::Man;

use super::Arguments;
use super::failure::Failure;
use super::terminal::Output;

/// The arguments of `completions`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct CompletionsArguments {
    /// The shell that reads the script
    shell: Shell,
}

/// The arguments of `man`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ManArguments {
    /// Write gridcast.1 and a page for each command into this folder, instead of printing gridcast.1
    #[arg(value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

impl CompletionsArguments {
    /// Prints the script.
    pub(super) fn run(&self) -> Result<(), Failure> {
        let mut script = Vec::new();
        generate(self.shell, &mut Arguments::command(), "gridcast", &mut script);
        print(script)
    }
}

impl ManArguments {
    /// Prints the page, or writes all pages.
    pub(super) fn run(&self) -> Result<(), Failure> {
        let command = Arguments::command();
        match &self.folder {
            Some(folder) => clap_mangen::generate_to(command, folder)
                .map_err(|error| Failure::Failed(format!("{}: {error}", folder.display()))),
            None => {
                let mut page = Vec::new();
                let rendered = Man::new(command).render(&mut page);
                rendered.map_err(|error| Failure::Failed(error.to_string()))?;
                print(page)
            }
        }
    }
}

fn print(text: Vec<u8>) -> Result<(), Failure> {
    let mut output = Output::new();
    output.write(&String::from_utf8_lossy(&text))?;
    output.flush()
}
