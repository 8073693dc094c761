//! The kernel's log, for the one thing that NVML does not say: which process an Xid is of.
//!
//! The driver writes a line for each Xid, before it tells those who listen through NVML:
//!
//! ```text
//! NVRM: Xid (PCI:0000:3b:00): 31, pid=4021, name=python3, Ch 00000008, intr 00000000. MMU Fault: …
//! NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
//! ```
//!
//! `/dev/kmsg` gives one record a read, and needs `CAP_SYSLOG` where `kernel.dmesg_restrict` is set.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// Longest record that the kernel gives.
const RECORD: usize = 8192;
/// Records read at a time at most: a flood of others must not hold up the health of GPUs.
const AT_ONCE: usize = 4096;

/// An Xid as a line of the kernel's log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// PCI address without the function, in lower case: `0000:3b:00`.
    pub(super) bus: String,
    /// Which Xid.
    pub(super) xid: u64,
    /// The process, if the driver knows it.
    pub(super) pid: Option<u32>,
}

/// Reads what the driver says of an Xid, if `text` is that.
pub(super) fn parse(text: &str) -> Option<Line> {
    let (_, rest) = text.split_once("NVRM: Xid (PCI:")?;
    let (bus, rest) = rest.split_once("): ")?;
    let (xid, rest) = rest.split_once(',')?;
    let pid = rest.trim_start().strip_prefix("pid=").and_then(|rest| rest.split(',').next());
    let pid = pid.and_then(|pid| pid.trim_matches('\'').parse().ok());
    Some(Line { bus: bus.to_lowercase(), xid: xid.trim().parse().ok()?, pid })
}

/// The kernel's log from the moment it is opened.
#[derive(Debug)]
pub(super) struct KernelLog {
    file: File,
    /// What was read of a line that has not ended, where the log is a plain file.
    partial: Vec<u8>,
}

impl KernelLog {
    /// Opens the log at `path`, at its end.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
        let mut file = File::options().read(true).custom_flags(flags).open(path)?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self { file, partial: Vec::new() })
    }

    /// The Xids since the last time.
    pub(super) fn xids(&mut self) -> Vec<Line> {
        let (mut lines, mut buffer) = (Vec::new(), [0; RECORD]);
        for _ in 0..AT_ONCE {
            match self.file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => lines.extend(self.take(&buffer[..count])),
                // EPIPE: records were overwritten before they were read; the next read goes on after them.
                Err(error)
                    if [io::ErrorKind::BrokenPipe, io::ErrorKind::Interrupted].contains(&error.kind()) => {}
                Err(_) => break,
            }
        }
        lines
    }

    fn take(&mut self, bytes: &[u8]) -> Vec<Line> {
        self.partial.extend(bytes);
        let whole = self.partial.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let text: Vec<u8> = self.partial.drain(..whole).collect();
        if self.partial.len() > RECORD {
            self.partial.clear();
        }
        String::from_utf8_lossy(&text).lines().filter_map(parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn line(bus: &str, xid: u64, pid: Option<u32>) -> Line {
        Line { bus: bus.into(), xid, pid }
    }

    #[test]
    fn lines_of_the_driver_are_read_in_all_their_forms() {
        for (text, expected) in [
            (
                "4,1201,81234567,-;NVRM: Xid (PCI:0000:3b:00): 31, pid=4021, name=python3, Ch 00000008, intr 0.",
                line("0000:3b:00", 31, Some(4021)),
            ),
            (
                "NVRM: Xid (PCI:0000:CB:00): 13, pid='<unknown>', name=<unknown>, Graphics",
                line("0000:cb:00", 13, None),
            ),
            ("NVRM: Xid (PCI:0000:10:1c): 63, pid=1896, Row Remapper", line("0000:10:1c", 63, Some(1896))),
            ("NVRM: Xid (PCI:0000:01:00): 45, pid='77', name=a", line("0000:01:00", 45, Some(77))),
            ("NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed", line("0000:01:00", 154, None)),
        ] {
            assert_eq!(parse(text), Some(expected), "{text}");
        }
        for other in
            ["", "usb 1-1: new device", "NVRM: Xid (PCI:0000:01:00", "NVRM: Xid (PCI:x): many, pid=1"]
        {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn only_what_is_written_after_the_log_was_opened_is_told_and_only_once() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "NVRM: Xid (PCI:0000:01:00): 79, pid=1, old").unwrap();
        let mut log = KernelLog::open(file.path()).unwrap();
        assert_eq!(log.xids(), []);
        write!(file, "another line\nNVRM: Xid (PCI:0000:01:00): 31, pid=7, name=a\nNVRM: Xid (PCI:0000:01:")
            .unwrap();
        assert_eq!(log.xids(), [line("0000:01:00", 31, Some(7))]);
        writeln!(file, "00): 43, pid=8, name=b").unwrap();
        assert_eq!(log.xids(), [line("0000:01:00", 43, Some(8))]);
        assert_eq!(log.xids(), []);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,80}") {
            let _ = parse(&text);
            let _ = parse(&format!("NVRM: Xid (PCI:{text}"));
        }
    }
}
