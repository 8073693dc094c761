//! Archives as the `zip` crate packs them, and what is made of their bytes.

use std::io::Write;
use std::path::Component;

use proptest::prelude::*;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::*;

const LIMITS: Limits = Limits { bytes: 100, names: 10 };

/// An archive with files, and a folder where the name ends with `/`.
fn packed(method: CompressionMethod, files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(method).unix_permissions(0o755);
    for (name, bytes) in files {
        if name.ends_with('/') {
            archive.add_directory(*name, options).unwrap();
        } else {
            archive.start_file(*name, options).unwrap();
            archive.write_all(bytes).unwrap();
        }
    }
    archive.finish().unwrap().into_inner()
}

fn stored(files: &[(&str, &[u8])]) -> Vec<u8> {
    packed(CompressionMethod::Stored, files)
}

/// `bytes` with `from` replaced by `to` everywhere.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let places: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(from)).collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at..at + from.len()].copy_from_slice(to);
    }
    bytes
}

/// An entry's path, bytes and permissions.
type Unpacked = (PathBuf, Option<Vec<u8>>, u32);

/// All of an archive in memory.
fn entries(bytes: &[u8], limits: Limits) -> Result<Vec<Unpacked>, String> {
    let mut entries = Vec::new();
    let place = |entry: Entry<'_>| {
        let mut bytes = Vec::new();
        let content = entry.content.map(|content| content.read_to_end(&mut bytes)).transpose()?;
        entries.push((entry.path.to_path_buf(), content.map(|_| bytes), entry.mode));
        Ok(())
    };
    unpack(bytes, limits, place).map_err(|error| error.to_string())?;
    Ok(entries)
}

#[test]
fn files_and_folders_are_read() {
    let text = "#!/bin/sh\n".repeat(10);
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        let archive = packed(method, &[("exec", text.as_bytes()), ("lib/", b""), ("lib/a", b"")]);
        assert!(is_archive(&archive));
        let entries = entries(&archive, LIMITS).unwrap();
        assert_eq!(entries[0], ("exec".into(), Some(text.clone().into_bytes()), 0o755));
        assert_eq!((&entries[1].0, &entries[1].1), (&"lib/".into(), &None));
        assert_eq!(entries[2], ("lib/a".into(), Some(Vec::new()), 0o755));
    }
    assert_eq!(entries(&stored(&[]), LIMITS), Ok(Vec::new()));
}

#[test]
fn an_archive_of_another_program_is_read() {
    // Of Python's zipfile.
    let archive = include_bytes!("../../../../../../tests/fuzz/seeds/archive/deflated.zip");
    let limits = Limits { bytes: 1000, ..LIMITS };
    let sizes = entries(archive, limits)
        .unwrap()
        .into_iter()
        .map(|(path, bytes, mode)| (path.display().to_string(), bytes.unwrap_or_default().len(), mode));
    assert_eq!(sizes.collect::<Vec<_>>(), [("exec".into(), 400, 0o600), ("lib/a".into(), 1, 0o600)]);
}

#[test]
fn an_archive_can_not_write_elsewhere() {
    for name in ["../x", "a/../../x", "/etc/x", "..\\x"] {
        // The writer makes such names harmless, so they are put in afterwards.
        let harmless = "n".repeat(name.len());
        let archive = replaced(&stored(&[(&harmless, b"x")]), harmless.as_bytes(), name.as_bytes());
        let paths = entries(&archive, LIMITS).map(|entries| entries.into_iter().map(|(path, ..)| path));
        if let Ok(mut paths) = paths {
            assert!(paths.all(|path| path.components().all(|part| matches!(part, Component::Normal(_)))));
        } else {
            assert_eq!(
                entries(&archive, LIMITS).unwrap_err(),
                format!("the archive has an entry {name:?}, which leads out of it")
            );
        }
    }
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    archive.add_symlink("out", "/etc", SimpleFileOptions::default()).unwrap();
    let archive = archive.finish().unwrap().into_inner();
    assert_eq!(
        entries(&archive, LIMITS).unwrap_err(),
        "the archive has a link \"out\", allowed are files and folders"
    );
}

#[test]
fn an_archive_can_not_write_too_much() {
    let (bomb, files) = ([0; 101], [("a", &[0; 60][..]), ("b", &[0; 60][..])]);
    for archive in [packed(CompressionMethod::Deflated, &[("a", &bomb)]), stored(&files)] {
        assert_eq!(
            entries(&archive, LIMITS).unwrap_err(),
            "the archive has more than 100 bytes when it is unpacked"
        );
    }
    let deep = "a/".repeat(10) + "b";
    let names: Vec<_> = (0..11).map(|n| n.to_string()).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    for archive in [stored(&[(&deep, b"")]), stored(&many)] {
        assert_eq!(entries(&archive, LIMITS).unwrap_err(), "the archive has more than 10 names in its paths");
    }
}

#[test]
fn an_archive_that_lies_about_a_size_is_refused() {
    // 77 zero bytes that are said to be 5 or 99.
    let archive = packed(CompressionMethod::Deflated, &[("a", &[0; 77])]);
    for size in [5_u32, 99] {
        let lie = replaced(&archive, &77_u32.to_le_bytes(), &size.to_le_bytes());
        assert!(entries(&lie, LIMITS).is_err(), "{size}");
    }
}

#[test]
fn damage_is_noticed_by_the_checksum() {
    let archive = stored(&[("exec", b"12345")]);
    let error = entries(&replaced(&archive, b"12345", b"12346"), LIMITS).unwrap_err();
    assert!(error.starts_with("\"exec\" can't be unpacked: "), "{error}");
    assert!(entries(b"PK\x03\x04", LIMITS).unwrap_err().starts_with("the archive can't be read: "));
}

proptest! {
    #[test]
    fn a_damaged_archive_never_makes_the_reader_panic_or_write_too_much(
        is_deflated in any::<bool>(), at in 0usize..400, byte in any::<u8>(), cut in 0usize..400,
    ) {
        let method = if is_deflated { CompressionMethod::Deflated } else { CompressionMethod::Stored };
        let mut archive = packed(method, &[("exec", b"12345"), ("lib/b", &[7; 80])]);
        let length = archive.len();
        archive[at % length] = byte;
        archive.truncate(length - cut % length);
        let entries = entries(&archive, LIMITS).unwrap_or_default();
        let size: usize = entries.iter().filter_map(|(_, bytes, _)| bytes.as_ref()).map(Vec::len).sum();
        prop_assert!(size <= 100, "{size}");
    }
}
