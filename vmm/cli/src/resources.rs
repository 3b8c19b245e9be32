//! How much machine a VM may have: the limits of `--cpus` and `--memory`.

use std::str::FromStr;

use cachot_devices::memory::{GRANULE, MAX_SIZE, MIN_SIZE};
use cachot_vmm::keeper::MAX_CPUS;
use parse_size::Config;
use serde::Deserialize;

/// A number of virtual CPUs: 1 to [`MAX_CPUS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Setting")]
pub struct Cpus(u8);

/// An amount of guest memory: a multiple of [`GRANULE`], from [`MIN_SIZE`] to [`MAX_SIZE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Setting")]
pub struct Memory(u64);

/// Why a text is neither.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResourceError {
    /// Not a number, none, or too many.
    #[error("a VM has at least 1 and at most {MAX_CPUS} CPUs")]
    Cpus,
    /// Not a size.
    #[error("write a size, as in 256M or 2G")]
    Size,
    /// Not whole huge pages.
    #[error("guest memory is a multiple of 2M: write {} or {}", mib(.0 - .0 % GRANULE), mib(.0 - .0 % GRANULE + GRANULE))]
    Odd(u64),
    /// Too little or too much.
    #[error(
        "a VM has at least {} and at most {} of memory",
        mib(MIN_SIZE),
        mib(MAX_SIZE)
    )]
    Range,
}

fn mib(bytes: u64) -> String {
    let mib = bytes >> 20;
    if mib >= 1024 && mib.is_multiple_of(1024) {
        format!("{}G", mib >> 10)
    } else {
        format!("{mib}M")
    }
}

impl Cpus {
    /// The number.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl FromStr for Cpus {
    type Err = ResourceError;

    fn from_str(text: &str) -> Result<Self, ResourceError> {
        let number = text.parse().ok();
        number
            .filter(|number| (1..=MAX_CPUS).contains(number))
            .map(Self)
            .ok_or(ResourceError::Cpus)
    }
}

impl Memory {
    /// The amount in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Memory {
    type Err = ResourceError;

    fn from_str(text: &str) -> Result<Self, ResourceError> {
        // A bare number is in MiB, as with QEMU's -m.
        let bytes = match text.parse::<u64>() {
            Ok(mib) => mib.checked_mul(1 << 20).ok_or(ResourceError::Range)?,
            Err(_) => Config::new()
                .with_binary()
                .parse_size(text)
                .map_err(|_| ResourceError::Size)?,
        };
        if !(MIN_SIZE..=MAX_SIZE).contains(&bytes) {
            return Err(ResourceError::Range);
        }
        if !bytes.is_multiple_of(GRANULE) {
            return Err(ResourceError::Odd(bytes));
        }
        Ok(Self(bytes))
    }
}

/// How either is written in a settings file.
#[derive(Deserialize)]
#[serde(untagged, expecting = "cpus is a number, memory a size as in 256M")]
enum Setting {
    Number(u64),
    Text(String),
}

impl Setting {
    fn parse<T: FromStr<Err = ResourceError>>(self) -> Result<T, ResourceError> {
        match self {
            Self::Number(number) => number.to_string().parse(),
            Self::Text(text) => text.parse(),
        }
    }
}

impl TryFrom<Setting> for Cpus {
    type Error = ResourceError;

    fn try_from(setting: Setting) -> Result<Self, ResourceError> {
        setting.parse()
    }
}

impl TryFrom<Setting> for Memory {
    type Error = ResourceError;

    fn try_from(setting: Setting) -> Result<Self, ResourceError> {
        setting.parse()
    }
}

impl Default for Cpus {
    /// One.
    fn default() -> Self {
        Self(1)
    }
}

impl Default for Memory {
    /// 256 MiB.
    fn default() -> Self {
        Self(256 << 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_memory_units_are_binary() {
        for (text, bytes) in [
            ("256M", 256 << 20),
            ("256m", 256 << 20),
            ("256MiB", 256 << 20),
            ("1G", 1 << 30),
            ("128", 128 << 20),
            ("16M", MIN_SIZE),
            ("512G", MAX_SIZE),
        ] {
            assert_eq!(text.parse(), Ok(Memory(bytes)), "{text}");
        }
    }

    #[test]
    fn test_memory_bad_text_says_why() {
        for (text, error) in [
            ("", ResourceError::Size),
            ("many", ResourceError::Size),
            ("-1", ResourceError::Size),
            ("0", ResourceError::Range),
            ("14M", ResourceError::Range),
            ("1025G", ResourceError::Range),
            ("18446744073709551615", ResourceError::Range),
            ("129M", ResourceError::Odd(129 << 20)),
        ] {
            assert_eq!(text.parse::<Memory>(), Err(error), "{text}");
        }
        let odd = "129M".parse::<Memory>().expect_err("odd").to_string();
        assert!(odd.ends_with("write 128M or 130M"), "{odd}");
    }

    #[test]
    fn test_cpus_outside_the_range_is_refused() {
        assert_eq!("1".parse(), Ok(Cpus(1)));
        assert_eq!("254".parse(), Ok(Cpus(254)));
        for text in ["0", "255", "256", "-1", "", "two"] {
            assert_eq!(text.parse::<Cpus>(), Err(ResourceError::Cpus), "{text}");
        }
    }
}
