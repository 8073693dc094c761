//! Kinds of cards that can be simulated: name, size and identity. None of them claims to be a real one.

use std::path::Path;

use gpu_share::units::Bytes;
use serde::{Deserialize, Serialize};

/// A kind of card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    /// Its name, which says that it is simulated.
    pub name: &'static str,
    /// Streaming multiprocessors.
    pub sms: u32,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Memory.
    pub memory: Bytes,
}

impl Card {
    /// The size of a V100 (SXM2, 16 GB): <https://images.nvidia.com/content/volta-architecture/pdf/volta-architecture-whitepaper.pdf>.
    pub const V100: Self =
        Self { name: "gpufn simulated V100", sms: 80, capability: (7, 0), memory: Bytes::gib(16) };

    /// The size of a T4: <https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf>.
    /// Compilers of CUDA 13 know no older capability than its.
    pub const T4: Self =
        Self { name: "gpufn simulated T4", sms: 40, capability: (7, 5), memory: Bytes::gib(16) };
}

/// One card of a running daemon, as its clients see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its number, from 0.
    pub index: u32,
    /// Name.
    pub name: String,
    /// `GPU-` and a UUID that starts with 5151.
    pub uuid: String,
    /// PCI bus, made up.
    pub pci_bus: u32,
    /// Streaming multiprocessors.
    pub sms: u32,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Memory in bytes.
    pub memory: u64,
}

impl Device {
    /// Card number `index` of the daemon that listens on `socket`.
    pub fn new(card: &Card, memory: Bytes, socket: &Path, index: u32) -> Self {
        Self {
            index,
            name: card.name.into(),
            uuid: uuid(socket, index),
            pci_bus: 0x51 + index,
            sms: card.sms,
            capability: card.capability,
            memory: memory.0,
        }
    }

    /// The UUID as bytes; zeros if its text is malformed.
    pub fn uuid_bytes(&self) -> [u8; 16] {
        let hex: Vec<u8> =
            self.uuid.trim_start_matches("GPU-").bytes().filter(u8::is_ascii_hexdigit).collect();
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok()).unwrap_or(0);
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = digit(pair[0]) << 4 | digit(pair[1]);
        }
        bytes
    }

    /// PCI address in the form `0000:51:00.0`.
    pub fn pci_address(&self) -> String {
        format!("0000:{:02x}:00.0", self.pci_bus)
    }
}

/// The same for the same socket and index, so that a restarted daemon has the same cards.
fn uuid(socket: &Path, index: u32) -> String {
    // FNV-1a: any spread-out hash will do, and this one never changes.
    let hash = socket.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let tail = (hash & 0xffff_ffff_ff00) | u64::from(index & 0xff);
    format!("GPU-51515151-5151-5151-5151-{tail:012x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uuid_says_that_the_card_is_simulated_and_differs_by_daemon_and_index() {
        let device = |socket: &str, index| Device::new(&Card::V100, Bytes::gib(16), Path::new(socket), index);
        let one = device("/run/a", 0);
        assert!(one.uuid.starts_with("GPU-5151"));
        assert_ne!(one.uuid, device("/run/a", 1).uuid);
        assert_ne!(one.uuid, device("/run/b", 0).uuid);
        assert_eq!(one.uuid_bytes()[..8], [0x51; 8]);
        assert!(!one.name.to_lowercase().contains("nvidia"));
    }
}
