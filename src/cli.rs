//! The command line: one function for each command.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Config, Overrides};
use crate::serve;

/// A Matrix homeserver that never outgrows the memory it was given.
#[derive(Parser)]
#[command(name = "snug", version, disable_help_subcommand = true)]
struct Arguments {
    /// The config file [default: snug.toml in the data folder, or /etc/snug/snug.toml]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// The folder of the database, the media and the signing key [default: ./snug-data]
    #[arg(long, value_name = "FOLDER", global = true)]
    data_dir: Option<PathBuf>,
    /// Address and port for apps; may be given several times
    #[arg(long, value_name = "ADDRESS", global = true)]
    listen: Vec<String>,
    /// The memory the server may use: a name such as pi-zero-2w, or a file
    #[arg(long, value_name = "PROFILE", global = true)]
    budget: Option<String>,
    /// The part after the colon in users' names
    #[arg(long, value_name = "NAME", global = true)]
    server_name: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server (also without a command)
    Serve,
    /// Print a config file with every setting
    SampleConfig,
}

/// Runs the command; what goes wrong is a sentence on stderr and exit code 1.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let overrides = Overrides {
        config: arguments.config,
        data_dir: arguments.data_dir,
        listen: arguments.listen,
        budget: arguments.budget,
        server_name: arguments.server_name,
    };
    let done = match arguments.command.unwrap_or(Command::Serve) {
        Command::Serve => serve(&overrides),
        Command::SampleConfig => {
            print!("{}", Config::sample());
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("snug: {message}");
            ExitCode::FAILURE
        }
    }
}

fn serve(overrides: &Overrides) -> Result<(), String> {
    let config = Config::load(overrides).map_err(|error| error.to_string())?;
    serve::run(config).map_err(|error| error.to_string())
}
