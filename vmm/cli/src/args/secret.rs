//! `cachot secret ...`.

use clap::{Args, Subcommand};

const CHECK_EXAMPLES: &str = "\
Examples:
  cachot secret check API_KEY=env:API_TOKEN
  cachot secret check API_KEY=file:/run/keys/api DB=dotenv:.env#DB_PASSWORD --json
  cachot secret check DB=vault:secret/data/app/db#password 'GH=exec:/usr/bin/pass show github'

Exit codes: 0 if every reference has a value, 1 if not, 125 if the command line is wrong.";

/// `cachot secret ...`.
#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Resolve references and say how long their values are; never shows a value
    Check(CheckArgs),
}

/// `cachot secret check`.
#[derive(Debug, Args)]
#[command(after_help = CHECK_EXAMPLES)]
pub struct CheckArgs {
    /// Names of secrets and where their values are
    #[arg(value_name = "NAME=SCHEME:REF", required = true)]
    pub references: Vec<String>,

    /// Print a JSON array with one object a reference
    #[arg(long)]
    pub json: bool,
}
