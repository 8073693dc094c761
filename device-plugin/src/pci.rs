//! A GPU's PCI address, and the NUMA node that Linux says it is near.
//!
//! | written by | form |
//! |---|---|
//! | NVML | `00000000:3B:00.0` |
//! | Linux, selectors of claims | `0000:3b:00.0` |
//! | the driver in the kernel's log | `0000:3b:00` |

use std::fs;
use std::path::Path;

/// Where Linux shows PCI devices, by address.
pub const DEVICES: &str = "/sys/bus/pci/devices";
/// Linux has at most so many (`MAX_NUMNODES`).
const MAX_NODES: u32 = 1024;

/// An address of NVML as Linux writes it.
pub(crate) fn address(bus_id: &str) -> String {
    let lower = bus_id.to_lowercase();
    match lower.split_once(':') {
        Some((domain, rest)) => {
            format!("{}:{rest}", domain.get(domain.len().saturating_sub(4)..).unwrap_or(domain))
        }
        None => lower,
    }
}

/// An address without the function.
pub(crate) fn without_function(address: &str) -> &str {
    address.rsplit_once('.').map_or(address, |(device, _)| device)
}

/// The NUMA node of the device at `address` in the folder `devices`; `None` if it is near none, or Linux does not say.
pub(crate) fn numa_node(devices: &Path, address: &str) -> Option<u32> {
    let text = fs::read_to_string(devices.join(address).join("numa_node")).ok()?;
    // A device of a machine without NUMA has -1.
    text.trim().parse().ok().filter(|&node| node < MAX_NODES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_linux_and_the_kernel_s_log_have_them() {
        assert_eq!(address("00000000:3B:00.0"), "0000:3b:00.0");
        assert_eq!(address("00010000:01:00.0"), "0000:01:00.0");
        assert_eq!(address("51:00"), "51:00");
        assert_eq!(without_function("0000:51:00.0"), "0000:51:00");
        assert_eq!(without_function("51:00"), "51:00");
    }

    #[test]
    fn a_node_is_read_where_linux_says_a_sound_one() {
        let devices = tempfile::tempdir().unwrap();
        let cases = [("1\n", Some(1)), ("-1\n", None), ("1024", None), ("", None), ("two", None)];
        for (number, (text, node)) in cases.into_iter().enumerate() {
            let address = format!("0000:{number:02x}:00.0");
            fs::create_dir(devices.path().join(&address)).unwrap();
            fs::write(devices.path().join(&address).join("numa_node"), text).unwrap();
            assert_eq!(numa_node(devices.path(), &address), node, "{text:?}");
        }
        assert_eq!(numa_node(devices.path(), "0000:ff:00.0"), None);
    }
}
