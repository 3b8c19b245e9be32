//! `cachot snapshot inspect`: what is in an image, what was proved of it, and what was not.

use std::io::{self, Write};

use cachot_snapshot::image::{self, Hits, HostKey, Inspection, Machine, Manifest, Receipt};
use serde::Serialize;

use super::{ImagesError, trusted_keys};
use crate::args::InspectArgs;
use crate::state_dir::Places;
use crate::text::{count, line, size, table, word, write_json};

/// The JSON form.
#[derive(Serialize)]
struct Report<'a> {
    path: String,
    /// In bytes.
    disk_usage: u64,
    encrypted: bool,
    /// Whether this host made the image.
    own: bool,
    manifest: &'a Manifest,
}

/// Says what is in an image.
pub(super) fn inspect(args: &InspectArgs, output: &mut impl Write) -> Result<(), ImagesError> {
    let inspection = image::inspect(&args.image, &trusted_keys()?)?;
    let manifest = &inspection.manifest;
    let key = HostKey::load(&Places::of_process().root()?)?;
    let report = Report {
        path: inspection.path.to_string_lossy().into_owned(),
        disk_usage: inspection.disk_usage,
        encrypted: manifest.is_encrypted(),
        own: key.is_some_and(|key| key.public() == manifest.host_key),
        manifest,
    };
    match args.json {
        true => write_json(&report, output)?,
        false => write_text(&report, &inspection, output)?,
    }
    Ok(())
}

fn write_text(
    report: &Report<'_>,
    inspection: &Inspection,
    output: &mut impl Write,
) -> io::Result<()> {
    let manifest = &inspection.manifest;
    table(&facts(report, inspection), output)?;
    writeln!(output)?;
    write_secrets(manifest, output)?;
    writeln!(output)?;
    write_receipt(&manifest.receipt, output)
}

fn facts(report: &Report<'_>, inspection: &Inspection) -> Vec<[String; 2]> {
    let manifest = &inspection.manifest;
    let fact = |name: &str, text: String| [name.to_owned(), text];
    let content: u64 = manifest.parts.iter().map(|part| part.length).sum();
    let whose = if report.own {
        "this host"
    } else {
        "another, trusted host"
    };
    let mut facts = vec![
        fact("image", word(&report.path)),
        fact("id", manifest.id.to_string()),
        fact(
            "created",
            humantime::format_rfc3339_seconds(manifest.created).to_string(),
        ),
        fact("made by", format!("cachot {}", line(&manifest.cachot))),
        fact("signed by", format!("{} ({whose})", manifest.host_key)),
        fact(
            "encrypted",
            if report.encrypted { "yes" } else { "no" }.to_owned(),
        ),
        fact(
            "size",
            format!(
                "{} on disk, {} of content",
                size(inspection.disk_usage),
                size(content)
            ),
        ),
        fact("vm", word(&manifest.guest.name)),
        fact("machine", machine(&manifest.machine)),
    ];
    for disk in &manifest.guest.disks {
        let kind = match disk.read_only {
            true => "read-only, opened by its path again",
            false => "its copy is in the image",
        };
        let text = format!("{}, {}, {kind}", word(&disk.source), size(disk.length));
        facts.push(fact("disk", text));
    }
    let lineage: Vec<_> = manifest.lineage.iter().map(ToString::to_string).collect();
    facts.push(fact(
        "lineage",
        match lineage.is_empty() {
            true => "booted".to_owned(),
            false => format!("restored from {}", lineage.join(", from ")),
        },
    ));
    facts
}

fn machine(machine: &Machine) -> String {
    let memory = machine.memory.iter().map(|region| region.length).sum();
    let devices: Vec<_> = machine.devices.iter().map(|name| line(name)).collect();
    format!(
        "{} ({}), {} of memory, devices: {}",
        count(machine.cpus.into(), "vCPU"),
        line(&machine.cpu.vendor),
        size(memory),
        devices.join(", ")
    )
}

fn write_secrets(manifest: &Manifest, output: &mut impl Write) -> io::Result<()> {
    if manifest.secrets.is_empty() {
        return writeln!(output, "It has no secrets.");
    }
    let header = [
        "SECRET",
        "REFERENCE",
        "MODE",
        "OWNER",
        "ENV",
        "VERSION",
        "AT A RESTORE",
    ];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(manifest.secrets.iter().map(|secret| {
        [
            secret.name.to_string(),
            word(&secret.reference),
            format!("{:04o}", secret.mode),
            format!("{}:{}", secret.uid, secret.gid),
            if secret.export_env { "yes" } else { "no" }.to_owned(),
            secret.version.to_string(),
            name_of(&secret.policy),
        ]
    }));
    table(&rows, output)
}

fn write_receipt(receipt: &Receipt, output: &mut impl Write) -> io::Result<()> {
    if receipt.residue_kept {
        writeln!(
            output,
            "It was made with --dangerously-keep-residue: IT MAY HOLD VALUES OF SECRETS."
        )?;
    }
    writeln!(
        output,
        "{} searched {} for {} in all encodings (--on-residue {}).",
        line(&receipt.scanner),
        size(receipt.bytes_scanned),
        count(receipt.needles, "value"),
        name_of(&receipt.policy)
    )?;
    write_hits("Found before it was written:", &receipt.hits, output)?;
    if receipt.redactions.is_empty() {
        writeln!(output, "Nothing was removed.")?;
    } else {
        writeln!(output, "Removed:")?;
        let rows: Vec<_> = receipt
            .redactions
            .iter()
            .map(|removed| {
                [
                    format!("  {}", name_of(&removed.place)),
                    count(removed.ranges, "range"),
                    size(removed.bytes),
                ]
            })
            .collect();
        table(&rows, output)?;
    }
    write_hits("Still found in the image:", &receipt.residue, output)?;
    writeln!(output, "Not proved:")?;
    if receipt.degenerate_windows > 0 {
        writeln!(
            output,
            "  {} of values that every program has were not searched for",
            count(receipt.degenerate_windows, "window")
        )?;
    }
    for name in &receipt.short_values {
        writeln!(
            output,
            "  {name} has a value too short or too plain to be searched for: only its attached pages were removed"
        )?;
    }
    for sentence in &receipt.not_proved {
        writeln!(output, "  {}", line(sentence))?;
    }
    Ok(())
}

fn write_hits(title: &str, hits: &[Hits], output: &mut impl Write) -> io::Result<()> {
    if hits.is_empty() {
        return writeln!(output, "{title} nothing.");
    }
    writeln!(output, "{title}")?;
    let rows: Vec<_> = hits
        .iter()
        .map(|hits| {
            [
                format!("  {}", name_of(&hits.place)),
                line(&hits.encoding),
                hits.count.to_string(),
            ]
        })
        .collect();
    table(&rows, output)
}

/// The name that a value without fields has in the manifest.
fn name_of(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => "?".to_owned(),
    }
}
