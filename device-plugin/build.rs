//! Rust from the kubelet's protocols. The compiler is a crate, so that no `protoc` has to be installed.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = std::env::var_os("OUT_DIR").ok_or("cargo names no folder for what is made")?;
    // Two of the kubelet's protocols have the same package, `v1`, and so the same file.
    let sets = [
        ("", &["deviceplugin", "dra", "pluginregistration", "podresources"][..]),
        ("health", &["drahealth"]),
    ];
    for (folder, names) in sets {
        let files: Vec<_> = names.iter().map(|name| format!("proto/{name}.proto")).collect();
        for file in &files {
            println!("cargo:rerun-if-changed={file}");
        }
        let folder = Path::new(&out).join(folder);
        std::fs::create_dir_all(&folder)?;
        let compiled = protox::compile(files, ["proto"])?;
        tonic_prost_build::configure().out_dir(folder).compile_fds(compiled)?;
    }
    Ok(())
}
