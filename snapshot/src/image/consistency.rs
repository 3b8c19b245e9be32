//! Whether the fields of a manifest agree with each other.

use std::collections::BTreeSet;

use cachot_secrets::Reference;

use super::chunk::{DIGEST_LEN, chunk_count};
use super::manifest::{MAX_DISKS, MAX_LINEAGE, MAX_NEEDLES, MAX_STORED_LEN, Manifest, PartName};

/// Guest pages, in bytes: regions begin and end at one.
const PAGE: u64 = 4096;

impl Manifest {
    /// What contradicts what, if anything does.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        if self.lineage.len() > MAX_LINEAGE {
            return Err("its lineage is too long");
        }
        self.check_parts()?;
        self.check_memory()?;
        self.check_disks()?;
        self.check_secrets()?;
        if !self.receipt.residue_kept && !self.receipt.residue.is_empty() {
            return Err("it has residue and does not say that it was kept");
        }
        let needles = self.part(PartName::Needles).map_or(0, |part| part.length);
        if needles != self.receipt.needles.saturating_mul(DIGEST_LEN as u64) {
            return Err("the part needles does not have one commitment for each needle");
        }
        Ok(())
    }

    fn check_parts(&self) -> Result<(), &'static str> {
        let fixed = [
            PartName::Memory,
            PartName::State,
            PartName::Plan,
            PartName::Needles,
        ];
        let disks = (0u8..).map(PartName::Disk).take(MAX_DISKS);
        let mut expected = fixed.into_iter().chain(disks);
        let in_order = self
            .parts
            .iter()
            .all(|part| expected.next() == Some(part.name));
        if self.parts.len() < fixed.len() || !in_order {
            return Err("its parts are not memory, state, plan, needles, then disk-0 and so on");
        }
        let encrypted = self.is_encrypted();
        let (mut digests, mut stored_in_all) = (0, 0);
        for part in &self.parts {
            // Ciphertext is little longer than the text; of memory only what is no hole is encrypted.
            let most = part.name.limit();
            let stored = if encrypted { most + most / 64 } else { most };
            if part.length > most || part.stored > stored {
                return Err("a part is longer than the limit");
            }
            if !encrypted && part.length != part.stored {
                return Err("a part that is not encrypted has two lengths");
            }
            // Few parts, each of them within its limit: no overflow.
            digests += chunk_count(part.stored) * DIGEST_LEN as u64;
            stored_in_all += part.stored;
        }
        if stored_in_all > MAX_STORED_LEN {
            return Err("its parts together are longer than the limit");
        }
        if digests != self.digests.length {
            return Err("there is not one digest for each chunk");
        }
        Ok(())
    }

    fn check_memory(&self) -> Result<(), &'static str> {
        if self.machine.cpus == 0 {
            return Err("the machine has no vCPU");
        }
        let (mut next_address, mut next_offset) = (0u64, 0u64);
        for region in &self.machine.memory {
            let end = region
                .guest_start
                .checked_add(region.length)
                .ok_or("a memory region has no end")?;
            let aligned = [region.guest_start, region.length]
                .iter()
                .all(|n| n.is_multiple_of(PAGE));
            if region.length == 0 || !aligned {
                return Err("a memory region is empty or does not consist of pages");
            }
            if region.guest_start < next_address {
                return Err("the memory regions overlap or are not sorted");
            }
            if region.file_offset != next_offset {
                return Err("the memory regions do not follow each other in the part memory");
            }
            next_address = end;
            // No overflow: the regions do not overlap in 64 bits of addresses.
            next_offset += region.length;
        }
        if next_offset == 0
            || self.part(PartName::Memory).map(|part| part.length) != Some(next_offset)
        {
            return Err("the part memory is not as long as the memory regions");
        }
        Ok(())
    }

    fn check_disks(&self) -> Result<(), &'static str> {
        if self.guest.disks.len() > MAX_DISKS {
            return Err("it has too many disks");
        }
        let mut copies = self
            .parts
            .iter()
            .filter(|part| matches!(part.name, PartName::Disk(_)));
        for disk in &self.guest.disks {
            match (disk.read_only, disk.part) {
                (true, None) => {}
                (false, Some(name)) => {
                    let copy = copies.next().ok_or("a writable disk has no copy")?;
                    if copy.name != name || copy.length != disk.length {
                        return Err("a disk and its copy differ");
                    }
                }
                _ => return Err("exactly the writable disks have a copy"),
            }
        }
        if copies.next().is_some() {
            return Err("there is a copy of no disk");
        }
        Ok(())
    }

    fn check_secrets(&self) -> Result<(), &'static str> {
        let mut names = BTreeSet::new();
        for secret in &self.secrets {
            if !names.insert(&secret.name) {
                return Err("two secrets have the same name");
            }
            if secret.mode & !0o444 != 0 {
                return Err("a secret's file has permissions other than for reading");
            }
            if secret.reference.parse::<Reference>().is_err() {
                return Err("a secret has no reference");
            }
        }
        if names.len() as u64 > MAX_NEEDLES {
            return Err("it has too many secrets");
        }
        Ok(())
    }
}
