//! `cachot ps`: the VMs that there are.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use crate::api_client;
use crate::args::PsArgs;
use crate::state_dir::Places;
use crate::text;
use crate::vm::error::{RunError, system};
use crate::vm::existing::Existing;
use crate::vm::now;

/// One VM, as `--json` tells it.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    /// `starting`, `running`, `paused`, `stopping`, `saving`, `exited`.
    state: String,
    /// Exit code of one that has ended.
    exit_code: Option<u8>,
    /// Why there is none of its workload.
    error: Option<String>,
    /// Seconds since 1970.
    created: Option<u64>,
    cpus: Option<u8>,
    memory: Option<u64>,
    /// Names of its secrets.
    secrets: Vec<String>,
    command: Vec<String>,
    keeper: Option<i32>,
}

/// Prints them.
///
/// # Errors
/// See [`RunError`].
pub fn ps(args: &PsArgs, output: &mut impl Write) -> Result<(), RunError> {
    let root = Places::of_process().root()?;
    let listed = Existing::all(&root)?.into_iter().map(|vm| look(&vm));
    let listed: Vec<_> = listed
        .filter(|vm| args.all || vm.exit_code.is_none())
        .collect();
    let printed = if args.json {
        serde_json::to_writer_pretty(&mut *output, &listed)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(output))
    } else {
        table(&listed, output)
    };
    printed.map_err(system("print the list"))
}

fn look(vm: &Existing) -> Listed {
    let record = vm.record().ok();
    let exit = vm.exit().ok();
    let state = match &exit {
        Some(_) => "exited".to_owned(),
        None => api_client::request(vm, "GET", "/v1/state")
            .ok()
            .and_then(|state| Some(state["state"].as_str()?.to_owned()))
            .unwrap_or_else(|| "starting".to_owned()),
    };
    let secrets = record.iter().flat_map(|record| &record.secrets);
    Listed {
        name: vm.name().to_string(),
        state,
        exit_code: exit.as_ref().map(|exit| exit.code),
        error: exit.and_then(|exit| exit.error),
        secrets: secrets.map(|secret| secret.name.to_string()).collect(),
        created: record.as_ref().map(|record| record.created),
        cpus: record.as_ref().map(|record| record.cpus),
        memory: record.as_ref().map(|record| record.memory),
        keeper: record.as_ref().map(|record| record.keeper),
        command: record
            .map(|record| record.workload.start.argv)
            .unwrap_or_default(),
    }
}

fn table(listed: &[Listed], output: &mut impl Write) -> io::Result<()> {
    let mut rows = vec![
        [
            "NAME", "STATE", "AGE", "CPUS", "MEMORY", "SECRETS", "COMMAND",
        ]
        .map(str::to_owned),
    ];
    for vm in listed {
        let shown =
            |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
        let age = vm.created.map(|created| {
            let age = Duration::from_secs(now().saturating_sub(created));
            let age = humantime::format_duration(age).to_string();
            age.split_inclusive(' ').take(2).collect::<String>()
        });
        rows.push([
            vm.name.clone(),
            match vm.exit_code {
                Some(code) => format!("exited ({code})"),
                None => vm.state.clone(),
            },
            age.unwrap_or_else(|| "-".to_owned()).trim().to_owned(),
            shown(vm.cpus.map(u64::from)),
            vm.memory
                .map_or("-".to_owned(), |bytes| format!("{}M", bytes >> 20)),
            vm.secrets.len().to_string(),
            vm.command.join(" ").escape_debug().to_string(),
        ]);
    }
    text::table(&rows, output)
}
